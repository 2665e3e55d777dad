package gitrev

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

// Entry is what a commit holds at a path.
type Entry struct {
	ID ID
	// Link says that it is a symlink; ID is then of its text.
	Link bool
	dir  bool
}

// Tree is the content of one commit. It remembers the directories that it read, so that each costs once. It is not safe
// for concurrent use.
type Tree struct {
	repo *Repo
	root ID
	dirs map[ID]map[string]Entry
	// before is what the Tree of the commit before had read.
	before map[ID]map[string]Entry
}

// Tree returns the content of a commit. What old, which may be nil, read of directories that are the same is not read
// again.
func (r *Repo) Tree(commit string, old *Tree) (*Tree, error) {
	id, ok := parseID(commit)
	if !ok {
		return nil, fmt.Errorf("commit %s: only SHA-1 repositories can be compared", commit)
	}
	typ, data, err := r.object(id, 0)
	if err != nil {
		return nil, err
	}
	line, _, _ := strings.Cut(string(data), "\n")
	hex, isTree := strings.CutPrefix(line, "tree ")
	root, ok := parseID(hex)
	if typ != typeCommit || !isTree || !ok {
		return nil, fmt.Errorf("commit %s: not a commit", commit)
	}
	t := &Tree{repo: r, root: root, dirs: map[ID]map[string]Entry{}}
	if old != nil {
		t.before = old.dirs
	}
	return t, nil
}

// Entry returns what is at path, which is relative to the work tree; false if nothing is, or a directory.
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

// Walk calls visit for every file and symlink at or below path. Names for which skip is true are left out, with what is
// below them; path itself never is.
func (t *Tree) Walk(path string, skip func(base string) bool, visit func(path string, e Entry)) error {
	e, ok, err := t.at(path)
	if err != nil || !ok {
		return err
	}
	return t.walk(strings.Trim(path, "/."), e, skip, visit)
}

func (t *Tree) walk(path string, e Entry, skip func(string) bool, visit func(string, Entry)) error {
	if !e.dir {
		visit(path, e)
		return nil
	}
	entries, err := t.list(e.ID)
	if err != nil {
		return err
	}
	for name, child := range entries {
		if skip(name) {
			continue
		}
		p := name
		if path != "" {
			p = path + "/" + name
		}
		if err := t.walk(p, child, skip, visit); err != nil {
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
