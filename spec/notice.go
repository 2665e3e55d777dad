package spec

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"weir/backends/dataplane"
)

// Origin is the place where an object was written: a file and line, or the resourceVersion of an API object.
type Origin struct {
	File            string // as the user named it: the argument of -f joined with the path below it; "-" for standard input
	Line            int    // from 1; 0 if unknown
	ResourceVersion string
}

const resourceVersionPrefix = "resourceVersion="

// String returns "file:line", "file", or "resourceVersion=N". It is clean, whatever the file is called.
func (o Origin) String() string {
	switch {
	case o.File != "" && o.Line > 0:
		return Clean(o.File) + ":" + strconv.Itoa(o.Line)
	case o.File != "":
		return Clean(o.File)
	case o.ResourceVersion != "":
		return resourceVersionPrefix + o.ResourceVersion
	}
	return ""
}

// ParseOrigin returns the Origin whose String is text.
func ParseOrigin(text string) Origin {
	if version, ok := strings.CutPrefix(text, resourceVersionPrefix); ok {
		return Origin{ResourceVersion: version}
	}
	if i := strings.LastIndexByte(text, ':'); i > 0 {
		if line, err := strconv.Atoi(text[i+1:]); err == nil && line > 0 {
			return Origin{File: text[:i], Line: line}
		}
	}
	return Origin{File: text}
}

// Notice is something about the input that its author should know. It names the place, the object and what to do. Every
// Notice has an ID: NoticeID.Notice makes one of a kind from the registry, and a literal makes a Problem.
type Notice struct {
	id     NoticeID // "" means Invalid
	Origin Origin
	// Object is "Service default/web", or "" for a Notice about the file itself.
	Object string
	// Field is the path of the field, such as "spec.ports[0].port", or "".
	Field string
	// Detail is the fault, in words.
	Detail string
}

// Problem is a Notice of severity error: a reason to refuse the input.
type Problem = Notice

// Notice returns a Notice of this kind.
func (id NoticeID) Notice(origin Origin, object, field, detail string) Notice {
	return Notice{id: id, Origin: origin, Object: object, Field: field, Detail: detail}
}

// ID returns the kind of the Notice, which is never "".
func (n Notice) ID() NoticeID {
	if n.id == "" {
		return Invalid
	}
	return n.id
}

// Equal reports whether both Notices are equal. Packages that compare structs field by field need it because the ID is
// private.
func (n Notice) Equal(o Notice) bool { return n == o }

// Severity returns the severity of the Notice's kind.
func (n Notice) Severity() Severity { return n.ID().Severity() }

// Service returns the name of the Service that the Notice is about, or the zero ServiceName if it is about something else.
func (n Notice) Service() dataplane.ServiceName {
	if name, ok := strings.CutPrefix(n.Object, servicePrefix); ok {
		if namespace, name, ok := strings.Cut(name, "/"); ok {
			return dataplane.ServiceName{Namespace: namespace, Name: name}
		}
	}
	return dataplane.ServiceName{}
}

const servicePrefix = "Service "

// ServiceObject returns the Object of a Notice about the Service of that name.
func ServiceObject(name dataplane.ServiceName) string { return servicePrefix + name.String() }

// Error returns "file:line: kind namespace/name: field: detail", without the unknown parts. It is clean.
func (n Notice) Error() string {
	var parts []string
	for _, s := range []string{n.Origin.String(), n.Object, n.Field, n.Detail} {
		if s != "" {
			parts = append(parts, Clean(s))
		}
	}
	return strings.Join(parts, ": ")
}

// Problems holds every reason to refuse an input.
type Problems []Problem

// Error returns one line for each problem.
func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, q := range p {
		lines[i] = q.Error()
	}
	return strings.Join(lines, "\n")
}

// CheckNoticeIDs returns an error if a list such as "W005,W009" names a kind of notice that does not exist.
func CheckNoticeIDs(list string) error {
	for part := range noticeList(list) {
		if !slices.ContainsFunc(noticeKinds, func(k NoticeKind) bool { return k.ID.named(part) }) {
			return fmt.Errorf("%q is not the ID of a notice (weir help warnings lists them)", part)
		}
	}
	return nil
}

// Refusal is the error for an input that is refused and has notices besides. errors.As finds its Problems.
type Refusal struct {
	Problems
	Notices []Notice
}

// Refuse returns the error for an input with these problems and notices.
func Refuse(problems Problems, notices []Notice) error {
	if len(notices) == 0 {
		return problems
	}
	return &Refusal{problems, notices}
}

// Unwrap returns the Problems.
func (r *Refusal) Unwrap() error { return r.Problems }

// CheckNoticeList returns an error if a list of kinds or severities, such as "warning,W005", names one that does not exist.
func CheckNoticeList(list string) error {
	for part := range noticeList(list) {
		known := part == string(SeverityWarning) || part == string(SeverityInfo)
		for _, k := range noticeKinds {
			known = known || k.ID.named(part)
		}
		if !known {
			return fmt.Errorf("%q is neither warning or info, nor the ID of a notice (weir help warnings lists them)", part)
		}
	}
	return nil
}
