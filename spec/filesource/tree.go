package filesource

import (
	"bytes"
	"context"
	"crypto/sha256"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"weir/spec"
	"weir/spec/gitrev"
)

type digest = [sha256.Size]byte

type kind uint8

const (
	isFile    kind = iota // read
	isDir                 // listed
	isFault               // cannot be used; the node's problem says why
	isIgnored             // a symlink to something that is none of ours, or a chart's templates
)

// node is what is known of one name.
type node struct {
	kind  kind
	root  int // index of the root it belongs to
	place place
	// children are the names directly below a directory.
	children map[string]bool
	// sum and blob are of the content of a file.
	sum  digest
	blob gitrev.ID
	// recheck says that stat cannot tell whether the node changed.
	recheck bool
}

func (n *node) isFile() bool { return n != nil && n.kind == isFile }

// root is one of the paths that the user gave.
type root struct {
	name  string
	files int // below it, or itself
}

// content is a file as it was last read, not yet accepted. Data is nil if it is gone.
type content struct {
	data []byte
	sum  digest
}

// tree is what is known of all files, under the names by which the user knows them: a given path joined with the path
// below it. It is changed in passes: names are marked as perhaps changed (by an event through mark, by a comparison
// through probe), then refresh looks at each marked name and nothing else. What a refresh reads collects in pending until
// the caller says that it was accepted. A tree belongs to one goroutine.
type tree struct {
	calls
	opts  Options
	watch *watchSet // nil if nobody watches
	roots []root
	nodes map[string]*node
	// faults are the problems of nodes that cannot be used, by name.
	faults map[string]spec.Problem
	// over is set while the input exceeds a limit as a whole; what is beyond was not read.
	over *spec.Problem

	// dirsAt and depsAt lead from real paths to names: of the directories that are there, and of the nodes whose place
	// depends on the path.
	dirsAt, depsAt map[string]map[string]bool

	// marked are the names to refresh, with the hint that the probe saw (zero if an event marked it).
	marked map[string]hint
	// unstable counts how often a file changed while it was read.
	unstable map[string]int
	// touched are the names whose content changed since revision was last asked.
	touched map[string]bool

	files    int   // read
	size     int64 // of all files
	total    sumOfSums
	pending  map[string]content
	accepted map[string]digest
}

func newTree(o Options, w *watchSet) *tree {
	t := &tree{
		opts: o, watch: w, nodes: map[string]*node{}, faults: map[string]spec.Problem{},
		dirsAt: map[string]map[string]bool{}, depsAt: map[string]map[string]bool{},
		marked: map[string]hint{}, unstable: map[string]int{}, touched: map[string]bool{},
		pending: map[string]content{}, accepted: map[string]digest{},
	}
	for _, p := range append(slices.Clone(o.Paths), o.Config) {
		if p == "" || slices.ContainsFunc(t.roots, func(r root) bool { return r.name == clean(p) }) {
			continue
		}
		t.roots = append(t.roots, root{name: clean(p)})
		t.marked[clean(p)] = hint{}
	}
	return t
}

// clean returns the name of a given path. Standard input keeps "-", a file of that name is "./-" to the user.
func clean(path string) string {
	if c := filepath.Clean(path); c != "-" || path == "-" {
		return c
	}
	return "./-"
}

// rootOf returns the index of the root that is called name, or -1.
func (t *tree) rootOf(name string) int {
	return slices.IndexFunc(t.roots, func(r root) bool { return r.name == name })
}

// mark notes an event at a real path, and says whether it may matter.
func (t *tree) mark(path string) bool {
	n := len(t.marked)
	for name := range t.depsAt[path] {
		t.marked[name] = hint{}
	}
	for name := range t.dirsAt[path] {
		t.marked[name] = hint{}
	}
	base := filepath.Base(path)
	known := len(t.marked) > n || t.depsAt[path] != nil || t.dirsAt[path] != nil
	if hidden(base) {
		return known
	}
	for dir := range t.dirsAt[filepath.Dir(path)] {
		t.marked[filepath.Join(dir, base)] = hint{}
		known = true
	}
	return known
}

// hidden says that a name in a directory is not looked at.
func hidden(base string) bool { return strings.HasPrefix(base, ".") }

// A directory is a Helm chart if it has a ChartFile. What is in its ChartTemplates is not read.
const (
	ChartFile      = "Chart.yaml"
	ChartTemplates = "templates"
)

// isManifest says that a file in a directory is read.
func isManifest(base string) bool {
	switch strings.ToLower(filepath.Ext(base)) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

// moving compares the marked names with what the probe saw of them, and says whether any is still changing.
func (t *tree) moving() bool {
	moving := false
	for name, h := range t.marked {
		if h == (hint{}) {
			continue
		}
		if p, _ := t.find(name); p.hint != h {
			t.marked[name] = p.hint
			moving = true
		}
	}
	return moving
}

// emptied says that a marked file which had content has none now, as between the two steps of a rewrite in place.
func (t *tree) emptied() bool {
	for name := range t.marked {
		n := t.nodes[name]
		if n == nil || n.kind != isFile || n.place.hint.size == 0 {
			continue
		}
		if p, err := t.find(name); err == nil && p.hint.isRegular() && p.hint.size == 0 {
			return true
		}
	}
	return false
}

// refresh looks at everything that is marked, and at what it finds below. Names that changed while they were read stay
// marked.
func (t *tree) refresh(ctx context.Context) error {
	if t.over != nil {
		t.over = nil
		if err := t.probe(ctx); err != nil {
			return err
		}
	}
	again := map[string]hint{}
	for len(t.marked) > 0 {
		// What is known goes first: a directory that moved has to be left at its old name before it is watched at its new
		// one, since the kernel knows it as one and the same.
		var names, unknown []string
		for name := range t.marked {
			if t.nodes[name] != nil {
				names = append(names, name)
			} else {
				unknown = append(unknown, name)
			}
		}
		slices.Sort(names)
		slices.Sort(unknown)
		for _, name := range append(names, unknown...) {
			if err := ctx.Err(); err != nil {
				return err
			}
			delete(t.marked, name)
			if t.look(ctx, name) {
				again[name] = hint{}
			}
		}
	}
	t.marked = again
	return nil
}

// parent returns the directory that name was found in, or nil; a root has none.
func (t *tree) parent(name string) *node {
	if t.rootOf(name) >= 0 {
		return nil
	}
	if p := t.nodes[filepath.Dir(name)]; p != nil && p.kind == isDir {
		return p
	}
	return nil
}

// find says where name leads now.
func (t *tree) find(name string) (place, error) {
	if t.rootOf(name) >= 0 {
		abs, err := filepath.Abs(name)
		if err != nil {
			return place{}, err
		}
		return t.resolve("/", abs, true)
	}
	parent := t.parent(name)
	if parent == nil {
		return place{}, errOrphan
	}
	return t.resolve(parent.place.real, filepath.Base(name), false)
}

// put makes n what is known of name; nil forgets it, with everything below it.
func (t *tree) put(name string, n *node) {
	old := t.nodes[name]
	if n != nil {
		t.enter(name, n)
	}
	if old != nil {
		t.leave(name, old, n)
	}
	if n == nil {
		delete(t.nodes, name)
		delete(t.unstable, name)
	} else {
		t.nodes[name] = n
	}
	if n == nil || n.kind != isFault {
		delete(t.faults, name)
	}
	if filepath.Base(name) == ChartFile && old.isFile() != n.isFile() {
		t.marked[filepath.Join(filepath.Dir(name), ChartTemplates)] = hint{} // they are read without it, and not with it
	}
}

// enter adds n to the indexes and watches what it depends on.
func (t *tree) enter(name string, n *node) {
	for _, path := range n.place.seen {
		insert(t.depsAt, path, name)
		if t.watch.acquire(filepath.Dir(path)) {
			// What happened between the look and the watch went unseen.
			t.marked[name] = hint{}
		}
	}
	if n.kind == isDir {
		insert(t.dirsAt, n.place.real, name)
		t.watch.acquire(n.place.real)
	}
	if n.kind == isFile {
		t.files++
		t.size += n.place.hint.size
		t.roots[n.root].files++
	}
	if parent := t.parent(name); parent != nil {
		parent.children[name] = true
	}
}

// leave undoes enter for old, which n replaces.
func (t *tree) leave(name string, old, n *node) {
	for _, path := range old.place.seen {
		if n == nil || !slices.Contains(n.place.seen, path) {
			remove(t.depsAt, path, name)
		}
		t.watch.release(filepath.Dir(path))
	}
	if old.kind == isDir {
		if n == nil || n.kind != isDir || n.place.real != old.place.real {
			remove(t.dirsAt, old.place.real, name)
		}
		t.watch.release(old.place.real)
		if n == nil || n.kind != isDir {
			t.forgetBelow(old)
		}
	}
	if old.kind == isFile {
		t.files--
		t.size -= old.place.hint.size
		t.roots[old.root].files--
		if n == nil || n.kind != isFile {
			t.total.remove(t.key(name, old), old.sum)
			t.setContent(name, content{})
		}
	}
	if n == nil && t.rootOf(name) < 0 {
		if parent := t.nodes[filepath.Dir(name)]; parent != nil {
			delete(parent.children, name)
		}
	}
}

// forgetBelow forgets the children of a directory. Those that were given by themselves are no children.
func (t *tree) forgetBelow(dir *node) {
	for child := range dir.children {
		t.put(child, nil)
	}
}

// setContent notes what a name holds now; nil data means nothing.
func (t *tree) setContent(name string, c content) {
	t.touched[name] = true
	was, ok := t.accepted[name]
	switch {
	case ok && c.data != nil && was == c.sum, !ok && c.data == nil:
		delete(t.pending, name)
	default:
		t.pending[name] = c
	}
}

// accept notes that everything pending is now in force.
func (t *tree) accept() {
	for name, c := range t.pending {
		if c.data == nil {
			delete(t.accepted, name)
		} else {
			t.accepted[name] = c.sum
		}
	}
	t.pending = map[string]content{}
}

// key returns what identifies a file on every node alike: its root and its path below it.
func (t *tree) key(name string, n *node) string {
	r := t.roots[n.root].name
	return string(rune('0'+n.root)) + strings.TrimPrefix(strings.TrimPrefix(name, r), "/")
}

// sumOfSums is a hash of a set of files, kept up to date by adding and removing files: the sum of their hashes.
type sumOfSums digest

func (s *sumOfSums) add(key string, d digest) {
	carry := 0
	for i, b := range fileHash(key, d) {
		carry += int(s[i]) + int(b)
		s[i], carry = byte(carry), carry>>8
	}
}

func (s *sumOfSums) remove(key string, d digest) {
	borrow := 0
	for i, b := range fileHash(key, d) {
		v := int(s[i]) - int(b) - borrow
		s[i], borrow = byte(v), (v>>8)&1
	}
}

func fileHash(key string, d digest) digest {
	return sha256.Sum256(bytes.Join([][]byte{[]byte(key), d[:]}, []byte{0}))
}

func insert(m map[string]map[string]bool, key, name string) {
	if m[key] == nil {
		m[key] = map[string]bool{}
	}
	m[key][name] = true
}

func remove(m map[string]map[string]bool, key, name string) {
	delete(m[key], name)
	if len(m[key]) == 0 {
		delete(m, key)
	}
}

// now is the clock that ctimes are compared with.
func now() time.Time { return time.Now() }
