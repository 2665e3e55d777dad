package ipvs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"weir/backends"
)

// maxLine bounds a line of iptables-save. A rule is far shorter.
const maxLine = 64 << 10

// misplaced marks a hook that packets may not reach.
const misplaced = "\n(behind rules that end the walk)"

// readTables returns the chains and hooks that are weir's.
func (b *Backend) readTables(ctx context.Context) ([]Rules, error) {
	var all []Rules
	for _, f := range b.cfg.Families {
		found, err := b.readFamily(ctx, f)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

func (b *Backend) readFamily(ctx context.Context, f backends.Family) ([]Rules, error) {
	saved, err := b.tables.Save(ctx, f, "")
	if err != nil {
		return nil, fmt.Errorf("read the tables of %s: %w", f, err)
	}
	found, err := parseSave(saved, tag(f)+" ")
	if err = errors.Join(err, saved.Close()); err != nil {
		return nil, fmt.Errorf("read the tables of %s: %w", f, err)
	}
	return found, nil
}

// parseSave reads what iptables-save printed. family is what IDs in it begin with.
func parseSave(r io.Reader, family string) (all []Rules, err error) {
	var t *tableReader
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		line := lines.Text()
		if name, ok := strings.CutPrefix(line, "*"); ok {
			all = append(all, t.rules()...)
			t = &tableReader{at: family + name + " ", chains: map[string]*strings.Builder{}, walled: map[string]bool{}, copies: map[string]int{}}
			continue
		}
		if t != nil {
			t.read(line)
		}
	}
	return append(all, t.rules()...), lines.Err()
}

// tableReader gathers what is weir's in one table.
type tableReader struct {
	at     string // what IDs in it begin with
	chains map[string]*strings.Builder
	order  []string // of the chains
	hooks  []Rules
	walled map[string]bool // built-in chains in which no packet may come any further
	copies map[string]int  // of hooks
}

func (t *tableReader) read(line string) {
	if name, ok := strings.CutPrefix(line, ":"+prefix); ok {
		name, _, _ = strings.Cut(prefix+name, " ")
		t.chains[name] = &strings.Builder{}
		t.chains[name].WriteString(t.at + name)
		t.order = append(t.order, name)
		return
	}
	rest, ok := strings.CutPrefix(line, "-A ")
	if !ok {
		return
	}
	name, rule, _ := strings.Cut(rest, " ")
	switch target := jumpTarget(rule); {
	case t.chains[name] != nil:
		t.chains[name].WriteString("\n" + line)
	case strings.ToUpper(name) == name && strings.HasPrefix(target, prefix):
		t.hook(name, rule)
	default:
		t.walled[name] = t.walled[name] || endsWalk(rule, target)
	}
}

func (t *tableReader) hook(chain, rule string) {
	id := t.at + chain + " " + rule
	switch t.copies[id]++; {
	case t.copies[id] > 1:
		id += " (" + strconv.Itoa(t.copies[id]) + ")"
	case t.walled[chain]:
		id += misplaced
	}
	t.hooks = append(t.hooks, Rules(id))
}

func (t *tableReader) rules() []Rules {
	if t == nil {
		return nil
	}
	all := t.hooks
	for _, name := range t.order {
		all = append(all, Rules(t.chains[name].String()))
	}
	return all
}

// jumpTarget returns what a rule jumps or goes to. Text in quotation marks, such as a comment, counts for nothing.
func jumpTarget(rule string) string {
	quoted, words := false, strings.Fields(rule)
	for i, w := range words {
		if !quoted && (w == "-j" || w == "-g") && i+1 < len(words) {
			return words[i+1]
		}
		if strings.Count(w, `"`)-strings.Count(w, `\"`) == 1 {
			quoted = !quoted
		}
	}
	return ""
}

// endsWalk says whether a packet that matches the rule may never come to the next one. Jumps to chains of others do not
// count: many programs want theirs to be the first.
func endsWalk(rule, target string) bool {
	switch target {
	case "ACCEPT", "DROP", "REJECT", "RETURN", "DNAT", "SNAT", "REDIRECT", "MASQUERADE", "NETMAP", "QUEUE", "NFQUEUE":
		return true
	}
	return strings.HasPrefix(rule, "-g ") || strings.Contains(rule, " -g ")
}

// place is what the ID of Rules says. rule is "" for a chain.
type place struct {
	family             backends.Family
	table, chain, rule string
}

func placeOf(id backends.ID) place {
	words := strings.SplitN(string(id), " ", 4)
	if len(words) < 3 {
		return place{}
	}
	p := place{family: backends.IPv4, table: words[1], chain: words[2]}
	if words[0] == "ip6" {
		p.family = backends.IPv6
	}
	if len(words) == 4 {
		p.rule = words[3]
		if i := strings.LastIndex(p.rule, " ("); i > 0 && strings.HasSuffix(p.rule, ")") {
			p.rule = p.rule[:i] // a further copy
		}
	}
	return p
}

// restore has the changes to chains and hooks made, in one run of iptables-restore for each family.
func (b *Backend) restore(ctx context.Context, changes []backends.Change) error {
	if len(changes) == 0 {
		return nil
	}
	for _, f := range b.cfg.Families {
		if !slices.ContainsFunc(changes, func(c backends.Change) bool { return placeOf(c.ID).family == f }) {
			continue
		}
		there, err := b.readFamily(ctx, f)
		if err != nil {
			return err
		}
		var input strings.Builder
		for _, table := range tables {
			ours := slices.DeleteFunc(slices.Clone(changes), func(c backends.Change) bool {
				p := placeOf(c.ID)
				return p.family != f || p.table != table
			})
			if lines := compose(ours, there); lines != "" {
				input.WriteString("*" + table + "\n" + lines + "COMMIT\n")
			}
		}
		if input.Len() == 0 {
			continue
		}
		if err := b.tables.Restore(ctx, f, []byte(input.String())); err != nil {
			return fmt.Errorf("iptables (%s): %w", f, err)
		}
	}
	return nil
}

// compose writes the changes of one table. there is what the family has.
func compose(changes []backends.Change, there []Rules) string {
	have := map[backends.ID]bool{}
	for _, r := range there {
		have[r.ID()] = true
	}
	var declare, unhook, rules, hook, flush, remove strings.Builder
	for _, c := range changes {
		p := placeOf(c.ID)
		switch {
		case p.rule != "":
			if have[c.ID] {
				unhook.WriteString("-D " + p.chain + " " + p.rule + "\n")
			}
			if c.Op != backends.Delete {
				hook.WriteString("-I " + p.chain + " 1 " + p.rule + "\n")
			}
		case c.Op != backends.Delete:
			declare.WriteString(":" + p.chain + " - [0:0]\n")
			if _, body, ok := strings.Cut(c.New.String(), "\n"); ok {
				rules.WriteString(body + "\n")
			}
		case have[c.ID]:
			flush.WriteString("-F " + p.chain + "\n")
			remove.WriteString("-X " + p.chain + "\n")
		}
	}
	return declare.String() + unhook.String() + rules.String() + hook.String() + flush.String() + remove.String()
}
