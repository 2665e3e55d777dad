package schema

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"weir/spec/document"
)

// NotFoundError is the error for a path that names no field.
type NotFoundError struct {
	// Path is what was looked up, and Near the paths that may have been meant.
	Path string
	Near []string
}

// Error implements error.
func (e *NotFoundError) Error() string {
	text := fmt.Sprintf("there is no field %q", e.Path)
	if len(e.Near) > 0 {
		text += "; did you mean " + strings.Join(e.Near, ", or ") + "?"
	}
	return text
}

// index is the place of a value in a list, or its key in a map, as weir's messages write it.
var index = regexp.MustCompile(`\[[^\]]*\]`)

// Lookup returns the field of a path such as dns.listen or KubeProxyConfiguration.iptables.syncPeriod. A path without a kind is
// looked up in each kind, in the order of Kinds. Indices and keys are left out, so that the paths of weir's messages are
// found.
func Lookup(path string) (Field, error) {
	names := strings.Split(index.ReplaceAllString(path, ""), ".")
	deepest, least := Field{}, -1
	for _, k := range Kinds() {
		rest := names
		if strings.EqualFold(names[0], k.Name) {
			rest = names[1:]
		}
		f, left := k.Field().below(rest)
		if left == 0 {
			return f, nil
		}
		if found := len(names) - left; found > least {
			deepest, least = f, found
		}
	}
	return Field{}, &NotFoundError{path, near(deepest, names[least], least == 0)}
}

// below returns the field that the names lead to, and how many of them lead nowhere.
func (f Field) below(names []string) (Field, int) {
	for i, name := range names {
		if f.isMap() {
			break // the rest is a key
		}
		fields := f.Fields()
		at := slices.IndexFunc(fields, func(c Field) bool { return c.Name() == name })
		if at < 0 {
			return f, len(names) - i
		}
		f = fields[at]
	}
	return f, 0
}

// near returns the paths that a misspelt name below a field may mean. At the top of a path the name of a kind may be meant, or
// a field that is further down.
func near(f Field, misspelt string, top bool) []string {
	if !top {
		var names []string
		for _, c := range f.Fields() {
			names = append(names, c.Name())
		}
		if name := document.Nearest(misspelt, names); name != "" {
			return []string{f.shortest() + "." + name}
		}
		return nil
	}
	var tops, below []string
	for _, k := range Kinds() {
		tops = append(tops, k.Name)
		for f := range k.Field().all {
			if len(f.Path) == 1 {
				tops = append(tops, f.Name())
			} else if strings.EqualFold(f.Name(), misspelt) {
				below = append(below, f.shortest())
			}
		}
	}
	if len(below) > 0 {
		return below
	}
	if name := document.Nearest(misspelt, tops); name != "" {
		return []string{name}
	}
	return nil
}

// all yields the fields below f, each before those below it.
func (f Field) all(yield func(Field) bool) {
	f.walk(yield)
}

func (f Field) walk(yield func(Field) bool) bool {
	for _, c := range f.Fields() {
		if !yield(c) || !c.walk(yield) {
			return false
		}
	}
	return true
}

// shortest returns the shortest path that Lookup finds the field by: without its kind, unless a field of another kind has the
// same path, as apiVersion has.
func (f Field) shortest() string {
	path := strings.Join(f.Path, ".")
	if path == "" {
		return f.Kind.Name
	}
	for _, k := range Kinds() {
		if _, left := k.Field().below(f.Path); left == 0 {
			if k != f.Kind {
				return f.Kind.Name + "." + path
			}
			break
		}
	}
	return path
}

// Complete returns the paths that one that has been begun may become, and whether any of them goes on. They are as deep as it
// is.
func Complete(begun string) (paths []string, on bool) {
	depth := strings.Count(begun, ".")
	add := func(path string, f Field) {
		if strings.HasPrefix(path, begun) && strings.Count(path, ".") == depth && !slices.Contains(paths, path) {
			paths, on = append(paths, path), on || len(f.Fields()) > 0
		}
	}
	for _, k := range Kinds() {
		add(k.Name, k.Field())
		for f := range k.Field().all {
			path := strings.Join(f.Path, ".")
			add(path, f)
			add(k.Name+"."+path, f)
		}
	}
	slices.Sort(paths)
	return paths, on
}
