// Package filesource is a spec.Source over directories and files of YAML, typically a Git checkout or a mounted
// ConfigMap, which it watches.
package filesource

import (
	"time"

	"github.com/hashicorp/go-hclog"

	"weir/spec"
)

// Options say what a Source reads, and how much of it at most. Every zero limit stands for its default.
type Options struct {
	// Paths are directories, files, or "-" for standard input, as the user named them. In a directory, files ending in
	// .yaml, .yml and .json are read at any depth, and names that begin with a dot are ignored; a file that is named here
	// is read whatever its name is.
	Paths []string
	// Config is a further file, which holds the KubeProxyConfiguration; "" for none.
	Config string
	// Weir changes the WeirConfiguration that was read, as flags do; nil for none. It may be called at any time, and often.
	Weir func(*spec.WeirConfiguration)
	// Log receives what the operator should know and an Update cannot say; nil for none.
	Log hclog.Logger

	// MaxFileSize is the largest file accepted, in bytes. Default: 64 MiB.
	MaxFileSize int64
	// MaxTotalSize bounds the sum of all files, in bytes. Default: 512 MiB.
	MaxTotalSize int64
	// MaxFiles bounds the number of files. Default: 100,000.
	MaxFiles int

	// RescanInterval is the time between two comparisons of everything with what is known, by stat, which find what no
	// event reported, such as a mount. Default: 30 s.
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
