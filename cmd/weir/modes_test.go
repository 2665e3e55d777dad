package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/backends/doctor"
	"weir/backends/fake"
	"weir/backends/netlab"
	"weir/reconcile"
	"weir/spec"
	"weir/spec/config"
	"weir/spec/nodeconfig"
)

// toy is a mode as an engineer would add one: a folder with its backend (weir/backends/fake), a function that returns its
// mode, and a line in the table.
type toy struct {
	kernel *fake.Kernel
	opened []*toyBackend
	broken error // probe returns it
	// log is what was done, in order.
	log []string
}

type toyBackend struct {
	backends.Backend
	config dataplane.Config
	closed int
}

func (b *toyBackend) Close() error {
	b.closed++
	return b.Backend.Close()
}

const modeToy = "toy"

func (t *toy) mode(*platform) mode {
	return mode{
		name:         modeToy,
		traits:       backends.Traits{HandsOver: true},
		section:      nodeconfig.IPTables,
		leavesKernel: true, // of this machine
		probe:        func(context.Context) error { return t.broken },
		open: func(_ context.Context, cfg dataplane.Config, _ any) (backends.Backend, reconcile.Flows, error) {
			b := &toyBackend{Backend: fake.New(t.kernel, cfg), config: cfg}
			t.opened = append(t.opened, b)
			return b, nil, nil
		},
		accepted: func(context.Context) { t.log = append(t.log, "accepted") },
		leftovers: func(_ context.Context, cfg dataplane.Config, inForce bool) []leftover {
			if inForce {
				return nil
			}
			return []leftover{{modeToy, fake.New(t.kernel, cfg)}}
		},
		checks: func(context.Context) []doctor.Check {
			return []doctor.Check{{Name: "toys", State: doctor.OK, Detail: "in the box"}}
		},
		drain: func() { t.log = append(t.log, "drained") },
	}
}

// addMode puts a mode into the table until the test ends. The test must not be parallel.
func addMode(t *testing.T, m func(*platform) mode) {
	was := modeTable
	modeTable = append(slices.Clone(was), m)
	t.Cleanup(func() { modeTable = was })
}

const toyService = `apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.10
  ports: [{port: 80}]
`

// TestNewModeIsOneFileAndOneLine runs every command that has to do with modes with one that no other file knows.
func TestNewModeIsOneFileAndOneLine(t *testing.T) {
	netlab.InNamespace(t)
	toy := &toy{kernel: fake.NewKernel()}
	addMode(t, toy.mode)
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("web.yaml", toyService)
	write("config.yaml", "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\noomScoreAdj: 0\n") // it is that of the tests
	args := func(command string, more ...string) []string {
		return append([]string{command, "-f", dir, "--proxy-mode", modeToy, "--state-dir", t.TempDir(), "--settle-time", "10ms"}, more...)
	}
	const item = "port/default/web/TCP/IPv4"
	has := func(id string) bool { return toy.kernel.Has(backends.ID(id)) }

	if _, stderr, code := run("doctor", "--mode", "nothing"); code != exitUsage || !strings.Contains(stderr, "userspace or toy") {
		t.Errorf("doctor --mode nothing: exit %d, %q", code, stderr)
	}
	stdout, stderr, code := run("doctor", "--mode", modeToy, "-o", "json", "--state-dir", t.TempDir())
	var report doctor.Report
	if err := json.Unmarshal([]byte(stdout), &report); err != nil || code != exitOK || !report.Usable || report.Mode != modeToy {
		t.Errorf("doctor: exit %d, %v, %+v, %s", code, err, report, stderr)
	}

	if stdout, stderr, code = run(args("reconcile", "--dry-run", "--detail", "kernel")...); code != exitOK || !strings.Contains(stdout, item) || has(item) {
		t.Errorf("reconcile --dry-run: exit %d, %s%s; has %v", code, stdout, stderr, has(item))
	}
	if stdout, stderr, code = run(args("reconcile")...); code != exitOK || !strings.HasPrefix(stdout, "toy: ") || !has(item) {
		t.Errorf("reconcile: exit %d, %s%s; has %v", code, stdout, stderr, toy.kernel.Objects())
	}

	other := strings.NewReplacer("web", "other", "0.10", "0.11").Replace(toyService)
	runToy(t, toy, args("run"), func() { write("other.yaml", other) }, "port/default/other/TCP/IPv4")

	if stdout, stderr, code = run("cleanup", "--state-dir", t.TempDir()); code != exitOK || !strings.Contains(stdout, "toy: ") || len(toy.kernel.Objects()) > 0 {
		t.Errorf("cleanup: exit %d, %s%s; left %v", code, stdout, stderr, toy.kernel.Objects())
	}
}

// runToy runs weir until the kernel has the item that a change brings.
func runToy(t *testing.T, toy *toy, args []string, change func(), item backends.ID) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	started := false
	toy.kernel.OnChange = func(objects map[backends.ID]fake.Item) {
		if _, ok := objects[item]; ok {
			cancel()
		}
	}
	toy.kernel.OnCall = func() {
		if !started {
			started = true
			change()
		}
	}
	defer func() { toy.kernel.OnChange, toy.kernel.OnCall = nil, nil }()
	var out bytes.Buffer
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(&out)
	if err := root.ExecuteContext(ctx); err != nil || !errors.Is(ctx.Err(), context.Canceled) {
		t.Errorf("run: %v, %v, has %v\n%s", err, ctx.Err(), toy.kernel.Objects(), out.String())
	}
	if want := []string{"accepted", "drained"}; !slices.Equal(toy.log, want) {
		t.Errorf("the mode was told %v, want %v", toy.log, want)
	}
}

// TestNothingIsRecordedBeforeItIsAccepted resolves configurations of which the Loop accepts some.
func TestNothingIsRecordedBeforeItIsAccepted(t *testing.T) {
	toy := &toy{kernel: fake.NewKernel()}
	addMode(t, toy.mode)
	m := newModeManager(hclog.NewNullLogger(), nodeFlags{hostname: "node"}, true)
	resolve := func(bit int32) *nodeConfig {
		t.Helper()
		kube := config.Default()
		kube.Mode, kube.IPTables.MasqueradeBit = modeToy, &bit
		n, err := m.resolve(t.Context(), &spec.Snapshot{Config: kube.KubeProxyConfiguration})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	state := func() (closed []int) {
		for _, b := range toy.opened {
			closed = append(closed, b.closed)
		}
		return closed
	}
	expect := func(what string, closed ...int) {
		t.Helper()
		if got := state(); !slices.Equal(got, closed) {
			t.Errorf("%s: the backends were closed %v times, want %v", what, got, closed)
		}
	}
	first := resolve(1)
	m.accept(t.Context(), first)
	if again := resolve(1); again.Backend != first.Backend {
		t.Error("the same configuration gets another backend")
	}
	refused := resolve(2)
	if refused.Backend == first.Backend || resolve(2).Backend != refused.Backend {
		t.Error("another configuration gets the backend that is in use, or a new one each time that it is tried")
	}
	if back := resolve(1); back.Backend != first.Backend {
		t.Error("after a refused configuration, the one in use gets another backend")
	}
	expect("one refused", 0, 0)
	third := resolve(3)
	expect("another took its place", 0, 1, 0)
	m.accept(t.Context(), third) // the Engine closes what it replaces
	expect("accepted", 0, 1, 0)
	m.accept(t.Context(), resolve(3))
	expect("accepted again", 0, 1, 0)
	resolve(4)
	m.accept(t.Context(), resolve(3))
	expect("nobody used it", 0, 1, 0, 1)
	if m.accepted.config.MasqueradeMark != 1<<3 {
		t.Errorf("accepted: %+v", m.accepted.config)
	}
}

// TestFallbackEdges follows a mode that cannot run to the one that stands in for it, and back.
func TestFallbackEdges(t *testing.T) {
	standIn := &toy{kernel: fake.NewKernel()}
	addMode(t, standIn.mode)
	missing := errors.New("the kernel lacks toys")
	present := false
	addMode(t, func(p *platform) mode {
		m := (&toy{kernel: fake.NewKernel()}).mode(p)
		m.name, m.fallback = "big", []string{modeToy}
		m.appeared = func() bool { return present }
		m.probe = func(context.Context) error {
			if present {
				return nil
			}
			return missing
		}
		return m
	})
	var log bytes.Buffer
	m := newModeManager(hclog.New(&hclog.LoggerOptions{Output: &log}), nodeFlags{hostname: "node"}, true)
	check := func(asked, want, wantReason string, awaited bool) {
		t.Helper()
		got, reason, err := m.choose(t.Context(), asked)
		if err != nil || got.name != want || reason != wantReason || (m.awaited.Load() != nil) != awaited {
			t.Errorf("%q: %+v (%s), %v, awaited %v; want %s (%s), %v", asked, got, reason, err, m.awaited.Load() != nil, want, wantReason, awaited)
		}
	}
	const reason = "big was asked for, but the kernel lacks toys"
	check("big", modeToy, reason, true)
	check("big", modeToy, reason, true)
	if n := strings.Count(log.String(), "big mode cannot be used: using toy mode until it can"); n != 1 {
		t.Errorf("said %d times:\n%s", n, log.String())
	}
	check(modeToy, modeToy, "", false)
	check("big", modeToy, reason, true)
	present = true
	check("big", "big", "", false)
	if !strings.Contains(log.String(), "big mode can be used now") {
		t.Errorf("not said:\n%s", log.String())
	}
	present, m.flags.noFallback = false, true
	if got, _, err := m.choose(t.Context(), "big"); !errors.Is(err, missing) || m.awaited.Load() == nil {
		t.Errorf("with --no-fallback: %+v, %v", got, err)
	}
	m.flags.noFallback, standIn.broken = false, errors.New("there is no box")
	if got, _, err := m.choose(t.Context(), "big"); !errors.Is(err, missing) || !errors.Is(err, standIn.broken) {
		t.Errorf("with nothing to fall back to: %+v, %v", got, err)
	}
	if _, _, err := m.choose(t.Context(), "none"); err == nil || !strings.HasSuffix(err.Error(), "userspace, toy or big") {
		t.Errorf("a mode that is not known: %v", err)
	}
}

// TestDefaultMode checks that without any choice the mode is the first of the defaultModes that can run, and stays what it
// was.
func TestDefaultMode(t *testing.T) {
	m := newModeManager(hclog.NewNullLogger(), nodeFlags{}, true)
	var broken [2]error
	for i, name := range defaultModes {
		found, err := m.mode(name)
		if err != nil {
			t.Fatal(err)
		}
		found.probe = func(context.Context) error { return broken[i] }
	}
	check := func(want string) {
		t.Helper()
		if got, reason, err := m.choose(t.Context(), ""); err != nil || got.name != want || reason != "" {
			t.Errorf("%+v (%s), %v; want %s", got, reason, err, want)
		}
	}
	check(modeIPTables)
	broken[0] = errors.New("no iptables")
	check(modeNFTables)
	m.accepted = &openMode{path: reconcile.DataPath{Mode: modeNFTables}}
	broken[0] = nil
	check(modeNFTables)
	m.accepted, broken = nil, [2]error{errors.New("no iptables"), errors.New("no nftables")}
	if got, _, err := m.choose(t.Context(), ""); !errors.Is(err, broken[0]) || !errors.Is(err, broken[1]) {
		t.Errorf("with neither: %+v, %v", got, err)
	}
}

// TestModesAreWhole checks the table: every mode has what is required, and what it names is there.
func TestModesAreWhole(t *testing.T) {
	p := knownModes()
	for i, m := range p.modes {
		if m.name == "" || m.section == nil || m.open == nil || m.probe == nil || m.leftovers == nil || m.checks == nil || len(m.fallback) > 0 && m.appeared == nil {
			t.Errorf("mode %d, %q, lacks something that is required", i, m.name)
		}
		if slices.Index(p.names(), m.name) != i {
			t.Errorf("there are two modes %q", m.name)
		}
		for _, name := range slices.Concat(m.fallback, m.needsOneOf) {
			if other := slices.Index(p.names(), name); other < 0 {
				t.Errorf("mode %s names mode %s, which there is not", m.name, name)
			}
		}
		for _, name := range m.needsOneOf { // doctor.NewReport goes through them once
			if slices.Index(p.names(), name) > i {
				t.Errorf("mode %s comes before %s, which it needs", m.name, name)
			}
		}
	}
	for _, name := range slices.Concat(defaultModes, redirectModes) {
		if m, err := p.mode(name); err != nil || slices.Contains(redirectModes, name) && m.redirection == nil {
			t.Errorf("%s: %v, or it cannot redirect", name, err)
		}
	}
}
