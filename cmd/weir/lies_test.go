package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.org/x/tools/txtar"

	"weir/backends/hostnet"
	"weir/backends/ipvs"
	"weir/backends/netlab"
	"weir/spec/filesource"
	"weir/spec/seed"
)

// liar is where TestPlansNeverLie tries plans: the network namespace that the tests themselves run in, which is empty and
// nobody else's.
type liar struct {
	t             *testing.T
	mode, variant string
	dir, state    string
	programs      []string // that print what the kernel holds
}

// TestPlansNeverLie takes the kernel through every scenario and through random directories. Before each step, a dry run is
// made twice: it prints the same bytes, and changes nothing at all. Then what it printed, and nothing else, is carried out;
// afterwards all is put back, and a real run made. Both ways lead to the same kernel.
func TestPlansNeverLie(t *testing.T) {
	netlab.Require(t)
	keepParameters(t)
	for _, m := range []struct {
		mode, variant string
		programs      []string
		every, first  int // each so many of the scenarios are taken; each is taken in iptables-nft or nftables mode
	}{
		{modeIPTables, "nft", []string{"iptables-nft-save", "ip6tables-nft-save"}, 2, 0},
		{modeIPTables, "legacy", []string{"iptables-legacy-save", "ip6tables-legacy-save"}, 4, 0},
		{modeNFTables, "auto", []string{"nft -s list ruleset"}, 2, 1},
		{modeIPVS, "nft", []string{"iptables-nft-save", "ip6tables-nft-save", "ipvsadm -S -n", "ipset save", "ip -o address"}, 8, 0},
	} {
		t.Run(m.mode+"-"+m.variant, func(t *testing.T) {
			if m.mode == modeIPVS {
				netlab.RequireIPVS(t, ipvs.Probe(t.Context()))
			}
			if m.variant == "legacy" {
				netlab.RequireRoot(t, "have iptables-legacy-save print what the kernel holds")
			}
			if testing.Short() {
				m.every *= 8
			} else if seed.Race {
				m.every *= 2
			}
			l := &liar{t: t, mode: m.mode, variant: m.variant, programs: m.programs, state: t.TempDir()}
			for i, sequence := range append(scenarioSteps(t), randomSteps()...) {
				if i%m.every != m.first {
					continue
				}
				l.dir = t.TempDir()
				for j, files := range sequence.steps {
					for name, text := range files {
						if text == "" {
							os.Remove(filepath.Join(l.dir, name))
						} else {
							writeFiles(t, l.dir, map[string]string{name: text})
						}
					}
					l.step(fmt.Sprintf("%s, step %d", sequence.name, j+1))
					if t.Failed() {
						return
					}
				}
				if out, errOut, code := run("cleanup", "--state-dir", l.state); code != exitOK {
					t.Fatalf("cleanup: %s%s", out, errOut)
				}
			}
		})
	}
}

// keepParameters puts the kernel parameters back at the end that weir sets, because other tests use the namespace too.
func keepParameters(t *testing.T) {
	var parameters hostnet.Sysctl
	for _, name := range []string{
		"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.ipv4.conf.all.route_localnet",
		"net.netfilter.nf_conntrack_tcp_timeout_close_wait", "net.netfilter.nf_conntrack_tcp_timeout_established",
	} {
		value, err := parameters.Get(name)
		if err != nil {
			continue // this kernel does not have it
		}
		t.Cleanup(func() {
			if _, err := parameters.Ensure(name, value); err != nil {
				t.Error(err)
			}
		})
	}
}

type sequence struct {
	name  string
	steps []map[string]string // each the files that are written over those before; "" is one that goes
}

// scenarioSteps reads the inputs of all scenarios.
func scenarioSteps(t *testing.T) []sequence {
	t.Helper()
	const dir = "../../testdata/scenarios"
	names, err := filepath.Glob(dir + "/*.txtar")
	if err != nil || len(names) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	defaults := map[string]string{}
	common, _ := filepath.Glob(dir + "/defaults/*.yaml")
	for _, file := range common {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		defaults[filepath.Base(file)] = string(text)
	}
	var all []sequence
	for _, name := range names {
		archive, err := txtar.ParseFile(name)
		if err != nil {
			t.Fatal(err)
		}
		steps := map[string]map[string]string{"step-1": maps.Clone(defaults)}
		for _, f := range archive.Files {
			step, file, ok := strings.Cut(f.Name, "/")
			if !ok || file == "expect.yaml" {
				continue
			}
			if steps[step] == nil {
				steps[step] = map[string]string{}
			}
			steps[step][file] = string(f.Data)
		}
		s := sequence{name: filepath.Base(name)}
		for i := 1; steps[fmt.Sprintf("step-%d", i)] != nil; i++ {
			s.steps = append(s.steps, steps[fmt.Sprintf("step-%d", i)])
		}
		all = append(all, s)
	}
	return all
}

func randomSteps() []sequence {
	var all []sequence
	for seed := range uint64(6) {
		rnd := rand.New(rand.NewPCG(seed, 11))
		s := sequence{name: fmt.Sprintf("random %d", seed)}
		for range 3 {
			s.steps = append(s.steps, map[string]string{"all.yaml": string(randomManifests(rnd))})
		}
		all = append(all, s)
	}
	return all
}

func (l *liar) run(args ...string) string {
	l.t.Helper()
	all := slices.Concat(args, []string{"-f", l.dir, "--state-dir", l.state, "--hostname-override", "node", "--proxy-mode", l.mode, "--iptables-variant", l.variant})
	out, errOut, code := run(all...)
	if code != exitOK {
		l.t.Fatalf("weir %s: exit code %d: %s%s", strings.Join(all, " "), code, out, errOut)
	}
	return out
}

// printed is what the test reads of a plan.
type printed struct {
	Groups []struct {
		Kernel struct {
			Rules []struct {
				Op, ID, Old, New string
			}
			Programs []struct {
				Args  []string
				Input string
			}
		}
	}
}

// step tries the plan for the directory as it is now.
func (l *liar) step(name string) {
	t := l.t
	t.Helper()
	addFlow(t)
	before := l.everything()
	plan := l.run("reconcile", "--dry-run", "--detail", "rules", "-o", "json")
	if again := l.run("reconcile", "--dry-run", "--detail", "rules", "-o", "json"); again != plan {
		t.Errorf("%s: a second dry run differs:\n%s", name, cmp.Diff(plan, again))
	}
	if diff := cmp.Diff(before, l.everything()); diff != "" {
		t.Errorf("%s: a dry run changed something:\n%s", name, diff)
	}
	var p printed
	if err := json.Unmarshal([]byte(plan), &p); err != nil {
		t.Fatal(err)
	}
	checkSchema(t, "plan.schema.json", []byte(plan))

	holds := l.items()
	byHand := ""
	if l.mode == modeIPTables {
		saved := l.save()
		for _, program := range p.Groups[0].Kernel.Programs {
			pipe(t, program.Input, program.Args...)
		}
		byHand = l.kernel()
		l.restore(saved)
	}
	l.run("reconcile")
	if real := l.kernel(); byHand != "" && real != byHand {
		t.Errorf("%s: what the plan printed leads elsewhere than a real run (-printed +real):\n%s", name, cmp.Diff(byHand, real))
	}
	for _, r := range p.Groups[0].Kernel.Rules {
		if holds[r.ID] != r.Old {
			t.Errorf("%s: %s: the plan says that it was %q, and it was %q", name, r.ID, r.Old, holds[r.ID])
		}
		if holds[r.ID] = r.New; r.New == "" {
			delete(holds, r.ID)
		}
	}
	if diff := cmp.Diff(holds, l.items()); diff != "" {
		t.Errorf("%s: what was there, changed as the plan printed, is not what a real run leads to (-printed +real):\n%s", name, diff)
	}
	if out := l.run("reconcile", "--dry-run", "--detail", "kernel"); !strings.HasSuffix(out, ": 0 to create, 0 to update, 0 to delete\n") {
		t.Errorf("%s: after a real run there is still to do:\n%s", name, out)
	}
}

// items returns what the backend that the directory asks for finds in the kernel.
func (l *liar) items() map[string]string {
	l.t.Helper()
	m := newModeManager(hclog.NewNullLogger(), nodeFlags{hostname: "node", mode: l.mode, variantFlag: variantFlag{l.variant}}, false)
	snap, err := filesource.New(filesource.Options{Paths: []string{l.dir}}).Load(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	n, err := m.resolve(l.t.Context(), snap)
	if err != nil {
		l.t.Fatal(err)
	}
	all := map[string]string{}
	for item, err := range n.Backend.Observe(l.t.Context()) {
		if err != nil {
			l.t.Fatal(err)
		}
		all[string(item.ID())] = item.String()
	}
	return all
}

// everything returns all that a dry run might change: what the kernel holds, its settings, its connections, and the files.
func (l *liar) everything() string {
	var b strings.Builder
	b.WriteString(l.kernel())
	for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv4/conf/all/route_localnet", "net/netfilter/nf_conntrack_max",
		"net/netfilter/nf_conntrack_tcp_timeout_established", "net/netfilter/nf_conntrack_udp_timeout", "net/netfilter/nf_conntrack_tcp_be_liberal"} {
		value, err := os.ReadFile("/proc/sys/" + key)
		fmt.Fprintf(&b, "%s %s %v\n", key, value, err)
	}
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	fmt.Fprintf(&b, "flows %v\n", err)
	for _, f := range flows {
		fmt.Fprintf(&b, "flow %d %s:%d %s:%d\n", f.Forward.Protocol, f.Forward.SrcIP, f.Forward.SrcPort, f.Forward.DstIP, f.Forward.DstPort)
	}
	for _, dir := range []string{l.dir, l.state} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			fi, err := d.Info()
			if err != nil {
				return err
			}
			var sum [sha256.Size]byte
			if fi.Mode().IsRegular() {
				text, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				sum = sha256.Sum256(text)
			}
			fmt.Fprintf(&b, "%s %s %s %x\n", path, fi.Mode(), fi.ModTime(), sum[:4])
			return nil
		})
		if err != nil {
			l.t.Fatal(err)
		}
	}
	return b.String()
}

var counters = regexp.MustCompile(`\[\d+:\d+\]`)

// kernel returns what the kernel holds, without the counters.
func (l *liar) kernel() string {
	return counters.ReplaceAllString(l.save(), "[0:0]")
}

func (l *liar) save() string {
	l.t.Helper()
	var b strings.Builder
	for _, program := range l.programs {
		for line := range strings.Lines(pipe(l.t, "", strings.Fields(program)...)) {
			if line[0] != '#' {
				b.WriteString(line)
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

// restore puts back what save returned, and takes away all else.
func (l *liar) restore(saved string) {
	l.t.Helper()
	for i, text := range strings.Split(strings.TrimSuffix(saved, "\n"), "\n\n") {
		restore := strings.TrimSuffix(l.programs[i], "-save") + "-restore"
		for _, table := range []string{"filter", "nat"} {
			if !strings.Contains(text, "*"+table+"\n") { // it was not there
				pipe(l.t, "*"+table+"\nCOMMIT\n", restore)
			}
		}
		pipe(l.t, strings.TrimSpace(text)+"\n", restore)
	}
}

// pipe runs a program with an input, and returns what it prints.
func pipe(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	var errOut bytes.Buffer
	cmd.Stdin, cmd.Stderr = strings.NewReader(stdin), &errOut
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v: %s\n%s", args, err, errOut.String(), stdin)
	}
	return string(out)
}

// addFlow makes a connection that a real run would end: a UDP flow to a ClusterIP, and from an endpoint that no Service
// has.
func addFlow(t *testing.T) {
	t.Helper()
	ip := net.ParseIP
	err := netlink.ConntrackCreate(netlink.ConntrackTable, unix.AF_INET, &netlink.ConntrackFlow{
		FamilyType: unix.AF_INET,
		Forward:    netlink.IPTuple{Protocol: unix.IPPROTO_UDP, SrcIP: ip("192.0.2.1").To4(), SrcPort: 1234, DstIP: ip("10.96.0.10").To4(), DstPort: 80},
		Reverse:    netlink.IPTuple{Protocol: unix.IPPROTO_UDP, SrcIP: ip("10.244.9.9").To4(), SrcPort: 80, DstIP: ip("192.0.2.1").To4(), DstPort: 1234},
		TimeOut:    600,
	})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		t.Fatal(err)
	}
}
