package gitsource

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"weir/spec"
	"weir/spec/filesource"
)

// repo is a Git repository of a test's own.
type repo struct {
	t   *testing.T
	dir string
}

func newRepo(t *testing.T) repo {
	t.Helper()
	r := repo{t, t.TempDir()}
	r.git("init", "-q", "-b", "main")
	return r
}

func (r repo) git(args ...string) string {
	r.t.Helper()
	return r.gitWith("", args...)
}

func (r repo) gitWith(stdin string, args ...string) string {
	r.t.Helper()
	cmd := exec.Command("git", append([]string{"-c", "user.name=t", "-c", "user.email=t@example.org"}, args...)...)
	cmd.Dir = r.dir
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.t.Fatalf("git %v: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func (r repo) write(name, text string) {
	r.t.Helper()
	file := filepath.Join(r.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
		r.t.Fatal(err)
	}
}

func (r repo) commit() string {
	r.git("add", "-A")
	r.git("commit", "-q", "-m", "x")
	return r.git("rev-parse", "HEAD")
}

func service(name string) string {
	return "apiVersion: v1\nkind: Service\nmetadata: {name: " + name + "}\nspec: {ports: [{port: 80}]}\n"
}

func names(snap *spec.Snapshot) string {
	var all []string
	for s := range snap.Services.All() {
		all = append(all, s.Name.Name+"@"+s.Origin.String())
	}
	return strings.Join(all, " ")
}

// TestSameAsCheckout reads a commit from the object store and from its checkout: symlinks, dotfiles, other files and all.
func TestSameAsCheckout(t *testing.T) {
	r := newRepo(t)
	r.write("cluster/a.yaml", service("a"))
	r.write("cluster/deep/er/b.yml", service("b"))
	r.write("cluster/.hidden/c.yaml", service("c"))
	r.write("cluster/.d.yaml", service("d"))
	r.write("cluster/notes.txt", "no manifest")
	r.write("shared/e.yaml", service("e"))
	r.write("shared/f/g.yaml", service("g"))
	r.write("elsewhere/h.yaml", service("h"))
	r.write("cluster/chart/Chart.yaml", "apiVersion: v2\nname: chart\n")
	r.write("cluster/chart/templates/i.yaml", service("i"))
	for link, target := range map[string]string{"cluster/e.yaml": "../shared/e.yaml", "cluster/f": "../shared/f", "cluster/readme": "notes.txt"} {
		if err := os.Symlink(target, filepath.Join(r.dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	id := r.commit()
	dir := filepath.Join(r.dir, "cluster")
	for _, packed := range []bool{false, true} {
		if packed {
			r.git("gc", "-q")
		}
		got, err := Load(t.Context(), Options{Rev: "main", Paths: []string{dir}})
		if err != nil {
			t.Fatal(err)
		}
		want, err := filesource.New(filesource.Options{Paths: []string{dir}, AllowOutsideLinks: true}).Load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if names(got) != names(want) || got.Services.Len() != 4 || got.Revision.ID != id {
			t.Errorf("got %s (%v)\nwant %s", names(got), got.Revision, names(want))
		}
	}
}

// TestWorkTreeUntouched reads an old commit of a directory that is gone by now, and compares the whole work tree, Git's own
// files included, before and after.
func TestWorkTreeUntouched(t *testing.T) {
	r := newRepo(t)
	r.write("cluster/a.yaml", service("a"))
	r.commit()
	if err := os.RemoveAll(filepath.Join(r.dir, "cluster")); err != nil {
		t.Fatal(err)
	}
	r.write("other.yaml", service("b"))
	r.commit()
	before := listing(t, r.dir)
	snap, err := Load(t.Context(), Options{Rev: "HEAD~1", Paths: []string{filepath.Join(r.dir, "cluster")}})
	if err != nil || snap.Services.Len() != 1 {
		t.Fatalf("%v, %v", snap, err)
	}
	if after := listing(t, r.dir); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.Walk(dir, func(path string, fi os.FileInfo, err error) error {
		if err == nil {
			b.WriteString(path + " " + fi.Mode().String() + " " + fi.ModTime().String() + "\n")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestErrors(t *testing.T) {
	r := newRepo(t)
	r.write("good/a.yaml", service("a"))
	r.write("bad/a.yaml", "kind: Service\napiVersion: v1\nmetadata: {name: A}\nspec: {}\n")
	for link, target := range map[string]string{"out/o.yaml": "/etc/passwd", "out/p.yaml": "../../x.yaml", "loop/l": "../loop", "self/s.yaml": "s.yaml", "dangling/d.yaml": "gone.yaml"} {
		file := filepath.Join(r.dir, link)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.Symlink(target, file)); err != nil {
			t.Fatal(err)
		}
	}
	r.commit()
	for _, tt := range []struct{ rev, path, want string }{
		{"nonesuch", "good", `no revision "nonesuch"`},
		{"--output=x", "good", `no revision "--output=x"`},
		{"HEAD", "bad", "a.yaml:3: Service default/A: metadata.name"},
		{"HEAD", "out", "leads out of the repository"},
		{"HEAD", "loop", "leads to itself"},
		{"HEAD", "self", "leads to itself"},
		{"HEAD", "dangling", "is not in the revision"},
		{"HEAD", "absent", "there is no Service"},
		{"HEAD", "../..", "not in"},
	} {
		_, err := Load(t.Context(), Options{Rev: tt.rev, Paths: []string{filepath.Join(r.dir, tt.path)}, StrictTree: true})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s %s: got %v, want %q", tt.rev, tt.path, err, tt.want)
		}
	}
	if _, err := Load(t.Context(), Options{Rev: "HEAD", Paths: []string{"-"}}); err == nil {
		t.Error("standard input is accepted")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Load(ctx, Options{Rev: "HEAD", Paths: []string{filepath.Join(r.dir, "good")}}); err == nil {
		t.Error("a context that is done is not noticed")
	}
}

// TestBrokenRevision reads a revision in which one file is invalid.
func TestBrokenRevision(t *testing.T) {
	r := newRepo(t)
	r.write("good.yaml", service("good"))
	r.write("bad.yaml", strings.Replace(service("bad"), "port: 80", "port: 800000", 1))
	r.commit()
	var left []string
	o := Options{Rev: "HEAD", Paths: []string{string(r.dir)}}
	if _, err := Load(t.Context(), o); !errors.As(err, new(spec.Problems)) {
		t.Errorf("without Broken: %v", err)
	}
	o.Broken = func(p spec.Problems) { left = append(left, p.Error()) }
	snap, err := Load(t.Context(), o)
	if err != nil || !strings.Contains(names(snap), "good") || strings.Contains(names(snap), "bad") {
		t.Fatalf("%v: %v", err, snap)
	}
	if len(left) != 1 || !strings.Contains(left[0], "bad.yaml:") {
		t.Errorf("left out: %q", left)
	}
}

// TestBrokenKustomization has a revision in which one of two kustomizations cannot be built, or renders something invalid: it is
// left out, and the other one counts. If there is no other, nothing is left.
func TestBrokenKustomization(t *testing.T) {
	for name, c := range map[string]struct{ kustomization, want string }{
		"a resource is missing":  {"resources: [web.yaml, nowhere.yaml]\n", "bad/kustomization.yaml:1: resources[1]"},
		"a patch without target": {"resources: [web.yaml]\npatches: [{path: patch.yaml}]\n", "bad/"},
		"not YAML":               {"resources: [web.yaml\n", "bad/kustomization.yaml:"},
		"an invalid object":      {"resources: [web.yaml, invalid.yaml]\n", "bad/invalid.yaml:1: Service default/invalid"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRepo(t)
			r.write("good/kustomization.yaml", "resources: [good.yaml]\n")
			r.write("good/good.yaml", service("good"))
			r.write("bad/kustomization.yaml", c.kustomization)
			r.write("bad/web.yaml", service("web"))
			r.write("bad/patch.yaml", service("unknown"))
			r.write("bad/invalid.yaml", strings.Replace(service("invalid"), "port: 80", "port: 800000", 1))
			r.commit()
			var left []string
			empty := spec.Overrides{}.AllowingEmpty()
			o := Options{Rev: "HEAD", Kustomize: []string{string(r.dir) + "/good", string(r.dir) + "/bad"}, Overrides: empty}
			if _, err := Load(t.Context(), o); !errors.As(err, new(spec.Problems)) {
				t.Errorf("without Broken: %v", err)
			}
			o.Broken = func(p spec.Problems) { left = append(left, p.Error()) }
			snap, err := Load(t.Context(), o)
			if err != nil || !strings.Contains(names(snap), "good@") || strings.Contains(names(snap), "invalid@") {
				t.Fatalf("%v: %s; left out %q", err, names(snap), left)
			}
			if len(left) != 1 || !strings.Contains(left[0], c.want) {
				t.Errorf("left out: %q", left)
			}
			o.Kustomize = o.Kustomize[1:]
			if snap, err = Load(t.Context(), o); err != nil || strings.Contains(names(snap), "good@") || strings.Contains(names(snap), "invalid@") {
				t.Errorf("alone: %v: %v", err, snap)
			}
		})
	}
}

// TestNamesWithWildcards has files whose names are globs. Such a name stands for the file if the revision has it, whatever
// the work tree has, and a glob that is none stands for nothing.
func TestNamesWithWildcards(t *testing.T) {
	r := newRepo(t)
	r.write("a.yaml", service("a"))
	r.write("x[1", service("literal"))
	r.write("b*.yaml", service("star"))
	r.write("b1.yaml", service("b1"))
	r.commit()
	for _, name := range []string{"x[1", "b*.yaml"} {
		if err := os.Remove(filepath.Join(r.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	r.write("a*.yaml", service("forged"))
	for name, want := range map[string]string{"x[1": "literal", "b*.yaml": "star", "a*.yaml": "a", "y[1": ""} {
		snap, err := Load(t.Context(), Options{Rev: "HEAD", Paths: []string{filepath.Join(r.dir, name)}, Overrides: spec.Overrides{}.AllowingEmpty()})
		if err != nil {
			t.Fatal(err)
		}
		if got, _, _ := strings.Cut(names(snap), "@"); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}
