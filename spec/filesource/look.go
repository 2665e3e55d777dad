package filesource

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"weir/spec"
	"weir/spec/gitrev"
)

// errOrphan says that the directory of a name is not known, so that the name is of no interest.
var errOrphan = errors.New("not in a known directory")

// maxUnstable is how often in a row a file may change while it is read before that is a fault.
const maxUnstable = 20

// look brings what is known of one name up to date. It returns true if the file changed meanwhile, so that it has to be
// looked at again.
func (t *tree) look(ctx context.Context, name string) (again bool) {
	p, err := t.find(name)
	isRoot := t.rootOf(name) >= 0
	switch {
	case errors.Is(err, errOrphan), errors.Is(err, os.ErrNotExist) && !isRoot, errors.Is(err, syscall.ENOTDIR) && !isRoot:
		t.put(name, nil)
	case errors.Is(err, errDangling) && !isRoot && !wanted(name):
		t.put(name, &node{kind: isIgnored, root: t.rootFor(name), place: p})
	case err != nil:
		t.fault(name, p, err)
	case p.hint.isDir() && t.isChartTemplates(name):
		t.put(name, &node{kind: isIgnored, root: t.rootFor(name), place: p})
	case p.hint.isDir():
		t.lookDir(ctx, name, p)
	case !isRoot && !isManifest(name):
		if p.links > 0 {
			t.put(name, &node{kind: isIgnored, root: t.rootFor(name), place: p})
		} else {
			t.put(name, nil)
		}
	case !p.hint.isRegular():
		t.fault(name, p, errNotRegular)
	default:
		return t.lookFile(name, p)
	}
	return false
}

// isChartTemplates says that a directory holds the templates of a Helm chart, which are no manifests.
func (t *tree) isChartTemplates(name string) bool {
	if filepath.Base(name) != ChartTemplates || t.parent(name) == nil {
		return false
	}
	return t.nodes[filepath.Join(filepath.Dir(name), ChartFile)].isFile()
}

// wanted says whether a symlink to nothing is missed: it was a manifest or, as far as one can tell, a directory.
func wanted(name string) bool { return isManifest(name) || filepath.Ext(name) == "" }

// rootFor returns the root that name belongs to.
func (t *tree) rootFor(name string) int {
	if i := t.rootOf(name); i >= 0 {
		return i
	}
	return t.nodes[filepath.Dir(name)].root
}

// lookDir enters a directory, and marks what differs below it.
func (t *tree) lookDir(ctx context.Context, name string, p place) {
	if t.loops(name, p) {
		t.fault(name, p, syscall.ELOOP)
		return
	}
	old := t.nodes[name]
	if old == nil && len(t.nodes) >= 2*t.opts.MaxFiles {
		t.exceed(fmt.Sprintf("more than %d files and directories", t.opts.MaxFiles), name)
		return
	}
	n := &node{kind: isDir, root: t.rootFor(name), place: p, children: map[string]bool{}}
	if old != nil && old.kind == isDir {
		n.children = old.children
	}
	t.put(name, n)
	if err := t.probeDir(ctx, name, n); err != nil && ctx.Err() == nil {
		n.recheck = true
		t.faults[name] = problem(name, err, t.opts)
	}
}

// loops says that a directory is one of those that name is below.
func (t *tree) loops(name string, p place) bool {
	for t.rootOf(name) < 0 {
		name = filepath.Dir(name)
		if n := t.nodes[name]; n == nil || n.place.hint.sameInode(p.hint) {
			return n != nil
		}
	}
	return false
}

// lookFile reads a regular file.
func (t *tree) lookFile(name string, p place) (again bool) {
	old := t.nodes[name]
	var oldSize int64
	if old != nil && old.kind == isFile {
		oldSize = old.place.hint.size
	} else if t.files >= t.opts.MaxFiles {
		t.exceed(fmt.Sprintf("more than %d files", t.opts.MaxFiles), name)
		return false
	}
	if p.hint.size > t.opts.MaxFileSize {
		t.fault(name, p, errTooLarge)
		return false
	}
	if t.size-oldSize+p.hint.size > t.opts.MaxTotalSize {
		t.exceed(fmt.Sprintf("all files together are larger than %d bytes", t.opts.MaxTotalSize), name)
		return false
	}
	data, err := t.read(p, t.opts.MaxFileSize)
	if errors.Is(err, errChanging) {
		if t.unstable[name]++; t.unstable[name] < maxUnstable {
			return true
		}
	}
	if err != nil {
		t.fault(name, p, err)
		return false
	}
	delete(t.unstable, name)
	t.keep(name, p, data)
	return false
}

// keep notes the content of a file.
func (t *tree) keep(name string, p place, data []byte) {
	old := t.nodes[name]
	n := &node{kind: isFile, root: t.rootFor(name), place: p, sum: sha256.Sum256(data), recheck: p.hint.recent(now())}
	if old != nil && old.kind == isFile && old.sum == n.sum {
		n.blob = old.blob
		t.put(name, n)
		if old.place.real != p.real {
			t.touched[name] = true
		}
		return
	}
	n.blob = gitrev.BlobID(data)
	if old != nil && old.kind == isFile {
		t.total.remove(t.key(name, old), old.sum)
	}
	t.total.add(t.key(name, n), n.sum)
	t.put(name, n)
	t.setContent(name, content{data: data, sum: n.sum})
}

// fault notes that a name cannot be used.
func (t *tree) fault(name string, p place, err error) {
	t.put(name, &node{kind: isFault, root: t.rootFor(name), place: p, recheck: true})
	t.faults[name] = problem(name, err, t.opts)
}

// exceed notes that the input as a whole is too much. What is known of name stays as it was.
func (t *tree) exceed(what, name string) {
	if t.over == nil {
		t.over = &spec.Problem{
			Origin: spec.Origin{File: t.roots[t.rootFor(name)].name},
			Detail: what + "; give -f a directory that holds only what this node needs",
		}
	}
}

var errNotRegular = errors.New("not a regular file")

// problem says what to do about an error with a file.
func problem(name string, err error, o Options) spec.Problem {
	detail := ""
	var errno syscall.Errno
	switch {
	case errors.Is(err, errTooLarge):
		detail = fmt.Sprintf("larger than the limit of %d bytes; split it, or move it out of the directory", o.MaxFileSize)
	case errors.Is(err, errNotRegular):
		detail = "not a regular file (a FIFO, socket or device); remove it, or rename it so that it does not end in .yaml, .yml or .json"
	case errors.Is(err, errDangling):
		detail = "a symlink that leads to nothing; restore its target, or remove it"
	case errors.Is(err, errChanging):
		detail = "changed each time while it was read; write it to another name and rename it"
	case errors.Is(err, syscall.ELOOP):
		detail = "a symlink that leads to itself or to a directory above it; remove it"
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		detail = "does not exist; restore it, or do not name it"
	case errors.Is(err, os.ErrPermission):
		detail = "permission denied; make it readable for the user that weir runs as"
	case errors.As(err, &errno):
		detail = "cannot be read: " + errno.Error()
	default:
		detail = "cannot be read: " + err.Error()
	}
	return spec.Problem{Origin: spec.Origin{File: name}, Detail: detail}
}

// probe compares everything with what is known, by stat, and marks what differs.
func (t *tree) probe(ctx context.Context) error {
	for _, r := range t.roots {
		if r.name == stdinName {
			continue
		}
		if err := t.probeName(ctx, r.name); err != nil {
			return err
		}
	}
	return nil
}

// probeName marks name if it differs from what is known, and otherwise goes on with what is below it.
func (t *tree) probeName(ctx context.Context, name string) error {
	n := t.nodes[name]
	if n == nil {
		t.marked[name] = hint{}
		return nil
	}
	p, err := t.find(name)
	if err == nil && n.kind == isDir && !n.recheck && p.real == n.place.real && p.hint.sameInode(n.place.hint) {
		if err := t.probeDir(ctx, name, n); err != nil {
			t.marked[name] = hint{}
		}
		return ctx.Err()
	}
	if err != nil || n.recheck || p.real != n.place.real || p.hint != n.place.hint {
		if _, ok := t.marked[name]; !ok {
			t.marked[name] = p.hint
		}
	}
	return nil
}

// listBatch is how many entries of a directory are read at once.
const listBatch = 1024

// probeDir lists a directory and probes what it holds.
func (t *tree) probeDir(ctx context.Context, name string, n *node) error {
	t.Lists++
	f, err := os.OpenFile(n.place.real, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	present := make(map[string]bool, len(n.children))
	for {
		entries, err := f.ReadDir(listBatch)
		for _, e := range entries {
			if err := t.probeEntry(ctx, name, e, present); err != nil {
				return err
			}
		}
		if len(present) > 2*t.opts.MaxFiles {
			t.exceed(fmt.Sprintf("more than %d files and directories", t.opts.MaxFiles), name)
			break
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	for child := range n.children {
		if !present[child] {
			t.marked[child] = hint{}
		}
	}
	return nil
}

func (t *tree) probeEntry(ctx context.Context, dir string, e os.DirEntry, present map[string]bool) error {
	if hidden(e.Name()) {
		return nil
	}
	if plain := e.Type()&(os.ModeDir|os.ModeSymlink|os.ModeIrregular) == 0; plain && !isManifest(e.Name()) {
		return nil
	}
	name := filepath.Join(dir, e.Name())
	present[name] = true
	return t.probeName(ctx, name)
}
