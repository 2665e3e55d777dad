package iptables

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"weir/backends"
	"weir/backends/backendtest"
	"weir/backends/xtables"
)

// redirecting runs the conformance suite on a Backend with its own chain prefix, next to another complete Backend. Each
// is foreign to the other.
type redirecting struct{ harness }

func (h redirecting) Backend() backends.Backend {
	l := New(testConfig(), h.kernel, ToListeners())
	if _, err := h.kernel.Generation(context.Background()); err != nil {
		return unwatched{l}
	}
	return l
}

func (h redirecting) AddForeign(t *testing.T) {
	h.harness.AddForeign(t)
	b := New(testConfig(), h.kernel)
	var plan backends.Plan
	seen := map[backends.ID]bool{}
	add := func(items []backends.Item) {
		for _, i := range items {
			if !seen[i.ID()] {
				seen[i.ID()] = true
				plan.Changes = append(plan.Changes, backends.Change{Op: backends.Create, ID: i.ID(), New: i})
			}
		}
	}
	add(b.Base())
	for _, e := range backendtest.Sample() {
		items, err := b.Render(e)
		if err != nil {
			t.Fatal(err)
		}
		add(items)
	}
	if r := b.Apply(t.Context(), plan); r.Err != nil {
		t.Fatal(r.Err)
	}
}

func (h redirecting) DumpForeign(t *testing.T) string {
	text := ""
	b := New(testConfig(), h.kernel)
	for i, err := range b.Observe(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		text += i.String() + "\n"
	}
	return text
}

func (h redirecting) Drifts() []backendtest.Drift {
	drift := func(name, table, lines string) backendtest.Drift {
		return backendtest.Drift{Name: name, Inject: func(t *testing.T) { restore(t, h.kernel, table, lines) }}
	}
	return []backendtest.Drift{
		drift("NATFlushed", "nat", "-F\n"),
		drift("DispatchFlushed", "nat", "-F WEIR-U-IP\n"),
		drift("HookGone", "nat", "-D OUTPUT -m mark ! --mark 0x1070 -j WEIR-U-SERVICES\n"),
		drift("ForeignChain", "nat", ":WEIR-U-SVC-STALE - [0:0]\n-A WEIR-U-SVC-STALE -j RETURN\n"),
	}
}

func TestChainsConformance(t *testing.T) {
	for name, kernel := range map[string]func(*testing.T) xtables.Kernel{
		"nft":    func(t *testing.T) xtables.Kernel { return realKernel(t, xtables.NFT) },
		"legacy": func(t *testing.T) xtables.Kernel { return realKernel(t, xtables.Legacy) },
	} {
		t.Run(name, func(t *testing.T) {
			backendtest.Run(t, func(t *testing.T) backendtest.Harness {
				return redirecting{harness{&refusing{Kernel: kernel(t)}}}
			})
		})
	}
}

// TestChainsDifferByPrefixOnly expects the same chain names under every prefix, so that a Backend takes over the chains
// of an earlier version. The rules that drop what others answer come on top, and nothing is masqueraded or forwarded: no
// packet to a listener leaves the node.
func TestChainsDifferByPrefixOnly(t *testing.T) {
	rename := strings.NewReplacer(" WEIR-", " WEIR-U-", ":WEIR-", ":WEIR-U-")
	for _, bpf := range []bool{true, false} {
		k := xtables.NewFake()
		k.WithoutBPF = !bpf
		plain, redirect := New(testConfig(), k), New(testConfig(), k, ToListeners())
		want := map[string]string{}
		for id, i := range desired(t, plain, entries()) {
			want[rename.Replace(string(id))] = rename.Replace(i.String())
		}
		for _, at := range []string{"ip4 nat ", "ip6 nat "} {
			mark, _, _ := strings.Cut(want[at+"WEIR-U-MASQUERADE"], "\n-A WEIR-U-MASQUERADE -j MASQUERADE")
			want[at+"WEIR-U-MASQUERADE"] = mark
			want[at+"WEIR-U-POSTROUTING"] = at + "WEIR-U-POSTROUTING\n-A WEIR-U-POSTROUTING -m mark --mark 0x4000/0x4000 -m connlabel --label \"119\" -j WEIR-U-MASQUERADE"
		}
		got := texts(desired(t, redirect, entries()))
		for _, at := range []string{"ip4 filter ", "ip6 filter "} {
			forward := at + "WEIR-U-FORWARD"
			want[forward] = strings.Replace(want[forward], "\n-A WEIR-U-FORWARD -m mark --mark 0x4000/0x4000 -m connlabel --label \"119\" -j ACCEPT", "", 1)
			output, lead := at+"WEIR-U-OUTPUT", "\n-A WEIR-U-OUTPUT "
			want[output] += lead + "-p tcp -m tcp --tcp-flags SYN,ACK SYN,ACK -m mark ! --mark 0x4000/0x4000 -m conntrack --ctstate DNAT --ctdir REPLY -j WEIR-U-LISTENERS" +
				lead + "-p udp -m mark ! --mark 0x4000/0x4000 -m conntrack --ctstate DNAT --ctdir REPLY -j WEIR-U-LISTENERS"
			want[at+"WEIR-U-LISTENERS"] = got[at+"WEIR-U-LISTENERS"]
		}
		for _, e := range entries() {
			for _, ep := range e.Endpoints {
				rule := fmt.Sprintf("%s filter WEIR-U-LISTENERS -s %s -p %[3]s -m %[3]s --sport %d -j DROP",
					xtables.Tag(e.Key.Family), xtables.HostText(ep.Addr.Addr()), xtables.ProtocolName(e.Key.Protocol), ep.Addr.Port())
				want[rule] = rule
			}
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("renamed (-), rendered (+):\n%s", d)
		}
	}
}

// TestWithoutLabels expects rules that ask for a translation where the kernel has no labels for connections.
func TestWithoutLabels(t *testing.T) {
	k := xtables.NewFake()
	k.WithoutLabels = true
	var all strings.Builder
	for _, i := range desired(t, New(testConfig(), k), entries()) {
		all.WriteString(i.String() + "\n")
	}
	for _, target := range []string{"WEIR-MASQUERADE", "ACCEPT"} {
		if want := "-m mark --mark 0x4000/0x4000 -m conntrack --ctstate DNAT -j " + target + "\n"; !strings.Contains(all.String(), want) {
			t.Errorf("there is no rule %q", want)
		}
	}
	if strings.Contains(all.String(), "connlabel") {
		t.Error("a rule needs labels")
	}
}

// TestChainsAreApart expects no chain to belong to two Backends.
func TestChainsAreApart(t *testing.T) {
	plain, redirect := namesOf(ownPrefix), namesOf(redirectPrefix)
	for chain, want := range map[string][2]bool{
		"WEIR-SERVICES": {true, false}, "WEIR-IP-2A": {true, false}, "WEIR-U-SERVICES": {false, true}, "WEIR-U-SVC-A": {false, true},
		"WEIR-IPVS-FILTER": {false, false}, "DOCKER": {false, false}, "MY_WEIR-": {false, false},
	} {
		if got := [2]bool{plain.owned(chain), redirect.owned(chain)}; got != want {
			t.Errorf("%s is owned by %v, want %v", chain, got, want)
		}
	}
}
