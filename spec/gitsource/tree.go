package gitsource

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"weir/spec"
	"weir/spec/choice"
	"weir/spec/filesource"
)

// tree is the content of a commit, or the part of it that was requested.
type tree struct {
	entries  map[string]entry
	children map[string][]string // the names in a directory
	links    bool
}

// entry is a file or a symlink.
type entry struct {
	blob   string
	link   bool
	target string // of a symlink
}

// Limits of a listing. A few objects can describe an endless tree of directories that hold the same directory often.
const (
	maxEntries   = 500_000
	maxPathBytes = 64 << 20 // of all paths together
)

// parseTree reads the output of "git ls-tree -r -z": "mode type id<TAB>path" with a zero byte at the end.
func parseTree(in *bufio.Reader) (*tree, error) {
	t := &tree{entries: map[string]entry{}, children: map[string][]string{}}
	in = bufio.NewReader(io.LimitReader(in, maxPathBytes+1))
	for n, total := 0, 0; ; n++ {
		line, err := in.ReadString(0)
		if total += len(line); n > maxEntries || total > maxPathBytes {
			return nil, fmt.Errorf("more than %d files, or %d bytes of paths; give -f a directory that holds only what is needed", maxEntries, maxPathBytes)
		}
		if err == io.EOF && line == "" {
			return t, nil
		}
		if err != nil {
			return nil, fmt.Errorf("git ls-tree was cut short: %w", err)
		}
		meta, name, ok := strings.Cut(strings.TrimSuffix(line, "\x00"), "\t")
		parts := strings.Fields(meta)
		if !ok || len(parts) != 3 {
			return nil, fmt.Errorf("git ls-tree says %q", line)
		}
		if parts[1] != "blob" {
			continue // a submodule
		}
		e := entry{blob: parts[2], link: parts[0] == "120000"}
		t.links = t.links || e.link
		t.add(name, e)
	}
}

func (t *tree) add(name string, e entry) {
	t.entries[name] = e
	for name != "" {
		dir, file := path.Split(name)
		dir = strings.TrimSuffix(dir, "/")
		_, known := t.children[dir]
		t.children[dir] = append(t.children[dir], file)
		if known || dir == "" {
			return
		}
		name = dir
	}
}

var (
	errAbsent  = errors.New("is not in the revision")
	errOutside = errors.New("is a symlink that leads out of the repository; a revision holds only what is in it")
	errLoop    = errors.New("is a symlink that leads to itself")
)

// maxLinks limits the chain of symlinks.
const maxLinks = 40

// resolve returns the path, without symlinks, that a path in the repository leads to.
func (t *tree) resolve(p string) (string, error) {
	links := 0
	done, rest := "", p
	for rest != "" {
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		switch part {
		case "", ".":
			continue
		case "..":
			if done == "" {
				return "", errOutside
			}
			if done = path.Dir(done); done == "." {
				done = ""
			}
			continue
		}
		done = path.Join(done, part)
		e, isFile := t.entries[done]
		if !isFile || !e.link {
			continue
		}
		if links++; links > maxLinks {
			return "", errLoop
		}
		if path.IsAbs(e.target) {
			return "", errOutside
		}
		if done = path.Dir(done); done == "." {
			done = ""
		}
		rest = e.target + "/" + rest
	}
	if _, isFile := t.entries[done]; !isFile && t.children[done] == nil {
		return "", errAbsent
	}
	return done, nil
}

// collector finds the files below one root.
type collector struct {
	*loader
	top   *root
	above []string // the directories on the current path of the walk
}

func (c *collector) root(r root) {
	real, err := c.tree.resolve(r.path)
	if err != nil {
		// A directory that the revision does not have counts as empty: all of it is new.
		if !errors.Is(err, errAbsent) {
			c.fault(r.name, err)
		}
		return
	}
	if e, isFile := c.tree.entries[real]; isFile {
		c.file(found{name: r.name, blob: e.blob, real: real})
		return
	}
	c.dir(r.name, real, 0)
}

// file adds a file, under the name that is reached with the fewest symlinks.
func (c *collector) file(f found) {
	if i, ok := c.at[f.real]; ok {
		if f.name == filepath.Clean(c.opts.Config) || f.links < c.found[i].links && c.found[i].name != filepath.Clean(c.opts.Config) {
			c.found[i] = f
		}
		return
	}
	c.at[f.real] = len(c.found)
	c.found = append(c.found, f)
}

func (c *collector) fault(name string, err error) {
	c.problems = append(c.problems, spec.Problem{Origin: spec.Origin{File: name}, Detail: err.Error()})
}

// isChart reports whether a directory is a Helm chart, whose templates are not read.
func (c *collector) isChart(real string) bool {
	_, ok := c.tree.entries[path.Join(real, filesource.ChartFile)]
	return ok
}

// dir collects the files of a directory. It visits them in order, so that the result is always the same.
func (c *collector) dir(name, real string, links int) {
	if slices.Contains(c.above, real) {
		if c.opts.StrictTree {
			c.fault(name, errLoop)
		}
		return
	}
	if c.dirs++; c.dirs > maxFiles {
		return // list reports the excess
	}
	c.above = append(c.above, real)
	defer func() { c.above = c.above[:len(c.above)-1] }()
	below := strings.TrimPrefix(strings.TrimPrefix(name, c.top.name), "/")
	if patterns, ok := c.ignores[path.Join(real, choice.IgnoreFile)]; ok {
		c.top.rules.Ignores[cmp.Or(below, ".")] = patterns
	}
	for _, child := range slices.Sorted(slices.Values(c.tree.children[real])) {
		if strings.HasPrefix(child, ".") || len(c.found) > maxFiles || child == filesource.ChartTemplates && c.isChart(real) {
			continue
		}
		c.child(path.Join(name, child), path.Join(below, child), path.Join(real, child), links)
	}
}

// child takes one entry of a directory: its name, its path below the root, and its path in the repository.
func (c *collector) child(name, below, at string, links int) {
	to, err := c.tree.resolve(at)
	dangling := errors.Is(err, errAbsent) || errors.Is(err, errLoop)
	if err != nil {
		// A dangling link is a problem only under StrictTree, and if it may be a manifest or a directory. So is a link to a
		// directory outside.
		base := path.Base(name)
		skipped := dangling || errors.Is(err, errOutside) && !filesource.Reads(base)
		if (c.opts.StrictTree || !skipped) && (filesource.Reads(base) || path.Ext(base) == "") {
			c.fault(name, err)
		}
		return
	}
	if to != at {
		links++
	}
	e, isFile := c.tree.entries[to]
	if c.top.rules.Excludes(below, !isFile) || isFile && len(c.top.only) > 0 && !c.top.only.Covers(below) {
		return
	}
	if !isFile {
		c.dir(name, to, links)
	} else if filesource.Reads(path.Base(name)) {
		c.file(found{name: name, blob: e.blob, real: to, links: links})
	}
}
