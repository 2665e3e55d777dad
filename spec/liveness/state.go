package liveness

import (
	"cmp"
	"slices"
	"time"

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/probe"
)

// State says what is known of the endpoints of a Service.
type State struct {
	Counts
	// MinHealthy is how many endpoints must work for probes to take any out, as it was written.
	MinHealthy string
	Checks     []Check
}

// Check says what is known of one endpoint by one of its probes.
type Check struct {
	// Endpoint is the address that clients are sent to; Address is the one that is asked.
	Endpoint, Address string
	// State is "healthy", "unhealthy", "awaited" for one that has come and not succeeded yet, or "unknown" for one that is as
	// its slice says because it was never judged.
	State string
	// Since is when the State began, as far as that is known.
	Since time.Time
	// Asked is when the last result came, which is Result with its Message; zero if there is none.
	Asked           time.Time
	Result, Message string
	Took            time.Duration
	// Next is when it is asked next; zero while it is asked.
	Next time.Time
	// Probe says what is asked, and From where that was written.
	Probe, From string
}

func (c *check) stateText() string {
	switch {
	case c.verdict == healthy:
		return "healthy"
	case c.verdict == unhealthy:
		return "unhealthy"
	case c.awaited:
		return "awaited"
	}
	return "unknown"
}

// State returns what is known of a Service, and whether it has probes.
func (l *Layer) State(name dataplane.ServiceName) (State, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.services[name]
	if s == nil {
		return State{}, false
	}
	st := State{Counts: s.counts(), MinHealthy: s.probes.MinHealthy.String()}
	for c := range s.checks {
		k := Check{
			Endpoint: c.to.Address.String(), Address: address(c), State: c.stateText(), Since: c.since, Asked: c.asked,
			Message: c.result.Message, Took: c.result.Took, Probe: c.probe.String(), From: From(c.probe),
		}
		if !c.asked.IsZero() {
			k.Result = c.result.Verdict.String()
		}
		if c.at >= 0 {
			k.Next = c.next
		}
		st.Checks = append(st.Checks, k)
	}
	slices.SortFunc(st.Checks, func(a, b Check) int {
		return cmp.Or(cmp.Compare(a.Endpoint, b.Endpoint), cmp.Compare(a.Address, b.Address), cmp.Compare(a.Probe, b.Probe))
	})
	return st, true
}

// From returns where a Probe was written: "readinessProbe of Deployment default/web, container web, web.yaml:12".
func From(p *probe.Probe) string {
	o := p.Origin
	text := o.String()
	if o.Container != "" {
		text += ", container " + o.Container
	}
	if at := (spec.Origin{File: o.File, Line: o.Line}).String(); at != "" {
		text += ", " + at
	}
	return spec.Clean(text)
}
