package nftables

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"weir/backends/dataplane"
	"weir/backends/netlab"
)

// world holds the differences between the families.
type world struct {
	fam      dataplane.Family
	pod      func(int) netip.Addr
	node     netip.Addr
	second   netip.Addr
	other    netip.Addr // the remote pod
	external netip.Addr
	vip      netip.Addr
}

var worlds = []world{
	{dataplane.IPv4, netlab.PodIPv4, netlab.NodeIPv4, netlab.SecondNodeIPv4, netlab.RemotePodIPv4, netip.MustParseAddr("203.0.113.3"), netip.MustParseAddr("203.0.113.4")},
	{dataplane.IPv6, netlab.PodIPv6, netlab.NodeIPv6, netlab.SecondNodeIPv6, netlab.RemotePodIPv6, netip.MustParseAddr("2001:db8::3"), netip.MustParseAddr("2001:db8::4")},
}

func (w world) v6() bool { return w.fam == dataplane.IPv6 }

func (w world) client(r *rig, host string) netip.Addr { return r.lab.Host(host).Addr(w.v6()) }

// expect is one probe and its expected outcome.
type expect struct {
	from    string
	to      netip.AddrPort
	outcome netlab.Outcome
	servers []string // that may answer
	source  string   // "kept": the server sees the client's own address; "node": one of the node's
}

const labPort = 80

func serve(t testing.TB, l *netlab.Lab, names ...string) {
	for _, name := range names {
		for _, p := range []netlab.Protocol{netlab.TCP, netlab.UDP, netlab.SCTP} {
			l.Host(name).Serve(t, p, labPort)
		}
	}
}

func (r *rig) expect(w world, p dataplane.Protocol, rows ...expect) {
	r.t.Helper()
	for _, x := range rows {
		wait := patience
		if x.outcome == netlab.Dropped {
			wait = 300 * time.Millisecond
		}
		got := r.lab.Host(x.from).Probe(netlab.Protocol(p.String()), x.to, wait)
		what := fmt.Sprintf("%s %s from %s to %s: %v", w.fam, p, x.from, x.to, got)
		if got.Outcome != x.outcome {
			r.t.Errorf("%s, want %s", what, x.outcome)
			continue
		}
		if x.outcome != netlab.Answered {
			continue
		}
		found := false
		for _, s := range x.servers {
			found = found || s == got.Server
		}
		if !found {
			r.t.Errorf("%s, want one of %v", what, x.servers)
		}
		own := got.Source.Addr() == w.client(r, x.from)
		if x.source == "kept" && !own {
			r.t.Errorf("%s: the source was changed", what)
		}
		if x.source == "node" && !r.node.Owns(got.Source.Addr()) {
			r.t.Errorf("%s: the source is not the node", what)
		}
	}
}

func (w world) at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

var protocols = []dataplane.Protocol{dataplane.TCP, dataplane.UDP, dataplane.SCTP}

// each runs f for every family and protocol on one lab whose Services f returns.
func eachWorld(t *testing.T, cfg dataplane.Config, topo netlab.Topology, entries func(world, dataplane.Protocol) []*dataplane.ServicePort, rows func(*rig, world, dataplane.Protocol) []expect) {
	t.Parallel()
	r := newRig(t, cfg, topo)
	serve(t, r.lab, "pod1", "pod2", "pod3", netlab.Client, netlab.Remote)
	var all []*dataplane.ServicePort
	for _, w := range worlds {
		for _, p := range protocols {
			all = append(all, entries(w, p)...)
		}
	}
	r.sync(all...)
	for _, w := range worlds {
		for _, p := range protocols {
			r.expect(w, p, rows(r, w, p)...)
		}
	}
	if t.Failed() {
		t.Log(r.nft("list", "ruleset"))
	}
}

func (w world) entry(n int, p dataplane.Protocol, eps ...dataplane.Endpoint) *dataplane.ServicePort {
	return entry(w.fam, n, p, eps...)
}

func TestClusterIP(t *testing.T) {
	entries := func(w world, p dataplane.Protocol) []*dataplane.ServicePort {
		none := w.entry(2, p)
		unusable := w.entry(3, p)
		unusable.HasEndpoints = true
		local := w.entry(4, p, endpoint(w.pod(1), labPort), remote(w.other, labPort))
		local.InternalLocal = true
		return []*dataplane.ServicePort{w.entry(1, p, endpoint(w.pod(1), labPort), endpoint(w.pod(2), labPort), remote(w.other, labPort)), none, unusable, local}
	}
	eachWorld(t, testConfig(), netlab.Topology{}, entries, func(r *rig, w world, p dataplane.Protocol) []expect {
		all := []string{"pod1", "pod2", netlab.Remote}
		var rows []expect
		for _, from := range []string{netlab.Client, netlab.Node, netlab.Outside} {
			source := "node"
			if from == netlab.Client {
				source = "kept"
			}
			rows = append(rows,
				expect{from, w.at(w.entry(1, p).ClusterIP, 80), netlab.Answered, all, source},
				expect{from, w.at(w.entry(2, p).ClusterIP, 80), netlab.Refused, nil, ""},
				expect{from, w.at(w.entry(3, p).ClusterIP, 80), netlab.Dropped, nil, ""},
				expect{from, w.at(w.entry(4, p).ClusterIP, 80), netlab.Answered, []string{"pod1"}, source},
				expect{from, w.at(w.entry(1, p).ClusterIP, 81), netlab.Refused, nil, ""},
			)
		}
		return rows
	})
}

func TestHairpin(t *testing.T) {
	for name, topo := range map[string]netlab.Topology{"routed": {}, "bridge": {Bridge: "cni0"}} {
		t.Run(name, func(t *testing.T) {
			entries := func(w world, p dataplane.Protocol) []*dataplane.ServicePort {
				return []*dataplane.ServicePort{w.entry(1, p, endpoint(w.pod(1), labPort))}
			}
			eachWorld(t, testConfig(), topo, entries, func(r *rig, w world, p dataplane.Protocol) []expect {
				return []expect{
					{"pod1", w.at(w.entry(1, p).ClusterIP, 80), netlab.Answered, []string{"pod1"}, "node"},
					{"pod2", w.at(w.entry(1, p).ClusterIP, 80), netlab.Answered, []string{"pod1"}, "kept"},
				}
			})
		})
	}
}

func TestExternal(t *testing.T) {
	port := func(w world, p dataplane.Protocol) uint16 { return 30000 + uint16(p) }
	entries := func(w world, p dataplane.Protocol) []*dataplane.ServicePort {
		e := w.entry(1, p, endpoint(w.pod(1), labPort), remote(w.other, labPort))
		e.NodePort, e.ExternalIPs = port(w, p), []netip.Addr{w.external}
		local := w.entry(2, p, endpoint(w.pod(1), labPort), remote(w.other, labPort))
		local.NodePort, local.LoadBalancerIPs, local.ExternalLocal = port(w, p)+200, []netip.Addr{w.vip}, true
		far := w.entry(3, p, remote(w.other, labPort))
		far.NodePort, far.ExternalLocal = port(w, p)+400, true
		none := w.entry(4, p)
		none.NodePort = port(w, p) + 600
		return []*dataplane.ServicePort{e, local, far, none}
	}
	eachWorld(t, testConfig(), netlab.Topology{}, entries, func(r *rig, w world, p dataplane.Protocol) []expect {
		any := []string{"pod1", netlab.Remote}
		np := port(w, p)
		var rows []expect
		for _, from := range []string{netlab.Client, netlab.Node, netlab.Outside} {
			short := "node" // the treatment of pods and the node under policy Local: as for the ClusterIP
			if from == netlab.Client {
				short = "kept"
			}
			for _, a := range []netip.Addr{w.node, w.second} {
				rows = append(rows, expect{from, w.at(a, np), netlab.Answered, any, "node"})
			}
			rows = append(rows,
				expect{from, w.at(w.external, 80), netlab.Answered, any, "node"},
				expect{from, w.at(w.node, np+600), netlab.Refused, nil, ""})
			if from == netlab.Outside {
				rows = append(rows,
					expect{from, w.at(w.node, np+200), netlab.Answered, []string{"pod1"}, "kept"},
					expect{from, w.at(w.vip, 80), netlab.Answered, []string{"pod1"}, "kept"},
					expect{from, w.at(w.node, np+400), netlab.Dropped, nil, ""})
				continue
			}
			rows = append(rows,
				expect{from, w.at(w.node, np+200), netlab.Answered, any, short},
				expect{from, w.at(w.vip, 80), netlab.Answered, any, short},
				expect{from, w.at(w.node, np+400), netlab.Answered, []string{netlab.Remote}, short})
		}
		return rows
	})
}

func TestNodePortAddresses(t *testing.T) {
	cfg := testConfig()
	cfg.NodePortAddresses = []netip.Addr{netlab.NodeIPv4, netlab.NodeIPv6}
	entries := func(w world, p dataplane.Protocol) []*dataplane.ServicePort {
		e := w.entry(1, p, endpoint(w.pod(1), labPort))
		e.NodePort = 30000 + uint16(p)
		none := w.entry(2, p)
		none.NodePort = 30200 + uint16(p)
		return []*dataplane.ServicePort{e, none}
	}
	eachWorld(t, cfg, netlab.Topology{}, entries, func(r *rig, w world, p dataplane.Protocol) []expect {
		np := 30000 + uint16(p)
		return []expect{
			{netlab.Outside, w.at(w.node, np), netlab.Answered, []string{"pod1"}, "node"},
			{netlab.Outside, w.at(w.node, np+200), netlab.Refused, nil, ""},
		}
	})
}

func TestSourceRanges(t *testing.T) {
	entries := func(w world, p dataplane.Protocol) []*dataplane.ServicePort {
		outside := netlab.OutsideIPv4
		if w.v6() {
			outside = netlab.OutsideIPv6
		}
		open := w.entry(1, p, endpoint(w.pod(1), labPort))
		open.LoadBalancerIPs = []netip.Addr{w.vip}
		open.SourceRanges = []netip.Prefix{netip.PrefixFrom(outside, outside.BitLen()-4).Masked(), netip.PrefixFrom(outside, outside.BitLen())}
		shut := w.entry(2, p, endpoint(w.pod(1), labPort))
		shut.LoadBalancerIPs, shut.NodePort = []netip.Addr{w.external}, 30000+uint16(p)
		shut.SourceRanges = []netip.Prefix{netip.PrefixFrom(w.external, w.external.BitLen()-1).Masked()}
		return []*dataplane.ServicePort{open, shut}
	}
	eachWorld(t, testConfig(), netlab.Topology{}, entries, func(r *rig, w world, p dataplane.Protocol) []expect {
		return []expect{
			{netlab.Outside, w.at(w.vip, 80), netlab.Answered, []string{"pod1"}, "node"},
			{netlab.Client, w.at(w.vip, 80), netlab.Dropped, nil, ""},
			{netlab.Outside, w.at(w.external, 80), netlab.Dropped, nil, ""},
			{netlab.Outside, w.at(w.node, 30000+uint16(p)), netlab.Answered, []string{"pod1"}, "node"},
			{netlab.Outside, w.at(w.entry(2, p).ClusterIP, 80), netlab.Answered, []string{"pod1"}, "node"},
		}
	})
}

func TestMasquerade(t *testing.T) {
	for name, row := range map[string]struct {
		change func(*dataplane.Config)
		topo   netlab.Topology
		client string // the treatment of the source of the pod on this node
		out    string // and that from outside
	}{
		"all":               {func(c *dataplane.Config) { c.MasqueradeAll = true }, netlab.Topology{}, "node", "node"},
		"another bit":       {func(c *dataplane.Config) { c.MasqueradeMark = 1 << 3 }, netlab.Topology{}, "kept", "node"},
		"no detector":       {func(c *dataplane.Config) { c.LocalDetector = dataplane.LocalDetector{} }, netlab.Topology{}, "kept", "kept"},
		"bridge":            {func(c *dataplane.Config) { c.LocalDetector = dataplane.LocalDetector{Interface: "cni0"} }, netlab.Topology{Bridge: "cni0"}, "kept", "node"},
		"interface prefix":  {func(c *dataplane.Config) { c.LocalDetector = dataplane.LocalDetector{Interface: "pod", Prefix: true} }, netlab.Topology{VethPrefix: "pod"}, "kept", "node"},
		"another's prefix":  {func(c *dataplane.Config) { c.LocalDetector = dataplane.LocalDetector{Interface: "cali", Prefix: true} }, netlab.Topology{}, "node", "node"},
		"conntrack liberal": {func(c *dataplane.Config) { c.TCPBeLiberal = true }, netlab.Topology{}, "kept", "node"},
		"other pods' prefix": {func(c *dataplane.Config) {
			c.LocalDetector.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16"), netip.MustParsePrefix("fd09::/16")}
		}, netlab.Topology{}, "node", "node"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig()
			row.change(&cfg)
			entries := func(w world, p dataplane.Protocol) []*dataplane.ServicePort {
				return []*dataplane.ServicePort{w.entry(1, p, endpoint(w.pod(1), labPort))}
			}
			eachWorld(t, cfg, row.topo, entries, func(r *rig, w world, p dataplane.Protocol) []expect {
				to := w.at(w.entry(1, p).ClusterIP, 80)
				return []expect{
					{netlab.Client, to, netlab.Answered, []string{"pod1"}, row.client},
					{netlab.Outside, to, netlab.Answered, []string{"pod1"}, row.out},
				}
			})
		})
	}
}

// TestAffinity expects that a client keeps its endpoint while the endpoint exists, whichever others are added or
// deleted. It gets another one when its endpoint is deleted, and is forgotten after the timeout.
func TestAffinity(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig(), netlab.Topology{Pods: 6})
	pods := []string{"pod1", "pod2", "pod3", "pod4", "pod5", "pod6"}
	serve(t, r.lab, pods...)
	entries := func(timeout time.Duration, without string) []*dataplane.ServicePort {
		var all []*dataplane.ServicePort
		for _, w := range worlds {
			var eps []dataplane.Endpoint
			for i, name := range pods {
				if name != without {
					eps = append(eps, endpoint(w.pod(i+1), labPort))
				}
			}
			e := w.entry(1, dataplane.TCP, eps...)
			e.Affinity, e.NodePort = timeout, 30001
			all = append(all, e)
		}
		return all
	}
	r.sync(entries(time.Hour, "")...)
	ask := func(w world, from string, to netip.AddrPort) string {
		t.Helper()
		got := r.lab.Host(from).Probe(netlab.TCP, to, patience)
		if got.Outcome != netlab.Answered {
			t.Fatalf("%s from %s: %v", to, from, got)
		}
		return got.Server
	}
	stays := func(w world, from string, to netip.AddrPort) string {
		t.Helper()
		first := ask(w, from, to)
		for range 12 {
			if again := ask(w, from, to); again != first {
				t.Fatalf("%s from %s: %s, then %s", to, from, first, again)
			}
		}
		return first
	}
	for _, w := range worlds {
		to := w.at(w.entry(1, dataplane.TCP).ClusterIP, 80)
		stays(w, netlab.Outside, w.at(w.node, 30001))
		r.sync(entries(time.Hour, "")...)
		first := stays(w, netlab.Client, to)
		other := "pod1"
		if first == other {
			other = "pod2"
		}
		r.sync(entries(time.Hour, other)...)
		if again := stays(w, netlab.Client, to); again != first {
			t.Errorf("%s: %s went and the client was moved from %s to %s", w.fam, other, first, again)
		}
		r.sync(entries(time.Hour, first)...)
		if again := stays(w, netlab.Client, to); again == first {
			t.Errorf("%s: %s went and the client is still there", w.fam, first)
		}
	}
	r.sync(entries(time.Second, "")...)
	for _, w := range worlds {
		to := w.at(w.entry(1, dataplane.TCP).ClusterIP, 80)
		seen := map[string]bool{}
		for deadline := time.Now().Add(60 * time.Second); len(seen) < 2 && time.Now().Before(deadline); {
			seen[ask(w, "pod1", to)] = true
			r.awaitForgotten(w.fam, w.pod(1))
		}
		if len(seen) < 2 {
			t.Errorf("%s: the client was never forgotten: %v", w.fam, seen)
		}
	}
}

// awaitForgotten waits until the kernel remembers no endpoint of a client any more.
func (r *rig) awaitForgotten(f dataplane.Family, client netip.Addr) {
	r.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		list := r.nft("list", "map", familyName(f), backendTable, sets[stickyClients].name)
		if !strings.Contains(list, client.String()+" . ") {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("%s is still remembered:\n%s", client, list)
		}
	}
}

// TestWeights expects that the shares follow the weights, and that an endpoint of weight 0 gets no new connections.
func TestWeights(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig(), netlab.Topology{})
	serve(t, r.lab, "pod1", "pod2", "pod3")
	w := worlds[0]
	e := w.entry(1, dataplane.TCP, endpoint(w.pod(1), labPort), endpoint(w.pod(2), labPort), endpoint(w.pod(3), labPort))
	e.Endpoints[0].Weight, e.Endpoints[1].Weight, e.Endpoints[2].Weight = 30, 10, 0
	r.sync(e)
	const n = 400
	count := map[string]int{}
	for range n {
		got := r.lab.Host(netlab.Client).Probe(netlab.TCP, w.at(e.ClusterIP, 80), patience)
		count[got.Server]++
	}
	// Three quarters of 400 have a standard deviation of 8.7; allow six of them either way.
	if count["pod1"] < 248 || count["pod1"] > 352 || count["pod3"] != 0 || count["pod1"]+count["pod2"] != n {
		t.Errorf("weights 30, 10, 0: %v", count)
	}
}
