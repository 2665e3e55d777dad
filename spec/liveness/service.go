package liveness

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"weir/backends/dataplane"
	"weir/spec"
)

// service is a Service that has probes.
type service struct {
	name   dataplane.ServiceName
	probes *spec.Probes
	// in are its slices as they came, out as they are to be used, and made has the latter for each of the former.
	in, out []*discoveryv1.EndpointSlice
	made    []made
	// cells have the checks of each endpoint of each slice.
	cells  [][]cell
	checks map[*check]struct{}
	// outdated reports whether a verdict changed since out was made.
	outdated bool

	state   Counts
	told    bool   // the log has that the Service is in panic
	unknown string // why a probe said nothing, as the log has it
	results [3]uint64
}

// Counts says how many endpoints of a Service are what, of those that are ready as their slices say.
type Counts struct {
	// Healthy are those that get connections because their probes say so, Unknown those that do because they were never judged,
	// Unhealthy those of which a probe failed, Awaited those that have come and not succeeded yet.
	Healthy, Unknown, Unhealthy, Awaited int
	// Panic reports whether too few are Healthy, so that the Unhealthy ones get connections too.
	Panic bool
}

// counts returns the Counts of the Service. What was never judged counts as healthy in state, because it is served like that.
func (s *service) counts() Counts {
	n := s.state
	var never map[netip.Addr]struct{}
	for c := range s.checks {
		if c.verdict == unjudged && !c.awaited {
			if never == nil {
				never = map[netip.Addr]struct{}{}
			}
			never[c.to.Address.Addr()] = struct{}{}
		}
	}
	n.Unknown = min(len(never), n.Healthy)
	n.Healthy -= n.Unknown
	return n
}

// made is what was made of one slice.
type made struct {
	of   *discoveryv1.EndpointSlice
	keep []byte // as rows of evaluate
	out  []*discoveryv1.EndpointSlice
}

// cell has the checks of one endpoint by the index of the port. One row stands for all ports.
type cell [][]*check

func (c *cell) add(port int, ch *check) {
	for len(*c) <= port {
		*c = append(*c, nil)
	}
	if !slices.Contains((*c)[port], ch) {
		(*c)[port] = append((*c)[port], ch)
	}
}

// state is what the checks of an endpoint say together.
func (c cell) state(port int) state {
	if port >= len(c) {
		return works
	}
	s := works
	for _, ch := range c[port] {
		switch {
		case ch.verdict == unhealthy:
			return fails
		case ch.awaited:
			s = comes
		}
	}
	return s
}

type state uint8

const (
	works state = iota
	comes       // it has come, and has not succeeded yet
	fails
)

// group are the endpoints of one port in one family, which share the addresses that clients connect to.
type group struct {
	family   discoveryv1.AddressType
	port     string
	protocol corev1.Protocol
}

func groupOf(s *discoveryv1.EndpointSlice, port int) group {
	g := group{family: s.AddressType, protocol: corev1.ProtocolTCP}
	if p := s.Ports[port]; p.Name != nil {
		g.port = *p.Name
	}
	if p := s.Ports[port].Protocol; p != nil {
		g.protocol = *p
	}
	return g
}

func isTrue(b *bool, unset bool) bool {
	if b == nil {
		return unset
	}
	return *b
}

// said reports whether an endpoint gets connections as its slice says.
func said(e *discoveryv1.Endpoint) bool {
	return isTrue(e.Conditions.Ready, true) && !isTrue(e.Conditions.Terminating, false)
}

// evaluate makes the slices to use of those that came.
func (s *service) evaluate() {
	counts := map[group]*Counts{}
	for i, slice := range s.in {
		for k := range slice.Ports {
			g := groupOf(slice, k)
			n := counts[g]
			if n == nil {
				n = &Counts{}
				counts[g] = n
			}
			for j := range slice.Endpoints {
				if !said(&slice.Endpoints[j]) {
					continue
				}
				switch s.cells[i][j].state(k) {
				case works:
					n.Healthy++
				case comes:
					n.Awaited++
				case fails:
					n.Unhealthy++
				}
			}
		}
	}
	s.state = Counts{}
	for _, n := range counts {
		n.Panic = n.Unhealthy > 0 && n.Healthy < s.probes.MinHealthy.Of(n.Healthy+n.Unhealthy+n.Awaited)
		s.state.Panic = s.state.Panic || n.Panic
	}
	s.count(counts)

	before := s.made
	s.made = make([]made, len(s.in))
	var out []*discoveryv1.EndpointSlice
	for i, slice := range s.in {
		m := made{of: slice, keep: make([]byte, len(slice.Ports)*len(slice.Endpoints))}
		for k := range slice.Ports {
			panics := counts[groupOf(slice, k)].Panic
			for j := range slice.Endpoints {
				state := s.cells[i][j].state(k)
				if state == works || state == fails && panics {
					m.keep[k*len(slice.Endpoints)+j] = 1
				}
			}
		}
		if at := slices.IndexFunc(before, func(o made) bool { return o.of == slice && bytes.Equal(o.keep, m.keep) }); at >= 0 {
			m = before[at]
		} else {
			m.make()
		}
		s.made[i] = m
		out = append(out, m.out...)
	}
	slices.SortStableFunc(out, func(a, b *discoveryv1.EndpointSlice) int { return strings.Compare(a.Name, b.Name) })
	s.out = out
}

// count counts the endpoints of the largest group, because ports mostly share their endpoints.
func (s *service) count(counts map[group]*Counts) {
	panics := s.state.Panic
	families := map[discoveryv1.AddressType]Counts{}
	for g, n := range counts {
		if most := families[g.family]; n.Unhealthy > most.Unhealthy || n.Unhealthy == most.Unhealthy && n.Healthy+n.Awaited > most.Healthy+most.Awaited {
			families[g.family] = *n
		}
	}
	for _, n := range families {
		s.state.Healthy += n.Healthy
		s.state.Unhealthy += n.Unhealthy
		s.state.Awaited += n.Awaited
	}
	s.state.Panic = panics
}

// make makes one slice of the one that came, or one for each port if their endpoints differ.
func (m *made) make() {
	n := len(m.of.Endpoints)
	rows := slices.Collect(slices.Chunk(m.keep, max(n, 1)))
	switch {
	case !bytes.Contains(m.keep, []byte{0}):
		m.out = []*discoveryv1.EndpointSlice{m.of}
	case !slices.ContainsFunc(rows, func(row []byte) bool { return !bytes.Equal(row, rows[0]) }):
		m.out = []*discoveryv1.EndpointSlice{m.copy(rows[0])}
	default:
		for k, row := range rows {
			c := m.copy(row)
			c.Ports = m.of.Ports[k : k+1]
			c.Name = fmt.Sprintf("%s-%d", m.of.Name, k)
			m.out = append(m.out, c)
		}
	}
}

var no = false

// copy returns the slice with the endpoints that are not kept set to not ready.
func (m *made) copy(keep []byte) *discoveryv1.EndpointSlice {
	c := *m.of
	c.Endpoints = slices.Clone(c.Endpoints)
	for j, k := range keep {
		if k == 0 {
			c.Endpoints[j].Conditions.Ready, c.Endpoints[j].Conditions.Serving = &no, &no
		}
	}
	return &c
}

// maxNamed is how many endpoints a line of the log names.
const maxNamed = 5

// tell logs what changed.
func (s *service) tell(log hclog.Logger) {
	var failed, recovered []*check
	for c := range s.checks {
		switch {
		case c.verdict == c.told:
			continue
		case c.verdict == unhealthy:
			failed = append(failed, c)
		case c.told == unhealthy:
			recovered = append(recovered, c)
		}
		c.told = c.verdict
	}
	if len(failed) > 0 {
		slices.SortFunc(failed, byAddress)
		c := failed[0]
		log.Warn("endpoints fail their probes", append([]any{"service", s.name.String(), "endpoints", named(failed), "failures", c.probe.FailureThreshold,
			"probe", c.probe.Origin.Form.String(), "said", c.result.Message}, s.also(c)...)...)
	}
	if len(recovered) > 0 {
		slices.SortFunc(recovered, byAddress)
		c := recovered[0]
		log.Info("endpoints work again", append([]any{"service", s.name.String(), "endpoints", named(recovered), "failed_for", c.lasted.Round(time.Second).String()}, s.also(c)...)...)
	}
	if s.state.Panic == s.told {
		return
	}
	if s.told = s.state.Panic; s.told {
		log.Warn("too few endpoints work: all are kept as their slices say, because the probes may be wrong", "service", s.name.String(),
			"healthy", s.state.Healthy, "unhealthy", s.state.Unhealthy, "min_healthy", s.probes.MinHealthy.String())
	} else {
		log.Info("enough endpoints work again", "service", s.name.String(), "healthy", s.state.Healthy, "unhealthy", s.state.Unhealthy)
	}
}

// also returns what a line of the log says of the other Services that have the endpoint and the probe: nothing if there are none.
func (s *service) also(c *check) []any {
	var others []string
	for _, u := range c.users {
		if u != s {
			others = append(others, u.name.String())
		}
	}
	if len(others) == 0 {
		return nil
	}
	slices.Sort(others)
	text := strings.Join(others[:min(len(others), maxNamed)], ", ")
	if more := len(others) - maxNamed; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return []any{"also", text}
}

func byAddress(a, b *check) int { return a.key.Compare(b.key) }

func named(all []*check) string {
	var b strings.Builder
	for i, c := range all {
		if i == maxNamed {
			fmt.Fprintf(&b, " and %d more", len(all)-i)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(address(c))
	}
	return b.String()
}

// address returns the address that a check asks.
func address(c *check) string {
	if c.key.Port() == 0 {
		return c.to.Address.Addr().String()
	}
	return c.key.String()
}
