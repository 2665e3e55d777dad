package kustomize

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"sigs.k8s.io/kustomize/api/konfig"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	"weir/spec"
	"weir/spec/document"
)

// fileSystem is what kustomize sees of a Tree. Of the embedded interface, which is nil, a build calls nothing.
type fileSystem struct {
	filesys.FileSystem
	*build
}

func (b *build) fileSystem() filesys.FileSystem { return fileSystem{build: b} }

// CleanedAbs implements filesys.FileSystem.
func (f fileSystem) CleanedAbs(path string) (filesys.ConfirmedDir, string, error) {
	real, dir, err := f.resolve(path)
	switch {
	case err != nil:
		return "", "", err
	case dir:
		return filesys.ConfirmedDir(real), "", nil
	}
	return filesys.ConfirmedDir(filepath.Dir(real)), filepath.Base(real), nil
}

// ReadFile implements filesys.FileSystem.
func (f fileSystem) ReadFile(path string) ([]byte, error) {
	real, dir, err := f.resolve(path)
	if err != nil {
		return nil, err
	}
	if dir {
		return nil, fmt.Errorf("%s is a directory", path)
	}
	data, err := f.read(real)
	if err != nil || !slices.Contains(konfig.RecognizedKustomizationFileNames(), filepath.Base(real)) {
		return data, err
	}
	if f.bases++; f.bases > maxBases {
		return nil, f.refuse(f.dir, 0, "", fmt.Sprintf("its kustomization uses more than %d others, counted each time; split it", maxBases))
	}
	return f.kustomization(real, data)
}

// Exists implements filesys.FileSystem.
func (f fileSystem) Exists(path string) bool { _, _, err := f.resolve(path); return err == nil }

// IsDir implements filesys.FileSystem.
func (f fileSystem) IsDir(path string) bool { _, dir, err := f.resolve(path); return err == nil && dir }

func (b *build) resolve(path string) (real string, dir bool, err error) {
	if err := b.ctx.Err(); err != nil {
		return "", false, err
	}
	if !filepath.IsAbs(path) {
		return "", false, fmt.Errorf("%s is not an absolute path", path)
	}
	return b.tree.Resolve(filepath.Clean(path))
}

// read reads a file, within the limits.
func (b *build) read(real string) ([]byte, error) {
	data, known := b.data[real]
	if !known {
		var err error
		if data, err = b.tree.ReadFile(real); err != nil {
			return nil, err
		}
		if detail := dangerous(data); detail != "" {
			return nil, b.refuse(real, 1, "", detail)
		}
		if data == nil {
			data = []byte{}
		}
		b.data[real] = data
	}
	b.files++
	b.bytes += len(data)
	if b.files > maxFiles || b.bytes > maxBytes {
		return nil, b.refuse(b.dir, 0, "", fmt.Sprintf("its kustomization reads more than %d files, or %d MiB; split it", maxFiles, maxBytes>>20))
	}
	return data, nil
}

// dangerous returns why kustomize must not parse a file, or "". Kustomize expands aliases without a limit.
func dangerous(data []byte) string {
	if len(data) > maxFileSize {
		return fmt.Sprintf("is larger than %d MiB; a kustomization cannot name it", maxFileSize>>20)
	}
	if bytes.IndexByte(data, '&') < 0 || bytes.IndexByte(data, '*') < 0 {
		return ""
	}
	texts, _ := document.Split("", data)
	for _, t := range texts {
		for _, p := range document.Parse(t).Problems() {
			if p.TooManyAliases() {
				return p.Detail
			}
		}
	}
	return ""
}

var errRefused = errors.New("refused")

// refuse records a problem, which replaces the error of kustomize, and returns an error that ends the build.
func (b *build) refuse(file string, line int, field, detail string) error {
	p := spec.Problem{Origin: spec.Origin{File: file, Line: line}, Field: field, Detail: detail}
	if !slices.Contains(b.problems, p) {
		b.problems = append(b.problems, p)
	}
	return errRefused
}

// ErrOutside means that a path leads out of a Tree.
var ErrOutside = errors.New("leads out of the tree")

// absent reports whether there is nothing at a path.
func absent(err error) bool { return errors.Is(err, os.ErrNotExist) }
