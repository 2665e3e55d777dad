package findings

import (
	"encoding/xml"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"weir/reconcile/tell/changes"
	"weir/spec"
)

// Formats are the names of the formats that Write knows.
var Formats = []string{"json", "junit", "sarif", "github"}

// Write prints the Report in one of the Formats. version is weir's.
func (r Report) Write(w io.Writer, format, version string) error {
	switch format {
	case "json":
		return r.writeJSON(w)
	case "junit":
		return r.writeJUnit(w)
	case "sarif":
		return r.writeSARIF(w, version)
	case "github":
		return r.writeGitHub(w)
	}
	return fmt.Errorf("no format is called %q", format)
}

// Kind is the kind of the JSON form, whose apiVersion is changes.APIVersion. validation.schema.json holds for every
// document of this version; fields may be added to it.
const Kind = "Validation"

// finding is the JSON form of a Notice.
type finding struct {
	Rule     spec.NoticeID `json:"rule"`
	Severity spec.Severity `json:"severity"`
	File     string        `json:"file,omitempty"`
	Line     int           `json:"line,omitempty"`
	Object   string        `json:"object,omitempty"`
	Field    string        `json:"field,omitempty"`
	Detail   string        `json:"detail"`
}

// skipped is the JSON form of a spec.Skipped.
type skipped struct {
	File   string `json:"file,omitempty"`
	Line   int    `json:"line,omitempty"`
	Kind   string `json:"kind"`
	Reason string `json:"reason,omitempty"`
}

// skippedFiles is the JSON form of spec.SkippedFiles.
type skippedFiles struct {
	Charts         int `json:"charts"`
	Kustomizations int `json:"kustomizations"`
	Others         int `json:"others"`
	Excluded       int `json:"excluded,omitempty"`
	ExcludedDirs   int `json:"excludedDirectories,omitempty"`
}

func (r Report) writeJSON(w io.Writer) error {
	doc := struct {
		APIVersion   string        `json:"apiVersion"`
		Kind         string        `json:"kind"`
		Valid        bool          `json:"valid"`
		Summary      string        `json:"summary,omitempty"`
		Failures     int           `json:"failures,omitempty"`
		Findings     []finding     `json:"findings"`
		Skipped      []skipped     `json:"skipped,omitempty"`
		SkippedFiles *skippedFiles `json:"skippedFiles,omitempty"`
	}{APIVersion: changes.APIVersion, Kind: Kind, Valid: r.Valid(), Summary: r.Summary, Failures: r.Failures(), Findings: []finding{}}
	if r.SkippedFiles != (spec.SkippedFiles{}) {
		doc.SkippedFiles = (*skippedFiles)(&r.SkippedFiles)
	}
	for s := range r.Skipped.All() {
		file, line := place(spec.Notice{Origin: s.Origin})
		doc.Skipped = append(doc.Skipped, skipped{file, line, s.Kind, s.Reason})
	}
	for _, n := range r.Notices {
		file, line := place(n)
		doc.Findings = append(doc.Findings, finding{n.ID(), n.Severity(), file, line, n.Object, n.Field, n.Detail})
	}
	return spec.WriteJSON(w, doc, false)
}

// writeGitHub prints workflow commands, which GitHub shows beside their lines in a pull request.
func (r Report) writeGitHub(w io.Writer) error {
	levels := map[spec.Severity]string{spec.SeverityError: "error", spec.SeverityWarning: "warning", spec.SeverityInfo: "notice"}
	var b strings.Builder
	for _, n := range r.Notices {
		var properties []string
		file, line := place(n)
		if file != "" {
			properties = append(properties, "file="+escapeProperty(spec.Clean(relative(file))))
		}
		if line > 0 {
			properties = append(properties, fmt.Sprintf("line=%d", line))
		}
		properties = append(properties, "title="+escapeProperty("weir: "+string(n.ID())))
		fmt.Fprintf(&b, "::%s %s::%s\n", levels[n.Severity()], strings.Join(properties, ","), escapeData(message(n)))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// A command is one line, and a property ends at a comma or colon.
var (
	data     = strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A")
	property = strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A", ":", "%3A", ",", "%2C")
)

func escapeData(s string) string     { return data.Replace(s) }
func escapeProperty(s string) string { return property.Replace(s) }

type junitSuites struct {
	XMLName  xml.Name     `xml:"testsuites"`
	Name     string       `xml:"name,attr"`
	Tests    int          `xml:"tests,attr"`
	Failures int          `xml:"failures,attr"`
	Suites   []junitSuite `xml:"testsuite"`
}

type junitSuite struct {
	Name     string      `xml:"name,attr"`
	Tests    int         `xml:"tests,attr"`
	Failures int         `xml:"failures,attr"`
	Cases    []junitCase `xml:"testcase"`
}

type junitCase struct {
	Name      string        `xml:"name,attr"`
	ClassName string        `xml:"classname,attr"`
	File      string        `xml:"file,attr,omitempty"`
	Line      int           `xml:"line,attr,omitempty"`
	Failure   *junitFailure `xml:"failure"`
	Out       string        `xml:"system-out,omitempty"`
}

type junitFailure struct {
	Message string `xml:"message,attr"`
	Type    string `xml:"type,attr"`
	Text    string `xml:",chardata"`
}

// writeJUnit prints a test case for the whole input, and one for each Notice: an error is a failure, as is what FailOn
// names. Any other passes with output.
func (r Report) writeJUnit(w io.Writer) error {
	const class = "weir.validate"
	suite := junitSuite{Name: "weir validate", Cases: []junitCase{}}
	if r.Valid() {
		suite.Cases = append(suite.Cases, junitCase{Name: "the input is valid", ClassName: class, Out: xmlText(r.Summary)})
	}
	for _, n := range r.Notices {
		file, at := place(n)
		text := xmlText(line(n))
		c := junitCase{Name: text, ClassName: class, Line: at}
		if file != "" {
			c.File = xmlText(spec.Clean(relative(file)))
		}
		if n.Severity() == spec.SeverityError || n.Selected(r.FailOn) {
			c.Failure = &junitFailure{Message: xmlText(message(n)), Type: string(n.ID()), Text: text}
			suite.Failures++
		} else {
			c.Out = string(n.ID()) + ": " + text
		}
		suite.Cases = append(suite.Cases, c)
	}
	suite.Tests = len(suite.Cases)
	doc := junitSuites{Name: suite.Name, Tests: suite.Tests, Failures: suite.Failures, Suites: []junitSuite{suite}}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	enc := xml.NewEncoder(w)
	enc.Indent("", "  ")
	if err := enc.Encode(doc); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}

// xmlText replaces characters that XML 1.0 cannot represent.
func xmlText(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' || r == '\n' || r >= 0x20 && r <= 0xD7FF || r >= 0xE000 && r <= 0xFFFD || r >= 0x10000 && r <= utf8.MaxRune {
			return r
		}
		return utf8.RuneError
	}, s)
}

// fileURI returns a file's name as SARIF requires: a reference relative to the working directory, or an absolute URI.
func fileURI(file string) string {
	name := relative(file)
	if filepath.IsAbs(name) {
		return (&url.URL{Scheme: "file", Path: name}).String()
	}
	// A colon in the first part would look like a scheme.
	return strings.TrimPrefix((&url.URL{Path: "./" + name}).EscapedPath(), "./")
}
