package iptables

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"

	"weir/backends"
)

// maxLine bounds a line of iptables-save. A rule is far shorter.
const maxLine = 64 << 10

// Observe implements backends.Backend.
func (b *Backend) Observe(ctx context.Context) iter.Seq2[backends.Item, error] {
	return func(yield func(backends.Item, error) bool) {
		b.present = nil
		present := make(map[backends.ID]struct{})
		for _, f := range b.cfg.Families {
			for _, table := range tables {
				if err := b.observe(ctx, f, table, present, yield); err != nil {
					if !errors.Is(err, errStopped) {
						yield(nil, fmt.Errorf("cannot read the %s table of %s: %w", table, f, err))
					}
					return
				}
			}
		}
		b.present = present
	}
}

// errStopped says that whoever reads wants no more.
var errStopped = errors.New("stopped")

func (b *Backend) observe(ctx context.Context, f backends.Family, table string, present map[backends.ID]struct{}, yield func(backends.Item, error) bool) error {
	saved, err := b.kernel.Save(ctx, f, table)
	if err != nil {
		return err
	}
	err = parseSave(saved, f, table, func(i item) bool {
		if p, ok := parse(i.ID()); ok && (!owned(p.chain) || shared(p.chain)) {
			present[i.ID()] = struct{}{}
		}
		return yield(i, nil)
	})
	return errors.Join(err, saved.Close())
}

// parseSave reads what iptables-save printed of one table and gives emit the Items in it.
func parseSave(r io.Reader, f backends.Family, table string, emit func(item) bool) error {
	s := &saveParser{at: tag(f) + " " + table + " ", emit: emit, empty: make(map[string]bool), copies: make(map[string]int), walled: make(map[string]bool)}
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 4096), maxLine)
	for n := 1; lines.Scan(); n++ {
		if err := s.line(lines.Text(), table); err != nil {
			return fmt.Errorf("line %d of iptables-save: %w", n, err)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("iptables-save: %w", err)
	}
	if s.open {
		return errors.New("iptables-save stopped in the middle of the table")
	}
	return nil
}

// saveParser holds what is not yet emitted of a table.
type saveParser struct {
	at   string
	emit func(item) bool
	open bool // between "*table" and "COMMIT"

	chain  string          // the chain whose rules are being collected
	text   []byte          // its Item so far
	empty  map[string]bool // the chains declared, no rule of which was seen; false once one was
	order  []string        // the same in the order of their declaration
	copies map[string]int  // how often a shared rule or hook was seen
	walled map[string]bool // built-in chains in which a rule that ends the walk was seen
}

func (s *saveParser) line(line, table string) error {
	switch {
	case line == "":
	case strings.HasPrefix(line, "#"):
		if strings.Contains(line, "incompatible") {
			return errors.New("somebody put rules into the table that iptables cannot show: " + strings.TrimPrefix(line, "# "))
		}
	case !s.open:
		if line != "*"+table {
			return fmt.Errorf("%q where *%s was expected", line, table)
		}
		s.open = true
	case line == "COMMIT":
		s.open = false
		return s.commit()
	case line[0] == ':':
		chain, _, _ := strings.Cut(line[1:], " ")
		return s.declare(chain)
	case strings.HasPrefix(line, "-A "):
		chain, rule, ok := strings.Cut(line[3:], " ")
		if !ok {
			return fmt.Errorf("a rule without content: %q", line)
		}
		return s.rule(chain, rule, line)
	default:
		return fmt.Errorf("unknown kind of line: %q", line)
	}
	return nil
}

func (s *saveParser) declare(chain string) error {
	switch {
	case !owned(chain):
		return nil
	case shared(chain):
		return s.send(s.at + chain)
	}
	s.empty[chain] = true
	s.order = append(s.order, chain)
	return nil
}

func (s *saveParser) rule(chain, rule, line string) error {
	if !owned(chain) {
		if !builtin(chain) {
			return nil
		}
		if name, _ := target(rule); owned(name) {
			return s.hook(chain, rule)
		}
		s.walled[chain] = s.walled[chain] || endsWalk(rule)
		return nil
	}
	if shared(chain) {
		id := s.at + chain + " " + rule
		if s.copies[id]++; s.copies[id] > 1 {
			id = numbered(id, s.copies[id])
		}
		return s.send(id)
	}
	if chain != s.chain {
		if err := s.flush(); err != nil {
			return err
		}
		if !s.empty[chain] {
			return fmt.Errorf("chain %s was not declared, or its rules are not together", chain)
		}
		s.empty[chain] = false
		s.chain = chain
		s.text = append(append(s.text[:0], s.at...), chain...)
	}
	s.text = append(append(s.text, '\n'), line...)
	return nil
}

// hook notes a rule in a built-in chain that leads to a chain of weir.
func (s *saveParser) hook(chain, rule string) error {
	id := s.at + chain + " " + rule
	first := s.copies[id] == 0
	s.copies[id]++
	switch {
	case !first:
		return s.send(numbered(id, s.copies[id]))
	case s.walled[chain]:
		return s.send(id + misplaced)
	}
	return s.send(id)
}

// flush emits the chain that was being collected.
func (s *saveParser) flush() error {
	if s.chain == "" {
		return nil
	}
	s.chain = ""
	return s.send(string(s.text))
}

func (s *saveParser) commit() error {
	if err := s.flush(); err != nil {
		return err
	}
	for _, chain := range s.order {
		if s.empty[chain] {
			if err := s.send(s.at + chain); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *saveParser) send(text string) error {
	if !s.emit(item(text)) {
		return errStopped
	}
	return nil
}

// builtin says whether a chain is one of the kernel's.
func builtin(chain string) bool {
	switch chain {
	case "PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING":
		return true
	}
	return false
}

// target returns what a rule jumps to, and whether it goes there without coming back.
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

// endsWalk says whether a packet that matches the rule may never come to the next one. Jumps to chains of others are not
// counted: many programs want their chain to be the first, and two of them would move theirs for ever.
func endsWalk(rule string) bool {
	name, goes := target(rule)
	switch name {
	case "ACCEPT", "DROP", "REJECT", "RETURN", "DNAT", "SNAT", "REDIRECT", "MASQUERADE", "NETMAP", "QUEUE", "NFQUEUE":
		return true
	}
	return goes
}
