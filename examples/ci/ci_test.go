package ci

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

const service = `apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.80
  ports: [{name: http, port: 80}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.244.1.1]}]
`

var changed, broken = strings.Replace(service, "10.244.1.1", "10.244.1.2", 1), strings.Replace(service, "port: 80}", "port: 80000}", 1)

// checkout is a repository as a CI system checks it out, with weir and stand-ins for the programs that speak to the
// system.
type checkout struct {
	t             *testing.T
	dir, bin, tmp string
	env           []string
}

func newCheckout(t *testing.T) *checkout {
	t.Helper()
	c := &checkout{t: t, dir: t.TempDir(), bin: t.TempDir(), tmp: t.TempDir()}
	c.env = append(os.Environ(), "PATH="+c.bin+":"+os.Getenv("PATH"), "HOME="+c.bin, "TMPDIR="+c.tmp, "GIT_CONFIG_SYSTEM=/dev/null",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com")
	c.must("git", "init", "-q", "-b", "main")
	c.write("cluster/web.yaml", service)
	c.commit("base")
	return c
}

// weir builds the program.
func (c *checkout) weir(file string) {
	c.t.Helper()
	if out, err := exec.CommandContext(c.t.Context(), "go", "build", "-o", file, "../../cmd/weir").CombinedOutput(); err != nil {
		c.t.Fatalf("%v: %s", err, out)
	}
}

func (c *checkout) write(name, text string) {
	c.t.Helper()
	if !filepath.IsAbs(name) {
		name = filepath.Join(c.dir, name)
	}
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o755)); err != nil {
		c.t.Fatal(err)
	}
}

func (c *checkout) read(name string) string {
	c.t.Helper()
	if !filepath.IsAbs(name) {
		name = filepath.Join(c.dir, name)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		c.t.Fatal(err)
	}
	return string(text)
}

func (c *checkout) run(env []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(c.t.Context(), "env", append([]string{name}, args...)...) // which looks in the PATH that it is given
	cmd.Dir, cmd.Env = c.dir, append(c.env, env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (c *checkout) must(name string, args ...string) string {
	c.t.Helper()
	out, err := c.run(nil, name, args...)
	if err != nil {
		c.t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return strings.TrimSpace(out)
}

func (c *checkout) commit(message string) string {
	c.t.Helper()
	c.must("git", "add", ".")
	c.must("git", "commit", "-q", "-m", message)
	return c.must("git", "rev-parse", "HEAD")
}

// propose makes the commit that a system checks out for a pull request: it, merged into main.
func (c *checkout) propose(text string) {
	c.t.Helper()
	c.must("git", "checkout", "-q", "-B", "proposal", "main")
	c.write("cluster/web.yaml", text)
	c.commit("proposal")
	c.must("git", "checkout", "-q", "-B", "merged", "main")
	c.must("git", "merge", "-q", "--no-ff", "-m", "merge", "proposal")
}

func parse(t *testing.T, file string, into any) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err == nil {
		err = yaml.UnmarshalStrict(text, into)
	}
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

type workflow struct {
	Name        string            `json:"name"`
	On          map[string]any    `json:"true"` // to YAML 1.1, "on" is a boolean
	Permissions map[string]string `json:"permissions"`
	Env         map[string]string `json:"env"`
	Jobs        map[string]struct {
		RunsOn string `json:"runs-on"`
		Steps  []step `json:"steps"`
	} `json:"jobs"`
}

type step struct {
	Name string            `json:"name"`
	Uses string            `json:"uses"`
	With map[string]any    `json:"with"`
	If   string            `json:"if"`
	Env  map[string]string `json:"env"`
	Run  string            `json:"run"`
}

var expression = regexp.MustCompile(`\$\{\{ *(.*?) *\}\}`)

// gh answers a list of comments through the expression that it is given, and notes all else.
const gh = `#!/bin/bash
method=GET
for a in "$@"; do
	case $prev in --method) method=$a;; --jq) jq=$a;; esac
	prev=$a
done
case $method in
GET) jq -r "$jq" < "$STAND_IN/comments.json";;
*) echo "$GH_TOKEN: $*" >> "$STAND_IN/calls"; cp plan.md "$STAND_IN/body";;
esac
`

// TestGitHubActions runs every step of the workflow as GitHub would, on a pull request that is opened, on one that is
// pushed to again, and on one that is broken.
func TestGitHubActions(t *testing.T) {
	var w workflow
	parse(t, "github-actions.yaml", &w)
	for name, access := range w.Permissions {
		if access != "read" && name != "pull-requests" {
			t.Errorf("permission %s: %s is more than it needs", name, access)
		}
	}
	c := newCheckout(t)
	standIn, temp := t.TempDir(), t.TempDir()
	c.weir(filepath.Join(standIn, "weir"))
	sum := sha256.Sum256([]byte(c.read(filepath.Join(standIn, "weir"))))
	c.write(filepath.Join(c.bin, "gh"), gh)
	c.write(filepath.Join(c.bin, "curl"), "#!/bin/bash\nwhile [ $# -gt 0 ]; do [ \"$1\" = --output ] && cp \"$STAND_IN/weir\" \"$2\"; shift; done\n")
	context := map[string]string{"github.token": "secret", "github.event.pull_request.number": "7"}
	env := []string{"STAND_IN=" + standIn, "RUNNER_TEMP=" + temp, "GITHUB_PATH=" + temp + "/path", "GITHUB_STEP_SUMMARY=" + temp + "/summary", "GITHUB_REPOSITORY=some/where"}
	for k, v := range w.Env {
		if k == "WEIR_SHA256" {
			v = hex.EncodeToString(sum[:])
		}
		env = append(env, k+"="+v)
	}
	// runs the steps up to the one that fails, and returns its name and what it printed.
	steps := func() (failed, output string) {
		for _, file := range []string{"path", "summary"} {
			os.Remove(filepath.Join(temp, file))
		}
		for _, s := range w.Jobs["plan"].Steps {
			if s.Run == "" {
				continue
			}
			env := env
			for k, v := range s.Env {
				v = expression.ReplaceAllStringFunc(v, func(e string) string {
					value, ok := context[expression.FindStringSubmatch(e)[1]]
					if !ok {
						t.Errorf("step %s: nothing is known of %s", s.Name, e)
					}
					return value
				})
				env = append(env, k+"="+v)
			}
			if expression.MatchString(s.Run) {
				t.Errorf("step %s: an expression in a script is run as part of it", s.Name)
			}
			if path, err := os.ReadFile(temp + "/path"); err == nil {
				env = append(env, "PATH="+strings.TrimSpace(string(path))+":"+c.bin+":"+os.Getenv("PATH"))
			}
			if out, err := c.run(env, "bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", s.Run); err != nil {
				return s.Name, out
			}
		}
		return "", ""
	}

	c.propose(changed)
	c.write(filepath.Join(standIn, "comments.json"), `[{"id": 1, "user": {"login": "somebody"}, "body": "<!-- weir plan -->"}, {"id": 2, "user": {"login": "github-actions[bot]"}, "body": "other"}]`)
	if failed, out := steps(); failed != "" {
		t.Fatalf("%s: %s", failed, out)
	}
	checkComment(t, c.read(filepath.Join(standIn, "body")))
	if s := c.read(temp + "/summary"); s != c.read(filepath.Join(standIn, "body")) {
		t.Errorf("the summary is %s", s)
	}
	c.write(filepath.Join(standIn, "comments.json"), `[{"id": 3, "user": {"login": "github-actions[bot]"}, "body": "<!-- weir plan -->\nold"}]`)
	if failed, out := steps(); failed != "" {
		t.Fatalf("%s: %s", failed, out)
	}
	if calls := c.read(filepath.Join(standIn, "calls")); calls != "secret: api --silent --method POST repos/some/where/issues/7/comments --field body=@plan.md\n"+
		"secret: api --silent --method PATCH repos/some/where/issues/comments/3 --field body=@plan.md\n" {
		t.Errorf("calls:\n%s", calls)
	}

	c.must("git", "clean", "-qfd")
	c.propose(broken)
	if failed, out := steps(); failed != "Validate" || !strings.HasPrefix(out, "::error file=cluster/web.yaml,line=6,") {
		t.Errorf("%q fails: %s", failed, out)
	}
}

// checkComment checks that a comment has a mark to be found by, and the plan.
func checkComment(t *testing.T, body string) {
	t.Helper()
	for _, want := range []string{"<!-- weir plan -->\n### weir: 1 Service: 0 to add, 1 to change, 0 to remove", "-         endpoint               10.244.1.1:8080", "+         endpoint               10.244.1.2:8080"} {
		if !strings.Contains(body, want) {
			t.Errorf("the comment does not have %q:\n%s", want, body)
		}
	}
}

// curl answers a list of notes, and notes all else.
const curl = `#!/bin/bash
case "$*" in
*per_page*) cat "$STAND_IN/notes.json";;
*) echo "$*" >> "$STAND_IN/calls"; cp plan.md "$STAND_IN/body";;
esac
`

// TestGitLab runs the script of the job as GitLab would.
func TestGitLab(t *testing.T) {
	var jobs map[string]struct {
		Stage     string            `json:"stage"`
		Image     string            `json:"image"`
		Rules     []map[string]any  `json:"rules"`
		Variables map[string]string `json:"variables"`
		Script    []string          `json:"script"`
		Artifacts struct {
			When    string            `json:"when"`
			Paths   []string          `json:"paths"`
			Reports map[string]string `json:"reports"`
		} `json:"artifacts"`
	}
	parse(t, "gitlab-ci.yml", &jobs)
	job := jobs["weir"]
	c := newCheckout(t)
	standIn := t.TempDir()
	c.weir(filepath.Join(c.bin, "weir"))
	c.write(filepath.Join(c.bin, "curl"), curl)
	base := c.must("git", "rev-parse", "main")
	env := []string{"STAND_IN=" + standIn, "CI_MERGE_REQUEST_DIFF_BASE_SHA=" + base, "CI_API_V4_URL=https://gitlab.example.org/api/v4",
		"CI_PROJECT_ID=5", "CI_MERGE_REQUEST_IID=7", "WEIR_TOKEN=secret"}
	for k, v := range job.Variables {
		env = append(env, k+"="+v)
	}
	script := func() (string, error) {
		return c.run(env, "bash", "-eo", "pipefail", "-c", strings.Join(job.Script, "\n"))
	}
	c.propose(changed)
	for _, notes := range []string{`[{"id": 1, "body": "other"}]`, `[{"id": 3, "body": "<!-- weir plan -->\nold"}]`} {
		c.write(filepath.Join(standIn, "notes.json"), notes)
		if out, err := script(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		checkComment(t, c.read(filepath.Join(standIn, "body")))
	}
	const common = "--fail --silent --show-error --header PRIVATE-TOKEN: secret --request "
	const notes = "https://gitlab.example.org/api/v4/projects/5/merge_requests/7/notes"
	if calls := c.read(filepath.Join(standIn, "calls")); calls != common+"POST --form body=<plan.md "+notes+"\n"+common+"PUT --form body=<plan.md "+notes+"/3\n" {
		t.Errorf("calls:\n%s", calls)
	}
	report := job.Artifacts.Reports["junit"]
	if !strings.Contains(c.read(report), `failures="0"`) || job.Artifacts.When != "always" {
		t.Errorf("report %s: %s", report, c.read(report))
	}
	c.must("git", "clean", "-qfd")
	c.propose(broken)
	if out, err := script(); err == nil || !strings.Contains(c.read(report), `<failure message="Service default/web: spec.ports[0].port: `) {
		t.Errorf("%v: %s: %s", err, out, c.read(report))
	}
}

// TestPreCommit commits through the hook.
func TestPreCommit(t *testing.T) {
	c := newCheckout(t)
	c.weir(filepath.Join(c.bin, "weir"))
	hook, err := os.ReadFile("pre-commit")
	if err != nil {
		t.Fatal(err)
	}
	c.write(".git/hooks/pre-commit", string(hook))
	commit := func() (string, error) { return c.run(nil, "git", "commit", "-q", "-m", "x") }

	c.write("cluster/web.yaml", broken)
	c.must("git", "add", ".")
	if out, err := commit(); err == nil || !strings.Contains(out, "cluster/web.yaml:6: Service default/web: spec.ports[0].port") {
		t.Errorf("what is broken is committed: %v: %s", err, out)
	}
	c.write("cluster/web.yaml", changed)
	if out, err := commit(); err == nil {
		t.Errorf("what is broken is committed, since the work tree is not: %s", out)
	}
	c.must("git", "add", ".")
	c.write("cluster/web.yaml", broken)
	if out, err := commit(); err != nil {
		t.Errorf("what is good is refused, since the work tree is broken: %v: %s", err, out)
	}
	c.write("README", "x")
	c.must("git", "add", "README")
	if out, err := commit(); err != nil {
		t.Errorf("what has nothing to do with it is refused: %v: %s", err, out)
	}
	if left, err := os.ReadDir(c.tmp); err != nil || len(left) > 0 {
		t.Errorf("the hook leaves %v behind: %v", left, err)
	}
}

// TestPreCommitFramework runs the entries as the framework would.
func TestPreCommitFramework(t *testing.T) {
	var config struct {
		Repos []struct {
			Repo  string `json:"repo"`
			Hooks []struct {
				ID            string `json:"id"`
				Name          string `json:"name"`
				Entry         string `json:"entry"`
				Language      string `json:"language"`
				Files         string `json:"files"`
				PassFilenames bool   `json:"pass_filenames"`
			} `json:"hooks"`
		} `json:"repos"`
	}
	parse(t, "pre-commit-config.yaml", &config)
	c := newCheckout(t)
	c.weir(filepath.Join(c.bin, "weir"))
	c.write("cluster/new.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: new}\nspec: {ports: [{port: 80}]}\n")
	for _, h := range config.Repos[0].Hooks {
		args := strings.Fields(h.Entry)
		if out, err := c.run(nil, args[0], args[1:]...); err != nil || !regexp.MustCompile(h.Files).MatchString("cluster/new.yaml") {
			t.Errorf("%s: %v: %s", h.ID, err, out)
		}
	}
	if lock := c.read("cluster/weir.lock.yaml"); !strings.Contains(lock, "name: new") {
		t.Errorf("the lock is %s", lock)
	}
	c.write("cluster/web.yaml", broken)
	if out, err := c.run(nil, "weir", "validate", "-f", "cluster"); err == nil {
		t.Errorf("what is broken passes: %s", out)
	}
}
