// Package kustomize builds kustomizations, with the library that the kustomize program is made of. Build takes a Tree
// and a directory in it, and returns the Objects that kustomize build would print, each with the file that it came from.
//
// A build reads nothing but its Tree. It runs no plugin, no function and no Helm, and fetches nothing: Build looks at
// each kustomization file before kustomize does, and refuses what could (check.go). It is bounded in files, in bytes and
// in time. The library keeps its schemas in global variables, so that one build runs at a time.
//
// The program is built with the tag kustomize_disable_go_plugin_support. Without it, the library imports plugin, and the
// linker keeps every method and every symbol: 63 MB instead of 39.
//
// The sources of spec that read files import the package.
package kustomize

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"sync"
	"time"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	"sigs.k8s.io/kustomize/api/konfig"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/resmap"

	"weir/spec"
)

// Tree is the file system of a build. Paths are absolute.
type Tree interface {
	// Resolve follows the symlinks of a path. It fails if that leads to nothing, or out of the Tree.
	Resolve(path string) (real string, dir bool, err error)
	// ReadFile returns the content of a regular file, whose path has no symlinks.
	ReadFile(real string) ([]byte, error)
}

// Object is one document that a build prints.
type Object struct {
	// File is the real path of the file that declares the object, or of the kustomization that generates it.
	File string
	// Line is the line of File on which the object begins; 1 if it is not known.
	Line int
	// Data is the object as YAML, without the annotations that name its origin.
	Data []byte
}

// Limits of one build.
const (
	maxFiles    = 20_000   // read; a file counts each time
	maxBases    = 500      // kustomizations; one counts each time that it is used
	maxFileSize = 8 << 20  // bytes
	maxBytes    = 64 << 20 // of all reads together
	maxTime     = 30 * time.Second
	// maxCopies limits the bytes that the copy operations of a JSON patch make.
	maxCopies = 8 << 20
)

// running is held by the build that runs. A build that was given up holds it until it ends.
var running = make(chan struct{}, 1)

// limitCopies sets the limit of the library of JSON patches, which is a global variable.
var limitCopies = sync.OnceFunc(func() { jsonpatch.AccumulatedCopySizeLimit = maxCopies })

// Build builds the kustomization in the directory with the real path dir. The error is spec.Problems, whose files are
// real paths, or ctx's.
func Build(ctx context.Context, tree Tree, dir string) ([]Object, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, maxTime, errSlow)
	defer cancel()
	select {
	case running <- struct{}{}:
	case <-ctx.Done():
		return nil, stopped(ctx, dir)
	}
	limitCopies()
	b := &build{ctx: ctx, tree: tree, dir: dir, data: map[string][]byte{}}
	type result struct {
		objects []Object
		err     error
	}
	done := make(chan result, 1)
	go func() {
		defer func() { <-running }()
		objects, err := b.run()
		done <- result{objects, err}
	}()
	select {
	case r := <-done:
		if ctx.Err() != nil {
			return nil, stopped(ctx, dir)
		}
		return r.objects, r.err
	case <-ctx.Done(): // the next read ends the build
		return nil, stopped(ctx, dir)
	}
}

var errSlow = errors.New("too slow")

// stopped returns the error of a build that ctx ended.
func stopped(ctx context.Context, dir string) error {
	if context.Cause(ctx) == errSlow {
		return spec.Problems{{Origin: spec.Origin{File: dir}, Detail: fmt.Sprintf("its kustomization is not built within %v; split it", maxTime)}}
	}
	return ctx.Err()
}

// build is one run of kustomize.
type build struct {
	ctx  context.Context
	tree Tree
	dir  string

	files, bytes, bases int
	data                map[string][]byte // of the files read, by real path
	joins               int               // replacements that join values
	// problems are better than the error that kustomize makes of them.
	problems spec.Problems
}

func (b *build) run() ([]Object, error) {
	options := krusty.MakeDefaultOptions() // files below their kustomization only, built-in plugins only
	m, err := b.quietly(func() (resmap.ResMap, error) {
		return krusty.MakeKustomizer(options).Run(b.fileSystem(), b.dir)
	})
	switch {
	case len(b.problems) > 0:
		return nil, b.problems
	case err != nil && b.kustomizationIn(b.dir) == b.dir:
		return nil, spec.Problems{{Origin: spec.Origin{File: b.dir}, Detail: "has no kustomization.yaml; -k takes the directory of one, -f a directory of manifests"}}
	case err != nil:
		return nil, spec.Problems{{Origin: spec.Origin{File: b.kustomizationIn(b.dir)}, Detail: "kustomize: " + b.explain(err)}}
	}
	return b.objects(m)
}

// quietly runs kustomize without its advice about deprecated fields and unused variables, which the library writes to
// standard error and to the standard logger. It returns a panic of the library as an error.
func (b *build) quietly(run func() (resmap.ResMap, error)) (m resmap.ResMap, err error) {
	if null, nullErr := os.OpenFile(os.DevNull, os.O_WRONLY, 0); nullErr == nil {
		defer null.Close()
		defer func(stderr *os.File) { os.Stderr = stderr }(os.Stderr)
		os.Stderr = null
	}
	defer log.SetOutput(log.Writer())
	log.SetOutput(io.Discard)
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("failed with a fault of its own: %v", p)
		}
	}()
	return run()
}

// kustomizationIn returns the kustomization file of a directory, or the directory if there is none.
func (b *build) kustomizationIn(dir string) string {
	for _, name := range konfig.RecognizedKustomizationFileNames() {
		if path := filepath.Join(dir, name); b.data[path] != nil {
			return path
		}
	}
	return dir
}
