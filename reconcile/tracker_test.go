package reconcile

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"

	"weir/backends"
	"weir/backends/dataplane"
)

// textItem is deliberately not comparable: a backend's items need not be.
type textItem struct {
	id   backends.ID
	text []string
}

func (i textItem) ID() backends.ID { return i.id }
func (i textItem) String() string  { return string(i.id) + " " + strings.Join(i.text, "\n") }

func text(id, content string) backends.Item { return textItem{backends.ID(id), []string{content}} }

func key(name string) dataplane.ServicePortName {
	return dataplane.ServicePortName{Service: dataplane.ServiceName{Namespace: "default", Name: name}, Protocol: dataplane.TCP, Family: dataplane.IPv4}
}

// naive is the Tracker written down without any thought of speed.
type naive struct {
	wants    map[dataplane.ServicePortName]map[backends.ID]backends.Item
	base     map[backends.ID]backends.Item
	observed map[backends.ID]string
}

func (n naive) desired() map[backends.ID]string {
	want := map[backends.ID]string{}
	keys := slices.SortedFunc(maps.Keys(n.wants), dataplane.ServicePortName.Compare)
	slices.Reverse(keys) // the first one has the last word, but for the scaffolding
	for _, k := range keys {
		for id, i := range n.wants[k] {
			want[id] = i.String()
		}
	}
	for id, i := range n.base {
		want[id] = i.String()
	}
	return want
}

func (n naive) pending() []string {
	want := n.desired()
	var out []string
	for id, w := range want {
		if n.observed[id] != w {
			out = append(out, fmt.Sprintf("%s: %q -> %q", id, n.observed[id], w))
		}
	}
	for id, o := range n.observed {
		if _, ok := want[id]; !ok {
			out = append(out, fmt.Sprintf("%s: %q -> %q", id, o, ""))
		}
	}
	slices.Sort(out)
	return out
}

func pendingOf(t *tracker) []string {
	text := func(i backends.Item) string {
		if i == nil {
			return ""
		}
		return i.String()
	}
	var out []string
	for _, c := range t.Pending(nil) {
		out = append(out, fmt.Sprintf("%s: %q -> %q", c.ID, text(c.Old), text(c.New)))
	}
	slices.Sort(out)
	return out
}

func TestTrackerAgainstNaiveModel(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		tr := newTracker()
		model := naive{wants: map[dataplane.ServicePortName]map[backends.ID]backends.Item{}, base: map[backends.ID]backends.Item{}, observed: map[backends.ID]string{}}
		someItems := func() (list []backends.Item, byID map[backends.ID]backends.Item) {
			byID = map[backends.ID]backends.Item{}
			for range rng.IntN(5) {
				i := text(fmt.Sprint("item", rng.IntN(8)), fmt.Sprint(rng.IntN(3)))
				byID[i.ID()] = i
			}
			return slices.Collect(maps.Values(byID)), byID
		}
		for step := range 400 {
			k := key(fmt.Sprint("svc", rng.IntN(5)))
			switch rng.IntN(7) {
			case 0, 1, 2:
				list, byID := someItems()
				if err := tr.Set(k, list); err != nil {
					t.Fatal(err)
				}
				model.wants[k] = byID
			case 3:
				tr.Remove(k)
				delete(model.wants, k)
			case 4:
				list, byID := someItems()
				if err := tr.SetBase(list); err != nil {
					t.Fatal(err)
				}
				model.base = byID
			case 5:
				list, _ := someItems()
				tr.ReplaceObserved(list)
				clear(model.observed)
				for _, i := range list {
					model.observed[i.ID()] = i.String()
				}
			case 6:
				var some []backends.Change
				for _, c := range tr.Pending(nil) {
					if rng.IntN(2) == 0 {
						some = append(some, c)
						delete(model.observed, c.ID)
						if c.New != nil {
							model.observed[c.ID] = c.New.String()
						}
					}
				}
				tr.Confirm(some)
			}
			if got, want := pendingOf(tr), model.pending(); !slices.Equal(got, want) {
				t.Fatalf("seed %d step %d: pending\n%q\nwant\n%q", seed, step, got, want)
			}
			if got, want := tr.Len(), len(model.desired()); got != want {
				t.Fatalf("seed %d step %d: %d desired, want %d", seed, step, got, want)
			}
		}
		tr.Clear()
		tr.ReplaceObserved(nil)
		if len(tr.records)+len(tr.pending)+len(tr.disputed)+len(tr.owners) > 0 {
			t.Fatalf("seed %d: an empty tracker still holds something", seed)
		}
	}
}

func TestTrackerNamesOwners(t *testing.T) {
	tr := newTracker()
	shared := text("vip", "x")
	for _, name := range []string{"b", "a"} {
		if err := tr.Set(key(name), []backends.Item{shared}); err != nil {
			t.Fatal(err)
		}
	}
	owners := func() []dataplane.ServicePortName {
		t.Helper()
		p := tr.Pending(nil)
		if len(p) != 1 {
			t.Fatalf("pending: %v", p)
		}
		return p[0].Owners
	}
	if got := owners(); !slices.Equal(got, []dataplane.ServicePortName{key("a"), key("b")}) {
		t.Errorf("owners of the create: %v", got)
	}
	tr.Confirm(tr.Pending(nil))
	tr.Remove(key("a"))
	if p := tr.Pending(nil); len(p) != 0 {
		t.Errorf("an item with an owner left is to go: %v", p)
	}
	tr.Remove(key("b"))
	if got := owners(); !slices.Equal(got, []dataplane.ServicePortName{key("b")}) {
		t.Errorf("owners of the delete: %v", got)
	}
	tr.Confirm(tr.Pending(nil))
	tr.ReplaceObserved([]backends.Item{text("alien", "x")})
	if got := owners(); len(got) != 0 {
		t.Errorf("owners of what somebody else put there: %v", got)
	}
}

func TestTrackerConflictDoesNotDependOnOrder(t *testing.T) {
	for _, order := range [][]string{{"a", "b", "c"}, {"c", "b", "a"}, {"b", "a", "c"}} {
		tr := newTracker()
		for _, name := range order {
			content := name
			if name == "c" {
				content = "a" // agrees with the winner
			}
			if err := tr.Set(key(name), []backends.Item{text("front", content)}); err != nil {
				t.Fatal(err)
			}
		}
		got := tr.Conflicts()
		if len(got) != 1 || got[0].ID != "front" || got[0].Winner != key("a") || !slices.Equal(got[0].Losers, []dataplane.ServicePortName{key("b")}) {
			t.Errorf("order %v: conflicts %v", order, got)
		}
		tr.Remove(key("a"))
		if p := tr.Pending(nil); len(p) != 1 || p[0].New.String() != "front b" {
			t.Errorf("order %v: without the winner: %v", order, p)
		}
		tr.Remove(key("c"))
		if got := tr.Conflicts(); len(got) != 0 {
			t.Errorf("order %v: conflicts with one owner: %v", order, got)
		}
	}
}

func TestTrackerRefusesTwoItemsWithOneID(t *testing.T) {
	tr := newTracker()
	if err := tr.Set(key("a"), []backends.Item{text("x", "1"), text("x", "2")}); err == nil {
		t.Error("no error")
	}
	if tr.Len() != 0 || len(tr.Pending(nil)) != 0 {
		t.Error("something was changed")
	}
	if err := tr.Set(key("a"), []backends.Item{text("x", "1"), text("x", "1")}); err != nil {
		t.Error(err)
	}
}

// TestTrackerMemory holds 10,000 Services as a backend would render them, both sides, and counts what the Tracker adds to
// one copy of the items.
func TestTrackerMemory(t *testing.T) {
	const services, limit = 10_000, 25 << 20
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	tr := newTracker()
	var observed []backends.Item
	for n := range services {
		items := serviceItems(n)
		if err := tr.Set(key(fmt.Sprint("service-", n)), items); err != nil {
			t.Fatal(err)
		}
		observed = append(observed, serviceItems(n)...) // as a read makes them: other strings with the same content
	}
	tr.ReplaceObserved(observed)
	observed = nil
	if p := tr.Pending(nil); len(p) != 0 {
		t.Fatalf("%d pending", len(p))
	}
	used := heap() - before
	t.Logf("%.1f MB for %d services, %d items", float64(used)/(1<<20), services, tr.Len())
	if used > limit {
		t.Errorf("%d bytes, the limit is %d", used, limit)
	}
	runtime.KeepAlive(tr)
}

// serviceItems returns a chain with five endpoints, a front rule and a shared object.
func serviceItems(n int) []backends.Item {
	var chain strings.Builder
	for i := range 5 {
		fmt.Fprintf(&chain, "-A WEIR-SVC-%08d -p tcp -m statistic --mode random --probability 0.2 -j DNAT --to-destination 10.1.%d.%d:8080\n", n, n%256, i)
	}
	return []backends.Item{
		text(fmt.Sprintf("chain/WEIR-SVC-%08d", n), chain.String()),
		text(fmt.Sprintf("front/10.96.%d.%d:80", n/256, n%256), fmt.Sprintf("-j WEIR-SVC-%08d", n)),
		text("spread/5", "five"),
	}
}

func BenchmarkTrackerChange(b *testing.B) {
	for _, n := range []int{1_000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			tr := newTracker()
			for i := range n {
				_ = tr.Set(key(fmt.Sprint(i)), serviceItems(i))
			}
			tr.Confirm(tr.Pending(nil))
			for i := 0; b.Loop(); i++ {
				items := serviceItems(7)
				items[0] = text(string(items[0].ID()), fmt.Sprint(i))
				_ = tr.Set(key("7"), items)
				tr.Confirm(tr.Pending(nil))
			}
		})
	}
}
