package findings

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"weir/reconcile/review"
)

// Formats are the names of the formats that Write knows.
var Formats = []string{"json", "junit", "sarif", "github"}

// Write prints the Report in one of the Formats. Version is that of weir.
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

// Kind is that of the JSON form, whose apiVersion is review.APIVersion. What is documented in validation.schema.json
// holds for every document of this version; fields may be added to it.
const Kind = "Validation"

func (r Report) writeJSON(w io.Writer) error {
	doc := struct {
		APIVersion string    `json:"apiVersion"`
		Kind       string    `json:"kind"`
		Valid      bool      `json:"valid"`
		Summary    string    `json:"summary,omitempty"`
		Findings   []Finding `json:"findings"`
	}{review.APIVersion, Kind, r.Valid(), r.Summary, r.Findings}
	if doc.Findings == nil {
		doc.Findings = []Finding{}
	}
	return encode(w, doc)
}

func encode(w io.Writer, doc any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(doc)
}

// writeGitHub prints workflow commands, which GitHub shows at their lines in a pull request.
func (r Report) writeGitHub(w io.Writer) error {
	levels := map[string]string{SeverityError: "error", SeverityWarning: "warning", SeverityInfo: "notice"}
	var b strings.Builder
	for _, f := range r.Findings {
		var properties []string
		if f.File != "" {
			properties = append(properties, "file="+escapeProperty(review.Clean(relative(f.File))))
		}
		if f.Line > 0 {
			properties = append(properties, fmt.Sprintf("line=%d", f.Line))
		}
		properties = append(properties, "title="+escapeProperty("weir: "+string(f.Rule)))
		fmt.Fprintf(&b, "::%s %s::%s\n", levels[f.Severity], strings.Join(properties, ","), escapeData(f.message()))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// message is what a Finding says where its place is shown by other means.
func (f Finding) message() string {
	p := f.problem
	p.Origin.File, p.Origin.Line = "", 0
	return review.Clean(p.Error())
}

// The commands are lines, and a property ends at a comma or colon.
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

// writeJUnit prints a test case for the input as a whole, and one for each Finding: an error is a failure, all else passes
// and has something to say.
func (r Report) writeJUnit(w io.Writer) error {
	const class = "weir.validate"
	suite := junitSuite{Name: "weir validate", Cases: []junitCase{}}
	if r.Valid() {
		suite.Cases = append(suite.Cases, junitCase{Name: "the input is valid", ClassName: class, Out: xmlText(r.Summary)})
	}
	for _, f := range r.Findings {
		c := junitCase{Name: xmlText(f.String()), ClassName: class, Line: f.Line}
		if f.File != "" {
			c.File = xmlText(relative(f.File))
		}
		if f.Severity == SeverityError {
			c.Failure = &junitFailure{Message: xmlText(f.message()), Type: string(f.Rule), Text: xmlText(f.String())}
			suite.Failures++
		} else {
			c.Out = xmlText(string(f.Rule) + ": " + f.String())
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

// xmlText replaces what XML 1.0 has no way to write.
func xmlText(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' || r == '\n' || r >= 0x20 && r <= 0xD7FF || r >= 0xE000 && r <= 0xFFFD || r >= 0x10000 && r <= utf8.MaxRune {
			return r
		}
		return utf8.RuneError
	}, s)
}

// fileURI returns a file's name as SARIF wants it: a reference relative to the working directory, or an absolute URI.
func fileURI(file string) string {
	name := relative(file)
	if filepath.IsAbs(name) {
		return (&url.URL{Scheme: "file", Path: name}).String()
	}
	// A colon in the first part would be taken for a scheme.
	return strings.TrimPrefix((&url.URL{Path: "./" + name}).EscapedPath(), "./")
}
