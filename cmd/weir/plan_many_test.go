package main_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// changedRepo is a Git repository with n Services of five endpoints each, three of which are changed in the work tree.
type changedRepo struct {
	tb  testing.TB
	dir string
}

func newChangedRepo(tb testing.TB, n int) changedRepo {
	tb.Helper()
	m := changedRepo{tb, tb.TempDir()}
	const perFile = 50
	for f := range n / perFile {
		m.writeFile(f, perFile, nil)
	}
	m.git("init", "-q", "-b", "main")
	m.git("add", ".")
	m.git("-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "-q", "-m", "x")
	m.writeFile(0, perFile, strings.NewReplacer("10.64.0.1]", "10.64.255.1]"))
	m.writeFile(n/perFile/2, perFile, strings.NewReplacer("port: 80\n", "port: 81\n"))
	m.writeFile(n/perFile-1, perFile, nil, "sessionAffinity: ClientIP")
	return m
}

// writeFile writes one file of Services; change and more are applied to its first Service.
func (m changedRepo) writeFile(f, perFile int, change *strings.Replacer, more ...string) {
	m.tb.Helper()
	var b strings.Builder
	for i := range perFile {
		n := f*perFile + i
		text := fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: s%d}\nspec:\n  clusterIP: 10.96.%d.%d\n  ports:\n  - name: http\n    port: 80\n", n, 1+n/250, 1+n%250)
		if i == 0 {
			for _, line := range more {
				text += "  " + line + "\n"
			}
		}
		text += fmt.Sprintf("---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s%d-1, labels: {kubernetes.io/service-name: s%d}}\naddressType: IPv4\nports: [{name: http, port: 8080}]\nendpoints:\n", n, n)
		for e := range 5 {
			text += fmt.Sprintf("- addresses: [10.%d.%d.%d]\n  nodeName: node%d\n", 64+e, n/250, 1+n%250, e)
		}
		if change != nil && i == 0 {
			text = change.Replace(text)
		}
		b.WriteString(text + "---\n")
	}
	name := filepath.Join(m.dir, "cluster", fmt.Sprintf("f%d.yaml", f))
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(b.String()), 0o644)); err != nil {
		m.tb.Fatal(err)
	}
}

func (m changedRepo) git(args ...string) {
	m.tb.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = m.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		m.tb.Fatalf("git %v: %v: %s", args, err, out)
	}
}

// plan makes a dry run against the commit, and returns what it prints, and how long it took and how much memory, in bytes.
func (m changedRepo) plan() (out string, took time.Duration, peak int64) {
	m.tb.Helper()
	cmd := exec.Command(os.Getenv(binaryEnv), "reconcile", "--dry-run", "-f", "cluster", "--against", "git:HEAD")
	cmd.Dir = m.dir
	start := time.Now()
	text, err := cmd.CombinedOutput()
	took = time.Since(start)
	if err != nil {
		m.tb.Fatalf("%v: %s", err, text)
	}
	return string(text), took, cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10
}

// check expects that the plan names the three Services that changed, on one screen.
func (m changedRepo) check(out string, unchanged int) {
	m.tb.Helper()
	if lines := strings.Count(out, "\n"); lines > 24 {
		m.tb.Errorf("%d lines do not fit a screen:\n%s", lines, out)
	}
	if n := strings.Count(out, "\n~ default/s"); n != 3 || !strings.Contains(out, fmt.Sprintf("3 Services: 0 to add, 3 to change, 0 to remove, %d unchanged; 1 warning.", unchanged)) {
		m.tb.Errorf("not what changed:\n%s", out)
	}
}

func TestPlanAmongMany(t *testing.T) {
	t.Parallel()
	m := newChangedRepo(t, 1000)
	out, _, _ := m.plan()
	m.check(out, 997)
}

// BenchmarkPlanAmongMany is a dry run among 10,000 Services of which three changed, against a Git revision: the time from
// start to end, and the most memory that it took.
func BenchmarkPlanAmongMany(b *testing.B) {
	m := newChangedRepo(b, 10_000)
	var took time.Duration
	var peak int64
	for b.Loop() {
		out, t, p := m.plan()
		m.check(out, 9997)
		took, peak = took+t, max(peak, p)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(took.Seconds()/float64(b.N), "s/plan")
	b.ReportMetric(float64(peak)/1e6, "peak-MB")
	if peak > 300e6 {
		b.Errorf("%d MB are more than 300", peak/1e6)
	}
}
