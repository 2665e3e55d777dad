package main_test

import (
	"errors"
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
	"weir/spec/apisource/apitest"
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
	for _, name := range []string{"weir.service", "weir-pull.service", "weir-pull-render.service", "weir-pull.timer"} {
		text, err := os.ReadFile(filepath.Join(systemdExamples, name))
		if err != nil {
			t.Fatal(err)
		}
		// The programs are not installed here.
		render, err := filepath.Abs(filepath.Join(systemdExamples, "weir-render"))
		if err != nil {
			t.Fatal(err)
		}
		if name == "weir.service" { // with what a drop-in adds
			more, err := os.ReadFile(filepath.Join(systemdExamples, "names.conf"))
			if err != nil {
				t.Fatal(err)
			}
			text = append(append(text, '\n'), more...)
		}
		text = []byte(strings.NewReplacer("/usr/local/bin/weir ", os.Getenv(binaryEnv)+" ", "/usr/local/bin/weir-render", render).Replace(string(text)))
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
	netlab.RequireRoot(t, "give files to the users that sysusers.d makes")
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

// origin is a Git repository that a node pulls from.
type origin struct {
	t   *testing.T
	dir string
}

func newOrigin(t *testing.T) *origin {
	t.Helper()
	o := &origin{t, t.TempDir()}
	o.git("init", "-q")
	return o
}

func (o *origin) git(args ...string) {
	o.t.Helper()
	cmd := exec.Command("git", append([]string{"-C", o.dir, "-c", "user.name=t", "-c", "user.email=t@example.com"}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		o.t.Fatalf("git %v: %v\n%s", args, err, out)
	}
}

func (o *origin) commit(files map[string]string) {
	o.t.Helper()
	for name, text := range files {
		path := filepath.Join(o.dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			o.t.Fatal(err)
		}
	}
	o.git("add", "-A")
	o.git("commit", "-q", "-m", "x")
}

func (o *origin) clone(dir string) {
	o.t.Helper()
	o.git("clone", "-q", "--depth", "1", "file://"+o.dir, dir)
}

// systemdPods starts a lab with two pods that answer.
func systemdPods(t *testing.T) *netlab.Lab {
	t.Helper()
	lab := netlab.New(t, netlab.Topology{Pods: 2})
	lab.Host("pod1").Serve(t, netlab.TCP, 80)
	lab.Host("pod2").Serve(t, netlab.TCP, 80)
	return lab
}

// TestSystemdPull has the command of weir-pull.service bring a change to a node whose clone is where the unit has it.
func TestSystemdPull(t *testing.T) {
	t.Parallel()
	o, clone := newOrigin(t), filepath.Join(t.TempDir(), "current")
	o.commit(map[string]string{"config.yaml": painConfig, "web.yaml": painService, "slice.yaml": painSlice(1)})
	o.clone(clone)
	d := newDaemon(t, systemdPods(t), modeNamed(t, "nftables"))
	d.dir = clone
	d.start()
	d.awaitAnswer("pod1")
	o.commit(map[string]string{"slice.yaml": painSlice(2)})
	line := strings.Fields(strings.ReplaceAll(unitSettings(t, "weir-pull.service")["ExecStart"], "/srv/weir/current", clone))
	if out, err := exec.Command(line[0], line[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", line, err, out)
	}
	d.awaitAnswer("pod2")
}

// TestSystemdRender has weir-render bring changes to a node whose repository is rendered by the kustomize program. What
// cannot be rendered leaves the old directory in place, and nothing else behind.
func TestSystemdRender(t *testing.T) {
	t.Parallel()
	o, srv, bin := newOrigin(t), t.TempDir(), t.TempDir()
	kustomize := apitest.Binary(t, "kustomizepeer")
	script, err := os.ReadFile(filepath.Join(systemdExamples, "weir-render"))
	if err := errors.Join(err, os.Symlink(kustomize, filepath.Join(bin, "kustomize"))); err != nil {
		t.Fatal(err)
	}
	render := func() (string, error) {
		cmd := exec.CommandContext(t.Context(), "sh", "-c", strings.ReplaceAll(string(script), "/srv/weir", srv))
		cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	mustRender := func() {
		t.Helper()
		if out, err := render(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	o.commit(map[string]string{
		"base/kustomization.yaml": "resources: [web.yaml]\ngeneratorOptions: {disableNameSuffixHash: true}\nconfigMapGenerator: [{name: kube-proxy, namespace: kube-system, files: [config.conf=config.yaml]}]\n",
		"base/config.yaml":        painConfig, "base/web.yaml": strings.Replace(painService, "10.96.0.10", "10.96.0.99", 1),
		"overlays/edge/kustomization.yaml": "resources: [../../base, slice.yaml]\npatches: [{path: patch.yaml}]\n",
		"overlays/edge/patch.yaml":         "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.10}\n",
		"overlays/edge/slice.yaml":         painSlice(1),
	})
	o.clone(filepath.Join(srv, "source"))
	mustRender()
	d := newDaemon(t, systemdPods(t), modeNamed(t, "nftables"))
	d.dir = filepath.Join(srv, "current")
	d.start()
	d.awaitAnswer("pod1")

	o.commit(map[string]string{"overlays/edge/patch.yaml": "kind: [\n"})
	before, err := os.Readlink(d.dir)
	if out, renderErr := render(); renderErr == nil || err != nil {
		t.Errorf("what cannot be rendered is taken: %v: %s", err, out)
	}
	if after, err := os.Readlink(d.dir); after != before || err != nil {
		t.Errorf("the directory is %s, %v; before it was %s", after, err, before)
	}
	o.commit(map[string]string{"overlays/edge/patch.yaml": "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.10}\n", "overlays/edge/slice.yaml": painSlice(2)})
	mustRender()
	d.awaitAnswer("pod2")
	if left, err := filepath.Glob(srv + "/*"); err != nil || len(left) != 3 { // the clone, the rendered directory, and the link to it
		t.Errorf("left: %v, %v", left, err)
	}
}

// helmStub stands for helm where that is not installed: it renders a chart without values into the directory that is asked for,
// as helm does.
const helmStub = `#!/bin/sh
[ "$1 $2 $4 $6" = "template edge --values --output-dir" ] && [ -f "$3/Chart.yaml" ] && [ -f "$5" ] || { echo "unexpected: $*" >&2; exit 1; }
mkdir -p "$7/edge/templates"
address=$(sed -n 's/^address: //p' "$5")
for template in "$3"/templates/*; do
	sed "s/{{ .Values.address }}/$address/" "$template" > "$7/edge/templates/${template##*/}"
done
`

// TestSystemdRenderHelm has weir-render, with its line for Helm instead of that for kustomize, bring changes of a chart's values
// to a node.
func TestSystemdRenderHelm(t *testing.T) {
	t.Parallel()
	o, srv, bin := newOrigin(t), t.TempDir(), t.TempDir()
	text, err := os.ReadFile(filepath.Join(systemdExamples, "weir-render"))
	if err != nil {
		t.Fatal(err)
	}
	script := strings.ReplaceAll(strings.Replace(strings.Replace(string(text), "kustomize build", "# kustomize build", 1), "# helm template", "helm template", 1), "/srv/weir", srv)
	if !strings.Contains(script, "\nhelm template edge ") || strings.Contains(script, "\nkustomize") {
		t.Fatalf("weir-render has no line for Helm:\n%s", script)
	}
	if _, err := exec.LookPath("helm"); err != nil {
		if err := os.WriteFile(filepath.Join(bin, "helm"), []byte(helmStub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	render := func() {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "sh", "-c", script)
		cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	d := newDaemon(t, systemdPods(t), modeNamed(t, "nftables"))
	address := regexp.MustCompile(`addresses: \[([0-9.]+)\]`)
	slice := painSlice(1)
	m := address.FindStringSubmatch(slice)
	if m == nil {
		t.Fatalf("no address in %s", slice)
	}
	second := address.FindStringSubmatch(painSlice(2))[1]
	o.commit(map[string]string{
		"charts/edge/Chart.yaml":            "apiVersion: v2\nname: edge\nversion: 0.1.0\n",
		"charts/edge/templates/config.yaml": painConfig, "charts/edge/templates/web.yaml": painService,
		"charts/edge/templates/slice.yaml": strings.Replace(slice, m[1], "{{ .Values.address }}", 1),
		"edge.yaml":                        "address: " + m[1] + "\n",
	})
	o.clone(filepath.Join(srv, "source"))
	render()
	d.dir = filepath.Join(srv, "current")
	d.start()
	d.awaitAnswer("pod1")
	o.commit(map[string]string{"edge.yaml": "address: " + second + "\n"})
	render()
	d.awaitAnswer("pod2")
}

// TestSystemdConfinement runs weir with what the unit leaves it: its capabilities, a file system that is read-only but for
// the unit's paths, and no way to more. It programs the kernel, answers for names, and hands over.
func TestSystemdConfinement(t *testing.T) {
	t.Parallel()
	unit := unitSettings(t, "weir.service")
	lab := netlab.New(t, netlab.Topology{Pods: 1})
	lab.Host("pod1").Serve(t, netlab.TCP, 80)
	d := newDaemon(t, lab, iptablesMode("nft"))
	d.write(map[string]string{"config.yaml": painConfig, "web.yaml": painService, "slice.yaml": painSlice(1)})
	d.flags = append(d.flags, "--dns", "--dns-upstream", "127.0.0.1:9")
	c := &container{Root: "/", Args: d.line(d.args("run")...), Env: append([]string{"RUNTIME_DIRECTORY=/run/" + unit["RuntimeDirectory"]}, append(os.Environ(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin")...)}
	for _, name := range strings.Fields(unit["CapabilityBoundingSet"]) {
		n, ok := map[string]int{"CAP_NET_ADMIN": unix.CAP_NET_ADMIN, "CAP_NET_RAW": unix.CAP_NET_RAW, "CAP_NET_BIND_SERVICE": unix.CAP_NET_BIND_SERVICE}[name]
		if !ok {
			t.Fatalf("capability %s is not known here", name)
		}
		c.Capabilities = append(c.Capabilities, n)
	}
	if unit["ProtectSystem"] != "strict" || unit["ProtectKernelTunables"] != "" {
		t.Fatalf("the file system is not confined as it is here: %v", unit)
	}
	for _, path := range append(strings.Fields(unit["ReadWritePaths"]), "/proc", d.state) {
		path, optional := strings.CutPrefix(path, "-")
		if _, err := os.Stat(path); optional && err != nil {
			continue
		}
		c.Mounts = append(c.Mounts, mount{Source: path, Target: path})
	}
	for _, s := range []string{"ip_forward", "conf/all/route_localnet"} {
		d.nodeExec("sysctl", "-qw", "net/ipv4/"+s+"=0")
	}
	d.startContainer(c)
	d.awaitAnswer("pod1")
	d.awaitName("web.default.svc.cluster.local.", "10.96.0.10")
	if out := d.nodeExec("sysctl", "-n", "net/ipv4/ip_forward"); strings.TrimSpace(out) != "1" {
		t.Errorf("net.ipv4.ip_forward is %s", out)
	}
	d.await("the record of what was applied", func() error {
		_, err := os.Stat(filepath.Join(d.state, "applied.json"))
		return err
	})
	for line := range strings.Lines(d.logs()) {
		// Systemd sets oomScoreAdj before it drops the right to; the size of the conntrack table is not a namespace's to set.
		excused := strings.Contains(line, "oomScoreAdj") || strings.Contains(line, "nf_conntrack_max") ||
			strings.Contains(line, "conntrack hash size") && !doctor.InFirstUserNamespace()
		if !excused && regexp.MustCompile("permi|read-only").MatchString(line) {
			t.Errorf("the unit leaves too little: %s", line)
		}
	}
	d.handOver() // as ExecReload does
	d.awaitName("web.default.svc.cluster.local.", "10.96.0.10")
	d.awaitAnswer("pod1")
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
