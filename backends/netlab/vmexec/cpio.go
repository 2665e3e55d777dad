package main

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// archive writes the "newc" cpio format, which the kernel unpacks as its first root file system
// (Documentation/driver-api/early-userspace/buffer-format.rst). Several archives may follow one another.
type archive struct {
	w     io.Writer
	inode int
	made  map[string]bool
	err   error
}

func newArchive(w io.Writer) *archive {
	return &archive{w: w, made: map[string]bool{"/": true, ".": true}}
}

func (a *archive) entry(name string, mode uint32, size int64, body io.Reader) {
	if a.err != nil {
		return
	}
	name = strings.TrimPrefix(name, "/")
	a.inode++
	_, a.err = fmt.Fprintf(a.w, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		a.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name)+1, 0, name)
	a.pad(int64(110 + len(name) + 1))
	if body != nil && a.err == nil {
		_, a.err = io.CopyN(a.w, body, size)
		a.pad(size)
	}
}

func (a *archive) pad(n int64) {
	if rest := n % 4; rest != 0 && a.err == nil {
		_, a.err = a.w.Write(make([]byte, 4-rest))
	}
}

func (a *archive) dir(name string) {
	if a.made[name] {
		return
	}
	a.dir(path.Dir(name))
	a.made[name] = true
	a.entry(name, 0o040755, 0, nil)
}

func (a *archive) symlink(name, target string) {
	a.dir(path.Dir(name))
	a.entry(name, 0o120777, int64(len(target)), strings.NewReader(target))
}

func (a *archive) text(name, content string) {
	a.dir(path.Dir(name))
	a.entry(name, 0o100755, int64(len(content)), strings.NewReader(content))
}

// file copies a file, following symbolic links.
func (a *archive) file(name, from string) error {
	a.dir(path.Dir(name))
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	a.entry(name, 0o100000|uint32(info.Mode().Perm()), info.Size(), f)
	return a.err
}

// tree copies the regular files and links below a directory that keep accepts.
func (a *archive) tree(name, from string, keep func(string) bool) error {
	return filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		target := path.Join(name, rel)
		switch {
		case d.IsDir():
			a.dir(target)
		case !keep(p):
		case d.Type()&fs.ModeSymlink != 0:
			link, err := os.Readlink(p)
			if err != nil {
				return err
			}
			a.symlink(target, link)
		case d.Type().IsRegular():
			return a.file(target, p)
		}
		return a.err
	})
}

func (a *archive) close() error {
	a.entry("TRAILER!!!", 0, 0, nil)
	return a.err
}
