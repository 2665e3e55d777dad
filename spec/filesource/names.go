package filesource

import (
	"path"
	"strings"
)

// Reads reports whether a Source reads a file at this path, with slashes, below a directory of Options.Paths.
func Reads(below string) bool {
	for part := range strings.SplitSeq(below, "/") {
		if hidden(part) {
			return false
		}
	}
	return isManifest(path.Base(below))
}
