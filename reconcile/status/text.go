package status

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// WriteText prints the Status for people.
func (s *Status) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "node      %s\nmode      %s", s.Node, s.Mode)
	if s.ModeReason != "" {
		fmt.Fprintf(&b, " (%s)", s.ModeReason)
	}
	fmt.Fprintf(&b, "\nrevision  %s\n", s.Revision)
	if l := s.LastSync; l != nil {
		total := time.Duration(l.Seconds["total"] * float64(time.Second)).Round(100 * time.Microsecond)
		fmt.Fprintf(&b, "last sync %s: %s, %v: %d created, %d updated, %d deleted\n", l.Time, l.Reason, total, l.Created, l.Updated, l.Deleted)
		if l.Error != "" {
			fmt.Fprintf(&b, "          failed: %q\n", l.Error)
		}
	}
	fmt.Fprintf(&b, "drift     %d repaired\n", s.DriftRepaired)
	if s.TrafficError != "" {
		fmt.Fprintf(&b, "traffic   not known: %q\n", s.TrafficError)
	}
	if r := s.Refused; r != nil {
		fmt.Fprintf(&b, "refused   revision %s, since %s; the one above stays:\n", r.Revision, r.Since)
		for _, e := range r.Errors {
			fmt.Fprintf(&b, "          %s\n", strings.Map(printable, e))
		}
	}
	for _, svc := range s.Services {
		line := fmt.Sprintf("%-44s %s", svc.Namespace+"/"+svc.Name, strings.Map(printable, svc.Source))
		fmt.Fprintf(&b, "\n%s\n", strings.TrimRight(line, " "))
		if svc.Error != "" {
			fmt.Fprintf(&b, "    not as asked for: %s\n", strings.Map(printable, svc.Error))
		}
		for _, p := range svc.Ports {
			fmt.Fprintf(&b, "    %s\n", p)
			for _, ep := range p.Endpoints {
				line := "        " + ep.Address
				if ep.Weight > 1 {
					line += fmt.Sprintf(" weight %d", ep.Weight)
				}
				if ep.State != "" {
					line += " " + ep.State
				}
				b.WriteString(line + "\n")
			}
			if len(p.Endpoints) == 0 {
				b.WriteString("        no endpoints\n")
			}
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// printable keeps what people wrote from steering a terminal.
func printable(r rune) rune {
	if r < ' ' || r >= 0x7f && r < 0xa0 {
		return '\uFFFD'
	}
	return r
}
