package nftables

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"weir/backends"
	"weir/backends/backendtest"
	"weir/backends/dataplane"
	"weir/backends/netlab"
	"weir/backends/nfnl"
	"weir/spec/seed"
)

// foreignRuleset holds the tables of other programs on the node, one of them with weir's name in another family.
const foreignRuleset = `
add table ip nat
add chain ip nat POSTROUTING { type nat hook postrouting priority srcnat; }
add rule ip nat POSTROUTING ip daddr 198.51.100.1 masquerade
add table inet firewall
add set inet firewall bad { type ipv4_addr; elements = { 192.0.2.1, 192.0.2.2 }; }
add chain inet firewall input { type filter hook input priority -10; }
add rule inet firewall input ip saddr @bad drop
add table inet weir
add chain inet weir unrelated
add table ip weir-2
add map ip weir-2 m { type ipv4_addr : verdict; }
`

func (r *rig) addForeign() {
	r.t.Helper()
	if _, err := r.node.ExecInput(context.Background(), foreignRuleset, "nft", "-f", "-"); err != nil {
		r.t.Fatal(err)
	}
}

// foreign returns the ruleset without weir's tables.
func (r *rig) foreign() string {
	r.t.Helper()
	var b strings.Builder
	for _, table := range strings.Split(strings.TrimSpace(r.nft("list", "tables")), "\n") {
		if f := strings.Fields(table); len(f) == 3 && table != "table ip weir" && table != "table ip6 weir" {
			b.WriteString(r.nft("list", "table", f[1], f[2]))
		}
	}
	return b.String()
}

// unknowable are the kinds of drift that the notifications do not report in full.
var unknowable = []string{"chain renamed", "set of another type", "table dormant", "table deleted", "both tables deleted", "an empty table"}

// TestDrift expects that any change of another process to weir's tables moves the generation, is found, and is repaired
// without changing anything else.
func TestDrift(t *testing.T) {
	needNFT(t)
	t.Parallel()
	r := newRig(t, testConfig(), netlab.Topology{})
	serve(t, r.lab, "pod1", "pod2", "pod3", netlab.Remote)
	entries := variety()
	r.addForeign()
	r.sync(entries...)
	want := r.desired(entries...)
	foreign := r.foreign()
	for name, script := range map[string]string{
		"endpoint deleted":           "delete element ip weir endpoints { 10.96.0.1 . tcp . 80 . 0x1 }",
		"endpoint changed":           "delete element ip weir endpoints { 10.96.0.1 . tcp . 80 . 0x1 }; add element ip weir endpoints { 10.96.0.1 . tcp . 80 . 0x1 : 10.244.1.9 . 8080 }",
		"endpoint added":             "add element ip weir endpoints { 10.96.0.1 . tcp . 80 . 0x9 : 10.244.1.9 . 8080 }",
		"front added":                "add element ip weir services { 10.96.0.99 . tcp . 80 : goto cluster-3 }",
		"front dropped":              "delete element ip6 weir services { fd00:10:96::1 . tcp . 80 }; add element ip6 weir services { fd00:10:96::1 . tcp . 80 : drop }",
		"comment changed":            `delete element ip weir services { 10.96.0.1 . tcp . 80 }; add element ip weir services { 10.96.0.1 . tcp . 80 comment "mine" : goto cluster-3 }`,
		"map flushed":                "flush map ip weir endpoints",
		"all maps flushed":           "flush map ip weir endpoints; flush map ip weir services; flush set ip weir cluster-ips; flush map ip weir node-ports",
		"set flushed":                "flush set ip6 weir cluster-ips",
		"source range widened":       "add element ip weir allowed-sources { 203.0.113.4 . tcp . 80 . 10.0.0.0/8 }",
		"source range deleted":       "delete element ip weir allowed-sources { 203.0.113.4 . tcp . 80 . 192.0.2.0/24 }",
		"hairpin added":              "add element ip weir hairpin { 10.9.9.9 . 10.9.9.8 }",
		"catchall added":             "add element ip weir services { * : drop }; add element ip6 weir cluster-ips { * }",
		"chain renamed":              "rename chain ip weir rejecting elsewhere",
		"rules flushed":              "flush chain ip weir services",
		"rule added":                 "add rule ip weir cluster-3 counter accept",
		"rule inserted":              "insert rule ip6 weir services accept",
		"rule replaced by like":      "flush chain ip weir rejecting; add rule ip weir rejecting drop",
		"rule with set added":        "add rule ip weir unserved ip daddr { 10.0.0.1, 10.0.0.2 } accept",
		"base chain flushed":         "flush chain ip weir nat-prerouting",
		"base chain deleted":         "flush chain ip weir nat-output; delete chain ip weir nat-output",
		"base chain elsewhere":       "flush chain ip weir nat-output; delete chain ip weir nat-output; add chain ip weir nat-output { type nat hook output priority 50; }",
		"policy changed":             "chain ip weir filter-forward { policy drop; }",
		"chain added":                "add chain ip weir mine; add rule ip weir mine accept; add rule ip weir services jump mine",
		"front to a foreign chain":   "add chain ip weir mine; add element ip weir services { 10.96.0.99 . tcp . 80 : goto mine }",
		"dispatch chain and element": "delete element ip weir services { 10.96.0.2 . udp . 80 }; flush chain ip weir cluster-4; delete chain ip weir cluster-4",
		"set added":                  "add set ip weir mine { type ipv4_addr; }",
		"set deleted":                "flush chain ip weir nat-postrouting; delete set ip weir hairpin",
		"map filled anew":            "flush map ip weir services; add element ip weir services { 10.96.0.1 . tcp . 80 : drop, 10.96.0.77 . tcp . 80 : drop }; delete element ip weir endpoints { 10.96.0.1 . tcp . 80 . 0x1 }",
		"map deleted":                "flush chain ip weir services; delete map ip weir services",
		"set of another type":        "flush chain ip weir nat-postrouting; delete set ip weir hairpin; add set ip weir hairpin { type ipv4_addr; }",
		"table dormant":              "table ip weir { flags dormant; }",
		"table deleted":              "delete table ip weir",
		"both tables deleted":        "delete table ip weir; delete table ip6 weir",
		"table flushed":              "flush table ip weir",
		"an empty table":             "delete table ip weir; add table ip weir",
	} {
		t.Run(name, func(t *testing.T) {
			r := *r
			r.t = t
			r.observed()
			r.nft(script)
			if !r.moved() {
				t.Error("the write was not noticed")
			}
			reread, ok := r.reread(want)
			now := r.observed()
			if ok == slices.Contains(unknowable, name) {
				t.Errorf("what was touched is known: %v", ok)
			} else if ok && !reflect.DeepEqual(texts(reread), texts(now)) {
				t.Errorf("reading what was touched and reading all differ: %s", backendtest.Diff(reread, now))
			}
			p := backendtest.Diff(now, want)
			if p.Empty() {
				t.Fatal("the drift was not found")
			}
			r.apply(p)
			if r.moved() {
				t.Error("the repair counts as a write of another process")
			}
			r.settled(want)
			if got := r.foreign(); got != foreign {
				t.Errorf("foreign tables: %s\nwere: %s", got, foreign)
			}
			w := worlds[0]
			r.expect(w, dataplane.TCP, expect{netlab.Outside, w.at(w.entry(3, 0).ClusterIP, 80), netlab.Answered, []string{"pod1", netlab.Remote}, "node"})
		})
	}
	t.Run("ruleset flushed", func(t *testing.T) {
		r := *r
		r.t = t
		r.nft("flush", "ruleset")
		r.apply(backendtest.Diff(r.observed(), want))
		r.settled(want)
	})
}

// TestForeignCommits expects that commits to other tables are not reported, even between weir's own commits, and that
// those tables are not read.
func TestForeignCommits(t *testing.T) {
	needNFT(t)
	t.Parallel()
	r := newRig(t, testConfig(), netlab.Topology{Pods: 1})
	entries := variety()
	r.sync(entries...)
	for i := range 20 {
		r.nft(fmt.Sprintf("add table ip other%d; add chain ip other%d weir; add rule ip other%d weir accept", i, i, i))
		if i%3 == 0 {
			r.sync(entries[:len(entries)-i%2]...)
		}
		if i%4 == 0 {
			continue
		}
		if r.moved() {
			t.Fatalf("commit %d to another table counts as one to weir's", i)
		}
	}
}

// TestWake expects that Wake receives after commits of other processes, and not after weir's own.
func TestWake(t *testing.T) {
	needNFT(t)
	t.Parallel()
	r := newRig(t, testConfig(), netlab.Topology{Pods: 1})
	r.sync(variety()...)
	select {
	case <-r.b.Wake():
		t.Error("weir's own commit was told")
	default:
	}
	for range 3 {
		r.nft("add element ip weir cluster-ips { 10.9.9.9 }")
		select {
		case <-r.b.Wake():
		case <-time.After(patience):
			t.Fatal("another process's commit was not reported")
		}
		r.sync(variety()...)
	}
}

// TestUnsettled expects that the generation is unknown while the kernel has counted a commit but not notified of it. If
// no notification ever comes, the commit may have changed weir's tables.
func TestUnsettled(t *testing.T) {
	needNFT(t)
	t.Parallel()
	r := newRig(t, testConfig(), netlab.Topology{Pods: 1})
	r.sync(variety()...)
	w := &r.b.watch
	unsettle := func() {
		w.own, w.seen = 0, w.seen-1 // a commit without a notification
		for range 2 {
			if moved, err := r.b.Moved(t.Context()); !errors.Is(err, errUnsettled) {
				t.Fatalf("%v, %v", moved, err)
			}
		}
	}
	unsettle()
	r.nft("add element ip weir cluster-ips { 10.9.9.9 }")
	if !r.moved() || w.touched.everything {
		t.Error("what was told late is not known")
	}
	r.sync(variety()...)
	unsettle()
	w.waitingSince = time.Now().Add(-readLimit)
	if !r.moved() {
		t.Error("what was never told does not count as a write")
	}
	r.observed()
	if r.moved() {
		t.Error("it counts as a write again, after a read")
	}
}

// TestLargePlan expects that a plan for which the watch pauses does not count as a foreign write, unless another
// process wrote.
func TestLargePlan(t *testing.T) {
	needNFT(t)
	t.Parallel()
	r := newRig(t, ipv4Config(), netlab.Topology{Pods: 1})
	r.observed()
	have := map[backends.ID]backends.Item{}
	for _, generation := range []int{0, 1} {
		var entries []*dataplane.ServicePort
		for n := range 2 * pauseThreshold {
			entries = append(entries, benchEntry(n, generation))
		}
		want := r.desired(entries...)
		r.apply(backendtest.Diff(have, want))
		if r.moved() {
			t.Fatal("weir's own plan counts as a write of another process")
		}
		have = want
	}
	r.nft("delete element ip weir endpoints { 10.96.0.1 . tcp . 80 . 0 }")
	if !r.moved() {
		t.Error("the drift after it was not noticed")
	}
	r.observed()
	r.b.watch.own, r.b.watch.seen = 0, r.b.watch.seen-1 // a commit that the kernel counted, and notified of while the watch paused
	r.apply(backendtest.Diff(map[backends.ID]backends.Item{}, have))
	if !r.moved() {
		t.Error("what was told during the plan was not noticed")
	}
}

// TestCleanup expects that a plan with an empty desired side deletes everything of weir's and nothing foreign.
func TestCleanup(t *testing.T) {
	needNFT(t)
	t.Parallel()
	r := newRig(t, testConfig(), netlab.Topology{Pods: 1})
	r.addForeign()
	foreign := r.foreign()
	r.sync(variety()...)
	r.apply(backendtest.Diff(r.observed(), nil))
	if left := r.observed(); len(left) > 0 {
		t.Errorf("%d items are left", len(left))
	}
	if got := r.nft("list", "ruleset"); r.foreign() != foreign || strings.Contains(got, "cluster-ips") {
		t.Errorf("left: %s", got)
	}
}

// TestConfigChange expects that a Backend of another configuration takes over the objects of its predecessor.
func TestConfigChange(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig(), netlab.Topology{Pods: 1})
	r.sync(variety()...)
	cfg := testConfig()
	cfg.MasqueradeAll, cfg.MasqueradeMark, cfg.TCPBeLiberal = true, 1<<5, true
	cfg.NodePortAddresses = []netip.Addr{netlab.NodeIPv4}
	cfg.LocalDetector = dataplane.LocalDetector{Interface: "cni0"}
	r.use(cfg)
	if p := r.sync(variety()...); p.Empty() {
		t.Error("nothing to change")
	}
	r.use(ipv4Config())
	r.sync(func() (v4 []*dataplane.ServicePort) {
		for _, e := range variety() {
			if e.Key.Family == dataplane.IPv4 {
				v4 = append(v4, e)
			}
		}
		return v4
	}()...)
}

// smallBatches is a Kernel that accepts small transactions only.
type smallBatches struct {
	nfnl.Kernel
	limit int
}

type smallBatchConn struct {
	nfnl.Conn
	limit int
}

func (k smallBatches) Dial() (nfnl.Conn, error) {
	c, err := k.Kernel.Dial()
	return smallBatchConn{c, k.limit}, err
}

func (k smallBatches) Listen(own nfnl.Conn, arrived chan<- struct{}) (nfnl.Listener, error) {
	return k.Kernel.Listen(own.(smallBatchConn).Conn, arrived)
}

func (c smallBatchConn) MaxBatch() int { return c.limit }

// TestRandomChanges applies a sequence of random changes, each as the difference alone, in one transaction or in many.
// After each it expects the state that programming everything would have made.
func TestRandomChanges(t *testing.T) {
	for _, limit := range []int{0, 3000} {
		t.Run(fmt.Sprintf("limit %d", limit), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, testConfig(), netlab.Topology{Pods: 1})
			if limit > 0 {
				r.b.watch.kernel = smallBatches{nfnl.Netlink{}, limit}
				r.in(func() error { _ = r.b.Close(); _, err := r.b.Moved(context.Background()); return err })
			}
			rnd := seed.Rand(t)
			have := map[backends.ID]backends.Item{}
			live := map[int]*dataplane.ServicePort{}
			for step := range 120 {
				for range 1 + rnd.IntN(4) {
					n := rnd.IntN(12)
					if delete(live, n); rnd.IntN(4) > 0 {
						live[n] = randomEntry(rnd, n)
					}
				}
				var entries []*dataplane.ServicePort
				for n := range 12 {
					if live[n] != nil {
						entries = append(entries, live[n])
					}
				}
				want := r.desired(entries...)
				r.apply(backendtest.Diff(have, want))
				if got := r.observed(); !reflect.DeepEqual(texts(got), texts(want)) {
					t.Fatalf("step %d: the kernel differs:\n%s", step, backendtest.Diff(got, want))
				}
				have = want
			}
		})
	}
}

// TestRandomDrift expects Reread to find the same as a full read, after random foreign writes before and after weir's
// own changes.
func TestRandomDrift(t *testing.T) {
	needNFT(t)
	t.Parallel()
	r := newRig(t, testConfig(), netlab.Topology{Pods: 1})
	rnd := seed.Rand(t)
	has := map[backends.ID]backends.Item{}
	sync := func() {
		var entries []*dataplane.ServicePort
		for n := range 8 {
			if rnd.IntN(4) > 0 {
				entries = append(entries, randomEntry(rnd, n))
			}
		}
		want := r.desired(entries...)
		r.apply(backendtest.Diff(has, want))
		has = want
	}
	sync()
	r.observed()
	for step := range 40 {
		if rnd.IntN(2) == 0 {
			r.nft(randomWrite(rnd))
			r.moved()
		}
		if rnd.IntN(2) == 0 {
			sync()
		}
		r.nft(randomWrite(rnd))
		r.moved()
		got, ok := r.reread(has)
		if now := r.observed(); !ok || !reflect.DeepEqual(texts(got), texts(now)) {
			t.Fatalf("step %d: what was touched is known: %v\n%s", step, ok, backendtest.Diff(got, now))
		}
		has = got
	}
}

// randomWrite returns a write that succeeds in every state.
func randomWrite(rnd *rand.Rand) string {
	front := fmt.Sprintf("10.96.0.%d . tcp . 80", 1+2*rnd.IntN(5))
	port := fmt.Sprintf("tcp . %d", 30000+2*rnd.IntN(5))
	remove := func(set, key, value string) string {
		return fmt.Sprintf("add element ip weir %s { %s%s }; delete element ip weir %[1]s { %[2]s }", set, key, value)
	}
	writes := []string{
		"flush map ip weir services", "flush map ip weir endpoints; flush set ip weir cluster-ips", "flush map ip weir sticky-slots",
		"flush map ip weir no-endpoints; add element ip weir no-endpoints { " + front + " : drop }",
		"flush map ip weir node-ports; add element ip weir node-ports { " + port + " : drop }",
		"flush map ip weir endpoints; add element ip weir endpoints { " + front + " . 0x1 : 10.9.9.9 . 99 }",
		"add rule ip weir services accept", "flush chain ip6 weir unserved", "flush set ip weir allowed-sources",
		"flush set ip weir hairpin; add element ip weir hairpin { 10.9.9.9 . 10.9.9.8, 10.9.9.7 . 10.9.9.7 }",
		"flush map ip6 weir services; add element ip6 weir services { * : drop }",
		remove("cluster-ips", "10.96.0.1", ""), "add set ip weir mine { type ipv4_addr; }",
	}
	var script []string
	for range 1 + rnd.IntN(3) {
		script = append(script, writes[rnd.IntN(len(writes))])
	}
	return strings.Join(script, "; ")
}

func texts(items map[backends.ID]backends.Item) map[backends.ID]string {
	out := make(map[backends.ID]string, len(items))
	for id, i := range items {
		out[id] = i.String()
	}
	return out
}

func randomEntry(rnd *rand.Rand, n int) *dataplane.ServicePort {
	w := worlds[n%2]
	e := w.entry(n+1, protocols[n%3])
	for i := range rnd.IntN(7) {
		if rnd.IntN(3) == 0 {
			continue
		}
		e.Endpoints = append(e.Endpoints, dataplane.Endpoint{
			Addr: netip.AddrPortFrom(w.pod(i+1), uint16(80+rnd.IntN(2))), Cluster: rnd.IntN(5) > 0, Local: rnd.IntN(2) > 0,
			Remote: rnd.IntN(3) == 0, Weight: uint16(rnd.IntN(4)),
		})
	}
	e.HasEndpoints = len(e.Endpoints) > 0
	e.InternalLocal, e.ExternalLocal = rnd.IntN(4) == 0, rnd.IntN(3) == 0
	if rnd.IntN(3) == 0 {
		e.NodePort = uint16(30000 + n)
	}
	if rnd.IntN(3) == 0 {
		e.Affinity = time.Duration(1+rnd.IntN(2)) * time.Hour
	}
	base := w.external.AsSlice()
	base[len(base)-1] = byte(100 + n)
	own, _ := netip.AddrFromSlice(base)
	if rnd.IntN(3) == 0 {
		e.ExternalIPs = []netip.Addr{own}
	}
	if rnd.IntN(3) == 0 {
		e.LoadBalancerIPs = []netip.Addr{own}
		for range rnd.IntN(4) {
			p := netip.PrefixFrom(w.pod(rnd.IntN(200)), 8*addrLen(w.fam)-rnd.IntN(8)).Masked()
			e.SourceRanges = append(e.SourceRanges, p)
		}
	}
	return e
}

// TestStalePlan applies plans whose starting point is outdated.
func TestStalePlan(t *testing.T) {
	needNFT(t)
	t.Parallel()
	r := newRig(t, testConfig(), netlab.Topology{Pods: 1})
	entries := variety()
	r.sync(entries...)
	want := r.desired(entries[1:]...)
	p := backendtest.Diff(r.observed(), want)
	r.nft("flush map ip weir endpoints; flush map ip weir services; delete table ip6 weir")
	r.apply(p) // deletes what no longer exists
	r.apply(p) // again: everything is done already
	r.apply(backendtest.Diff(r.observed(), want))
	r.settled(want)
	r.apply(creation(want)) // creates what exists
	r.settled(want)
}

// TestRefused expects the Result to name the refused change, and the other changes to be in force.
func TestRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t, testConfig(), netlab.Topology{Pods: 1})
	entries := variety()
	r.sync(entries[1:]...)
	want := r.desired(entries...)
	p := backendtest.Diff(r.observed(), want)
	key := addrFront(netip.MustParseAddr("10.96.7.7"), dataplane.TCP, 80)
	bad := newFrontItem(key, []element{{elementKey: elementKey{set: services}, verdict: gotoChain("no-such-chain")}})
	p.Changes = append(p.Changes, backends.Change{Op: backends.Create, ID: bad.ID(), New: bad})
	res := r.b.Apply(context.Background(), p)
	if res.Err != nil || len(res.Refused) != 1 || res.Refused[bad.ID()] == nil {
		t.Fatalf("%v, refused %v", res.Err, res.Refused)
	}
	r.settled(want)
}

// TestSplit uses a socket that accepts only small batches. At no moment between two transactions may a Service be
// missing that existed before and after, or be half programmed.
func TestSplit(t *testing.T) {
	t.Parallel()
	r := newRig(t, ipv4Config(), netlab.Topology{Pods: 1})
	have := map[backends.ID]backends.Item{}
	var entries []*dataplane.ServicePort
	for n := range 300 {
		entries = append(entries, benchEntry(n, 0))
	}
	want := r.desired(entries...)
	a := newAssembly(backendTable, 20_000, false)
	batches, err := a.batches(backendtest.Diff(have, want).Changes)
	if err != nil {
		t.Fatal(err)
	}
	if len(batches) < 5 {
		t.Fatalf("%d transactions", len(batches))
	}
	for i, b := range batches {
		if n := nfnl.BatchSize(b); n > 20_000 {
			t.Errorf("transaction %d has %d bytes", i, n)
		}
		if err := r.b.conn.Commit(context.Background(), b); err != nil {
			t.Fatal(err)
		}
		for id, item := range r.observed() {
			if want[id] == nil || want[id].String() != item.String() {
				t.Fatalf("after transaction %d: %s", i, item)
			}
		}
	}
	r.settled(want)
}

func TestProbe(t *testing.T) {
	netlab.Require(t)
	if err := Probe(context.Background()); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Probe(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}
