// Package statefile reads and writes the files of weir's state directory: what must outlive the process. A file is written
// atomically and can be read by its owner only. A file that another user owns, or could have written, is refused, because
// the kernel would be programmed from it.
//
// The package knows no content; spec/lastgood and reconcile/tell/status have the formats.
package statefile

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// ErrUntrusted means that another user owns a file or its directory, or may write to it.
var ErrUntrusted = errors.New("is not used")

// Open opens a regular file in a state directory for reading. It follows no symlink at the end of the path, and opens
// neither FIFOs nor devices.
func Open(path string) (*os.File, error) {
	if err := CheckDir(filepath.Dir(path)); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	switch {
	case err != nil:
	case !fi.Mode().IsRegular():
		err = fmt.Errorf("%s is not a regular file, so it %w; remove it", path, ErrUntrusted)
	default:
		err = Check(path, fi, 0o022)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Check returns an error unless the file is root's or this process's user's, and gives others none of the permissions.
func Check(path string, fi fs.FileInfo, permissions fs.FileMode) error {
	uid := int(fi.Sys().(*syscall.Stat_t).Uid)
	switch {
	case !Ours(uid):
		return fmt.Errorf("%s belongs to user %d, so it %w; remove it, or chown it to the user that weir runs as", path, uid, ErrUntrusted)
	case fi.Mode().Perm()&permissions != 0:
		return fmt.Errorf("%s has mode %04o, so that others could have changed it, and it %w; remove it, or chmod go-w it", path, fi.Mode().Perm(), ErrUntrusted)
	}
	return nil
}

// Ours reports whether a user could do everything that this process does.
func Ours(uid int) bool { return uid == 0 || uid == os.Geteuid() }

// CheckDir checks a state directory. Others may write to it only if its sticky bit keeps them from replacing files.
func CheckDir(dir string) error {
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	permissions := fs.FileMode(0o022)
	if fi.Mode()&fs.ModeSticky != 0 {
		permissions = 0
	}
	return Check(dir, fi, permissions)
}

// MakeDir creates a state directory if it does not exist, and checks it.
func MakeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return CheckDir(dir)
}

// Write replaces a file with what write writes, with mode 0600. After a crash or a loss of power there is the old content
// or the new one. The directory is created if it does not exist.
func Write(path string, write func(io.Writer) error) (err error) {
	dir := filepath.Dir(path)
	if err := MakeDir(dir); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*") // mode 0600
	if err != nil {
		return writeError(path, err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	w := bufio.NewWriterSize(f, 64<<10)
	if err := write(w); err != nil {
		return writeError(path, err)
	}
	for _, step := range []func() error{w.Flush, f.Sync, f.Close, func() error { return os.Rename(f.Name(), path) }} {
		if err := step(); err != nil {
			return writeError(path, err)
		}
	}
	return syncDir(dir)
}

// writeError returns an error with the path of the file in place of that of the temporary one, whose name is another one
// each time, so that the same cause has the same text.
func writeError(path string, err error) error {
	var file *fs.PathError
	var link *os.LinkError
	switch {
	case errors.As(err, &link):
		err = link.Err
	case errors.As(err, &file):
		err = file.Err
	}
	return fmt.Errorf("write %s: %w", path, err)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
