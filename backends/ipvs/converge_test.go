package ipvs

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weir/backends"
	"weir/backends/backendtest"
	"weir/backends/dataplane"
	"weir/backends/xtables"
)

// TestSecondPlanIsEmpty also covers the way back: without Services only the Items of Base are left.
func TestSecondPlanIsEmpty(t *testing.T) {
	eachKernel(t, func(t *testing.T, r *rig) {
		b := r.backend(testSettings())
		if p := b.converge(t, backendtest.Sample()...); p.Empty() {
			t.Fatal("nothing was planned for an empty kernel")
		}
		if p := b.plan(t, backendtest.Sample()...); !p.Empty() {
			t.Errorf("after the apply there is still to do:\n%s", p)
		}
		b.converge(t)
		if p := b.plan(t); !p.Empty() {
			t.Errorf("after the Services went there is still to do:\n%s", p)
		}
	})
}

// TestRulesAreConstant expects that a Service never adds an iptables rule or a set, unless weir answers itself: then there is no
// virtual server.
func TestRulesAreConstant(t *testing.T) {
	b := fakeRig(t).backend(testSettings())
	for _, e := range backendtest.Sample() {
		items, err := b.Render(e)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range items {
			switch i.(type) {
			case xtables.Item:
				if !e.Answered {
					t.Errorf("%s adds %s", e.Key, i)
				}
			case Set:
				t.Errorf("%s adds %s", e.Key, i)
			case Server, Destination:
				if e.Answered {
					t.Errorf("%s, which weir answers, adds %s", e.Key, i)
				}
			}
		}
	}
}

// TestLoopbackNodePorts expects a warning and no Items, because IPVS cannot serve node ports on loopback addresses.
func TestLoopbackNodePorts(t *testing.T) {
	cfg := testConfig()
	cfg.NodePortAddresses = []netip.Addr{netip.MustParseAddr("127.0.0.1"), cfg.NodeAddresses[0]}
	if w := Warnings(cfg); len(w) > 0 {
		t.Errorf("nobody asked, and weir says %q", w)
	}
	cfg.LocalhostNodePorts = true
	if w := Warnings(cfg); len(w) != 1 || !strings.Contains(w[0], "iptables.localhostNodePorts") {
		t.Errorf("weir says %q", w)
	}
	e := web(1)
	e.NodePort = 30080
	items, err := New(cfg, testSettings(), nil, nil).Render(e)
	if err != nil {
		t.Fatal(err)
	}
	served := 0
	for _, i := range items {
		if s, ok := i.(Server); ok && s.Addr.Port() == e.NodePort {
			served++
			if s.Addr.Addr() != cfg.NodeAddresses[0] {
				t.Errorf("unexpected: %s", s)
			}
		}
	}
	if served != 1 {
		t.Errorf("the node port is served on %d addresses", served)
	}
}

// fussy is a Kernel that refuses the members with one address.
type fussy struct {
	Kernel
	addr string
}

func (k fussy) Put(item backends.Item) error {
	if m, ok := item.(Member); ok && m.Addr.String() == k.addr {
		return unix.EINVAL
	}
	return k.Kernel.Put(item)
}

func (k fussy) PutMembers(members []Member) error {
	if slices.ContainsFunc(members, func(m Member) bool { return m.Addr.String() == k.addr }) {
		return unix.EINVAL
	}
	return k.Kernel.PutMembers(members)
}

// TestOneBadMember expects that, of members that are added at once, only the bad one is refused.
func TestOneBadMember(t *testing.T) {
	eachKernel(t, func(t *testing.T, r *rig) {
		b := r.backend(testSettings())
		entries := backendtest.Sample()
		bad := entries[0].ClusterIP.String()
		b.kernel = fussy{r.kernel, bad}
		refused := b.Apply(t.Context(), b.plan(t, entries...)).Refused
		for id, item := range b.desired(t, entries...) {
			m, ok := item.(Member)
			if is, want := refused[id] != nil, ok && m.Addr.String() == bad; is != want {
				t.Errorf("%s is refused: %v", item, refused[id])
			}
		}
		b.kernel = r.kernel
		if p := b.plan(t, entries...); len(p.Changes) != len(refused) || len(refused) == 0 {
			t.Errorf("%d were refused, and still to do is:\n%s", len(refused), p)
		}
	})
}

// TestPodCIDRAsSaved uses a pod CIDR that ip6tables-save prints as inet_ntop does, unlike netip. Written in any other
// way it would be drift at every sync.
func TestPodCIDRAsSaved(t *testing.T) {
	cfg := testConfig()
	cfg.LocalDetector = dataplane.LocalDetector{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("::1.2.3.0/120")}}
	found := 0
	for _, i := range New(cfg, testSettings(), nil, nil).Base() {
		found += strings.Count(i.String(), "-s ::1.2.3.0/120 ")
	}
	if found != 2 { // in nat and in mangle
		t.Errorf("%d rules match on the pod CIDR as ip6tables-save prints it, want 2", found)
	}
}
