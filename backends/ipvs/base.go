package ipvs

import (
	"fmt"
	"strings"

	"weir/backends"
)

// prefix begins the names of all chains and sets.
const prefix = "WEIR-IPVS-"

// The chains.
const (
	servicesChain = prefix + "SERVICES" // nat: what is to be masqueraded
	postChain     = prefix + "POSTROUTING"
	masqChain     = prefix + "MASQUERADE"
	insideChain   = prefix + "INSIDE" // mangle: what may use all endpoints in spite of policy Local
	outputChain   = prefix + "OUTPUT"
	inputChain    = prefix + "INPUT" // filter
	filterChain   = prefix + "FILTER"
	forwardChain  = prefix + "FORWARD"
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
	allowSet    = prefix + "ALLOW-" // who may use them
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
func named(set string, f backends.Family) string {
	if f == backends.IPv6 {
		return set + "6"
	}
	return set + "4"
}

// tables are the tables that hold chains.
var tables = []string{"nat", "filter", "mangle"}

// Base implements backends.Backend.
func (b *Backend) Base() []backends.Item {
	items := []backends.Item{Link{}, Set{Name: healthSet, Type: typePortOnly}}
	for _, s := range b.sysctls() {
		items = append(items, s)
	}
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

// sysctls are those that kube-proxy sets. With conn_reuse_mode 1, kernels before 5.9 delay a connection from a port that was
// used a moment ago by a second; with 0, later ones send it to a destination that may be gone.
func (b *Backend) sysctls() []Sysctl {
	reuse := "1"
	if v := b.set.Kernel; v[0] < 5 || v[0] == 5 && v[1] < 9 {
		reuse = "0"
	}
	list := []Sysctl{
		{"net.ipv4.vs.conntrack", "1"},
		{"net.ipv4.vs.conn_reuse_mode", reuse},
		{"net.ipv4.vs.expire_nodest_conn", "1"},
		{"net.ipv4.vs.expire_quiescent_template", "1"},
	}
	if b.set.StrictARP {
		list = append(list, Sysctl{"net.ipv4.conf.all.arp_ignore", "1"}, Sysctl{"net.ipv4.conf.all.arp_announce", "2"})
	}
	return list
}

func (b *Backend) baseNAT(f backends.Family) []backends.Item {
	at := tag(f) + " nat "
	mark := bit(b.cfg.MasqueradeMark)
	setMark := " -j MARK --set-xmark " + mark
	masquerade := "-j MASQUERADE"
	if b.set.RandomFully {
		masquerade += " --random-fully"
	}
	cluster := "-m set --match-set " + named(clusterSet, f)
	services := []string{cluster + " dst,dst" + setMark}
	switch no := b.pods[f].no; {
	case b.cfg.MasqueradeAll:
	case no != "":
		services[0] = no + " " + services[0]
	default:
		// The address of the Service is on this node, and so the source of what the node sends to it. Nobody could answer.
		services[0] = cluster + " src,dst" + setMark
	}
	services = append(services, "-m set --match-set "+named(externalSet, f)+" dst,dst"+setMark)
	return []backends.Item{
		chain(at, servicesChain, services...),
		chain(at, postChain,
			"-m mark --mark "+mark+" -j "+masqChain,
			"-m mark --mark "+bit(b.inside)+" -m addrtype --src-type LOCAL "+masquerade,
			"-m set --match-set "+named(loopSet, f)+" dst,dst,src "+masquerade),
		chain(at, masqChain, fmt.Sprintf("-j MARK --set-xmark %#x/0x0", b.cfg.MasqueradeMark), masquerade),
		Rules(at + "PREROUTING -j " + servicesChain),
		Rules(at + "OUTPUT -j " + servicesChain),
		Rules(at + "POSTROUTING -j " + postChain),
	}
}

// guard matches what source ranges forbid.
func guard(f backends.Family) string {
	return "-m set --match-set " + named(guardSet, f) + " dst,dst -m set ! --match-set " + named(allowSet, f) + " dst,dst,src"
}

func (b *Backend) baseFilter(f backends.Family) []backends.Item {
	at := tag(f) + " filter "
	reject, icmp := "-j REJECT --reject-with icmp-port-unreachable", "icmp"
	if f == backends.IPv6 {
		reject, icmp = "-j REJECT --reject-with icmp6-port-unreachable", "ipv6-icmp"
	}
	in := func(set string) string { return "-m set --match-set " + named(set, f) + " dst,dst " }
	return []backends.Item{
		chain(at, inputChain,
			"-p tcp -m set --match-set "+healthSet+" dst -j ACCEPT",
			"-m conntrack --ctstate NEW -j "+filterChain),
		chain(at, filterChain,
			guard(f)+" -j DROP",
			"-m mark --mark "+bit(b.inside)+" -j RETURN",
			in(dropSet)+"-j DROP",
			in(rejectSet)+reject,
			in(clusterSet)+"-j RETURN", in(externalSet)+"-j RETURN", in(localSet)+"-j RETURN",
			// Else everything that listens on all addresses of the node could be reached through any Service.
			"! -p "+icmp+" -m set --match-set "+named(addrSet, f)+" dst "+reject),
		chain(at, forwardChain,
			"-m mark --mark "+bit(b.cfg.MasqueradeMark)+" -j ACCEPT",
			"-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
		Rules(at + "INPUT -j " + inputChain),
		Rules(at + "FORWARD -j " + forwardChain),
	}
}

func (b *Backend) baseMangle(f backends.Family) []backends.Item {
	at := tag(f) + " mangle "
	set := named(insideSet, f)
	mark := "-m set --match-set " + set + " dst,dst -j SET --map-set " + set + " dst,dst --map-mark"
	items := []backends.Item{
		// What the node itself sends comes to the filter table only after IPVS.
		chain(at, outputChain,
			"-m conntrack --ctstate NEW "+guard(f)+" -j DROP",
			mark,
			"-m conntrack --ctstate NEW -m mark ! --mark "+bit(b.inside)+" -m set --match-set "+named(dropSet, f)+" dst,dst -j DROP"),
		Rules(at + "OUTPUT -j " + outputChain),
	}
	if yes := b.pods[f].yes; yes != "" {
		items = append(items, chain(at, insideChain, yes+" "+mark), Rules(at+"PREROUTING -j "+insideChain))
	}
	return items
}

// bit writes a mark of one bit with its mask.
func bit(mark uint32) string { return fmt.Sprintf("%#x/%#x", mark, mark) }

// chain makes the item of a chain.
func chain(at, name string, rules ...string) Rules {
	var t strings.Builder
	t.WriteString(at + name)
	for _, r := range rules {
		t.WriteString("\n-A " + name + " " + r)
	}
	return Rules(t.String())
}
