package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/backends/iptables"
	"weir/backends/xtables"
	"weir/reconcile"
	"weir/reconcile/tell/changes"
	"weir/spec"
	"weir/spec/manifest"
)

var updatePlans = flag.Bool("update-plans", false, "rewrite the golden plans in testdata/plans")

const plansDir = "../../testdata/plans"

// weirCommand runs a command line in a copy of the directory of the golden plans that is in no Git work tree, so that what
// it prints depends on nothing else.
func weirCommand(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(plansDir)); err != nil {
		t.Fatal(err)
	}
	return inDirectory(t, dir, args...)
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	name = filepath.Join(plansDir, name)
	if *updatePlans {
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatalf("%v; write it with -update-plans", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (-want +got); -update-plans accepts it:\n%s", name, diff)
	}
}

// TestPlanFormats prints one plan for a fleet in every format, twice.
func TestPlanFormats(t *testing.T) {
	for _, format := range []string{"text", "json", "yaml", "markdown"} {
		t.Run(format, func(t *testing.T) {
			args := []string{"reconcile", "--dry-run", "-f", "after.yaml", "--against", "before.yaml", "--node", "nodes.yaml", "-o", format}
			out, errOut, code := weirCommand(t, args...)
			if code != exitOK || errOut != "" {
				t.Fatalf("exit code %d: %s", code, errOut)
			}
			golden(t, "fleet."+format, out)
			if again, _, _ := weirCommand(t, args...); again != out {
				t.Error("a second dry run prints something else")
			}
			switch format {
			case "json":
				checkSchema(t, "plan.schema.json", []byte(out))
			case "yaml":
				converted, err := yaml.YAMLToJSON([]byte(out))
				if err != nil {
					t.Fatal(err)
				}
				checkSchema(t, "plan.schema.json", converted)
			}
		})
	}
}

func TestPlanExitCodes(t *testing.T) {
	for _, tt := range []struct {
		args string
		want int
	}{
		{"-f after.yaml --against before.yaml", exitOK},
		{"-f after.yaml --against before.yaml --exit-code", exitChanges},
		{"-f after.yaml --against after.yaml --exit-code", exitOK},
		{"-f after.yaml --against before.yaml --fail-on warning", exitFailure},
		{"-f after.yaml --against after.yaml --fail-on warning", exitOK},
		{"-f after.yaml --against nonesuch --exit-code", exitFailure},
		{"-f after.yaml --against plan.schema.json", exitFailure},
		{"-f after.yaml --against git:nonesuch", exitFailure},
		{"-f after.yaml --against empty --fail-on error", exitUsage},
		{"-f after.yaml --against empty --exit-code -o html", exitFailure},
		{"-f after.yaml --against empty --detail rules", exitUsage},
		{"-f after.yaml --against empty --node before.yaml", exitUsage},
		{"-f after.yaml --node nodes.yaml", exitUsage},
	} {
		if out, errOut, code := weirCommand(t, append([]string{"reconcile", "--dry-run"}, strings.Fields(tt.args)...)...); code != tt.want {
			t.Errorf("%s: exit code %d, want %d: %s%s", tt.args, code, tt.want, out, errOut)
		}
	}
	if _, _, code := weirCommand(t, "reconcile", "-f", "after.yaml", "--against", "empty"); code != exitUsage {
		t.Errorf("--against without --dry-run: exit code %d", code)
	}
}

// TestPlanOfTemplates plans a Service whose pods a Deployment promises: without a node, and against the snapshot of one on
// which a pod runs.
func TestPlanOfTemplates(t *testing.T) {
	dir := t.TempDir()
	app, snapshot := filepath.Join(dir, "app.yaml"), filepath.Join(dir, "edge-7.json")
	const text = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, targetPort: http}]}\n---\n" +
		"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {replicas: 3, template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}}}\n"
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web-pod-0", Labels: map[string]string{"app": "web"}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: "10.89.0.6"}}, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}}
	other := pod.DeepCopy() // of another runtime, of the same name
	other.Status.PodIPs[0].IP = "10.90.0.6"
	rec := changes.Record{Node: "edge-7", Families: []dataplane.Family{dataplane.IPv4}, State: changes.State{Mode: "iptables"}, Pods: []*corev1.Pod{pod, other}}
	var b bytes.Buffer
	if err := errors.Join(rec.Write(&b), os.WriteFile(app, []byte(text), 0o600), os.WriteFile(snapshot, b.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	for against, want := range map[string][]string{
		"empty":  {"promisedEndpoint", "by Deployment default/web (3 replicas), at addresses not known here", "W040", "1 notice."},
		snapshot: {"10.89.0.6:8080", "10.90.0.6:8080", "0 to remove.\n"},
	} {
		out, errOut, code := weirCommand(t, "plan", "-f", app, "--against", against, "--fail-on", "warning")
		for _, part := range want {
			if code != exitOK || !strings.Contains(out, part) {
				t.Errorf("against %s: exit code %d, no %q in\n%s%s", against, code, part, out, errOut)
			}
		}
	}
	if err := os.WriteFile(app, []byte(strings.Replace(text, "targetPort: http", "targetPort: https", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	const unknown = `app.yaml:1: Service default/web: spec.ports[0].targetPort: is "https" (TCP), and no container of Deployment default/web has a port of that name; they have http (TCP)`
	for _, args := range [][]string{{"plan", "--against", "empty"}, {"validate"}} {
		if out, errOut, _ := weirCommand(t, append(args, "-f", app)...); strings.Count(out+errOut, unknown) != 1 {
			t.Errorf("%v does not tell of the port:\n%s%s", args, out, errOut)
		}
	}
	if err := os.WriteFile(app, []byte(strings.Replace(text, "selector: {app: web}", "selector: {app: wep}", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	for against, want := range map[string]string{"empty": "Deployment default/web has app=web, wanted app=wep", snapshot: "pod default/web-pod-0 has app=web, wanted app=wep"} {
		if out, _, code := weirCommand(t, "plan", "-f", app, "--against", against, "--fail-on", "warning"); code != exitFailure || !strings.Contains(out, want) {
			t.Errorf("against %s: exit code %d, no %q in\n%s", against, code, want, out)
		}
	}
}

// randomManifests writes Services of many kinds.
func randomManifests(rnd *rand.Rand) []byte {
	var b bytes.Buffer
	for i := range 12 {
		if rnd.IntN(4) == 0 {
			continue
		}
		pick := func(options ...string) string { return options[rnd.IntN(len(options))] }
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Service\nmetadata: {name: s%d}\nspec:\n  clusterIP: 10.96.%d.%d\n", i, rnd.IntN(2), i+1)
		typ := pick("ClusterIP", "NodePort", "LoadBalancer")
		fmt.Fprintf(&b, "  type: %s\n  ports: [{name: p, port: %s%s}]\n", typ, pick("80", "81"), map[bool]string{true: fmt.Sprintf(", nodePort: %d", 30000+i+20*rnd.IntN(2))}[typ != "ClusterIP"])
		b.WriteString(pick("", "  sessionAffinity: ClientIP\n") + pick("", "  internalTrafficPolicy: Local\n"))
		if typ != "ClusterIP" {
			b.WriteString(pick("", "  externalTrafficPolicy: Local\n") + pick("", fmt.Sprintf("  externalIPs: [192.0.2.%d]\n", i)))
		}
		if typ == "LoadBalancer" {
			b.WriteString(pick("", "  loadBalancerSourceRanges: [10.0.0.0/8]\n") + fmt.Sprintf("status: {loadBalancer: {ingress: [{ip: 198.51.100.%d}]}}\n", i))
		}
		fmt.Fprintf(&b, "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s%d, labels: {kubernetes.io/service-name: s%d}}\naddressType: IPv4\nports: [{name: p, port: 8080}]\nendpoints:\n", i, i)
		n := rnd.IntN(4)
		for j := range n {
			fmt.Fprintf(&b, "- {addresses: [10.244.%d.%d], nodeName: %s}\n", i, j+1, pick("node", "other"))
		}
		if n == 0 {
			b.WriteString("  []\n")
		}
	}
	return b.Bytes()
}

// TestPlanNeverLies takes a node from one random directory to another, with the iptables backend on its model of a kernel.
// What the plan shows per Service must cover every change of the kernel, name the Services that differ and no other, and
// be what a real run does.
func TestPlanNeverLies(t *testing.T) {
	ctx := t.Context()
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		a, b := load(t, randomManifests(rnd)), load(t, randomManifests(rnd))
		kernel := xtables.NewFake()
		backend := iptables.New(dataplane.Config{Families: []dataplane.Family{dataplane.IPv4}, MasqueradeMark: 1 << 14,
			LocalDetector: dataplane.LocalDetector{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}}}, kernel)
		node := reconcile.Node{Name: "node", Families: []dataplane.Family{dataplane.IPv4}}
		engine := func(snap *spec.Snapshot) *reconcile.Engine {
			e := reconcile.NewEngine(reconcile.Options{DataPath: reconcile.DataPath{Mode: "iptables", Backend: backend}, Node: node})
			e.SetSnapshot(snap, spec.Delta{All: true})
			return e
		}
		if r := engine(a).Round(ctx, reconcile.Request{Full: true}); r.Err != nil || len(r.HeldBack) > 0 {
			t.Fatalf("seed %d: %v %v", seed, r.Err, r.HeldBack)
		}
		before, after := changes.StateOf(a, &node, "iptables", traitsOf("iptables")), changes.StateOf(b, &node, "iptables", traitsOf("iptables"))
		offline := changes.Between("node", before, after)
		for _, applied := range []*changes.State{nil, &before} {
			c, err := engine(b).Compare(ctx, "test")
			if err != nil {
				t.Fatal(err)
			}
			checkAccounts(t, seed, c, changes.FromKernel("node", c, applied, true), offline, applied != nil)
		}
		plan := mustPlan(t, ctx, engine(b))
		if again := mustPlan(t, ctx, engine(b)); again.String() != plan.String() {
			t.Errorf("seed %d: a second dry run differs", seed)
		}
		if r := backend.Apply(ctx, plan); r.Err != nil || len(r.Refused) > 0 {
			t.Fatalf("seed %d: %v %v", seed, r.Err, r.Refused)
		}
		if rest := mustPlan(t, ctx, engine(b)); !rest.Empty() {
			t.Errorf("seed %d: what was printed is not all that was to do:\n%s", seed, rest)
		}
		if t.Failed() {
			return
		}
	}
}

func mustPlan(t *testing.T, ctx context.Context, e *reconcile.Engine) backends.Plan {
	t.Helper()
	p, err := e.Plan(ctx, "test")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func load(t *testing.T, text []byte) *spec.Snapshot {
	t.Helper()
	snap, _, err := manifest.NewSet(manifest.Options{Overrides: spec.Overrides{}.AllowingEmpty()}).
		Update(t.Context(), spec.Revision{ID: "test"}, []manifest.File{{Path: "all.yaml", Data: text}})
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return snap
}

func checkAccounts(t *testing.T, seed uint64, c *reconcile.Comparison, g changes.Group, offline changes.Group, recorded bool) {
	t.Helper()
	if len(g.Kernel.Rules) != len(c.Plan.Changes) {
		t.Errorf("seed %d: %d rules for %d changes", seed, len(g.Kernel.Rules), len(c.Plan.Changes))
	}
	for _, r := range g.Kernel.Rules {
		// Without a record, only the rule that lets health checks in says nowhere whose it was.
		if slices.Contains(r.For, "unclaimed") && (recorded || r.Op != backends.Delete || !strings.Contains(r.ID, "WEIR-HEALTH")) {
			t.Errorf("seed %d: recorded %v: nobody's: %s", seed, recorded, r.ID)
		}
	}
	own := g.Kernel.Scaffolding.Create + g.Kernel.Scaffolding.Update + g.Kernel.Scaffolding.Delete
	if own != 0 {
		t.Errorf("seed %d: scaffolding changes: %v", seed, g.Kernel.Scaffolding)
	}
	shown := map[string]changes.Action{}
	for _, s := range g.Services {
		shown[s.ServiceName().String()] = s.Op
		if s.Drift || s.Kernel == nil {
			t.Errorf("seed %d: recorded %v: %+v", seed, recorded, s)
		}
	}
	for _, r := range g.Kernel.Rules {
		if len(r.For) == 1 && r.For[0] != "unclaimed" && shown[r.For[0]] == "" {
			t.Errorf("seed %d: the change of %s is for %s, which is not shown", seed, r.ID, r.For[0])
		}
	}
	for _, s := range offline.Services {
		name := s.ServiceName().String()
		if got := shown[name]; got != s.Op && got != "" {
			t.Errorf("seed %d: recorded %v: %s is shown as %q, and it is %q", seed, recorded, name, got, s.Op)
		}
		delete(shown, name)
	}
	for name := range shown {
		t.Errorf("seed %d: recorded %v: %s is shown, and it does not change", seed, recorded, name)
	}
}

// TestPlanDrift deletes what belongs to a Service behind weir's back.
func TestPlanDrift(t *testing.T) {
	ctx := t.Context()
	text, err := os.ReadFile(filepath.Join(plansDir, "after.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	snap := load(t, text)
	backend := iptables.New(dataplane.Config{Families: bothFamilies, MasqueradeMark: 1 << 14}, xtables.NewFake())
	node := reconcile.Node{Name: "edge-1", Families: bothFamilies}
	engine := reconcile.NewEngine(reconcile.Options{DataPath: reconcile.DataPath{Mode: "iptables", Backend: backend}, Node: node})
	engine.SetSnapshot(snap, spec.Delta{All: true})
	if r := engine.Round(ctx, reconcile.Request{Full: true}); r.Err != nil {
		t.Fatal(r.Err)
	}
	var gone backends.Plan
	for item, err := range backend.Observe(ctx) {
		if err == nil && strings.Contains(string(item.ID()), " -d 10.96.0.80/32 ") {
			gone.Changes = append(gone.Changes, backends.Change{Op: backends.Delete, ID: item.ID(), Old: item})
		}
	}
	if r := backend.Apply(ctx, gone); r.Err != nil || len(gone.Changes) == 0 {
		t.Fatal(r.Err)
	}
	c, err := engine.Compare(ctx, "test")
	if err != nil {
		t.Fatal(err)
	}
	state := changes.StateOf(snap, &node, "iptables", traitsOf("iptables"))
	g := changes.FromKernel("edge-1", c, &state, false)
	if len(g.Services) != 1 || g.Services[0].Name != "web" || !g.Services[0].Drift || g.Services[0].Op != changes.Modify {
		t.Errorf("%+v", g.Services)
	}
}

// TestPlanAgainstBrokenRevision compares with a commit of which a file is broken: every problem names the commit, the other
// files count, and the plan says that it is not all. It warns of a port that changes, tells of a targetPort that is not the
// endpoints' port, and counts what is not proxied.
func TestPlanAgainstBrokenRevision(t *testing.T) {
	dir := t.TempDir()
	git := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=t", "-c", "user.email=t@example.com"}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	const others = `apiVersion: v1
kind: Service
metadata: {name: out}
spec: {type: ExternalName, externalName: example.org}
---
apiVersion: v1
kind: Service
metadata: {name: pods}
spec: {clusterIP: None, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: theirs, labels: {service.kubernetes.io/service-proxy-name: other}}
spec: {clusterIP: 10.96.0.11, ports: [{port: 80}]}
`
	web := "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  clusterIP: 10.96.0.10\n  ports: [{port: 80, targetPort: 9090}]\n---\n" +
		"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web, labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\nports: [{port: 9090}]\nendpoints: [{addresses: [10.244.1.1]}]\n"
	broken := "apiVersion: v1\nkind: Service\nmetadata: {name: bad}\nspec: {ports: [{port: 0}, {prot: 1}]}\n"
	writeFiles(t, filepath.Join(dir, "c"), map[string]string{"web.yaml": web, "others.yaml": others, "bad.yaml": broken})
	git("init", "-q")
	git("add", "-A")
	git("commit", "-q", "-m", "broken")
	writeFiles(t, filepath.Join(dir, "c"), map[string]string{"web.yaml": strings.Replace(web, "port: 80, targetPort: 9090", "port: 81, targetPort: 8080", 1), "bad.yaml": "# mended\n"})
	out, errOut, code := inDirectory(t, dir, "plan", "-f", "c", "--against", "git:HEAD")
	if code != exitOK {
		t.Errorf("exit code %d", code)
	}
	for line := range strings.Lines(errOut) {
		if !strings.HasPrefix(line, "left out: git:HEAD:c/bad.yaml:4: Service default/bad: spec.ports") {
			t.Errorf("a problem does not name the revision: %s", line)
		}
	}
	for _, want := range []string{
		"without the files that have problems", "~         port                   80 → 81\n",
		"! W025-service-port-changed: c/web.yaml:1: Service default/web: TCP/IPv4: the port was 80 and is 81",
		"! W026-target-port-differs: c/web.yaml:1: Service default/web: spec.ports[0].targetPort: is 8080, and the endpoints have port 9090",
		"1 Service: 0 to add, 1 to change, 0 to remove; 3 not proxied (1 headless, 1 ExternalName, 1 left to another proxy); ",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the plan has not %q:\n%s%s", want, out, errOut)
		}
	}
	writeFiles(t, filepath.Join(dir, "k"), map[string]string{"kustomization.yaml": "resources: [web.yaml, gone.yaml]\n", "web.yaml": web})
	git("add", "-A")
	git("commit", "-q", "-m", "a kustomization that cannot be built")
	writeFiles(t, filepath.Join(dir, "k"), map[string]string{"kustomization.yaml": "resources: [web.yaml]\n"})
	out, errOut, code = inDirectory(t, dir, "plan", "-k", "k", "--against", "git:HEAD")
	if code != exitOK || !strings.HasPrefix(errOut, "left out: git:HEAD:k/kustomization.yaml:1: resources[1]") || !strings.Contains(out, "without the files that have problems") ||
		!strings.Contains(out, "+ default/web") {
		t.Errorf("against a kustomization that cannot be built: exit code %d:\n%s%s", code, out, errOut)
	}
	writeFiles(t, filepath.Join(dir, "c"), map[string]string{"web.yaml": strings.Replace(web, "port: 80, targetPort", "port: 82, targetPort", 1)})
	if out, errOut, code := inDirectory(t, dir, "plan", "-f", "c", "--against", "git:HEAD", "--fail-on", "W025"); code != exitFailure || strings.Contains(out+errOut, "ok") {
		t.Errorf("--fail-on W025: exit code %d: %s%s", code, out, errOut)
	}
}
