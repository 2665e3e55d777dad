package filesource

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"weir/spec"
	"weir/spec/choice"
	"weir/spec/gitrev"
)

// errOrphan means that the directory of a name is not known, so that the name does not matter.
var errOrphan = errors.New("not in a known directory")

// maxUnstable is how many times in a row a file may change while it is read before that is a fault.
const maxUnstable = 20

// look refreshes one name. It returns true if the file changed meanwhile, so that it must be looked at again.
func (t *tree) look(ctx context.Context, name string) (again bool) {
	if b := t.builts[name]; b != nil {
		return t.lookBuilt(ctx, name, b)
	}
	p, err := t.find(name)
	isRoot := t.rootOf(name) >= 0
	switch {
	case errors.Is(err, errOrphan), errors.Is(err, os.ErrNotExist) && !isRoot, errors.Is(err, syscall.ENOTDIR) && !isRoot:
		t.put(name, nil)
	case errors.Is(err, errDangling) && !isRoot && !wanted(name):
		t.put(name, &node{kind: isIgnored, root: t.rootFor(name), place: p})
	case name == t.lockName() && (errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)):
		t.put(name, &node{kind: isIgnored, root: t.rootFor(name), place: p}) // weir allocate writes it one day
	case len(p.links) > 0 && (errors.Is(err, errDangling) || errors.Is(err, syscall.ELOOP)) && t.skippable(name):
		t.skip(name, p, spec.SkippedSymlink, err)
	case isRoot && t.isBadGlob(name) && errors.Is(err, os.ErrNotExist):
		t.fault(name, p, errNoGlob)
	case err != nil:
		t.fault(name, p, err)
	case !isRoot && filepath.Base(name) == choice.IgnoreFile && p.hint.isRegular() && !t.leaves(p):
		return t.lookRules(name, p)
	case !isRoot && t.excluded(name, p.hint.isDir()):
		t.put(name, &node{kind: isIgnored, root: t.rootFor(name), place: p, excluded: (p.hint.isDir() || isManifest(name)) && t.named(name, p.hint.isDir())})
	case !isRoot && isManifest(name) && !p.hint.isDir() && !p.hint.isRegular() && t.skippable(name):
		t.skip(name, p, spec.SkippedUnread, errNotRegular)
	case !isRoot && p.hint.isDir() && t.leaves(p) && t.skippable(name): // as build tools leave them; a link to a file has the name of a manifest
		t.skip(name, p, spec.SkippedOutside, errOutside)
	case !isRoot && (p.hint.isDir() || isManifest(name)) && t.leaves(p):
		t.fault(name, p, errOutside)
	case p.hint.isDir() && t.isChartTemplates(name):
		t.put(name, &node{kind: isIgnored, root: t.rootFor(name), place: p})
	case p.hint.isDir():
		t.lookDir(ctx, name, p)
	case !isRoot && !isManifest(name):
		if len(p.links) > 0 {
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

// errNoGlob means that a path of Options.Paths does not exist, and is no glob either.
var errNoGlob = fmt.Errorf("does not exist, and %w", choice.ErrGlob)

// isBadGlob reports whether one of Options.Paths has wildcards in a form that fits nothing.
func (t *tree) isBadGlob(name string) bool {
	return slices.ContainsFunc(t.opts.Paths, func(given string) bool {
		_, err := choice.ParseGlob(given)
		return err != nil && clean(given) == name
	})
}

// isChartTemplates reports whether a directory holds the templates of a Helm chart, which are no manifests.
func (t *tree) isChartTemplates(name string) bool {
	if filepath.Base(name) != ChartTemplates || t.parent(name) == nil {
		return false
	}
	return t.nodes[filepath.Join(filepath.Dir(name), ChartFile)].isFile()
}

// leaves reports whether a symlink leads out of everything that the user named. Its target was not named by the user,
// and may hold what the author of the link must not see: for example, the text of a parse error goes to logs.
func (t *tree) leaves(p place) bool {
	if len(p.links) == 0 || t.opts.AllowOutsideLinks {
		return false
	}
	return !slices.ContainsFunc(t.roots, func(r root) bool {
		n := t.nodes[r.name]
		return n != nil && (p.real == n.place.real || n.kind == isDir && strings.HasPrefix(p.real, strings.TrimSuffix(n.place.real, "/")+"/"))
	})
}

// wanted reports whether a dangling symlink is a fault, because it may be a manifest or a directory.
func wanted(name string) bool { return isManifest(name) || filepath.Ext(name) == "" }

// rootFor returns the root that contains name.
func (t *tree) rootFor(name string) int {
	if i := t.rootOf(name); i >= 0 {
		return i
	}
	return t.nodes[filepath.Dir(name)].root
}

// lookDir enters a directory, and marks the differences below it.
func (t *tree) lookDir(ctx context.Context, name string, p place) {
	if t.loops(name, p) && !t.opts.StrictTree { // what is there is read under its other name
		t.put(name, &node{kind: isIgnored, root: t.rootFor(name), place: p})
		return
	}
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
		t.faults[name] = t.newFault(name, err)
	}
}

// loops reports whether a directory contains name, so that a symlink to it would loop.
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
		if t.skippable(name) {
			t.skip(name, p, spec.SkippedUnread, errTooLarge)
		} else {
			t.fault(name, p, errTooLarge)
		}
		return false
	}
	if t.size-oldSize+p.hint.size > t.opts.MaxTotalSize {
		t.exceed(fmt.Sprintf("all files together are larger than %d bytes", t.opts.MaxTotalSize), name)
		return false
	}
	data, again, ok := t.readSettled(name, p)
	if !ok {
		return again
	}
	t.keep(name, p, data)
	return false
}

// readSettled reads a file that no process writes at the moment. If not ok, again reports whether a later look may find it so;
// otherwise the fault is recorded.
func (t *tree) readSettled(name string, p place) (data []byte, again, ok bool) {
	data, err := t.read(p, t.opts.MaxFileSize)
	if errors.Is(err, errChanging) {
		if t.unstable[name]++; t.unstable[name] < maxUnstable {
			return nil, true, false
		}
	}
	if err != nil {
		t.fault(name, p, err)
		return nil, false, false
	}
	delete(t.unstable, name)
	return data, false, true
}

// keep records the content of a file.
func (t *tree) keep(name string, p place, data []byte) {
	old := t.nodes[name]
	n := &node{kind: isFile, root: t.rootFor(name), place: p, sum: sha256.Sum256(data), recheck: p.hint.recent(now())}
	if same := old != nil && old.kind == isFile && old.sum == n.sum; same {
		n.blob, n.used = old.blob, old.used
		t.put(name, n)
		if old.place.real != p.real {
			t.touched[name] = true
		}
		if n.used == t.first(name, p.real) {
			return
		}
	} else {
		n.blob = gitrev.BlobID(data)
		if old != nil && old.kind == isFile {
			t.total.remove(t.key(name, old), old.sum)
		}
		t.total.add(t.key(name, n), n.sum)
		t.put(name, n)
	}
	t.use(name, n, data)
}

// fault records that a name cannot be used.
func (t *tree) fault(name string, p place, err error) {
	t.put(name, &node{kind: isFault, root: t.rootFor(name), place: p, recheck: true})
	t.faults[name] = t.newFault(name, err)
}

// exceed records that the input as a whole exceeds a limit. The state of name stays unchanged.
func (t *tree) exceed(what, name string) {
	if t.over == nil {
		t.over = &spec.Problem{
			Origin: spec.Origin{File: t.roots[t.rootFor(name)].name},
			Detail: what + "; give -f a directory that holds only what this node needs",
		}
	}
}

// errOutside means that a symlink leads out of every root.
var errOutside = errors.New("symlink out of the tree")

var errNotRegular = errors.New("not a regular file")

// problem returns a Problem for an error with a file. It says what to do.
func problem(name string, err error, o Options) spec.Problem {
	detail := ""
	var errno syscall.Errno
	var hangs stuckError
	switch {
	case errors.As(err, &hangs):
		detail = stuckDetail(name, hangs)
	case isPipe(name) && (errors.Is(err, errNotRegular) || errors.Is(err, errDangling) || errors.Is(err, os.ErrNotExist)):
		detail = "a pipe, as <(command) makes one; it has no content to read again: give -f - and command | weir ..., or write it to a file"
	case errors.Is(err, errStdinOpen):
		detail = "standard input has not ended; close it, or do not give -f -"
	case errors.Is(err, choice.ErrEncoding):
		detail = err.Error()
	case errors.Is(err, errTooLarge):
		detail = fmt.Sprintf("larger than the limit of %d bytes; split it, or move it out of the directory", o.MaxFileSize)
	case errors.Is(err, errNotRegular):
		detail = "not a regular file (a FIFO, socket or device); remove it, or rename it so that it does not end in .yaml, .yml or .json"
	case errors.Is(err, errOutside):
		detail = "a symlink that leads out of the directory that was given; copy its target here, give that with -f too, or allow it with --allow-outside-links"
	case errors.Is(err, errDangling):
		detail = "a symlink that leads to nothing; restore its target, or remove it"
	case errors.Is(err, errChanging):
		detail = "changed each time while it was read; write it to another name and rename it"
	case errors.Is(err, syscall.ELOOP):
		detail = "a symlink that leads to itself or to a directory above it; remove it"
	case errors.Is(err, errNoGlob):
		detail = err.Error()
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

// isPipe reports whether a name is that of an open file of the process, which a shell gives for <(command).
func isPipe(name string) bool {
	return strings.HasPrefix(name, "/dev/fd/") || strings.HasPrefix(name, "/proc/self/fd/") || name == "/dev/stdin"
}

// probe compares everything with the known state, by stat, and marks the differences.
func (t *tree) probe(ctx context.Context) error {
	for _, r := range t.roots {
		if r.name == stdinName {
			continue
		}
		if err := t.probeName(ctx, r.name); err != nil {
			return err
		}
	}
	return t.probeBuilts(ctx)
}

// probeName marks name if it differs from its known state. Otherwise it continues with everything below name.
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

// probeDir lists a directory and probes its entries.
func (t *tree) probeDir(ctx context.Context, name string, n *node) error {
	t.Lists++
	f, err := t.open(n.place, syscall.O_DIRECTORY)
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
			t.oversight.gone(filepath.Join(n.place.real, filepath.Base(child)))
			t.marked[child] = hint{}
		}
	}
	return nil
}

func (t *tree) probeEntry(ctx context.Context, dir string, e os.DirEntry, present map[string]bool) error {
	if hidden(e.Name()) {
		return nil
	}
	if plain := e.Type()&(os.ModeDir|os.ModeSymlink|os.ModeIrregular) == 0; plain && !isManifest(e.Name()) && e.Name() != choice.IgnoreFile {
		return nil
	}
	name := filepath.Join(dir, e.Name())
	present[name] = true
	return t.probeName(ctx, name)
}
