// Package findings reports the problems and notices of an input in the formats that users, code review systems and test
// reports read. Report is its type: Refused and Accepted make one, and Write prints it. The package reads no input
// itself. cmd/weir imports it for weir validate.
package findings

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"weir/reconcile/tell/changes"
	"weir/spec"
)

// Report holds all problems and notices of one input.
type Report struct {
	// Summary counts the objects, in words; "" if the input is not valid.
	Summary string
	Notices []spec.Notice
	// FailOn lists the severities and IDs of notices for which a valid input fails, as --fail-on has them.
	FailOn string
	// Skipped are the documents that were left out, and SkippedFiles counts the files of which nothing was used.
	Skipped      spec.SkippedDocuments
	SkippedFiles spec.SkippedFiles
}

// Refused returns the Report of an input that cannot be used.
func Refused(err error) Report {
	var problems spec.Problems
	if !errors.As(err, &problems) {
		problems = spec.Problems{{Detail: err.Error()}}
	}
	report := Report{Notices: problems}
	if refusal := (*spec.Refusal)(nil); errors.As(err, &refusal) {
		report.Notices = slices.Concat(problems, refusal.Notices)
	}
	return report
}

// Accepted returns the Report of a valid input: the notices about it, and about how its Services resolve on any node.
func Accepted(snap *spec.Snapshot, summary string) Report {
	return Report{Summary: summary, Notices: append(unpinned(snap), changes.InputNotices(snap, nil)...),
		Skipped: snap.SkippedDocuments, SkippedFiles: snap.SkippedFiles}
}

// unpinned makes one notice of all unpinned allocations if nothing is pinned yet.
func unpinned(snap *spec.Snapshot) []spec.Notice {
	values := 0
	for svc := range snap.Services.All() {
		values += len(svc.Allocated)
	}
	if len(snap.Locks) > 0 || values == 0 {
		return nil
	}
	n := spec.UnpinnedAllocation.Notice(spec.Origin{}, "", "", fmt.Sprintf(
		"allocated ClusterIPs and node ports are not pinned (%d in all), so that a new Service could displace them: weir allocate --write pins them", values))
	if changes.Silenced(n, snap) {
		return nil
	}
	return []spec.Notice{n}
}

// Valid reports whether the input can be used.
func (r Report) Valid() bool { return r.Problems() == 0 }

// Problems returns the number of reasons to refuse the input.
func (r Report) Problems() int {
	n := 0
	for _, notice := range r.Notices {
		if notice.Severity() == spec.SeverityError {
			n++
		}
	}
	return n
}

// Failures returns the number of notices that FailOn names.
func (r Report) Failures() int {
	n := 0
	for _, notice := range r.Notices {
		if notice.Selected(r.FailOn) {
			n++
		}
	}
	return n
}

// line returns "file:line: object: field: detail" on one line that cannot control a terminal.
func line(n spec.Notice) string { return spec.Clean(n.Error()) }

// message returns the text of a Notice without its place, for formats that show the place by other means.
func message(n spec.Notice) string {
	n.Origin.File, n.Origin.Line = "", 0
	return spec.Clean(n.Error())
}

// place returns the file, as the user named it, and the line of a Notice. Standard input has no file.
func place(n spec.Notice) (file string, line int) {
	if n.Origin.File == "-" {
		return "", 0
	}
	return n.Origin.File, n.Origin.Line
}

// relative returns the name of a file for review systems: relative to the working directory if it is below that.
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
