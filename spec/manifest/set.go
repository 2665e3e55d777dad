// Package manifest turns the bytes of files into validated spec.Snapshots.
//
// Each document is decoded and validated alone, on all cores, and not again until its bytes change. What the documents
// declare together is then checked and completed by one goroutine: duplicates, allocation of ClusterIPs and node ports,
// which slices belong to which Service. Both cost what changed, not what there is.
package manifest

import (
	"context"
	"hash/maphash"
	"net/netip"
	"slices"
	"strings"

	iradix "github.com/hashicorp/go-immutable-radix/v2"
	corev1 "k8s.io/api/core/v1"

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
//
// It is a handful of indexes, which an Update edits in place, keeping an undo log. In the state between two Updates nothing
// conflicts, so that each index has room for one owner only.
type Set struct {
	opts    Options
	decoder decoder

	files map[string]*file
	// refused are the files of the last Update if that was refused, so that what was right in them need not be decoded again.
	refused map[string]*file

	objects map[objectID]*placed
	entries map[spec.Name]*entry
	// configs, noticed, locks and skipped are what else the documents hold.
	configs map[*content]docAt
	noticed map[*content]docAt
	locks   map[*content]docAt // the AllocationLocks
	skipped map[string]int

	pools  pools
	needs  map[spec.Name]needs
	vips   map[vip][]spec.Name // external addresses, with the Services that use them
	orphan map[spec.Name]bool  // names of Services that are not there but have slices or pins

	last *spec.Snapshot
	tree *iradix.Tree[*spec.Service]
}

// placed is an object and where it is.
type placed struct {
	*object
	at docAt
}

// docAt is where a content is.
type docAt struct {
	path string
	line int
	*content
}

func (p *placed) origin() spec.Origin {
	return spec.Origin{File: p.at.path, Line: p.at.line + p.line - 1}
}

// entry is everything that belongs to one Service. It is immutable.
type entry struct {
	service   *placed
	slices    []*placed
	endpoints *placed
	pin       *placed // its entry in an AllocationLock
}

// NewSet returns a Set of no files.
func NewSet(o Options) *Set {
	s := &Set{
		opts:  o,
		files: map[string]*file{}, objects: map[objectID]*placed{}, entries: map[spec.Name]*entry{},
		configs: map[*content]docAt{}, noticed: map[*content]docAt{}, locks: map[*content]docAt{}, skipped: map[string]int{},
		needs: map[spec.Name]needs{}, vips: map[vip][]spec.Name{}, orphan: map[spec.Name]bool{},
		tree: iradix.New[*spec.Service](),
	}
	s.decoder = decoder{seed: maphash.MakeSeed(), intern: &interner{}, ignoreConfig: func(path string) bool {
		return o.ConfigFile != "" && path != o.ConfigFile
	}}
	return s
}

// Update replaces the named files and returns the Snapshot of all files, and what changed since the Snapshot that was
// returned before; the first has Delta.All. The other files are as in the last Update that succeeded. A Service that only
// moved within its file has its new Origin in the Snapshot and is not in the Delta.
//
// If anything is wrong with the result, the error is spec.Problems, everything that is wrong sorted by file and line,
// and the Set is as it was: the next Update has to bring again all that changed since the last one that succeeded. The
// only other error is ctx's, to the same effect.
func (s *Set) Update(ctx context.Context, rev spec.Revision, files []File) (*spec.Snapshot, spec.Delta, error) {
	files = lastOfEach(files)
	parsed, err := s.decoder.parse(ctx, files, s.known)
	if err != nil {
		return nil, spec.Delta{}, err
	}
	defer forgetRaw(parsed)

	u := newUpdate(s)
	u.replace(files, parsed)
	snap := u.finish(rev)
	if problems := u.sortedProblems(); len(problems) > 0 {
		u.rollback()
		s.refused = map[string]*file{}
		for _, f := range parsed {
			s.refused[f.path] = f
		}
		return nil, spec.Delta{}, problems
	}
	delta := u.delta(snap)
	s.refused, s.last = nil, snap
	return snap, delta, nil
}

// known returns the documents that were found in a file before.
func (s *Set) known(path string) []doc {
	if f := s.refused[path]; f != nil && len(f.docs) > 0 {
		if good := s.files[path]; good != nil {
			return slices.Concat(good.docs, f.docs) // what is in the Set is to be found first
		}
		return f.docs
	}
	if f := s.files[path]; f != nil {
		return f.docs
	}
	return nil
}

func forgetRaw(files []*file) {
	for _, f := range files {
		for _, d := range f.docs {
			d.raw = nil
		}
	}
}

// lastOfEach sorts files by path. Of those with the same path, the last counts.
func lastOfEach(files []File) []File {
	files = slices.Clone(files)
	slices.Reverse(files)
	slices.SortStableFunc(files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return slices.CompactFunc(files, func(a, b File) bool { return a.Path == b.Path })
}

// pools are where values are allocated from.
type pools struct {
	families []corev1.IPFamily // in the order of the service CIDRs
	ip       map[corev1.IPFamily]*pool[netip.Addr]
	foreign  *pool[netip.Addr] // notes what is set by hand of a family without a service CIDR
	port     *pool[uint16]
	min, max uint16
}

func newPools(w *spec.WeirConfiguration) pools {
	p := pools{ip: map[corev1.IPFamily]*pool[netip.Addr]{}, port: portPool(w.NodePortMin, w.NodePortMax),
		foreign: newPool(1, func(uint64) netip.Addr { return netip.Addr{} }, func(netip.Addr) bool { return false }), min: w.NodePortMin, max: w.NodePortMax}
	for _, cidr := range w.ServiceCIDRs {
		f := familyOf(cidr.Addr())
		if p.ip[f] == nil && cidr.Addr().BitLen()-cidr.Bits() >= 2 {
			p.families = append(p.families, f)
			p.ip[f] = addressPool(cidr)
		}
	}
	return p
}
