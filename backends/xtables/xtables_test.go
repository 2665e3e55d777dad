package xtables

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	hclog "github.com/hashicorp/go-hclog"

	"weir/backends"
	"weir/backends/backendtest"
	"weir/backends/dataplane"
	"weir/backends/netlab"
)

func TestMain(m *testing.M) { netlab.Main(m) }

var both = []dataplane.Family{dataplane.IPv4, dataplane.IPv6}

// testLayout has chains in two tables, of which WEIR-IP is shared.
var testLayout = Layout{
	Names:  []string{"nat", "filter"},
	Owned:  func(chain string) bool { return strings.HasPrefix(chain, "WEIR-") },
	Shared: func(chain string) bool { return chain == "WEIR-IP" },
}

var testNeeds = Needs{Rules: map[string]string{"the mark match": "-m mark --mark 1/1"}}

func testTables(k Kernel) *Tables { return NewTables(k, both, testLayout) }

// testItems has one of every kind of Item.
func testItems() map[backends.ID]backends.Item {
	items := map[backends.ID]backends.Item{}
	for _, text := range []string{
		"ip4 nat WEIR-A\n-A WEIR-A -p tcp -j WEIR-B\n-A WEIR-A -j WEIR-IP",
		"ip4 nat WEIR-B\n-A WEIR-B -p tcp -m mark --mark 0x1/0x1 -j ACCEPT",
		"ip4 nat WEIR-EMPTY",
		"ip4 nat WEIR-IP",
		"ip4 nat WEIR-IP -d 10.0.0.1/32 -j WEIR-B",
		"ip4 nat WEIR-IP -d 10.0.0.2/32 -j WEIR-EMPTY",
		"ip4 nat PREROUTING -j WEIR-A",
		"ip4 filter WEIR-A\n-A WEIR-A -j RETURN",
		"ip4 filter INPUT -j WEIR-A",
	} {
		items[Item(text).ID()] = Item(text)
	}
	return items
}

// realKernel returns the iptables of a new, empty network namespace.
func realKernel(t testing.TB, mode Mode) Kernel {
	t.Helper()
	netlab.InNamespace(t)
	k, err := Probe(t.Context(), hclog.NewNullLogger(), both, mode, testNeeds)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// eachKernel runs a test on the real kernel by both mechanisms, and on the fake.
func eachKernel(t *testing.T, test func(t *testing.T, k Kernel)) {
	for _, mode := range []Mode{NFT, Legacy} {
		t.Run(string(mode), func(t *testing.T) { test(t, realKernel(t, mode)) })
	}
	t.Run("fake", func(t *testing.T) { test(t, NewFake()) })
}

func restore(t testing.TB, k Kernel, table, lines string) {
	t.Helper()
	if err := k.Restore(t.Context(), dataplane.IPv4, []byte("*"+table+"\n"+lines+"COMMIT\n")); err != nil {
		t.Fatal(err)
	}
}

func observed(t testing.TB, tables *Tables) map[backends.ID]backends.Item {
	t.Helper()
	return backendtest.Observe(t, tables)
}

// converge applies the difference, and demands that no difference remains.
func converge(t testing.TB, tables *Tables, want map[backends.ID]backends.Item) {
	t.Helper()
	if r := tables.Apply(t.Context(), backendtest.Diff(observed(t, tables), want)); r.Err != nil || len(r.Refused) > 0 {
		t.Fatalf("Apply: %+v", r)
	}
	if d := cmp.Diff(texts(want), texts(observed(t, tables))); d != "" {
		t.Fatalf("applied (-), but read back (+):\n%s", d)
	}
}

func texts(items map[backends.ID]backends.Item) map[string]string {
	out := map[string]string{}
	for id, i := range items {
		out[string(id)] = i.String()
	}
	return out
}

// TestTables applies every kind of Item, in both directions, and damages the state in between.
func TestTables(t *testing.T) {
	eachKernel(t, func(t *testing.T, k Kernel) {
		tables, want := testTables(k), testItems()
		converge(t, tables, want)
		for _, lines := range []string{
			"-F\n",
			"-I PREROUTING 1 -j ACCEPT\n",
			"-A PREROUTING -j WEIR-A\n",
			"-A WEIR-IP -j RETURN\n",
			"-A WEIR-EMPTY -j RETURN\n:WEIR-OLD - [0:0]\n-A WEIR-OLD -j WEIR-A\n",
		} {
			restore(t, k, "nat", lines)
			converge(t, tables, want)
		}
		converge(t, tables, nil)
	})
}

// TestStaleUpdate deletes a hook that a Plan moves before the Plan is applied.
func TestStaleUpdate(t *testing.T) {
	eachKernel(t, func(t *testing.T, k Kernel) {
		tables, want := testTables(k), testItems()
		converge(t, tables, want)
		restore(t, k, "nat", "-I PREROUTING 1 -j ACCEPT\n")
		plan := backendtest.Diff(observed(t, tables), want)
		if len(plan.Changes) != 1 || plan.Changes[0].Op != backends.Update {
			t.Fatalf("a hook out of place is repaired by\n%s", plan)
		}
		restore(t, k, "nat", "-D PREROUTING -j WEIR-A\n")
		if r := tables.Apply(t.Context(), plan); r.Err != nil {
			t.Fatal(r.Err)
		}
		if d := cmp.Diff(texts(want), texts(observed(t, tables))); d != "" {
			t.Errorf("wanted (-), but read back (+):\n%s", d)
		}
	})
}

// TestGeneration expects that only transactions of other processes count.
func TestGeneration(t *testing.T) {
	for name, kernel := range map[string]func(*testing.T) Kernel{
		"nft":  func(t *testing.T) Kernel { return realKernel(t, NFT) },
		"fake": func(t *testing.T) Kernel { return NewFake() },
	} {
		t.Run(name, func(t *testing.T) {
			k := kernel(t)
			b := testTables(k)
			generation := func() uint64 {
				g, err := b.generation(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				return g
			}
			start := generation()
			converge(t, b, testItems())
			converge(t, b, nil)
			if g := generation(); g != start {
				t.Errorf("own transactions moved it from %d to %d", start, g)
			}
			restore(t, k, "filter", "-A INPUT -p tcp -j ACCEPT\n")
			if generation() == start {
				t.Error("a foreign transaction did not move it")
			}
		})
	}
	t.Run("legacy", func(t *testing.T) {
		if _, err := testTables(realKernel(t, Legacy)).Moved(t.Context()); err == nil {
			t.Error("legacy claims to know")
		}
	})
}

// TestRereadIsNoObserve expects Moved to report the writes of other processes even if Apply has read the tables since.
func TestRereadIsNoObserve(t *testing.T) {
	k := NewFake()
	tables := testTables(k)
	observed(t, tables)
	restore(t, k, "nat", ":WEIR-IP - [0:0]\n-A WEIR-IP -j RETURN\n")
	plan := backendtest.Diff(nil, testItems())
	plan.Changes = append(plan.Changes, backends.Change{Op: backends.Delete, ID: "ip4 nat WEIR-IP -d 10.0.0.9/32 -j DROP"})
	if r := tables.Apply(t.Context(), plan); r.Err != nil {
		t.Fatal(r.Err)
	}
	if moved, err := tables.Moved(t.Context()); err != nil || !moved {
		t.Errorf("moved %v, %v", moved, err)
	}
}
