// Package findings tells what is wrong with an input, or worth a notice, in the formats that people, code review systems
// and test reports read.
package findings

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"weir/backends"
	"weir/reconcile"
	"weir/reconcile/review"
	"weir/spec"
)

// Rule names a kind of Finding. It is stable.
type Rule string

// The rules of what has no review.ID.
const (
	// Invalid is what an input is refused for.
	Invalid Rule = "invalid"
	// Notice is what the author should know.
	Notice Rule = "notice"
)

// The severities.
const (
	SeverityError   = "error"
	SeverityWarning = review.SeverityWarning
	SeverityInfo    = review.SeverityInfo
)

// Finding is one thing that is wrong, or worth a notice.
type Finding struct {
	Rule     Rule   `json:"rule"`
	Severity string `json:"severity"`
	// File is as the user named it, and Line counts from 1; both are left out where there is none.
	File   string `json:"file,omitempty"`
	Line   int    `json:"line,omitempty"`
	Object string `json:"object,omitempty"`
	Field  string `json:"field,omitempty"`
	Detail string `json:"detail"`

	problem spec.Problem
}

// String returns "file:line: object: field: detail" on one line, harmless to a terminal.
func (f Finding) String() string { return review.Clean(f.problem.Error()) }

func newFinding(rule Rule, severity string, p spec.Problem) Finding {
	f := Finding{Rule: rule, Severity: severity, File: p.Origin.File, Line: p.Origin.Line, Object: p.Object, Field: p.Field, Detail: p.Detail, problem: p}
	if f.File == "-" {
		f.File, f.Line = "", 0 // standard input is no file that anybody could open
	}
	return f
}

// Report is what there is to say about one input.
type Report struct {
	// Summary counts what was read, in words; "" if the input is not valid.
	Summary  string
	Findings []Finding
}

// Refused returns the Report of an input that cannot be used.
func Refused(err error) Report {
	var problems spec.Problems
	if !errors.As(err, &problems) {
		problems = spec.Problems{{Detail: err.Error()}}
	}
	r := Report{}
	for _, p := range problems {
		r.Findings = append(r.Findings, newFinding(Invalid, SeverityError, p))
	}
	return r
}

// Accepted returns the Report of an input that is valid: what its authors should know of it, and of how its Services
// resolve, whatever the node.
func Accepted(snap *spec.Snapshot, summary string) Report {
	r := Report{Summary: summary}
	silence := review.SilenceIn(snap)
	seen := map[string]bool{}
	tell := func(problems []spec.Problem, silenced string) {
		for _, p := range problems {
			rule, severity := ruleOf(p.Code)
			if text := p.Error(); !seen[text] && !review.Silenced(review.ID(rule), silenced) {
				seen[text] = true
				r.Findings = append(r.Findings, newFinding(rule, severity, p))
			}
		}
	}
	tell(snap.Notices, "")
	tell(unpinned(snap), "")
	node := reconcile.Node{Families: []backends.Family{backends.IPv4, backends.IPv6}}
	for svc := range snap.Services() {
		silenced := silence(backends.ServiceName(svc.Name))
		tell(svc.Notices, silenced)
		_, problems := reconcile.Resolve(svc, &node)
		tell(problems, silenced)
	}
	return r
}

// unpinned tells of allocated values where nothing is pinned yet, all at once.
func unpinned(snap *spec.Snapshot) []spec.Problem {
	values := 0
	for svc := range snap.Services() {
		values += len(svc.Allocated)
	}
	if len(snap.Locks) > 0 || values == 0 {
		return nil
	}
	return []spec.Problem{{Code: spec.CodeUnpinned, Detail: fmt.Sprintf(
		"allocated ClusterIPs and node ports are not pinned (%d in all), so that a new Service could displace them: weir allocate --write pins them", values)}}
}

// ruleOf returns the rule and severity of a notice.
func ruleOf(c spec.Code) (Rule, string) {
	if id := review.IDOf(c); id != "" {
		return Rule(id), id.Severity()
	}
	return Notice, SeverityWarning
}

// Valid says whether the input can be used.
func (r Report) Valid() bool { return r.Count(SeverityError) == 0 }

// Count returns how many Findings have a severity.
func (r Report) Count(severity string) int {
	n := 0
	for _, f := range r.Findings {
		if f.Severity == severity {
			n++
		}
	}
	return n
}

// relative returns the name of a file as the systems that show it in a review want it: relative to the working
// directory, if it is below that.
func relative(file string) string {
	if !filepath.IsAbs(file) {
		return filepath.ToSlash(filepath.Clean(file))
	}
	if dir, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(dir, file); err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
			return filepath.ToSlash(rel)
		}
	}
	return filepath.ToSlash(file)
}
