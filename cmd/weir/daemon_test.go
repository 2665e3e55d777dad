package main_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"weir/backends/netlab"
)

// patience is how long a test waits for what must come. It is generous, since nothing may depend on how fast the machine is.
const patience = 3 * time.Minute

// mode is one way of programming the kernel that every scenario is run in.
type mode struct {
	name  string // of the subtest
	plans string // directory of the golden plans
	flags []string
	// saves lists the commands that print what others own as well.
	saves [][]string
	// proxies reports that a process is between client and endpoint: the endpoint sees the node's address, whatever a scenario
	// says of it, and nobody is served without the process.
	proxies bool
	// rootless reports that nothing leads to the Services' addresses unless the node has them.
	rootless bool
	// inTurn reports that endpoints are taken in turn rather than by chance, and that addresses stay while connections to them
	// are drained.
	inTurn bool
	// more returns what there is besides rules: of others, and of weir. It and addMore, which adds something of others, may
	// be nil.
	more    func(d *daemon) (foreign, own string)
	addMore func(d *daemon)
	// needs skips the test if this kernel cannot run the mode. It may be nil.
	needs func(t testing.TB)
}

// kills reports whether scenarios kill weir in this mode. In a virtual machine, which is slow, they do so only in the mode that
// runs nowhere else.
func (m mode) kills() bool { return os.Getenv(netlab.VMEnv) == "" || m.plans == ipvsMode.plans }

var modes = []mode{
	iptablesMode("nft"),
	iptablesMode("legacy"),
	{
		name: "nftables", plans: "nftables", flags: []string{"--proxy-mode", "nftables"},
		saves: [][]string{{"iptables-nft-save"}, {"ip6tables-nft-save"}},
	},
	ipvsMode,
	{
		name: "userspace", plans: "userspace", flags: []string{"--proxy-mode", "userspace", "--iptables-variant", "nft"},
		saves: [][]string{{"iptables-nft-save"}, {"ip6tables-nft-save"}}, proxies: true,
	},
	{
		name: "userspace-rootless", plans: "userspace-rootless", flags: []string{"--rootless"},
		saves: [][]string{{"iptables-nft-save"}, {"ip6tables-nft-save"}}, proxies: true, rootless: true,
	},
}

// ruleModes are those in which rules of the packet filter do everything.
var ruleModes = modes[:3]

// eachMode runs a test in each of the modes that this kernel can run.
func eachMode(t *testing.T, of []mode, test func(t *testing.T, m mode)) {
	for _, m := range of {
		t.Run(m.name, func(t *testing.T) {
			if m.needs != nil {
				m.needs(t)
			}
			test(t, m)
		})
	}
}

func iptablesMode(variant string) mode {
	return mode{
		name:  "iptables-" + variant,
		plans: "iptables",
		flags: []string{"--proxy-mode", "iptables", "--iptables-variant", variant},
		saves: [][]string{{"iptables-" + variant + "-save"}, {"ip6tables-" + variant + "-save"}},
	}
}

// daemon is a weir process on the node of a lab, and the directory it reads.
type daemon struct {
	t     *testing.T
	lab   *netlab.Lab
	mode  mode
	dir   string
	state string
	flags []string
	// alone reports that weir finds no program to run.
	alone bool
	// program is what is run in place of the program that is tested, or "".
	program string
	// etc is the directory that weir and dnsProbe have in place of /etc, or "".
	etc string

	cmd  *exec.Cmd
	log  *os.File
	done chan error
	// unread is where in the log the present process began, as long as it is not known to have made a round.
	unread int64
}

// quick are the tests that run a whole program in make check too: the main scenarios in the quickest mode, and how a
// process starts, serves, is refused and ends.
var quick = regexp.MustCompile(`^(` +
	`TestScenario/nftables/(cluster-ip|dual-stack|endpoints-object|external-ips|external-traffic-policy-local|hairpin|headless-and-external-name|` +
	`internal-traffic-policy-local|list-and-json|load-balancer|named-ports|no-endpoints-reject|node-port|pain-12-connections-survive|` +
	`pain-18-config-is-live|pain-42-one-owner-of-an-address|source-ranges|terminating-endpoints|topology-hints|udp|weights)|` +
	`TestRunServesHealthAndMetrics|TestRunEndsAndLeavesTheKernelForwarding|TestTwoDaemonsDoNotFight|TestReconcileOnce|` +
	`TestRefusedConfigurationChangesNothing|TestUserspaceDrainsOnSIGTERM)$`)

// newDaemon prepares a daemon with an empty input directory. It is not running.
func newDaemon(t *testing.T, lab *netlab.Lab, m mode, flags ...string) *daemon {
	t.Helper()
	if !quick.MatchString(t.Name()) {
		netlab.RequireFull(t)
	}
	d := &daemon{t: t, lab: lab, mode: m, dir: t.TempDir(), state: t.TempDir(), flags: flags}
	var err error
	if d.log, err = os.Create(filepath.Join(t.TempDir(), "weir.log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if d.cmd != nil {
			d.kill()
		}
		if t.Failed() {
			t.Logf("the log of weir:\n%s", d.logs())
		}
		d.log.Close()
	})
	return d
}

// args returns a command line of the subcommand.
func (d *daemon) args(sub string, more ...string) []string {
	args := []string{sub, "-f", d.dir, "--hostname-override", "node", "--state-dir", d.state}
	return slices.Concat(args, d.mode.flags, d.flags, more)
}

// line is what is executed to run weir.
func (d *daemon) line(args ...string) []string {
	line := d.withEtc(append([]string{cmp.Or(d.program, os.Getenv(binaryEnv))}, args...)...)
	if d.alone {
		const hide = `mount -t tmpfs none /usr/sbin && PATH=/nonexistent exec "$@"`
		line = append([]string{"unshare", "--mount", "sh", "-c", hide, "sh"}, line...)
	}
	return line
}

// write puts files into the input directory, each atomically; an empty one removes the file.
func (d *daemon) write(files map[string]string) {
	d.t.Helper()
	for name, text := range files {
		file := filepath.Join(d.dir, name)
		err := os.MkdirAll(filepath.Dir(file), 0o755)
		switch {
		case err != nil:
		case text == "":
			err = os.Remove(file)
		default:
			tmp := filepath.Join(filepath.Dir(file), "."+filepath.Base(file)+".tmp")
			if err = os.WriteFile(tmp, []byte(text), 0o644); err == nil {
				err = os.Rename(tmp, file)
			}
		}
		if err != nil {
			d.t.Fatal(err)
		}
	}
}

// start runs `weir run`.
func (d *daemon) start() {
	d.t.Helper()
	line := d.line(d.args("run")...)
	d.launch(d.lab.Node().Command(context.Background(), line[0], line[1:]...))
}

// launch runs a command that is, or becomes, `weir run`.
func (d *daemon) launch(cmd *exec.Cmd) {
	d.t.Helper()
	cmd.Stdout, cmd.Stderr = d.log, d.log
	d.unread, _ = d.log.Seek(0, io.SeekEnd)
	if err := d.lab.Node().Start(cmd); err != nil {
		d.t.Fatalf("start weir: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	d.cmd, d.done = cmd, done
}

// awaitRunning waits until a process that may just have been started handles signals and serves /healthz.
func (d *daemon) awaitRunning() {
	d.t.Helper()
	d.await("the health server", func() error {
		conn, err := d.lab.Node().DialContext(d.t.Context(), "tcp", "127.0.0.1:10256")
		if err == nil {
			conn.Close()
		}
		return err
	})
}

// kill ends the process as a power cut would.
func (d *daemon) kill() {
	_ = d.cmd.Process.Kill()
	<-d.done
	d.cmd = nil
}

// terminate asks the process to end, and expects it to do so properly.
func (d *daemon) terminate() {
	d.t.Helper()
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-d.done:
		d.cmd = nil
		if err != nil {
			d.t.Errorf("weir run ends with %v on SIGTERM", err)
		}
	case <-time.After(patience):
		d.t.Errorf("weir run does not end on SIGTERM")
		_ = d.cmd.Process.Signal(syscall.SIGQUIT)
		<-d.done
		d.cmd = nil
	}
}

// logs returns what the process has logged so far.
func (d *daemon) logs() string {
	b, err := os.ReadFile(d.log.Name())
	if err != nil {
		return err.Error()
	}
	const tail = 24 << 10
	return string(b[max(0, len(b)-tail):])
}

// run runs a subcommand to its end and returns its standard output.
func (d *daemon) run(sub string, more ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	line := d.line(d.args(sub, more...)...)
	return d.lab.Node().Exec(ctx, line[0], line[1:]...)
}

// cleanup runs `weir cleanup`, which needs no input and finds out by itself what is there.
func (d *daemon) cleanup() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	line := d.line("cleanup", "--state-dir", d.state)
	return d.lab.Node().Exec(ctx, line[0], line[1:]...)
}

// noChanges is what the summary line of an empty plan says.
const noChanges = ": 0 to create, 0 to update, 0 to delete\n"

// pendingPlan returns the plan that a dry run prints, or "" if it is empty.
func (d *daemon) pendingPlan() (string, error) {
	out, err := d.run("reconcile", "--dry-run", "--detail", "kernel")
	if err == nil && strings.HasSuffix(out, noChanges) {
		out = ""
	}
	return out, err
}

// awaitSync waits until the kernel holds what the files say, as a dry run finds it.
func (d *daemon) awaitSync() {
	d.t.Helper()
	d.giveStart()
	var plan string
	d.await("an empty plan", func() (err error) {
		if plan, err = d.pendingPlan(); err == nil && plan != "" {
			err = fmt.Errorf("still to do:\n%s", plan)
		}
		return err
	})
}

// giveStart gives a process that was just started some time to make its first round before anybody makes dry runs, which take
// from it what it needs.
func (d *daemon) giveStart() {
	const enough = 5 * time.Second // a log that is too quiet says nothing
	for began := time.Now(); d.cmd != nil && d.unread >= 0 && time.Since(began) < enough; time.Sleep(20 * time.Millisecond) {
		log, err := os.ReadFile(d.log.Name())
		if err != nil || firstRound.Match(log[d.unread:]) {
			break
		}
	}
	d.unread = -1
}

var firstRound = regexp.MustCompile(`reason"?[=:]"?start`)

// await polls until check succeeds or patience ends, or until weir has died.
func (d *daemon) await(what string, check func() error) {
	d.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		began := time.Now()
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("waited %s for %s: %v", patience, what, err)
		}
		var died <-chan error
		if d.cmd != nil {
			died = d.done
		}
		select {
		case err := <-died:
			d.cmd = nil
			d.t.Fatalf("weir died while the test waited for %s: %v", what, err)
		// A check that runs weir takes from the weir that is waited for.
		case <-time.After(max(30*time.Millisecond, time.Since(began))):
		}
	}
}

// foreign is what stands for Docker, a firewall and an administrator: rules before and after weir's own, in the same
// tables, and a table of its own.
const foreign = `*nat
:OTHER-DNAT - [0:0]
:OTHER-MASQ - [0:0]
-A PREROUTING -p tcp -m tcp --dport 9 -m comment --comment "not weir's, but says WEIR" -j OTHER-DNAT
-A OTHER-DNAT -j RETURN
-A POSTROUTING -s 172.31.0.0/16 -j OTHER-MASQ
-A OTHER-MASQ -j MASQUERADE
COMMIT
*filter
:OTHER-FWD - [0:0]
-A FORWARD -i other0 -j OTHER-FWD
-A OTHER-FWD -j DROP
-A INPUT -i other0 -p udp -m udp --dport 9 -j ACCEPT
COMMIT
`

// addForeign writes the foreign rules through the mode's own tools.
func (d *daemon) addForeign() {
	d.t.Helper()
	for _, save := range d.mode.saves {
		restore := strings.TrimSuffix(save[0], "-save") + "-restore"
		input := foreign
		if strings.HasPrefix(restore, "ip6") {
			input = strings.ReplaceAll(input, "172.31.0.0/16", "fd00:31::/64")
		}
		if _, err := d.lab.Node().ExecInput(d.t.Context(), input, restore, "--noflush"); err != nil {
			d.t.Fatal(err)
		}
	}
	if d.mode.addMore != nil {
		d.mode.addMore(d)
	}
	const table = "table inet other { chain c { type filter hook prerouting priority -150; tcp dport 9 counter drop; }; }"
	_, err := d.lab.Node().ExecInput(d.t.Context(), table, "nft", "-f", "-")
	if err != nil && !errors.Is(err, exec.ErrNotFound) {
		d.t.Fatal(err)
	}
}

// foreignRules returns all that is not weir's.
func (d *daemon) foreignRules() string {
	d.t.Helper()
	foreign, _ := d.rules()
	out, err := d.lab.Node().Exec(context.Background(), "nft", "list", "table", "inet", "other")
	if err != nil && !errors.Is(err, exec.ErrNotFound) {
		d.t.Fatal(err)
	}
	return foreign + out
}

// ownRules returns what the kernel holds of weir.
func (d *daemon) ownRules() string {
	d.t.Helper()
	_, own := d.rules()
	return own
}

// rules returns the lines that the mode's tools print, and what there is more, those of others and those of weir, without the counters.
func (d *daemon) rules() (foreign, own string) {
	d.t.Helper()
	var ours, theirs strings.Builder
	for _, save := range d.mode.saves {
		out, err := d.lab.Node().Exec(context.Background(), save[0], save[1:]...)
		if err != nil {
			d.t.Fatal(err)
		}
		// A table that is empty may be listed or not, and before others or after them.
		tables, table := map[string]string{}, ""
		for line := range strings.Lines(out) {
			// The counters of chains move with the traffic.
			line, _, _ = strings.Cut(strings.TrimSpace(line), " [")
			switch {
			case line[0] == '*':
				table = line
			case line[0] == '#', line == "COMMIT", strings.HasPrefix(line, ":") && strings.HasSuffix(line, " ACCEPT"):
			case strings.HasPrefix(line, ":WEIR-"), strings.HasPrefix(line, "-A WEIR-"), strings.Contains(line, "-j WEIR-"):
				ours.WriteString(table + " " + line + "\n")
			default:
				tables[table] += table + " " + line + "\n"
			}
		}
		for _, name := range slices.Sorted(maps.Keys(tables)) {
			theirs.WriteString(tables[name])
		}
	}
	ours.WriteString(d.answerRoutes())
	if d.mode.more != nil {
		f, o := d.mode.more(d)
		theirs.WriteString(f)
		ours.WriteString(o)
	}
	return theirs.String(), ours.String()
}
