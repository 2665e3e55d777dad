package xtables

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"weir/backends"
	"weir/backends/dataplane"
)

// maxLine bounds a line of iptables-save. Rules are much shorter.
const maxLine = 64 << 10

// NewScanner reads lines of iptables-save.
func NewScanner(r io.Reader) *bufio.Scanner {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 4096), maxLine)
	return lines
}

// parseSave parses the output of iptables-save for a family, and calls emit with the Items of a Layout in it. It adds the
// owned chains to which rules of other programs lead to held. Such a chain is no Item if it is empty and no rule of its
// owner leads to it, because it is what was left when the chain was deleted.
func parseSave(r io.Reader, f dataplane.Family, layout Layout, held map[backends.ID]struct{}, emit func(Item) bool) error {
	s := &saveParser{family: f, layout: layout, held: held, emit: emit}
	lines := NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		if err := s.line(lines.Text()); err != nil {
			return fmt.Errorf("line %d of iptables-save: %w", n, err)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("iptables-save: %w", err)
	}
	if s.open {
		return errors.New("iptables-save stopped in the middle of a table")
	}
	return nil
}

// saveParser parses tables one after the other.
type saveParser struct {
	family dataplane.Family
	layout Layout
	held   map[backends.ID]struct{}
	emit   func(Item) bool
	open   bool         // between "*table" and "COMMIT"
	table  *tableParser // of the open table; nil if the Layout has no chains in it
}

func (s *saveParser) line(line string) error {
	switch {
	case line == "":
	case strings.HasPrefix(line, "#"):
		// # Table `nat' is incompatible, use 'nft' tool.
		if name, rest, ok := strings.Cut(strings.TrimPrefix(line, "# Table `"), "'"); ok && slices.Contains(s.layout.Names, name) && strings.Contains(rest, "incompatible") {
			return errors.New("another program put rules into the table that iptables cannot show: " + strings.TrimPrefix(line, "# "))
		}
	case !s.open:
		name, ok := strings.CutPrefix(line, "*")
		if !ok {
			return fmt.Errorf("%q where a table was expected", line)
		}
		s.open = true
		if slices.Contains(s.layout.Names, name) {
			s.table = &tableParser{at: At(s.family, name), layout: s.layout, held: s.held, emit: s.emit, empty: map[string]bool{}, used: map[string]bool{}, copies: map[string]int{}, terminated: map[string]bool{}}
		}
	case line == "COMMIT":
		t := s.table
		s.open, s.table = false, nil
		if t != nil {
			return t.commit()
		}
	case s.table != nil:
		return s.table.line(line)
	}
	return nil
}

// tableParser holds the Items of a table that are not yet emitted.
type tableParser struct {
	at     string
	layout Layout
	held   map[backends.ID]struct{}
	emit   func(Item) bool

	chain      string          // the chain whose rules are being collected
	text       []byte          // its Item so far
	empty      map[string]bool // declared chains: true until one of their rules was seen
	order      []string        // the same in the order of their declaration
	used       map[string]bool // owned chains to which a rule of their owner, or a hook, leads
	copies     map[string]int  // how often a shared rule or hook was seen
	terminated map[string]bool // built-in chains in which a terminal rule was seen
}

func (t *tableParser) line(line string) error {
	if line[0] == ':' {
		chain, _, _ := strings.Cut(line[1:], " ")
		return t.declare(chain)
	}
	rest, ok := strings.CutPrefix(line, "-A ")
	if !ok {
		return fmt.Errorf("unknown kind of line: %q", line)
	}
	chain, rule, ok := strings.Cut(rest, " ")
	if !ok {
		return fmt.Errorf("a rule without content: %q", line)
	}
	return t.rule(chain, rule, line)
}

func (t *tableParser) declare(chain string) error {
	if t.layout.Owned(chain) {
		t.empty[chain] = true
		t.order = append(t.order, chain)
	}
	return nil
}

func (t *tableParser) rule(chain, rule, line string) error {
	if !t.layout.Owned(chain) {
		to, _ := target(rule)
		switch owned := t.layout.Owned(to); {
		case owned && builtin(chain):
			t.used[to] = true
			return t.hook(chain, rule)
		case owned:
			t.held[backends.ID(t.at+to)] = struct{}{}
			return nil
		case !builtin(chain):
			return nil
		}
		t.terminated[chain] = t.terminated[chain] || terminal(rule)
		return nil
	}
	// The target is the last part of a rule but for its options. Parsing every rule would take too long.
	if i := strings.LastIndex(rule, "-j "); i >= 0 && t.layout.Owned(rule[i+3:]) {
		t.used[rule[i+3:]] = true
	}
	if t.layout.shared(chain) {
		t.empty[chain] = false
		id := t.at + chain + " " + rule
		if t.copies[id]++; t.copies[id] > 1 {
			id = numbered(id, t.copies[id])
		}
		return t.send(id)
	}
	if chain != t.chain {
		if err := t.flush(); err != nil {
			return err
		}
		if !t.empty[chain] {
			return fmt.Errorf("chain %s was not declared, or its rules are not together", chain)
		}
		t.empty[chain] = false
		t.chain = chain
		t.text = append(append(t.text[:0], t.at...), chain...)
	}
	t.text = append(append(t.text, '\n'), line...)
	return nil
}

// hook adds a rule in a built-in chain that leads to an owned chain.
func (t *tableParser) hook(chain, rule string) error {
	id := t.at + chain + " " + rule
	switch t.copies[id]++; {
	case t.copies[id] > 1:
		return t.send(numbered(id, t.copies[id]))
	case t.terminated[chain]:
		return t.send(id + unreachable)
	}
	return t.send(id)
}

// flush emits the chain whose rules were being collected.
func (t *tableParser) flush() error {
	if t.chain == "" {
		return nil
	}
	t.chain = ""
	return t.send(string(t.text))
}

func (t *tableParser) commit() error {
	if err := t.flush(); err != nil {
		return err
	}
	for _, chain := range t.order {
		if _, held := t.held[backends.ID(t.at+chain)]; held && t.empty[chain] && !t.used[chain] {
			continue
		}
		if t.empty[chain] || t.layout.shared(chain) {
			if err := t.send(t.at + chain); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *tableParser) send(text string) error {
	if !t.emit(Item(text)) {
		return errStopped
	}
	return nil
}

// builtin reports whether a chain is one of the kernel's.
func builtin(chain string) bool {
	switch chain {
	case "PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING":
		return true
	}
	return false
}

// target returns the chain or action that a rule jumps to, and reports whether the packet goes there without coming
// back.
func target(rule string) (name string, goes bool) {
	quoted, previous := false, ""
	for start, i := 0, 0; i <= len(rule); i++ {
		if i < len(rule) && (quoted || rule[i] != ' ') {
			switch rule[i] {
			case '\\':
				i++
			case '"':
				quoted = !quoted
			}
			continue
		}
		word := rule[min(start, len(rule)):min(i, len(rule))]
		start = i + 1
		if previous == "-j" || previous == "-g" {
			return word, previous == "-g"
		}
		previous = word
	}
	return "", false
}

// terminal reports whether a packet that matches the rule may never reach the next rule. Jumps to foreign chains do not
// count: many programs want their chain to be first, and two of them would move theirs for ever.
func terminal(rule string) bool {
	name, goes := target(rule)
	switch name {
	case "ACCEPT", "DROP", "REJECT", "RETURN", "DNAT", "SNAT", "REDIRECT", "MASQUERADE", "NETMAP", "QUEUE", "NFQUEUE":
		return true
	}
	return goes
}
