package dns

import (
	"context"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// Rewriter has the names that are asked for in the place of others.
type Rewriter struct {
	names, below map[string]string
}

// NewRewriter returns a Rewriter for names in lower case and without a dot at their end. If both begin with "*.", they stand for
// all names below a domain. It is nil if there are none.
func NewRewriter(names map[string]string) *Rewriter {
	if len(names) == 0 {
		return nil
	}
	r := &Rewriter{map[string]string{}, map[string]string{}}
	for from, to := range names {
		if domain, ok := strings.CutPrefix(from, "*."); ok {
			r.below[domain+"."] = strings.TrimPrefix(to, "*.") + "."
		} else {
			r.names[from+"."] = to + "."
		}
	}
	return r
}

// rewrite returns the name that is asked for in the place of another: the one of that very name, or of the longest domain.
// What becomes of it is not rewritten again.
func (r *Rewriter) rewrite(name string) (to string, ok bool) {
	if r == nil {
		return "", false
	}
	lower := strings.ToLower(name)
	if to, ok = r.names[lower]; ok {
		return to, true
	}
	for at := strings.IndexByte(lower, '.') + 1; at > 0 && at < len(lower); {
		if to, ok = r.below[lower[at:]]; ok {
			to = name[:at] + to
			return to, len(to) <= 254 // a longer one is no name
		}
		next := strings.IndexByte(lower[at:], '.') + 1
		if next == 0 {
			break
		}
		at += next
	}
	return "", false
}

// renamed gives the records of a name another one.
func renamed(records []Record, from, to string) []Record {
	for i := range records {
		if strings.EqualFold(records[i].Name, from) {
			records[i].Name = to
		}
	}
	return records
}

// forwardAs asks elsewhere for another name than that of the query. The reply has the name that was asked for.
func (s *Server) forwardAs(ctx context.Context, name string, msg []byte, q *query) ([]byte, error) {
	target, err := dnsmessage.NewName(name)
	if err != nil {
		return nil, err
	}
	var m dnsmessage.Message
	if err := m.Unpack(msg); err != nil {
		return nil, err
	}
	m.Questions[0].Name = target
	ask, err := m.Pack()
	if err != nil {
		return nil, err
	}
	reply, err := s.Forwarder.Forward(ctx, ask, m.Questions[0])
	if err != nil {
		return nil, err
	}
	m = dnsmessage.Message{}
	if err := m.Unpack(reply); err != nil {
		return nil, err
	}
	m.Questions = []dnsmessage.Question{q.question}
	for i := range m.Answers {
		if h := &m.Answers[i].Header; strings.EqualFold(h.Name.String(), name) {
			h.Name = q.question.Name
		}
	}
	return m.Pack()
}
