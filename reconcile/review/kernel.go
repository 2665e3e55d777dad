package review

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	"weir/backends"
	"weir/reconcile"
)

// Kernel is what changes in the kernel, whoever for.
type Kernel struct {
	Backend string `json:"backend"`
	Total   Count  `json:"total"`
	// Scaffolding counts what is there whether or not there are Services.
	Scaffolding Count `json:"scaffolding"`
	// Shared counts what exists for several Services.
	Shared Count `json:"shared"`
	// Unclaimed counts what nothing asks for, among weir's own objects: left over, or put there by somebody else.
	Unclaimed Count `json:"unclaimed"`
	// Isolated are the Services that cannot be programmed on this node: what the kernel holds for them stays as it is.
	Isolated []Isolated `json:"isolated,omitempty"`
	// Rules lists every change in the kernel's own terms, if that was asked for.
	Rules []Rule `json:"rules,omitempty"`
	// Programs are what is run to make them, with their input, where the backend works by programs; also only if asked for.
	Programs []backends.Program `json:"programs,omitempty"`
}

// Isolated is a Service, or what belongs to none, that is left out of the Plan.
type Isolated struct {
	Object string `json:"object"`
	Source string `json:"source,omitempty"`
	Error  string `json:"error"`

	service backends.ServiceName
}

// Rule is one change of one kernel object.
type Rule struct {
	Op  backends.Op `json:"op"`
	ID  string      `json:"id"`
	Old string      `json:"old,omitempty"`
	New string      `json:"new,omitempty"`
	// For lists the Services on whose account it changes, or is one of "scaffolding" and "unclaimed".
	For []string `json:"for"`
}

// The accounts of what belongs to no Service.
const (
	forScaffolding = "scaffolding"
	forUnclaimed   = "unclaimed"
)

// AgainstKernel returns what a dry run found, as Services. Every kernel change is on the account of a Service, or counted
// in the Group's Kernel. What was applied last, if it is known, names what the kernel has no names for; its values are
// shown only where the kernel really holds them. The nodes's name is for the reader.
func AgainstKernel(node string, c *reconcile.Comparison, applied *State, rules bool) Group {
	k := newKernelDiff(c, applied)
	g := Group{Nodes: []string{node}, Services: []Service{}, Kernel: &k.kernel}
	if applied != nil && applied.Mode != "" && applied.Mode != c.Plan.Backend {
		g.Mode = &Mode{Old: applied.Mode, New: c.Plan.Backend}
	}
	k.account(rules)
	for _, i := range c.Isolated {
		k.kernel.Isolated = append(k.kernel.Isolated, Isolated{Object: i.String(), Source: i.Origin, Error: i.Err.Error(), service: i.Service})
	}
	if s, ok := c.Backend.(backends.Scripter); ok && rules {
		// An error would be one of a Plan that the backend itself made.
		k.kernel.Programs, _ = s.Script(c.Plan)
	}
	for _, name := range k.changedNames() {
		g.Services = append(g.Services, k.service(name))
	}
	return g
}

// kernelDiff is the work on one Comparison.
type kernelDiff struct {
	c       *reconcile.Comparison
	kernel  Kernel
	base    map[backends.ID]bool
	held    map[backends.ID]string // what the kernel holds
	wanted  index
	applied index
	// before and after are the fronts of both sides, by the Service port that they are for.
	before, after map[backends.PortKey][]backends.Front
	// ports are those of each Service that has a front in the kernel.
	ports map[backends.ServiceName][]backends.PortKey
	// was names the Services that an observed Item is, or was, there for.
	was    map[backends.ID][]backends.ServiceName
	counts map[backends.ServiceName]*Count
	// roles says what each address is, or was, to its Service.
	roles map[frontKey]Field
}

// frontKey identifies a front; the address is zero for a node port.
type frontKey struct {
	addr     netip.Addr
	family   backends.Family
	protocol backends.Protocol
	port     uint16
}

func keyOf(f backends.Front) frontKey { return frontKey{f.Addr, f.Family, f.Protocol, f.Port} }

func newKernelDiff(c *reconcile.Comparison, applied *State) *kernelDiff {
	k := &kernelDiff{
		c: c, kernel: Kernel{Backend: c.Plan.Backend}, base: map[backends.ID]bool{}, held: make(map[backends.ID]string, len(c.Observed)),
		wanted: indexOf(c.Entries), was: map[backends.ID][]backends.ServiceName{}, counts: map[backends.ServiceName]*Count{},
		before: map[backends.PortKey][]backends.Front{}, after: map[backends.PortKey][]backends.Front{}, roles: map[frontKey]Field{},
		ports: map[backends.ServiceName][]backends.PortKey{},
	}
	if applied != nil {
		k.applied = indexOf(applied.Entries)
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
	if d, ok := c.Backend.(backends.Describer); ok {
		k.describe(d)
	}
	k.recall()
	return k
}

// recall finds out what of the kernel's objects is there for Services that were applied otherwise than they are wanted.
func (k *kernelDiff) recall() {
	for name, entries := range k.applied {
		if slices.EqualFunc(entries, k.wanted[name], func(a, b *backends.Entry) bool { return a == b }) {
			continue
		}
		for _, e := range entries {
			items, err := k.c.Backend.Render(e)
			if err != nil {
				continue // settings changed since; then the fronts have to tell
			}
			for _, i := range items {
				k.claim(i.ID(), name)
			}
		}
	}
}

func (k *kernelDiff) claim(id backends.ID, name backends.ServiceName) {
	if _, held := k.held[id]; held && !slices.Contains(k.was[id], name) {
		k.was[id] = append(k.was[id], name)
	}
}

// describe sorts the fronts of both sides by Service port.
func (k *kernelDiff) describe(d backends.Describer) {
	recorded, asked := map[frontKey]backends.PortKey{}, map[frontKey]backends.PortKey{}
	for _, entries := range k.applied {
		k.learnRoles(entries, recorded)
	}
	k.learnRoles(k.c.Entries, asked)
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

// learnRoles notes which address is whose, and what it is.
func (k *kernelDiff) learnRoles(entries []*backends.Entry, whose map[frontKey]backends.PortKey) {
	for _, e := range entries {
		note := func(role Field, a netip.Addr, port uint16) {
			key := frontKey{a, e.Key.Family, e.Key.Protocol, port}
			if _, taken := whose[key]; taken {
				return // two Services want it; the first has its way
			}
			whose[key], k.roles[key] = e.Key, role
		}
		note(FieldClusterIP, e.ClusterIP, e.Port)
		for _, a := range e.ExternalIPs {
			note(FieldExternalIP, a, e.Port)
		}
		for _, a := range e.LoadBalancerIPs {
			note(FieldLoadBalancerIP, a, e.Port)
		}
		if e.NodePort != 0 {
			note(FieldNodePort, netip.Addr{}, e.NodePort)
		}
	}
}

// nameOf tells which Service port an observed front is for: by the name that the kernel was given, by what is known to
// have been applied, by a kernel object of its own that is still wanted, or by its address. One that nobody knows is named
// for its address.
func (k *kernelDiff) nameOf(f backends.Front, recorded, asked map[frontKey]backends.PortKey) backends.PortKey {
	if namespace, rest, ok := strings.Cut(f.Service, "/"); ok {
		name, port, _ := strings.Cut(rest, ":")
		return backends.PortKey{Service: backends.ServiceName{Namespace: namespace, Name: name}, Port: port, Protocol: f.Protocol, Family: f.Family}
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
	return backends.PortKey{Service: backends.ServiceName{Name: frontText(f)}, Protocol: f.Protocol, Family: f.Family}
}

func frontText(f backends.Front) string {
	if !f.Addr.IsValid() {
		return fmt.Sprintf("node port %d/%s", f.Port, f.Protocol)
	}
	return fmt.Sprintf("%s/%s", netip.AddrPortFrom(f.Addr, f.Port), f.Protocol)
}

// account puts every change on somebody's account.
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
	// What several Services share changes many of them at once; it is told of those only that change themselves.
	for _, c := range shared {
		for _, name := range k.servicesOf(c) {
			if n := k.counts[name]; n != nil {
				n.add(c.Op)
			}
		}
	}
}

func (k *kernelDiff) count(name backends.ServiceName) *Count {
	if k.counts[name] == nil {
		k.counts[name] = &Count{}
	}
	return k.counts[name]
}

// servicesOf returns on whose account a change is: of those that want the object, or else of those that it was there for.
func (k *kernelDiff) servicesOf(c backends.Change) []backends.ServiceName {
	var names []backends.ServiceName
	for _, o := range c.Owners {
		names = append(names, o.Service)
	}
	if len(names) == 0 && !k.base[c.ID] {
		names = slices.SortedFunc(slices.Values(k.was[c.ID]), backends.ServiceName.Compare)
	}
	return slices.Compact(names)
}

func (k *kernelDiff) rule(c backends.Change, names []backends.ServiceName) Rule {
	r := Rule{Op: c.Op, ID: string(c.ID)}
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

func (k *kernelDiff) changedNames() []backends.ServiceName {
	names := make([]backends.ServiceName, 0, len(k.counts))
	for n := range k.counts {
		names = append(names, n)
	}
	slices.SortFunc(names, backends.ServiceName.Compare)
	return names
}

// service says what changes for one Service.
func (k *kernelDiff) service(name backends.ServiceName) Service {
	wanted, applied := k.wanted[name], k.applied[name]
	faithful := len(applied) > 0 && k.holds(applied)
	if faithful {
		s, _ := diffService(name, applied, wanted)
		s.Kernel = k.counts[name]
		return s
	}
	s := Service{Namespace: name.Namespace, Name: name.Name, Source: sourceOf(wanted, applied), Kernel: k.counts[name], Ports: []Port{}, Drift: len(applied) > 0}
	before := false
	for _, key := range k.keys(name) {
		old := k.frontFacts(k.before[key])
		before = before || old != nil
		new := k.frontFacts(k.after[key])
		if e := find(wanted, key); e != nil && (old == nil || new == nil) {
			new = factsOf(e) // nothing to compare with: the Entry says more
		}
		if p, differs := diffPort(key, old, new); differs {
			s.Ports = append(s.Ports, p)
		}
	}
	s.Op = opOf(before, len(wanted) > 0)
	if len(wanted) > 0 && len(s.Ports) == 0 {
		s.Op = Modify // it is only put right
	}
	return s
}

// keys returns the ports that a Service has on either side, in order.
func (k *kernelDiff) keys(name backends.ServiceName) []backends.PortKey {
	keys := append(keysOf(k.applied[name], k.wanted[name]), k.ports[name]...)
	slices.SortFunc(keys, backends.PortKey.Compare)
	return slices.Compact(keys)
}

// holds says whether the kernel holds exactly what these Entries ask for.
func (k *kernelDiff) holds(entries []*backends.Entry) bool {
	for _, e := range entries {
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

// frontFacts returns what fronts of one Service port say.
func (k *kernelDiff) frontFacts(fronts []backends.Front) []Fact {
	if len(fronts) == 0 {
		return nil
	}
	var facts []Fact
	seen := map[Fact]bool{}
	add := func(f Fact) {
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
			add(Fact{Field: FieldSourceRange, Key: s})
		}
		if f.Affinity > 0 {
			add(Fact{Field: FieldAffinity, Value: "ClientIP for " + f.Affinity.String()})
		}
	}
	slices.SortStableFunc(fronts, func(a, b backends.Front) int { return cmp.Compare(k.place(a), k.place(b)) })
	for i, f := range fronts {
		field := FieldEndpoint
		if i > 0 && !sameShares(f.Endpoints, fronts[0].Endpoints) {
			field = FieldExternalEndpoint
		}
		for _, s := range f.Endpoints {
			add(shareFact(field, s, len(f.Endpoints)))
		}
		if i > 0 && !sameShares(f.Inside, fronts[0].Endpoints) {
			for _, s := range f.Inside {
				add(shareFact(FieldExternalEndpoint, s, len(f.Inside)))
			}
		}
	}
	if refused := fronts[0].Refusal; refused != "" && len(fronts[0].Endpoints) == 0 {
		add(Fact{Field: FieldNoEndpoint, Value: refusal(refused == "drop")})
	}
	return facts
}

// place orders fronts: the ClusterIP comes first.
func (k *kernelDiff) place(f backends.Front) int {
	if role, ok := k.roles[keyOf(f)]; ok {
		return fields[role].order
	}
	return fields[FieldAddress].order
}

func (k *kernelDiff) addressFacts(f backends.Front) []Fact {
	if !f.Addr.IsValid() {
		return []Fact{{Field: FieldNodePort, Value: number(f.Port)}}
	}
	switch role := k.roles[keyOf(f)]; role {
	case FieldClusterIP:
		return []Fact{{Field: FieldClusterIP, Value: f.Addr.String()}, {Field: FieldPort, Value: number(f.Port)}}
	case FieldExternalIP, FieldLoadBalancerIP:
		return []Fact{{Field: role, Key: f.Addr.String()}}
	}
	return []Fact{{Field: FieldAddress, Key: netip.AddrPortFrom(f.Addr, f.Port).String()}}
}

// shareFact says nothing of the share where it is an equal one.
func shareFact(field Field, s backends.Share, of int) Fact {
	f := Fact{Field: field, Key: s.Addr.String()}
	if math.Abs(s.Of*float64(of)-1) > 0.005 {
		f.Value = fmt.Sprintf("%.1f %% of connections", s.Of*100)
	}
	return f
}

func sameShares(a, b []backends.Share) bool {
	return slices.EqualFunc(a, b, func(x, y backends.Share) bool { return x.Addr == y.Addr && math.Abs(x.Of-y.Of) < 1e-6 })
}

func nameText(n backends.ServiceName) string {
	if n.Namespace == "" {
		return n.Name
	}
	return n.String()
}
