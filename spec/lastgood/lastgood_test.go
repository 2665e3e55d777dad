package lastgood

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/probe"
	"weir/spec/seed"
)

var name = dataplane.ServiceName{Namespace: "default", Name: "web"}

func snapshot(version string) *spec.Snapshot {
	svc := &spec.Service{
		Name: name, Origin: spec.Origin{ResourceVersion: version},
		Object: &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.9"}},
		Slices: []*discoveryv1.EndpointSlice{{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web-1"}, AddressType: discoveryv1.AddressTypeIPv4}},
	}
	return &spec.Snapshot{Services: spec.ServicesOf(svc), Revision: spec.Revision{ID: version}, Nodes: map[string]*corev1.Node{"n": {ObjectMeta: metav1.ObjectMeta{Name: "n"}}}}
}

// scripted sends what it is given, and then nothing.
type scripted []spec.Update

func (s scripted) Load(context.Context) (*spec.Snapshot, error) { return s[0].Snapshot, s[0].Err }

func (s scripted) Watch(ctx context.Context, sink func(spec.Update)) error {
	for _, u := range s {
		sink(u)
	}
	<-ctx.Done()
	return ctx.Err()
}

// run watches until n Updates came, and ends.
func run(t *testing.T, file, cluster string, n int, script ...spec.Update) []spec.Update {
	t.Helper()
	enough := func(got []spec.Update) bool { return len(got) == n }
	return runUntil(t, file, func() string { return cluster }, enough, script...)
}

func runUntil(t *testing.T, file string, cluster func() string, enough func([]spec.Update) bool, script ...spec.Update) []spec.Update {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	src := New(Options{Source: scripted(script), Input: "the test", File: func(*spec.Snapshot) string { return file }, Cluster: cluster, Node: "n", Grace: time.Hour, Interval: time.Hour})
	out, done := make(chan spec.Update, 10), make(chan error, 1)
	go func() { done <- src.Watch(ctx, func(u spec.Update) { out <- u }) }()
	var got []spec.Update
	for !enough(got) {
		select {
		case u := <-out:
			got = append(got, u)
		case <-time.After(time.Minute):
			t.Fatalf("%d Updates are not enough: %+v", len(got), got)
		}
	}
	cancel()
	<-done
	return got
}

func TestServesWhatWasKept(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state", "api")
	good := snapshot("7")
	half, err := probe.ParseMinHealthy("50%")
	if err != nil {
		t.Fatal(err)
	}
	asked := *good.Services.Get(name)
	asked.Origin = spec.Origin{File: "a.yaml", Line: 3}
	asked.Probes = &spec.Probes{MinHealthy: half, Ports: []spec.PortProbe{{Port: "http", Probe: &probe.Probe{Kind: probe.TCP, Period: time.Second, Send: "x", Origin: probe.Origin{File: "a.yaml", Line: 9}}}}}
	good.Services = spec.ServicesOf(&asked)
	run(t, file, "c", 1, spec.Update{Snapshot: good, Delta: spec.Delta{All: true}})
	fi, err := os.Stat(file)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Fatalf("kept: %v, %v", fi, err)
	}

	away := spec.Update{Err: errors.New("away")}
	got := run(t, file, "c", 2, away)
	if got[0].Snapshot == nil || !got[0].Delta.All || got[0].Revision.String() != "7-stale" || got[1].Err == nil {
		t.Fatalf("without the API: %+v", got)
	}
	if d := cmp.Diff(good.Services.Get(name), got[0].Snapshot.Services.Get(name), cmp.AllowUnexported(probe.MinHealthy{})); d != "" {
		t.Errorf("not what was kept (-want +got):\n%s", d)
	}
	if got := run(t, file, "c", 1, spec.Update{Snapshot: snapshot("8"), Delta: spec.Delta{All: true}}); got[0].Snapshot.Revision.Stale {
		t.Error("what was kept is served although the API answers")
	}
	if got := run(t, file, "another", 1, away); got[0].Snapshot != nil {
		t.Error("what another cluster said is served")
	}
}

// TestCredentialsComeLater has a start that cannot tell the cluster at first, as before a disk is mounted.
func TestCredentialsComeLater(t *testing.T) {
	file := filepath.Join(t.TempDir(), "api")
	run(t, file, "c", 1, spec.Update{Snapshot: snapshot("7"), Delta: spec.Delta{All: true}})
	asked := 0
	cluster := func() string {
		if asked++; asked == 1 {
			return ""
		}
		return "c"
	}
	none, away := spec.Update{Err: errors.New("no credentials")}, spec.Update{Err: errors.New("away")}
	stale := func(u spec.Update) bool { return u.Snapshot != nil && u.Revision.Stale }
	runUntil(t, file, cluster, func(got []spec.Update) bool { return slices.ContainsFunc(got, stale) }, none, away)
}

// TestNoPlaceToKeep has a state directory that cannot be written to for an hour. It is told once, tried less and less often, and
// told once when it works again.
func TestNoPlaceToKeep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "state")
		if err := os.WriteFile(dir, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		var log lockedBuffer
		var tries atomic.Int32
		src := New(Options{
			Source: scripted{{Snapshot: snapshot("7"), Delta: spec.Delta{All: true}}}, Input: "the test", Node: "n",
			File:    func(*spec.Snapshot) string { return filepath.Join(dir, "kept") },
			Cluster: func() string { tries.Add(1); return "c" },
			Grace:   time.Hour, Interval: time.Second, Log: hclog.New(&hclog.LoggerOptions{Output: &log}),
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- src.Watch(ctx, func(spec.Update) {}) }()
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := log.String(); strings.Count(got, "[WARN]") != 1 || strings.Count(got, "cannot be kept for the next start") != 1 || tries.Load() < 60 || tries.Load() > 70 {
			t.Errorf("%d writes were tried, and the log is\n%s", tries.Load(), got)
		}
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		time.Sleep(maxRest)
		synctest.Wait()
		if _, err := os.Stat(filepath.Join(dir, "kept")); err != nil || strings.Count(log.String(), "is kept for the next start again") != 1 {
			t.Errorf("%v, and the log is\n%s", err, log.String())
		}
		cancel()
		<-done
	})
}

func TestDamagedFilesAreIgnored(t *testing.T) {
	file := filepath.Join(t.TempDir(), "api")
	want := header{Cluster: "c", Node: "n"}
	if err := new(kept).save(file, want, snapshot("7")); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for i := range whole {
		for _, bad := range [][]byte{whole[:i], append(append(append([]byte{}, whole[:i]...), whole[i]^0x40), whole[i+1:]...)} {
			if err := os.WriteFile(file, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, _, err := load(t.Context(), file, want); err == nil {
				t.Fatalf("accepted with byte %d damaged or missing", i)
			}
		}
	}
}

// TestChangesAreAppended keeps random changes of a thousand Services. What is loaded is what was kept last, and a change costs the
// disk as much as it is large. A file that was cut off is an earlier state, and so is one of which a change is damaged.
func TestChangesAreAppended(t *testing.T) {
	rnd := seed.Rand(t)
	file := filepath.Join(t.TempDir(), "api")
	named := func(i int) dataplane.ServiceName {
		return dataplane.ServiceName{Namespace: "default", Name: fmt.Sprint("s", i)}
	}
	snap := spec.Snapshot{Nodes: map[string]*corev1.Node{}}
	version := 0
	edit := func(names ...dataplane.ServiceName) {
		services, loose := snap.Services.Edit(), snap.Slices.Edit()
		for _, name := range names {
			version++
			slice := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: fmt.Sprint(name.Name, "-", version)}}
			services.Delete(name)
			loose.Delete(name)
			switch rnd.IntN(6) {
			case 0:
			case 1:
				loose.Put(name, spec.Slices{List: []*discoveryv1.EndpointSlice{slice}})
			default:
				services.Put(name, &spec.Service{Name: name, Origin: spec.Origin{ResourceVersion: fmt.Sprint(version)}, Slices: []*discoveryv1.EndpointSlice{slice},
					Object: &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name}}})
			}
		}
		snap.Services, snap.Slices = services.Commit(), loose.Commit()
		snap.Revision.ID = fmt.Sprint(version)
	}
	for i := range 1000 {
		edit(named(i))
	}
	owner := header{Cluster: "c", Node: "n"}
	h := func() header { return header{Cluster: "c", Node: "n", Revision: snap.Revision.ID} }
	text := func(s *spec.Snapshot) string {
		var b strings.Builder
		for svc := range s.Services.All() {
			fmt.Fprintln(&b, svc.Name, svc.Origin.ResourceVersion, svc.Slices[0].Name, len(svc.Slices))
		}
		for name := range s.Slices.Names() {
			fmt.Fprintln(&b, name, s.Slices.Get(name).List[0].Name)
		}
		return fmt.Sprintln(b.String(), s.Revision.ID, slices.Sorted(maps.Keys(s.Nodes)))
	}
	var k kept
	states := map[string]bool{}
	if err := k.update(file, h(), &snap, change{all: true}); err != nil {
		t.Fatal(err)
	}
	states[text(&snap)] = true
	base, rewritten, size := k.size, 0, k.size
	for round := range 300 {
		var c change
		for range 1 + rnd.IntN(8) {
			name := named(rnd.IntN(1100))
			edit(name)
			c.add(spec.Delta{Services: []dataplane.ServiceName{name}})
		}
		if rnd.IntN(10) == 0 {
			node := fmt.Sprint("n", round)
			snap.Nodes = map[string]*corev1.Node{node: {ObjectMeta: metav1.ObjectMeta{Name: node}}}
			c.add(spec.Delta{Nodes: true})
		}
		if err := k.update(file, h(), &snap, c); err != nil {
			t.Fatal(err)
		}
		states[text(&snap)] = true
		if k.size < size {
			rewritten++
		} else if k.size-size > 4096 {
			t.Errorf("a change of %d Services took %d bytes", len(c.services), k.size-size)
		}
		size = k.size
		if round%10 > 0 {
			continue
		}
		if got, _, err := load(t.Context(), file, owner); err != nil || text(got) != text(&snap) {
			t.Fatalf("round %d: %v, or not what was kept", round, err)
		}
	}
	if rewritten == 0 || rewritten > 20 || k.size > 2*base+128<<10 {
		t.Errorf("written anew %d times; now %d bytes, at first %d", rewritten, k.size, base)
	}
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		at := rnd.IntN(len(whole))
		for _, bad := range [][]byte{whole[:at], append(append(slices.Clone(whole[:at]), whole[at]^0x40), whole[at+1:]...)} {
			if err := os.WriteFile(file, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			if got, _, err := load(t.Context(), file, owner); err == nil && !states[text(got)] {
				t.Fatalf("with byte %d of %d damaged or missing, it loads what there never was", at, len(whole))
			}
		}
	}
	// What another process has changed is not appended to.
	edit(named(1))
	c := change{}
	c.add(spec.Delta{Services: []dataplane.ServiceName{named(1)}})
	if err := k.update(file, h(), &snap, c); err != nil {
		t.Fatal(err)
	}
	if got, _, err := load(t.Context(), file, owner); err != nil || text(got) != text(&snap) {
		t.Errorf("after the file was damaged: %v, or not what was kept", err)
	}
}

// lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
