package kustomize

import (
	"regexp"
	"strings"
	"unicode"
)

// maxDetail limits the text of an error of kustomize. The kustomization stands at its beginning, the cause at its end.
const (
	maxDetail = 400
	maxHead   = 120
)

var (
	// Kustomize first takes a path for a file and then for a directory, and tells both attempts of every level.
	notFile      = regexp.MustCompile(`accumulation err='accumulating resources from '[^']*': (?:read )?'?[^']*'? (?:must resolve to a file|is a directory)[^']*': recursed accumulation of path `)
	notDirectory = regexp.MustCompile(`: must build at directory: '[^']*': file is not directory`)
	resID        = regexp.MustCompile(`(\[noKind\]|[A-Z][A-Za-z]*)\.(?:v\d\w*|\[noVer\])\.(?:\[noGrp\]|[a-z0-9.-]+)/[^\s"':;,]+`)
	gvkAndName   = regexp.MustCompile(`\{\{([^{}]*)\} \{\{.*\}\}`)
	anchor       = regexp.MustCompile(`unknown anchor '[^']*'`)
	literal      = regexp.MustCompile(`literal sources \[.*`)
	scalar       = regexp.MustCompile("`[^`]*`|\"(?:[^\"\\\\]|\\\\.)*\"")
)

// explain returns the error of kustomize as one line, with paths as the kustomization sees them, and without what it quotes
// of documents. The names of objects stay only if weir reads their kind.
func (b *build) explain(err error) string {
	text := strings.Join(strings.Fields(err.Error()), " ")
	text = strings.ReplaceAll(text, b.dir+"/", "")
	text = notDirectory.ReplaceAllString(notFile.ReplaceAllString(text, "path "), "")
	text = resID.ReplaceAllStringFunc(text, func(id string) string {
		kind, _, _ := strings.Cut(id, ".")
		if i := strings.IndexByte(id, '/'); !isRead(kind) {
			return id[:i+1] + "..."
		}
		return id
	})
	text = gvkAndName.ReplaceAllString(text, "{$1}")
	text = anchor.ReplaceAllString(text, "unknown anchor")
	text = literal.ReplaceAllString(text, "a literal source is not key=value")
	text = scalar.ReplaceAllStringFunc(text, func(quoted string) string {
		if resID.MatchString(quoted) && !strings.Contains(quoted, " ") {
			return quoted
		}
		return "..."
	})
	if r := []rune(text); len(r) > maxDetail {
		text = string(r[:maxHead]) + " ... " + string(r[len(r)-maxDetail+maxHead:])
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}

// isRead reports whether weir reads a kind.
func isRead(kind string) bool {
	return kind == "Service" || kind == "Endpoints" || kind == "EndpointSlice" || kind == "Node"
}
