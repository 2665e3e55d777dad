package main_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weir/backends/doctor"
	"weir/backends/ipvs"
	"weir/backends/netlab"
)

const systemdExamples = "../../examples/systemd"

// systemd returns a program of systemd's, which works on files without systemd running.
func systemd(t *testing.T, program string, args ...string) *exec.Cmd {
	t.Helper()
	netlab.RequireProgram(t, program)
	return exec.Command(program, args...)
}

// TestSystemdUnits has systemd itself judge examples/systemd.
func TestSystemdUnits(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var units []string
	for _, name := range []string{"weir.service", "weir-pull.service", "weir-pull.timer"} {
		text, err := os.ReadFile(filepath.Join(systemdExamples, name))
		if err != nil {
			t.Fatal(err)
		}
		// The program is not installed here.
		text = []byte(strings.Replace(string(text), "/usr/local/bin/weir ", os.Getenv(binaryEnv)+" ", 1))
		unit := filepath.Join(dir, name)
		if err := os.WriteFile(unit, text, 0o644); err != nil {
			t.Fatal(err)
		}
		units = append(units, unit)
	}
	for _, cmd := range []*exec.Cmd{
		systemd(t, "systemd-analyze", append([]string{"verify", "--man=no"}, units...)...),
		// 10 is no confinement at all; programming the network alone makes it 2.
		systemd(t, "systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=28", units[0]),
	} {
		if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "nknown") {
			t.Errorf("%v: %v\n%s", cmd.Args, err, out)
		}
	}
}

// TestSystemdFiles makes what sysusers.d and tmpfiles.d say under a root of its own.
func TestSystemdFiles(t *testing.T) {
	t.Parallel()
	if !doctor.InFirstUserNamespace() {
		t.Skip("only root of the system can give files to the users that sysusers.d makes")
	}
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"systemd-sysusers", "sysusers.conf"}, {"systemd-tmpfiles", "--create", "tmpfiles.conf"}} {
		file, err := filepath.Abs(filepath.Join(systemdExamples, args[len(args)-1]))
		if err != nil {
			t.Fatal(err)
		}
		cmd := systemd(t, args[0], append(append([]string{"--root=" + root}, args[1:len(args)-1]...), file)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
		}
	}
	for path, mode := range map[string]os.FileMode{"srv/weir": os.ModeDir | 0o755, "run/xtables.lock": 0o600} {
		if fi, err := os.Stat(filepath.Join(root, path)); err != nil || fi.Mode() != mode {
			t.Errorf("%s: %v, %v; want mode %v", path, fi, err, mode)
		}
	}
}

// TestSystemdModules: what is loaded at boot is what mode ipvs asks for, its default schedulers, and nothing that is not of it.
func TestSystemdModules(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(systemdExamples, "modules-load.conf"))
	if err != nil {
		t.Fatal(err)
	}
	var modules []string
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "#") {
			modules = append(modules, line)
		}
	}
	for _, needed := range append(slices.Clone(ipvs.Modules), "ip_vs_rr", "ip_vs_wrr") {
		if !slices.Contains(modules, needed) {
			t.Errorf("%s is not loaded at boot", needed)
		}
	}
	for _, m := range modules {
		if !slices.Contains(ipvs.Modules, m) && !strings.HasPrefix(m, "ip_vs_") {
			t.Errorf("%q is neither needed nor a scheduler", m)
		}
	}
}

// TestSystemdPull has the command of weir-pull.service bring a change to a node whose clone is where the unit has it.
func TestSystemdPull(t *testing.T) {
	t.Parallel()
	origin, clone := t.TempDir(), filepath.Join(t.TempDir(), "current")
	git := func(dir string, args ...string) {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=t", "-c", "user.email=t@example.com"}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	commit := func(files map[string]string) {
		t.Helper()
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(origin, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		git(origin, "add", "-A")
		git(origin, "commit", "-q", "-m", "x")
	}
	git(origin, "init", "-q")
	commit(map[string]string{"config.yaml": painConfig, "web.yaml": painService, "slice.yaml": painSlice(1)})
	git(".", "clone", "-q", "--depth", "1", "file://"+origin, clone)

	lab := netlab.New(t, netlab.Topology{Pods: 2})
	lab.Host("pod1").Serve(t, netlab.TCP, 80)
	lab.Host("pod2").Serve(t, netlab.TCP, 80)
	d := newDaemon(t, lab, modeNamed(t, "nftables"))
	d.dir = clone
	d.start()
	d.awaitAnswer("pod1")
	commit(map[string]string{"slice.yaml": painSlice(2)})
	line := strings.Fields(strings.ReplaceAll(unitSettings(t, "weir-pull.service")["ExecStart"], "/srv/weir/current", clone))
	if out, err := exec.Command(line[0], line[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", line, err, out)
	}
	d.awaitAnswer("pod2")
}

// TestSystemdConfinement runs weir with what the unit leaves it: its capabilities, a file system that is read-only but for
// the unit's paths, and no way to more.
func TestSystemdConfinement(t *testing.T) {
	t.Parallel()
	unit := unitSettings(t, "weir.service")
	lab := netlab.New(t, netlab.Topology{Pods: 1})
	lab.Host("pod1").Serve(t, netlab.TCP, 80)
	d := newDaemon(t, lab, iptablesMode("nft"))
	d.write(map[string]string{"config.yaml": painConfig, "web.yaml": painService, "slice.yaml": painSlice(1)})
	c := &container{Root: "/", Args: d.line(d.args("run")...), Env: append(os.Environ(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin")}
	for _, name := range strings.Fields(unit["CapabilityBoundingSet"]) {
		n, ok := map[string]int{"CAP_NET_ADMIN": unix.CAP_NET_ADMIN, "CAP_NET_RAW": unix.CAP_NET_RAW}[name]
		if !ok {
			t.Fatalf("capability %s is not known here", name)
		}
		c.Capabilities = append(c.Capabilities, n)
	}
	if unit["ProtectSystem"] != "strict" || unit["ProtectKernelTunables"] != "" {
		t.Fatalf("the file system is not confined as it is here: %v", unit)
	}
	for _, path := range append(strings.Fields(unit["ReadWritePaths"]), "/proc", d.state) {
		c.Mounts = append(c.Mounts, mount{Source: path, Target: path})
	}
	for _, s := range []string{"ip_forward", "conf/all/route_localnet"} {
		d.nodeExec("sysctl", "-qw", "net/ipv4/"+s+"=0")
	}
	d.startContainer(c)
	d.awaitAnswer("pod1")
	if out := d.nodeExec("sysctl", "-n", "net/ipv4/ip_forward"); strings.TrimSpace(out) != "1" {
		t.Errorf("net.ipv4.ip_forward is %s", out)
	}
	if _, err := os.Stat(filepath.Join(d.state, "applied.json")); err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(d.logs()) {
		// Systemd sets oomScoreAdj before it drops the right to; the size of the conntrack table is not a namespace's to set.
		excused := strings.Contains(line, "oomScoreAdj") || strings.Contains(line, "nf_conntrack_max") ||
			strings.Contains(line, "conntrack hash size") && !doctor.InFirstUserNamespace()
		if !excused && regexp.MustCompile("permi|read-only").MatchString(line) {
			t.Errorf("the unit leaves too little: %s", line)
		}
	}
	d.terminate()
}

// unitSettings returns the settings of a unit file, the values of which are joined where there are several.
func unitSettings(t *testing.T, name string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(systemdExamples, name))
	if err != nil {
		t.Fatal(err)
	}
	settings := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(line, "#") {
			settings[key] = strings.TrimSpace(fmt.Sprint(settings[key], " ", value))
		}
	}
	return settings
}
