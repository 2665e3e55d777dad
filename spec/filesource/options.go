package filesource

import (
	"os"
	"time"

	"github.com/hashicorp/go-hclog"

	"weir/spec"
)

// Options say what a Source reads, and its limits. A zero limit means the default.
type Options struct {
	// Paths are directories, files, or "-" for standard input, as the user named them. In a directory, files ending in
	// .yaml, .yml and .json, and those named Kustomization, are read at any depth; names that begin with a dot are
	// ignored. A file that is named here is read whatever its name is.
	Paths []string
	// Kustomize are directories with kustomizations, of which the Source reads what they render to.
	Kustomize []string
	// Config is a further file, which holds the KubeProxyConfiguration; "" means none.
	Config string
	// Lock is a further file, which may hold an AllocationLock and need not exist; "" means none.
	Lock string
	// Waiting, if set, is called if Load waits for standard input for seconds and nothing has come.
	Waiting func()
	// Overrides win over the WeirConfiguration of the files.
	Overrides spec.Overrides
	// Log receives messages for the operator that do not fit into an Update; nil means none.
	Log hclog.Logger

	// AllowOutsideLinks accepts symlinks that lead out of everything that Paths and Config name, and
	// kustomizations that read files outside of their Git work tree. They are refused by
	// default, because the author of the tree could make weir read any file of the node.
	AllowOutsideLinks bool

	// Unsigned reads the input whether its commit is signed or not, since it is only compared with.
	Unsigned bool

	// StrictTree refuses the input for every document and symlink that cannot be read, even for those that are of no kind
	// that weir reads.
	StrictTree bool

	// Reread asks for a full comparison by stat at once; nil never does.
	Reread <-chan os.Signal

	// MaxFileSize is the largest file accepted, in bytes. Default: 64 MiB.
	MaxFileSize int64
	// MaxTotalSize limits the sum of all files, in bytes. Default: 512 MiB.
	MaxTotalSize int64
	// MaxFiles limits the number of files. Default: 100,000.
	MaxFiles int

	// RescanInterval is the time between two full comparisons by stat, which find changes that no event reported, such
	// as a mount. Default: 30 s.
	RescanInterval time.Duration
	// PollInterval replaces RescanInterval while the kernel cannot notify. Default: 1 s.
	PollInterval time.Duration
}

func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	if o.MaxFileSize <= 0 {
		o.MaxFileSize = 64 << 20
	}
	if o.MaxTotalSize <= 0 {
		o.MaxTotalSize = 512 << 20
	}
	if o.MaxFiles <= 0 {
		o.MaxFiles = 100_000
	}
	if o.RescanInterval <= 0 {
		o.RescanInterval = 30 * time.Second
	}
	if o.PollInterval <= 0 {
		o.PollInterval = min(time.Second, o.RescanInterval)
	}
	return o
}
