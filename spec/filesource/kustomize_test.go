package filesource

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"weir/spec/manifest"
)

const kustomizedService = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n"

// kustomized makes a Git work tree with an overlay over a base, and returns the directory of the overlay.
func kustomized(t *testing.T, dir string) string {
	git(t, ".", "init", "-q", dir)
	write(t, dir+"/base/kustomization.yaml", "resources: [web.yaml]\n")
	write(t, dir+"/base/web.yaml", kustomizedService)
	write(t, dir+"/over/lay/kustomization.yaml", "resources: [../../base]\nnamePrefix: a-\n")
	return dir + "/over/lay"
}

// awaitRender follows Updates until the only file is path, rendered with text in it.
func (h *harness) awaitRender(dir, path, text string) {
	h.t.Helper()
	h.await("want "+text, func() bool {
		names := slices.Collect(maps.Keys(h.files))
		return h.err == nil && slices.Equal(names, []string{manifest.RenderedPath(path, dir)}) && strings.Contains(h.files[names[0]], text)
	})
}

// TestWatchKustomize changes everything that a kustomization depends on, one after the other, in one watched tree.
func TestWatchKustomize(t *testing.T) {
	t.Parallel()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	one := kustomized(t, dir+"/one")
	must(t, os.Symlink("one", dir+"/current"))
	k := dir + "/current/over/lay"
	reread := make(chan os.Signal, 1)
	h := start(t, Options{Kustomize: []string{k}, Reread: reread})
	file := dir + "/current/base/web.yaml"
	h.awaitRender(k, file, "name: a-web")
	for _, step := range []struct {
		what string
		do   func()
		want string
	}{
		{"the overlay", func() { write(t, one+"/kustomization.yaml", "resources: [../../base]\nnamePrefix: b-\n") }, "name: b-web"},
		{"a file of the base", func() {
			replace(t, dir+"/one/base/web.yaml", strings.Replace(kustomizedService, "80", "81", 1))
		}, "port: 81"},
		{"a component that comes later", func() {
			write(t, one+"/kustomization.yaml", "resources: [../../base]\ncomponents: [../part]\n")
			h.awaitErr("over/lay/kustomization.yaml:2: components[0]", "does not exist")
			write(t, dir+"/one/over/part/p.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.9}\n")
			write(t, dir+"/one/over/part/kustomization.yaml", "apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\npatches: [{path: p.yaml}]\n")
		}, "clusterIP: 10.96.0.9"},
		{"a patch of the component", func() {
			write(t, dir+"/one/over/part/p.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.8}\n")
		}, "clusterIP: 10.96.0.8"},
		{"a broken base", func() {
			write(t, dir+"/one/base/web.yaml", "a: [")
			h.awaitErr("over/lay/kustomization.yaml", "kustomize:")
			write(t, dir+"/one/base/web.yaml", kustomizedService)
		}, "port: 80"},
		{"the link that leads to the tree", func() {
			kustomized(t, dir+"/two")
			write(t, dir+"/two/over/lay/kustomization.yaml", "resources: [../../base]\nnamePrefix: two-\n")
			relink(t, "two", dir+"/current")
		}, "name: two-web"},
	} {
		step.do()
		h.awaitRender(k, file, step.want)
		t.Log(step.what)
	}
	h.quiet(func() { reread <- syscall.SIGHUP })
}

// TestKustomizeRevision names the commit of the work tree, dirty if a file differs that the kustomization reads.
func TestKustomizeRevision(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	k := kustomized(t, dir)
	write(t, dir+"/other/notes.yaml", "x: y\n")
	git(t, dir, "add", "-A")
	git(t, dir, "commit", "-q", "-m", "x")
	head := git(t, dir, "rev-parse", "HEAD")
	load := func() string {
		src, _ := newSource(Options{Kustomize: []string{k}})
		snap, err := src.Load(t.Context())
		must(t, err)
		return snap.Revision.String()
	}
	write(t, dir+"/other/notes.yaml", "x: z\n")
	if got := load(); got != head {
		t.Errorf("a file that is not read: revision %s, want %s", got, head)
	}
	write(t, dir+"/base/web.yaml", kustomizedService+"# more\n")
	if got := load(); got != head+"-dirty" {
		t.Errorf("a file of the base: revision %s, want %s-dirty", got, head)
	}
}
