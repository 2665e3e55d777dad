package fake_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"weir/backends"
	"weir/backends/backendtest"
	"weir/backends/dataplane"
	"weir/backends/fake"
)

type harness struct{ kernel *fake.Kernel }

func (h harness) Backend() backends.Backend { return fake.New(h.kernel, dataplane.Config{}) }

func (h harness) AddForeign(*testing.T) { h.kernel.WriteForeign("docker", "a rule") }

func (h harness) DumpForeign(*testing.T) string {
	if len(h.kernel.Foreign()) == 0 {
		return ""
	}
	return fmt.Sprint(h.kernel.Foreign())
}

func (h harness) Drifts() []backendtest.Drift {
	first := backendtest.Sample()[0].Key.String()
	return []backendtest.Drift{
		{Name: "flushed", Inject: func(*testing.T) { h.kernel.Flush() }},
		{Name: "deleted", Inject: func(*testing.T) { h.kernel.Remove("base") }},
		{Name: "changed", Inject: func(*testing.T) { h.kernel.Write(fake.Item{Name: backends.ID("port/" + first), Text: "wrong"}) }},
		{Name: "added", Inject: func(*testing.T) { h.kernel.Write(fake.Item{Name: "extra", Text: "not asked for"}) }},
	}
}

func (h harness) Refuse(_ *testing.T, key dataplane.ServicePortName) {
	h.kernel.Faults.Refuse = func(c backends.Change) error {
		if c.ID == backends.ID("port/"+key.String()) {
			return errors.New("no")
		}
		return nil
	}
}

func TestConformance(t *testing.T) {
	backendtest.Run(t, func(*testing.T) backendtest.Harness { return harness{fake.NewKernel()} })
}

// TestConformanceWithoutGeneration is for a mechanism that cannot tell whether another process wrote.
func TestConformanceWithoutGeneration(t *testing.T) {
	backendtest.Run(t, func(*testing.T) backendtest.Harness {
		k := fake.NewKernel()
		k.NoGeneration = true
		return harness{k}
	})
}

// TestConformanceTelling is for a mechanism that can tell what another process wrote.
func TestConformanceTelling(t *testing.T) {
	backendtest.Run(t, func(*testing.T) backendtest.Harness {
		k := fake.NewKernel()
		k.Tells = true
		return harness{k}
	})
}

func TestDanglingReferencesAreRefused(t *testing.T) {
	k := fake.NewKernel()
	b := fake.New(k, dataplane.Config{})
	i := fake.Item{Name: "a", Needs: []backends.ID{"b"}}
	r := b.Apply(t.Context(), backends.Plan{Changes: []backends.Change{{Op: backends.Create, ID: "a", New: i}}})
	if r.Err == nil || r.Refused["a"] == nil || slices.Contains(k.Objects(), i.String()) {
		t.Fatalf("got %v, objects %v", r, k.Objects())
	}
}
