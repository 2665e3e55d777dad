package apisource_test

import (
	"os"
	"testing"
)

// TestMain has HTTP/2 connections looked after more often than the default of 30 s, so that tests need not wait as long.
func TestMain(m *testing.M) {
	os.Setenv("HTTP2_READ_IDLE_TIMEOUT_SECONDS", "2")
	os.Setenv("HTTP2_PING_TIMEOUT_SECONDS", "2")
	os.Exit(m.Run())
}
