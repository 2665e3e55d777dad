package kustomize

import (
	"path/filepath"
	"strings"

	"sigs.k8s.io/kustomize/api/resmap"
	"sigs.k8s.io/kustomize/api/resource"

	"weir/spec/document"
)

// objects returns the objects of a finished build.
func (b *build) objects(m resmap.ResMap) ([]Object, error) {
	f := &finder{build: b, docs: map[string][]source{}}
	objects := make([]Object, 0, m.Size())
	for _, r := range m.Resources() {
		o := Object{File: b.originOf(r)}
		o.Line = f.line(o.File, r)
		if err := r.SetOrigin(nil); err != nil {
			return nil, err
		}
		data, err := r.AsYAML()
		if err != nil {
			return nil, err
		}
		o.Data = data
		objects = append(objects, o)
	}
	return objects, nil
}

// originOf returns the real path of the file that an object came from.
func (b *build) originOf(r *resource.Resource) string {
	top := b.kustomizationIn(b.dir)
	origin, err := r.GetOrigin()
	if err != nil || origin == nil {
		return top
	}
	path := origin.Path
	if path == "" {
		path = origin.ConfiguredIn
	}
	if path == "" {
		return top
	}
	real, dir, err := b.resolve(filepath.Join(b.dir, path))
	if err != nil || dir {
		return top
	}
	return real
}

// finder finds the lines of objects in the files that they came from.
type finder struct {
	*build
	docs map[string][]source
}

// source is a document of a file.
type source struct {
	line       int
	kind, name string
}

// line returns the line on which an object begins. Kustomize does not tell it. Among the documents of its kind it is the
// one whose name is in the object's, which may have got a prefix and a suffix.
func (f *finder) line(file string, r *resource.Resource) int {
	docs, known := f.docs[file]
	if !known {
		docs = sources(f.data[file])
		f.docs[file] = docs
	}
	best, ofKind := source{line: 1}, 0
	for _, d := range docs {
		if d.kind != r.GetKind() {
			continue
		}
		if ofKind++; strings.Contains(r.GetName(), d.name) && len(d.name) > len(best.name) {
			best = d
		} else if ofKind == 1 && best.name == "" {
			best.line = d.line
		}
	}
	return best.line
}

func sources(data []byte) []source {
	texts, _ := document.Split("", data)
	var all []source
	for _, t := range texts {
		d := document.Parse(t)
		all = append(all, source{d.Start(), d.String("kind"), d.String("metadata.name")})
		for _, item := range d.Items("items") {
			all = append(all, source{item.Start(), item.String("kind"), item.String("metadata.name")})
		}
	}
	return all
}
