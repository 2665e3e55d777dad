package spec

import (
	"fmt"
	"strings"
)

// Origin is where an object was written: a file and line, or the resourceVersion an API gave.
type Origin struct {
	File            string // as the user named it: the path given to -f joined with the path below it; "-" for standard input
	Line            int    // from 1; 0 if it is not known
	ResourceVersion string
}

// String returns "file:line", "file", or "resourceVersion=N".
func (o Origin) String() string {
	switch {
	case o.File != "" && o.Line > 0:
		return fmt.Sprintf("%s:%d", o.File, o.Line)
	case o.File != "":
		return o.File
	case o.ResourceVersion != "":
		return "resourceVersion=" + o.ResourceVersion
	}
	return ""
}

// Problem is something wrong with what was written, or worth a notice. It says where, in what, and what to do.
type Problem struct {
	Origin Origin
	// Object is "Service default/web", or "" for a problem with the file itself.
	Object string
	// Field is the path of the field, such as "spec.ports[0].port", or "".
	Field string
	// Detail says what is wrong.
	Detail string
	// Code is set for the kinds of notices that are told apart, and "" for all others.
	Code Code
}

// Code tells kinds of notices apart.
type Code string

// The kinds of notices that are told apart.
const (
	// CodeOrphan is an EndpointSlice or Endpoints object that belongs to no Service.
	CodeOrphan Code = "orphan"
	// CodeUnpinned is a value that was allocated and is not in a weir.lock.yaml, though there is one.
	CodeUnpinned Code = "unpinned"
	// CodeStaleLock is what a weir.lock.yaml pins and no Service needs.
	CodeStaleLock Code = "stale-lock"
	// CodeNoEndpoints is a Service without endpoints.
	CodeNoEndpoints Code = "no-endpoints"
	// CodeSharedAddress is an external address and port of two Services.
	CodeSharedAddress Code = "shared-address"
	// CodeNotRendered is a Helm chart or a kustomization, which is not rendered here.
	CodeNotRendered Code = "not-rendered"
)

// Error returns "file:line: kind namespace/name: field: problem", without the parts that are not known.
func (p Problem) Error() string {
	var parts []string
	for _, s := range []string{p.Origin.String(), p.Object, p.Field, p.Detail} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	return strings.Join(parts, ": ")
}

// Problems is every reason why an input was refused.
type Problems []Problem

// Error returns one line for each problem.
func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, q := range p {
		lines[i] = q.Error()
	}
	return strings.Join(lines, "\n")
}
