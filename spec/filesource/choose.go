package filesource

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"path/filepath"
	"strings"

	"weir/spec"
	"weir/spec/choice"
	"weir/spec/config"
	"weir/spec/gitrev"
	"weir/spec/manifest"
)

// weir is the WeirConfiguration of a file. The line is that of its allowedSigners.
type weir struct {
	spec.WeirConfiguration
	line int
}

// choose sets what is used of the files.
func (t *tree) choose(c spec.Choice) {
	t.choice = c
	for i := range t.roots {
		t.roots[i].rules.Include, t.roots[i].rules.Exclude = choice.Parse(c.Include), choice.Parse(c.Exclude)
	}
}

// excluded reports whether a name in a directory is left out. A file with a WeirConfiguration is not left out by what it
// says itself.
func (t *tree) excluded(name string, isDir bool) bool {
	if !t.named(name, isDir) {
		return true
	}
	if _, ok := t.weirs[name]; ok {
		return false
	}
	r, below := t.belowRoot(name)
	return r.rules.Excludes(below, isDir)
}

// belowRoot returns the root of a name, and its path below that.
func (t *tree) belowRoot(name string) (r *root, below string) {
	r = &t.roots[t.rootFor(name)]
	if r.name == "." {
		return r, name
	}
	return r, relative(r.name, name)
}

// named reports whether a glob that the user gave, if any, has the name.
func (t *tree) named(name string, isDir bool) bool {
	r, below := t.belowRoot(name)
	return isDir || len(r.only) == 0 || r.all || r.only.Covers(below)
}

// leftOut reports whether a real path is below roots, and every one of them leaves it out.
func (t *tree) leftOut(real string) bool {
	left := false
	for i := range t.roots {
		r := &t.roots[i]
		n := t.nodes[r.name]
		if n == nil || n.kind != isDir || !below(real, n.place.real) {
			continue
		}
		if !r.leavesOut(relative(n.place.real, real)) {
			return false
		}
		left = true
	}
	return left
}

// leavesOut reports whether a file below the root, or a directory above the file, is left out.
func (r *root) leavesOut(file string) bool {
	for dir := filepath.Dir(file); dir != "."; dir = filepath.Dir(dir) {
		if r.rules.Excludes(dir, true) {
			return true
		}
	}
	return len(r.only) > 0 && !r.all && !r.only.Covers(file) || r.rules.Excludes(file, false)
}

// lookRules reads an ignore file.
func (t *tree) lookRules(name string, p place) (again bool) {
	data, again, ok := t.readSettled(name, p)
	if !ok {
		return again
	}
	if err := choice.CheckFile(data); err != nil {
		t.fault(name, p, err)
		return false
	}
	old := t.nodes[name]
	n := &node{kind: isRules, root: t.rootFor(name), place: p, sum: sha256.Sum256(data), blob: gitrev.BlobID(data), recheck: p.hint.recent(now())}
	had := old != nil && old.kind == isRules
	if had && old.sum == n.sum {
		t.put(name, n)
		return false
	}
	if had {
		t.total.remove(t.key(name, old), old.sum)
	}
	t.total.add(t.key(name, n), n.sum)
	t.put(name, n)
	t.setRules(name, n.root, choice.ParseFile(data))
	return false
}

// setRules makes patterns those of an ignore file, and marks all that they are about.
func (t *tree) setRules(name string, root int, patterns choice.Patterns) {
	rules := &t.roots[root].rules
	dir := cmp.Or(relative(t.roots[root].name, filepath.Dir(name)), ".")
	if t.roots[root].name == "." {
		dir = filepath.Dir(name)
	}
	if rules.Ignores == nil {
		rules.Ignores = map[string]choice.Patterns{}
	}
	rules.Ignores[dir] = patterns
	t.touched[name] = true
	if n := t.nodes[filepath.Dir(name)]; n != nil {
		t.markBelow(n, name)
	}
}

// markBelow marks everything below a directory, except one name.
func (t *tree) markBelow(dir *node, except string) {
	for child := range dir.children {
		n := t.nodes[child]
		if child == except || n == nil {
			continue
		}
		t.marked[child] = hint{}
		if n.kind == isDir {
			t.markBelow(n, except)
		}
	}
}

// held reports whether a name, or a file below it, declared anything that was accepted.
func (t *tree) held(name string) bool {
	for accepted := range t.accepted {
		if (accepted == name || strings.HasPrefix(accepted, name+"/")) && t.holds(accepted) {
			return true
		}
	}
	return false
}

// skippable reports whether a name that cannot be read may be skipped: it is in a directory, and nothing is lost with it.
func (t *tree) skippable(name string) bool {
	return t.rootOf(name) < 0 && !t.opts.StrictTree && !t.held(name)
}

// skip records that a name is not read, and why.
func (t *tree) skip(name string, p place, kind string, err error) {
	why := problem(name, err, t.opts)
	t.put(name, &node{kind: isIgnored, root: t.rootFor(name), place: p, told: true})
	t.setContent(name, content{
		skipped: []spec.Skipped{{Origin: why.Origin, Kind: kind, Reason: why.Detail}}, sum: sha256.Sum256([]byte(why.Detail)),
	})
}

// first reports whether a name is the one that is used of all names of a file: that of --config, else the one that is no
// symlink, else the first.
func (t *tree) first(name, real string) bool {
	for other := range t.realsAt.names(real) {
		if other != name && t.before(other, name) {
			return false
		}
	}
	return true
}

func (t *tree) before(a, b string) bool {
	config := t.configName()
	if a == config || b == config {
		return a == config
	}
	x, y := t.nodes[a], t.nodes[b]
	return cmp.Or(cmp.Compare(t.links(x), t.links(y)), cmp.Compare(x.root, y.root), cmp.Compare(len(a), len(b)), strings.Compare(a, b)) < 0
}

// links counts the symlinks on the way to a node from its root.
func (t *tree) links(n *node) int {
	links := len(n.place.links)
	if root := t.nodes[t.roots[n.root].name]; root != nil && root.kind == isDir && !below(n.place.real, root.place.real) {
		links++
	}
	return links
}

// use tells the content of a file under the first of its names.
func (t *tree) use(name string, n *node, data []byte) {
	n.used = t.first(name, n.place.real)
	delete(t.weirs, name)
	if !n.used {
		t.setContent(name, content{})
		return
	}
	for other := range t.realsAt.names(n.place.real) {
		if o := t.nodes[other]; other != name && o.used {
			o.used = false
			t.setContent(other, content{})
		}
	}
	if bytes.Contains(data, []byte(config.WeirKind)) {
		if w, line, ok := manifest.WeirOf(name, data); ok {
			t.weirs[name] = weir{w, line}
		}
	}
	c := content{data: data, sum: n.sum}
	if t.skim != nil && !t.opts.StrictTree && !t.holds(name) {
		if skipped := t.skim(name, data); skipped != nil {
			c.data, c.skipped = nil, skipped
		}
	}
	t.setContent(name, c)
}

// chosen returns the Choice that the files and the flags make together.
func (t *tree) chosen() spec.Choice {
	_, w := firstWeir(t.currentWeirs(t.hung()), t.configName())
	return t.opts.Overrides.Apply(spec.WeirConfiguration{Choice: w.Choice}).Choice
}

// forget has everything read again, for an updater that knows nothing.
func (t *tree) forget() {
	t.accepted, t.pending = map[string]digest{}, map[string]content{}
	for name, n := range t.nodes {
		if name == stdinName {
			t.setContent(name, content{data: t.stdin, sum: n.sum})
		} else if n.kind == isFile || n.told {
			n.used = false
			t.marked[name] = hint{}
		}
	}
}
