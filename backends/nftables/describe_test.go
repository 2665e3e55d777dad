package nftables

import (
	"testing"

	"weir/backends/backendtest"
)

func TestDescribe(t *testing.T) { backendtest.Describe(t, New(testConfig())) }
