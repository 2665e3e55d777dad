// Package manifest turns the bytes of files into validated spec.Snapshots. Set is its type: Update takes changed files
// and returns a new Snapshot.
//
// Documents are decoded and validated one by one, on all cores, and only when their bytes change. One goroutine then
// checks and completes what the documents declare together: duplicates, the allocation of ClusterIPs and node ports,
// the slices of each Service. The cost of both depends on the size of the change, not of the Set.
//
// The package reads no files. The sources of spec and cmd/weir import it.
package manifest

import (
	"context"
	"hash/maphash"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/document"
)

// File is the content of one file as found.
type File struct {
	// Path is the name of the file, as problems print it, or a RenderedPath.
	Path string
	// Data is not kept. Nil means that the file was removed; an empty file is not nil.
	Data []byte
	// Skipped, if set, says that nothing of the file is used; Data is then not looked at.
	Skipped []spec.Skipped
	// Fault, if set, is why the file cannot be read. The Update is then refused, and tells what else is wrong.
	Fault *spec.Problem
}

// Options configure a Set. The zero value is usable.
type Options struct {
	// ConfigFile is the Path of the File named with --config, or "". If it is set, a KubeProxyConfiguration or
	// WeirConfiguration in any other file is ignored, with a notice.
	ConfigFile string
	// LockFile is the Path of the File named with --lock, or "". It may be missing, but must hold an AllocationLock.
	LockFile string
	// Overrides win over the WeirConfiguration of the files.
	Overrides spec.Overrides
	// StrictTree refuses every document that cannot be read, even if it is of no kind that a Set reads.
	StrictTree bool
	// Choice says which objects are used. It is valid.
	Choice spec.ObjectChoice
}

// Set is everything that a set of files declares. It is not safe for concurrent use; the Snapshots that it returns are.
//
// It consists of indexes, which an Update edits in place while it keeps an undo log. Between two Updates nothing
// conflicts, so that each index has room for one owner only.
type Set struct {
	opts    Options
	decoder decoder
	signers *string // see Expect

	files map[string]*file
	// refused holds the files of the last Update if that was refused, so that its valid documents are not decoded
	// again.
	refused map[string]*file

	objects map[objectID]*placed
	// spares are the objects whose document is the same as that of the one in objects, in the order of files and lines.
	spares  map[objectID][]*placed
	entries map[dataplane.ServiceName]*entry
	// configs, noticed, locks and skipped index the other contents of documents.
	configs map[*content]docAt
	noticed map[*content]docAt
	locks   map[*content]docAt // the AllocationLocks
	skipped map[string]int
	// kustomizations and charts index the documents that describe how others are made.
	kustomizations, charts map[*content]docAt
	// notRead are the files that are not read, by key.
	notRead map[string]spec.Skipped
	// asides counts how often kustomizations name a file, by its path, as a patch or as data, which is no object then.
	asides map[string]int
	// left are the documents that are skipped, by file, and leftFiles counts the files that have nothing else.
	left      spec.SkippedDocuments
	leftFiles spec.SkippedFiles
	// podsTold and templatesTold index the pods and the templates of pods by namespace and by name or key.
	podsTold      map[dataplane.ServiceName][]told[*corev1.Pod]
	templatesTold map[dataplane.ServiceName][]told[*spec.Template]

	// silences holds the comments that silence notices, by path.
	silences map[string]string
	// badHeads holds the notices of such comments that are wrong, by path.
	badHeads map[string][]spec.Notice

	pools pools
	needs map[dataplane.ServiceName]needs
	// unchosen counts the Services that the Choice leaves out.
	unchosen   map[dataplane.ServiceName]int
	unusedPins map[dataplane.ServiceName]bool // names of missing Services that have pins
	// strayPolicies are the names of missing Services that have a HealthCheckPolicy.
	strayPolicies map[dataplane.ServiceName]bool

	last     *spec.Snapshot
	services spec.Services
	slices   spec.ByName[spec.Slices] // of missing Services
	// runningPods and podTemplates are those of the last Snapshot.
	runningPods  spec.Pods
	podTemplates spec.Templates
}

// placed is an object and its place.
type placed struct {
	*object
	at docAt
}

// docAt is the place of a content.
type docAt struct {
	path string
	line int
	*content
}

func (p *placed) origin() spec.Origin {
	return spec.Origin{File: p.at.path, Line: p.at.line + p.line - 1}
}

// entry holds everything that belongs to one Service. It is immutable.
type entry struct {
	service   *placed
	slices    []*placed
	endpoints *placed
	pin       *placed // its entry in an AllocationLock
	policies  []*placed
}

// NewSet returns an empty Set.
func NewSet(o Options) *Set {
	s := &Set{
		opts:  o,
		files: map[string]*file{}, objects: map[objectID]*placed{}, spares: map[objectID][]*placed{}, unchosen: map[dataplane.ServiceName]int{}, entries: map[dataplane.ServiceName]*entry{},
		configs: map[*content]docAt{}, noticed: map[*content]docAt{}, locks: map[*content]docAt{}, skipped: map[string]int{},
		kustomizations: map[*content]docAt{}, charts: map[*content]docAt{}, notRead: map[string]spec.Skipped{}, asides: map[string]int{},
		needs: map[dataplane.ServiceName]needs{}, unusedPins: map[dataplane.ServiceName]bool{}, strayPolicies: map[dataplane.ServiceName]bool{},
		podsTold: map[dataplane.ServiceName][]told[*corev1.Pod]{}, templatesTold: map[dataplane.ServiceName][]told[*spec.Template]{},
	}
	s.silences, s.badHeads = map[string]string{}, map[string][]spec.Notice{}
	s.decoder = decoder{seed: maphash.MakeSeed(), intern: &interner{}, configFile: o.ConfigFile, lockFile: o.LockFile, strict: o.StrictTree, namespace: o.Choice.Namespace}
	if o.Choice.Selector != "" {
		s.decoder.selector, _ = labels.Parse(o.Choice.Selector) // an invalid one selects all, and was refused before
	}
	return s
}

// Update replaces the named files. It returns the Snapshot of all files, and the Delta since the Snapshot before; the
// first has Delta.All. The other files are as in the last Update that succeeded. A Service that only moved within its
// file has its new Origin in the Snapshot and is not in the Delta.
//
// If the result is invalid, the error is spec.Problems: all problems, sorted by file and line; or a *spec.Refusal, which
// also has the notices. The Set is then unchanged, and the next Update must bring all changes since the last one that
// succeeded. The Snapshot then holds only the configuration, or is nil if that is invalid too or not given. The only other
// error is ctx's, with the same effect.
func (s *Set) Update(ctx context.Context, rev spec.Revision, files []File) (*spec.Snapshot, spec.Delta, error) {
	files = lastOfEach(files)
	parsed, err := s.decoder.parse(ctx, files, s.known, s.Holds)
	if err != nil {
		return nil, spec.Delta{}, err
	}
	defer forgetTexts(parsed)

	u := newUpdate(s)
	u.replace(files, parsed)
	u.settleTwice()
	u.skip(parsed)
	u.silence(files)
	snap := u.finish(rev)
	if problems := u.sortedProblems(); len(problems) > 0 {
		notices := u.notices()
		u.rollback()
		s.refused = map[string]*file{}
		for _, f := range parsed {
			s.refused[f.key] = f
		}
		return u.valid, spec.Delta{}, spec.Refuse(problems, notices)
	}
	delta := u.delta(snap)
	s.refused, s.last = nil, snap
	return snap, delta, nil
}

// known returns the documents that an earlier Update found in a file.
func (s *Set) known(path string) []doc {
	if f := s.refused[path]; f != nil && len(f.docs) > 0 {
		if good := s.files[path]; good != nil {
			return slices.Concat(good.docs, f.docs) // documents in the Set come first
		}
		return f.docs
	}
	if f := s.files[path]; f != nil {
		return f.docs
	}
	return nil
}

// Expect says by which allowed signers file the caller has the input of the next Updates checked. A configuration that demands
// another is refused. Without a call, what the configuration demands is the caller's matter.
func (s *Set) Expect(allowedSigners string) { s.signers = &allowedSigners }

// Holds reports whether the file of that path declares anything.
func (s *Set) Holds(path string) bool {
	f := s.files[path]
	return f != nil && slices.ContainsFunc(f.docs, func(d doc) bool { return d.declares() })
}

func forgetTexts(files []*file) {
	for _, f := range files {
		for _, d := range f.docs {
			d.text = document.Text{}
		}
	}
}

// lastOfEach sorts files by path. It keeps the last one of each path.
func lastOfEach(files []File) []File {
	sorted := true
	for i := 1; i < len(files); i++ {
		sorted = sorted && files[i-1].Path < files[i].Path
	}
	if sorted { // as those of a directory are, and a copy of all of them would be large
		return files
	}
	files = slices.Clone(files)
	slices.Reverse(files)
	slices.SortStableFunc(files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return slices.CompactFunc(files, func(a, b File) bool { return a.Path == b.Path })
}

// pools holds the ranges to allocate from.
type pools struct {
	families []corev1.IPFamily // in the order of the service CIDRs
	given    []netip.Prefix    // the service CIDRs, if a user set them
	ip       map[corev1.IPFamily]*pool[netip.Addr]
	foreign  *pool[netip.Addr] // addresses set by hand, of a family without a service CIDR
	port     *pool[uint16]
	min, max uint16
}

func newPools(w *spec.WeirConfiguration) pools {
	p := pools{ip: map[corev1.IPFamily]*pool[netip.Addr]{}, port: portPool(w.NodePortMin, w.NodePortMax),
		foreign: newPool(1, func(uint64) netip.Addr { return netip.Addr{} }, func(netip.Addr) bool { return false }), min: w.NodePortMin, max: w.NodePortMax}
	if w.ServiceCIDRsGiven {
		p.given = w.ServiceCIDRs
	}
	for _, cidr := range w.ServiceCIDRs {
		f := familyOf(cidr.Addr())
		if p.ip[f] == nil && cidr.Addr().BitLen()-cidr.Bits() >= 2 {
			p.families = append(p.families, f)
			p.ip[f] = addressPool(cidr)
		}
	}
	return p
}
