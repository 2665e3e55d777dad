package nfnltest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"weir/backends/netlab"
	"weir/backends/nfnl"
	"weir/spec/seed"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { netlab.Main(m) }

// ours is the table of the transactions, and other is one of the same name in another family.
var (
	ours  = nfnl.Table{Family: unix.NFPROTO_IPV4, Name: "ours"}
	other = nfnl.Table{Family: unix.NFPROTO_IPV6, Name: "ours"}
)

// subject is a Kernel with a connection that writes, one that listens, and the last known generation.
type subject struct {
	t          *testing.T
	conn       nfnl.Conn
	listener   nfnl.Listener
	generation uint32
}

func newSubject(t *testing.T, k nfnl.Kernel) *subject {
	t.Helper()
	s := &subject{t: t}
	var err error
	if s.conn, err = k.Dial(); err != nil {
		t.Fatal(err)
	}
	bystander, err := k.Dial()
	if err != nil {
		t.Fatal(err)
	}
	if s.listener, err = k.Listen(bystander, make(chan struct{}, 1)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(s.listener.Close(), bystander.Close(), s.conn.Close()); err != nil {
			t.Error(err)
		}
	})
	s.moves()
	return s
}

// pair returns the real kernel, in a new network namespace, and the one in memory.
func pair(t *testing.T) (real, fake *subject) {
	t.Helper()
	lab := netlab.New(t, netlab.Topology{})
	if err := lab.Node().Do(func() error { real = newSubject(t, nfnl.Netlink{}); return nil }); err != nil {
		t.Fatal(err)
	}
	return real, newSubject(t, &Kernel{})
}

// moves returns by how much the generation has increased since the last call.
func (s *subject) moves() uint32 {
	s.t.Helper()
	now, err := nfnl.Generation(s.t.Context(), s.conn)
	if err != nil {
		s.t.Fatal(err)
	}
	by := now - s.generation
	s.generation = now
	return by
}

// commit returns all visible effects of a transaction: errors, the increase of the generation, and notifications.
func (s *subject) commit(messages []nfnl.Message) string {
	s.t.Helper()
	var b strings.Builder
	err := s.conn.Commit(s.t.Context(), messages)
	var rejected *nfnl.BatchError
	if errors.As(err, &rejected) {
		for _, f := range rejected.Failures {
			var errno unix.Errno
			errors.As(f.Err, &errno)
			fmt.Fprintf(&b, "message %d: %s\n", f.Index, unix.ErrnoName(errno))
		}
	} else if err != nil {
		s.t.Fatal(err)
	}
	moves := s.moves()
	fmt.Fprintf(&b, "generation + %d\n", moves)
	b.WriteString(s.notifications(moves > 0))
	return b.String()
}

// notifications returns the notifications, sorted, because the kernel reports the parts of a table in an order of its
// own.
func (s *subject) notifications(some bool) string {
	s.t.Helper()
	var lines []string
	for done := !some; !done; {
		err := s.listener.Receive(5*time.Second, func(n nfnl.Notification) {
			if n.Type == unix.NFT_MSG_NEWGEN {
				done = true
				if n.Generation != s.generation {
					s.t.Errorf("told of generation %d, the kernel has %d", n.Generation, s.generation)
				}
				return
			}
			name := n.Name
			line := func(key string) {
				lines = append(lines, fmt.Sprintf("told: %d %d %s %s %s\n", n.Type, n.Table.Family, n.Table.Name, name, key))
			}
			switch n.Type {
			case unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE:
				name = "" // attribute 2 is not a name in these messages
				line("")
			case unix.NFT_MSG_NEWSETELEM, unix.NFT_MSG_DELSETELEM:
				n.Keys(func(key []byte) { line(fmt.Sprintf("%x", key)) })
			case unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN:
				name = "" // attribute 2 is the handle
				line("")
			default:
				line("")
			}
		})
		if err != nil {
			s.t.Fatal(err)
		}
	}
	if err := s.listener.Receive(0, func(n nfnl.Notification) { s.t.Errorf("told of more: %+v", n) }); !errors.Is(err, os.ErrDeadlineExceeded) {
		s.t.Error(err)
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// contents returns all that the kernel holds in the tables, sorted.
func (s *subject) contents() string {
	s.t.Helper()
	ctx, must := s.t.Context(), func(err error) {
		if err != nil {
			s.t.Helper()
			s.t.Fatal(err)
		}
	}
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	for _, t := range []nfnl.Table{ours, other} {
		flags, found, err := nfnl.ReadTable(ctx, s.conn, t)
		must(err)
		if !found {
			continue
		}
		add("table %v %x", t, flags)
		sets, err := nfnl.ReadSets(ctx, s.conn, t)
		must(err)
		for _, set := range sets {
			add("set %v %+v", t, set)
			must(nfnl.EachElement(ctx, s.conn, t, set.Name, func(x nfnl.Element) {
				verdict := ""
				if x.Verdict != nil {
					verdict = fmt.Sprint(*x.Verdict)
				}
				add("element %v %s %x-%x %x %s %q", t, set.Name, x.Key, x.End, x.Value, verdict, x.Comment)
			}))
		}
		chains, err := nfnl.ReadChains(ctx, s.conn, t)
		must(err)
		for _, c := range chains {
			hook := ""
			if c.Hook != nil {
				hook = fmt.Sprint(*c.Hook)
			}
			add("chain %v %s %s %d %x %q", t, c.Name, hook, c.Policy, c.Flags, c.Userdata)
		}
		rules, err := nfnl.ReadRules(ctx, s.conn, t)
		must(err)
		of := map[string]int{}
		for _, r := range rules {
			add("rule %v %s %d %q", t, r.Chain, of[r.Chain], r.Canonical())
			of[r.Chain]++
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// Sets of each kind that weir uses.
var (
	verdicts = nfnl.Set{Name: "verdicts", Flags: unix.NFT_SET_MAP, KeyType: 7, KeyLen: 4, DataType: unix.NFT_DATA_VERDICT, Userdata: []byte{1, 2, 'x', 0}}
	values   = nfnl.Set{Name: "values", Flags: unix.NFT_SET_MAP, KeyType: 7, KeyLen: 4, DataType: 7, DataLen: 4, Userdata: []byte{1, 2, 'y', 0}}
	members  = nfnl.Set{Name: "members", Flags: nfnl.SetConcat, KeyType: 7<<6 | 7, KeyLen: 8, Fields: []uint32{4, 4}, Userdata: []byte{1, 2, 'z', 0}}
	ranges   = nfnl.Set{Name: "ranges", Flags: nfnl.SetConcat | unix.NFT_SET_INTERVAL, KeyType: 7<<6 | 7, KeyLen: 8, Fields: []uint32{4, 4}, Userdata: []byte{1, 2, 'r', 0}}
)

var (
	base  = nfnl.Chain{Name: "base", Hook: &nfnl.Hook{Kind: "filter", Number: unix.NF_INET_LOCAL_IN, Priority: 5}, Policy: nfnl.PolicyAccept}
	plain = nfnl.Chain{Name: "plain", Userdata: []byte{0, 2, 'c', 0}}
	more  = nfnl.Chain{Name: "more"}
)

func key(bytes ...byte) []byte { return bytes }

func rule(t testing.TB, chain string, exprs ...expr.Any) nfnl.Rule {
	t.Helper()
	var attrs []netlink.Attribute
	for _, x := range exprs {
		data, err := expr.Marshal(unix.NFPROTO_IPV4, x)
		if err != nil {
			t.Fatal(err)
		}
		attrs = append(attrs, netlink.Attribute{Type: unix.NFTA_LIST_ELEM | unix.NLA_F_NESTED, Data: data})
	}
	data, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		t.Fatal(err)
	}
	return nfnl.Rule{Chain: chain, Expressions: data, Userdata: []byte{0, 2, 'r', 0}}
}

func jump(t testing.TB, from, to string) nfnl.Rule {
	return rule(t, from, &expr.Verdict{Kind: expr.VerdictGoto, Chain: to})
}

// use returns a rule that looks its packet up in a set of addresses.
func use(t testing.TB, chain, set string) nfnl.Rule {
	return rule(t, chain, &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: set})
}

func add(set string, elements ...nfnl.Element) nfnl.Message {
	return listed(nfnl.AddTo(ours, set), elements)
}

func remove(set string, elements ...nfnl.Element) nfnl.Message {
	return listed(nfnl.DeleteFrom(ours, set), elements)
}

func listed(l *nfnl.Elements, elements []nfnl.Element) nfnl.Message {
	for _, x := range elements {
		l.Append(x)
	}
	return l.Messages()[0]
}

func goTo(k []byte, chain string) nfnl.Element {
	return nfnl.Element{Key: k, Verdict: &nfnl.Verdict{Code: nfnl.Goto, Chain: chain}}
}

func exclusive(m nfnl.Message) nfnl.Message { m.Flags |= unix.NLM_F_EXCL; return m }

func messages(m ...nfnl.Message) []nfnl.Message { return m }

// layout makes the table with all sets and chains.
func layout() []nfnl.Message {
	return messages(nfnl.NewTable(ours, []byte{0, 2, 't', 0}), nfnl.NewSet(ours, verdicts), nfnl.NewSet(ours, values), nfnl.NewSet(ours, members),
		nfnl.NewSet(ours, ranges), nfnl.NewChain(ours, base), nfnl.NewChain(ours, plain), nfnl.NewChain(ours, more))
}

// transactions returns sequences of transactions by what they show.
func transactions(t testing.TB) map[string][][]nfnl.Message {
	one := nfnl.Element{Key: key(1, 0, 0, 0), Value: key(9, 9, 9, 9), Comment: "a/b"}
	changed := nfnl.Element{Key: key(1, 0, 0, 0), Value: key(8, 8, 8, 8)}
	member := nfnl.Element{Key: key(1, 0, 0, 0, 2, 0, 0, 0)}
	all := nfnl.Element{Value: key(7, 7, 7, 7)}
	span := func(from, to byte) nfnl.Element {
		return nfnl.Element{Key: key(1, 1, 1, 1, from, 0, 0, 0), End: key(1, 1, 1, 1, to, 255, 255, 255)}
	}
	late := base
	late.Hook = &nfnl.Hook{Kind: "filter", Number: unix.NF_INET_LOCAL_IN, Priority: 6}
	hooked, unhooked := base, base
	hooked.Name, unhooked.Hook = "plain", nil
	dropping := base
	dropping.Policy = 0
	retyped := values
	retyped.DataLen, retyped.DataType = 8, 7<<6|7
	return map[string][][]nfnl.Message{
		"a table twice":        {messages(nfnl.NewTable(ours, nil)), messages(nfnl.NewTable(ours, nil)), messages(exclusive(nfnl.NewTable(ours, nil)))},
		"no table":             {messages(nfnl.NewSet(ours, values), nfnl.NewChain(ours, plain), nfnl.DeleteTable(ours), nfnl.FlushChain(ours, "plain"), add("values", one))},
		"same name elsewhere":  {layout(), messages(nfnl.NewTable(other, nil), nfnl.NewChain(other, plain)), messages(nfnl.DeleteTable(ours))},
		"layout twice":         {layout(), layout()},
		"layout, exclusive":    {layout(), messages(exclusive(nfnl.NewSet(ours, values)), exclusive(nfnl.NewChain(ours, plain)))},
		"set of another type":  {layout(), messages(nfnl.NewSet(ours, retyped))},
		"delete and make anew": {layout(), append(messages(nfnl.DeleteTable(ours)), layout()...)},
		"elements": {layout(), messages(add("values", one)), messages(add("values", one)), messages(add("values", changed)),
			messages(exclusive(add("values", one))), messages(remove("values", one), add("values", changed)), messages(remove("values", one)), messages(remove("values", one))},
		"elements that do not fit": {layout(), messages(add("values", nfnl.Element{Key: key(1), Value: key(1, 2, 3, 4)}),
			add("values", nfnl.Element{Key: key(1, 2, 3, 4)}), add("members", nfnl.Element{Key: member.Key, Value: key(1, 2, 3, 4)}),
			add("verdicts", one), add("values", goTo(one.Key, "plain")), add("nosuch", one))},
		"the catchall element": {layout(), messages(add("values", all)), messages(add("values", all, one)), messages(remove("values", nfnl.Element{}))},
		"flushed set":          {layout(), messages(add("values", one, all), add("members", member)), messages(nfnl.FlushSet(ours, "values"), nfnl.FlushSet(ours, "ranges"))},
		"ranges": {layout(), messages(add("ranges", span(10, 20), span(30, 40))), messages(add("ranges", span(10, 20))), messages(add("ranges", span(15, 16))),
			messages(remove("ranges", span(10, 20)), add("ranges", span(15, 16))), messages(remove("ranges", span(30, 40)))},
		"verdicts": {layout(), messages(add("verdicts", goTo(key(1, 0, 0, 0), "nosuch"))), messages(add("verdicts", goTo(key(1, 0, 0, 0), "base"))),
			messages(add("verdicts", goTo(key(1, 0, 0, 0), "plain"))), messages(nfnl.DeleteChain(ours, "plain")),
			messages(remove("verdicts", goTo(key(1, 0, 0, 0), "plain")), nfnl.DeleteChain(ours, "plain"))},
		"rules": {layout(), messages(nfnl.AppendRule(ours, jump(t, "base", "plain")), nfnl.AppendRule(ours, use(t, "plain", "values"))),
			messages(nfnl.DeleteChain(ours, "plain"), nfnl.DeleteSet(ours, "values")), messages(nfnl.FlushChain(ours, "plain"), nfnl.DeleteSet(ours, "values")),
			messages(nfnl.FlushChain(ours, "base"), nfnl.DeleteChain(ours, "plain")), messages(nfnl.FlushChain(ours, "plain"))},
		"rules that lead nowhere": {layout(), messages(nfnl.AppendRule(ours, jump(t, "base", "nosuch")), nfnl.AppendRule(ours, jump(t, "plain", "base")),
			nfnl.AppendRule(ours, use(t, "plain", "nosuch")), nfnl.AppendRule(ours, jump(t, "nosuch", "plain")))},
		"rules in order": {layout(), messages(nfnl.AppendRule(ours, jump(t, "base", "plain")), nfnl.AppendRule(ours, use(t, "base", "values")), nfnl.AppendRule(ours, jump(t, "base", "more")))},
		"base chains": {layout(), messages(nfnl.NewChain(ours, late)), messages(nfnl.NewChain(ours, dropping)), messages(nfnl.DeleteChain(ours, "base"), nfnl.NewChain(ours, late)),
			messages(nfnl.NewChain(ours, hooked), nfnl.NewChain(ours, unhooked))},
		"refused as a whole": {layout(), messages(add("values", one), remove("members", member), nfnl.DeleteChain(ours, "nosuch")),
			messages(nfnl.DeleteSet(ours, "nosuch"))},
		"ruleset flushed": {layout(), messages(nfnl.Message{Type: unix.NFT_MSG_DELTABLE, Data: []byte{0, unix.NFNETLINK_V0, 0, 0}})},
	}
}

// TestAgreesWithTheKernel expects each sequence of transactions to have the same effects here and in the real kernel.
func TestAgreesWithTheKernel(t *testing.T) {
	netlab.Require(t)
	for name, sequence := range transactions(t) {
		t.Run(name, func(t *testing.T) {
			real, fake := pair(t)
			for i, m := range sequence {
				agree(t, fmt.Sprintf("transaction %d", i), real, fake, m)
			}
		})
	}
}

func agree(t *testing.T, what string, real, fake *subject, m []nfnl.Message) {
	t.Helper()
	want, got := real.commit(m), fake.commit(m)
	if got != want {
		t.Fatalf("%s differs (-kernel +memory):\n%s", what, cmp.Diff(strings.Split(want, "\n"), strings.Split(got, "\n")))
	}
	if want, got := real.contents(), fake.contents(); want != got {
		t.Fatalf("after %s the contents differ (-kernel +memory):\n%s", what, cmp.Diff(strings.Split(want, "\n"), strings.Split(got, "\n")))
	}
}

// TestRandomTransactions expects the same of a random walk, in which many transactions are refused.
func TestRandomTransactions(t *testing.T) {
	netlab.Require(t)
	rnd := seed.Rand(t)
	var all []nfnl.Message
	for _, sequence := range transactions(t) {
		for _, m := range sequence {
			all = append(all, m...)
		}
	}
	slices.SortFunc(all, func(a, b nfnl.Message) int { return bytes.Compare(a.Data, b.Data) })
	real, fake := pair(t)
	taken := 0
	for step := range seed.Steps(1500) {
		var m []nfnl.Message
		for range 1 + rnd.IntN(3) {
			m = append(m, pick(rnd, all))
		}
		if has(m, unix.NFT_MSG_NEWSET) && has(m, unix.NFT_MSG_NEWRULE) {
			continue // the kernel also looks for an absent set by its number in the transaction, which the memory does not have
		}
		before := real.generation
		agree(t, fmt.Sprintf("transaction %d %s", step, describe(m)), real, fake, m)
		if real.generation != before {
			taken++
		}
	}
	if taken < 100 {
		t.Errorf("only %d transactions changed anything", taken)
	}
}

func has(messages []nfnl.Message, typ uint16) bool {
	return slices.ContainsFunc(messages, func(m nfnl.Message) bool { return m.Type == typ })
}

func describe(messages []nfnl.Message) string {
	var b strings.Builder
	for _, m := range messages {
		fmt.Fprintf(&b, "(%d %#x %q) ", m.Type, m.Flags, m.Data)
	}
	return b.String()
}

// pick returns a message, seldom one that deletes a table.
func pick(rnd *rand.Rand, all []nfnl.Message) nfnl.Message {
	for {
		m := all[rnd.IntN(len(all))]
		if m.Type != unix.NFT_MSG_DELTABLE || rnd.IntN(10) == 0 {
			return m
		}
	}
}
