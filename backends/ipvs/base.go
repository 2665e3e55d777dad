package ipvs

import (
	"weir/backends"
	"weir/backends/dataplane"
	"weir/backends/hostnet"
	"weir/backends/xtables"
)

// prefix begins the names of all chains and sets.
const prefix = "WEIR-IPVS-"

// The chains.
const (
	servicesChain = prefix + "SERVICES" // nat: traffic to masquerade
	postChain     = prefix + "POSTROUTING"
	masqChain     = prefix + "MASQUERADE"
	insideChain   = prefix + "INSIDE" // mangle: traffic that may use all endpoints in spite of policy Local
	outputChain   = prefix + "OUTPUT"
	inputChain    = prefix + "INPUT" // filter
	filterChain   = prefix + "FILTER"
	forwardChain  = prefix + "FORWARD"
	answeredChain = prefix + "ANSWERED" // raw and filter: what weir answers itself
)

// The sets. Each family has its own, with the family's number at the end.
const (
	clusterSet  = prefix + "CLUSTER-"  // ClusterIPs that are served
	externalSet = prefix + "EXTERNAL-" // other addresses that are served, and masqueraded
	localSet    = prefix + "LOCAL-"    // other addresses that are served under policy Local
	insideSet   = prefix + "INSIDE-"   // the same, with the marks for traffic from inside
	rejectSet   = prefix + "REJECT-"
	dropSet     = prefix + "DROP-"
	guardSet    = prefix + "GUARD-" // addresses with source ranges
	allowSet    = prefix + "ALLOW-" // clients that may use them
	loopSet     = prefix + "LOOP-"  // endpoints that may connect to themselves
	addrSet     = prefix + "ADDR-"  // all addresses on weir-ipvs0
	healthSet   = prefix + "HEALTH" // health check ports of Services, of both families
)

// The types of sets.
const (
	typePort     = "hash:ip,port"
	typePortIP   = "hash:ip,port,ip"
	typePortNet  = "hash:ip,port,net"
	typeAddr     = "hash:ip"
	typePortOnly = "bitmap:port"
)

var setTypes = []struct{ name, kind string }{
	{clusterSet, typePort}, {externalSet, typePort}, {localSet, typePort}, {insideSet, typePort}, {rejectSet, typePort},
	{dropSet, typePort}, {guardSet, typePort}, {allowSet, typePortNet}, {loopSet, typePortIP}, {addrSet, typeAddr},
}

// named returns the name of a family's set.
func named(set string, f dataplane.Family) string {
	if f == dataplane.IPv6 {
		return set + "6"
	}
	return set + "4"
}

// Base implements backends.Backend.
func (b *Backend) Base() []backends.Item {
	items := []backends.Item{Link{}, Set{Name: healthSet, Type: typePortOnly}}
	if t := b.timeouts(); t != (Timeouts{}) {
		items = append(items, t)
	}
	for _, f := range b.cfg.Families {
		for _, s := range setTypes {
			items = append(items, Set{Name: named(s.name, f), Type: s.kind, Family: f, Marks: s.name == insideSet})
		}
		items = append(items, b.baseNAT(f)...)
		items = append(items, b.baseFilter(f)...)
		items = append(items, b.baseMangle(f)...)
	}
	return items
}

func (b *Backend) timeouts() Timeouts {
	return Timeouts{TCP: b.set.TCPTimeout, TCPFin: b.set.TCPFinTimeout, UDP: b.set.UDPTimeout}
}

// Parameters returns the kernel parameters that kube-proxy sets. With conn_reuse_mode 1, kernels before 5.9 delay a
// connection from a recently used port by a second. With 0, later kernels send such a connection to a destination that
// may no longer exist.
func (s Settings) Parameters() []hostnet.Parameter {
	reuse := "1"
	if v := s.Kernel; v[0] < 5 || v[0] == 5 && v[1] < 9 {
		reuse = "0"
	}
	vs := func(name, value string) hostnet.Parameter {
		return hostnet.Parameter{Name: "net.ipv4.vs." + name, Value: value, Reason: "ipvs mode needs it"}
	}
	list := []hostnet.Parameter{vs("conntrack", "1"), vs("conn_reuse_mode", reuse), vs("expire_nodest_conn", "1"), vs("expire_quiescent_template", "1")}
	if s.StrictARP {
		const why = "ipvs.strictARP: the node answers only for its own addresses"
		list = append(list, hostnet.Parameter{Name: "net.ipv4.conf.all.arp_ignore", Value: "1", Reason: why},
			hostnet.Parameter{Name: "net.ipv4.conf.all.arp_announce", Value: "2", Reason: why})
	}
	return list
}

func (b *Backend) baseNAT(f dataplane.Family) []backends.Item {
	at := xtables.At(f, "nat")
	mark := func(m uint32) string { return "-m mark --mark " + xtables.MarkText(m) + " " + b.translated() }
	setMark := " " + xtables.SetMark(b.cfg.MasqueradeMark)
	masquerade := xtables.Masquerade(b.set.RandomFully)
	cluster := "-m set --match-set " + named(clusterSet, f)
	services := []string{cluster + " dst,dst" + setMark}
	switch no := b.pods[f].NotFrom; {
	case b.cfg.MasqueradeAll:
	case no != "":
		services[0] = no + " " + services[0]
	default:
		// The address of the Service is on this node, so it is the source of the node's own traffic to it. No answer
		// could come back to it.
		services[0] = cluster + " src,dst" + setMark
	}
	services = append(services, "-m set --match-set "+named(externalSet, f)+" dst,dst"+setMark)
	post := []string{
		mark(b.cfg.MasqueradeMark) + "-j " + masqChain,
		mark(b.inside) + "-m addrtype --src-type LOCAL " + masquerade,
		"-m set --match-set " + named(loopSet, f) + " dst,dst,src " + masquerade,
	}
	for _, p := range b.cfg.Bridged { // an answer between neighbours on a bridge would not pass through the node
		if dataplane.FamilyOf(p.Addr()) == f && b.set.MatchTranslated {
			net := xtables.PrefixText(p)
			post = append(post, "-s "+net+" -d "+net+" "+b.translated()+masquerade)
		}
	}
	return []backends.Item{
		xtables.Chain(at, servicesChain, services...),
		xtables.Chain(at, postChain, post...),
		xtables.Chain(at, masqChain, xtables.ClearMark(b.cfg.MasqueradeMark), masquerade),
		xtables.Item(at + "PREROUTING -j " + servicesChain),
		xtables.Item(at + "OUTPUT -j " + servicesChain),
		xtables.Item(at + "POSTROUTING -j " + postChain),
	}
}

// translated returns the match for what IPVS translated, because the mark of another program means nothing to weir.
func (b *Backend) translated() string {
	if b.set.MatchTranslated {
		return "-m ipvs --ipvs "
	}
	return ""
}

// guard returns the match for traffic that the source ranges forbid.
func guard(f dataplane.Family) string {
	return "-m set --match-set " + named(guardSet, f) + " dst,dst -m set ! --match-set " + named(allowSet, f) + " dst,dst,src"
}

func (b *Backend) baseFilter(f dataplane.Family) []backends.Item {
	at := xtables.At(f, "filter")
	reject, icmp := "-j REJECT --reject-with icmp-port-unreachable", "icmp"
	if f == dataplane.IPv6 {
		reject, icmp = "-j REJECT --reject-with icmp6-port-unreachable", "ipv6-icmp"
	}
	in := func(set string) string { return "-m set --match-set " + named(set, f) + " dst,dst " }
	return []backends.Item{
		xtables.Chain(at, inputChain,
			"-p tcp -m set --match-set "+healthSet+" dst -j ACCEPT",
			"-m conntrack --ctstate NEW -j "+filterChain),
		xtables.Chain(at, filterChain,
			guard(f)+" -j DROP",
			"-m mark --mark "+xtables.MarkText(b.inside)+" "+in(insideSet)+"-j RETURN",
			in(dropSet)+"-j DROP",
			in(rejectSet)+reject,
			in(clusterSet)+"-j RETURN", in(externalSet)+"-j RETURN", in(localSet)+"-j RETURN",
			// Otherwise every server that listens on all addresses of the node could be reached through any Service.
			"! -p "+icmp+" -m set --match-set "+named(addrSet, f)+" dst "+reject),
		// What IPVS translates leaves the node through OUTPUT. Only its answers are forwarded.
		xtables.Chain(at, forwardChain, "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
		xtables.Item(at + "INPUT -j " + inputChain),
		xtables.Item(at + "FORWARD -j " + forwardChain),
	}
}

func (b *Backend) baseMangle(f dataplane.Family) []backends.Item {
	at := xtables.At(f, "mangle")
	set := named(insideSet, f)
	mark := "-m set --match-set " + set + " dst,dst -j SET --map-set " + set + " dst,dst --map-mark"
	output := []string{
		"-m conntrack --ctstate NEW " + guard(f) + " -j DROP",
		mark,
		"-m conntrack --ctstate NEW -m mark ! --mark " + xtables.MarkText(b.inside) + " -m set --match-set " + named(dropSet, f) + " dst,dst -j DROP",
	}
	if !b.cfg.TCPBeLiberal {
		output = append(output, xtables.InvalidReset)
	}
	items := []backends.Item{
		// The node's own traffic reaches the filter table only after IPVS.
		xtables.Chain(at, outputChain, output...),
		xtables.Item(at + "OUTPUT -j " + outputChain),
	}
	if yes := b.pods[f].From; yes != "" {
		items = append(items, xtables.Chain(at, insideChain, yes+" "+mark), xtables.Item(at+"PREROUTING -j "+insideChain))
	}
	return items
}
