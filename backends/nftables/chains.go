package nftables

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/backends/nfnl"

	nft "github.com/google/nftables"
	"github.com/google/nftables/userdata"
)

var hookNames = []string{"prerouting", "input", "forward", "output", "postrouting"}

func hookName(n uint32) string {
	if int(n) < len(hookNames) {
		return hookNames[n]
	}
	return strconv.Itoa(int(n))
}

func hookText(h nfnl.Hook, policy uint32) string {
	p := "accept"
	if policy != nfnl.PolicyAccept {
		p = "drop"
	}
	return fmt.Sprintf("type %s hook %s priority %d; policy %s", h.Kind, hookName(h.Number), h.Priority, p)
}

// chain is a chain with its rules.
type chain struct {
	name    string
	comment string
	hook    *nfnl.Hook // nil for a chain that is only jumped to
	rules   []rule
}

// definition returns the chain as the kernel takes it.
func (c *chain) definition() nfnl.Chain {
	d := nfnl.Chain{Name: c.name, Hook: c.hook, Policy: nfnl.PolicyAccept}
	if c.comment != "" {
		d.Userdata = userdata.AppendString(nil, userdata.Type(userdata.TypeComment), c.comment)
	}
	return d
}

// builder makes the chains of one family.
type builder struct {
	fam dataplane.Family
	cfg *dataplane.Config
	// redirects reports whether the endpoints are sockets of userspace mode.
	redirects bool
	// labels reports whether connections are labelled.
	labels bool
}

// marking returns the parts that have the connection masqueraded. The label says that the mark is weir's.
func (b builder) marking() []part {
	parts := []part{setMark(b.cfg.MasqueradeMark, true)}
	if b.labels {
		parts = append(parts, setLabel())
	}
	return parts
}

// translated matches the connections that may be masqueraded. Without labels, those that another program translated
// and marked are among them.
func (b builder) translated() part {
	if b.labels {
		return labelled()
	}
	return ctDNAT()
}

const (
	chainServices   = "services"
	chainMasquerade = "masquerading"
	chainNewFilter  = "unserved"
	chainReject     = "rejecting"
	chainSources    = "source-ranges"
	chainImpostors  = "impostors"
)

// base returns the chains that always exist.
func (b builder) base() []chain {
	natHook := func(n *nft.ChainHook, priority int32) *nfnl.Hook {
		return &nfnl.Hook{Kind: "nat", Number: uint32(*n), Priority: priority}
	}
	filterHook := func(n *nft.ChainHook, priority int32) *nfnl.Hook {
		return &nfnl.Hook{Kind: "filter", Number: uint32(*n), Priority: priority}
	}
	const dstnat, srcnat, filter, beforeDNAT = -100, 100, 0, -110
	front := frontFields(b.fam, addrScope)
	jumpServices := []rule{newRule("", jumpPart(chainServices))}
	jumpServicesHere := []rule{newRule("probes go to the endpoint itself", notProbe(), jumpPart(chainServices))}
	checkSources := []rule{newRule("", ctNew(), vmap(restricted, front...))}
	checkSourcesHere := []rule{newRule("", ctNew(), notProbe(), vmap(restricted, front...))}
	arriving := checkSources
	if b.fam == dataplane.IPv4 {
		arriving = append(loopbackGuard(), checkSources...)
	}
	unserved := newRule("", ctNew(), jumpPart(chainNewFilter))
	forward, output := []rule{unserved}, []rule{unserved}
	if !b.cfg.TCPBeLiberal {
		forward = append([]rule{newRule("out of window: a reset by the client would follow", ctInvalid(), dropPart())}, forward...)
		output = append(output, newRule("the node's answer to what is out of window and was not translated back", tcpReset(), ctInvalid(), dropPart()))
	}
	post := []rule{
		newRule("", marked(b.cfg.MasqueradeMark), b.translated(), gotoPart(chainMasquerade)),
		newRule("hairpin: the endpoint is its own client", ctDNAT(), inSet(hairpin, saddr(b.fam), daddr(b.fam)), gotoPart(chainMasquerade)),
	}
	for _, p := range b.cfg.Bridged {
		if dataplane.FamilyOf(p.Addr()) == b.fam {
			post = append(post, newRule("neighbours on a bridge: the answer would not pass through the node", ctDNAT(), inPrefix(saddr(b.fam), p, true), inPrefix(daddr(b.fam), p, true), gotoPart(chainMasquerade)))
		}
	}
	masqueraded := []rule{newRule("", setMark(b.cfg.MasqueradeMark, false)), newRule("", masquerade())}
	var more []chain
	if b.redirects {
		// No packet to a listener leaves the node, and weir must recognise its own connections by their source.
		post, masqueraded = post[:1], masqueraded[:1]
		output = append(output, newRule("an answer that weir did not send", ctDNAT(), ctReply(), unmarked(b.cfg.MasqueradeMark),
			inSet(listeners, saddr(b.fam), l4proto(), sport()), gotoPart(chainImpostors)))
		more = []chain{{name: chainImpostors, comment: "where weir was killed, nobody else gets its connections", rules: []rule{
			newRule("only the first answer: weir's mark may have changed since", tcpButSynAck(), returnPart()),
			newRule("", dropPart()),
		}}}
	}
	return append([]chain{
		{name: "nat-prerouting", hook: natHook(nft.ChainHookPrerouting, dstnat), rules: jumpServices},
		{name: "nat-output", hook: natHook(nft.ChainHookOutput, dstnat), rules: jumpServicesHere},
		{name: "nat-postrouting", hook: natHook(nft.ChainHookPostrouting, srcnat), rules: post},
		{name: "filter-prerouting", hook: filterHook(nft.ChainHookPrerouting, beforeDNAT), rules: arriving},
		{name: "filter-output-before-dnat", hook: filterHook(nft.ChainHookOutput, beforeDNAT), rules: checkSourcesHere},
		{name: "filter-input", hook: filterHook(nft.ChainHookInput, filter), rules: []rule{unserved}},
		{name: "filter-forward", hook: filterHook(nft.ChainHookForward, filter), rules: forward},
		{name: "filter-output", hook: filterHook(nft.ChainHookOutput, filter), rules: output},
		{name: chainServices, comment: "finds the Service of a new connection", rules: []rule{
			newRule("", vmap(services, front...)),
			newRule("", b.toNodePort(vmap(nodePorts, frontFields(b.fam, nodePortScope)...))...),
		}},
		{name: chainNewFilter, comment: "new connections to a Service that no endpoint took", rules: b.unservedRules()},
		{name: chainReject, comment: "tells the client at once", rules: []rule{newRule("", reject(b.fam))}},
		{name: chainSources, comment: "loadBalancerSourceRanges", rules: []rule{
			newRule("", inSet(allowedSources, append(front, saddr(b.fam))...), returnPart()),
			newRule("", dropPart()),
		}},
		{name: chainMasquerade, comment: "so that the answers come back this way", rules: masqueraded},
	}, more...)
}

// answering returns the chains for what weir answers itself. Its packets are not tracked in either direction, so that no rule
// translates them.
func (b builder) answering() (chains []chain) {
	const raw = -300
	for name, number := range map[string]*nft.ChainHook{"answered-prerouting": nft.ChainHookPrerouting, "answered-output": nft.ChainHookOutput} {
		chains = append(chains, chain{name: name, hook: &nfnl.Hook{Kind: "filter", Number: uint32(*number), Priority: raw}, rules: []rule{
			newRule("a question to weir", inSet(answered, frontFields(b.fam, addrScope)...), notrack()),
			newRule("its answer", inSet(answered, saddr(b.fam), l4proto(), sport()), notrack()),
		}})
	}
	return chains
}

// loopbackGuard returns the rules that keep neighbours from the loopback addresses of IPv4. Node ports on them need
// route_localnet, which would let neighbours reach servers that listen there, and speak as if from there. The rules are
// there without such node ports too, because an earlier weir or another program may have set the parameter. IPv6 needs
// none, because the kernel itself drops what comes from or for ::1 by another interface than lo.
func loopbackGuard() []rule {
	const f = dataplane.IPv4
	outside := fromInterface("lo", false, false)
	return []rule{
		newRule("not for neighbours", outside, inPrefix(daddr(f), dataplane.Loopback(f), true), dropPart()),
		newRule("not a neighbour's", outside, inPrefix(saddr(f), dataplane.Loopback(f), true), dropPart()),
	}
}

// GuardsLoopback reports whether an Item keeps neighbours from the loopback addresses of IPv4.
func GuardsLoopback(i backends.Item) bool {
	c, ok := i.(*chainItem)
	if !ok || !c.hooked {
		return false
	}
	lines := strings.Split(c.text, "\n  ")
	return !slices.ContainsFunc(loopbackGuard(), func(r rule) bool { return !slices.Contains(lines, r.line()) })
}

func (b builder) unservedRules() []rule {
	rules := []rule{
		newRule("", vmap(noEndpoints, frontFields(b.fam, addrScope)...)),
		newRule("a ClusterIP, but none of its ports", inSet(clusterIPs, daddr(b.fam)), gotoPart(chainReject)),
	}
	for _, p := range b.cfg.ServiceCIDRs {
		if dataplane.FamilyOf(p.Addr()) == b.fam {
			rules = append(rules, newRule("a ClusterIP that no Service has yet", inPrefix(daddr(b.fam), p, true), dropPart()))
		}
	}
	return append(rules, newRule("", b.toNodePort(vmap(nodePortNoEndpoints, frontFields(b.fam, nodePortScope)...))...))
}

// toNodePort adds the matches for an address of the node that serves node ports, before a lookup of the port.
func (b builder) toNodePort(lookup part) []part {
	local := fibLocal(false)
	if b.cfg.NodePortAddresses != nil {
		local = inSet(nodePortAddresses, daddr(b.fam))
	}
	if b.cfg.ServesLocalhost(b.fam) {
		return []part{local, lookup}
	}
	return []part{inPrefix(daddr(b.fam), dataplane.Loopback(b.fam), false), local, lookup}
}

// fromPod returns the match for traffic that starts in a pod of this node, or for all other traffic. It returns false
// if the two cannot be told apart.
func (b builder) fromPod(local bool) (part, bool) {
	d := b.cfg.LocalDetector
	if d.Interface != "" {
		return fromInterface(d.Interface, d.Prefix, local), true
	}
	if p, ok := d.PodCIDR(b.fam); ok {
		return inPrefix(saddr(b.fam), p, local), true
	}
	return part{}, false
}

// kind is the treatment of traffic in a dispatch chain before the chain chooses an endpoint.
type kind string

const (
	kindPick     kind = "pick"     // nothing
	kindCluster  kind = "cluster"  // traffic to a ClusterIP: masquerade unless it comes from a pod of this node
	kindExternal kind = "external" // traffic to any other address: masquerade all
	kindLocal    kind = "local"    // the same with policy Local
)

// shape distinguishes dispatch chains. All Services of a shape share one chain, so that the number of chains does not
// grow with the number of Services.
type shape struct {
	scope   scope
	kind    kind
	slots   int // for policy Cluster
	local   int // for policy Local; only for kindLocal
	timeout time.Duration
}

var shapeName = regexp.MustCompile(`^(node-port-)?(pick|cluster|external|local)-(\d+)(?:-of-(\d+))?(?:-sticky-(\d+)s)?$`)

// name returns the chain's name, such as "cluster-5" or "node-port-local-2-of-5-sticky-10800s".
func (s shape) name() string {
	name := fmt.Sprintf("%s-%d", s.kind, s.slots)
	if s.kind == kindLocal {
		name = fmt.Sprintf("%s-%d-of-%d", s.kind, s.local, s.slots)
	}
	if s.scope == nodePortScope {
		name = "node-port-" + name
	}
	if s.timeout > 0 {
		name += fmt.Sprintf("-sticky-%ds", int(s.timeout.Seconds()))
	}
	return name
}

// parseShape parses a name that shape.name returned.
func parseShape(name string) (shape, bool) {
	m := shapeName.FindStringSubmatch(name)
	if m == nil {
		return shape{}, false
	}
	s := shape{kind: kind(m[2])}
	if m[1] != "" {
		s.scope = nodePortScope
	}
	number := func(text string) int {
		n, _ := strconv.Atoi(text)
		return n
	}
	s.slots = number(m[3])
	if s.kind == kindLocal {
		s.local, s.slots = s.slots, number(m[4])
	}
	s.timeout = time.Duration(number(m[5])) * time.Second
	return s, s.name() == name && s.slots+s.local > 0 && s.slots <= maxSlots && s.local <= maxSlots
}

// chains returns the chain of the shape, and the chain that it depends on.
func (b builder) chains(s shape) []chain {
	if s.kind == kindLocal && s.slots > 0 {
		return []chain{b.chain(s), b.chain(s.pick())}
	}
	return []chain{b.chain(s)}
}

func (s shape) pick() shape { return shape{s.scope, kindPick, s.slots, 0, s.timeout} }

func (b builder) chain(s shape) chain {
	c := chain{name: s.name()}
	marking := b.marking()
	switch s.kind {
	case kindCluster:
		if b.cfg.MasqueradeAll {
			c.rules = append(c.rules, newRule("masqueradeAll", marking...))
		} else if other, ok := b.fromPod(false); ok {
			c.rules = append(c.rules, newRule("not from a pod of this node", append([]part{other}, marking...)...))
		}
	case kindExternal:
		c.rules = append(c.rules, newRule("the endpoint may be on another node", marking...))
	case kindLocal:
		if s.slots == 0 {
			break
		}
		if pod, ok := b.fromPod(true); ok {
			c.rules = append(c.rules, newRule("from a pod of this node: as to the ClusterIP", pod, gotoPart(s.pick().name())))
		}
		c.rules = append(c.rules, newRule("from this node", slices.Concat([]part{fibLocal(true)}, marking, []part{gotoPart(s.pick().name())})...))
	}
	k, offset := s.slots, 0
	if s.kind == kindLocal {
		k, offset = s.local, localSlots
	}
	if k > 0 {
		c.rules = append(c.rules, b.choose(s, random(k, offset))...)
	}
	return c
}

// choose returns the rules that translate to an endpoint. A packet that meets an old rule and a new map finds no
// endpoint and is dropped, and the client sends it again.
func (b builder) choose(s shape, slot field) []rule {
	between := newRule("no such endpoint: a change is under way", dropPart())
	front := frontFields(b.fam, s.scope)
	of := setsOf[s.scope]
	if s.timeout == 0 {
		return []rule{newRule("", dnatTo(b.fam, lookup(of.endpoints, append(front, slot)...))), between}
	}
	client := append([]field{saddr(b.fam)}, front...)
	with := func(f field) []field { return append(front[:len(front):len(front)], f) }
	learn := []rule{
		newRule("an endpoint by chance", setScratch(lookup(of.stickySlots, with(slot)...))),
		newRule("for a client that has none yet; for any other, the time starts again", remember(dynsetUpdate, of.stickyClients, s.timeout, client...)),
		newRule("", setScratch(lookup(of.stickyClients, client...))),
		newRule("", dnatTo(b.fam, lookup(of.stickyEndpoints, with(scratch())...))),
	}
	forget := newRule("the client's endpoint is gone: once more", remember(dynsetDelete, of.stickyClients, s.timeout, client...))
	return slices.Concat(learn, []rule{forget}, learn, []rule{between})
}
