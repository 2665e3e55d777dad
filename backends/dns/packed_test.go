package dns

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/net/dns/dnsmessage"

	"weir/backends/dataplane"
	"weir/spec/seed"
)

// numberedZone is a zone whose serial number the test sets.
type numberedZone struct {
	testZone
	serial uint32
}

func (z *numberedZone) Serial() uint32 { return z.serial }

// TestKeptAnswers changes a zone at random, and asks two servers each question: one that keeps its answers, and one that does
// not. They answer the same.
func TestKeptAnswers(t *testing.T) {
	rng := seed.Rand(t)
	zone := &numberedZone{testZone: newTestZone(), serial: 1}
	keeping := &Server{Resolver: &Resolver{Zone: zone, Domain: "cluster.local."}, Log: hclog.NewNullLogger()}
	fresh := &Server{Resolver: keeping.Resolver, Log: hclog.NewNullLogger()}
	var kept packedAnswers
	hits := 0
	for range 4000 {
		if rng.IntN(300) == 0 {
			name := dataplane.ServiceName{Namespace: "default", Name: fmt.Sprint("s", rng.IntN(20))}
			zone.serial++
			zone.testZone = slices.DeleteFunc(zone.testZone, func(n *dataplane.Names) bool { return n.Service == name })
			if rng.IntN(3) > 0 {
				zone.testZone = append(zone.testZone, randomNames(rng, name))
			}
		}
		msg := randomQuestion(t, rng)
		if _, ok := kept.get(zone.serial, msg); ok {
			hits++
		}
		got, _ := keeping.answerKept(&kept, nil, msg, &client{})
		want, _ := fresh.answer(nil, msg, &client{})
		if a, b := sorted(t, got), sorted(t, want); a != b {
			t.Fatalf("kept:\n%s\nfresh:\n%s", a, b)
		}
	}
	if hits < 500 {
		t.Errorf("only %d answers were kept ones", hits)
	}
}

func randomNames(rng *rand.Rand, name dataplane.ServiceName) *dataplane.Names {
	n := &dataplane.Names{Service: name, Ports: []dataplane.NamedPort{{Name: "http", Protocol: dataplane.TCP, Port: 80}}}
	if rng.IntN(2) == 0 {
		n.ClusterIPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 0, byte(1 + rng.IntN(250))})}
		return n
	}
	for i := range rng.IntN(40) {
		n.Endpoints = append(n.Endpoints, dataplane.NamedEndpoint{Host: fmt.Sprint("h", i), Addr: netip.AddrFrom4([4]byte{10, 0, byte(rng.IntN(4)), byte(i)}), Ports: n.Ports})
	}
	return n
}

func randomQuestion(t *testing.T, rng *rand.Rand) []byte {
	t.Helper()
	name := []byte(fmt.Sprintf("s%d.default.svc.cluster.local.", rng.IntN(20)))
	if rng.IntN(4) == 0 {
		name = bytes.ToUpper(name)
	}
	types := []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypeSRV}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: uint16(rng.Uint32()), RecursionDesired: rng.IntN(2) == 0},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(string(name)), Type: types[rng.IntN(len(types))], Class: dnsmessage.ClassINET}},
	}
	if rng.IntN(2) == 0 {
		var opt dnsmessage.ResourceHeader
		if err := opt.SetEDNS0(512+rng.IntN(2)*720, 0, rng.IntN(2) == 0); err != nil {
			t.Fatal(err)
		}
		m.Additionals = []dnsmessage.Resource{{Header: opt, Body: &dnsmessage.OPTResource{}}}
	}
	msg, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

// sorted returns a reply as text, with the records of a section in one order.
func sorted(t *testing.T, reply []byte) string {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(reply); err != nil {
		t.Fatal(err)
	}
	text := func(r dnsmessage.Resource) string { return r.GoString() }
	slices.SortFunc(m.Answers, func(a, b dnsmessage.Resource) int { return bytes.Compare([]byte(text(a)), []byte(text(b))) })
	return m.GoString()
}

// TestAddressesTakeTurns asks for a Service with several endpoints. Each of them comes first equally often, kept or not.
func TestAddressesTakeTurns(t *testing.T) {
	name := dataplane.ServiceName{Namespace: "default", Name: "s0"}
	n := &dataplane.Names{Service: name}
	for i := range byte(5) {
		n.Endpoints = append(n.Endpoints, dataplane.NamedEndpoint{Host: fmt.Sprint("h", i), Addr: netip.AddrFrom4([4]byte{10, 0, 0, i}), Ports: []dataplane.NamedPort{{}}})
	}
	zone := testZone{n}
	msg, err := (&dnsmessage.Message{Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("s0.default.svc.cluster.local."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}).Pack()
	if err != nil {
		t.Fatal(err)
	}
	for _, keep := range []bool{false, true} {
		s := &Server{Resolver: &Resolver{Zone: zone, Domain: "cluster.local."}, Log: hclog.NewNullLogger()}
		var kept packedAnswers
		first := map[string]int{}
		for range 1000 {
			reply, _ := s.answer(nil, msg, &client{})
			if keep {
				reply, _ = s.answerKept(&kept, nil, msg, &client{})
			}
			var m dnsmessage.Message
			if err := m.Unpack(reply); err != nil || len(m.Answers) != 5 {
				t.Fatalf("%v, %d answers", err, len(m.Answers))
			}
			first[m.Answers[0].Body.GoString()]++
		}
		for addr, n := range first {
			if len(first) != 5 || n < 190 || n > 210 {
				t.Errorf("keep %t: %s came first %d times of 1000, want 200 for each of 5", keep, addr, n)
			}
		}
	}
}

// TestKeptAnswersAreBounded asks for more names than there is room for. That a name does not exist is kept when it is asked for again.
func TestKeptAnswersAreBounded(t *testing.T) {
	var kept packedAnswers
	reply := make([]byte, 1000)
	reply[3] = byte(dnsmessage.RCodeNameError)
	for i := range 100_000 {
		question := fmt.Appendf(nil, "ID, and a question that nobody asked before: %d", i)
		if kept.put(1, question, packed{reply: reply}); i < 1000 {
			if _, ok := kept.get(1, question); ok {
				t.Fatal("a question that was asked once is kept")
			}
		}
		kept.put(1, question, packed{reply: reply})
		if held := len(kept.answers) * 1000; held > maxPacked {
			t.Fatalf("%d answers are kept", len(kept.answers))
		}
	}
	kept.put(2, []byte("ID, and a long question"+string(make([]byte, 1000))), packed{reply: reply})
	if _, ok := kept.get(1, []byte("ID, and a question that nobody asked before: 99999")); !ok {
		t.Error("a question that is too long threw out the answers of others")
	}
}

// TestKeptAnswersAllocateNothing asks the same question again.
func TestKeptAnswersAllocateNothing(t *testing.T) {
	s := &Server{Resolver: &Resolver{Zone: newTestZone(), Domain: "cluster.local."}, Log: hclog.NewNullLogger(), counters: &counters{}}
	msg, err := (&dnsmessage.Message{Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("web.default.svc.cluster.local."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}).Pack()
	if err != nil {
		t.Fatal(err)
	}
	var kept packedAnswers
	buf, from := make([]byte, 0, maxUDPSize), &client{}
	s.answerKept(&kept, buf, msg, from)
	if n := testing.AllocsPerRun(100, func() { s.answerKept(&kept, buf, msg, from) }); n > 0 {
		t.Errorf("%.0f allocations for a question that was asked before", n)
	}
}
