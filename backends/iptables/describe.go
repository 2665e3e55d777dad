package iptables

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/backends/xtables"
)

var _ backends.Describer = (*Backend)(nil)

// Describe implements backends.Describer. A Frontend is a rule at the bottom of one of the trees. The chains that the
// rule leads to say what happens to its connections.
func (b *Backend) Describe(items []backends.Item) []backends.ProgrammedFrontend {
	d := &describer{names: &b.names, chains: map[string]xtables.Item{}, parents: map[string][]backends.ID{}, sources: map[string][]backends.ID{}, fronts: map[frontKey]*backends.ProgrammedFrontend{}}
	var leaves []xtables.Place
	for _, i := range items {
		p, ok := xtables.Parse(i.ID())
		if !ok || !b.names.owned(p.Chain) {
			continue
		}
		at := xtables.At(p.Family, p.Table)
		switch {
		case p.Rule == "":
			d.chains[at+p.Chain] = xtables.Item(i.String())
		case under(p.Chain, b.names.hairpinRoot):
			words := parseWords(p.Rule)
			d.sources[at+words["-s"]] = append(d.sources[at+words["-s"]], i.ID())
			d.parent(at, words["-j"], i.ID())
		case under(p.Chain, b.names.addrRoot), under(p.Chain, b.names.portRoot):
			words := parseWords(p.Rule)
			if b.names.shared(words["-j"]) {
				d.parent(at, words["-j"], i.ID())
			} else {
				leaves = append(leaves, p)
			}
		}
	}
	for _, p := range leaves {
		d.leaf(p)
	}
	fronts := make([]backends.ProgrammedFrontend, 0, len(d.order))
	for _, k := range d.order {
		fronts = append(fronts, *d.fronts[k])
	}
	return fronts
}

type describer struct {
	names  *names
	chains map[string]xtables.Item // by table and name
	// parents holds, for a chain of a tree, the rules that lead to it.
	parents map[string][]backends.ID
	sources map[string][]backends.ID // the hairpin rules, by address
	fronts  map[frontKey]*backends.ProgrammedFrontend
	order   []frontKey
}

type frontKey struct {
	family   dataplane.Family
	protocol dataplane.Protocol
	addr     netip.Addr
	port     uint16
}

func (d *describer) parent(at, chain string, rule backends.ID) {
	d.parents[at+chain] = append(d.parents[at+chain], rule)
}

// parseWords returns the options of a rule with their arguments. If an option occurs twice, the last one counts.
func parseWords(rule string) map[string]string {
	words := map[string]string{}
	option := ""
	for w := range strings.FieldsSeq(rule) {
		if strings.HasPrefix(w, "-") {
			option = w
			words[option] = ""
		} else if option != "" && words[option] == "" {
			words[option] = w
		}
	}
	return words
}

// leaf adds the rule for one Frontend. It leaves out rules that weir would not write.
func (d *describer) leaf(p xtables.Place) {
	words := parseWords(p.Rule)
	k, ok := frontOf(p.Family, words)
	if !ok {
		return
	}
	f := d.fronts[k]
	if f == nil {
		f = &backends.ProgrammedFrontend{Frontend: dataplane.Frontend{Family: k.family, Protocol: k.protocol, Addr: k.addr, Port: k.port}}
		d.fronts[k] = f
		d.order = append(d.order, k)
	}
	at := xtables.At(p.Family, p.Table)
	f.Own = append(f.Own, backends.ID(at+p.Chain+" "+p.Rule))
	if name := strings.Trim(words["--comment"], `"`); strings.Contains(name, "/") {
		f.Service = name
	}
	d.path(f, at, p.Chain)
	switch target := words["-j"]; target {
	case "REJECT", "DROP":
		// With source ranges, the filter table drops the packets that the nat table did not translate.
		f.Refusal = strings.ToLower(target)
	default:
		d.follow(f, at, p.Rule)
	}
	for _, s := range slices.Concat(f.Endpoints, f.FromNode) {
		d.hairpin(f, at, s.Addr.Addr())
	}
}

// path adds the Items on the path from the root to a chain of a tree.
func (d *describer) path(f *backends.ProgrammedFrontend, at, chain string) {
	for range 8 { // deeper than any tree
		if id := backends.ID(at + chain); d.chains[at+chain] != "" && !slices.Contains(f.Shared, id) {
			f.Shared = append(f.Shared, id)
		}
		rules := d.parents[at+chain]
		if len(rules) == 0 {
			return
		}
		for _, id := range rules {
			if !slices.Contains(f.Shared, id) {
				f.Shared = append(f.Shared, id)
			}
		}
		p, _ := xtables.Parse(rules[0])
		chain = p.Chain
	}
}

func (d *describer) hairpin(f *backends.ProgrammedFrontend, at string, a netip.Addr) {
	if !strings.HasSuffix(at, " nat ") {
		return
	}
	for _, id := range d.sources[at+xtables.HostText(a)] {
		if slices.Contains(f.Shared, id) {
			continue
		}
		f.Shared = append(f.Shared, id)
		p, _ := xtables.Parse(id)
		d.path(f, at, p.Chain)
	}
}

// follow reads the chains that a rule of a Frontend leads to.
func (d *describer) follow(f *backends.ProgrammedFrontend, at, rule string) {
	t := &trail{d: d, f: f, at: at, seen: map[string]bool{}}
	f.Endpoints = t.target(rule)
	if !slices.Equal(t.inside, f.Endpoints) {
		f.FromNode = t.inside
	}
}

// trail is the walk from one Frontend through the chains below it.
type trail struct {
	d      *describer
	f      *backends.ProgrammedFrontend
	at     string
	seen   map[string]bool
	inside []dataplane.EndpointShare
}

// target returns the endpoints to which a rule sends traffic.
func (t *trail) target(rule string) []dataplane.EndpointShare {
	words := parseWords(rule)
	switch j := words["-j"]; {
	case j == "DNAT":
		if to, err := netip.ParseAddrPort(words["--to-destination"]); err == nil {
			return []dataplane.EndpointShare{{Addr: to, Fraction: 1}}
		}
	case t.d.names.owned(j):
		return t.chain(j)
	}
	return nil
}

func (t *trail) chain(name string) []dataplane.EndpointShare {
	body, ok := t.d.chains[t.at+name]
	if !ok || t.seen[name] {
		return nil
	}
	t.seen[name] = true
	defer delete(t.seen, name)
	if id := body.ID(); !slices.Contains(t.f.Own, id) {
		t.f.Own = append(t.f.Own, id)
	}
	var all []dataplane.EndpointShare
	left := 1.0
	lines := strings.Split(string(body), "\n")[1:]
	for _, line := range lines {
		rule := strings.TrimPrefix(line, "-A "+name+" ")
		words := parseWords(rule)
		_, update := words["--update"]
		switch {
		case update: // a client that comes back
			if n, err := strconv.Atoi(words["--seconds"]); err == nil {
				t.f.Affinity = time.Duration(n) * time.Second
			}
		case strings.HasPrefix(name, t.d.names.prefix+sourceKind+"-"):
			source := words["-s"]
			if source == "" {
				source = "everybody"
			}
			if !slices.Contains(t.f.Sources, source) {
				t.f.Sources = append(t.f.Sources, source)
			}
			if all == nil {
				all = t.target(rule)
			}
		case t.d.forInside(words):
			t.inside = t.target(rule)
		case words["-j"] == "DNAT":
			for _, s := range t.target(rule) {
				s.Fraction = left
				if p, err := strconv.ParseFloat(words["--probability"], 64); err == nil {
					s.Fraction *= p
					left -= s.Fraction
				}
				all = append(all, s)
			}
		}
	}
	return merged(all)
}

// forInside reports whether a rule is for traffic of this node and its pods only.
func (d *describer) forInside(words map[string]string) bool {
	_, source := words["-s"]
	_, in := words["-i"]
	_, typed := words["--src-type"]
	return (source || in || typed) && (words["-j"] == "DNAT" || d.names.owned(words["-j"]))
}

// merged sums the shares of each endpoint, and sorts by address.
func merged(all []dataplane.EndpointShare) []dataplane.EndpointShare {
	slices.SortStableFunc(all, func(a, b dataplane.EndpointShare) int { return a.Addr.Compare(b.Addr) })
	var out []dataplane.EndpointShare
	for _, s := range all {
		if n := len(out); n > 0 && out[n-1].Addr == s.Addr {
			out[n-1].Fraction += s.Fraction
			continue
		}
		out = append(out, s)
	}
	return out
}
