package status

import (
	"fmt"
	"strings"
	"time"

	"weir/backends/dataplane"
	"weir/spec/liveness"
)

// Probes is what is known of the endpoints of a Service that has probes.
type Probes struct {
	// Healthy, Unhealthy, Awaited and Unknown count endpoints; Awaited are those that have come and not succeeded yet, and Unknown
	// those that are served and were never judged.
	Healthy   int `json:"healthy"`
	Unknown   int `json:"unknown"`
	Unhealthy int `json:"unhealthy"`
	Awaited   int `json:"awaited"`
	// MinHealthy is how many must be healthy for probes to take any out. Panic reports whether fewer are.
	MinHealthy string `json:"minHealthy"`
	Panic      bool   `json:"panic,omitempty"`
	// Endpoints are there if the Status of one Service was asked for.
	Endpoints []ProbedEndpoint `json:"endpoints,omitempty"`
}

// ProbedEndpoint is what is known of one endpoint by one of its probes.
type ProbedEndpoint struct {
	Address string `json:"address"`
	// Asked is the address that is asked, if it is another one.
	Asked string `json:"asked,omitempty"`
	State string `json:"state"`           // healthy, unhealthy, awaited, or unknown
	Since string `json:"since,omitempty"` // RFC 3339
	// Last is the last result, LastTime when it came, and Said what the server said.
	Last     string `json:"last,omitempty"`
	LastTime string `json:"lastTime,omitempty"`
	Said     string `json:"said,omitempty"`
	Next     string `json:"next,omitempty"` // RFC 3339
	// Probe is what is asked, and From where that was written.
	Probe string `json:"probe"`
	From  string `json:"from"`
}

// Probed tells how to find what is known of a Service's endpoints.
func (b *Board) Probed(of func(dataplane.ServiceName) (liveness.State, bool)) { b.probed = of }

// probesOf returns what is known of a Service's endpoints, or nil. each has every endpoint listed.
func (b *Board) probesOf(name dataplane.ServiceName, each bool) *Probes {
	if b.probed == nil {
		return nil
	}
	st, ok := b.probed(name)
	if !ok {
		return nil
	}
	p := &Probes{Healthy: st.Healthy, Unknown: st.Unknown, Unhealthy: st.Unhealthy, Awaited: st.Awaited, MinHealthy: st.MinHealthy, Panic: st.Panic}
	if !each {
		return p
	}
	for _, c := range st.Checks {
		e := ProbedEndpoint{Address: c.Endpoint, State: c.State, Since: timeText(c.Since), Last: c.Result, LastTime: timeText(c.Asked),
			Said: c.Message, Next: timeText(c.Next), Probe: c.Probe, From: c.From}
		if c.Address != c.Endpoint {
			e.Asked = c.Address
		}
		p.Endpoints = append(p.Endpoints, e)
	}
	return p
}

func timeText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

func (p *Probes) writeText(b *strings.Builder) {
	fmt.Fprintf(b, "    probes: %d healthy, %d unhealthy", p.Healthy, p.Unhealthy)
	if p.Awaited > 0 {
		fmt.Fprintf(b, ", %d awaited", p.Awaited)
	}
	if p.Unknown > 0 {
		fmt.Fprintf(b, ", %d not judged yet", p.Unknown)
	}
	if p.Panic {
		fmt.Fprintf(b, "; panic: fewer than min-healthy %s work, so all are kept", p.MinHealthy)
	}
	b.WriteString("\n")
	for _, e := range p.Endpoints {
		fmt.Fprintf(b, "        %s %s", e.Address, e.State)
		if e.Since != "" {
			fmt.Fprintf(b, " since %s", e.Since)
		}
		b.WriteString("\n            ")
		switch {
		case e.Last == "":
			b.WriteString("not asked yet")
		default:
			fmt.Fprintf(b, "last %s: %s", e.LastTime, e.Last)
			if e.Said != "" {
				fmt.Fprintf(b, ", %q", e.Said)
			}
		}
		if e.Next != "" {
			fmt.Fprintf(b, "; next %s", e.Next)
		}
		fmt.Fprintf(b, "\n            %s", strings.Map(printable, e.Probe))
		if e.Asked != "" {
			fmt.Fprintf(b, ", asked at %s", e.Asked)
		}
		fmt.Fprintf(b, "\n            %s\n", strings.Map(printable, e.From))
	}
}
