package status

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"weir/reconcile/tell/changes"
	"weir/spec/stall"
	"weir/spec/statefile"
)

// recordName is the file in the state directory that holds the last applied state. It only supplies names for kernel
// objects; nothing else depends on it.
const recordName = "applied.json"

// SaveRecord replaces the record in the state directory, which is created if it does not exist.
func SaveRecord(stateDir string, r *changes.Record) error {
	return statefile.Write(filepath.Join(stateDir, recordName), func(w io.Writer) error { return r.Write(w) })
}

// LoadRecord returns the record in the state directory. It reads only a file that no other user may have written.
func LoadRecord(ctx context.Context, stateDir string) (*changes.Record, error) {
	return readRecord(ctx, filepath.Join(stateDir, recordName), statefile.Open)
}

// ReadRecordFile reads a file that "weir snapshot" wrote.
func ReadRecordFile(ctx context.Context, name string) (*changes.Record, error) {
	return readRecord(ctx, name, openRegular)
}

func openRegular(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("%s: not a regular file", name)
	}
	return f, nil
}

func readRecord(ctx context.Context, name string, open func(string) (*os.File, error)) (*changes.Record, error) {
	f, err := stall.Do(ctx, stall.Limit, "opening "+name, func() (*os.File, error) { return open(name) })
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, err := changes.ReadRecord(bufio.NewReaderSize(stall.Reader(ctx, "reading "+name, f), 1<<20))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return r, nil
}
