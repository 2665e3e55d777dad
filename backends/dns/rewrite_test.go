package dns

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/net/dns/dnsmessage"
)

// elsewhereTest answers 192.0.2.1 for www.example.com and hosts of new.example, and knows no other name.
type elsewhereTest struct {
	asked atomic.Int64
	fails bool
}

func (e *elsewhereTest) Forward(_ context.Context, msg []byte, q dnsmessage.Question) ([]byte, error) {
	e.asked.Add(1)
	if e.fails {
		return nil, errors.New("no answer")
	}
	name := strings.ToLower(q.Name.String())
	if name != "www.example.com." && !strings.HasSuffix(name, ".new.example.") {
		name = "none."
	}
	reply := rightAnswer(msg, 60)
	if name == "none." {
		reply = edited(reply, func(m []byte) { m[3] |= byte(dnsmessage.RCodeNameError) })
		var m dnsmessage.Message
		if err := m.Unpack(reply); err != nil {
			return nil, err
		}
		m.Answers = nil
		return m.Pack()
	}
	return reply, nil
}

// replyTo returns the reply to a question over TCP as text: response code, and the records in their order.
func replyTo(t *testing.T, s *Server, from, name string, kind dnsmessage.Type) string {
	t.Helper()
	ask := dnsmessage.Message{Header: dnsmessage.Header{ID: 7}, Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}}}
	msg, err := ask.Pack()
	if err != nil {
		t.Fatal(err)
	}
	var m dnsmessage.Message
	if err := m.Unpack(s.reply(t.Context(), msg, &client{addr: netip.MustParseAddr(from), tcp: true})); err != nil {
		t.Fatal(err)
	}
	if m.ID != 7 || len(m.Questions) != 1 || m.Questions[0].Name.String() != name {
		t.Errorf("%s: the reply is to %d %v", name, m.ID, m.Questions)
	}
	text := strings.TrimPrefix(m.RCode.String(), "RCode")
	for _, r := range m.Answers {
		text += "; " + r.Header.Name.String()
		switch body := r.Body.(type) {
		case *dnsmessage.AResource:
			text += " A " + netip.AddrFrom4(body.A).String()
		case *dnsmessage.CNAMEResource:
			text += " CNAME " + body.CNAME.String()
		case *dnsmessage.SRVResource:
			text += " SRV " + body.Target.String()
		}
	}
	return text
}

// TestRewrite answers with what another name has, under the name that was asked for.
func TestRewrite(t *testing.T) {
	t.Parallel()
	s := &Server{Forwarder: &elsewhereTest{}, Log: hclog.NewNullLogger(), Resolver: &Resolver{Zone: newTestZone(), Domain: "cluster.local.", Rewrite: NewRewriter(map[string]string{
		"shop.example": "web.default.svc.cluster.local", "gone.example": "none.default.svc.cluster.local", "a.example": "b.example", "b.example": "www.example.com",
		"*.old.example": "*.new.example", "*.deep.old.example": "*.default.svc.cluster.local", "www.old.example": "www.example.com",
	})}}
	web, _ := s.Resolver.Resolve(Question{"web.default.svc.cluster.local.", dnsmessage.TypeA})
	ip := web.Records[0].Addr.String()
	for _, tt := range []struct{ name, want string }{
		{"web.default.svc.cluster.local.", "Success; web.default.svc.cluster.local. A " + ip},
		{"Shop.example.", "Success; Shop.example. A " + ip},
		{"gone.example.", "NameError"},
		{"b.example.", "Success; b.example. A 192.0.2.1"},
		{"a.example.", "NameError"}, // once
		{"Mail.Old.example.", "Success; Mail.Old.example. A 192.0.2.1"},
		{"a.b.old.example.", "Success; a.b.old.example. A 192.0.2.1"},
		{"web.deep.old.example.", "Success; web.deep.old.example. A " + ip}, // the longest
		{"www.old.example.", "Success; www.old.example. A 192.0.2.1"},
		{"old.example.", "NameError"}, // not below
		{"notold.example.", "NameError"},
		{"elsewhere.deep.old.example.", "Success; elsewhere.deep.old.example. CNAME www.example.com.; www.example.com. A 192.0.2.1"},
		{strings.Repeat(strings.Repeat("x", 60)+".", 3) + strings.Repeat("y", 50) + ".deep.old.example.", "NameError"},
	} {
		if got := replyTo(t, s, "10.244.0.9", tt.name, dnsmessage.TypeA); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
	s.Forwarder = &elsewhereTest{fails: true}
	if got := replyTo(t, s, "10.244.0.9", "x.old.example.", dnsmessage.TypeA); got != "ServerFailure" {
		t.Error("no resolver answers: " + got)
	}
}

// TestSearch has a pod ask as its resolver does, with the search domains of its namespace and ndots 5. With a search of the
// server, it asks once, and the answer has what it would have found by itself.
func TestSearch(t *testing.T) {
	t.Parallel()
	const pod, stranger = "10.244.0.9", "10.244.0.8"
	up := &elsewhereTest{}
	plain := &Server{Forwarder: up, Log: hclog.NewNullLogger(), Resolver: &Resolver{Zone: newTestZone(), Domain: "cluster.local."}}
	searching := &Server{Forwarder: up, Log: plain.Log, Resolver: plain.Resolver, Namespace: func(a netip.Addr) (string, bool) { return "default", a.String() == pod }}
	// asks returns what the resolver of a pod finds, and with how many questions.
	asks := func(s *Server, from, name string, kind dnsmessage.Type) (found string, questions int) {
		for _, suffix := range []string{"default.svc.cluster.local.", "svc.cluster.local.", "cluster.local.", ""} {
			questions++
			code, records, ok := strings.Cut(replyTo(t, s, from, name+"."+suffix, kind), "; ")
			switch {
			case code != "NameError" && !ok:
				return code, questions
			case ok:
				all := strings.Split(records, "; ")
				return all[len(all)-1], questions
			}
		}
		return "NameError", questions
	}
	for _, tt := range []struct {
		name      string
		questions int
	}{{"web", 1}, {"web.default", 1}, {"web.default.svc", 1}, {"WEB.Default", 1}, {"www.example.com", 1}, {"elsewhere.default", 1}, {"db.default", 1}, {"none", 4}, {"none.example.org", 4}} {
		for _, kind := range []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA} {
			want, before := asks(plain, pod, tt.name, kind)
			got, after := asks(searching, pod, tt.name, kind)
			if got != want || after > before || kind == dnsmessage.TypeA && after != tt.questions {
				t.Errorf("%s: %s after %d questions; by itself %s after %d", tt.name, got, after, want, before)
			}
			if got, n := asks(searching, stranger, tt.name, kind); got != want || n != before {
				t.Errorf("%s of a stranger: %s after %d questions", tt.name, got, n)
			}
		}
	}
	if got := replyTo(t, searching, pod, "web.default.default.svc.cluster.local.", dnsmessage.TypeA); !strings.HasPrefix(got, "Success; web.default.default.svc.cluster.local. CNAME web.default.svc.cluster.local.; web.default.svc.cluster.local. A ") {
		t.Error(got)
	}
	// A pod of another namespace, another type, and other names are not searched for.
	for name, kind := range map[string]dnsmessage.Type{"web.default.other.svc.cluster.local.": dnsmessage.TypeA, "_http._tcp.web.default.default.svc.cluster.local.": dnsmessage.TypeSRV, "none.cluster.local.": dnsmessage.TypeA} {
		if got := replyTo(t, searching, pod, name, kind); got != "NameError" {
			t.Errorf("%s: %s", name, got)
		}
	}
	up.fails = true
	if got := replyTo(t, searching, pod, "www.example.com.default.svc.cluster.local.", dnsmessage.TypeA); got != "NameError" {
		t.Error("no resolver answers, and the pod shall ask itself: " + got)
	}
}
