package status

import (
	"fmt"
	"io"
	"strings"
	"time"

	"weir/reconcile/tell/changes"
	"weir/spec"
)

// WriteText prints the Status as text.
func (s *Status) WriteText(w io.Writer) error {
	var b strings.Builder
	if s.Version != "" && s.asker != "" && s.Version != s.asker {
		fmt.Fprintf(&b, "version   %s runs, and this program is %s: weir handover, or a restart\n", strings.Map(printable, s.Version), s.asker)
	}
	if s.Node != "" {
		fmt.Fprintf(&b, "node      %s\n", s.Node)
	}
	if s.Mode != "" {
		fmt.Fprintf(&b, "mode      %s", s.Mode)
		if s.ModeReason != "" {
			fmt.Fprintf(&b, " (%s)", s.ModeReason)
		}
		b.WriteString("\n")
	}
	if s.Revision != "" {
		fmt.Fprintf(&b, "revision  %s", s.Revision)
		if s.Signer != "" {
			fmt.Fprintf(&b, ", signed by %s", strings.Map(printable, s.Signer))
		}
		b.WriteString("\n")
	} else {
		fmt.Fprintf(&b, "in force  %s\n", strings.Map(printable, s.InForce))
	}
	if s.Kept != "" {
		fmt.Fprintf(&b, "kept      %s, by an earlier run: not all of the input can be read yet, and nothing is deleted meanwhile\n", s.Kept)
	}
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
	s.writeRefused(&b)
	for _, a := range s.Away {
		fmt.Fprintf(&b, "away      %s, since %s: %s\n          %s\n", strings.Map(printable, a.Source), a.Since, strings.Map(printable, a.Error), strings.Map(printable, a.Stands))
	}
	s.writeNotices(&b)
	for i := range s.Services {
		s.Services[i].writeText(&b)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (s *Status) writeNotices(b *strings.Builder) {
	all := make([]spec.Notice, len(s.Notices))
	for i, n := range s.Notices {
		all[i] = n.Notice
	}
	for i, g := range changes.GroupNotices(all, s.each) {
		label := "notices"
		if i > 0 {
			label = ""
		}
		fmt.Fprintf(b, "%-9s %s [%s]\n", label, g, g.ID.Short())
	}
}

// printable replaces characters that could control a terminal.
func printable(r rune) rune {
	if r < ' ' || r >= 0x7f && r < 0xa0 {
		return '\uFFFD'
	}
	return r
}

// writeRefused prints what is not in force, and why.
func (s *Status) writeRefused(b *strings.Builder) {
	r := s.Refused
	if r == nil {
		return
	}
	if s.Revision == "" && r.Revision != "" {
		fmt.Fprintf(b, "refused   revision %s, since %s:\n", r.Revision, r.Since)
	} else if r.Revision == s.Revision || r.Revision == "" { // a runtime or an API has no revision while it is away
		fmt.Fprintf(b, "not read  since %s; it stays as it was last good:\n", r.Since)
	} else {
		fmt.Fprintf(b, "refused   revision %s, since %s; the one above stays:\n", r.Revision, r.Since)
	}
	for _, e := range r.Errors {
		fmt.Fprintf(b, "          %s\n", strings.Map(printable, e))
	}
}

// writeText prints the Service with its ports, endpoints and probes.
func (svc *Service) writeText(b *strings.Builder) {
	line := fmt.Sprintf("%-44s %s", svc.Namespace+"/"+svc.Name, strings.Map(printable, svc.Source))
	fmt.Fprintf(b, "\n%s\n", strings.TrimRight(line, " "))
	if svc.Error != "" {
		fmt.Fprintf(b, "    held back: %s\n", strings.Map(printable, svc.Error))
	}
	for _, p := range svc.Ports {
		fmt.Fprintf(b, "    %s\n", p)
		if p.Answered {
			b.WriteString("        weir itself\n")
		}
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
		if len(p.Endpoints) == 0 && !p.Answered {
			b.WriteString("        no endpoints\n")
		}
	}
	if svc.Probes != nil {
		svc.Probes.writeText(b)
	}
}
