package fleet

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"sigs.k8s.io/yaml"

	"weir/backends/dns"
	"weir/backends/hostnet"
	"weir/backends/netlab"
	"weir/reconcile/tell/health"
	"weir/spec"
	"weir/spec/apisource"
	"weir/spec/liveness"
)

// unpacked has what .ci/deps takes out of packages that would serve, or change the machine, if they were installed.
const unpacked = "../../.cache"

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func parse(t *testing.T, file string, into any) {
	t.Helper()
	if err := yaml.UnmarshalStrict([]byte(read(t, file)), into); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

type rules struct {
	Groups []struct {
		Name  string `json:"name"`
		Rules []rule `json:"rules"`
	} `json:"groups"`
}

type rule struct {
	Record      string            `json:"record,omitempty"`
	Alert       string            `json:"alert,omitempty"`
	Expr        string            `json:"expr"`
	For         string            `json:"for,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

func allRules(t *testing.T) (all []rule) {
	t.Helper()
	var r rules
	parse(t, "prometheus-rules.yaml", &r)
	for _, g := range r.Groups {
		all = append(all, g.Rules...)
	}
	return all
}

type dashboard struct {
	SchemaVersion int `json:"schemaVersion"`
	Templating    struct {
		List []struct {
			Name       string `json:"name"`
			Definition string `json:"definition"`
		} `json:"list"`
	} `json:"templating"`
	Panels []struct {
		ID      int    `json:"id"`
		Title   string `json:"title"`
		GridPos struct{ X, Y, W, H int }
		Targets []struct {
			RefID string `json:"refId"`
			Expr  string `json:"expr"`
		} `json:"targets"`
	} `json:"panels"`
}

func readDashboard(t *testing.T) (d dashboard) {
	t.Helper()
	if err := json.Unmarshal([]byte(read(t, "grafana-dashboard.json")), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// expressions returns the PromQL of the rules, the dashboard and the page, by where it is. Variables of Grafana have values.
func expressions(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, r := range allRules(t) {
		all["rule "+r.Record+r.Alert] = r.Expr
	}
	variables := strings.NewReplacer("$__rate_interval", "5m", "$ring", "main")
	for _, p := range readDashboard(t).Panels {
		for _, target := range p.Targets {
			all["panel "+p.Title+" "+target.RefID] = variables.Replace(target.Expr)
		}
	}
	fenced := 0
	for _, block := range strings.Split(read(t, "README.md"), "```promql\n")[1:] {
		block, _, _ = strings.Cut(block, "```")
		for line := range strings.Lines(block) {
			if line = strings.TrimSpace(line); !strings.HasPrefix(line, "#") {
				fenced++
				all[fmt.Sprintf("query %d of the page", fenced)] = line
			}
		}
	}
	if fenced < 5 {
		t.Errorf("the page has %d queries, fewer than it had", fenced)
	}
	return all
}

// registered returns the names of weir's metrics, each with its labels. Those of modes that a fleet need not use are left out.
func registered() map[string][]string {
	m := health.NewMetrics(health.Build{})
	r := m.Registry()
	apisource.NewMetrics(r)
	r.MustRegister(&dns.Metrics{}, liveness.New(liveness.Options{}), hostnet.NewKeeper(hclog.NewNullLogger(), hostnet.Sysctl{}))
	descs := make(chan *prometheus.Desc)
	go func() { r.Describe(descs); close(descs) }()
	said := regexp.MustCompile(`^Desc\{fqName: "([^"]+)", .*variableLabels: \{(.*)\}\}$`)
	found := map[string][]string{}
	for d := range descs {
		if s := said.FindStringSubmatch(d.String()); s != nil {
			found[s[1]] = strings.Split(s[2], ",")
		}
	}
	return found
}

// used is a metric of an expression, and the labels that its selector has.
type used struct {
	name   string
	labels []string
}

var (
	quoted    = regexp.MustCompile(`"[^"]*"`)
	grouping  = regexp.MustCompile(`\b(by|without|on|ignoring|group_left|group_right) *\([^)]*\)`)
	selector  = regexp.MustCompile(`([a-zA-Z_:][a-zA-Z0-9_:]*)(\{[^}]*\})?( *\()?`)
	duration  = regexp.MustCompile(`\[[^\]]*\]`)
	label     = regexp.MustCompile(`([a-z_]+) *[=!]`)
	operators = []string{"and", "or", "unless"}
)

func metricsOf(expr string) (all []used) {
	expr = quoted.ReplaceAllString(expr, `""`)
	expr = duration.ReplaceAllString(grouping.ReplaceAllString(expr, ""), "")
	for _, m := range selector.FindAllStringSubmatch(expr, -1) {
		if m[3] != "" || slices.Contains(operators, m[1]) {
			continue
		}
		u := used{name: m[1]}
		for _, l := range label.FindAllStringSubmatch(m[2], -1) {
			u.labels = append(u.labels, l[1])
		}
		all = append(all, u)
	}
	return all
}

// TestMetricsExist holds that weir has each metric that is asked for, with the labels by which it is selected.
func TestMetricsExist(t *testing.T) {
	have := registered()
	have["up"] = nil
	for _, r := range allRules(t) {
		if r.Record != "" {
			have[r.Record] = nil
		}
	}
	asked := map[string]bool{}
	for where, expr := range expressions(t) {
		for _, u := range metricsOf(expr) {
			name := u.name
			if strings.HasPrefix(name, "node_") {
				continue // node_exporter's
			}
			labels, ok := have[name]
			if histogram, isBucket := strings.CutSuffix(name, "_bucket"); isBucket {
				labels, ok = have[histogram]
			}
			if !ok {
				t.Errorf("%s: weir has no metric %s", where, name)
			}
			asked[name] = true
			for _, l := range u.labels {
				if l != "job" && l != "ring" && !slices.Contains(labels, l) {
					t.Errorf("%s: %s has no label %s", where, name, l)
				}
			}
		}
	}
	if len(asked) < 15 {
		t.Errorf("only %d metrics are asked for: %v", len(asked), slices.Sorted(maps.Keys(asked)))
	}
	page := read(t, "README.md")
	for _, name := range regexp.MustCompile("`(weir_[a-z_]+_[a-z_]+)`").FindAllStringSubmatch(page, -1) {
		if _, ok := have[name[1]]; !ok && name[1] != "weir_package" && name[1] != "weir_deploy_key" && name[1] != "weir_allowed_signers" {
			t.Errorf("the page names %s, which weir does not have", name[1])
		}
	}
}

// TestLabelValues holds that the values of labels are ones that weir gives.
func TestLabelValues(t *testing.T) {
	text := read(t, "prometheus-rules.yaml") + read(t, "grafana-dashboard.json") + read(t, "README.md")
	var ids []string
	for _, k := range spec.NoticeKinds() {
		ids = append(ids, string(k.ID))
	}
	known := map[string][]string{
		"id":    ids,
		"state": {"found", "good", "applied", "healthy", "unhealthy", "awaited", "unknown", "failed"}, // the last is systemd's
		"rcode": {"NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"},
	}
	for name, values := range known {
		for _, m := range regexp.MustCompile(`\b`+name+`=~?\\?"([^"\\]+)\\?"`).FindAllStringSubmatch(text, -1) {
			for value := range strings.SplitSeq(m[1], "|") {
				if !slices.Contains(values, value) {
					t.Errorf("no label %s has the value %s", name, value)
				}
			}
		}
	}
}

// promtool returns Prometheus's own checker of rules.
func promtool(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs(unpacked + "/prometheus/usr/bin")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", os.Getenv("PATH")+":"+dir)
	netlab.RequireProgram(t, "promtool")
	return "promtool"
}

// TestRules has Prometheus judge the rules, and run their unit tests.
func TestRules(t *testing.T) {
	program := promtool(t)
	for _, args := range [][]string{{"check", "rules", "prometheus-rules.yaml"}, {"test", "rules", "testdata/prometheus-rules-test.yaml"}} {
		if out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput(); err != nil {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
}

// TestEveryExpressionParses has Prometheus parse what the dashboard and the page ask, as rules.
func TestEveryExpressionParses(t *testing.T) {
	program := promtool(t)
	var list []rule
	for where, expr := range expressions(t) {
		list = append(list, rule{Record: "x", Expr: expr, Labels: map[string]string{"where": where}})
	}
	text, err := json.Marshal(map[string]any{"groups": []any{map[string]any{"name": "all", "rules": list}}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(file, text, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), program, "check", "rules", file).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestAlerts holds that each alert was seen firing in the unit tests, says what it is about, and is on the page.
func TestAlerts(t *testing.T) {
	tests, page := read(t, "testdata/prometheus-rules-test.yaml"), read(t, "README.md")
	for _, r := range allRules(t) {
		if r.Alert == "" {
			continue
		}
		if !strings.Contains(tests, "\n    alertname: "+r.Alert+"\n    exp_alerts:\n    - ") {
			t.Errorf("%s is not seen firing", r.Alert)
		}
		if r.Labels["severity"] == "" || r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
			t.Errorf("%s says too little", r.Alert)
		}
		after := strings.Replace(r.For, "m", " min", 1)
		if !strings.Contains(page, "| `"+r.Alert+"` | "+after) {
			t.Errorf("the page has no %s after %q", r.Alert, after)
		}
	}
}

// TestDashboard holds that panels have places of their own and ask something.
func TestDashboard(t *testing.T) {
	d := readDashboard(t)
	taken, ids := map[[2]int]string{}, map[int]bool{}
	for _, p := range d.Panels {
		if ids[p.ID] || len(p.Targets) == 0 {
			t.Errorf("panel %s has the number of another one, or asks nothing", p.Title)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if x >= 24 || taken[[2]int{x, y}] != "" {
					t.Fatalf("panel %s lies over %s, or off the grid", p.Title, taken[[2]int{x, y}])
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
	}
	if d.SchemaVersion < 39 || len(d.Panels) < 10 {
		t.Errorf("schema %d, %d panels", d.SchemaVersion, len(d.Panels))
	}
}

type cloudConfig struct {
	Packages   []string `json:"packages"`
	WriteFiles []struct {
		Path        string `json:"path"`
		Permissions string `json:"permissions"`
		Content     string `json:"content"`
	} `json:"write_files"`
	RunCmd []any `json:"runcmd"`
}

// TestCloudInit holds the user data to cloud-init's own schema, and what it writes to what the role writes.
func TestCloudInit(t *testing.T) {
	const file = "cloud-init.yaml"
	if !strings.HasPrefix(read(t, file), "#cloud-config\n") {
		t.Error("cloud-init does not know it by its first line")
	}
	var c cloudConfig
	parse(t, file, &c)
	written := map[string]string{}
	for _, f := range c.WriteFiles {
		written[f.Path] = f.Content
		if f.Permissions != "0600" && strings.HasSuffix(f.Path, "id_ed25519") {
			t.Errorf("%s has the permissions %s", f.Path, f.Permissions)
		}
	}
	const role = "ansible/roles/weir/templates/"
	if written["/srv/weir/.ssh/config"] != read(t, role+"ssh_config.j2") {
		t.Error("the role has another configuration of ssh")
	}
	var defaults map[string]string
	parse(t, "ansible/roles/weir/defaults/main.yml", &defaults)
	if unit := strings.NewReplacer("{{ weir_input }}", defaults["weir_input"], "{{ weir_signed }}", "").Replace(read(t, role+"fleet.conf.j2")); written["/etc/systemd/system/weir.service.d/fleet.conf"] != unit {
		t.Error("the role has another drop-in")
	}
	if c.RunCmd[0] != "set -eu" {
		t.Error("the commands go on after one that fails")
	}
	checkSchema(t, file)
}

func checkSchema(t *testing.T, file string) {
	t.Helper()
	path := unpacked + "/cloud-init/usr/lib/python3/dist-packages/cloudinit/config/schemas/schema-cloud-config-v1.json"
	text, err := os.ReadFile(path)
	if err != nil {
		netlab.Missing(t, "make test unpacks the schema of cloud-init: %v", err)
	}
	schema, err := jsonschema.UnmarshalJSON(strings.NewReader(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	document, err := yaml.YAMLToJSONStrict([]byte(read(t, file)))
	if err != nil {
		t.Fatal(err)
	}
	value, err := jsonschema.UnmarshalJSON(strings.NewReader(string(document)))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource("mem:schema.json", schema); err != nil {
		t.Fatal(err)
	}
	compiled, err := compiler.Compile("mem:schema.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := compiled.Validate(value); err != nil {
		t.Error(err)
	}
}

// TestSSHConfig has ssh read its configuration.
func TestSSHConfig(t *testing.T) {
	netlab.RequireProgram(t, "ssh")
	out, err := exec.CommandContext(t.Context(), "ssh", "-G", "-F", "ansible/roles/weir/templates/ssh_config.j2", "git.example.org").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"stricthostkeychecking true", "userknownhostsfile /srv/weir/.ssh/known_hosts", "identityfile /srv/weir/.ssh/id_ed25519", "identitiesonly yes", "batchmode yes"} {
		if !strings.Contains(string(out), "\n"+want+"\n") {
			t.Errorf("ssh has not %q:\n%s", want, out)
		}
	}
}

// TestAnsible holds that Ansible takes the playbook, that the role runs no shell, and that it validates before it starts or
// restarts weir.
func TestAnsible(t *testing.T) {
	const role = "ansible/roles/weir/"
	var tasks, checkout, handlers []map[string]any
	parse(t, role+"tasks/main.yml", &tasks)
	parse(t, role+"tasks/checkout.yml", &checkout)
	parse(t, role+"handlers/main.yml", &handlers)
	var order []string
	for _, task := range slices.Concat(tasks, checkout, handlers) {
		order = append(order, task["name"].(string))
		for key := range task {
			if key == "ansible.builtin.shell" || key == "ansible.builtin.raw" || key == "ansible.builtin.script" {
				t.Errorf("task %s runs a shell", task["name"])
			}
		}
		if task["ansible.builtin.command"] != nil && task["changed_when"] != false && task["when"] == nil {
			t.Errorf("task %s says each time that something has changed", task["name"])
		}
	}
	validate := slices.Index(order, "Validate the input")
	for _, later := range []string{"Restart weir now if its unit has changed", "Start weir"} {
		if validate < 0 || slices.Index(order, later) < validate {
			t.Errorf("the role does not validate before it comes to %q: %v", later, order)
		}
	}
	if out, err := playbook(t, "-i", "inventory.yml", "--syntax-check", "playbook.yml"); err != nil || strings.Contains(out, "WARNING") {
		t.Errorf("%v: %s", err, out)
	}
}

func playbook(t *testing.T, args ...string) (string, error) {
	t.Helper()
	netlab.RequireProgram(t, "ansible-playbook")
	cmd := exec.CommandContext(t.Context(), "ansible-playbook", args...)
	cmd.Dir = "ansible"
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "LC_ALL=C.UTF-8", "ANSIBLE_LOCALHOST_WARNING=false", "ANSIBLE_INVENTORY_UNPARSED_WARNING=false")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// unit returns the command of weir-pull.service, in a checkout that lies elsewhere.
func unit(t *testing.T, checkout string) []string {
	t.Helper()
	for line := range strings.Lines(read(t, "../systemd/weir-pull.service")) {
		if command, ok := strings.CutPrefix(strings.TrimSpace(line), "ExecStart="); ok {
			return strings.Fields(strings.ReplaceAll(command, "/srv/weir/current", checkout))
		}
	}
	t.Fatal("weir-pull.service pulls nothing")
	return nil
}

// repositories are what nodes pull from and an author pushes to.
type repositories struct {
	*testing.T
	origin, author string
}

func newRepositories(t *testing.T) *repositories {
	for k, v := range map[string]string{"HOME": t.TempDir(), "GIT_CONFIG_SYSTEM": "/dev/null",
		"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.com", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example.com"} {
		t.Setenv(k, v)
	}
	r := &repositories{t, t.TempDir(), t.TempDir()}
	r.must(r.origin, "git", "init", "-q", "--bare", "-b", "main")
	r.must(r.author, "git", "clone", "-q", r.origin, ".")
	r.commit("one")
	r.push("HEAD:main", "HEAD:canary")
	return r
}

func (r *repositories) run(dir string, line ...string) (string, error) {
	cmd := exec.CommandContext(r.Context(), line[0], line[1:]...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (r *repositories) must(dir string, line ...string) {
	r.Helper()
	if out, err := r.run(dir, line...); err != nil {
		r.Fatalf("%v: %v: %s", line, err, out)
	}
}

// commit makes a commit of the author in which web.yaml has the text.
func (r *repositories) commit(text string) {
	r.Helper()
	if err := os.WriteFile(filepath.Join(r.author, "web.yaml"), []byte(text), 0o644); err != nil {
		r.Fatal(err)
	}
	r.must(r.author, "git", "add", ".")
	r.must(r.author, "git", "commit", "-q", "-m", text)
}

func (r *repositories) push(args ...string) {
	r.Helper()
	r.must(r.author, append([]string{"git", "push", "-q", "origin"}, args...)...)
}

// has fails unless web.yaml of a checkout has the text.
func (r *repositories) has(what, checkout, text string) {
	r.Helper()
	if got := read(r.T, filepath.Join(checkout, "web.yaml")); got != text {
		r.Errorf("%s: the node has %q, not %q", what, got, text)
	}
}

// TestRolloutAndRollback has two nodes follow their branches through the commands of the page.
func TestRolloutAndRollback(t *testing.T) {
	page := read(t, "README.md")
	r := newRepositories(t)
	nodes := map[string]string{"canary": t.TempDir(), "main": t.TempDir()}
	for branch, dir := range nodes {
		r.must(dir, "git", "clone", "-q", "--branch", branch, "file://"+r.origin, ".")
	}
	shown := func(line string) {
		t.Helper()
		if !strings.Contains(page, "\n    "+line+"\n") && !strings.Contains(page, "`"+line+"`") {
			t.Errorf("the page does not show %s", line)
		}
		r.must(r.author, strings.Fields(line)...)
	}
	pulled := func(branch, want string) {
		t.Helper()
		r.must("/", unit(t, nodes[branch])...)
		r.has(branch, nodes[branch], want)
	}

	r.commit("two")
	shown("git push origin HEAD:canary")
	pulled("canary", "two")
	pulled("main", "one")
	shown("git fetch origin")
	shown("git push origin origin/canary:main")
	pulled("main", "two")
	shown("git revert --no-edit HEAD")
	shown("git push origin HEAD:main")
	pulled("main", "one")
	r.push("HEAD:canary")
	pulled("canary", "one")

	r.must(nodes["main"], "git", "reset", "--hard", "--quiet", "HEAD~1")
	r.has("a node that goes back", nodes["main"], "two")
	pulled("main", "one")

	r.must(r.author, "git", "checkout", "-q", "-b", "request")
	r.commit("three")
	r.must(r.author, "git", "checkout", "-q", "main")
	r.must(r.author, "git", "merge", "-q", "--no-ff", "request")
	r.push("HEAD:main")
	pulled("main", "three")
	shown("git revert --no-edit -m 1 HEAD")
	r.push("HEAD:main")
	pulled("main", "one")

	r.push("--force", "HEAD~1:main")
	pulled("main", "one") // what was set back is ignored
	r.must(r.author, "git", "reset", "-q", "--hard", "HEAD~2")
	r.commit("rewritten")
	r.push("--force", "HEAD:main")
	if out, err := r.run("/", unit(t, nodes["main"])...); err == nil {
		t.Errorf("a branch that was rewritten is taken: %s", out)
	}
	r.has("after that", nodes["main"], "one")
}

// TestRoleGoesForward has the role make a checkout, and bring it up to date as weir-pull does: a branch that was set back or
// rewritten is not taken.
func TestRoleGoesForward(t *testing.T) {
	r := newRepositories(t)
	checkout := filepath.Join(t.TempDir(), "current")
	tasks, err := filepath.Abs("ansible/roles/weir/tasks/checkout.yml")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "playbook.yml")
	play := func(ring string) (string, error) {
		t.Helper()
		text, err := json.Marshal([]any{map[string]any{"hosts": "localhost", "connection": "local", "gather_facts": false,
			"vars":  map[string]any{"weir_repository": "file://" + r.origin, "weir_checkout": checkout, "weir_ring": ring},
			"tasks": []any{map[string]any{"ansible.builtin.import_tasks": tasks}}}})
		if err == nil {
			err = os.WriteFile(file, text, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		return playbook(t, file)
	}
	played := func(what, ring, want string) {
		t.Helper()
		if out, err := play(ring); err != nil {
			t.Fatalf("%s: %v: %s", what, err, out)
		}
		r.has(what, checkout, want)
	}
	played("the first time", "main", "one")
	r.commit("two")
	r.push("HEAD:main")
	played("a new commit", "main", "two")
	r.push("--force", "HEAD~1:main")
	played("a branch that was set back", "main", "two")
	r.must(r.author, "git", "reset", "-q", "--hard", "HEAD~1")
	r.commit("trial")
	r.push("HEAD:canary", "HEAD:refs/heads/ring-of-its-own")
	played("another ring", "canary", "trial")
	played("a ring that came later", "ring-of-its-own", "trial")
	r.commit("more")
	r.push("HEAD:canary")
	r.must(r.author, "git", "tag", "canary", "HEAD~1")
	r.push("refs/tags/canary")
	played("back on a ring that has gone on, with a tag of its name", "canary", "more")
	if trail, err := r.run(checkout, "git", "reflog", "-1", "--format=%gs"); err != nil || !strings.Contains(trail, "checkout: moving from ring-of-its-own to canary") {
		t.Errorf("the former content of the ring was checked out before: %v: %s", err, trail)
	}
	r.must(checkout, "git", "fetch", "-q", "--tags")
	played("the tag is fetched", "canary", "more")
	r.must(checkout, "git", "checkout", "-q", "--detach", "HEAD~1")
	played("a checkout on no branch", "canary", "more")
	r.push("--delete", "ring-of-its-own")
	if out, err := play("ring-of-its-own"); err == nil {
		t.Errorf("a ring that is gone is followed: %s", out)
	}
	r.has("a ring that is gone", checkout, "more")
	r.must(r.origin, "git", "clone", "-q", "--bare", ".", r.origin+"/moved.git")
	r.origin += "/moved.git"
	r.must(r.author, "git", "remote", "set-url", "origin", r.origin)
	r.commit("moved")
	r.push("HEAD:refs/heads/canary")
	played("a repository that was moved", "canary", "moved")
	r.must(r.author, "git", "reset", "-q", "--hard", "HEAD~1")
	r.commit("rewritten")
	r.push("--force", "HEAD:refs/heads/canary")
	if out, err := play("canary"); err == nil {
		t.Errorf("a branch that was rewritten is taken: %s", out)
	}
	r.has("after that", checkout, "moved")
}
