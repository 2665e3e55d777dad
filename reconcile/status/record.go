package status

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"weir/reconcile/review"
)

// recordName is the file in the state directory that says what was applied last. Nothing depends on it: it gives names to
// what is found in the kernel.
const recordName = "applied.json"

// SaveRecord replaces the record in the state directory, which is made if it is not there.
func SaveRecord(stateDir string, r *review.Record) (err error) {
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(stateDir, "."+recordName+"-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	w := bufio.NewWriter(f)
	if err := errors.Join(r.Write(w), w.Flush(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", f.Name(), err)
	}
	return os.Rename(f.Name(), filepath.Join(stateDir, recordName))
}

// LoadRecord returns the record in the state directory. It follows no symlink and reads regular files only.
func LoadRecord(stateDir string) (*review.Record, error) {
	return readRecord(filepath.Join(stateDir, recordName), syscall.O_NOFOLLOW)
}

// ReadRecordFile returns what "weir snapshot" wrote to a file.
func ReadRecordFile(name string) (*review.Record, error) { return readRecord(name, 0) }

func readRecord(name string, flags int) (*review.Record, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|flags, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", name)
	}
	r, err := review.ReadRecord(bufio.NewReader(f))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return r, nil
}
