package main_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"weir/backends/netlab"
	"weir/reconcile/tell/status"
	"weir/spec/seed"
)

var update = flag.Bool("update", false, "write the golden plans instead of comparing with them")

// TestScenario runs every scenario in every mode: the real program, real packets.
func TestScenario(t *testing.T) {
	netlab.Require(t)
	t.Parallel()
	scenarios := readScenarios(t)
	every := 1 // with WEIR_TEST_EVERY=3 each third scenario is taken
	if text := os.Getenv("WEIR_TEST_EVERY"); text != "" {
		var err error
		if every, err = strconv.Atoi(text); err != nil || every < 1 {
			t.Fatalf("WEIR_TEST_EVERY is %q", text)
		}
	}
	eachMode(t, modes, func(t *testing.T, m mode) {
		for i, s := range scenarios {
			if i%every != 0 {
				continue
			}
			t.Run(s.name, func(t *testing.T) {
				if reason := s.skipReason(m); reason != "" {
					t.Skip(reason)
				}
				t.Parallel()
				runScenario(t, s, m)
			})
		}
	})
}

func (s scenario) skipReason(m mode) string {
	if r := s.opts.SkipModes[m.name]; r != "" {
		return r
	}
	if r := s.opts.SkipModes[m.plans]; r != "" || !m.proxies {
		return r
	}
	return s.opts.SkipModes["userspace"]
}

// newLab builds the scenario's topology, with its servers running.
func (s scenario) newLab(t *testing.T) *netlab.Lab {
	t.Helper()
	lab := netlab.New(t, netlab.Topology{Pods: s.opts.Pods, Bridge: s.opts.Bridge, VethPrefix: s.opts.VethPrefix})
	serve := func(host string, port uint16) {
		for _, proto := range []netlab.Protocol{netlab.TCP, netlab.UDP} {
			lab.Host(host).Serve(t, proto, port)
		}
	}
	for _, host := range []string{"pod1", "pod2", "pod3", "pod4", netlab.Client, netlab.Remote} {
		if !lab.Has(host) {
			continue
		}
		for _, port := range s.opts.Serve {
			serve(host, port)
		}
		lab.Host(host).Serve(t, netlab.SCTP, 0)
	}
	for _, port := range s.opts.ServeNode {
		serve(netlab.Node, port)
	}
	for host, lines := range s.opts.Run {
		if _, err := lab.Host(host).Exec(t.Context(), "sh", "-ec", strings.Join(lines, "\n")); err != nil {
			t.Fatal(err)
		}
	}
	return lab
}

// runScenario takes one scenario through its steps. After each, the packets go where they should, a dry run has nothing to
// do, and at random weir is killed: the packets must not notice, and the next process must find everything in place.
func runScenario(t *testing.T, s scenario, m mode) {
	random := seed.Rand(t)
	d := newDaemon(t, s.newLab(t), m, s.opts.Flags...)
	d.addForeign()
	before, parameters := d.foreignRules(), d.kernelParameters()
	if m.rootless {
		s.giveAddresses(t, d.lab)
	}
	flows := map[string]*netlab.Flow{}
	defer closeFlows(flows)
	probed := probedPorts{d: d, open: map[string]net.Listener{}}
	defer probed.answer(nil)

	for i, st := range s.steps {
		d.write(st.files)
		if st.probes != nil {
			probed.answer(st.probes.Answer)
		}
		made := func() {}
		if i == 0 {
			checkGolden(t, d, s.name)
			if m.proxies {
				made = expectMade(t, d, st)
			}
			d.start()
		}
		if m.proxies {
			st.rows = proxied(st.rows)
		}
		if m.rootless {
			st.rows = localAddresses(st.rows)
		}
		if m.inTurn {
			st.rows = takingTurns(st.rows)
		}
		if st.probes != nil {
			probed.await(st.probes.Status)
		}
		d.awaitSync()
		made()
		d.checkRows(st.name, st.rows, flows)
		if m.kills() && !s.opts.Lives && random.IntN(2) == 0 {
			d.kill()
			if m.proxies {
				closeFlows(flows) // a proxy's connections end with it
				d.start()
				continue
			}
			if plan, err := d.pendingPlan(); plan != "" || err != nil {
				t.Errorf("%s: after a kill a dry run would change:\n%s%v", st.name, plan, err)
			}
			d.checkRows(st.name+", weir killed", lasting(st.rows), flows)
			d.start()
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	d.awaitRunning()
	d.checkLeavesNothing(before)
	if diff := cmp.Diff(parameters, d.kernelParameters()); diff != "" {
		t.Errorf("cleanup left other kernel parameters than there were (-before +after):\n%s", diff)
	}
}

// probedPort is the port that the probes in scenarios ask.
const probedPort = 9000

// probedPorts are the listeners on probedPort, by host.
type probedPorts struct {
	d    *daemon
	open map[string]net.Listener
}

// answer has exactly these hosts accept connections on probedPort.
func (p probedPorts) answer(hosts []string) {
	p.d.t.Helper()
	for host, ln := range p.open {
		if !slices.Contains(hosts, host) {
			ln.Close()
			delete(p.open, host)
		}
	}
	for _, host := range hosts {
		if p.open[host] != nil {
			continue
		}
		var ln net.Listener
		if err := p.d.lab.Host(host).Do(func() (err error) {
			ln, err = net.Listen("tcp", fmt.Sprintf(":%d", probedPort))
			return err
		}); err != nil {
			p.d.t.Fatal(err)
		}
		p.open[host] = ln
		go func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				conn.Close()
			}
		}()
	}
}

// await waits until weir status says this of the probes of Services in the namespace default, and calls no endpoint healthy that does
// not answer: those that terminate are not counted.
func (p probedPorts) await(want map[string]string) {
	p.d.t.Helper()
	p.d.await("the verdicts", func() error {
		out, err := p.d.weir("status")
		if err != nil {
			return err
		}
		got, service := map[string]string{}, ""
		for line := range strings.Lines(out) {
			if name, ok := strings.CutPrefix(line, "default/"); ok {
				service = strings.Fields(name)[0]
			} else if said, ok := strings.CutPrefix(strings.TrimSpace(line), "probes: "); ok {
				got[service], _, _ = strings.Cut(said, ":")
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			return fmt.Errorf("verdicts (-want +got):\n%s", diff)
		}
		for name := range want {
			if err := p.late(name); err != nil {
				return err
			}
		}
		return nil
	})
}

// late returns an error if an endpoint of a Service does not answer and counts as healthy.
func (p probedPorts) late(service string) error {
	out, err := p.d.weir("status", "-o", "json", service)
	if err != nil {
		return err
	}
	var s status.Status
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		return err
	}
	answering := map[netip.Addr]bool{}
	for host := range p.open {
		answering[p.d.lab.Host(host).IPv4] = true
	}
	for _, of := range s.Services {
		for _, e := range of.Probes.Endpoints {
			at, err := netip.ParseAddrPort(e.Address)
			if err != nil {
				return err
			}
			if e.State == "healthy" && !answering[at.Addr()] {
				return fmt.Errorf("%s of %s counts as healthy", e.Address, service)
			}
		}
	}
	return nil
}

// giveAddresses gives the node the addresses of Services that are asked for.
func (s scenario) giveAddresses(t *testing.T, lab *netlab.Lab) {
	t.Helper()
	given := map[netip.Addr]bool{}
	for _, st := range s.steps {
		for _, r := range st.rows {
			for _, to := range r.To {
				addr := netip.MustParseAddrPort(to).Addr()
				if !given[addr] && !addr.IsLoopback() && !lab.Owned(addr) {
					lab.Node().AddAddress(t, addr)
					given[addr] = true
				}
			}
		}
	}
}

// closeFlows ends the flows that are open; the rows that follow open new ones.
func closeFlows(flows map[string]*netlab.Flow) {
	for _, f := range flows {
		f.Close()
	}
	clear(flows)
}

// checkRows verifies all rows of a step. What may come a moment after the rules is polled for.
func (d *daemon) checkRows(when string, rows []row, flows map[string]*netlab.Flow) {
	d.t.Helper()
	for _, r := range rows {
		if r.transient() {
			d.await(when, func() error { return r.check(d.lab, flows) })
		} else if err := r.check(d.lab, flows); err != nil {
			d.t.Errorf("%s: %v", when, err)
		}
	}
}

// checkLeavesNothing ends weir and cleans up: what belongs to others is as it was, and of weir nothing is left.
func (d *daemon) checkLeavesNothing(before string) {
	d.t.Helper()
	d.terminate()
	if diff := cmp.Diff(before, d.foreignRules()); diff != "" {
		d.t.Errorf("what others own changed (-before +after):\n%s", diff)
	}
	if out, err := d.cleanup(); err != nil {
		d.t.Errorf("cleanup: %v\n%s", err, out)
	}
	if diff := cmp.Diff(before, d.foreignRules()); diff != "" {
		d.t.Errorf("cleanup changed what others own (-before +after):\n%s", diff)
	}
	if left := d.ownRules(); left != "" {
		d.t.Errorf("cleanup left:\n%s", left)
	}
}

// expectMade makes a dry run, and returns what checks afterwards that weir run made what was printed, no less and no more:
// that is what a plan for the same settings without a Service deletes. (TestPlansNeverLie shows it for the modes that keep
// everything in the kernel.)
func expectMade(t *testing.T, d *daemon, st step) (check func()) {
	t.Helper()
	settings := t.TempDir()
	for name, text := range st.files {
		if strings.Contains(text, "KubeProxyConfiguration") || strings.Contains(text, "WeirConfiguration") || strings.Contains(text, "kind: Node") {
			if err := os.WriteFile(filepath.Join(settings, filepath.Base(name)), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	printed := d.changes("create", d.dir)
	for id := range d.changes("create", settings, "--allow-empty") {
		delete(printed, id) // it is there whether or not there are Services
	}
	return func() {
		t.Helper()
		if diff := cmp.Diff(printed, d.changes("delete", settings, "--allow-empty")); diff != "" {
			t.Errorf("the plan printed other things than were made (-printed +made):\n%s", diff)
		}
	}
}

// changes returns the Items of one kind of changes in the plan for a directory, by ID.
func (d *daemon) changes(op, dir string, more ...string) map[string]string {
	d.t.Helper()
	args := slices.Concat([]string{"reconcile", "-f", dir, "--hostname-override", "node", "--state-dir", d.state, "--dry-run", "--detail", "kernel", "-o", "json"}, d.mode.flags, d.flags, more)
	out, err := d.lab.Node().Exec(context.Background(), os.Getenv(binaryEnv), args...)
	var plan struct {
		Changes []struct{ Op, ID, Old, New string }
	}
	if err == nil {
		err = json.Unmarshal([]byte(out), &plan)
	}
	if err != nil {
		d.t.Fatalf("dry run: %v", err)
	}
	all := map[string]string{}
	for _, c := range plan.Changes {
		if c.Op == op {
			all[c.ID] = c.Old + c.New
		}
	}
	return all
}

// checkGolden compares the plan for an empty kernel with the one on record.
func checkGolden(t *testing.T, d *daemon, name string) {
	t.Helper()
	plan, err := d.pendingPlan()
	if err != nil {
		t.Fatalf("dry run: %v", err)
	}
	file := filepath.Join("../../testdata/golden", d.mode.plans, name+".plan")
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(plan), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Errorf("no golden plan; write it with: go test ./cmd/weir -run TestScenario -update, or, from a machine that keeps nothing, as printed here: %v\nBEGIN\n%sEND", err, plan)
		return
	}
	if diff := cmp.Diff(string(want), plan); diff != "" {
		t.Errorf("plan for an empty kernel (-golden +got), write it anew with -update:\n%s", diff)
	}
}
