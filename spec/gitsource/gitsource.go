// Package gitsource reads manifests as a Git revision has them, from the object store: no work tree is touched, and
// nothing is fetched.
//
// It asks the git program, which understands every way to name a revision and every format of a repository, and whose
// plumbing commands run no hooks and no filters.
package gitsource

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"weir/spec"
	"weir/spec/manifest"
)

// Limits, as filesource has them.
const (
	maxFiles     = 100_000
	maxFileSize  = 64 << 20
	maxTotalSize = 512 << 20
)

// Options say what to read.
type Options struct {
	// Rev is anything that git understands as a commit: a branch, a tag, HEAD~1, an ID.
	Rev string
	// Paths are directories and files as the user named them. They lie in one repository, and need not exist in the work
	// tree any more. What is read from them is named as if it had been read there.
	Paths []string
	// Config is a further file, as in filesource.Options; "" for none.
	Config string
	// Weir changes the WeirConfiguration that was read; nil for none.
	Weir func(*spec.WeirConfiguration)
}

// Load reads the revision. The error is spec.Problems if it was read and found wrong.
func Load(ctx context.Context, o Options) (*spec.Snapshot, error) {
	l := &loader{opts: o}
	if err := l.locate(ctx); err != nil {
		return nil, err
	}
	if err := l.list(ctx); err != nil {
		return nil, err
	}
	if len(l.problems) > 0 {
		return nil, l.problems
	}
	files, err := l.read(ctx)
	if err != nil {
		return nil, err
	}
	mo := manifest.Options{Weir: o.Weir}
	if o.Config != "" {
		mo.ConfigFile = filepath.Clean(o.Config)
	}
	snap, _, err := manifest.NewSet(mo).Update(ctx, spec.Revision{ID: l.commit}, files)
	return snap, err
}

// loader reads one revision.
type loader struct {
	opts     Options
	top      string // of the work tree
	commit   string
	roots    []root
	tree     *tree
	found    []found
	problems spec.Problems
}

// root is a path that the user named.
type root struct {
	name string // as named
	path string // in the repository, with slashes; "" for all of it
}

// found is a file to read.
type found struct {
	name string
	blob string
}

// locate finds the repository and the commit.
func (l *loader) locate(ctx context.Context) error {
	paths := l.opts.Paths
	if l.opts.Config != "" {
		paths = append(paths[:len(paths):len(paths)], l.opts.Config)
	}
	for _, name := range paths {
		if name == "-" {
			return errors.New("standard input is in no Git revision; name the directory with -f")
		}
		real, err := realPath(name)
		if err != nil {
			return err
		}
		if l.top == "" {
			if l.top, err = topOf(ctx, real); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		rel, err := filepath.Rel(l.top, real)
		if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
			return fmt.Errorf("%s is not in the Git work tree %s", name, l.top)
		}
		if rel == "." {
			rel = ""
		}
		l.roots = append(l.roots, root{name: filepath.Clean(name), path: filepath.ToSlash(rel)})
	}
	out, err := git(ctx, l.top, nil, "rev-parse", "--verify", "--quiet", "--end-of-options", l.opts.Rev+"^{commit}")
	if err != nil {
		return fmt.Errorf("no revision %q in Git: %w (in a shallow clone, fetch it first: git fetch origin BRANCH)", l.opts.Rev, err)
	}
	l.commit = strings.TrimSpace(string(out))
	return nil
}

// realPath returns the absolute path without symlinks of a name of which the end need not exist.
func realPath(name string) (string, error) {
	abs, err := filepath.Abs(name)
	if err != nil {
		return "", err
	}
	rest := ""
	for dir := abs; ; dir = filepath.Dir(dir) {
		real, err := filepath.EvalSymlinks(dir)
		if err == nil {
			return filepath.Join(real, rest), nil
		}
		if dir == filepath.Dir(dir) || !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
		rest = filepath.Join(filepath.Base(dir), rest)
	}
}

// topOf returns the top of the work tree that a path is in, or would be.
func topOf(ctx context.Context, real string) (string, error) {
	dir := real
	for {
		if fi, err := os.Stat(dir); err == nil && fi.IsDir() || dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	out, err := git(ctx, dir, nil, "rev-parse", "--show-toplevel")
	if err != nil {
		return "", fmt.Errorf("not in a Git work tree: %w", err)
	}
	return strings.TrimSuffix(string(out), "\n"), nil
}

// list finds the files to read.
func (l *loader) list(ctx context.Context) error {
	var scope []string
	for _, r := range l.roots {
		scope = append(scope, r.path)
	}
	t, err := l.listTree(ctx, scope)
	if err != nil {
		return err
	}
	if t.links { // they may lead anywhere in the repository
		if t, err = l.listTree(ctx, nil); err != nil {
			return err
		}
	}
	if l.tree = t; t.links {
		if err := l.readLinks(ctx); err != nil {
			return err
		}
	}
	for _, r := range l.roots {
		c := &collector{loader: l}
		c.root(r)
	}
	if len(l.found) > maxFiles {
		return fmt.Errorf("revision %s: more than %d files; give -f a directory that holds only what is needed", l.opts.Rev, maxFiles)
	}
	return nil
}

// listTree lists what the commit has below the given paths, or all of it.
func (l *loader) listTree(ctx context.Context, scope []string) (*tree, error) {
	args := []string{"--literal-pathspecs", "ls-tree", "-r", "-z", "-l", "--full-tree", l.commit, "--"}
	for _, p := range scope {
		if p == "" {
			args = args[:8]
			break
		}
		args = append(args, p)
	}
	out, err := git(ctx, l.top, nil, args...)
	if err != nil {
		return nil, err
	}
	return parseTree(out)
}

// read reads the blobs of all files found, in one run of git.
func (l *loader) read(ctx context.Context) ([]manifest.File, error) {
	var ids []string
	total := int64(0)
	for _, f := range l.found {
		size := l.tree.size[f.blob]
		if total += size; size > maxFileSize || total > maxTotalSize {
			return nil, spec.Problems{{Origin: spec.Origin{File: f.name}, Detail: fmt.Sprintf("too large: a file may have %d bytes, and all together %d", maxFileSize, maxTotalSize)}}
		}
		ids = append(ids, f.blob)
	}
	blobs, err := readBlobs(ctx, l.top, ids)
	if err != nil {
		return nil, err
	}
	files := make([]manifest.File, len(l.found))
	for i, f := range l.found {
		files[i] = manifest.File{Path: f.name, Data: blobs[i]}
	}
	return files, nil
}

func (l *loader) readLinks(ctx context.Context) error {
	var ids, at []string
	for p, e := range l.tree.entries {
		if e.link {
			ids, at = append(ids, e.blob), append(at, p)
		}
	}
	blobs, err := readBlobs(ctx, l.top, ids)
	if err != nil {
		return err
	}
	for i, p := range at {
		e := l.tree.entries[p]
		e.target = string(blobs[i])
		l.tree.entries[p] = e
	}
	return nil
}

// git runs a plumbing command.
func git(ctx context.Context, dir string, stdin io.Reader, args ...string) ([]byte, error) {
	cmd := command(ctx, dir, args...)
	cmd.Stdin = stdin
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := explain(cmd.Run(), &errOut)
	return out.Bytes(), err
}

func command(ctx context.Context, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = dir
	for _, v := range os.Environ() {
		// In a hook these speak of the repository of the hook, relative to another directory.
		if name, _, _ := strings.Cut(v, "="); name != "GIT_DIR" && name != "GIT_WORK_TREE" && name != "GIT_INDEX_FILE" && name != "GIT_PREFIX" {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, "GIT_NO_LAZY_FETCH=1", "GIT_OPTIONAL_LOCKS=0", "GIT_TERMINAL_PROMPT=0", "LC_ALL=C")
	return cmd
}

func explain(err error, errOut *bytes.Buffer) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, exec.ErrNotFound) {
		return errors.New("the git program is needed to read a Git revision, and is not installed")
	}
	text := strings.TrimSpace(errOut.String())
	if text == "" {
		return err
	}
	if first, _, more := strings.Cut(text, "\n"); more {
		text = first
	}
	return errors.New(text)
}

// readBlobs returns the content of blobs, in order.
func readBlobs(ctx context.Context, dir string, ids []string) ([][]byte, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := command(ctx, dir, "cat-file", "--batch")
	cmd.Stdin = strings.NewReader(strings.Join(ids, "\n") + "\n")
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, explain(err, &errOut)
	}
	blobs, err := parseBatch(bufio.NewReaderSize(out, 1<<16), ids)
	cancel()
	if waitErr := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("read from Git: %w", errors.Join(err, explain(waitErr, &errOut)))
	}
	return blobs, nil
}

// parseBatch reads what "git cat-file --batch" writes.
func parseBatch(in *bufio.Reader, ids []string) ([][]byte, error) {
	blobs := make([][]byte, len(ids))
	for i, id := range ids {
		head, err := in.ReadString('\n')
		if err != nil {
			return nil, fmt.Errorf("object %s: %w", id, err)
		}
		parts := strings.Fields(head)
		if len(parts) != 3 || parts[1] != "blob" {
			return nil, fmt.Errorf("object %s: git says %q (in a partial clone, fetch it first)", id, strings.TrimSpace(head))
		}
		size, err := strconv.ParseInt(parts[2], 10, 64)
		if err != nil || size < 0 || size > maxFileSize {
			return nil, fmt.Errorf("object %s: size %s is more than %d", id, parts[2], maxFileSize)
		}
		data := make([]byte, size+1)
		if _, err := io.ReadFull(in, data); err != nil {
			return nil, fmt.Errorf("object %s: %w", id, err)
		}
		blobs[i] = data[:size:size]
	}
	return blobs, nil
}
