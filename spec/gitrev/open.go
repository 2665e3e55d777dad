package gitrev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// errIrregular means that there is a FIFO, a device or a directory in the place of a file of Git.
var errIrregular = errors.New("not a regular file")

// openRegular opens a regular file and refuses everything else. Opening a FIFO wakes its writer and may wait for ever,
// and opening a device may do anything.
func openRegular(path string) (*os.File, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %w", path, errIrregular)
	}
	// O_NONBLOCK is for the case that the file became a FIFO meanwhile.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	if fi, err = f.Stat(); err != nil || !fi.Mode().IsRegular() {
		f.Close()
		return nil, errors.Join(err, fmt.Errorf("%s: %w", path, errIrregular))
	}
	return f, nil
}

// Dir returns the repository's directory for this work tree, the value of Git's --git-dir.
func (r *Repo) Dir() string { return r.gitDir }

// maxRepoFiles limits how many files CheckFiles looks at.
const maxRepoFiles = 1 << 20

// CheckFiles returns an error if the repository, or one that it borrows objects from, holds a FIFO or a device. Any
// program that reads the repository, such as git, would open it.
func (r *Repo) CheckFiles() error {
	left := maxRepoFiles
	return r.checkFiles(map[string]bool{}, []string{r.gitDir, r.common}, &left)
}

func (r *Repo) checkFiles(done map[string]bool, dirs []string, left *int) error {
	for _, dir := range dirs {
		real, err := filepath.EvalSymlinks(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if done[real] {
			continue
		}
		done[real] = true
		var more []string
		err = filepath.WalkDir(real, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if *left--; *left < 0 {
				return fmt.Errorf("%s: more than %d files", dir, maxRepoFiles)
			}
			elsewhere, err := r.checkFile(path, e)
			more = append(more, elsewhere...)
			return err
		})
		if err != nil {
			return err
		}
		if err := r.checkFiles(done, more, left); err != nil {
			return err
		}
	}
	return nil
}

// checkFile checks one file, and returns the directories that it refers to.
func (r *Repo) checkFile(path string, e fs.DirEntry) (elsewhere []string, err error) {
	mode := e.Type()
	if mode&fs.ModeSymlink != 0 {
		fi, err := os.Stat(path)
		if err != nil {
			return nil, nil // a dangling symlink cannot be opened
		}
		if mode = fi.Mode(); mode.IsDir() {
			return []string{path}, nil
		}
	}
	if mode&(fs.ModeNamedPipe|fs.ModeDevice) != 0 {
		return nil, fmt.Errorf("%s: %w; remove it", path, errIrregular)
	}
	if filepath.Base(path) == "alternates" && filepath.Base(filepath.Dir(path)) == "info" {
		return alternates(filepath.Dir(filepath.Dir(path))), nil
	}
	return nil, nil
}

// alternates returns the object stores that the one at dir borrows from.
func alternates(dir string) []string {
	text, _ := readSmall(filepath.Join(dir, "info", "alternates"))
	var dirs []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			dirs = append(dirs, join(dir, line))
		}
	}
	return dirs
}
