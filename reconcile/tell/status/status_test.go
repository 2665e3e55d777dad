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

	"weir/backends/dataplane"
	"weir/reconcile"
	"weir/spec"
)

func entry(name string) *dataplane.ServicePort {
	return &dataplane.ServicePort{
		Key:       dataplane.ServicePortName{Service: dataplane.ServiceName{Namespace: "default", Name: name}, Port: "http", Protocol: dataplane.TCP, Family: dataplane.IPv4},
		ClusterIP: netip.MustParseAddr("10.96.0.7"), Port: 80, NodePort: 30080, HasEndpoints: true,
		Endpoints: []dataplane.Endpoint{{Addr: netip.MustParseAddrPort("10.0.0.1:80"), Cluster: true, Local: true, Weight: 1}},
	}
}

// TestSocket asks over a real socket, before there is one, while it is served, after a crash, and after the end.
func TestSocket(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if _, err := Get(t.Context(), dir, "", false); !errors.Is(err, ErrAbsent) {
		t.Errorf("without a daemon: %v", err)
	}
	b := NewBoard()
	b.Configured(reconcile.Node{Name: "edge-1", Zone: "a", Families: []dataplane.Family{dataplane.IPv4}}, "--proxy-mode")
	b.Report(reconcile.Report{Mode: "iptables", Revision: "r1", Reason: "start", Repaired: 2, Changed: []*dataplane.ServicePort{entry("web"), entry("api")}})
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
	if err != nil || !reflect.DeepEqual(rec, b.Record()) || len(rec.ServicePorts) != 2 {
		t.Errorf("%v: %+v", err, rec)
	}
	b.Report(reconcile.Report{Mode: "iptables", Revision: "r3", Gone: []dataplane.ServicePortName{entry("web").Key}})
	if all, err := Get(t.Context(), dir, "", false); err != nil || len(all.Services) != 1 || all.Services[0].Name != "api" {
		t.Errorf("%v: %+v", err, all)
	}
	s.Close()
	if _, err := Get(t.Context(), dir, "", false); !errors.Is(err, ErrAbsent) {
		t.Errorf("after the end: %v", err)
	}
}

// TestSocketComesBack: a socket is made again if it, or its directory, was removed, and one of another weir is left alone.
func TestSocketComesBack(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	s := NewServer(NewBoard())
	defer s.Close()
	listen := func(s *Server) {
		t.Helper()
		if err := s.Listen(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := Get(t.Context(), dir, "", false); err != nil {
			t.Error(err)
		}
	}
	listen(s)
	made := s.made
	listen(s)
	if !os.SameFile(made, s.made) {
		t.Error("a socket that is there was made again")
	}
	for _, name := range []string{filepath.Join(dir, socketName), dir} {
		if err := os.RemoveAll(name); err != nil {
			t.Fatal(err)
		}
		if _, err := Get(t.Context(), dir, "", false); !errors.Is(err, ErrAbsent) || !strings.Contains(err.Error(), "which does not exist") {
			t.Errorf("without %s: %v", name, err)
		}
		listen(s)
	}
	// What cannot be reached is not taken for what does not run.
	if err := errors.Join(os.RemoveAll(dir), os.WriteFile(dir, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := s.Listen(dir); err == nil {
		t.Error("a file in place of the directory is no error")
	}
	if _, err := Get(t.Context(), dir, "", false); err == nil || errors.Is(err, ErrAbsent) || !strings.Contains(err.Error(), "cannot be reached") {
		t.Errorf("a file in place of the directory: %v", err)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	listen(s)

	other := NewServer(NewBoard())
	defer other.Close()
	listen(other)
	theirs, err := os.Lstat(filepath.Join(dir, socketName))
	if err != nil {
		t.Fatal(err)
	}
	listen(s)
	if now, err := os.Lstat(filepath.Join(dir, socketName)); err != nil || !os.SameFile(theirs, now) {
		t.Errorf("the socket of another weir was replaced: %v", err)
	}
}

func TestRecord(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	b := NewBoard()
	b.Configured(reconcile.Node{Name: "n", Families: []dataplane.Family{dataplane.IPv4}}, "")
	b.Report(reconcile.Report{Mode: "nftables", Revision: "r", Changed: []*dataplane.ServicePort{entry("web")}})
	if err := SaveRecord(dir, b.Record()); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(filepath.Join(dir, recordName)); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}
	if got, err := LoadRecord(t.Context(), dir); err != nil || !reflect.DeepEqual(got, b.Record()) {
		t.Errorf("%v: %+v", err, got)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := errors.Join(os.Remove(filepath.Join(dir, recordName)), os.Symlink("/etc/hostname", filepath.Join(dir, recordName))); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadRecord(t.Context(), dir); err == nil {
		t.Error("a symlink is followed")
	}
}
