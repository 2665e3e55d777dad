package changes

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/reconcile"
)

// kernelChanges counts the changes in the kernel that belong to no single Service.
type kernelChanges struct {
	Backend string `json:"backend"`
	Total   count  `json:"total"`
	// Scaffolding counts objects that exist with or without Services.
	Scaffolding count `json:"scaffolding"`
	// Shared counts objects that several Services use.
	Shared count `json:"shared"`
	// Unclaimed counts weir's own objects that nothing asks for: leftovers, or objects of another writer.
	Unclaimed count `json:"unclaimed"`
	// HeldBack holds the Services that the kernel or the backend refuses: their kernel objects stay unchanged.
	HeldBack []heldBack `json:"heldBack,omitempty"`
	// Rules lists every change in the kernel's own terms, if requested.
	Rules []rule `json:"rules,omitempty"`
	// Programs are the commands that make the changes, with their input, if the backend runs commands and if requested.
	Programs []backends.Command `json:"programs,omitempty"`
}

// heldBack is a Service, or an item of no Service, that is left out of the Diff.
type heldBack struct {
	Object string `json:"object"`
	Source string `json:"source,omitempty"`
	Error  string `json:"error"`

	service dataplane.ServiceName
}

// rule is one change of one kernel object.
type rule struct {
	Op  backends.Op `json:"op"`
	ID  string      `json:"id"`
	Old string      `json:"old,omitempty"`
	New string      `json:"new,omitempty"`
	// For lists the Services because of which the object changes, or is one of "scaffolding" and "unclaimed".
	For []string `json:"for"`
}

// The values of For for objects of no Service.
const (
	forScaffolding = "scaffolding"
	forUnclaimed   = "unclaimed"
)

// FromKernel returns the result of a dry run, by Service. Every kernel change belongs to a Service, or is counted in
// the Group's Kernel. The applied state, if it is known, supplies names that the kernel does not have. Its values are
// shown only if the kernel really holds them. node is only printed.
func FromKernel(node string, c *reconcile.Comparison, applied *State, rules bool) Group {
	k := newKernelDiff(c, applied)
	g := Group{Nodes: []string{node}, Services: []serviceDiff{}, Kernel: &k.kernel}
	if applied != nil && applied.Mode != "" && applied.Mode != c.Plan.Backend {
		g.Mode = &modeChange{Old: applied.Mode, New: c.Plan.Backend}
	}
	k.account(rules)
	for _, i := range c.HeldBack {
		k.kernel.HeldBack = append(k.kernel.HeldBack, heldBack{Object: i.String(), Source: i.Origin, Error: i.Err.Error(), service: i.Service})
	}
	if rules && c.Backend != nil && c.Backend.Optional().CommandLister != nil {
		// It fails only for a Plan that the backend did not make.
		k.kernel.Programs, _ = c.Backend.Optional().CommandLister.Commands(c.Plan)
	}
	for _, name := range k.changedNames() {
		g.Services = append(g.Services, k.service(name))
	}
	if applied != nil && applied.Mode == c.Plan.Backend {
		g.Services = append(g.Services, k.besides()...)
		slices.SortStableFunc(g.Services, func(a, b serviceDiff) int {
			return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
		})
	}
	return g
}

// besides returns the Services of which no kernel object changes, and something does that is none: their probes.
func (k *kernelDiff) besides() (all []serviceDiff) {
	for name, wanted := range k.wanted {
		if k.counts[name] != nil {
			continue
		}
		var before []*dataplane.ServicePort
		for _, e := range wanted {
			old := *e
			if o := find(k.applied[name], e.Key); o != nil {
				old.Probe, old.Reset = o.Probe, o.Reset
			}
			before = append(before, &old)
		}
		if s, differs := diffService(name, before, wanted); differs {
			s.Kernel = &count{}
			all = append(all, s)
		}
	}
	return all
}

// kernelDiff is the work on one Comparison.
type kernelDiff struct {
	c       *reconcile.Comparison
	kernel  kernelChanges
	base    map[backends.ID]bool
	held    map[backends.ID]string // the items in the kernel
	wanted  index
	applied index
	// before and after are the frontends of both sides, by their Service port.
	before, after map[dataplane.ServicePortName][]backends.ProgrammedFrontend
	// ports are the ports of each Service that has a frontend in the kernel.
	ports map[dataplane.ServiceName][]dataplane.ServicePortName
	// was names the Services that an observed Item is, or was, wanted by.
	was    map[backends.ID][]dataplane.ServiceName
	counts map[dataplane.ServiceName]*count
	// roles holds the role of each address for its Service, now or before.
	roles map[frontKey]field
}

// frontKey identifies a frontend; the address is zero for a node port.
type frontKey struct {
	addr     netip.Addr
	family   dataplane.Family
	protocol dataplane.Protocol
	port     uint16
}

func keyOf(f backends.ProgrammedFrontend) frontKey {
	return frontKey{f.Addr, f.Family, f.Protocol, f.Port}
}

func newKernelDiff(c *reconcile.Comparison, applied *State) *kernelDiff {
	k := &kernelDiff{
		c: c, kernel: kernelChanges{Backend: c.Plan.Backend}, base: map[backends.ID]bool{}, held: make(map[backends.ID]string, len(c.Observed)),
		wanted: indexOf(c.ServicePorts), was: map[backends.ID][]dataplane.ServiceName{}, counts: map[dataplane.ServiceName]*count{},
		before: map[dataplane.ServicePortName][]backends.ProgrammedFrontend{}, after: map[dataplane.ServicePortName][]backends.ProgrammedFrontend{}, roles: map[frontKey]field{},
		ports: map[dataplane.ServiceName][]dataplane.ServicePortName{},
	}
	if applied != nil {
		k.applied = indexOf(applied.ServicePorts)
	}
	if c.Backend == nil || c.Plan.Empty() {
		return k
	}
	for _, i := range c.Backend.Base() {
		k.base[i.ID()] = true
	}
	for _, i := range c.Observed {
		k.held[i.ID()] = i.String()
	}
	if d := c.Backend.Optional().Describer; d != nil {
		k.describe(d)
	}
	k.recall()
	return k
}

// recall finds the kernel objects of Services that were applied in another form than they are wanted now.
func (k *kernelDiff) recall() {
	for name, servicePorts := range k.applied {
		if slices.EqualFunc(servicePorts, k.wanted[name], func(a, b *dataplane.ServicePort) bool { return a == b }) {
			continue
		}
		for _, e := range servicePorts {
			items, err := k.c.Backend.Render(e)
			if err != nil {
				continue // settings changed since, so only the frontends can tell
			}
			for _, i := range items {
				k.claim(i.ID(), name)
			}
		}
	}
}

func (k *kernelDiff) claim(id backends.ID, name dataplane.ServiceName) {
	if _, held := k.held[id]; held && !slices.Contains(k.was[id], name) {
		k.was[id] = append(k.was[id], name)
	}
}

// describe sorts the frontends of both sides by Service port.
func (k *kernelDiff) describe(d backends.Describer) {
	recorded, asked := map[frontKey]dataplane.ServicePortName{}, map[frontKey]dataplane.ServicePortName{}
	for _, servicePorts := range k.applied {
		k.learnRoles(servicePorts, recorded)
	}
	k.learnRoles(k.c.ServicePorts, asked)
	for _, f := range d.Describe(k.c.Desired) {
		if key, ok := asked[keyOf(f)]; ok {
			k.after[key] = append(k.after[key], f)
		}
	}
	for _, f := range d.Describe(k.c.Observed) {
		key := k.nameOf(f, recorded, asked)
		if len(k.before[key]) == 0 {
			k.ports[key.Service] = append(k.ports[key.Service], key)
		}
		k.before[key] = append(k.before[key], f)
		for _, id := range slices.Concat(f.Own, f.Shared) {
			if len(k.c.Owners(id)) == 0 {
				k.claim(id, key.Service)
			}
		}
	}
}

// learnRoles records the Service port and the role of each address.
func (k *kernelDiff) learnRoles(servicePorts []*dataplane.ServicePort, whose map[frontKey]dataplane.ServicePortName) {
	for _, e := range servicePorts {
		note := func(role field, a netip.Addr, port uint16) {
			key := frontKey{a, e.Key.Family, e.Key.Protocol, port}
			if _, taken := whose[key]; taken {
				return // two Services want it; the first wins
			}
			whose[key], k.roles[key] = e.Key, role
		}
		note(fieldClusterIP, e.ClusterIP, e.Port)
		for _, a := range e.ExternalIPs {
			note(fieldExternalIP, a, e.Port)
		}
		for _, a := range e.LoadBalancerIPs {
			note(fieldLoadBalancerIP, a, e.Port)
		}
		if e.NodePort != 0 {
			note(fieldNodePort, netip.Addr{}, e.NodePort)
		}
	}
}

// nameOf returns the Service port of an observed frontend. It tries the name in the kernel, the applied state, a wanted
// kernel object of the frontend's own, and the address, in this order. An unknown frontend is named after its address.
func (k *kernelDiff) nameOf(f backends.ProgrammedFrontend, recorded, asked map[frontKey]dataplane.ServicePortName) dataplane.ServicePortName {
	if namespace, rest, ok := strings.Cut(f.Service, "/"); ok {
		name, port, _ := strings.Cut(rest, ":")
		return dataplane.ServicePortName{Service: dataplane.ServiceName{Namespace: namespace, Name: name}, Port: port, Protocol: f.Protocol, Family: f.Family}
	}
	if key, ok := recorded[keyOf(f)]; ok {
		return key
	}
	for _, id := range f.Own {
		if owners := k.c.Owners(id); len(owners) == 1 {
			return owners[0]
		}
	}
	if key, ok := asked[keyOf(f)]; ok {
		return key
	}
	return dataplane.ServicePortName{Service: dataplane.ServiceName{Name: frontText(f)}, Protocol: f.Protocol, Family: f.Family}
}

func frontText(f backends.ProgrammedFrontend) string {
	if !f.Addr.IsValid() {
		return fmt.Sprintf("node port %d/%s", f.Port, f.Protocol)
	}
	return fmt.Sprintf("%s/%s", netip.AddrPortFrom(f.Addr, f.Port), f.Protocol)
}

// account assigns every change to its Services, or to the counts of the Group.
func (k *kernelDiff) account(rules bool) {
	var shared []backends.Change
	for _, c := range k.c.Plan.Changes {
		k.kernel.Total.add(c.Op)
		names := k.servicesOf(c)
		switch {
		case len(names) == 1:
			k.count(names[0]).add(c.Op)
		case len(names) > 1:
			k.kernel.Shared.add(c.Op)
			shared = append(shared, c)
		case k.base[c.ID]:
			k.kernel.Scaffolding.add(c.Op)
		default:
			k.kernel.Unclaimed.add(c.Op)
		}
		if rules {
			k.kernel.Rules = append(k.kernel.Rules, k.rule(c, names))
		}
	}
	// An object shared by several Services changes many of them at once. It is shown only with those that change
	// themselves.
	for _, c := range shared {
		for _, name := range k.servicesOf(c) {
			if n := k.counts[name]; n != nil {
				n.add(c.Op)
			}
		}
	}
}

func (k *kernelDiff) count(name dataplane.ServiceName) *count {
	if k.counts[name] == nil {
		k.counts[name] = &count{}
	}
	return k.counts[name]
}

// servicesOf returns the Services of a change: those that want the object, or else those that it existed for.
func (k *kernelDiff) servicesOf(c backends.Change) []dataplane.ServiceName {
	var names []dataplane.ServiceName
	for _, o := range c.Owners {
		names = append(names, o.Service)
	}
	if len(names) == 0 && !k.base[c.ID] {
		names = slices.SortedFunc(slices.Values(k.was[c.ID]), dataplane.ServiceName.Compare)
	}
	return slices.Compact(names)
}

func (k *kernelDiff) rule(c backends.Change, names []dataplane.ServiceName) rule {
	r := rule{Op: c.Op, ID: string(c.ID)}
	if c.Old != nil {
		r.Old = c.Old.String()
	}
	if c.New != nil {
		r.New = c.New.String()
	}
	for _, n := range names {
		r.For = append(r.For, nameText(n))
	}
	switch {
	case len(names) > 0:
	case k.base[c.ID]:
		r.For = []string{forScaffolding}
	default:
		r.For = []string{forUnclaimed}
	}
	return r
}

func (k *kernelDiff) changedNames() []dataplane.ServiceName {
	names := make([]dataplane.ServiceName, 0, len(k.counts))
	for n := range k.counts {
		names = append(names, n)
	}
	slices.SortFunc(names, dataplane.ServiceName.Compare)
	return names
}

// service returns the difference of one Service.
func (k *kernelDiff) service(name dataplane.ServiceName) serviceDiff {
	wanted, applied := k.wanted[name], k.applied[name]
	faithful := len(applied) > 0 && k.holds(applied)
	if faithful {
		s, _ := diffService(name, applied, wanted)
		s.Kernel = k.counts[name]
		return s
	}
	s := serviceDiff{Namespace: name.Namespace, Name: name.Name, Source: sourceOf(wanted, applied), Kernel: k.counts[name], Ports: []portDiff{}, Drift: len(applied) > 0}
	before := false
	for _, key := range k.keys(name) {
		old := k.frontFacts(k.before[key])
		before = before || old != nil
		new := k.frontFacts(k.after[key])
		if e := find(wanted, key); e != nil && (old == nil || new == nil) {
			new = factsOf(e) // nothing to compare with, and the ServicePort has more detail
		}
		if p, differs := diffPort(key, old, new); differs {
			s.Ports = append(s.Ports, p)
		}
	}
	s.Op = opOf(before, len(wanted) > 0)
	if len(wanted) > 0 && len(s.Ports) == 0 {
		s.Op = Modify // only repaired
	}
	return s
}

// keys returns the ports that a Service has on either side, in order.
func (k *kernelDiff) keys(name dataplane.ServiceName) []dataplane.ServicePortName {
	keys := append(keysOf(k.applied[name], k.wanted[name]), k.ports[name]...)
	slices.SortFunc(keys, dataplane.ServicePortName.Compare)
	return slices.Compact(keys)
}

// holds reports whether the kernel holds exactly what these ServicePorts ask for.
func (k *kernelDiff) holds(servicePorts []*dataplane.ServicePort) bool {
	for _, e := range servicePorts {
		items, err := k.c.Backend.Render(e)
		if err != nil {
			return false
		}
		for _, i := range items {
			if text, ok := k.held[i.ID()]; !ok || text != i.String() {
				return false
			}
		}
	}
	return true
}

// frontFacts returns the facts that frontends of one Service port contain.
func (k *kernelDiff) frontFacts(fronts []backends.ProgrammedFrontend) []fact {
	if len(fronts) == 0 {
		return nil
	}
	var facts []fact
	seen := map[fact]bool{}
	add := func(f fact) {
		if !seen[f] {
			seen[f] = true
			facts = append(facts, f)
		}
	}
	for _, f := range fronts {
		for _, fact := range k.addressFacts(f) {
			add(fact)
		}
		for _, s := range f.Sources {
			add(fact{Field: fieldSourceRange, Key: s})
		}
		if f.Affinity > 0 {
			add(fact{Field: fieldAffinity, Value: "ClientIP for " + f.Affinity.String()})
		}
	}
	slices.SortStableFunc(fronts, func(a, b backends.ProgrammedFrontend) int { return cmp.Compare(k.place(a), k.place(b)) })
	for i, f := range fronts {
		field := fieldEndpoint
		if i > 0 && !sameShares(f.Endpoints, fronts[0].Endpoints) {
			field = fieldExternalEndpoint
		}
		for _, s := range f.Endpoints {
			add(shareFact(field, s, len(f.Endpoints)))
		}
		if i > 0 && !sameShares(f.FromNode, fronts[0].Endpoints) {
			for _, s := range f.FromNode {
				add(shareFact(fieldExternalEndpoint, s, len(f.FromNode)))
			}
		}
	}
	if refused := fronts[0].Refusal; refused != "" && len(fronts[0].Endpoints) == 0 {
		add(fact{Field: fieldNoEndpoint, Value: refusal(refused == "drop")})
	}
	return facts
}

// place orders frontends: the ClusterIP comes first.
func (k *kernelDiff) place(f backends.ProgrammedFrontend) int {
	if role, ok := k.roles[keyOf(f)]; ok {
		return fields[role].order
	}
	return fields[fieldAddress].order
}

func (k *kernelDiff) addressFacts(f backends.ProgrammedFrontend) []fact {
	if !f.Addr.IsValid() {
		return []fact{{Field: fieldNodePort, Value: number(f.Port)}}
	}
	switch role := k.roles[keyOf(f)]; role {
	case fieldClusterIP:
		return []fact{{Field: fieldClusterIP, Value: f.Addr.String()}, {Field: fieldPort, Value: number(f.Port)}}
	case fieldExternalIP, fieldLoadBalancerIP:
		return []fact{{Field: role, Key: f.Addr.String()}}
	}
	return []fact{{Field: fieldAddress, Key: netip.AddrPortFrom(f.Addr, f.Port).String()}}
}

// shareFact leaves out the share if all shares are equal.
func shareFact(field field, s dataplane.EndpointShare, of int) fact {
	f := fact{Field: field, Key: s.Addr.String()}
	if math.Abs(s.Fraction*float64(of)-1) > 0.005 {
		f.Value = fmt.Sprintf("%.1f %% of connections", s.Fraction*100)
	}
	return f
}

func sameShares(a, b []dataplane.EndpointShare) bool {
	return slices.EqualFunc(a, b, func(x, y dataplane.EndpointShare) bool {
		return x.Addr == y.Addr && math.Abs(x.Fraction-y.Fraction) < 1e-6
	})
}

func nameText(n dataplane.ServiceName) string {
	if n.Namespace == "" {
		return n.Name
	}
	return n.String()
}
