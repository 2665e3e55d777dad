// Package gitsource reads manifests of a Git revision, from the object store. It touches no work tree and fetches
// nothing. Load is its entry point; weir plan and weir validate use it.
//
// It runs the git program, which understands every name of a revision and every format of a repository. Its plumbing
// commands run no hooks and no filters. The repository may be hostile, as in the check of a pull request: nothing in it
// can run a program, reach the network, or pass for another revision.
package gitsource

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"weir/spec"
	"weir/spec/choice"
	"weir/spec/filesource"
	"weir/spec/manifest"
)

// Limits, the same as those of filesource.
const (
	maxFiles     = 100_000
	maxFileSize  = 64 << 20
	maxTotalSize = 512 << 20
)

// Options say what to read.
type Options struct {
	// Rev names a commit in any way that git understands: a branch, a tag, HEAD~1, an ID.
	Rev string
	// Paths are directories and files as the user named them. They lie in one repository, and need not exist in the
	// work tree any more. Files get the same names as if they had been read from there.
	Paths []string
	// Kustomize are directories with kustomizations, of which the revision's render is read.
	Kustomize []string
	// Config is a further file, as in filesource.Options; "" means none.
	Config string
	// Lock is a further file, as in filesource.Options; "" means none. Outside of the repository it is read as it is now.
	Lock string
	// Overrides win over the WeirConfiguration of the files.
	Overrides spec.Overrides
	// Broken, if set, is called with the problems of an invalid revision. What is read is then all files without any, and
	// all kustomizations that can be built.
	Broken func(spec.Problems)
	// StrictTree is as in filesource.Options.
	StrictTree bool
}

// Load reads the revision. The error is spec.Problems if the revision was read and is invalid.
func Load(ctx context.Context, o Options) (*spec.Snapshot, error) {
	l := &loader{opts: o}
	if err := l.locate(ctx); err != nil {
		return nil, err
	}
	if err := l.list(ctx); err != nil {
		return nil, err
	}
	files, err := l.read(ctx)
	if err != nil {
		return nil, err
	}
	if chosen := o.Overrides.Apply(spec.WeirConfiguration{Choice: l.choiceOf(files)}).Choice; !chosen.Equal(l.chosen) {
		if err := l.collect(chosen); err != nil {
			return nil, err
		}
		if files, err = l.read(ctx); err != nil {
			return nil, err
		}
	}
	rendered, err := l.build(ctx)
	if err != nil {
		return nil, err
	}
	lock, err := l.lock(ctx)
	if err != nil {
		return nil, err
	}
	files = slices.Concat(files, rendered, lock)
	if o.Broken != nil && len(l.problems) > 0 {
		o.Broken(l.problems)
		l.problems = nil
	}
	for i := range l.problems {
		files = append(files, manifest.File{Path: l.problems[i].Origin.File, Fault: &l.problems[i]})
	}
	mo := manifest.Options{Overrides: o.Overrides, StrictTree: o.StrictTree, Choice: l.chosen.Objects()}
	if o.Config != "" {
		mo.ConfigFile = filepath.Clean(o.Config)
	}
	if o.Lock != "" {
		mo.LockFile = filepath.Clean(o.Lock)
	}
	return l.update(ctx, mo, files)
}

// update returns the Snapshot of the files. With Broken, files that have problems are left out.
func (l *loader) update(ctx context.Context, mo manifest.Options, files []manifest.File) (*spec.Snapshot, error) {
	for {
		snap, _, err := manifest.NewSet(mo).Update(ctx, spec.Revision{ID: l.commit}, files)
		var problems spec.Problems
		if l.opts.Broken == nil || !errors.As(err, &problems) {
			return snap, err
		}
		sound := slices.DeleteFunc(slices.Clone(files), func(f manifest.File) bool {
			file, _, _ := strings.Cut(f.Path, "\x00") // what a kustomization made of it goes too
			return slices.ContainsFunc(problems, func(p spec.Problem) bool { return p.Origin.File == file })
		})
		if len(sound) == len(files) {
			return nil, err
		}
		l.opts.Broken(problems)
		files = sound
	}
}

// loader reads one revision.
type loader struct {
	opts     Options
	git      *git
	commit   string
	roots    []root
	builts   []root // the kustomizations
	tree     *tree
	found    []found
	at       map[string]int // the index in found, by real path
	chosen   spec.Choice
	ignores  map[string]choice.Patterns // of ignore files, by their paths in the repository
	dirs     int                        // directories visited, because symlinks can lead to the same one often
	problems spec.Problems
}

// root is a path that the user named.
type root struct {
	name string // as named
	path string // in the repository, with slashes; "" is all of it
	// only are the patterns of the files that are meant; none stand for all.
	only choice.Patterns
	// literal is, for a glob, what has this very name. It comes first if the revision has it.
	literal *root
	rules   choice.Rules
}

// found is a file to read.
type found struct {
	name string
	blob string
	real string // its path in the repository, without symlinks
	// links counts the symlinks on the way to it.
	links int
}

// locate finds the repository and the commit.
func (l *loader) locate(ctx context.Context) error {
	paths := slices.Clone(l.opts.Paths)
	if l.opts.Config != "" {
		paths = append(paths, l.opts.Config)
	}
	files := len(paths)
	for i, name := range append(paths, l.opts.Kustomize...) {
		given := name
		var glob choice.Glob
		if i < len(l.opts.Paths) {
			switch g, err := choice.ParseGlob(name); {
			case err != nil: // filesource says so
			case g != nil:
				glob, name = *g, g.Dir
			}
		}
		if name == "-" {
			return errors.New("standard input is in no Git revision; name the directory with -f")
		}
		real, err := realPath(name)
		if err != nil {
			return err
		}
		if l.git == nil {
			if l.git, err = openGit(existing(real)); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		top := l.git.repo.WorkTree
		rel, err := filepath.Rel(top, real)
		if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
			return fmt.Errorf("%s is not in the Git work tree %s", name, top)
		}
		if rel == "." {
			rel = ""
		}
		r := root{name: filepath.Clean(name), path: filepath.ToSlash(rel), only: glob.Files}
		if len(r.only) > 0 {
			r.literal = &root{name: filepath.Clean(given), path: path.Join(r.path, glob.Rest)}
		}
		if i < files {
			l.roots = append(l.roots, r)
		} else {
			l.builts = append(l.builts, r)
		}
	}
	var err error
	l.commit, err = l.git.resolve(ctx, l.opts.Rev)
	return err
}

// realPath returns the absolute path of a name, without symlinks. The last parts of the name need not exist.
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

// existing returns the nearest directory above or at a path that exists.
func existing(real string) string {
	for dir := real; ; dir = filepath.Dir(dir) {
		if fi, err := os.Stat(dir); err == nil && fi.IsDir() || dir == filepath.Dir(dir) {
			return dir
		}
	}
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
	if t.links || len(l.builts) > 0 { // symlinks and kustomizations may lead anywhere in the repository
		if t, err = l.listTree(ctx, nil); err != nil {
			return err
		}
	}
	if l.tree = t; t.links {
		if err := l.readLinks(ctx); err != nil {
			return err
		}
	}
	for i, r := range l.roots {
		if r.literal == nil {
			continue
		}
		if _, err := l.tree.resolve(r.literal.path); err == nil {
			l.roots[i] = *r.literal
		}
	}
	if err := l.readIgnoreFiles(ctx); err != nil {
		return err
	}
	return l.collect(l.opts.Overrides.Choice)
}

// collect finds the files to read below all roots, as far as they are chosen.
func (l *loader) collect(chosen spec.Choice) error {
	l.chosen, l.found, l.at, l.dirs, l.problems = chosen, nil, map[string]int{}, 0, nil
	for i := range l.roots {
		r := &l.roots[i]
		r.rules = choice.Rules{Include: choice.Parse(chosen.Include), Exclude: choice.Parse(chosen.Exclude), Ignores: map[string]choice.Patterns{}}
		c := &collector{loader: l, top: r}
		c.root(*r)
	}
	if len(l.found) > maxFiles || l.dirs > maxFiles {
		return fmt.Errorf("revision %s: more than %d files or directories; give -f a directory that holds only what is needed", l.opts.Rev, maxFiles)
	}
	return nil
}

// listTree lists the commit's files below the given paths, or all of them.
func (l *loader) listTree(ctx context.Context, scope []string) (*tree, error) {
	args := []string{"ls-tree", "-r", "-z", "--full-tree", l.commit}
	if !slices.Contains(scope, "") {
		args = append(append(args, "--"), scope...)
	}
	var t *tree
	err := l.git.stream(ctx, "", func(in *bufio.Reader) (err error) {
		t, err = parseTree(in)
		return err
	}, args...)
	if err != nil {
		return nil, fmt.Errorf("list revision %s: %w", l.opts.Rev, err)
	}
	return t, nil
}

// read reads the blobs of all files found, in one run of git.
func (l *loader) read(ctx context.Context) ([]manifest.File, error) {
	wanted := make([]blob, len(l.found))
	for i, f := range l.found {
		wanted[i] = blob{f.blob, f.name}
	}
	blobs, err := l.git.blobs(ctx, wanted)
	if err != nil {
		return nil, err
	}
	files := make([]manifest.File, len(l.found))
	for i, f := range l.found {
		files[i] = manifest.File{Path: f.name, Data: blobs[i]}
		if blobs[i] == nil {
			files[i] = l.tooLarge(f.name)
		}
	}
	return files, nil
}

// tooLarge returns a file that is not read, which is skipped unless it is a root.
func (l *loader) tooLarge(name string) manifest.File {
	p := spec.Problem{Origin: spec.Origin{File: name}, Detail: fmt.Sprintf("larger than the limit of %d bytes; split it, or move it out of the directory", maxFileSize)}
	if l.opts.StrictTree || slices.ContainsFunc(l.roots, func(r root) bool { return r.name == name }) {
		return manifest.File{Path: name, Fault: &p}
	}
	return manifest.File{Path: name, Skipped: []spec.Skipped{{Origin: p.Origin, Kind: spec.SkippedUnread, Reason: p.Detail}}}
}

// lock returns the file of Options.Lock, unless it was found already or does not exist.
func (l *loader) lock(ctx context.Context) ([]manifest.File, error) {
	name := filepath.Clean(l.opts.Lock)
	if l.opts.Lock == "" || slices.ContainsFunc(l.found, func(f found) bool { return f.name == name }) {
		return nil, nil
	}
	real, err := realPath(name)
	if err != nil {
		return nil, err
	}
	if rel, err := filepath.Rel(l.git.repo.WorkTree, real); err == nil && filepath.IsLocal(rel) {
		t, err := l.listTree(ctx, []string{filepath.ToSlash(rel)})
		if err != nil {
			return nil, err
		}
		e, ok := t.entries[filepath.ToSlash(rel)]
		if !ok || e.link {
			return nil, nil
		}
		data, err := l.git.blobs(ctx, []blob{{e.blob, name}})
		if err != nil {
			return nil, err
		}
		return []manifest.File{{Path: name, Data: data[0]}}, nil
	}
	data, err := filesource.ReadFile(ctx, name)
	var problem spec.Problem
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, nil
	case errors.As(err, &problem):
		return nil, spec.Problems{problem}
	case err != nil:
		return nil, err
	}
	return []manifest.File{{Path: name, Data: data}}, nil
}

// choiceOf returns what the WeirConfiguration among the files chooses.
func (l *loader) choiceOf(files []manifest.File) (c spec.Choice) {
	for _, f := range files {
		if l.opts.Config != "" && f.Path != filepath.Clean(l.opts.Config) {
			continue
		}
		if w, _, ok := manifest.WeirOf(f.Path, f.Data); ok {
			return w.Choice
		}
	}
	return c
}

// readIgnoreFiles reads the ignore files of the tree.
func (l *loader) readIgnoreFiles(ctx context.Context) error {
	var files []blob
	for p, e := range l.tree.entries {
		if path.Base(p) == choice.IgnoreFile && !e.link {
			files = append(files, blob{e.blob, p})
		}
	}
	blobs, err := l.git.blobs(ctx, files)
	if err != nil {
		return err
	}
	l.ignores = map[string]choice.Patterns{}
	for i, b := range files {
		if err := choice.CheckFile(blobs[i]); err != nil {
			return spec.Problems{{Origin: spec.Origin{File: b.name}, Detail: err.Error()}}
		}
		l.ignores[b.name] = choice.ParseFile(blobs[i])
	}
	return nil
}

func (l *loader) readLinks(ctx context.Context) error {
	var links []blob
	for p, e := range l.tree.entries {
		if e.link {
			links = append(links, blob{e.blob, p})
		}
	}
	blobs, err := l.git.blobs(ctx, links)
	if err != nil {
		return err
	}
	for i, b := range links {
		e := l.tree.entries[b.name]
		e.target = string(blobs[i])
		l.tree.entries[b.name] = e
	}
	return nil
}
