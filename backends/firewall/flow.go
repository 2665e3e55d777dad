package firewall

import (
	"context"
	"io"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"weir/backends/nfnl"
	"weir/backends/xtables"
)

// verb is what a rule does with every packet that reaches it.
type verb uint8

const (
	goesOn verb = iota // to the next rule, or out of the chain
	drops
	accepts
	returns
	jumps
	goesTo
)

// step is a rule without a condition.
type step struct {
	verb verb
	to   string // for jumps and goesTo
}

// flow holds the rules without a condition of each chain of a table, in order. A rule with a condition leaves what happens
// to all others unchanged.
type flow map[string][]step

// rest returns what happens to a packet that no rule with a condition takes: drops, accepts, or goesOn.
func (f flow) rest(chain string) verb { return f.follow(chain, map[string]bool{}) }

func (f flow) follow(chain string, seen map[string]bool) verb {
	if seen[chain] {
		return goesOn
	}
	seen[chain] = true
	for _, s := range f[chain] {
		switch s.verb {
		case drops, accepts:
			return s.verb
		case returns:
			return goesOn
		case jumps, goesTo:
			if end := f.follow(s.to, seen); end != goesOn || s.verb == goesTo {
				return end
			}
		}
	}
	return goesOn
}

// readFlow reads the rules of a table of nf_tables.
func readFlow(ctx context.Context, c nfnl.Conn, t nfnl.Table) (flow, error) {
	rules, err := nfnl.ReadRules(ctx, c, t)
	f := flow{}
	for _, r := range rules {
		if s := stepOf(r); s.verb != goesOn {
			f[r.Chain] = append(f[r.Chain], s)
		}
	}
	return f, err
}

// stepOf returns what a rule does with every packet. Any expression but those named here may be a condition.
func stepOf(r nfnl.Rule) (s step) {
	conditional := false
	r.EachExpression(func(name string, data []byte) {
		switch name {
		case "counter", "log", "last":
		case "reject":
			s.verb = drops
		case "immediate":
			s = verdictStep(nfnl.ImmediateVerdict(data))
		case "target":
			if extension(data) == "REJECT" {
				s.verb = drops
			}
		case "match":
			conditional = conditional || extension(data) != "comment"
		default:
			conditional = true
		}
	})
	if conditional {
		return step{}
	}
	return s
}

// extension returns the name of the extension of iptables in a match or target expression.
func extension(data []byte) (name string) {
	nfnl.Attributes(data, func(typ uint16, value []byte) {
		if typ == unix.NFTA_TARGET_NAME { // the same number as that of a match
			name = strings.TrimRight(string(value), "\x00")
		}
	})
	return name
}

func verdictStep(v nfnl.Verdict) step {
	switch v.Code {
	case nfnl.Drop:
		return step{verb: drops}
	case nfnl.Accept:
		return step{verb: accepts}
	case nfnl.Jump:
		return step{jumps, v.Chain}
	case nfnl.Goto:
		return step{goesTo, v.Chain}
	case unix.NFT_RETURN:
		return step{verb: returns}
	}
	return step{}
}

// parseFlow reads the rules of a table as iptables-save prints them, and the policy of FORWARD.
func parseFlow(saved io.Reader) (f flow, policy verb, err error) {
	f, policy = flow{}, accepts
	lines := xtables.NewScanner(saved)
	for lines.Scan() {
		line := lines.Text()
		if strings.HasPrefix(line, ":FORWARD DROP") {
			policy = drops
		}
		words := strings.Fields(comments.ReplaceAllString(line, ""))
		if len(words) < 4 || words[0] != "-A" {
			continue
		}
		if s := targetStep(words[2], words[3]); s.verb != goesOn {
			f[words[1]] = append(f[words[1]], s)
		}
	}
	return f, policy, lines.Err()
}

// comments matches comments, which are no conditions.
var comments = regexp.MustCompile(` -m comment --comment ("([^"\\]|\\.)*"|\S+)`)

// targetStep returns what a rule does that has no match before its target.
func targetStep(option, target string) step {
	switch {
	case option == "-g":
		return step{goesTo, target}
	case option != "-j":
		return step{}
	}
	switch target {
	case "DROP", "REJECT":
		return step{verb: drops}
	case "ACCEPT":
		return step{verb: accepts}
	case "RETURN":
		return step{verb: returns}
	}
	return step{jumps, target} // a target that is no chain has no rules, and leads on
}
