package iptables

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"weir/backends"
)

var _ backends.Describer = (*Backend)(nil)

// Describe implements backends.Describer. A front is a rule at the bottom of one of the trees; what it does is in the
// chains that it leads to.
func (b *Backend) Describe(items []backends.Item) []backends.Front {
	d := &describer{chains: map[string]item{}, parents: map[string][]backends.ID{}, sources: map[string][]backends.ID{}, fronts: map[frontKey]*backends.Front{}}
	var leaves []place
	for _, i := range items {
		p, ok := parse(i.ID())
		if !ok || !owned(p.chain) {
			continue
		}
		at := tag(p.family) + " " + p.table + " "
		switch {
		case p.rule == "":
			d.chains[at+p.chain] = item(i.String())
		case strings.HasPrefix(p.chain, hairpinRoot):
			words := parseWords(p.rule)
			d.sources[at+words["-s"]] = append(d.sources[at+words["-s"]], i.ID())
			d.parent(at, words["-j"], i.ID())
		case strings.HasPrefix(p.chain, addrRoot), strings.HasPrefix(p.chain, portRoot):
			words := parseWords(p.rule)
			if shared(words["-j"]) {
				d.parent(at, words["-j"], i.ID())
			} else {
				leaves = append(leaves, p)
			}
		}
	}
	for _, p := range leaves {
		d.leaf(p)
	}
	fronts := make([]backends.Front, 0, len(d.order))
	for _, k := range d.order {
		fronts = append(fronts, *d.fronts[k])
	}
	return fronts
}

type describer struct {
	chains map[string]item // by table and name
	// parents holds, for a chain of a tree, the rules that lead to it.
	parents map[string][]backends.ID
	sources map[string][]backends.ID // the hairpin rules, by address
	fronts  map[frontKey]*backends.Front
	order   []frontKey
}

type frontKey struct {
	family   backends.Family
	protocol backends.Protocol
	addr     netip.Addr
	port     uint16
}

func (d *describer) parent(at, chain string, rule backends.ID) {
	d.parents[at+chain] = append(d.parents[at+chain], rule)
}

// parseWords returns the options of a rule with their arguments; of one that is there twice, the last.
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

// leaf takes in the rule for one front. A rule that weir would not write is left out.
func (d *describer) leaf(p place) {
	words := parseWords(p.rule)
	k, ok := frontOf(p.family, words)
	if !ok {
		return
	}
	f := d.fronts[k]
	if f == nil {
		f = &backends.Front{Family: k.family, Protocol: k.protocol, Addr: k.addr, Port: k.port}
		d.fronts[k] = f
		d.order = append(d.order, k)
	}
	at := tag(p.family) + " " + p.table + " "
	f.Own = append(f.Own, backends.ID(at+p.chain+" "+p.rule))
	if name := strings.Trim(words["--comment"], `"`); strings.Contains(name, "/") {
		f.Service = name
	}
	d.path(f, at, p.chain)
	switch target := words["-j"]; target {
	case "REJECT", "DROP":
		// With source ranges the filter table drops what the nat table let through untranslated.
		f.Refusal = strings.ToLower(target)
	default:
		d.follow(f, at, p.rule)
	}
	for _, s := range slices.Concat(f.Endpoints, f.Inside) {
		d.hairpin(f, at, s.Addr.Addr())
	}
}

func protocolNamed(name string) (backends.Protocol, bool) {
	for _, p := range []backends.Protocol{backends.TCP, backends.UDP, backends.SCTP} {
		if protoName(p) == name {
			return p, true
		}
	}
	return 0, false
}

// path adds the way from the root to a chain of a tree.
func (d *describer) path(f *backends.Front, at, chain string) {
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
		p, _ := parse(rules[0])
		chain = p.chain
	}
}

func (d *describer) hairpin(f *backends.Front, at string, a netip.Addr) {
	if !strings.HasSuffix(at, " nat ") {
		return
	}
	for _, id := range d.sources[at+prefixText(netip.PrefixFrom(a, a.BitLen()))] {
		if slices.Contains(f.Shared, id) {
			continue
		}
		f.Shared = append(f.Shared, id)
		p, _ := parse(id)
		d.path(f, at, p.chain)
	}
}

// follow reads what a rule of a front leads to.
func (d *describer) follow(f *backends.Front, at, rule string) {
	t := &trail{d: d, f: f, at: at, seen: map[string]bool{}}
	f.Endpoints = t.target(rule)
	if !slices.Equal(t.inside, f.Endpoints) {
		f.Inside = t.inside
	}
}

// trail is the walk from one front through the chains below it.
type trail struct {
	d      *describer
	f      *backends.Front
	at     string
	seen   map[string]bool
	inside []backends.Share
}

// target returns who serves what a rule sends on.
func (t *trail) target(rule string) []backends.Share {
	words := parseWords(rule)
	switch j := words["-j"]; {
	case j == "DNAT":
		if to, err := netip.ParseAddrPort(words["--to-destination"]); err == nil {
			return []backends.Share{{Addr: to, Of: 1}}
		}
	case owned(j):
		return t.chain(j)
	}
	return nil
}

func (t *trail) chain(name string) []backends.Share {
	body, ok := t.d.chains[t.at+name]
	if !ok || t.seen[name] {
		return nil
	}
	t.seen[name] = true
	defer delete(t.seen, name)
	if id := body.ID(); !slices.Contains(t.f.Own, id) {
		t.f.Own = append(t.f.Own, id)
	}
	var all []backends.Share
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
		case strings.HasPrefix(name, "WEIR-"+sourceKind+"-"):
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
		case forInside(words):
			t.inside = t.target(rule)
		case words["-j"] == "DNAT":
			for _, s := range t.target(rule) {
				s.Of = left
				if p, err := strconv.ParseFloat(words["--probability"], 64); err == nil {
					s.Of *= p
					left -= s.Of
				}
				all = append(all, s)
			}
		}
	}
	return merged(all)
}

// forInside says that a rule is for traffic of this node and its pods only.
func forInside(words map[string]string) bool {
	_, source := words["-s"]
	_, in := words["-i"]
	_, typed := words["--src-type"]
	return (source || in || typed) && (words["-j"] == "DNAT" || owned(words["-j"]))
}

// merged adds up the shares of each endpoint, sorted by address.
func merged(all []backends.Share) []backends.Share {
	slices.SortStableFunc(all, func(a, b backends.Share) int { return a.Addr.Compare(b.Addr) })
	var out []backends.Share
	for _, s := range all {
		if n := len(out); n > 0 && out[n-1].Addr == s.Addr {
			out[n-1].Of += s.Of
			continue
		}
		out = append(out, s)
	}
	return out
}
