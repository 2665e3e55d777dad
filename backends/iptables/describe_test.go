package iptables

import (
	"testing"

	"weir/backends/backendtest"
)

func TestDescribe(t *testing.T) {
	t.Run("BPF", func(t *testing.T) { backendtest.Describe(t, New(testConfig(), NewFake())) })
	t.Run("without BPF", func(t *testing.T) {
		b := New(testConfig(), NewFake())
		b.features.BPF = false
		backendtest.Describe(t, b)
	})
}
