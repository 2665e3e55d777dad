package liveness

import (
	"testing"

	"weir/spec/probe"
	"weir/spec/seed"
)

// ready restates what the kubelet's prober does with the results of a readiness probe since the container runs, independently of
// judge: it starts as not ready, throws away what is neither success nor failure, counts how many of the same kind came last, and
// leaves the state as it is while those are fewer than the threshold.
func ready(results []probe.Verdict, success, failure int) bool {
	state := false
	for i := range results {
		count := 0
		for j := i; j >= 0; j-- {
			if results[j] == probe.Unknown {
				continue
			}
			if results[j] != results[i] {
				break
			}
			count++
		}
		switch {
		case results[i] == probe.Success && count >= success:
			state = true
		case results[i] == probe.Failure && count >= failure:
			state = false
		}
	}
	return state
}

// TestThresholds has random sequences of results and thresholds.
func TestThresholds(t *testing.T) {
	r := seed.Rand(t)
	for range 100_000 {
		p := &probe.Probe{SuccessThreshold: 1 + r.IntN(4), FailureThreshold: 1 + r.IntN(4)}
		// Results come in runs, so that thresholds are met.
		stays := 1 + r.IntN(4)
		var results []probe.Verdict
		var j judge
		state, last := false, probe.Success
		for range 1 + r.IntN(24) {
			if r.IntN(stays+1) == 0 {
				last = probe.Success + probe.Failure - last
			}
			v := last
			if r.IntN(8) == 0 {
				v = probe.Unknown
			}
			results = append(results, v)
			if j.add(v, p) {
				state = v == probe.Success
			}
			if want := ready(results, p.SuccessThreshold, p.FailureThreshold); state != want {
				t.Fatalf("after %v with thresholds %d and %d ready is %v, want %v", results, p.SuccessThreshold, p.FailureThreshold, state, want)
			}
		}
	}
}
