package nftables

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/backends/dataplane"
	"weir/backends/nfnl"
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
		eps := make([]dataplane.Endpoint, len(row.weights))
		for i, w := range row.weights {
			eps[i].Weight = uint16(w)
		}
		if got := slotWeights(eps); !reflect.DeepEqual(got, row.want) {
			t.Errorf("%v: %v, want %v", row.weights, got, row.want)
		}
	}
	many := make([]dataplane.Endpoint, 1000)
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
	for want, change := range map[string]func(*dataplane.ServicePort){
		`clusterIP "invalid IP" is not an IPv4 address`: func(e *dataplane.ServicePort) { e.ClusterIP = netip.Addr{} },
		"port 0 cannot be served":                       func(e *dataplane.ServicePort) { e.Port = 0 },
		`clusterIP "::1" is not an IPv4 address`:        func(e *dataplane.ServicePort) { e.ClusterIP = netip.IPv6Loopback() },
		"at most 65535 can be programmed": func(e *dataplane.ServicePort) {
			e.Endpoints = slices.Repeat([]dataplane.Endpoint{{Addr: netip.MustParseAddrPort("10.0.0.1:80"), Cluster: true, Weight: 1}}, maxSlots+1)
		},
	} {
		e := entry(dataplane.IPv4, 1, dataplane.TCP)
		change(e)
		if _, err := b.Render(e); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestLongNamesAreCut(t *testing.T) {
	k := dataplane.ServicePortName{Service: dataplane.ServiceName{Namespace: strings.Repeat("n", 63), Name: strings.Repeat("s", 63)}, Port: strings.Repeat("p", 15)}
	if n := len(comment(k)); n != maxComment-2 {
		t.Errorf("a comment of %d bytes", n)
	}
}

// FuzzObserved expects that parsing an attribute does not panic, whatever its bytes, and that the result can be packed
// and unpacked.
func FuzzObserved(f *testing.F) {
	add := nfnl.AddTo(table{dataplane.IPv4, backendTable}.kernel(), sets[endpoints].name)
	add.Append(nfnl.Element{Key: make([]byte, 16), Value: make([]byte, 8), Comment: "default/web"})
	f.Add(add.Messages()[0].Data)
	rule, err := (builder{fam: dataplane.IPv4, cfg: &dataplane.Config{}}).base()[2].rules[1].encode(dataplane.IPv4, "services")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(rule.Expressions)
	f.Fuzz(func(t *testing.T, data []byte) {
		fronts := collected{}
		read := func(x nfnl.Element) {
			for id := range sets {
				if i := sortElement(dataplane.IPv4, setID(id), x, fronts); i != nil {
					_ = i.String()
				}
			}
		}
		read(nfnl.ParseElement(data))
		if len(data) >= 4 {
			nfnl.ParseElements(data[4:], read)
		}
		for k := range fronts {
			elements := fronts.elements(nil, k)
			i := newFrontItem(k, elements)
			if got := slices.Collect(i.elements()); i.key() != k || !slices.Equal(got, elements) {
				t.Errorf("%v %v, packed and unpacked: %v %v", k, elements, i.key(), got)
			}
			_ = i.String()
		}
		_ = foreignRule(nfnl.ParseRule(data))
		_ = foreignRule(nfnl.Rule{Expressions: data})
		_ = nfnl.ParseSet(data)
		_, _ = nfnl.ParseChain(data)
		new(touched).note(nfnl.ParseNotification(unix.NFT_MSG_NEWSETELEM, data), backendTable)
	})
}

// TestKeysThatDoNotFit expects that an element whose key is of another length than its set's, as only another program's
// set has them, is passed over.
func TestKeysThatDoNotFit(t *testing.T) {
	for _, f := range []dataplane.Family{dataplane.IPv4, dataplane.IPv6} {
		for id := range sets {
			if sets[id].dynamic { // never read
				continue
			}
			want := sets[id].definition(f)
			for n := range 64 {
				fronts := collected{}
				i := sortElement(f, setID(id), nfnl.Element{Key: make([]byte, n)}, fronts)
				if i == nil {
					continue
				}
				_ = i.String()
				if n != int(want.KeyLen) {
					t.Errorf("%s: a key of %d bytes in place of %d is %v", sets[id].name, n, want.KeyLen, i)
				}
			}
		}
	}
}
