package status

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"weir/backends"
	"weir/reconcile"
	"weir/spec"
)

func entry(name string) *backends.Entry {
	return &backends.Entry{
		Key:       backends.PortKey{Service: backends.ServiceName{Namespace: "default", Name: name}, Port: "http", Protocol: backends.TCP, Family: backends.IPv4},
		ClusterIP: netip.MustParseAddr("10.96.0.7"), Port: 80, NodePort: 30080, HasEndpoints: true,
		Endpoints: []backends.Endpoint{{Addr: netip.MustParseAddrPort("10.0.0.1:80"), Cluster: true, Local: true, Weight: 1}},
	}
}

// TestSocket asks over a real socket, before there is one, while it is served, after a crash, and after the end.
func TestSocket(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if _, err := Get(t.Context(), dir, "", false); !errors.Is(err, ErrAbsent) {
		t.Errorf("without a daemon: %v", err)
	}
	b := NewBoard()
	b.Configured(reconcile.Node{Name: "edge-1", Zone: "a", Families: []backends.Family{backends.IPv4}}, "--proxy-mode")
	b.Report(reconcile.Report{Mode: "iptables", Revision: "r1", Reason: "start", Repaired: 2, Changed: []*backends.Entry{entry("web"), entry("api")}})
	b.Update(spec.Update{Err: spec.Problems{{Detail: "broken\x1b[31m"}}, Revision: spec.Revision{ID: "r2"}}, time.Unix(1, 0))

	s := NewServer(b)
	for range 2 { // the second time as after a crash: the socket is still there
		s = NewServer(b)
		if err := s.Listen(dir); err != nil {
			t.Fatal(err)
		}
	}
	fi, err := os.Stat(filepath.Join(dir, socketName))
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}
	got, err := Get(t.Context(), dir, "web", false)
	if err != nil || len(got.Services) != 1 || got.Services[0].Name != "web" || got.Mode != "iptables" || got.Revision != "r1" ||
		got.DriftRepaired != 2 || got.Refused == nil || got.Refused.Revision != "r2" {
		t.Errorf("%v: %+v", err, got)
	}
	var text strings.Builder
	if err := got.WriteText(&text); err != nil || strings.Contains(text.String(), "\x1b") || !strings.Contains(text.String(), "10.96.0.7:80, node port 30080") {
		t.Errorf("%v: %s", err, text.String())
	}
	rec, err := Snapshot(t.Context(), dir)
	if err != nil || !reflect.DeepEqual(rec, b.Record()) || len(rec.Entries) != 2 {
		t.Errorf("%v: %+v", err, rec)
	}
	b.Report(reconcile.Report{Mode: "iptables", Revision: "r3", Gone: []backends.PortKey{entry("web").Key}})
	if all, err := Get(t.Context(), dir, "", false); err != nil || len(all.Services) != 1 || all.Services[0].Name != "api" {
		t.Errorf("%v: %+v", err, all)
	}
	s.Close()
	if _, err := Get(t.Context(), dir, "", false); !errors.Is(err, ErrAbsent) {
		t.Errorf("after the end: %v", err)
	}
}

func TestRecord(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	b := NewBoard()
	b.Configured(reconcile.Node{Name: "n", Families: []backends.Family{backends.IPv4}}, "")
	b.Report(reconcile.Report{Mode: "nftables", Revision: "r", Changed: []*backends.Entry{entry("web")}})
	if err := SaveRecord(dir, b.Record()); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(filepath.Join(dir, recordName)); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}
	if got, err := LoadRecord(dir); err != nil || !reflect.DeepEqual(got, b.Record()) {
		t.Errorf("%v: %+v", err, got)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := errors.Join(os.Remove(filepath.Join(dir, recordName)), os.Symlink("/etc/hostname", filepath.Join(dir, recordName))); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadRecord(dir); err == nil {
		t.Error("a symlink is followed")
	}
}
