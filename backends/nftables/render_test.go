package nftables

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/backends"
)

func TestSlotWeights(t *testing.T) {
	for _, row := range []struct{ weights, want []int }{
		{nil, []int{}},
		{[]int{1, 1, 1}, []int{1, 1, 1}},
		{[]int{7, 7}, []int{1, 1}},
		{[]int{30, 10, 0}, []int{3, 1, 0}},
		{[]int{0, 0}, []int{0, 0}},
		{[]int{100, 200, 300}, []int{1, 2, 3}},
		{[]int{65535, 1}, []int{256, 1}},
		{[]int{997, 991, 1}, []int{128, 128, 1}},
	} {
		eps := make([]backends.Endpoint, len(row.weights))
		for i, w := range row.weights {
			eps[i].Weight = uint16(w)
		}
		if got := slotWeights(eps); !reflect.DeepEqual(got, row.want) {
			t.Errorf("%v: %v, want %v", row.weights, got, row.want)
		}
	}
	many := make([]backends.Endpoint, 1000)
	for i := range many {
		many[i].Weight = 5
	}
	if g, err := newGroup(many, 0, 0); err != nil || len(g.slots) != 1000 {
		t.Errorf("1000 endpoints of equal weight: %d slots, %v", len(g.slots), err)
	}
}

func TestShapeNames(t *testing.T) {
	for _, s := range []shape{
		{kind: kindPick, slots: 1}, {kind: kindCluster, slots: 5}, {kind: kindExternal, slots: 256, timeout: time.Hour},
		{kind: kindLocal, slots: 5, local: 2}, {kind: kindLocal, slots: 5}, {kind: kindLocal, local: 3, timeout: time.Second},
		{scope: nodePortScope, kind: kindLocal, slots: 1, local: 1, timeout: 3 * time.Hour},
	} {
		if got, ok := parseShape(s.name()); !ok || got != s {
			t.Errorf("%s: %+v, %v", s.name(), got, ok)
		}
	}
	for _, name := range []string{"", "services", "cluster-0", "cluster-01", "cluster-5-of-3", "local-2", "cluster-99999999999999999999", "pick-1-sticky-0s"} {
		if s, ok := parseShape(name); ok {
			t.Errorf("%q is taken for %+v", name, s)
		}
	}
}

func TestIdentities(t *testing.T) {
	at := func(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
	g := group{slots: []netip.AddrPort{at("10.0.0.1:80"), at("10.0.0.2:80"), at("10.0.0.2:80")}}
	fewer := group{slots: []netip.AddrPort{at("10.0.0.2:80")}}
	if g.identities()[at("10.0.0.2:80")] != fewer.identities()[at("10.0.0.2:80")] {
		t.Error("an identity depends on the other endpoints")
	}
	local := group{slots: g.slots, offset: localSlots, seed: 2}
	for a, id := range local.identities() {
		if g.identities()[a] == id {
			t.Errorf("%s has the same identity for both policies", a)
		}
	}
}

func TestDisjoint(t *testing.T) {
	var in []netip.Prefix
	for _, s := range []string{"10.0.0.0/8", "10.1.0.0/16", "10.0.0.0/8", "192.0.2.0/25", "192.0.2.128/25"} {
		in = append(in, netip.MustParsePrefix(s))
	}
	want := []netip.Prefix{in[0], in[3], in[4]}
	if got := disjoint(in); !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestRenderRefuses(t *testing.T) {
	b := New(testConfig())
	for want, change := range map[string]func(*backends.Entry){
		`clusterIP "invalid IP" is not an IPv4 address`: func(e *backends.Entry) { e.ClusterIP = netip.Addr{} },
		"port 0 cannot be served":                       func(e *backends.Entry) { e.Port = 0 },
		`clusterIP "::1" is not an IPv4 address`:        func(e *backends.Entry) { e.ClusterIP = netip.IPv6Loopback() },
		"at most 65535 can be programmed": func(e *backends.Entry) {
			e.Endpoints = slices.Repeat([]backends.Endpoint{{Addr: netip.MustParseAddrPort("10.0.0.1:80"), Cluster: true, Weight: 1}}, maxSlots+1)
		},
	} {
		e := entry(backends.IPv4, 1, backends.TCP)
		change(e)
		if _, err := b.Render(e); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestLongNamesAreCut(t *testing.T) {
	k := backends.PortKey{Service: backends.ServiceName{Namespace: strings.Repeat("n", 63), Name: strings.Repeat("s", 63)}, Port: strings.Repeat("p", 15)}
	if n := len(comment(k)); n != maxComment-2 {
		t.Errorf("a comment of %d bytes", n)
	}
}

// FuzzObserved: whatever bytes stand in an attribute, reading them does not panic.
func FuzzObserved(f *testing.F) {
	e := newEncoder(backends.IPv4)
	e.element(rawElement{key: make([]byte, 16), value: make([]byte, 8), comment: "default/web"}, true)
	f.Add(e.b[4:])
	exprs, err := (builder{backends.IPv4, &backends.Config{}}).base()[2].rules[1].expressions(backends.IPv4)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(exprs)
	f.Fuzz(func(t *testing.T, data []byte) {
		x := parseElement(data)
		o := &observer{b: New(testConfig()), table: table{fam: backends.IPv4}}
		fronts := map[frontKey][]element{}
		for id := range sets {
			if i := o.element(setID(id), x, fronts); i != nil {
				_ = i.String()
			}
		}
		for k, elements := range fronts {
			_ = newFrontItem(k, elements).String()
		}
		_ = foreignRule(data, canonicalRule(data, nil))
		_, _ = parseSet(data)
		_, _ = parseChain(data)
		_ = ackError(reply{data: data, flags: 0x200})
		new(touched).note(subsys(unix.NFT_MSG_NEWSETELEM), data, backendTable)
	})
}
