package changes

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"weir/spec"
)

// maxLines is how many added or removed endpoints of one Service port are listed; more are counted. JSON and YAML have
// all.
const maxLines = 20

// Style configures the text output.
type Style struct {
	// Paint colours a text for a sign ("+", "-", "~") or for "!"; nil means no colour.
	Paint func(sign, text string) string
	// Verbose prints each warning on a line of its own.
	Verbose bool
}

func (s Style) paint(sign, text string) string {
	if s.Paint == nil {
		return text
	}
	return s.Paint(sign, text)
}

// WriteText prints the Diff as text.
func (p *Diff) WriteText(w io.Writer, style Style) error {
	t := &texter{style: style}
	t.line("%s → %s", p.From, p.To)
	for i := range p.Groups {
		t.group(p, &p.Groups[i])
	}
	t.names(p.Names)
	t.warnings(p.Warnings)
	if len(p.Warnings) > 0 {
		t.line("")
	}
	t.line("%s", p.SummaryLine())
	_, err := io.WriteString(w, strings.ReplaceAll(t.b.String(), "\n\n\n", "\n\n"))
	return err
}

// String returns a description of the Input: "git origin/main (1a2b3c4)".
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
		parts = append(parts, spec.Clean(i.Name))
	}
	if r := i.Revision; r != "" {
		parts = append(parts, "("+spec.Clean(shortRevision(r))+")")
	}
	if i.LeftOut > 0 {
		parts = append(parts, fmt.Sprintf("without the files that have problems (%d)", i.LeftOut))
	}
	return strings.Join(parts, " ")
}

// shortRevision shortens a commit ID or hash, and keeps its suffix.
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

// SummaryLine returns the counts in words.
func (p *Diff) SummaryLine() string {
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
	if u := s.NotProxied; u != nil {
		line += fmt.Sprintf("; %d not proxied (%s)", u.Services, u.Kinds)
	}
	if k := s.Kernel; k != nil && *k != (count{}) {
		line += fmt.Sprintf("; kernel objects: %s", k)
	}
	if s.HeldBack > 0 {
		line += fmt.Sprintf("; %d held back", s.HeldBack)
	}
	if s.Nodes > 1 {
		line += fmt.Sprintf("; %d nodes", s.Nodes)
	}
	warnings := 0
	for _, w := range p.Warnings {
		if w.Severity() == spec.SeverityWarning {
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
func (c count) String() string {
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
func (t *texter) signed(op Action, format string, args ...any) {
	sign := op.sign()
	text := strings.TrimRight(fmt.Sprintf(format, args...), " ")
	t.line("%s", t.style.paint(sign, sign+" "+text))
}

// names prints the names that come and go, of which it counts those beyond maxLines.
func (t *texter) names(c *NameChanges) {
	if c == nil {
		return
	}
	t.line("names")
	for _, list := range []struct {
		op    Action
		names []string
	}{{Add, c.Added}, {Remove, c.Removed}} {
		for _, name := range list.names[:min(len(list.names), maxLines)] {
			t.signed(list.op, "%s", spec.Clean(name))
		}
		if more := len(list.names) - maxLines; more > 0 {
			t.signed(list.op, "%d more", more)
		}
	}
	t.line("")
}

func (t *texter) group(p *Diff, g *Group) {
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

// nodesText names a few nodes, and counts the rest.
func nodesText(nodes []string) string {
	const most = 8
	text := plural(len(nodes), "node") + ": "
	shown := nodes[:min(most, len(nodes))]
	for i, n := range shown {
		if i > 0 {
			text += ", "
		}
		text += spec.Clean(n)
	}
	if more := len(nodes) - len(shown); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

func (t *texter) service(s *serviceDiff) {
	t.signed(s.Op, "%-44s %s", spec.Clean(nameText(s.ServiceName())), spec.Clean(s.Source))
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

func (t *texter) port(p *portDiff) {
	name := ""
	if p.Name != "" {
		name = spec.Clean(p.Name) + " "
	}
	t.signed(p.Op, "    %s%s %s", name, p.Protocol, p.Family)
	listed := map[Action]int{}
	for _, c := range p.Changes {
		if c.Field == fieldEndpoint || c.Field == fieldExternalEndpoint {
			if listed[c.Op]++; listed[c.Op] > maxLines {
				continue
			}
		}
		t.signed(c.Op, "        %s", changeText(c))
	}
	for _, op := range []Action{Add, Remove, Modify} {
		if more := listed[op] - maxLines; more > 0 {
			t.signed(op, "        and %s more", plural(more, "endpoint"))
		}
	}
}

// changeText returns "endpoint 10.0.0.1:80 weight 1 → weight 3".
func changeText(c fieldChange) string {
	what := fmt.Sprintf("%-22s", c.Field)
	if c.Key != "" {
		what += " " + c.Key
	}
	if c.Op == Modify {
		return fmt.Sprintf("%s %s → %s", what, valueText(c.Old), valueText(c.New))
	}
	return what + " " + spec.Clean(cmp.Or(c.New, c.Old))
}

func valueText(s string) string { return spec.Clean(cmp.Or(s, "as others")) }

func (t *texter) kernel(k *kernelChanges) {
	blank := false
	for _, part := range []struct {
		what  string
		count count
	}{
		{"weir's scaffolding", k.Scaffolding}, {"shared by several Services", k.Shared},
		{"weir's objects that nothing asks for (left over, or made by another program)", k.Unclaimed},
	} {
		if part.count != (count{}) {
			t.line("%s: %s", part.what, part.count)
			blank = true
		}
	}
	for _, i := range k.HeldBack {
		t.line("%s", t.style.paint("!", "! held back: "+i.String()))
		blank = true
	}
	if blank {
		t.line("")
	}
	var last []string
	for _, r := range k.Rules {
		if !slices.Equal(r.For, last) {
			last = r.For
			t.line("# for %s", spec.Clean(strings.Join(r.For, ", ")))
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
		if p.Stdin == "" {
			t.line("$ %s", strings.Join(p.Args, " "))
			continue
		}
		t.line("$ %s <<'EOF'", strings.Join(p.Args, " "))
		for l := range strings.Lines(p.Stdin) {
			t.line("%s", spec.Clean(strings.TrimSuffix(l, "\n")))
		}
		t.line("EOF")
		t.line("")
	}
}

func (t *texter) lines(op Action, text string) {
	for l := range strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n") {
		t.signed(op, "%s", spec.Clean(l))
	}
}

// warnings prints the warnings grouped by the nodes that they hold for, and by their kind.
func (t *texter) warnings(all []Warning) {
	folded := false
	for _, g := range groupWarnings(all, t.style.Verbose) {
		t.line("%s", t.style.paint("!", "! "+g.String()))
		folded = folded || len(g.Notices) > 1
	}
	if folded {
		t.line("  (--verbose lists each of them)")
	}
}

// warningGroup holds warnings of one kind for the same nodes.
type warningGroup struct {
	NoticeGroup
	nodes []string
}

func groupWarnings(all []Warning, verbose bool) []warningGroup {
	var groups []warningGroup
	for len(all) > 0 {
		nodes := all[0].Nodes
		var these []spec.Notice
		var others []Warning
		for _, w := range all {
			if w.ID() == all[0].ID() && slices.Equal(w.Nodes, nodes) {
				these = append(these, w.Notice)
			} else {
				others = append(others, w)
			}
		}
		for _, g := range GroupNotices(these, verbose) {
			groups = append(groups, warningGroup{g, nodes})
		}
		all = others
	}
	return groups
}

// detail returns what the warnings say, and the nodes that they hold for.
func (g warningGroup) detail() string {
	text := g.Detail()
	if len(g.Notices) == 1 {
		text = joined(g.Notices[0].Object, text)
	}
	if len(g.nodes) > 0 {
		text += " (" + nodesText(g.nodes) + ")"
	}
	return text
}

// String returns the group on one line.
func (g warningGroup) String() string {
	if len(g.Notices) == 1 {
		return joined(string(g.ID), g.Notices[0].Origin.String(), g.detail())
	}
	return fmt.Sprintf("%s, %d times: %s: %s", g.ID, len(g.Notices), g.detail(), g.Places())
}

// String returns what is held back, and why, on one line.
func (i heldBack) String() string { return joined(i.Source, i.Object, i.Error) }

// joined joins the non-empty parts with ": ".
func joined(parts ...string) string {
	var cleaned []string
	for _, p := range parts {
		if p != "" {
			cleaned = append(cleaned, spec.Clean(p))
		}
	}
	return strings.Join(cleaned, ": ")
}
