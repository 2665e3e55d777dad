// Package status tells what a running weir is doing: the Board collects it, a Server shows it over a unix socket in the
// state directory, and Get and Snapshot ask for it. Only values are served; nothing can be asked to be done.
package status

import (
	"cmp"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/reconcile"
	"weir/reconcile/tell/changes"
	"weir/spec"
	"weir/spec/liveness"
)

// APIVersion is that of Status in JSON; fields may be added to it.
const APIVersion = "weir/v1alpha1"

// Status is what a running weir is doing.
type Status struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"` // "Status"
	// Version is that of the weir that runs, which may not be the installed one.
	Version string `json:"version,omitempty"`
	Node    string `json:"node"`
	// Mode is the proxy mode in force, ModeReason why it is this one.
	Mode       string `json:"mode"`
	ModeReason string `json:"modeReason,omitempty"`
	// Revision is what is in force; "" if this process has put nothing in force.
	Revision string `json:"revision"`
	// Signer is the principal that signed the commit in force, if the configuration demands that.
	Signer string `json:"signer,omitempty"`
	// InForce says what is in force.
	InForce string `json:"inForce"`
	// Kept is when an earlier run kept the state in force, if it is that; RFC 3339.
	Kept string `json:"kept,omitempty"`
	// ServiceRanges are the ranges of ClusterIPs of the configuration.
	ServiceRanges []string `json:"serviceRanges,omitempty"`
	// Refused is what was read last, if it could not be used.
	Refused *Refused `json:"refused,omitempty"`
	// Away are the sources of pods that cannot be read at the moment.
	Away []Away `json:"away,omitempty"`
	// LastSync is nil before the first round has ended.
	LastSync *Sync `json:"lastSync,omitempty"`
	// DriftRepaired counts the kernel objects that were put right since the start.
	DriftRepaired int `json:"driftRepaired"`
	// TrafficError is why counters that were asked for are missing.
	TrafficError string `json:"trafficError,omitempty"`
	// Notices are those that hold and are not silenced; of one Service if that was asked for.
	Notices  []changes.Warning `json:"notices,omitempty"`
	Services []Service         `json:"services"`

	each  bool   // print each notice on a line of its own
	asker string // the version of the program that asks
}

// AskedBy makes WriteText tell if the weir that runs has another version than the program that asks.
func (s *Status) AskedBy(version string) { s.asker = version }

// ListNotices makes WriteText print each notice on a line of its own.
func (s *Status) ListNotices() { s.each = true }

// Refused is an input that cannot be used, and why.
type Refused struct {
	Revision string   `json:"revision"`
	Since    string   `json:"since"` // RFC 3339
	Errors   []string `json:"errors"`
}

// Away is a source of pods that cannot be read, and what is in force of its pods meanwhile.
type Away struct {
	Source string `json:"source"`
	Since  string `json:"since"` // RFC 3339
	Error  string `json:"error"`
	Stands string `json:"stands"`
}

// Sync is one round.
type Sync struct {
	Time     string             `json:"time"` // RFC 3339
	Reason   string             `json:"reason"`
	Seconds  map[string]float64 `json:"seconds"` // by stage
	Created  int                `json:"created"`
	Updated  int                `json:"updated"`
	Deleted  int                `json:"deleted"`
	Repaired int                `json:"repaired"`
	Error    string             `json:"error,omitempty"`
}

// Service is what is in force of a Service.
type Service struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Source    string `json:"source,omitempty"`
	// Error is why the kernel does not hold it as it was asked for, if so.
	Error string `json:"error,omitempty"`
	Ports []Port `json:"ports"`
	// Probes is nil if the Service has none.
	Probes *Probes `json:"probes,omitempty"`
}

// Port is one port of a Service in one family.
type Port struct {
	Name      string     `json:"name,omitempty"`
	Protocol  string     `json:"protocol"`
	Family    string     `json:"family"`
	Addresses []string   `json:"addresses"` // "10.96.0.1:80", "node port 30080"
	Endpoints []Endpoint `json:"endpoints"`
	// Answered reports whether weir itself answers, in place of endpoints.
	Answered bool `json:"answered,omitempty"`
	// Connections counts those since the kernel's objects for the port were made; nil if that was not asked for, or is not
	// known.
	Connections *uint64 `json:"connections,omitempty"`

	key dataplane.ServicePortName
}

// Endpoint is one that traffic may go to.
type Endpoint struct {
	Address string `json:"address"`
	Weight  uint16 `json:"weight"`
	// State is "local", "remote" or "" for where it is; "drained" if it takes no new connections.
	State string `json:"state,omitempty"`
}

// Board collects what there is to tell. It is safe for concurrent use; what it is told costs in proportion to what
// changed.
type Board struct {
	mu           sync.Mutex
	status       Status
	node         reconcile.Node
	servicePorts map[dataplane.ServicePortName]*dataplane.ServicePort
	heldBack     map[dataplane.ServiceName]string
	counter      backends.ConnectionCounter
	found        []spec.Pods
	services     spec.Services        // of the input that was last accepted
	signer       string               // of the Snapshot in use
	kept         string               // when the Snapshot in use was kept by an earlier run
	notices      func() []spec.Notice // returns those that hold; may be nil
	probed       func(dataplane.ServiceName) (liveness.State, bool)
}

// NewBoard returns a Board of a weir of this version that has been told nothing.
func NewBoard(version string) *Board {
	return &Board{servicePorts: map[dataplane.ServicePortName]*dataplane.ServicePort{}, heldBack: map[dataplane.ServiceName]string{},
		status: Status{APIVersion: APIVersion, Kind: "Status", Version: version, InForce: "nothing yet"}}
}

// Earlier tells, when an input was refused before this process has put anything in force, what an earlier one left in
// force; "" means nothing.
func (b *Board) Earlier(what string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.status.InForce = cmp.Or(what, "nothing")
}

// Noticed tells how to find the notices that hold.
func (b *Board) Noticed(all func() []spec.Notice) { b.notices = all }

// Configured tells which node it is, and why it has its mode.
func (b *Board) Configured(node reconcile.Node, modeReason string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.node, b.status.Node, b.status.ModeReason = node, node.Name, modeReason
}

// Update tells of an input.
func (b *Board) Update(u spec.Update, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if u.Err == nil {
		b.signer = u.Snapshot.Revision.Signer
		b.kept, b.status.ServiceRanges, b.found, b.services = "", nil, u.Snapshot.Found, u.Snapshot.Services
		for _, r := range u.Snapshot.Weir.ServiceCIDRs {
			b.status.ServiceRanges = append(b.status.ServiceRanges, r.String())
		}
		b.status.Away = awaySince(b.status.Away, u.Snapshot.Away, now)
		if !u.Snapshot.Revision.Outdated { // otherwise what cannot be read is told next, since when it was first told
			b.status.Refused = nil
		}
		if !u.Snapshot.Kept.IsZero() {
			b.kept = u.Snapshot.Kept.UTC().Format(time.RFC3339)
		}
		return
	}
	r := &Refused{Revision: u.Revision.String(), Since: now.UTC().Format(time.RFC3339)}
	if b.status.Refused != nil {
		r.Since = b.status.Refused.Since
	}
	var problems spec.Problems
	if errors.As(u.Err, &problems) {
		for _, p := range problems {
			r.Errors = append(r.Errors, p.Error())
		}
	} else {
		r.Errors = []string{u.Err.Error()}
	}
	b.status.Refused = r
}

// awaySince returns the sources that are away now, since when they were first told.
func awaySince(before []Away, all []spec.Away, now time.Time) (list []Away) {
	for _, a := range all {
		since := now.UTC().Format(time.RFC3339)
		if i := slices.IndexFunc(before, func(b Away) bool { return b.Source == a.Source }); i >= 0 {
			since = before[i].Since
		}
		list = append(list, Away{a.Source, since, a.Reason, a.Stands})
	}
	return list
}

// Report tells of a round.
func (b *Board) Report(r reconcile.Report) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &Sync{Time: r.Start.UTC().Format(time.RFC3339Nano), Reason: r.Reason, Created: r.Created, Updated: r.Updated, Deleted: r.Deleted, Repaired: r.Repaired,
		Seconds: r.Stages.Seconds()}
	if r.Err != nil {
		s.Error = r.Err.Error()
	} else {
		b.status.Mode, b.status.Revision, b.status.Signer, b.status.Kept = r.Mode, r.Revision, b.signer, b.kept
		b.status.InForce = "revision " + r.Revision
	}
	b.status.LastSync = s
	b.status.DriftRepaired += r.Repaired
	for _, e := range r.Changed {
		b.servicePorts[e.Key] = e
	}
	for _, k := range r.Gone {
		delete(b.servicePorts, k)
	}
	clear(b.heldBack)
	for _, i := range r.HeldBack {
		b.heldBack[i.Service] = i.Err.Error()
	}
}

// sorted returns what is in force, sorted by key.
func (b *Board) sorted() []*dataplane.ServicePort {
	return sortPorts(slices.Collect(maps.Values(b.servicePorts)))
}

func sortPorts(servicePorts []*dataplane.ServicePort) []*dataplane.ServicePort {
	slices.SortFunc(servicePorts, func(x, y *dataplane.ServicePort) int { return x.Key.Compare(y.Key) })
	return servicePorts
}

// Record returns what is in force as weir snapshot writes it.
func (b *Board) Record() *changes.Record {
	r := b.record()
	sortPorts(r.ServicePorts) // without keeping a round waiting that has something to tell
	return r
}

func (b *Board) record() *changes.Record {
	r := b.head()
	b.mu.Lock()
	defer b.mu.Unlock()
	r.ServicePorts = slices.Collect(maps.Values(b.servicePorts))
	return &r
}

// head returns the record without what grows with the number of Services.
func (b *Board) head() changes.Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	return changes.Record{Node: b.node.Name, Zone: b.node.Zone, Families: slices.Clone(b.node.Families), Revision: b.status.Revision, Pods: changes.PodsOf(b.found),
		State: changes.State{Mode: b.status.Mode}}
}

// Status returns all there is to tell, of the Services that match name only: "" for all, "web" in any namespace, or
// "default/web".
func (b *Board) Status(name string) Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.status
	s.Services = []Service{}
	s.Notices = b.noticesOf(name)
	at := map[dataplane.ServiceName]int{}
	for _, e := range b.sorted() {
		n := e.Key.Service
		if name != "" && name != n.Name && name != n.String() {
			continue
		}
		i, ok := at[n]
		if !ok {
			i = len(s.Services)
			at[n] = i
			s.Services = append(s.Services, Service{Namespace: n.Namespace, Name: n.Name, Source: e.Origin, Error: b.heldBack[n], Probes: b.probesOf(n, name != "")})
		}
		s.Services[i].Ports = append(s.Services[i].Ports, portOf(e))
	}
	for n, err := range b.heldBack {
		if _, ok := at[n]; !ok && n.Name != "" && (name == "" || name == n.Name || name == n.String()) {
			s.Services = append(s.Services, Service{Namespace: n.Namespace, Name: n.Name, Error: err, Ports: []Port{}})
		}
	}
	slices.SortFunc(s.Services, func(a, b Service) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return s
}

// noticesOf returns the notices that hold about the Services that match name, or all.
func (b *Board) noticesOf(name string) (found []changes.Warning) {
	if b.notices == nil {
		return nil
	}
	for _, n := range b.notices() {
		if svc := n.Service(); name == "" || name == svc.Name || name == svc.String() {
			found = append(found, changes.Warning{Notice: n})
		}
	}
	return found
}

func portOf(e *dataplane.ServicePort) Port {
	p := Port{key: e.Key, Name: e.Key.Port, Protocol: e.Key.Protocol.String(), Family: e.Key.Family.String(), Endpoints: []Endpoint{}, Answered: e.Answered}
	for _, a := range slices.Concat([]netip.Addr{e.ClusterIP}, e.ExternalIPs, e.LoadBalancerIPs) {
		p.Addresses = append(p.Addresses, netip.AddrPortFrom(a, e.Port).String())
	}
	if e.NodePort != 0 {
		p.Addresses = append(p.Addresses, "node port "+strconv.Itoa(int(e.NodePort)))
	}
	for _, ep := range e.Endpoints {
		state := ""
		switch {
		case ep.Weight == 0:
			state = "drained"
		case ep.Local:
			state = "local"
		case ep.Remote:
			state = "remote"
		}
		p.Endpoints = append(p.Endpoints, Endpoint{Address: ep.Addr.String(), Weight: ep.Weight, State: state})
	}
	return p
}
