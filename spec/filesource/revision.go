package filesource

import (
	"crypto/sha256"
	"encoding/hex"
	"path/filepath"
	"slices"
	"strings"

	"weir/spec"
	"weir/spec/gitrev"
)

// revisions names what a tree has read. Where all roots are in one Git work tree (--config may be elsewhere), the name is
// its commit, and the work tree is dirty if a file that was read differs from the commit or one that would be read is
// missing; what else differs in it does not matter. Elsewhere the name is a hash of the content.
//
// Files are compared by their content as it is: where a filter (autocrlf, LFS) changes what is checked out, it is dirty.
type revisions struct {
	tree  *tree
	repo  *gitrev.Repo
	dirs  []string // whose change may change the commit
	scope []string // the roots, relative to the work tree

	commit *gitrev.Tree
	id     string
	failed string // why the commit cannot be compared
	// differs are the paths, relative to the work tree, that are not as in the commit.
	differs map[string]bool
	// paths lead from names to the paths that they depend on, a symlink among them; readers count the names of a path.
	paths   map[string][]string
	readers map[string]int
}

// locate finds the work tree that the roots are in, and notes whether it is another than before.
func (r *revisions) locate() {
	var repo *gitrev.Repo
	var scope []string
	for _, root := range r.tree.roots {
		if root.name == stdinName {
			repo, scope = nil, nil
			break
		}
		if root.name == r.tree.configName() && len(r.tree.opts.Paths) > 0 {
			continue
		}
		p, err := r.tree.find(root.name)
		if err != nil {
			// The root is gone: whatever commit it was in, nothing is read from it.
			return
		}
		dir := p.real
		if !p.hint.isDir() {
			dir = filepath.Dir(dir)
		}
		found := gitrev.Find(dir)
		if found == nil || repo != nil && *found != *repo {
			repo, scope = nil, nil
			break
		}
		repo = found
		scope = append(scope, relative(repo.WorkTree, p.real))
	}
	if repo != nil && r.repo != nil && *repo == *r.repo && slices.Equal(scope, r.scope) {
		return
	}
	r.repo, r.scope, r.commit, r.id = repo, scope, nil, ""
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

// now returns the revision of what the tree has read. It costs what was touched since it was last asked, and everything
// if the commit is another.
func (r *revisions) now() spec.Revision {
	defer func() { r.tree.touched = map[string]bool{} }() // an emptied map keeps its room
	r.locate()
	if r.repo == nil {
		r.watch(nil)
		return r.contentHash()
	}
	id, dirs, err := r.repo.Head()
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

// contentHash names the content where there is no commit.
func (r *revisions) contentHash() spec.Revision {
	sum := sha256.Sum256(r.tree.total[:])
	return spec.Revision{ID: "sha256:" + hex.EncodeToString(sum[:6])}
}

// watch watches the directories that say which commit is checked out.
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

// moved says that an event at path may mean another commit.
func (r *revisions) moved(path string) bool {
	return slices.Contains(r.dirs, filepath.Dir(path)) && !strings.HasSuffix(path, ".lock")
}

// load compares everything with a commit.
func (r *revisions) load(id string) {
	r.id, r.failed = id, ""
	r.differs, r.paths, r.readers = map[string]bool{}, map[string][]string{}, map[string]int{}
	commit, err := r.repo.Tree(id, r.commit)
	if err != nil {
		r.fail(err)
		return
	}
	r.commit = commit
	for name := range r.tree.nodes {
		r.compare(name)
	}
	for _, path := range r.scope {
		err := commit.Walk(path, hidden, func(path string, e gitrev.Entry) {
			if !e.Link && isManifest(path) && r.readers[path] == 0 && !chartTemplate(commit, path) {
				r.differs[path] = true
			}
		})
		if err != nil {
			r.fail(err)
			return
		}
	}
}

// chartTemplate says that a path in a commit is below the templates of a Helm chart.
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

// fail notes that the commit cannot be read, so that it cannot be said that the work tree is the same.
func (r *revisions) fail(err error) {
	r.commit, r.failed = nil, err.Error()
	r.tree.opts.Log.Warn("cannot compare the files with their commit; reporting it as dirty",
		"directory", r.repo.WorkTree, "commit", r.id, "error", err)
}

// compare notes whether the file that name leads to, if any, is as in the commit.
func (r *revisions) compare(name string) {
	for _, path := range r.paths[name] {
		if r.readers[path]--; r.readers[path] == 0 {
			delete(r.readers, path)
			r.note(path, gitrev.ID{}, false)
		}
	}
	delete(r.paths, name)
	n := r.tree.nodes[name]
	if n == nil || n.kind != isFile {
		return
	}
	r.read(name, n.place.real, n.blob)
	if n.place.links > 0 && r.tree.rootOf(name) < 0 {
		r.read(name, n.place.seen[0], gitrev.BlobID([]byte(n.place.text)))
	}
}

// read notes that name depends on what is at a real path, which is the blob id.
func (r *revisions) read(name, real string, id gitrev.ID) {
	if !below(real, r.repo.WorkTree) {
		return
	}
	path := relative(r.repo.WorkTree, real)
	r.paths[name] = append(r.paths[name], path)
	r.readers[path]++
	r.note(path, id, true)
}

// note compares one path, which holds the blob id or is absent, with the commit.
func (r *revisions) note(path string, id gitrev.ID, present bool) {
	if r.commit == nil {
		return
	}
	e, ok, err := r.commit.Entry(path)
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
