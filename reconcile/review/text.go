package review

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxLines is how many endpoints that come or go are listed of one Service port before they are counted instead. JSON and
// YAML have all of them.
const maxLines = 20

// Style is how text is printed.
type Style struct {
	// Paint colours a text for a sign ("+", "-", "~") or for "!"; nil for no colour.
	Paint func(sign, text string) string
}

func (s Style) paint(sign, text string) string {
	if s.Paint == nil {
		return text
	}
	return s.Paint(sign, text)
}

// WriteText prints the Plan for people.
func (p *Plan) WriteText(w io.Writer, style Style) error {
	t := &texter{style: style}
	t.line("%s → %s", p.From, p.To)
	for i := range p.Groups {
		t.group(p, &p.Groups[i])
	}
	for _, warning := range p.Warnings {
		t.warning(warning)
	}
	if len(p.Warnings) > 0 {
		t.line("")
	}
	t.line("%s", p.SummaryLine())
	_, err := io.WriteString(w, strings.ReplaceAll(t.b.String(), "\n\n\n", "\n\n"))
	return err
}

// String says what an Input is: "git origin/main (1a2b3c4)".
func (i Input) String() string {
	var parts []string
	switch i.Kind {
	case "files", "":
	case "git":
		parts = append(parts, "git")
	case "api":
		parts = append(parts, "the Kubernetes API")
	case "kernel":
		parts = append(parts, "this node's kernel")
	case "empty":
		parts = append(parts, "nothing")
	default:
		parts = append(parts, i.Kind)
	}
	if i.Name != "" {
		parts = append(parts, Clean(i.Name))
	}
	if r := i.Revision; r != "" {
		parts = append(parts, "("+Clean(shortRevision(r))+")")
	}
	return strings.Join(parts, " ")
}

// shortRevision shortens a commit ID or hash, and keeps what follows it.
func shortRevision(r string) string {
	id, rest, cut := strings.Cut(r, "-")
	if len(id) >= 40 {
		id = id[:12]
	}
	if cut {
		id += "-" + rest
	}
	return id
}

// SummaryLine counts in words.
func (p *Plan) SummaryLine() string {
	s := p.Summary
	var parts []string
	if p.Empty() {
		parts = append(parts, "Nothing to do")
	} else {
		parts = append(parts, fmt.Sprintf("%s: %d to add, %d to change, %d to remove", plural(s.Added+s.Changed+s.Removed, "Service"), s.Added, s.Changed, s.Removed))
	}
	if s.Unchanged > 0 {
		parts = append(parts, fmt.Sprintf("%d unchanged", s.Unchanged))
	}
	line := strings.Join(parts, ", ")
	if k := s.Kernel; k != nil && *k != (Count{}) {
		line += fmt.Sprintf("; kernel objects: %s", k)
	}
	if s.Isolated > 0 {
		line += fmt.Sprintf("; %d that cannot be programmed", s.Isolated)
	}
	if s.Nodes > 1 {
		line += fmt.Sprintf("; %d nodes", s.Nodes)
	}
	warnings := 0
	for _, w := range p.Warnings {
		if w.Severity == SeverityWarning {
			warnings++
		}
	}
	if warnings > 0 {
		line += "; " + plural(warnings, "warning")
	}
	if n := len(p.Warnings) - warnings; n > 0 {
		line += "; " + plural(n, "notice")
	}
	return line + "."
}

// String returns "3 to create, 1 to update, 0 to delete".
func (c Count) String() string {
	return fmt.Sprintf("%d to create, %d to update, %d to delete", c.Create, c.Update, c.Delete)
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

type texter struct {
	b     strings.Builder
	style Style
}

func (t *texter) line(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	t.b.WriteString(strings.TrimRight(text, " "))
	t.b.WriteByte('\n')
}

// signed prints a line that begins with the sign, so that Markdown's diff colours it as well.
func (t *texter) signed(op Op, format string, args ...any) {
	sign := op.sign()
	text := strings.TrimRight(fmt.Sprintf(format, args...), " ")
	t.line("%s", t.style.paint(sign, sign+" "+text))
}

func (t *texter) group(p *Plan, g *Group) {
	if len(p.Groups) > 1 || len(g.Nodes) > 1 {
		t.line("")
		t.line("%s", nodesText(g.Nodes))
	}
	if g.Mode != nil {
		t.line("")
		t.signed(Modify, "proxy mode %s → %s", g.Mode.Old, g.Mode.New)
	}
	for i := range g.Services {
		t.line("")
		t.service(&g.Services[i])
	}
	if len(g.Services) == 0 && g.Mode == nil && len(p.Groups) > 1 {
		t.line("  nothing changes")
	}
	t.line("")
	if g.Kernel != nil {
		t.kernel(g.Kernel)
	}
}

// nodesText names some nodes, and counts the rest.
func nodesText(nodes []string) string {
	const most = 8
	text := plural(len(nodes), "node") + ": "
	shown := nodes[:min(most, len(nodes))]
	for i, n := range shown {
		if i > 0 {
			text += ", "
		}
		text += Clean(n)
	}
	if more := len(nodes) - len(shown); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

func (t *texter) service(s *Service) {
	t.signed(s.Op, "%-44s %s", Clean(nameText(s.ServiceName())), Clean(s.Source))
	if s.Drift {
		t.line("    the kernel does not hold what was applied last: somebody else changed it")
	}
	if len(s.Ports) == 0 && s.Kernel != nil {
		t.line("    put right in the kernel: %s", s.Kernel)
	}
	for i := range s.Ports {
		t.port(&s.Ports[i])
	}
}

func (t *texter) port(p *Port) {
	name := ""
	if p.Name != "" {
		name = Clean(p.Name) + " "
	}
	t.signed(p.Op, "    %s%s %s", name, p.Protocol, p.Family)
	listed := map[Op]int{}
	for _, c := range p.Changes {
		if c.Field == FieldEndpoint || c.Field == FieldExternalEndpoint {
			if listed[c.Op]++; listed[c.Op] > maxLines {
				continue
			}
		}
		t.signed(c.Op, "        %s", changeText(c))
	}
	for _, op := range []Op{Add, Remove, Modify} {
		if more := listed[op] - maxLines; more > 0 {
			t.signed(op, "        and %s more", plural(more, "endpoint"))
		}
	}
}

// changeText returns "endpoint 10.0.0.1:80 weight 1 → weight 3".
func changeText(c Change) string {
	what := fmt.Sprintf("%-22s", c.Field)
	if c.Key != "" {
		what += " " + c.Key
	}
	if c.Op == Modify {
		return fmt.Sprintf("%s %s → %s", what, valueText(c.Old), valueText(c.New))
	}
	return what + " " + Clean(cmp.Or(c.New, c.Old))
}

func valueText(s string) string { return Clean(cmp.Or(s, "as others")) }

func (t *texter) kernel(k *Kernel) {
	blank := false
	for _, part := range []struct {
		what  string
		count Count
	}{
		{"weir's scaffolding", k.Scaffolding}, {"shared by several Services", k.Shared},
		{"weir's objects that nothing asks for (left over, or somebody else's)", k.Unclaimed},
	} {
		if part.count != (Count{}) {
			t.line("%s: %s", part.what, part.count)
			blank = true
		}
	}
	for _, i := range k.Isolated {
		t.line("%s", t.style.paint("!", "! not programmed: "+i.String()))
		blank = true
	}
	if blank {
		t.line("")
	}
	var last []string
	for _, r := range k.Rules {
		if !slices.Equal(r.For, last) {
			last = r.For
			t.line("# for %s", Clean(strings.Join(r.For, ", ")))
		}
		if r.Old != "" {
			t.lines(Remove, r.Old)
		}
		if r.New != "" {
			t.lines(Add, r.New)
		}
	}
	if len(k.Rules) > 0 {
		t.line("")
	}
	for _, p := range k.Programs {
		t.line("$ %s <<'EOF'", strings.Join(p.Args, " "))
		for l := range strings.Lines(p.Input) {
			t.line("%s", Clean(strings.TrimSuffix(l, "\n")))
		}
		t.line("EOF")
		t.line("")
	}
}

func (t *texter) lines(op Op, text string) {
	for l := range strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n") {
		t.signed(op, "%s", Clean(l))
	}
}

func (t *texter) warning(w Warning) {
	t.line("%s", t.style.paint("!", "! "+w.String()))
}

// String returns the Isolated as one line.
func (i Isolated) String() string { return joined(i.Source, i.Object, i.Error) }

// joined puts ": " between what is not empty.
func joined(parts ...string) string {
	var cleaned []string
	for _, p := range parts {
		if p != "" {
			cleaned = append(cleaned, Clean(p))
		}
	}
	return strings.Join(cleaned, ": ")
}

// String returns the warning as one line.
func (w Warning) String() string {
	text := joined(string(w.ID), w.Source, w.Object, w.Detail)
	if len(w.Nodes) > 0 {
		text += " (" + nodesText(w.Nodes) + ")"
	}
	return text
}

// Clean keeps what people wrote, such as a file's name, from steering a terminal or ending a line.
func Clean(s string) string {
	if !strings.ContainsFunc(s, unsafeRune) && utf8.ValidString(s) {
		return s
	}
	return strings.Map(func(r rune) rune {
		if unsafeRune(r) {
			return '\uFFFD'
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
}

func unsafeRune(r rune) bool { return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) }
