package filesource

import (
	"path"
	"strings"
)

// Reads says whether a file is read that lies at a path, with slashes, below a directory that Options.Paths names.
func Reads(below string) bool {
	for part := range strings.SplitSeq(below, "/") {
		if hidden(part) {
			return false
		}
	}
	return isManifest(path.Base(below))
}
