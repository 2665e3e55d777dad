package manifest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"weir/backends/dataplane"
	"weir/spec"
)

// TestRandom changes files at random and demands, after each step, that the Set which lived through all of them equals one
// that reads the files for the first time, errors included; that a refused update leaves no trace; and that the Delta
// names the Services that differ and no others.
func TestRandom(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { walk(t, rand.New(rand.NewPCG(seed, 1)), 60) })
	}
}

func walk(t *testing.T, r *rand.Rand, steps int) {
	s := NewSet(Options{})
	good, pending := map[string]string{}, map[string]string{}
	var last *spec.Snapshot
	for step := range steps {
		for range 1 + r.IntN(3) {
			pending[fmt.Sprintf("f%d.yaml", r.IntN(8))] = randomFile(r)
		}
		if r.IntN(4) == 0 { // a revert
			clear(pending)
		}
		before := describeSet(s)
		snap, delta, err := s.Update(context.Background(), spec.Revision{}, toFiles(pending))
		all := map[string]string{}
		for _, m := range []map[string]string{good, pending} {
			for path, text := range m {
				all[path] = text
			}
		}
		fresh := NewSet(Options{})
		want, _, wantErr := fresh.Update(context.Background(), spec.Revision{}, toFiles(all))
		if withoutLines(err) != withoutLines(wantErr) {
			t.Fatalf("step %d: error\n%v\nfrom scratch\n%v", step, err, wantErr)
		}
		if err != nil {
			if problems := (spec.Problems)(nil); !errors.As(err, &problems) {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, describeSet(s)); diff != "" {
				t.Fatalf("step %d: the refused update left a trace:\n%s", step, diff)
			}
			continue
		}
		good, pending = all, map[string]string{}
		if diff := cmp.Diff(describeSet(fresh), describeSet(s)); diff != "" {
			t.Fatalf("step %d: the state differs from that of a fresh Set:\n%s", step, diff)
		}
		compareSnapshots(t, want, snap)
		checkDelta(t, last, snap, delta)
		last = snap
	}
	if last == nil {
		t.Error("no update was accepted")
	}
}

// withoutLines leaves out the first line number of each problem: of a file that an Update did not bring, only the line of
// the object is known, not that of the field.
func withoutLines(err error) string {
	lines := strings.Split(fmt.Sprint(err), "\n")
	for i := range lines {
		lines[i] = leadingLine.ReplaceAllString(lines[i], "$1:")
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

var leadingLine = regexp.MustCompile(`^(\S+):\d+:`)

func toFiles(m map[string]string) []File {
	var files []File
	for path, text := range m {
		f := File{Path: path}
		if text != "" {
			f.Data = []byte(text)
		}
		files = append(files, f)
	}
	return files
}

// randomFile is "" for a file that is gone. The names and values are few, so that much collides.
func randomFile(r *rand.Rand) string {
	if r.IntN(5) == 0 {
		return ""
	}
	var docs []string
	for range 1 + r.IntN(3) {
		docs = append(docs, randomDocument(r))
	}
	return strings.Repeat("#\n", r.IntN(3)) + strings.Join(docs, "---\n")
}

func randomDocument(r *rand.Rand) string {
	name := fmt.Sprintf("s%d", r.IntN(60))
	switch r.IntN(20) {
	case 0:
		return "apiVersion: v1\nkind: Service\nmetadata: {name: " + name + "}\nspec: {ports: [{port: 0}]}\n"
	case 1:
		return "apiVersion: weir/v1alpha1\nkind: WeirConfiguration\nnodePortRange: 30000-" + fmt.Sprint(30050+r.IntN(3)*20) + "\n"
	case 2:
		return "apiVersion: weir/v1alpha1\nkind: WeirConfiguration\nserviceCIDRs: [10.0.0.0/" + fmt.Sprint(25+r.IntN(2)) + "]\n"
	case 3:
		return "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n"
	case 4, 5, 6:
		return fmt.Sprintf("apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: %s-%d\n  labels: {kubernetes.io/service-name: %s}\naddressType: IPv4\nports: [{port: 80}]\nendpoints:\n- addresses: [10.1.0.%d]\n", name, r.IntN(3), name, 1+r.IntN(9))
	case 7:
		return fmt.Sprintf("apiVersion: v1\nkind: Endpoints\nmetadata: {name: %s}\nsubsets:\n- addresses: [{ip: 10.1.0.%d}]\n  ports: [{port: 80}]\n", name, 1+r.IntN(9))
	case 9:
		return fmt.Sprintf("apiVersion: weir/v1alpha1\nkind: AllocationLock\nservices:\n- name: %s\n  clusterIPs: [10.0.0.%d]\n  nodePorts: [{port: 80, nodePort: %d}]\n", name, 1+r.IntN(200), 30000+r.IntN(80))
	case 10:
		return fmt.Sprintf("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: t%d}\nspec: {replicas: %d, template: {metadata: {labels: {app: a}}}}\n", r.IntN(6), r.IntN(4))
	case 11:
		return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: p%d, labels: {app: a}}\nstatus: {phase: Running, podIP: 10.1.0.%d}\n", r.IntN(6), r.IntN(4))
	case 8:
		return fmt.Sprintf("apiVersion: v1\nkind: Node\nmetadata: {name: n%d, labels: {topology.kubernetes.io/zone: z%d}}\n", r.IntN(9), r.IntN(3))
	}
	spec := ""
	switch r.IntN(12) {
	case 0:
		spec += "  clusterIP: 10.0.0." + fmt.Sprint(1+r.IntN(60)) + "\n"
	case 1:
		spec += "  clusterIP: None\n"
	case 2:
		spec += "  ipFamilyPolicy: PreferDualStack\n"
	case 3:
		spec += fmt.Sprintf("  externalIPs: [1.2.3.%d]\n", r.IntN(3))
	}
	ports := "  ports:\n  - {name: a, port: 80}\n"
	if spec == "" && r.IntN(2) == 0 {
		spec += []string{"  type: NodePort\n", "  type: LoadBalancer\n", "  type: LoadBalancer\n  externalTrafficPolicy: Local\n"}[r.IntN(3)]
		if r.IntN(3) == 0 {
			ports += fmt.Sprintf("  - {name: b, port: 81, nodePort: %d}\n", 30000+r.IntN(50))
		}
		if r.IntN(3) == 0 {
			ports += "  - {name: c, port: 80, protocol: UDP}\n"
		}
	}
	return "apiVersion: v1\nkind: Service\nmetadata: {name: " + name + "}\nspec:\n" + spec + ports
}

func compareSnapshots(t *testing.T, want, got *spec.Snapshot) {
	t.Helper()
	if diff := cmp.Diff(slices.Collect(want.Services.All()), slices.Collect(got.Services.All())); diff != "" {
		t.Fatalf("Services differ from those read from scratch:\n%s", diff)
	}
	if diff := cmp.Diff(slices.Collect(want.Slices.All()), slices.Collect(got.Slices.All())); diff != "" {
		t.Fatalf("slices of no Service differ from those read from scratch:\n%s", diff)
	}
	if diff := cmp.Diff(slices.Collect(want.Pods.All()), slices.Collect(got.Pods.All())); diff != "" {
		t.Fatalf("pods differ from those read from scratch:\n%s", diff)
	}
	if diff := cmp.Diff(slices.Collect(want.Templates.All()), slices.Collect(got.Templates.All())); diff != "" {
		t.Fatalf("templates differ from those read from scratch:\n%s", diff)
	}
	opts := cmp.Options{cmpopts.IgnoreUnexported(spec.Services{}, spec.Pods{}, spec.Templates{}, spec.ByName[spec.Slices]{}), cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{}, netip.AddrPort{})}
	if diff := cmp.Diff(want, got, opts); diff != "" {
		t.Fatalf("the Snapshot differs from that read from scratch:\n%s", diff)
	}
}

func checkDelta(t *testing.T, last, snap *spec.Snapshot, delta spec.Delta) {
	t.Helper()
	if last == nil {
		if !delta.All {
			t.Fatal("the first Delta is not All")
		}
		return
	}
	var want []dataplane.ServiceName
	for svc := range last.Services.All() {
		if now := snap.Services.Get(svc.Name); now == nil || !sameService(svc, now) {
			want = append(want, svc.Name)
		}
	}
	for svc := range snap.Services.All() {
		if last.Services.Get(svc.Name) == nil {
			want = append(want, svc.Name)
		}
	}
	for _, name := range slices.Concat(slices.Collect(last.Slices.Names()), slices.Collect(snap.Slices.Names())) {
		before, now := last.Slices.Get(name), snap.Slices.Get(name)
		if last.Services.Get(name) == nil && snap.Services.Get(name) == nil && !sameSlices(before.List, now.List) && !slices.Contains(want, name) {
			want = append(want, name)
		}
	}
	slices.SortFunc(want, compareNames)
	if !slices.Equal(want, delta.Services) {
		t.Fatalf("Delta has %v, want %v", delta.Services, want)
	}
	if want := differing(last.Pods, snap.Pods); !slices.Equal(want, delta.Pods) {
		t.Fatalf("Delta.Pods is %v, want %v", delta.Pods, want)
	}
	if want := differing(last.Templates, snap.Templates); !slices.Equal(want, delta.Templates) {
		t.Fatalf("Delta.Templates is %v, want %v", delta.Templates, want)
	}
	if want := !reflect.DeepEqual(last.Nodes, snap.Nodes); want != delta.Nodes {
		t.Fatalf("Delta.Nodes is %v, want %v", delta.Nodes, want)
	}
	if want := !reflect.DeepEqual(last.Weir, snap.Weir); want != delta.Config {
		t.Fatalf("Delta.Config is %v, want %v", delta.Config, want)
	}
}

// differing returns the names of values that are not in both maps alike.
func differing[V any](a, b spec.ByName[V]) (names []dataplane.ServiceName) {
	for _, name := range slices.Concat(slices.Collect(a.Names()), slices.Collect(b.Names())) {
		if !reflect.DeepEqual(a.Get(name), b.Get(name)) && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, compareNames)
	return names
}

// TestPool adds and removes claims and set values in a pool that is nearly full, and compares with handing out the values
// in the order of rank.
func TestPool(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 2))
		p := portPool(30000, 30099)
		var u undo
		owners := map[owner]bool{}
		set := map[uint16]bool{}
		ignore := func(owner) {}
		for range 300 {
			o := owner{dataplane.ServiceName{Namespace: "a", Name: fmt.Sprint(r.IntN(70))}, 80}
			v := uint16(30000 + r.IntN(100))
			switch r.IntN(3) {
			case 0:
				if owners[o] {
					p.release(&u, o, ignore)
				} else {
					p.place(&u, p.add(&u, o), ignore)
				}
				owners[o] = !owners[o]
			case 1:
				if !set[v] && len(p.set) < 10 {
					p.reserve(&u, v, owner{}, ignore)
					set[v] = true
				}
			case 2:
				if set[v] {
					p.unreserve(&u, v, ignore)
					set[v] = false
				}
			}
			if got, want := values(p), serial(p, set); !reflect.DeepEqual(got, want) {
				t.Fatalf("seed %d: got %v, want %v", seed, got, want)
			}
		}
		u.rollback()
		if got := describePool(p); len(got) != 1 {
			t.Fatalf("seed %d: after undoing everything the pool holds %v", seed, got)
		}
	}
}

func values(p *pool[uint16]) map[owner]uint16 {
	out := map[owner]uint16{}
	for o, c := range p.claims {
		out[o] = c.value
	}
	return out
}

// serial hands out the values one claim after the other.
func serial(p *pool[uint16], set map[uint16]bool) map[owner]uint16 {
	var claims []*claim[uint16]
	for o := range p.claims {
		claims = append(claims, p.newClaim(o))
	}
	slices.SortFunc(claims, func(a, b *claim[uint16]) int {
		if a.outranks(b) {
			return -1
		}
		return 1
	})
	out, taken := map[owner]uint16{}, map[uint16]bool{}
	for _, c := range claims {
		for k := range p.size {
			if v := p.preference(c, k); !set[v] && !taken[v] {
				out[c.owner], taken[v] = v, true
				break
			}
		}
	}
	return out
}

// describeSet writes down the whole state of a Set in an order of its own.
func describeSet(s *Set) string {
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	for path, f := range s.files {
		for _, d := range f.docs {
			add("file %s:%d size %d", path, d.line, d.size)
		}
	}
	for id, p := range s.objects {
		add("object %s %s", id, p.origin())
	}
	for name, e := range s.entries {
		add("entry %s %v %d %v %v", name, e.service != nil, len(e.slices), e.endpoints != nil, e.pin != nil)
	}
	for _, d := range s.configs {
		add("config %s", d.origin())
	}
	for _, d := range s.noticed {
		add("noticed %s:%d", d.path, d.line)
	}
	for _, d := range s.locks {
		add("lock %s:%d", d.path, d.line)
	}
	for name, list := range s.podsTold {
		add("pod %s %d %s", name, len(list), list[0].origin)
	}
	for name, list := range s.templatesTold {
		add("template %s %d %s", name, len(list), list[0].origin)
	}
	for k, n := range s.skipped {
		add("skipped %s %d", k, n)
	}
	for name, n := range s.needs {
		add("needs %s %v", name, n)
	}
	for name := range s.unusedPins {
		add("unused pin %s", name)
	}
	if s.pools.port != nil {
		lines = append(lines, describePool(s.pools.port)...)
		for _, f := range s.pools.families {
			lines = append(lines, describePool(s.pools.ip[f])...)
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func describePool[V comparable](p *pool[V]) []string {
	var lines []string
	for v, o := range p.set {
		lines = append(lines, fmt.Sprintf("set %v %v", v, o))
	}
	for v, c := range p.held {
		lines = append(lines, fmt.Sprintf("held %v %v tries %d", v, c.owner, c.tries))
	}
	for v, all := range p.waiting {
		var names []string
		for _, c := range all {
			names = append(names, fmt.Sprint(c.owner))
		}
		slices.Sort(names)
		lines = append(lines, fmt.Sprintf("waiting %v %v", v, names))
	}
	return append(lines, fmt.Sprintf("claims %d setInside %d", len(p.claims), p.setInside))
}
