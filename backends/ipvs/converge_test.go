package ipvs

import (
	"testing"

	"weir/backends/backendtest"
)

// TestSecondPlanIsEmpty also covers the way back: without Services only the scaffolding is left.
func TestSecondPlanIsEmpty(t *testing.T) {
	eachKernel(t, func(t *testing.T, r *rig) {
		b := r.backend(testSettings())
		if p := b.converge(t, backendtest.Sample()...); p.Empty() {
			t.Fatal("nothing was planned for an empty kernel")
		}
		if p := b.plan(t, backendtest.Sample()...); !p.Empty() {
			t.Errorf("after the apply there is still to do:\n%s", p)
		}
		b.converge(t)
		if p := b.plan(t); !p.Empty() {
			t.Errorf("after the Services went there is still to do:\n%s", p)
		}
	})
}
