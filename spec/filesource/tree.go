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
	"weir/spec/choice"
	"weir/spec/gitrev"
)

type digest = [sha256.Size]byte

type kind uint8

const (
	isFile    kind = iota // read
	isDir                 // listed
	isFault               // cannot be used; the node's problem says why
	isIgnored             // a symlink to another kind of file, a chart's templates, or what is not chosen
	isRules               // a choice.IgnoreFile
)

// node is the known state of one name.
type node struct {
	kind  kind
	root  int // index of the root it belongs to
	place place
	// children are the names directly below a directory.
	children map[string]bool
	// sum and blob are hashes of the content of a file.
	sum  digest
	blob gitrev.ID
	// used reports whether the content of a file is what the updater has, or is told. Of several names of one file only
	// one is used.
	used bool
	// told reports whether the updater is told that the name is skipped.
	told bool
	// excluded reports whether patterns leave out a file that would be read, or a directory.
	excluded bool
	// recheck means that stat cannot tell whether the node changed.
	recheck bool
}

func (n *node) isFile() bool { return n != nil && n.kind == isFile }

// links returns the symlinks on the way to a node.
func (n *node) links() []link {
	if n == nil {
		return nil
	}
	return n.place.links
}

// root is one of the paths that the user gave.
type root struct {
	name  string
	files int // below it, or the root itself
	// only are the globs that the user gave with this directory; none stand for all files.
	only choice.Patterns
	// all reports whether the user gave the directory without a glob too.
	all   bool
	rules choice.Rules
}

// content is a file as last read, not yet accepted. Data is nil if the file is gone.
type content struct {
	data []byte
	sum  digest
	// skipped says why nothing of the file is used; data is then nil.
	skipped []spec.Skipped
}

func (c content) gone() bool { return c.data == nil && c.skipped == nil }

// tree is the known state of all files, by their names for the user: a given path joined with the path below it. It
// changes in passes. Names are marked as possibly changed, by an event (mark) or by a comparison (probe). Then refresh
// looks at the marked names only. Its results stay pending until the caller accepts them. A tree belongs to one
// goroutine.
type tree struct {
	calls
	opts  Options
	watch *watchSet // nil without a watch
	roots []root
	nodes map[string]*node
	// builts are the kustomizations to build, by names that no file has.
	builts map[string]*built
	// faults are the problems of nodes that cannot be used, by name.
	faults map[string]fault
	// over is set while the input exceeds a limit as a whole; files beyond the limit were not read.
	over *spec.Problem

	// choice selects the files that are used: by flags, and by the WeirConfiguration in weirs.
	choice spec.Choice
	// weirs are what the WeirConfigurations of files say, by name.
	weirs map[string]weir
	// goodWeirs are those of the files that were accepted last. It is replaced, never changed.
	goodWeirs map[string]weir
	// holds reports whether a file declared anything that was accepted.
	holds func(name string) bool
	// skim returns what a file holds if it is surely nothing to use; nil is never called.
	skim func(name string, data []byte) []spec.Skipped
	// stdin is what was read from standard input.
	stdin []byte

	// realsAt maps real paths to the names of files that are there.
	realsAt index
	// dirsAt and depsAt map real paths to names: of existing directories, and of nodes whose place depends on the path.
	dirsAt, depsAt index

	// marked are the names to refresh, with the hint of the probe (zero if an event marked it).
	marked map[string]hint
	// unstable counts how often a file changed while it was read.
	unstable map[string]int
	// touched are the names whose content changed since the last revision.
	touched map[string]bool

	files    int               // read
	left     spec.SkippedFiles // of what patterns leave out
	size     int64             // of all files
	total    sumOfSums
	pending  map[string]content
	accepted map[string]digest
	// inherited reports whether accepted comes from another tree, and was not compared with this one yet.
	inherited bool
}

func newTree(o Options, w *watchSet) *tree {
	t := &tree{
		opts: o, watch: w, nodes: map[string]*node{}, builts: newBuilts(o), faults: map[string]fault{},
		weirs: map[string]weir{}, holds: func(string) bool { return false }, realsAt: index{},
		dirsAt: index{}, depsAt: index{},
		marked: map[string]hint{}, unstable: map[string]int{}, touched: map[string]bool{},
		pending: map[string]content{}, accepted: map[string]digest{},
	}
	for _, p := range o.Paths {
		t.addPath(p)
	}
	for _, p := range []string{o.Config, o.Lock} { // each is one file, so that a wildcard in its name has no meaning
		if p != "" {
			t.addRoot(clean(p), nil)
		}
	}
	for name := range t.builts {
		t.marked[name] = hint{}
	}
	t.choose(o.Overrides.Choice)
	return t
}

// addPath adds a path that the user gave. A glob stands for the directory before its first wildcard. A file of this very
// name comes first. So does one that does not exist if the wildcards are wrong: the directory holds more than was meant.
func (t *tree) addPath(given string) {
	if g, err := choice.ParseGlob(given); err == nil && g != nil {
		if _, err := t.lstat(given); err != nil {
			t.addRoot(clean(g.Dir), g.Files)
			return
		}
	}
	t.addRoot(clean(given), nil)
}

// addRoot adds a root, or the files below it that are meant; none stand for all.
func (t *tree) addRoot(name string, only choice.Patterns) {
	i := t.rootOf(name)
	if i < 0 {
		i = len(t.roots)
		t.roots = append(t.roots, root{name: name})
		t.marked[name] = hint{}
	}
	if r := &t.roots[i]; len(only) > 0 {
		r.only = append(r.only, only...)
	} else {
		r.all = true
	}
}

// clean returns the name of a given path. Standard input keeps "-"; a file of that name is "./-".
func clean(path string) string {
	if c := filepath.Clean(path); c != "-" || path == "-" {
		return c
	}
	return "./-"
}

// rootOf returns the index of the root with that name, or -1.
func (t *tree) rootOf(name string) int {
	return slices.IndexFunc(t.roots, func(r root) bool { return r.name == name })
}

// mark records an event at a real path, and reports whether it may matter.
func (t *tree) mark(path string) bool {
	n := len(t.marked)
	t.markBuilts(path)
	for name := range t.depsAt.names(path) {
		t.marked[name] = hint{}
	}
	for name := range t.dirsAt.names(path) {
		t.marked[name] = hint{}
	}
	base := filepath.Base(path)
	known := len(t.marked) > n || t.depsAt.has(path) || t.dirsAt.has(path)
	if hidden(base) {
		return known
	}
	for dir := range t.dirsAt.names(filepath.Dir(path)) {
		t.marked[filepath.Join(dir, base)] = hint{}
		known = true
	}
	return known
}

// hidden reports whether a name in a directory is ignored.
func hidden(base string) bool { return strings.HasPrefix(base, ".") && base != choice.IgnoreFile }

// A directory with a ChartFile is a Helm chart. Its ChartTemplates are not read.
const (
	ChartFile      = "Chart.yaml"
	ChartTemplates = "templates"
)

// isManifest reports whether a file in a directory is read. A Kustomization says which of the other files are no objects.
func isManifest(name string) bool {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return filepath.Base(name) == "Kustomization"
}

// moving compares the marked names with their hints from the probe, and reports whether any is still changing.
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

// emptied reports whether a marked file has lost its content, as between the two steps of a rewrite in place.
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

// refresh looks at every marked name, and at new names below them. Names that changed while they were read stay marked.
func (t *tree) refresh(ctx context.Context) error {
	if t.over != nil {
		t.over = nil
		if err := t.probe(ctx); err != nil {
			return err
		}
	}
	again := map[string]hint{}
	for len(t.marked) > 0 {
		// Known names go first. A moved directory must be unwatched at its old name before it is watched at its new
		// one, because the kernel sees one directory.
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

// parent returns the directory in which name was found, or nil; a root has none.
func (t *tree) parent(name string) *node {
	if t.rootOf(name) >= 0 {
		return nil
	}
	if p := t.nodes[filepath.Dir(name)]; p != nil && p.kind == isDir {
		return p
	}
	return nil
}

// find returns the current place of name.
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
	p, err := t.resolve(parent.place.real, filepath.Base(name), false)
	if p.real == name {
		p.real = name // one string for both
	}
	return p, err
}

// put makes n the state of name; nil removes name and everything below it.
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
	if !slices.Equal(old.links(), n.links()) {
		t.touched[name] = true // the commit has symlinks too
	}
	if n == nil || n.kind != isFault {
		delete(t.faults, name)
	}
	if filepath.Base(name) == ChartFile && old.isFile() != n.isFile() {
		t.marked[filepath.Join(filepath.Dir(name), ChartTemplates)] = hint{} // a chart's templates are not read, others are
	}
}

// enter adds n to the indexes and watches the directories that it depends on.
func (t *tree) enter(name string, n *node) {
	for _, path := range n.place.seen {
		t.depsAt.insert(path, name)
		if t.watch.acquire(filepath.Dir(path)) {
			// A change between the look and the watch has no event.
			t.marked[name] = hint{}
		}
	}
	if n.kind == isDir {
		t.dirsAt.insert(n.place.real, name)
		t.watch.acquire(n.place.real)
	}
	if n.kind == isFile {
		t.realsAt.insert(n.place.real, name)
		t.files++
		t.size += n.place.hint.size
		t.roots[n.root].files++
	}
	t.countExcluded(n, 1)
	if parent := t.parent(name); parent != nil {
		parent.children[name] = true
	}
}

// countExcluded counts a node that patterns leave out, or that is left out no more.
func (t *tree) countExcluded(n *node, by int) {
	switch {
	case !n.excluded:
	case n.place.hint.isDir():
		t.left.ExcludedDirs += by
	default:
		t.left.Excluded += by
	}
}

// leave reverts enter for old, which n replaces.
func (t *tree) leave(name string, old, n *node) {
	for _, path := range old.place.seen {
		if n == nil || !slices.Contains(n.place.seen, path) {
			t.depsAt.remove(path, name)
		}
		t.watch.release(filepath.Dir(path))
	}
	t.countExcluded(old, -1)
	if old.kind == isDir {
		if n == nil || n.kind != isDir || n.place.real != old.place.real {
			t.dirsAt.remove(old.place.real, name)
		}
		t.watch.release(old.place.real)
		if n == nil || n.kind != isDir {
			t.forgetBelow(old)
		}
	}
	if old.kind == isFile {
		t.leaveFile(name, old, n)
	}
	if old.kind == isRules && (n == nil || n.kind != isRules) {
		t.total.remove(t.key(name, old), old.sum)
		t.setRules(name, old.root, nil)
	}
	if old.told && (n == nil || !n.told) {
		t.setContent(name, content{})
	}
	if n == nil && t.rootOf(name) < 0 {
		if parent := t.nodes[filepath.Dir(name)]; parent != nil {
			delete(parent.children, name)
		}
	}
}

// forgetBelow removes the children of a directory. Roots are no children.
func (t *tree) forgetBelow(dir *node) {
	for child := range dir.children {
		t.put(child, nil)
	}
}

// leaveFile is the part of leave for a file.
func (t *tree) leaveFile(name string, old, n *node) {
	t.files--
	t.size -= old.place.hint.size
	t.roots[old.root].files--
	moved := n == nil || n.kind != isFile || n.place.real != old.place.real
	if moved {
		t.realsAt.remove(old.place.real, name)
	}
	if n == nil || n.kind != isFile {
		t.total.remove(t.key(name, old), old.sum)
		t.setContent(name, content{})
		delete(t.weirs, name)
	}
	if moved && old.used { // another name of the same file takes over
		for other := range t.realsAt.names(old.place.real) {
			t.marked[other] = hint{}
		}
	}
}

// setContent records the current content of a name; none means that there is no such file.
func (t *tree) setContent(name string, c content) {
	t.touched[name] = true
	was, ok := t.accepted[name]
	switch {
	case ok && !c.gone() && was == c.sum, !ok && c.gone():
		delete(t.pending, name)
	default:
		t.pending[name] = c
	}
}

// accept marks all pending content as accepted, except that of what hangs.
func (t *tree) accept(h hung) {
	left := map[string]content{}
	for name, c := range t.pending {
		switch {
		case h.covers(name):
			left[name] = c
		case c.gone():
			delete(t.accepted, name)
		default:
			t.accepted[name] = c.sum
		}
	}
	t.pending = left
	t.keepWeirs(h)
}

// key returns an identifier of a file that is the same on every node: its root and its path below it.
func (t *tree) key(name string, n *node) string {
	r := t.roots[n.root].name
	return string(rune('0'+n.root)) + strings.TrimPrefix(strings.TrimPrefix(name, r), "/")
}

// sumOfSums is a hash of a set of files: the sum of their hashes. Adding or removing a file updates it.
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

// now returns the clock that ctimes are compared with.
func now() time.Time { return time.Now() }
