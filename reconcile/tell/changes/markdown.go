package changes

import (
	"fmt"
	"html"
	"io"
	"strings"
	"unicode/utf8"

	"weir/spec"
)

// maxMarkdown limits the Markdown, in bytes: GitHub accepts comments of at most 65,536 characters.
const maxMarkdown = 60_000

// maxListed limits the warnings in Markdown.
const maxListed = 100

// WriteMarkdown prints the Diff as a comment for a pull request: the summary visible, the changes folded.
func (p *Diff) WriteMarkdown(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "### weir: %s\n\n%s → %s\n", p.SummaryLine(), escape(p.From.String()), escape(p.To.String()))
	if len(p.Warnings) > 0 {
		b.WriteString("\n| warning | where | what |\n|---|---|---|\n")
		groups := groupWarnings(p.Warnings, false)
		for i, g := range groups {
			if i == maxListed {
				fmt.Fprintf(&b, "| | | and %d more |\n", len(groups)-i)
				break
			}
			id, where := string(g.ID), g.Notices[0].Origin.String()
			if n := len(g.Notices); n > 1 {
				id, where = fmt.Sprintf("%s, %d times", g.ID, n), g.Places()
			}
			fmt.Fprintf(&b, "| %s | %s | %s |\n", id, escape(where), escape(g.detail()))
		}
	}
	if p.Names != nil {
		t := &texter{}
		t.names(p.Names)
		fmt.Fprintf(&b, "\n```diff\n%s\n```\n", strings.TrimSpace(t.b.String()))
	}
	for i := range p.Groups {
		left := maxMarkdown - b.Len()
		if left < 1000 {
			fmt.Fprintf(&b, "\n*%s more: see the job's log for the whole plan.*\n", plural(len(p.Groups)-i, "group"))
			break
		}
		b.WriteString(p.details(&p.Groups[i], left))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// details renders one group in at most limit bytes, folded.
func (p *Diff) details(g *Group, limit int) string {
	t := &texter{}
	if g.Mode != nil {
		t.signed(Modify, "proxy mode %s → %s", g.Mode.Old, g.Mode.New)
	}
	for i := range g.Services {
		t.service(&g.Services[i])
	}
	if g.Kernel != nil {
		t.kernel(g.Kernel)
	}
	body := strings.TrimSpace(t.b.String())
	if body == "" {
		return ""
	}
	head := plural(len(g.Services), "Service")
	if len(g.Nodes) > 0 {
		head += " on " + escape(nodesText(g.Nodes))
	}
	// A fence longer than any inside cannot be closed by the content.
	fence := "```"
	for strings.Contains(body, fence) {
		fence += "`"
	}
	frame := fmt.Sprintf("\n<details><summary>%s</summary>\n\n%sdiff\n%%s\n%s\n\n</details>\n", strings.ReplaceAll(head, "%", "%%"), fence, fence)
	room := limit - len(frame) - 100
	if len(body) > room {
		body = body[:room]
		for !utf8.ValidString(body) {
			body = body[:len(body)-1]
		}
		body = body[:max(0, strings.LastIndexByte(body, '\n'))] + "\n# ... cut: see the job's log for the whole plan"
	}
	return fmt.Sprintf(frame, body)
}

// escape makes text of the input harmless in Markdown: no markup, no mention of users.
func escape(s string) string {
	s = html.EscapeString(spec.Clean(s))
	return strings.NewReplacer("|", "&#124;", "@", "&#64;", "`", "&#96;", "*", "&#42;", "_", "&#95;", "[", "&#91;", "]", "&#93;").Replace(s)
}
