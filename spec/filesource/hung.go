package filesource

import (
	"cmp"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"weir/spec"
	"weir/spec/choice"
)

// fault is why a name cannot be used.
type fault struct {
	spec.Problem
	// hangs reports whether a read has not come back. What is at the name is then unknown, rather than wrong.
	hangs bool
}

func (t *tree) newFault(name string, err error) fault {
	return fault{problem(name, err, t.opts), errors.As(err, new(stuckError)) || errors.Is(err, errStdinOpen)}
}

// hangs reports whether reads that hang are all that is wrong with the files.
func (t *tree) hangs() bool {
	if t.over != nil || len(t.faults) == 0 {
		return false
	}
	for _, f := range t.faults {
		if !f.hangs {
			return false
		}
	}
	return true
}

// hung is the part of the input of which nothing is known, because reads hang. The zero value is no part of it.
type hung struct {
	tree *tree
	// names are those at or below which nothing is known, and builts the directories of kustomizations.
	names, builts map[string]bool
}

// hung returns the part of the input that hangs.
func (t *tree) hung() (h hung) {
	for key, f := range t.faults {
		if !f.hangs {
			continue
		}
		if h.tree == nil {
			h = hung{t, map[string]bool{}, map[string]bool{}}
		}
		name := f.Origin.File
		switch base := filepath.Base(name); {
		case strings.HasPrefix(key, builtPrefix):
			h.builts[name] = true
		case t.rootOf(name) < 0 && (base == choice.IgnoreFile || base == ChartFile): // it decides what is read beside it
			h.names[filepath.Dir(name)] = true
		default:
			h.names[name] = true
		}
	}
	return h
}

// covers reports whether nothing is known of the name of a file, or of a File that a kustomization rendered or that stands in
// for another.
func (h hung) covers(name string) bool {
	if h.tree == nil {
		return false
	}
	if file, dir, ok := strings.Cut(name, "\x00"); ok && dir != "" {
		return h.builts[dir]
	} else if ok { // a standInPath
		name = file
	}
	for !h.names[name] {
		if above := filepath.Dir(name); h.tree.rootOf(name) < 0 && above != name {
			name = above
			continue
		}
		return false
	}
	return true
}

// within reports whether anything hangs at or below a root.
func (h hung) within(root int) bool {
	for name := range h.names {
		if n := h.tree.nodes[name]; n != nil && n.root == root {
			return true
		}
	}
	return false
}

// keepWeirs records the WeirConfigurations of the files that are accepted. Those of files that hang stay.
func (t *tree) keepWeirs(h hung) { t.goodWeirs = t.currentWeirs(h) }

// currentWeirs returns the WeirConfigurations of the files. A file that hangs has that of its last good content.
func (t *tree) currentWeirs(h hung) map[string]weir {
	weirs := maps.Clone(t.weirs)
	for name, w := range t.goodWeirs {
		if h.covers(name) {
			weirs[name] = w
		}
	}
	return weirs
}

// firstWeir returns the WeirConfiguration that is in force, and the name of its file. If there are several, which is refused,
// and one demands signatures, none chooses files: it could leave out the one that demands.
func firstWeir(weirs map[string]weir, config string) (name string, w weir) {
	names := slices.Collect(maps.Keys(weirs))
	if config != "" {
		names = slices.DeleteFunc(names, func(name string) bool { return name != config })
	}
	if len(names) == 0 {
		return "", w
	}
	slices.SortFunc(names, func(a, b string) int {
		first, second := weirs[a].AllowedSigners != "", weirs[b].AllowedSigners != ""
		if first != second && first {
			return -1
		}
		if first != second {
			return 1
		}
		return cmp.Compare(a, b)
	})
	name, w = names[0], weirs[names[0]]
	if len(names) > 1 && w.AllowedSigners != "" {
		w.Choice = spec.Choice{}
	}
	return name, w
}
