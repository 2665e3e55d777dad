package lastgood

import (
	"bytes"
	"context"
	"errors"
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
	if err := save(file, want, snapshot("7")); err != nil {
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
