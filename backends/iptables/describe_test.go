package iptables

import (
	"testing"

	"weir/backends/backendtest"
	"weir/backends/xtables"
)

func TestDescribe(t *testing.T) {
	t.Run("BPF", func(t *testing.T) { backendtest.Describe(t, New(testConfig(), xtables.NewFake())) })
	t.Run("without BPF", func(t *testing.T) {
		b := New(testConfig(), xtables.NewFake())
		b.bpf = false
		backendtest.Describe(t, b)
	})
}
