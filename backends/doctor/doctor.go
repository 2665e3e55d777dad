// Package doctor holds the words in which each backend says what it needs of a node, what of it is there, and the command
// that mends what is not. Examinations read and change nothing: not even a module is loaded.
package doctor

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// State says how things are.
type State string

// The states.
const (
	OK      State = "ok"
	Advice  State = "advice"  // it works, and something is not as it should be
	Missing State = "missing" // it does not work without
)

// Check is one thing that was looked at.
type Check struct {
	Name   string `json:"name"`
	State  State  `json:"state"`
	Detail string `json:"detail"`
	// Mend is a command, to be run as root on the node; "" if no command mends it.
	Mend string `json:"mend,omitempty"`
}

// Section is what was looked at for one mode, or for all of them.
type Section struct {
	Name   string  `json:"name"`
	Checks []Check `json:"checks"`
	// NeedsOneOf names other sections, one of which has to be usable too.
	NeedsOneOf []string `json:"needsOneOf,omitempty"`
	Usable     bool     `json:"usable"`
}

// Report is the whole of an examination.
type Report struct {
	// Mode is the one that weir would use here, or was asked about; "" if it could use none.
	Mode string `json:"mode"`
	// Usable says whether Mode can run.
	Usable   bool      `json:"usable"`
	Node     []Check   `json:"node"`
	Sections []Section `json:"modes"`
}

// NewReport works out which sections are usable. The mode is the one that was asked about, or else the first usable one of
// preferred.
func NewReport(node []Check, sections []Section, asked string, preferred ...string) Report {
	r := Report{Mode: asked, Node: node, Sections: sections}
	usable := func(name string) bool {
		i := slices.IndexFunc(r.Sections, func(s Section) bool { return s.Name == name })
		return i >= 0 && r.Sections[i].Usable
	}
	for i := range r.Sections { // a section comes after those that it needs
		s := &r.Sections[i]
		s.Usable = !slices.ContainsFunc(s.Checks, func(c Check) bool { return c.State == Missing }) &&
			(len(s.NeedsOneOf) == 0 || slices.ContainsFunc(s.NeedsOneOf, usable))
	}
	if asked == "" {
		if i := slices.IndexFunc(preferred, usable); i >= 0 {
			r.Mode = preferred[i]
		}
	}
	r.Usable = usable(r.Mode)
	return r
}

// WriteText prints the report for people. paint may colour a text that stands for a state; nil leaves it as it is.
func (r Report) WriteText(w io.Writer, paint func(State, string) string) error {
	if paint == nil {
		paint = func(_ State, text string) string { return text }
	}
	var b strings.Builder
	width := 0
	for _, c := range r.all() {
		width = max(width, len(c.Name))
	}
	write := func(checks []Check) {
		for _, c := range checks {
			state := paint(c.State, fmt.Sprintf("%-7s", c.State))
			fmt.Fprintf(&b, "  %s  %-*s  %s\n", state, width, c.Name, strings.ReplaceAll(c.Detail, "\n", "; "))
			if c.Mend != "" && c.State != OK {
				fmt.Fprintf(&b, "  %7s  %*s  # %s\n", "", width, "", c.Mend)
			}
		}
	}
	b.WriteString("node\n")
	write(r.Node)
	for _, s := range r.Sections {
		fmt.Fprintf(&b, "\nmode %s: %s\n", s.Name, s.verdict(paint))
		write(s.Checks)
	}
	b.WriteString("\n" + r.verdict() + "\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func (r Report) all() []Check {
	all := slices.Clone(r.Node)
	for _, s := range r.Sections {
		all = append(all, s.Checks...)
	}
	return all
}

func (s Section) verdict(paint func(State, string) string) string {
	switch {
	case s.Usable:
		return paint(OK, "can run")
	case slices.ContainsFunc(s.Checks, func(c Check) bool { return c.State == Missing }):
		return paint(Missing, "cannot run")
	}
	return paint(Missing, "cannot run") + ", since it needs what mode " + strings.Join(s.NeedsOneOf, " or ") + " needs"
}

func (r Report) verdict() string {
	switch {
	case r.Mode == "":
		return "weir can use none of the modes here, but for userspace with --rootless."
	case r.Usable:
		return "weir can run here in mode " + r.Mode + "."
	}
	return "weir cannot run here in mode " + r.Mode + "."
}
