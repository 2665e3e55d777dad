package lastgood

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	iradix "github.com/hashicorp/go-immutable-radix/v2"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weir/spec"
)

var name = spec.Name{Namespace: "default", Name: "web"}

func snapshot(version string) *spec.Snapshot {
	svc := &spec.Service{
		Name: name, Origin: spec.Origin{ResourceVersion: version},
		Object: &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.9"}},
		Slices: []*discoveryv1.EndpointSlice{{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web-1"}, AddressType: discoveryv1.AddressTypeIPv4}},
	}
	tree, _, _ := iradix.New[*spec.Service]().Insert(spec.ServiceKey(name), svc)
	s := spec.Snapshot{Revision: spec.Revision{ID: version}, Nodes: map[string]*corev1.Node{"n": {ObjectMeta: metav1.ObjectMeta{Name: "n"}}}}
	return s.WithServices(tree)
}

// scripted sends what it is given, and then nothing.
type scripted []spec.Update

func (s scripted) Load(context.Context) (*spec.Snapshot, error) { return s[0].Snapshot, s[0].Err }

func (s scripted) Watch(ctx context.Context, out chan<- spec.Update) error {
	for _, u := range s {
		select {
		case out <- u:
		case <-ctx.Done():
			return ctx.Err()
		}
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
	src := New(Options{Source: scripted(script), File: file, Cluster: cluster, Node: "n", Grace: time.Hour, Interval: time.Hour})
	out, done := make(chan spec.Update), make(chan error, 1)
	go func() { done <- src.Watch(ctx, out) }()
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
	if d := cmp.Diff(good.Service(name), got[0].Snapshot.Service(name)); d != "" {
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
			if _, _, err := load(file, want); err == nil {
				t.Fatalf("accepted with byte %d damaged or missing", i)
			}
		}
	}
}
