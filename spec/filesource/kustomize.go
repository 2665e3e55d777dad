package filesource

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"weir/spec"
	"weir/spec/document"
	"weir/spec/gitrev"
	"weir/spec/kustomize"
	"weir/spec/manifest"
)

// built is a kustomization of Options.Kustomize. The tree marks and refreshes it like a file, by a name that no file can
// have. It depends on every path that its last build asked for, whether there was anything or not.
type built struct {
	dir  string // as the user named it
	root int    // index in Options.Kustomize

	deps map[string]dep  // by absolute path
	seen map[string]bool // the paths of whose events one may change a dep
	sum  digest          // of the files read and of their names
	good bool            // the last build succeeded
	// files are the names of the files that objects came from.
	files map[string]bool
}

// dep is a path that a build asked for.
type dep struct {
	place   place
	fails   bool
	recheck bool // stat cannot tell whether it changed since
	isFile  bool // it was read
	sum     digest
	blob    gitrev.ID
}

const builtPrefix = "\x00-k "

// newBuilts returns the kustomizations to build, by name.
func newBuilts(o Options) map[string]*built {
	all := map[string]*built{}
	for i, dir := range o.Kustomize {
		all[builtPrefix+clean(dir)] = &built{dir: clean(dir), root: i}
	}
	return all
}

// markBuilts marks the kustomizations that an event at a real path may change.
func (t *tree) markBuilts(path string) {
	for name, b := range t.builts {
		if b.seen[path] {
			t.marked[name] = hint{}
		}
	}
}

// probeBuilts marks the kustomizations of which a file differs from what was read, and those that hang.
func (t *tree) probeBuilts(ctx context.Context) error {
	for name, b := range t.builts {
		if t.faults[faultOf(name, 0)].hangs {
			t.marked[name] = hint{}
		}
		for path, d := range b.deps {
			if err := ctx.Err(); err != nil {
				return err
			}
			if d.recheck || !t.same(path, d) {
				t.marked[name] = hint{}
				break
			}
		}
	}
	return nil
}

// same reports whether a path leads to what a build found there.
func (c *calls) same(path string, d dep) bool {
	p, err := c.resolve("/", path, true)
	return (err != nil) == d.fails && p.real == d.place.real && (p.hint == d.place.hint || p.hint.isDir() && p.hint.sameInode(d.place.hint))
}

// lookBuilt builds a kustomization. It returns true if a file changed meanwhile, so that it must be built again.
func (t *tree) lookBuilt(ctx context.Context, name string, b *built) (again bool) {
	if err := t.oversight.begin(b.dir, 0, manySteps); err != nil {
		t.faults[faultOf(name, 0)] = t.newFault(b.dir, err)
		return false
	}
	r, objects, err := t.runBuild(ctx, b)
	deps := r.taken() // waits for a read that hangs
	t.oversight.end()
	if ctx.Err() != nil {
		return true
	}
	t.watchBuilt(b, deps)
	if t.unstable[name]++; t.unstable[name] < maxUnstable {
		for path, d := range b.deps {
			if !t.same(path, d) {
				return true
			}
		}
	}
	delete(t.unstable, name)
	t.touched[name] = true
	for i := 0; ; i++ {
		key := faultOf(name, i)
		if _, ok := t.faults[key]; !ok {
			break
		}
		delete(t.faults, key)
	}
	if err != nil {
		for i, p := range b.problems(err, r.dir) {
			t.faults[faultOf(name, i)] = fault{Problem: p}
		}
		return false
	}
	t.keepBuilt(b, r, objects)
	return false
}

// faultOf returns the name of a fault of a kustomization.
func faultOf(name string, i int) string { return fmt.Sprintf("%s\x00%03d", name, i) }

// runBuild builds a kustomization and returns what that depended on.
func (t *tree) runBuild(ctx context.Context, b *built) (*buildRecorder, []kustomize.Object, error) {
	r := &buildRecorder{deps: map[string]dep{}, limit: t.opts.MaxFileSize}
	abs, err := filepath.Abs(b.dir)
	if err != nil {
		return r, nil, err
	}
	p, err := r.find(abs)
	switch {
	case err != nil:
		return r, nil, err
	case !p.hint.isDir():
		return r, nil, errors.New("is not a directory; -k takes the directory of a kustomization")
	}
	r.dir = p.real
	if !t.opts.AllowOutsideLinks {
		r.within = t.bounds(p.real)
	}
	objects, err := kustomize.Build(ctx, r, p.real)
	return r, objects, err
}

// bounds returns the directories that the kustomization in a directory may read: its Git work tree, or the directory
// where there is none, and what else the user named.
func (t *tree) bounds(dir string) []string {
	within := []string{dir}
	if repo := gitrev.Find(dir); repo != nil {
		within = append(within, repo.WorkTree)
	}
	for _, r := range t.roots {
		if n := t.nodes[r.name]; n != nil && n.place.real != "" {
			within = append(within, n.place.real)
		}
	}
	return within
}

// watchBuilt makes a kustomization depend on what its last build asked for.
func (t *tree) watchBuilt(b *built, deps map[string]dep) {
	old := b.deps
	b.deps, b.seen = deps, map[string]bool{}
	for _, d := range b.deps {
		for _, path := range d.place.seen {
			b.seen[path] = true
			t.watch.acquire(filepath.Dir(path)) // the comparison that follows finds what changed before
		}
	}
	for _, d := range old {
		for _, path := range d.place.seen {
			t.watch.release(filepath.Dir(path))
		}
	}
}

// keepBuilt records the result of a build.
func (t *tree) keepBuilt(b *built, r *buildRecorder, objects []kustomize.Object) {
	key := fmt.Sprint("k", b.root)
	if b.good {
		t.total.remove(key, b.sum)
	}
	b.sum, b.good = b.sumOf(r.dir), true
	t.total.add(key, b.sum)
	docs := map[string][]document.Text{}
	for _, o := range objects {
		file := b.nameOf(r.dir, o.File)
		docs[file] = append(docs[file], document.Text{Line: o.Line, OneLine: true, Data: o.Data})
	}
	for file := range b.files {
		if docs[file] == nil {
			t.setContent(manifest.RenderedPath(file, b.dir), content{})
		}
	}
	b.files = map[string]bool{}
	for file, texts := range docs {
		b.files[file] = true
		data := manifest.RenderedData(texts)
		t.setContent(manifest.RenderedPath(file, b.dir), content{data: data, sum: sha256.Sum256(data)})
	}
}

// sumOf returns a hash of all files that were read, which is the same wherever the tree is.
func (b *built) sumOf(dir string) digest {
	h := sha256.New()
	for _, path := range slices.Sorted(maps.Keys(b.deps)) {
		if d := b.deps[path]; d.isFile {
			fmt.Fprintf(h, "%q %x\n", b.below(dir, path), d.sum)
		}
	}
	return digest(h.Sum(nil))
}

func (b *built) below(dir, path string) string {
	rel, err := filepath.Rel(dir, path)
	if err != nil {
		return path
	}
	return rel
}

// nameOf returns the name for the user of a file that a build read.
func (b *built) nameOf(dir, real string) string {
	if dir == "" {
		return b.dir
	}
	return filepath.Join(b.dir, b.below(dir, real))
}

// problems returns why a build failed.
func (b *built) problems(err error, dir string) spec.Problems {
	var all spec.Problems
	if !errors.As(err, &all) {
		p := problem(b.dir, err, Options{})
		return spec.Problems{p}
	}
	named := slices.Clone(all)
	for i := range named {
		named[i].Origin.File = b.nameOf(dir, named[i].Origin.File)
	}
	return named
}

// buildRecorder is the kustomize.Tree of one build. It records every path that is asked for. The build may outlive the wait
// for it, so that it shares nothing with the tree.
type buildRecorder struct {
	dir    string   // the real path of the kustomization
	within []string // where files may be; nil means anywhere
	limit  int64

	mu   sync.Mutex
	deps map[string]dep
	calls
}

// find resolves an absolute path and records it.
func (r *buildRecorder) find(path string) (place, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, err := r.resolve("/", path, true)
	if known, ok := r.deps[path]; !ok || !known.isFile {
		r.deps[path] = dep{place: p, fails: err != nil}
	}
	switch {
	case errors.Is(err, errDangling), errors.Is(err, syscall.ENOTDIR):
		err = os.ErrNotExist
	case err == nil && r.within != nil && !slices.ContainsFunc(r.within, func(dir string) bool { return below(p.real, dir) }):
		err = kustomize.ErrOutside
	}
	return p, err
}

// Resolve implements kustomize.Tree.
func (r *buildRecorder) Resolve(path string) (real string, dir bool, err error) {
	p, err := r.find(path)
	return p.real, p.hint.isDir(), err
}

// ReadFile implements kustomize.Tree.
func (r *buildRecorder) ReadFile(real string) ([]byte, error) {
	p, err := r.find(real)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	data, err := r.read(p, r.limit)
	if err == nil {
		r.deps[real] = dep{place: p, isFile: true, recheck: p.hint.recent(now()), sum: sha256.Sum256(data), blob: gitrev.BlobID(data)}
	}
	return data, err
}

// taken returns what was recorded so far.
func (r *buildRecorder) taken() map[string]dep {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.deps)
}
