package gitrev

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

// Entry is the content of a commit at one path.
type Entry struct {
	ID ID
	// Link reports whether it is a symlink; ID is then that of its text.
	Link bool
	dir  bool
}

// Tree is the content of one commit. It keeps the directories that it read, so that each is read once. It is not safe
// for concurrent use.
type Tree struct {
	repo *Repo
	root ID
	dirs map[ID]map[string]Entry
	// before holds the directories that the Tree of the commit before had read.
	before map[ID]map[string]Entry
}

// Tree returns the content of a commit. It reuses equal directories of old, which may be nil.
func (r *Repo) Tree(commit string, old *Tree) (*Tree, error) {
	data, err := r.commitObject(commit)
	if err != nil {
		return nil, err
	}
	line, _, _ := strings.Cut(string(data), "\n")
	hex, isTree := strings.CutPrefix(line, "tree ")
	root, ok := parseID(hex)
	if !isTree || !ok {
		return nil, fmt.Errorf("commit %s: not a commit", commit)
	}
	t := &Tree{repo: r, root: root, dirs: map[ID]map[string]Entry{}}
	if old != nil {
		t.before = old.dirs
	}
	return t, nil
}

// Entry returns the entry at path, which is relative to the work tree. It returns false for a directory or nothing.
func (t *Tree) Entry(path string) (Entry, bool, error) {
	e, ok, err := t.at(path)
	return e, ok && !e.dir, err
}

func (t *Tree) at(path string) (Entry, bool, error) {
	e := Entry{ID: t.root, dir: true}
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || part == "." {
			continue
		}
		if !e.dir {
			return e, false, nil
		}
		entries, err := t.list(e.ID)
		if err != nil {
			return e, false, err
		}
		var ok bool
		if e, ok = entries[part]; !ok {
			return e, false, nil
		}
	}
	return e, true, nil
}

// Walk calls visit for every file and symlink at or below path. It leaves out names for which skip is true, with
// everything below them, but never path itself.
func (t *Tree) Walk(path string, skip func(base string) bool, visit func(path string, e Entry)) error {
	e, ok, err := t.at(path)
	if err != nil || !ok {
		return err
	}
	w := &walker{tree: t, skip: skip, visit: visit}
	return w.walk(strings.Trim(path, "/."), e)
}

// Limits of one Walk. A few objects can describe an endless tree of directories that hold the same directory often.
const (
	maxWalked = 1 << 20 // files and directories
	maxPath   = 4096    // bytes of a path, as in Linux
)

// walker is one Walk.
type walker struct {
	tree   *Tree
	skip   func(base string) bool
	visit  func(path string, e Entry)
	walked int
}

func (w *walker) walk(path string, e Entry) error {
	if w.walked++; w.walked > maxWalked {
		return fmt.Errorf("more than %d files and directories", maxWalked)
	}
	if len(path) > maxPath {
		return fmt.Errorf("a path is longer than %d bytes", maxPath)
	}
	if !e.dir {
		w.visit(path, e)
		return nil
	}
	entries, err := w.tree.list(e.ID)
	if err != nil {
		return err
	}
	for name, child := range entries {
		if w.skip(name) {
			continue
		}
		p := name
		if path != "" {
			p = path + "/" + name
		}
		if err := w.walk(p, child); err != nil {
			return err
		}
	}
	return nil
}

// list returns the entries of a directory.
func (t *Tree) list(id ID) (map[string]Entry, error) {
	if entries, ok := t.dirs[id]; ok {
		return entries, nil
	}
	if entries, ok := t.before[id]; ok {
		t.dirs[id] = entries
		return entries, nil
	}
	typ, data, err := t.repo.object(id, 0)
	if err != nil {
		return nil, err
	}
	if typ != typeTree {
		return nil, fmt.Errorf("git object %s: not a tree", id)
	}
	entries, err := parseTree(data)
	if err != nil {
		return nil, fmt.Errorf("git object %s: %w", id, err)
	}
	t.dirs[id] = entries
	return entries, nil
}

// The modes of a tree's entries.
const (
	modeDir    = "40000"
	modeLink   = "120000"
	modeModule = "160000"
)

// parseTree reads entries of the form "mode name NUL id". Submodules are left out: their files belong to another commit.
func parseTree(data []byte) (map[string]Entry, error) {
	entries := map[string]Entry{}
	for len(data) > 0 {
		head, rest, ok := bytes.Cut(data, []byte{0})
		mode, name, spaced := strings.Cut(string(head), " ")
		var e Entry
		if !ok || !spaced || len(rest) < len(e.ID) {
			return nil, errors.New("broken tree")
		}
		copy(e.ID[:], rest)
		data = rest[len(e.ID):]
		e.dir, e.Link = mode == modeDir, mode == modeLink
		if mode != modeModule {
			entries[name] = e
		}
	}
	return entries, nil
}
