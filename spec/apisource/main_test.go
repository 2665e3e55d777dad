package apisource_test

import (
	"fmt"
	"io"
	"os"
	"testing"
)

// pluginEnv is set where the test binary is to be an exec credential plugin. It names the file with what to answer.
const pluginEnv = "WEIR_TEST_EXEC_CREDENTIAL"

// TestMain has HTTP/2 connections looked after more often than the default of 30 s, so that tests need not wait as long.
func TestMain(m *testing.M) {
	if file := os.Getenv(pluginEnv); file != "" {
		if err := answerAsPlugin(file); err != nil {
			fmt.Fprintln(os.Stderr, "the test's credential plugin:", err)
			os.Exit(1)
		}
		return
	}
	os.Setenv("HTTP2_READ_IDLE_TIMEOUT_SECONDS", "2")
	os.Setenv("HTTP2_PING_TIMEOUT_SECONDS", "2")
	os.Exit(m.Run())
}

func answerAsPlugin(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(os.Stdout, f)
	return err
}
