package gitsource

import (
	"context"
	"errors"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"weir/spec"
	"weir/spec/document"
	"weir/spec/kustomize"
	"weir/spec/manifest"
)

// build renders the kustomizations. With Broken, one that cannot be built is left out.
func (l *loader) build(ctx context.Context) ([]manifest.File, error) {
	var files []manifest.File
	for _, r := range l.builts {
		built, err := l.buildOne(ctx, r)
		var problems spec.Problems
		switch {
		case errors.Is(err, errAbsent): // all of it is new
		case l.opts.Broken != nil && errors.As(err, &problems):
			l.problems = append(l.problems, problems...)
		case err != nil:
			return nil, err
		}
		files = append(files, built...)
	}
	return files, nil
}

// buildOne renders one kustomization.
func (l *loader) buildOne(ctx context.Context, r root) ([]manifest.File, error) {
	dir, err := l.tree.resolve(r.path)
	if errors.Is(err, errAbsent) {
		return nil, err
	}
	if err != nil {
		return nil, spec.Problems{{Origin: spec.Origin{File: r.name}, Detail: err.Error()}}
	}
	nameOf := func(real string) string {
		rel, err := filepath.Rel("/"+dir, real)
		if err != nil {
			return real
		}
		return filepath.Join(r.name, rel)
	}
	objects, err := kustomize.Build(ctx, &buildTree{ctx, l}, "/"+dir)
	var problems spec.Problems
	if errors.As(err, &problems) {
		problems = slices.Clone(problems)
		for i := range problems {
			problems[i].Origin.File = nameOf(problems[i].Origin.File)
		}
		return nil, problems
	}
	if err != nil {
		return nil, err
	}
	docs := map[string][]document.Text{}
	for _, o := range objects {
		name := nameOf(o.File)
		docs[name] = append(docs[name], document.Text{Line: o.Line, OneLine: true, Data: o.Data})
	}
	var files []manifest.File
	for name, texts := range docs {
		files = append(files, manifest.File{Path: manifest.RenderedPath(name, r.name), Data: manifest.RenderedData(texts)})
	}
	return files, nil
}

// buildTree is the kustomize.Tree of a revision. Its root directory is that of the repository.
type buildTree struct {
	ctx context.Context
	*loader
}

// Resolve implements kustomize.Tree.
func (b *buildTree) Resolve(name string) (real string, dir bool, err error) {
	p, err := b.tree.resolve(strings.TrimPrefix(path.Clean(name), "/"))
	switch {
	case errors.Is(err, errAbsent):
		return "", false, os.ErrNotExist
	case errors.Is(err, errOutside):
		return "", false, kustomize.ErrOutside
	case err != nil:
		return "", false, err
	}
	_, isFile := b.tree.entries[p]
	return "/" + p, !isFile, nil
}

// ReadFile implements kustomize.Tree.
func (b *buildTree) ReadFile(real string) ([]byte, error) {
	e, ok := b.tree.entries[strings.TrimPrefix(real, "/")]
	if !ok || e.link {
		return nil, os.ErrNotExist
	}
	data, err := b.git.blobs(b.ctx, []blob{{e.blob, real}})
	if err != nil {
		return nil, err
	}
	return data[0], nil
}
