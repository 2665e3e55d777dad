package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	"golang.org/x/tools/txtar"

	"weir/spec"
)

var updateRepositories = flag.Bool("update-repositories", false, "rewrite what testdata/repositories expects")

// TestRepositories gives small trees, such as people have in Git, to weir validate, to a dry run, and to what weir run
// reads them with. The README of testdata/repositories has the format.
func TestRepositories(t *testing.T) {
	dir, err := filepath.Abs("../../testdata/repositories")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(dir + "/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("there are no cases: ", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) { testRepository(t, file) })
	}
}

func testRepository(t *testing.T, file string) {
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	r := newRepository(t, archive)
	t.Chdir(r.dir)
	r.lay(0)
	got := map[string]string{}
	got["validate"] = r.command("validate")
	got["plan"] = r.command("reconcile", "--dry-run", "--against", "empty")
	maps.Copy(got, r.watch())
	if *updateRepositories {
		r.record(file, archive, got)
		return
	}
	for _, name := range r.results() {
		if diff := cmp.Diff(r.want[name], got[name]); diff != "" {
			t.Errorf("%s differs (-want +got); -update-repositories accepts it:\n%s", name, diff)
		}
		delete(r.want, name)
	}
	if len(r.want) > 0 {
		t.Errorf("the case has results of steps that it does not have: %v", slices.Sorted(maps.Keys(r.want)))
	}
}

// ofOurs matches a problem with an object of a kind that weir reads.
var ofOurs = regexp.MustCompile(`: (Service|EndpointSlice|Endpoints|Node|KubeProxyConfiguration|WeirConfiguration|AllocationLock|ClusterConfiguration|lock of Service)\b`)

// TestRepositoriesSideBySide validates all trees in one directory. Their Services may collide, and what is wrong in one
// stays wrong. Nothing else is refused, so that no file of another kind is.
func TestRepositoriesSideBySide(t *testing.T) {
	files, err := filepath.Glob("../../testdata/repositories/*.txtar")
	if err != nil || len(files) < 60 {
		t.Fatalf("%d cases: %v", len(files), err)
	}
	top := t.TempDir()
	alone := map[string]bool{} // the problems of each tree
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		r := newRepository(t, archive)
		if slices.ContainsFunc(archive.Files, func(f txtar.File) bool { return strings.Contains(string(f.Data), "kind: WeirConfiguration") }) {
			continue // it chooses among the files of all
		}
		dir := filepath.Join(top, strings.TrimSuffix(filepath.Base(file), ".txtar"))
		if err := r.write(dir, 0); err != nil {
			t.Fatal(err)
		}
		for _, p := range problemsOf(t, dir) {
			alone[p.Error()] = true
		}
	}
	all := problemsOf(t, top)
	if len(all) == 0 {
		t.Fatal("nothing is refused, so that nothing was tested")
	}
	t.Logf("%d trees, %d problems, of which %d are of one tree alone", len(files), len(all), len(alone))
	for _, p := range all {
		if !alone[p.Error()] && !ofOurs.MatchString(p.Error()) {
			t.Errorf("refused, though it is not weir's: %v", p)
		}
	}
}

// problemsOf returns all reasons to refuse a tree.
func problemsOf(t *testing.T, dir string) spec.Problems {
	t.Helper()
	var input inputFlags
	cmd := &cobra.Command{}
	input.add(cmd)
	if err := cmd.ParseFlags([]string{"-f", dir, "--state-dir", t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	source, err := input.source(hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	var problems spec.Problems
	if _, err = source.Load(t.Context()); err != nil && !errors.As(err, &problems) {
		t.Fatalf("%s: %v", dir, err)
	}
	return problems
}

// repository is one case.
type repository struct {
	t     *testing.T
	dir   string // where the commands run
	flags []string
	steps []step            // the first is the tree at the start
	want  map[string]string // by section: validate, plan, run, run 1, ...
	// restarts are the steps at which weir ends before the files change, and starts after that.
	restarts []int
}

// step is what a step changes: files by name, nil for one that goes, and the targets of symlinks.
type step struct {
	files map[string][]byte
	links map[string]string
	// special are files that a section describes: "FIFO" or "N bytes".
	special map[string]string
}

// specialName is the name of a section that describes a file.
var specialName = regexp.MustCompile(`^(.*) \((FIFO|[0-9]+ bytes)\)$`)

var resultName = regexp.MustCompile(`^(validate|plan|run( [0-9]+)?)$`)

func isResult(name string) bool { return resultName.MatchString(name) }

func newRepository(t *testing.T, archive *txtar.Archive) *repository {
	r := &repository{t: t, dir: t.TempDir(), flags: []string{"-f", "repo"}, want: map[string]string{}}
	for line := range strings.Lines(string(archive.Comment)) {
		if flags, ok := strings.CutPrefix(strings.TrimSpace(line), "flags: "); ok {
			r.flags = strings.Fields(flags)
		}
		if step, ok := strings.CutPrefix(strings.TrimSpace(line), "restart: "); ok {
			at, err := strconv.Atoi(step)
			if err != nil {
				t.Fatal(err)
			}
			r.restarts = append(r.restarts, at)
		}
	}
	for _, f := range archive.Files {
		if isResult(f.Name) {
			r.want[f.Name] = string(f.Data)
			continue
		}
		r.file(f)
	}
	return r
}

var stepName = regexp.MustCompile(`^step ([0-9]+): (.*)$`)

// file takes one section that is no result.
func (r *repository) file(f txtar.File) {
	name, at, data := f.Name, 0, f.Data
	if m := stepName.FindStringSubmatch(name); m != nil {
		name = m[2]
		at, _ = strconv.Atoi(m[1])
	}
	for len(r.steps) <= at {
		r.steps = append(r.steps, step{map[string][]byte{}, map[string]string{}, map[string]string{}})
	}
	if link, target, ok := strings.Cut(name, " -> "); ok {
		r.steps[at].links[link] = target
		return
	}
	if m := specialName.FindStringSubmatch(name); m != nil {
		r.steps[at].special[m[1]] = m[2]
		return
	}
	if gone, ok := strings.CutSuffix(name, " (removed)"); ok {
		r.steps[at].files[gone] = nil
		return
	}
	if escaped, ok := strings.CutSuffix(name, " (escaped)"); ok {
		name, data = escaped, r.unescape(data)
	}
	r.steps[at].files[name] = data
}

// unescape returns the bytes of a section of which every line is the inside of a Go string, with its line end.
func (r *repository) unescape(data []byte) []byte {
	var out []byte
	for line := range strings.Lines(string(data)) {
		text, err := strconv.Unquote(`"` + strings.ReplaceAll(strings.TrimSuffix(line, "\n"), `"`, `\"`) + `"`)
		if err != nil {
			r.t.Fatalf("%s: %v", line, err)
		}
		out = append(out, text...)
	}
	return out
}

// lay makes the tree as of a step in a directory of its own, and repo a symlink to it. So all of a step appears at once.
func (r *repository) lay(at int) {
	r.t.Helper()
	dir := filepath.Join(r.dir, ".trees", strconv.Itoa(at))
	errs := []error{r.write(dir, at)}
	entries, err := os.ReadDir(dir)
	errs = append(errs, err)
	for _, e := range entries {
		swap := filepath.Join(r.dir, ".swap")
		errs = append(errs, os.Symlink(filepath.Join(".trees", strconv.Itoa(at), e.Name()), swap), os.Rename(swap, filepath.Join(r.dir, e.Name())))
	}
	if err := errors.Join(errs...); err != nil {
		r.t.Fatal(err)
	}
}

// write makes the tree as of a step below a directory.
func (r *repository) write(dir string, at int) error {
	errs := []error{os.MkdirAll(filepath.Join(dir, "repo"), 0o755)}
	files, links, special := map[string][]byte{}, map[string]string{}, map[string]string{}
	for _, s := range r.steps[:min(at+1, len(r.steps))] {
		for name := range s.files {
			delete(special, name)
		}
		maps.Copy(files, s.files)
		maps.Copy(links, s.links)
		maps.Copy(special, s.special)
	}
	for name, what := range special {
		delete(files, name)
		name = filepath.Join(dir, name)
		errs = append(errs, os.MkdirAll(filepath.Dir(name), 0o755), makeSpecial(name, what))
	}
	for name, data := range files {
		if name = filepath.Join(dir, name); data != nil {
			errs = append(errs, os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, data, 0o644))
		}
	}
	for name, target := range links {
		name = filepath.Join(dir, name)
		errs = append(errs, os.MkdirAll(filepath.Dir(name), 0o755), os.Symlink(target, name))
	}
	return errors.Join(errs...)
}

// makeSpecial makes a FIFO, or a file of so many bytes that takes no space.
func makeSpecial(name, what string) error {
	if what == "FIFO" {
		return syscall.Mkfifo(name, 0o644)
	}
	size, err := strconv.ParseInt(strings.TrimSuffix(what, " bytes"), 10, 64)
	return errors.Join(err, os.WriteFile(name, nil, 0o644), os.Truncate(name, size))
}

var innards = regexp.MustCompile(`panic|goroutine|\.go:\d`)

// command returns what a command prints about the tree.
func (r *repository) command(name string, args ...string) string {
	out, errOut, code := run(slices.Concat([]string{name}, r.flags, args)...)
	if out+errOut == "" || innards.MatchString(out+errOut) {
		r.t.Errorf("weir %s: exit code %d: %s%s", name, code, out, errOut)
	}
	return fmt.Sprintf("%s%s[exit code %d]\n", out, errOut, code)
}

// watch follows the tree through all steps as weir run does, or as several runs do. It returns what was taken up after each.
func (r *repository) watch() map[string]string {
	got := map[string]string{}
	w := r.start()
	defer func() { w.stop() }()
	inForce := "nothing is in force\n"
	for at := range max(len(r.steps), 1) {
		name := "run"
		if at > 0 {
			name = fmt.Sprintf("run %d", at)
			restart := slices.Contains(r.restarts, at)
			if restart {
				w.stop()
			}
			r.lay(at)
			if restart {
				w, inForce = r.start(), "nothing is in force\n"
			}
		}
		u, err := next(w.updates, w.done)
		if err == nil && u.Err == nil && u.Snapshot.Revision.Stale { // why it is used comes next
			inForce = declared(u.Snapshot)
			u, err = next(w.updates, w.done)
		}
		if err != nil {
			r.t.Errorf("%s: %v", name, err)
			return got
		}
		if u.Err != nil {
			got[name] = "refused: " + strings.Join(problemLines(u.Err), "\nrefused: ") + "\n" + inForce
			continue
		}
		inForce = declared(u.Snapshot)
		got[name] = inForce
	}
	return got
}

// watching is one weir run, as far as it reads.
type watching struct {
	updates *spec.Outbox
	done    chan error
	// stop ends it. What was good is then kept in the state directory.
	stop func()
}

func (r *repository) start() *watching {
	var input inputFlags
	cmd := &cobra.Command{}
	input.add(cmd)
	if err := cmd.ParseFlags(append([]string{"--settle-time", "5ms", "--state-dir", filepath.Join(r.dir, ".state")}, r.flags...)); err != nil {
		r.t.Fatal(err)
	}
	source, err := input.source(hclog.NewNullLogger())
	if err != nil {
		r.t.Fatal(err)
	}
	w := &watching{updates: spec.NewOutbox(), done: make(chan error, 1)}
	ctx, cancel := context.WithCancel(r.t.Context())
	var running sync.WaitGroup
	w.stop = func() {
		cancel()
		running.Wait()
	}
	running.Go(func() { w.done <- source.Watch(ctx, w.updates.Put) })
	return w
}

// next waits for an Update.
func next(updates *spec.Outbox, done <-chan error) (u spec.Update, err error) {
	deadline := time.After(10 * time.Second)
	for {
		select {
		case <-updates.Ready():
			if u, ok := updates.Take(); ok {
				return u, nil
			}
		case err := <-done:
			return u, fmt.Errorf("the watch ended: %w", err)
		case <-deadline:
			return u, errors.New("nothing is told")
		}
	}
}

// declared lists what a Snapshot declares.
func declared(snap *spec.Snapshot) string {
	var b strings.Builder
	if snap.Revision.Stale {
		fmt.Fprintf(&b, "in force: revision %s, kept by the run before\n", snap.Revision)
	}
	for svc := range snap.Services.All() {
		endpoints := 0
		for _, s := range svc.Slices {
			endpoints += len(s.Endpoints)
		}
		fmt.Fprintf(&b, "in force: Service %s of %s, %s\n", svc.Name, svc.Origin, plural(endpoints, "endpoint"))
	}
	if snap.ConfigOrigin.File != "" {
		fmt.Fprintf(&b, "in force: configuration of %s\n", snap.ConfigOrigin)
	}
	if b.Len() == 0 {
		return "nothing is in force\n"
	}
	return b.String()
}

// results returns the names of all results, in order.
func (r *repository) results() []string {
	names := []string{"validate", "plan", "run"}
	for at := 1; at < len(r.steps); at++ {
		names = append(names, fmt.Sprintf("run %d", at))
	}
	return names
}

// record replaces the results of a case.
func (r *repository) record(file string, archive *txtar.Archive, got map[string]string) {
	archive.Files = slices.DeleteFunc(archive.Files, func(f txtar.File) bool { return isResult(f.Name) })
	for _, name := range r.results() {
		archive.Files = append(archive.Files, txtar.File{Name: name, Data: []byte(got[name])})
	}
	if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
		r.t.Fatal(err)
	}
}
