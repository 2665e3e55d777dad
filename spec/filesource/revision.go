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
	"weir/spec/choice"
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
	// headErr is why the commit is not known, if id is "".
	headErr error
	// differs holds the paths, relative to the work tree, that differ from the commit.
	differs map[string]bool
	// paths maps each name to the paths that it depends on, including symlinks; readers counts the names of a path.
	paths   map[string][]string
	readers map[string]int
	// strays maps names to the real paths outside of the work tree that they were read from.
	strays map[string]string

	// homes are the work trees of all inputs, lost is one that is gone, if any, and apart are the inputs that do not name the
	// revision.
	homes []home
	lost  string
	apart map[string]bool
	// also are more directories to watch.
	also []string
}

// home is the work tree of an input, or nil.
type home struct {
	input string
	repo  *gitrev.Repo
}

// locate finds the work tree of the roots, and detects a change to another one.
func (r *revisions) locate() {
	var repo *gitrev.Repo
	var scope []string
	var homes []home
	mixed := false
	r.lost = ""
	for _, root := range r.inputs() {
		if root == stdinName {
			mixed, homes = true, append(homes, home{root, nil})
			continue
		}
		p, err := r.tree.findInput(root)
		if err != nil {
			// The root is gone, so nothing is read from it, whatever its commit was.
			r.lost = root
			return
		}
		dir := p.real
		if !p.hint.isDir() {
			dir = filepath.Dir(dir)
		}
		found, _ := during(r.tree.oversight, dir, manySteps, func() *gitrev.Repo { return gitrev.Find(dir) }) // nil if it hangs
		homes = append(homes, home{root, found})
		if found == nil || repo != nil && *found != *repo {
			mixed = true
			continue
		}
		repo = found
		if r.tree.rootOf(root) >= 0 {
			scope = append(scope, relative(repo.WorkTree, p.real))
		}
	}
	if r.homes = homes; mixed {
		repo, scope = nil, nil
	}
	if repo != nil && r.repo != nil && *repo == *r.repo && slices.Equal(scope, r.scope) {
		return
	}
	r.repo, r.scope, r.commit, r.id = repo, scope, nil, ""
}

// inputs returns the names whose work tree gives the revision its name: of the roots, without --lock, without --config beside others
// and without those that are apart, and of the kustomizations.
func (r *revisions) inputs() []string {
	t := r.tree
	var all []string
	for _, root := range t.roots {
		if root.name == t.lockName() || r.apart[root.name] {
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
		r.id, r.headErr = "", err
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
	dirs = slices.Concat(dirs, r.also)
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
	r.differs, r.paths, r.readers, r.strays = map[string]bool{}, map[string][]string{}, map[string]int{}, map[string]string{}
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
		if r.reads(path, e) && r.readers[path] == 0 && !chartTemplate(commit, path) && !r.tree.leftOut(filepath.Join(r.repo.WorkTree, path)) {
			r.differs[path] = true
		}
	})
}

// reads reports whether a file or symlink of a commit would be looked at if it were there.
func (r *revisions) reads(path string, e gitrev.Entry) bool {
	return e.Link || isManifest(path) || filepath.Base(path) == choice.IgnoreFile
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
			r.note(path, gitrev.Entry{}, false)
		}
	}
	delete(r.paths, name)
	delete(r.strays, name)
	if b := r.tree.builts[name]; b != nil {
		seen := map[link]bool{}
		for path, d := range b.deps {
			if d.isFile {
				r.read(name, path, gitrev.Entry{ID: d.blob})
			}
			r.follow(name, d.place.links, seen)
		}
		return
	}
	n := r.tree.nodes[name]
	if n == nil {
		return
	}
	if n.kind == isFile || n.kind == isRules {
		r.read(name, n.place.real, gitrev.Entry{ID: n.blob})
	}
	r.follow(name, n.place.links, nil)
}

// follow records that name depends on symlinks, but for those in seen. Those outside of the work tree belong to the user
// who gave the path.
func (r *revisions) follow(name string, links []link, seen map[link]bool) {
	for _, l := range links {
		if seen[l] || !below(l.path, r.repo.WorkTree) {
			continue
		}
		if seen != nil {
			seen[l] = true
		}
		r.read(name, l.path, gitrev.Entry{ID: gitrev.BlobID([]byte(l.text)), Link: true})
	}
}

// read records that name depends on the file or symlink at a path without symlinks above it.
func (r *revisions) read(name, real string, e gitrev.Entry) {
	if !below(real, r.repo.WorkTree) {
		r.strays[name] = real
		return
	}
	path := relative(r.repo.WorkTree, real)
	r.paths[name] = append(r.paths[name], path)
	r.readers[path]++
	r.note(path, e, true)
}

// note compares one path with the commit. What is there now is there, or it is absent.
func (r *revisions) note(path string, there gitrev.Entry, present bool) {
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
	if ok == present && (!ok || e == there) {
		delete(r.differs, path)
	} else {
		r.differs[path] = true
	}
}
