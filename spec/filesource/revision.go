package filesource

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"weir/spec"
	"weir/spec/gitrev"
)

// revisions names the state that a tree has read. If all roots are in one Git work tree (--config may be elsewhere),
// the name is its commit. The work tree is dirty if a file that was read differs from the commit, or if a file of the
// commit is missing; other differences do not matter. Elsewhere the name is a hash of the content.
//
// Files are compared by their raw content. If a filter (autocrlf, LFS) changes what is checked out, the work tree is
// dirty.
type revisions struct {
	tree  *tree
	repo  *gitrev.Repo
	dirs  []string // a change in them may change the commit
	scope []string // the roots, relative to the work tree

	commit *gitrev.Tree
	id     string
	failed string // why the commit cannot be compared
	// differs holds the paths, relative to the work tree, that differ from the commit.
	differs map[string]bool
	// paths maps each name to the paths that it depends on, including symlinks; readers counts the names of a path.
	paths   map[string][]string
	readers map[string]int
}

// locate finds the work tree of the roots, and detects a change to another one.
func (r *revisions) locate() {
	var repo *gitrev.Repo
	var scope []string
	for _, root := range r.tree.inputs() {
		if root == stdinName {
			repo, scope = nil, nil
			break
		}
		p, err := r.tree.findInput(root)
		if err != nil {
			// The root is gone, so nothing is read from it, whatever its commit was.
			return
		}
		dir := p.real
		if !p.hint.isDir() {
			dir = filepath.Dir(dir)
		}
		found, _ := during(r.tree.oversight, dir, manySteps, func() *gitrev.Repo { return gitrev.Find(dir) }) // nil if it hangs
		if found == nil || repo != nil && *found != *repo {
			repo, scope = nil, nil
			break
		}
		repo = found
		if r.tree.rootOf(root) >= 0 {
			scope = append(scope, relative(repo.WorkTree, p.real))
		}
	}
	if repo != nil && r.repo != nil && *repo == *r.repo && slices.Equal(scope, r.scope) {
		return
	}
	r.repo, r.scope, r.commit, r.id = repo, scope, nil, ""
}

// inputs returns the names whose work tree gives the revision its name: of the roots, without --lock, and without --config beside others, and
// of the kustomizations.
func (t *tree) inputs() []string {
	var all []string
	for _, root := range t.roots {
		if root.name == t.lockName() {
			continue
		}
		if root.name != t.configName() || len(t.opts.Paths)+len(t.builts) == 0 {
			all = append(all, root.name)
		}
	}
	return append(all, slices.Sorted(maps.Keys(t.builts))...)
}

// findInput returns the current place of one of the inputs.
func (t *tree) findInput(name string) (place, error) {
	b := t.builts[name]
	if b == nil {
		return t.find(name)
	}
	abs, err := filepath.Abs(b.dir)
	if err != nil {
		return place{}, err
	}
	return t.resolve("/", abs, true)
}

// relative returns path, which is dir or below it, relative to dir.
func relative(dir, path string) string {
	return strings.TrimPrefix(strings.TrimPrefix(path, strings.TrimSuffix(dir, "/")), "/")
}

// locked returns the lock that Git holds on the work tree, if any.
func (r *revisions) locked() (hint, bool) {
	if r.repo == nil {
		return hint{}, false
	}
	fi, err := r.tree.lstat(r.repo.IndexLock())
	if err != nil {
		return hint{}, false
	}
	return hintOf(fi), true
}

// now returns the revision of the tree's state. Its cost depends on the names touched since the last call; a new commit
// costs a full comparison.
func (r *revisions) now() spec.Revision {
	defer func() { r.tree.touched = map[string]bool{} }() // a map that is only emptied keeps its memory
	r.locate()
	if r.repo == nil {
		r.watch(nil)
		return r.contentHash()
	}
	id, dirs, err := r.head()
	r.watch(dirs)
	if err != nil {
		r.tree.opts.Log.Debug("no Git commit", "directory", r.repo.WorkTree, "reason", err)
		r.id = ""
		return r.contentHash()
	}
	if id != r.id {
		r.load(id)
	} else if r.failed == "" {
		for name := range r.tree.touched {
			r.compare(name)
		}
	}
	return spec.Revision{ID: id, Dirty: len(r.differs) > 0 || r.failed != ""}
}

// head returns the current commit and the directories that determine it.
func (r *revisions) head() (id string, dirs []string, err error) {
	_, hangs := during(r.tree.oversight, r.repo.WorkTree, manySteps, func() struct{} {
		id, dirs, err = r.repo.Head()
		return struct{}{}
	})
	return id, dirs, errors.Join(err, hangs)
}

// contentHash returns the revision where there is no commit.
func (r *revisions) contentHash() spec.Revision {
	sum := sha256.Sum256(r.tree.total[:])
	return spec.Revision{ID: "sha256:" + hex.EncodeToString(sum[:6])}
}

// watch watches the directories that determine the commit.
func (r *revisions) watch(dirs []string) {
	old := r.dirs
	r.dirs = dirs
	for _, d := range dirs {
		r.tree.watch.acquire(d)
	}
	for _, d := range old {
		r.tree.watch.release(d)
	}
}

// moved reports whether an event at path may mean another commit.
func (r *revisions) moved(path string) bool {
	return slices.Contains(r.dirs, filepath.Dir(path)) && !strings.HasSuffix(path, ".lock")
}

// load compares everything with a commit.
func (r *revisions) load(id string) {
	r.id, r.failed = id, ""
	r.differs, r.paths, r.readers = map[string]bool{}, map[string][]string{}, map[string]int{}
	var commit *gitrev.Tree
	err, hangs := during(r.tree.oversight, r.repo.WorkTree, manySteps, func() (err error) {
		commit, err = r.repo.Tree(id, r.commit)
		return err
	})
	err = errors.Join(err, hangs)
	if err != nil {
		r.fail(err)
		return
	}
	r.commit = commit
	for name := range r.tree.nodes {
		r.compare(name)
	}
	for name := range r.tree.builts {
		r.compare(name)
	}
	for _, path := range r.scope {
		err, hangs := during(r.tree.oversight, r.repo.WorkTree, manySteps, func() error { return r.addMissing(commit, path) })
		if err := errors.Join(err, hangs); err != nil {
			r.fail(err)
			return
		}
	}
}

// addMissing records the files of the commit below a path that nothing was read from.
func (r *revisions) addMissing(commit *gitrev.Tree, path string) error {
	return commit.Walk(path, hidden, func(path string, e gitrev.Entry) {
		if !e.Link && isManifest(path) && r.readers[path] == 0 && !chartTemplate(commit, path) && !r.tree.leftOut(filepath.Join(r.repo.WorkTree, path)) {
			r.differs[path] = true
		}
	})
}

// chartTemplate reports whether a path in a commit is below the templates of a Helm chart.
func chartTemplate(commit *gitrev.Tree, path string) bool {
	for dir := filepath.Dir(path); dir != "."; dir = filepath.Dir(dir) {
		if filepath.Base(dir) == ChartTemplates {
			if _, ok, err := commit.Entry(filepath.Join(filepath.Dir(dir), ChartFile)); err == nil && ok {
				return true
			}
		}
	}
	return false
}

// fail records that the commit cannot be read, so that the work tree counts as dirty.
func (r *revisions) fail(err error) {
	r.commit, r.failed = nil, err.Error()
	r.tree.opts.Log.Warn("cannot compare the files with their commit; reporting it as dirty",
		"directory", r.repo.WorkTree, "commit", r.id, "error", err)
}

// compare records whether the target of name, if any, equals the commit.
func (r *revisions) compare(name string) {
	for _, path := range r.paths[name] {
		if r.readers[path]--; r.readers[path] == 0 {
			delete(r.readers, path)
			r.note(path, gitrev.ID{}, false)
		}
	}
	delete(r.paths, name)
	if b := r.tree.builts[name]; b != nil {
		for path, d := range b.deps {
			if d.isFile {
				r.read(name, path, d.blob)
			}
		}
		return
	}
	n := r.tree.nodes[name]
	if n == nil || n.kind != isFile && n.kind != isRules {
		return
	}
	r.read(name, n.place.real, n.blob)
	if n.place.links > 0 && r.tree.rootOf(name) < 0 {
		r.read(name, n.place.seen[0], gitrev.BlobID([]byte(n.place.text)))
	}
}

// read records that name depends on the file at a real path, whose blob ID is id.
func (r *revisions) read(name, real string, id gitrev.ID) {
	if !below(real, r.repo.WorkTree) {
		return
	}
	path := relative(r.repo.WorkTree, real)
	r.paths[name] = append(r.paths[name], path)
	r.readers[path]++
	r.note(path, id, true)
}

// note compares one path with the commit. The path holds the blob id or is absent.
func (r *revisions) note(path string, id gitrev.ID, present bool) {
	if r.commit == nil {
		return
	}
	if err := r.tree.oversight.begin(r.repo.WorkTree, 0, manySteps); err != nil {
		r.fail(err)
		return
	}
	e, ok, err := r.commit.Entry(path)
	r.tree.oversight.end()
	if err != nil {
		r.fail(err)
		return
	}
	if ok == present && (!ok || e.ID == id) {
		delete(r.differs, path)
	} else {
		r.differs[path] = true
	}
}
