package liveness

import "weir/spec/probe"

// judge turns results into verdicts by the thresholds of a Probe, as the kubelet does: a verdict needs as many equal results in
// a row, and until then the last one stands. A result that says nothing does not count. The zero value has seen no result.
type judge struct {
	last probe.Verdict
	run  int
}

// add takes a result and reports whether it is a verdict.
func (j *judge) add(v probe.Verdict, p *probe.Probe) bool {
	limit := p.SuccessThreshold
	switch v {
	case probe.Unknown:
		return false
	case probe.Failure:
		limit = p.FailureThreshold
	}
	if v != j.last {
		j.last, j.run = v, 0
	}
	j.run++
	return j.run >= limit
}
