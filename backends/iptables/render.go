package iptables

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/backends/xtables"
)

// The kinds of chains of a Service port, as their names show. They sort behind all other chains: see compose in
// xtables.
const (
	clusterKind  = "SVC" // chooses among all endpoints
	localKind    = "SVL" // chooses among the endpoints of this node
	externalKind = "SVX" // takes external traffic, if it is treated unlike internal traffic
	sourceKind   = "SVS" // lets the source ranges through
)

// Render implements backends.Backend.
func (b *Backend) Render(e *dataplane.ServicePort) ([]backends.Item, error) {
	if err := b.check(e); err != nil {
		return nil, err
	}
	r := &rendering{b: b, e: e, trees: b.trees[e.Key.Family], at: xtables.At(e.Key.Family, "nat"), proto: xtables.ProtocolName(e.Key.Protocol)}
	r.key, r.name = e.Key.String(), e.Key.Service.String()
	if e.Key.Port != "" {
		r.name += ":" + e.Key.Port
	}
	r.items = make([]backends.Item, 0, 16)
	if e.Answered {
		r.answered()
		return r.items, nil
	}
	r.dnat()
	r.filter()
	r.hairpin()
	r.listeners()
	return r.items, nil
}

// check returns an error if the ServicePort cannot be rendered.
func (b *Backend) check(e *dataplane.ServicePort) error {
	if b.trees[e.Key.Family] == nil {
		return fmt.Errorf("%s is not programmed on this node", e.Key.Family)
	}
	return cmp.Or(xtables.CheckDetector(b.cfg.LocalDetector), e.Check())
}

// answered renders the rules for a ServicePort that weir answers itself. The ClusterIP is an address of this node then, so that
// everything else at it is refused. Otherwise every server that listens at all addresses could be reached there.
func (r *rendering) answered() {
	e := r.e
	r.items = append(r.items, xtables.Answered(e, r.b.names.answered)...)
	br := r.trees.addr("filter", r.b.names.addrRoot, "-d", e.ClusterIP)
	r.items = append(append(r.items, br.items...), xtables.Item(fmt.Sprintf("%s%s -d %s -m comment --comment %q %s",
		xtables.At(e.Key.Family, "filter"), br.chain, xtables.HostText(e.ClusterIP), e.Key.Service.String()+" has no such port", r.reject())))
}

// rendering is the work on one ServicePort.
type rendering struct {
	b     *Backend
	e     *dataplane.ServicePort
	trees *trees
	at    string // the beginning of IDs in the nat table
	proto string
	key   string
	name  string // the comment of the rules that lead to the Service
	items []backends.Item
}

// verdict is the action for a packet, and the reason if it is refused.
type verdict struct {
	action, why string
}

// dnat renders the nat table: the chain or endpoint behind each Frontend.
func (r *rendering) dnat() {
	e := r.e
	cluster, local := usable(e.ClusterEndpoints()), usable(e.LocalEndpoints())
	internal := cluster
	if e.InternalLocal {
		internal = local
	}
	// Both policies choose from the same endpoints, so that one chain serves all addresses.
	one := !e.InternalLocal && !e.ExternalLocal

	marks := r.internalMarks()
	var clusterChain, internalTarget string
	if one && e.External() {
		marks = append(marks, "! -d "+xtables.HostText(e.ClusterIP)+" "+r.b.setMark)
	}
	if len(internal) > 0 {
		internalTarget = r.chain(internalKind(e), marks, internal)
		r.front(e.ClusterIP, internalTarget)
		if !e.InternalLocal {
			clusterChain = internalTarget
		}
	}
	if !e.External() || len(cluster) == 0 && len(local) == 0 {
		return
	}
	external := ""
	switch {
	case one:
		external = internalTarget
	case !e.ExternalLocal && len(cluster) > 0:
		external = r.chain(externalKind, []string{r.b.setMark}, cluster)
	case e.ExternalLocal:
		external = r.externalLocal(clusterChain, cluster, local)
	}
	if external != "" {
		r.externalFronts(external)
	}
}

func internalKind(e *dataplane.ServicePort) string {
	if e.InternalLocal {
		return localKind
	}
	return clusterKind
}

// externalLocal renders external traffic under policy Local. Pods and the node itself may use all endpoints of the
// cluster, as if their traffic had left the node and come back through a load balancer.
func (r *rendering) externalLocal(clusterTarget string, cluster, local []dataplane.Endpoint) string {
	var rules []string
	pods := r.b.pods[r.e.Key.Family]
	if len(cluster) > 0 {
		if clusterTarget == "" {
			clusterTarget = r.chain(clusterKind, nil, cluster)
		}
		if pods.From != "" {
			rules = append(rules, pods.From+" "+r.qualify(clusterTarget))
		}
		rules = append(rules, "-m addrtype --src-type LOCAL "+r.b.setMark)
		rules = append(rules, r.qualifyAfter("-m addrtype --src-type LOCAL", clusterTarget))
	}
	return r.chain(externalKind, rules, local)
}

// qualify adds the protocol to a target that needs it.
func (r *rendering) qualify(target string) string { return r.qualifyAfter("", target) }

func (r *rendering) qualifyAfter(match, target string) string {
	var parts []string
	if strings.HasPrefix(target, "-j DNAT") {
		parts = append(parts, "-p "+r.proto)
	}
	if match != "" {
		parts = append(parts, match)
	}
	return strings.Join(append(parts, target), " ")
}

func (r *rendering) externalFronts(action string) {
	e := r.e
	for _, a := range e.ExternalIPs {
		r.front(a, action)
	}
	if e.NodePort != 0 {
		r.nodePort("nat", verdict{action: action})
	}
	if len(e.LoadBalancerIPs) == 0 {
		return
	}
	if len(e.SourceRanges) > 0 {
		action = r.firewall(action)
	}
	for _, a := range e.LoadBalancerIPs {
		r.front(a, action)
	}
}

// firewall renders the chain that accepts only the source ranges. The filter table drops all packets that this chain
// does not translate.
func (r *rendering) firewall(target string) string {
	e := r.e
	var rules []string
	allow := func(p netip.Prefix) {
		match := ""
		if p.Bits() > 0 {
			match = "-s " + xtables.PrefixText(p) + " "
		}
		rules = append(rules, match+r.qualify(target))
	}
	nodeAllowed := false
	for _, p := range e.SourceRanges {
		allow(p)
		for _, a := range r.b.cfg.NodeAddresses {
			nodeAllowed = nodeAllowed || p.Contains(a)
		}
	}
	if nodeAllowed {
		// If the address is on an interface of the node, it is the source address of the node's own traffic to it.
		for _, a := range e.LoadBalancerIPs {
			allow(netip.PrefixFrom(a, a.BitLen()))
		}
	}
	name := r.b.names.service(sourceKind, r.key)
	r.items = append(r.items, xtables.Chain(r.at, name, rules...))
	return "-j " + name
}

// filter renders the filter table: the Frontends that are rejected or dropped, and the health check port.
func (r *rendering) filter() {
	e := r.e
	internal, external := usable(e.InternalEndpoints()), usable(e.ExternalEndpoints())
	if len(internal) == 0 {
		r.deny(e.ClusterIP, r.refusal(e.InternalLocal))
	}
	if len(external) == 0 {
		refused := r.refusal(e.ExternalLocal)
		for _, a := range e.ExternalIPs {
			r.deny(a, refused)
		}
		for _, a := range e.LoadBalancerIPs {
			r.deny(a, refused)
		}
		if e.NodePort != 0 {
			r.nodePort("filter", refused)
		}
	} else if len(e.SourceRanges) > 0 {
		for _, a := range e.LoadBalancerIPs {
			r.deny(a, verdict{"-j DROP", " refuses other sources"})
		}
	}
	if p := e.HealthCheckNodePort; p != 0 {
		r.items = append(r.items, xtables.Item(xtables.At(e.Key.Family, "filter")+r.b.names.health+" -p tcp -m tcp --dport "+strconv.Itoa(int(p))+" -j ACCEPT"))
	}
}

// refusal returns the verdict for traffic without a usable endpoint: drop if another node could serve it, else reject.
func (r *rendering) refusal(local bool) verdict {
	if r.e.HasEndpoints && local {
		return verdict{"-j DROP", " has no local endpoints"}
	}
	return verdict{r.reject(), " has no endpoints"}
}

func (r *rendering) reject() string {
	if r.e.Key.Family == dataplane.IPv6 {
		return "-j REJECT --reject-with icmp6-port-unreachable"
	}
	return "-j REJECT --reject-with icmp-port-unreachable"
}

func (r *rendering) front(a netip.Addr, action string) { r.address("nat", a, verdict{action: action}) }
func (r *rendering) deny(a netip.Addr, to verdict)     { r.address("filter", a, to) }

// address renders the path to one Frontend and the rule for it.
func (r *rendering) address(table string, a netip.Addr, to verdict) {
	br := r.trees.addr(table, r.b.names.addrRoot, "-d", a)
	var buf [256]byte
	t := append(append(append(buf[:0], xtables.Tag(r.e.Key.Family)...), ' '), table...)
	t = append(append(append(t, ' '), br.chain...), " -d "...)
	t = append(strconv.AppendInt(append(xtables.AppendAddr(t, a), '/'), int64(a.BitLen()), 10), ' ')
	t = append(append(r.appendComment(r.appendPort(t, r.e.Port), to.why), ' '), to.action...)
	r.items = append(append(r.items, br.items...), xtables.Item(t))
}

func (r *rendering) nodePort(table string, to verdict) {
	br := r.trees.port(table, r.e.Key.Protocol, r.e.NodePort)
	t := []byte(xtables.Tag(r.e.Key.Family) + " " + table + " " + br.chain + " ")
	t = append(append(r.appendComment(r.appendPort(t, r.e.NodePort), to.why), ' '), to.action...)
	r.items = append(append(r.items, br.items...), xtables.Item(t))
}

// appendPort writes "-p tcp -m tcp --dport 80".
func (r *rendering) appendPort(t []byte, port uint16) []byte {
	t = append(append(append(append(t, "-p "...), r.proto...), " -m "...), r.proto...)
	return strconv.AppendInt(append(t, " --dport "...), int64(port), 10)
}

// appendComment writes the name of the Service, and why it is refused if it is, for people who list the rules.
func (r *rendering) appendComment(t []byte, why string) []byte {
	return append(append(append(append(t, ` -m comment --comment "`...), r.name...), why...), '"')
}

// hairpin renders the rules for connections from an endpoint to itself. Their source must change, or the endpoint would
// answer itself directly, and the answer would not be translated back.
func (r *rendering) hairpin() {
	if r.b.bpf {
		return
	}
	for _, ep := range r.e.Endpoints {
		if ep.Remote {
			continue
		}
		a := ep.Addr.Addr()
		br := r.trees.addr("nat", r.b.names.hairpinRoot, "-s", a)
		host := xtables.HostText(a)
		r.items = append(append(r.items, br.items...),
			xtables.Item(r.at+br.chain+" -s "+host+" -d "+host+" "+r.b.masquerade))
	}
}

// listeners renders the rules that drop what other processes answer on the ports of userspace mode.
func (r *rendering) listeners() {
	if !r.b.toListeners {
		return
	}
	at := xtables.At(r.e.Key.Family, "filter") + r.b.names.listeners
	for _, ep := range r.e.Endpoints {
		port := strconv.Itoa(int(ep.Addr.Port()))
		r.items = append(r.items, xtables.Item(at+" -s "+xtables.HostText(ep.Addr.Addr())+" -p "+r.proto+" -m "+r.proto+" --sport "+port+" -j DROP"))
	}
}

// internalMarks returns the rules that mark traffic to the ClusterIP for masquerading.
func (r *rendering) internalMarks() []string {
	source := r.b.pods[r.e.Key.Family].NotFrom
	dst := ""
	if r.e.External() {
		// Traffic to the other addresses may come through the same chain.
		dst = "-d " + xtables.HostText(r.e.ClusterIP) + " "
	}
	switch {
	case r.b.cfg.MasqueradeAll:
		return []string{dst + r.b.setMark}
	case source == "":
		return nil
	case strings.HasPrefix(source, "! -i"): // iptables-save prints addresses before interfaces
		return []string{dst + source + " " + r.b.setMark}
	}
	return []string{source + " " + dst + r.b.setMark}
}

// chain renders the rules and, after them, an equal choice among the endpoints. It returns the target that leads there.
// If one rule is enough, there is no chain, and the target is the action itself.
func (r *rendering) chain(kind string, rules []string, endpoints []dataplane.Endpoint) string {
	if len(rules) == 0 && len(endpoints) == 1 && r.e.Affinity == 0 {
		return string(appendDNAT(nil, endpoints[0].Addr))
	}
	name := r.b.names.service(kind, r.key)
	var buf [4096]byte
	t := append(append(buf[:0], r.at...), name...)
	for _, rule := range rules {
		t = append(append(append(append(t, "\n-A "...), name...), ' '), rule...)
	}
	t = r.appendBalance(t, name, endpoints)
	r.items = append(r.items, xtables.Item(t))
	return "-j " + name
}

// appendBalance writes the rules that choose an endpoint.
func (r *rendering) appendBalance(t []byte, chain string, endpoints []dataplane.Endpoint) []byte {
	start := func() {
		t = append(append(append(append(append(t, "\n-A "...), chain...), " -p "...), r.proto...), ' ')
	}
	names := make([]string, len(endpoints))
	if r.e.Affinity > 0 {
		seconds := strconv.FormatInt(max(1, int64(r.e.Affinity/time.Second)), 10)
		for i, ep := range endpoints {
			// The name depends on the endpoint and not on its position, so that a client stays when other endpoints are
			// added or removed.
			names[i] = r.b.names.prefix + hash("recent", r.key, ep.Addr.String())
			start()
			t = append(append(append(t, "-m recent --update --seconds "...), seconds...), " --reap"...)
			t = append(r.appendRecentName(t, names[i]), ' ')
			t = appendDNAT(t, ep.Addr)
		}
	}
	rest := 0
	for _, ep := range endpoints {
		rest += int(ep.Weight)
	}
	for i, ep := range endpoints {
		start()
		if i < len(endpoints)-1 {
			t = append(t, "-m statistic --mode random --probability "...)
			t = append(appendProbability(t, int(ep.Weight), rest), ' ')
			rest -= int(ep.Weight)
		}
		if names[i] != "" {
			t = append(r.appendRecentName(append(t, "-m recent --set"...), names[i]), ' ')
		}
		t = appendDNAT(t, ep.Addr)
	}
	return t
}

func (r *rendering) appendRecentName(t []byte, name string) []byte {
	mask := " --mask 255.255.255.255 --rsource"
	if r.e.Key.Family == dataplane.IPv6 {
		mask = " --mask ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff --rsource"
	}
	return append(append(append(t, " --name "...), name...), mask...)
}

func appendDNAT(t []byte, to netip.AddrPort) []byte {
	return xtables.AppendAddrPort(append(t, "-j DNAT --to-destination "...), to)
}

// appendProbability writes the probability weight/rest as iptables-save prints it: the kernel keeps a fraction of 2^31.
func appendProbability(t []byte, weight, rest int) []byte {
	const unit = 1 << 31
	return strconv.AppendFloat(t, math.Round(float64(weight)/float64(rest)*unit)/unit, 'f', 11, 64)
}

// usable returns the endpoints that take new connections.
func usable(endpoints []dataplane.Endpoint) []dataplane.Endpoint {
	for i, ep := range endpoints {
		if ep.Weight == 0 {
			kept := append([]dataplane.Endpoint(nil), endpoints[:i]...)
			for _, ep := range endpoints[i+1:] {
				if ep.Weight > 0 {
					kept = append(kept, ep)
				}
			}
			return kept
		}
	}
	return endpoints
}
