package status

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"syscall"

	"weir/backends/dataplane"
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

// RecordFile keeps the record in a state directory up to date with a Board. What has changed is appended to it, as long as that
// is little.
type RecordFile struct {
	log statefile.Log
	// head is what the record has besides ServicePorts and its revision.
	head changes.Record
}

// Update brings the record up to date. changed has the ServicePorts that differ from when it was written last, nil for those that
// are gone; it is nil if that is not known.
func (f *RecordFile) Update(stateDir string, b *Board, changed map[dataplane.ServicePortName]*dataplane.ServicePort) error {
	path := filepath.Join(stateDir, recordName)
	head := b.head()
	revision := head.Revision
	head.Revision = ""
	if changed != nil && len(head.Pods) == 0 && reflect.DeepEqual(head, f.head) {
		c := changes.RecordChange{Revision: revision}
		for _, key := range slices.SortedFunc(maps.Keys(changed), dataplane.ServicePortName.Compare) {
			if p := changed[key]; p != nil {
				c.ServicePorts = append(c.ServicePorts, p)
			} else {
				c.Gone = append(c.Gone, key)
			}
		}
		var line bytes.Buffer
		if err := c.Write(&line); err == nil && f.log.Append(path, line.Bytes()) == nil {
			return nil
		}
	}
	f.head = head
	return f.log.Write(path, b.Record().Write)
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
