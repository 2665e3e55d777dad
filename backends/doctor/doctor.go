// Package doctor holds the vocabulary of examinations: a Check is one requirement of a backend on this node, its State,
// and the command that mends it. A Report holds the Checks of all modes.
//
// The package does not know the requirements; each backend has a Doctor function that returns its Checks. An
// examination changes nothing: it does not even load a module. Every backend and cmd may import the package.
package doctor

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// State is the result of a Check.
type State string

// The states.
const (
	OK      State = "ok"
	Advice  State = "advice"  // it works, but should be improved
	Missing State = "missing" // it does not work without
)

// Check is one requirement that was examined.
type Check struct {
	Name   string `json:"name"`
	State  State  `json:"state"`
	Detail string `json:"detail"`
	// Mend is a command that mends it, to be run as root on the node; "" if there is none.
	Mend string `json:"mend,omitempty"`
}

// Section holds the checks of one mode, or of all modes.
type Section struct {
	Name   string  `json:"name"`
	Checks []Check `json:"checks"`
	// NeedsOneOf names other sections, one of which must be usable too.
	NeedsOneOf []string `json:"needsOneOf,omitempty"`
	Usable     bool     `json:"usable"`
}

// Report is the result of a whole examination.
type Report struct {
	// Mode is the mode that was asked about, or else the one that weir would use here. It is "" if weir could use none.
	Mode string `json:"mode"`
	// Usable reports whether Mode can run.
	Usable   bool      `json:"usable"`
	Node     []Check   `json:"node"`
	Sections []Section `json:"modes"`

	asked bool // Mode was asked about
}

// NewReport determines which sections are usable. Its Mode is the mode that was asked about, or else the first usable
// one of preferred.
func NewReport(node []Check, sections []Section, asked string, preferred ...string) Report {
	r := Report{Mode: asked, Node: node, Sections: sections, asked: asked != ""}
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

// WriteText prints the report for people. paint may colour the text of a state; nil leaves it plain.
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
		}
	}
	b.WriteString("node\n")
	write(r.Node)
	for _, s := range r.Sections {
		fmt.Fprintf(&b, "\nmode %s: %s\n", s.Name, s.verdict(paint))
		write(s.Checks)
	}
	r.writeRemedies(&b)
	b.WriteString("\n" + r.verdict() + "\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// writeRemedies prints each command once, with what it mends.
func (r Report) writeRemedies(b *strings.Builder) {
	mends := map[string][]string{}
	var commands []string
	for _, c := range r.all() {
		if c.Mend == "" || c.State == OK {
			continue
		}
		if mends[c.Mend] == nil {
			commands = append(commands, c.Mend)
		}
		if !slices.Contains(mends[c.Mend], c.Name) {
			mends[c.Mend] = append(mends[c.Mend], c.Name)
		}
	}
	if len(commands) > 0 {
		b.WriteString("\nremedies, each to be run as root\n")
	}
	for _, command := range commands {
		fmt.Fprintf(b, "  # %s\n      for %s\n", command, strings.Join(mends[command], ", "))
	}
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

// others names the other modes that can run, unless one mode was asked about.
func (r Report) others() string {
	var names []string
	for _, s := range r.Sections {
		if s.Usable && s.Name != r.Mode && !r.asked {
			names = append(names, s.Name)
		}
	}
	switch len(names) {
	case 0:
		return ""
	case 1:
		return ", and in mode " + names[0]
	}
	return ", and in modes " + strings.Join(names[:len(names)-1], ", ") + " and " + names[len(names)-1]
}

func (r Report) verdict() string {
	switch {
	case r.Mode == "":
		return "weir can use none of the modes here, but for userspace with --rootless."
	case r.Usable:
		return "weir can run here in mode " + r.Mode + r.others() + "."
	}
	return "weir cannot run here in mode " + r.Mode + "."
}
