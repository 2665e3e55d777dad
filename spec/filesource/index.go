package filesource

import (
	"iter"
	"maps"
)

// index maps paths to sets of names. Almost all sets have one name, which takes no memory of its own: a large tree has
// one for each file.
type index map[string]nameSet

// nameSet is a set of names that is not empty: one, or the keys of more.
type nameSet struct {
	one  string
	more map[string]bool
}

// insert adds a name to the set of a path.
func (x index) insert(path, name string) {
	s, ok := x[path]
	switch {
	case !ok:
		x[path] = nameSet{one: name}
	case s.more != nil:
		s.more[name] = true
	case s.one != name:
		x[path] = nameSet{more: map[string]bool{s.one: true, name: true}}
	}
}

// remove removes a name from the set of a path.
func (x index) remove(path, name string) {
	s, ok := x[path]
	if !ok || s.more == nil && s.one != name {
		return
	}
	delete(s.more, name)
	if len(s.more) == 0 {
		delete(x, path)
	}
}

// has reports whether the set of a path has any name.
func (x index) has(path string) bool {
	_, ok := x[path]
	return ok
}

// names yields the names of the set of a path, in no order.
func (x index) names(path string) iter.Seq[string] {
	s, ok := x[path]
	if ok && s.more == nil {
		return func(yield func(string) bool) { yield(s.one) }
	}
	return maps.Keys(s.more)
}
