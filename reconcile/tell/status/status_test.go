package status

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"weir/backends/dataplane"
	"weir/reconcile"
	"weir/spec"
	"weir/spec/seed"
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
	b := NewBoard("v1")
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

// TestNothingInForce holds that no mode is named before one is in force, although the configuration has one.
func TestNothingInForce(t *testing.T) {
	b := NewBoard("v1")
	b.Earlier("nothing yet")
	b.Configured(reconcile.Node{Name: "edge-1"}, "config.yaml:1")
	s, text := b.Status(""), strings.Builder{}
	const want = "node      edge-1\nin force  nothing yet\ndrift     0 repaired\n"
	if err := s.WriteText(&text); err != nil || text.String() != want {
		t.Errorf("%v: %q, want %q", err, text.String(), want)
	}
}

// TestSocketComesBack: a socket is made again if it, or its directory, was removed, and one of another weir is left alone.
func TestSocketComesBack(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	s := NewServer(NewBoard("v1"))
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

	other := NewServer(NewBoard("v1"))
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
	b := NewBoard("v1")
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

// TestRecordFile brings a record up to date again and again, as random changes are reported. What is read is what the Board has,
// and a change costs the disk as much as it is large; a record that was cut off anywhere is an earlier one.
func TestRecordFile(t *testing.T) {
	rnd := seed.Rand(t)
	dir := t.TempDir()
	path := filepath.Join(dir, recordName)
	b, f := NewBoard("v1"), &RecordFile{}
	b.Configured(reconcile.Node{Name: "n", Families: []dataplane.Family{dataplane.IPv4}}, "")
	all := reconcile.Report{Mode: "nftables", Revision: "r"}
	for i := range 1000 {
		all.Changed = append(all.Changed, entry(fmt.Sprint("s", i)))
	}
	b.Report(all)
	size := func() int64 {
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return fi.Size()
	}
	check := func() {
		t.Helper()
		if got, err := LoadRecord(t.Context(), dir); err != nil || !reflect.DeepEqual(got, b.Record()) {
			t.Fatalf("%v: %+v", err, got)
		}
	}
	if err := f.Update(dir, b, nil); err != nil {
		t.Fatal(err)
	}
	check()
	base, rewritten := size(), 0
	for round := range 300 {
		changed := map[dataplane.ServicePortName]*dataplane.ServicePort{}
		rep := reconcile.Report{Mode: "nftables", Revision: fmt.Sprint("r", round)}
		for range 1 + rnd.IntN(20) {
			e := entry(fmt.Sprint("s", rnd.IntN(1100)))
			if e.NodePort = uint16(rnd.IntN(1000)); e.NodePort < 200 {
				rep.Changed = slices.DeleteFunc(rep.Changed, func(c *dataplane.ServicePort) bool { return c.Key == e.Key })
				rep.Gone, changed[e.Key] = append(rep.Gone, e.Key), nil
			} else if _, gone := changed[e.Key]; !gone {
				rep.Changed, changed[e.Key] = append(rep.Changed, e), e
			}
		}
		b.Report(rep)
		before := size()
		if err := f.Update(dir, b, changed); err != nil {
			t.Fatal(err)
		}
		if size() < before {
			rewritten++
		}
		if round%20 == 0 {
			check()
		}
	}
	check()
	if rewritten == 0 || rewritten > 10 || size() > 2*base+minSize {
		t.Errorf("written anew %d times; now %d bytes, at first %d", rewritten, size(), base)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	end := bytes.Index(whole, []byte("]}\n")) + 3
	for range 100 {
		cut := end + rnd.IntN(len(whole)-end)
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := LoadRecord(t.Context(), dir); err != nil || len(got.ServicePorts) < 500 {
			t.Fatalf("cut off at byte %d of %d: %v: %+v", cut, len(whole), err, got)
		}
	}
	b.Configured(reconcile.Node{Name: "other", Families: []dataplane.Family{dataplane.IPv4}}, "")
	if err := f.Update(dir, b, map[dataplane.ServicePortName]*dataplane.ServicePort{}); err != nil {
		t.Fatal(err)
	}
	check()
}

// minSize is what a small record may grow by.
const minSize = 64 << 10
