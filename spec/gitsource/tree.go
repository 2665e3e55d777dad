package gitsource

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"weir/spec"
	"weir/spec/filesource"
)

// tree is what a commit has, or the part of it that was asked for.
type tree struct {
	entries  map[string]entry
	children map[string][]string // the names in a directory
	size     map[string]int64    // of blobs
	links    bool
}

// entry is a file or a symlink.
type entry struct {
	blob   string
	link   bool
	target string // of a symlink
}

// parseTree reads what "git ls-tree -r -z -l" writes: "mode type id size<TAB>path" with a zero byte at the end.
func parseTree(out []byte) (*tree, error) {
	t := &tree{entries: map[string]entry{}, children: map[string][]string{}, size: map[string]int64{}}
	for len(out) > 0 {
		line, rest, ok := bytes.Cut(out, []byte{0})
		if !ok {
			return nil, errors.New("git ls-tree was cut short")
		}
		out = rest
		meta, name, ok := strings.Cut(string(line), "\t")
		parts := strings.Fields(meta)
		if !ok || len(parts) != 4 {
			return nil, fmt.Errorf("git ls-tree says %q", line)
		}
		if parts[1] != "blob" {
			continue // a submodule
		}
		size, err := strconv.ParseInt(parts[3], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("git ls-tree says %q", line)
		}
		e := entry{blob: parts[2], link: parts[0] == "120000"}
		t.links = t.links || e.link
		t.size[e.blob] = size
		t.add(name, e)
	}
	return t, nil
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

// maxLinks is how many symlinks may lead to each other.
const maxLinks = 40

// resolve returns the path, without symlinks, of what a path in the repository leads to.
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
	above []string // the directories that the walk is in
}

func (c *collector) root(r root) {
	real, err := c.tree.resolve(r.path)
	if err != nil {
		// A directory that the revision does not have yet is an empty one: all of it is new.
		if !errors.Is(err, errAbsent) {
			c.fault(r.name, err)
		}
		return
	}
	if e, isFile := c.tree.entries[real]; isFile {
		c.found = append(c.found, found{name: r.name, blob: e.blob})
		return
	}
	c.dir(r.name, real)
}

func (c *collector) fault(name string, err error) {
	c.problems = append(c.problems, spec.Problem{Origin: spec.Origin{File: name}, Detail: err.Error()})
}

// isChart says that a directory is a Helm chart, the templates of which are not read.
func (c *collector) isChart(real string) bool {
	_, ok := c.tree.entries[path.Join(real, filesource.ChartFile)]
	return ok
}

// dir collects what a directory holds. Its children are visited in order, so that names are found in the same order
// always.
func (c *collector) dir(name, real string) {
	if slices.Contains(c.above, real) {
		c.fault(name, errLoop)
		return
	}
	c.above = append(c.above, real)
	defer func() { c.above = c.above[:len(c.above)-1] }()
	for _, child := range slices.Sorted(slices.Values(c.tree.children[real])) {
		if strings.HasPrefix(child, ".") || len(c.found) > maxFiles || child == filesource.ChartTemplates && c.isChart(real) {
			continue
		}
		at := path.Join(name, child)
		to, err := c.tree.resolve(path.Join(real, child))
		if err != nil {
			// What is no manifest is not missed.
			if filesource.Reads(child) || path.Ext(child) == "" {
				c.fault(at, err)
			}
			continue
		}
		if e, isFile := c.tree.entries[to]; !isFile {
			c.dir(at, to)
		} else if filesource.Reads(child) {
			c.found = append(c.found, found{name: at, blob: e.blob})
		}
	}
}
