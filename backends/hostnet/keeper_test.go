package hostnet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sys/unix"

	"weir/backends"
	"weir/backends/doctor"
	"weir/backends/netlab"
)

const forward, localnet = "net.ipv4.ip_forward", "net.ipv4.conf.all.route_localnet"

// node is a node with kernel parameters, and processes of weir on it.
type node struct {
	t      *testing.T
	root   string
	state  string
	log    bytes.Buffer
	keeper *Keeper
}

func newNode(t *testing.T) *node {
	n := &node{t: t, root: t.TempDir(), state: t.TempDir()}
	n.write(forward, "0")
	n.write(localnet, "0")
	n.restart()
	return n
}

// restart ends the process and starts another.
func (n *node) restart() {
	n.log.Reset()
	n.keeper = NewKeeper(hclog.New(&hclog.LoggerOptions{Output: &n.log}), Sysctl{Root: n.root})
	n.keeper.Remember(n.state)
}

func (n *node) write(name, value string) {
	n.t.Helper()
	path := filepath.Join(n.root, strings.ReplaceAll(name, ".", "/"))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(value+"\n"), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

// expect compares the values of ip_forward and route_localnet.
func (n *node) expect(when, want string) {
	n.t.Helper()
	a, _ := Sysctl{Root: n.root}.Get(forward)
	b, _ := Sysctl{Root: n.root}.Get(localnet)
	if got := a + " " + b; got != want {
		n.t.Errorf("%s: ip_forward and route_localnet are %s, want %s", when, got, want)
	}
}

// round makes the kernel hold the Items of Base, or none, and returns what was changed.
func round(t *testing.T, b *Managed, none bool) (changed []string) {
	t.Helper()
	want := map[backends.ID]backends.Item{}
	if !none {
		for _, i := range b.Base() {
			want[i.ID()] = i
		}
	}
	var p backends.Plan
	for i, err := range b.Observe(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		w := want[i.ID()]
		delete(want, i.ID())
		switch {
		case w == nil:
			p.Changes = append(p.Changes, backends.Change{Op: backends.Delete, ID: i.ID(), Old: i})
		case w.String() != i.String():
			p.Changes = append(p.Changes, backends.Change{Op: backends.Update, ID: i.ID(), Old: i, New: w})
		}
	}
	for id, w := range want {
		p.Changes = append(p.Changes, backends.Change{Op: backends.Create, ID: id, New: w})
	}
	for _, c := range p.Changes {
		changed = append(changed, c.String())
	}
	if r := b.Apply(t.Context(), p); r.Err != nil || len(r.Refused) > 0 {
		t.Fatalf("%+v", r)
	}
	return changed
}

func TestKeeper(t *testing.T) {
	both, one := Forwarding{IPv4: true, Localhost: true}.Parameters(), Forwarding{IPv4: true}.Parameters()
	t.Run("set, repaired and put back", func(t *testing.T) {
		n := newNode(t)
		b := n.keeper.Manage(nil, both)
		round(t, b, false)
		n.expect("set", "1 1")
		if changed := round(t, b, false); changed != nil {
			t.Errorf("again: %v", changed)
		}
		if strings.Contains(n.log.String(), "WARN") {
			t.Errorf("the log warns:\n%s", n.log.String())
		}
		n.write(forward, "0")
		if changed := round(t, b, false); len(changed) != 1 || !b.keeper.sysctlIs(forward, "1") {
			t.Errorf("changed %v", changed)
		}
		if got := testutil.ToFloat64(n.keeper.repaired); got != 1 || !strings.Contains(n.log.String(), "another process changed a kernel parameter") {
			t.Errorf("%v repaired, and the log is\n%s", got, n.log.String())
		}
		round(t, b, true)
		n.expect("put back", "0 0")
	})
	t.Run("another Backend needs less", func(t *testing.T) {
		n := newNode(t)
		old, now := n.keeper.Manage(nil, both), n.keeper.Manage(nil, one)
		round(t, old, false)
		round(t, now, false)
		n.expect("both are in use", "1 1")
		round(t, old, true)
		n.expect("the old one is gone", "1 0")
	})
	t.Run("after a restart", func(t *testing.T) {
		n := newNode(t)
		round(t, n.keeper.Manage(nil, both), false)
		n.restart()
		changed := round(t, n.keeper.Manage(nil, one), false)
		n.expect("another configuration", "1 0")
		if want := []string{"- sysctl " + localnet + " = 1, which was 0"}; !slices.Equal(changed, want) {
			t.Errorf("changed %v, want %v", changed, want)
		}
		n.restart()
		round(t, n.keeper.Manage(nil, nil), false)
		n.expect("cleanup", "0 0")
	})
	t.Run("what others set is theirs", func(t *testing.T) {
		n := newNode(t)
		n.write(forward, "1")
		b := n.keeper.Manage(nil, both)
		round(t, b, false)
		n.write(localnet, "2")
		n.restart()
		round(t, n.keeper.Manage(nil, nil), false)
		n.expect("cleanup", "1 2")
	})
	t.Run("records of others are not believed", func(t *testing.T) {
		n := newNode(t)
		round(t, n.keeper.Manage(nil, both), false)
		if err := os.Chmod(filepath.Join(n.state, ledgerFile), 0o666); err != nil {
			t.Fatal(err)
		}
		n.restart()
		round(t, n.keeper.Manage(nil, nil), false)
		n.expect("cleanup", "1 1")
		if !strings.Contains(n.log.String(), "can be written by others") {
			t.Errorf("the log is\n%s", n.log.String())
		}
	})
	t.Run("a lost file comes back at a full sync", func(t *testing.T) {
		for what, lose := range map[string]func(dir string) error{
			"the file":               func(dir string) error { return os.Remove(filepath.Join(dir, ledgerFile)) },
			"the directory":          os.RemoveAll,
			"others may write to it": func(dir string) error { return os.Chmod(filepath.Join(dir, ledgerFile), 0o666) },
			"a link in its place": func(dir string) error {
				return errors.Join(os.Remove(filepath.Join(dir, ledgerFile)), os.Symlink("elsewhere", filepath.Join(dir, ledgerFile)))
			},
		} {
			n := newNode(t)
			n.keeper.Last()
			b := n.keeper.Manage(nil, both)
			round(t, b, false)
			if err := lose(n.state); err != nil {
				t.Fatal(err)
			}
			if changed := round(t, b, false); changed != nil {
				t.Errorf("%s: changed %v", what, changed)
			}
			n.restart()
			round(t, n.keeper.Manage(nil, nil), false)
			n.expect(what+" was lost, and cleanup", "0 0")
		}
	})
	t.Run("a refused file is replaced", func(t *testing.T) {
		n := newNode(t)
		file := filepath.Join(n.state, ledgerFile)
		if err := errors.Join(os.WriteFile(file, []byte(`{`), 0o600), os.Chmod(file, 0o666)); err != nil {
			t.Fatal(err)
		}
		n.restart()
		n.keeper.Last()
		n.write(forward, "1") // so that weir sets nothing
		round(t, n.keeper.Manage(nil, one), false)
		if l, err := readLedger(file); err != nil || len(l.Parameters) != 0 {
			t.Errorf("%+v, %v", l, err)
		}
	})
	t.Run("a dry run writes nothing", func(t *testing.T) {
		n := newNode(t)
		round(t, n.keeper.Manage(nil, both), false)
		n.restart()
		if err := os.Remove(filepath.Join(n.state, ledgerFile)); err != nil {
			t.Fatal(err)
		}
		for range n.keeper.Manage(nil, both).Observe(t.Context()) {
		}
		if list, err := os.ReadDir(n.state); err != nil || len(list) != 0 {
			t.Errorf("it wrote %v, %v", list, err)
		}
	})
	t.Run("a parameter that the kernel lacks", func(t *testing.T) {
		n := newNode(t)
		if changed := round(t, n.keeper.Manage(nil, []Parameter{{Name: "net.absent", Value: "1"}}), false); changed != nil {
			t.Errorf("changed %v", changed)
		}
	})
}

// TestKeeperWithoutPlaceForItsFile has a state directory that cannot be written to. That is told once, and so is that it can be
// again.
func TestKeeperWithoutPlaceForItsFile(t *testing.T) {
	netlab.Require(t)
	n := newNode(t)
	n.keeper.Last()
	readOnly(t, n.state)
	b := n.keeper.Manage(nil, Forwarding{IPv4: true, Localhost: true}.Parameters())
	for range 3 {
		round(t, b, false)
	}
	if got := n.log.String(); strings.Count(got, "[WARN]") != 1 || !strings.Contains(got, "cannot be kept for a later cleanup: "+filepath.Join(n.state, ledgerFile)+": read-only file system\n") {
		t.Errorf("the log is\n%s", got)
	}
	n.expect("read-only", "1 1")
	if err := unix.Mount("", n.state, "", unix.MS_BIND|unix.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		round(t, b, false)
	}
	if got := n.log.String(); strings.Count(got, "are kept for a later cleanup again") != 1 {
		t.Errorf("the log is\n%s", got)
	}
	n.restart()
	round(t, n.keeper.Manage(nil, nil), false)
	n.expect("cleanup", "0 0")
}

// TestExposedLoopback loses the record of route_localnet. While weir guards the loopback addresses, nothing is told. Once no
// rule guards them any more, the log warns, once each time that it comes about.
func TestExposedLoopback(t *testing.T) {
	n := newNode(t)
	round(t, n.keeper.Manage(nil, Forwarding{IPv4: true, Localhost: true}.Parameters()), false)
	if err := os.RemoveAll(n.state); err != nil {
		t.Fatal(err)
	}
	n.restart()
	n.keeper.Last()
	guards, none := n.keeper.Manage(nil, Forwarding{IPv4: true, Localhost: true}.Parameters()), n.keeper.Manage(nil, Forwarding{IPv4: true}.Parameters())
	warnings := func(when string, want int) {
		t.Helper()
		for range 3 {
			round(t, none, false)
		}
		if got := strings.Count(n.log.String(), "has no record that weir set it: with it neighbours can reach servers on 127.0.0.1"); got != want {
			t.Errorf("%s: %d warnings, want %d, in\n%s", when, got, want, n.log.String())
		}
	}
	round(t, guards, false)
	warnings("guarded", 0)
	if err := guards.Close(); err != nil {
		t.Fatal(err)
	}
	warnings("no longer guarded", 1)
	n.write(localnet, "0")
	warnings("mended", 1)
	n.write(localnet, "1")
	warnings("set again", 2)
}

// sysctlIs reports whether a parameter has a value.
func (k *Keeper) sysctlIs(name, value string) bool {
	is, err := k.sysctl.Get(name)
	return err == nil && is == value
}

// TestKeeperWithReadOnlySysctls expects a parameter that cannot be set to be told once, whatever the number of syncs, and to
// be set at the first full sync at which it can.
func TestKeeperWithReadOnlySysctls(t *testing.T) {
	netlab.Require(t)
	n := newNode(t)
	readOnly(t, n.root)
	b := n.keeper.Manage(nil, Forwarding{IPv4: true}.Parameters())
	for range 3 {
		if changed := round(t, b, false); changed != nil {
			t.Errorf("changed: %v", changed)
		}
	}
	if got := testutil.ToFloat64(n.keeper.unset); got != 1 || strings.Count(n.log.String(), "cannot be set to 1") != 1 || !strings.Contains(n.log.String(), "packets are forwarded") {
		t.Errorf("%v are not set, and the log is\n%s", got, n.log.String())
	}
	if c := (Forwarding{IPv4: true}).Doctor(n.keeper.sysctl, nil)[0]; c.State != doctor.Advice || !strings.Contains(c.Detail, "cannot be set here: weir run needs 1 where packets are forwarded") {
		t.Errorf("doctor: %+v", c)
	}
	if err := unix.Mount("", n.root, "", unix.MS_BIND|unix.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}
	if changed := round(t, b, false); len(changed) != 1 || !n.keeper.sysctlIs(forward, "1") {
		t.Errorf("where it can be set: %v", changed)
	}
	if got := testutil.ToFloat64(n.keeper.unset); got != 0 {
		t.Errorf("%v are not set", got)
	}
}

// watched is a Backend that other processes do not write to.
type watched struct{ backends.Backend }

func (watched) Optional() backends.Optional { return backends.Optional{Watcher: unmoved{}} }

type unmoved struct{ backends.Watcher }

func (unmoved) Moved(context.Context) (bool, error) { return false, nil }

// TestParametersAreReadAtFullSyncsOnly changes a parameter behind weir's back. The question whether another process wrote,
// which is asked often, reads none. A full sync finds the change.
func TestParametersAreReadAtFullSyncsOnly(t *testing.T) {
	n := newNode(t)
	needs := Forwarding{IPv4: true}.Parameters()
	round(t, n.keeper.Manage(nil, needs), false)
	b := n.keeper.Manage(watched{}, needs)
	n.write(forward, "0")
	if moved, err := b.Optional().Watcher.Moved(t.Context()); moved || err != nil {
		t.Errorf("moved: %v, %v", moved, err)
	}
	items, err := b.Optional().Unwatched.ReadUnwatched(t.Context())
	if got := fmt.Sprint(items); err != nil || got != "map[sysctl "+forward+":sysctl "+forward+" = 0]" {
		t.Errorf("a full sync reads %s, %v", got, err)
	}
}

// ordered is a Backend that records when it is applied.
type ordered struct {
	backends.Backend
	apply func()
}

func (b ordered) Apply(context.Context, backends.Plan) backends.Result {
	b.apply()
	return backends.Result{}
}

// rule is an Item of the Backend below.
type rule struct{}

func (rule) ID() backends.ID { return "rule" }
func (rule) String() string  { return "rule" }

// TestGuardedParameter sets what rules guard after them, and puts it back before them.
func TestGuardedParameter(t *testing.T) {
	n := newNode(t)
	var seen string
	below := ordered{apply: func() { seen, _ = Sysctl{Root: n.root}.Get(localnet) }}
	b := n.keeper.Manage(below, Forwarding{Localhost: true}.Parameters())
	on, off := setting{name: localnet, value: "1"}, setting{name: localnet, value: "0"}
	change := func(op backends.Op, i, old backends.Item) backends.Change {
		c := backends.Change{Op: op, Old: old}
		if op != backends.Delete {
			c.New = i
		}
		return c
	}
	b.Apply(t.Context(), backends.Plan{Changes: []backends.Change{change(backends.Update, on, off), change(backends.Create, rule{}, nil)}})
	if n.expect("with the rule", "0 1"); seen != "0" {
		t.Errorf("when the rule came, route_localnet was %s", seen)
	}
	b.Apply(t.Context(), backends.Plan{Changes: []backends.Change{change(backends.Delete, nil, on), change(backends.Delete, nil, rule{})}})
	if n.expect("without the rule", "0 0"); seen != "0" {
		t.Errorf("when the rule went, route_localnet was %s", seen)
	}
}
