package dns

import (
	"context"
	"slices"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// candidates returns the names that the resolver of a pod tries after one in its first search domain, which does not exist. Only
// a pod whose namespace is known searches, and only for addresses.
func (s *Server) candidates(q *query, from *client) []string {
	if s.Namespace == nil || q.question.Type != dnsmessage.TypeA && q.question.Type != dnsmessage.TypeAAAA {
		return nil
	}
	name := q.question.Name.String()
	domain := s.Resolver.Domain
	at := len(name) - len("svc.") - len(domain)
	if at < 2 || !inZone(name, "svc."+domain) {
		return nil
	}
	labels := name[:at-1] // of the name and of the namespace
	dot := strings.LastIndexByte(labels, '.')
	if dot < 1 {
		return nil
	}
	namespace, ok := s.Namespace(from.addr)
	if !ok || !strings.EqualFold(labels[dot+1:], namespace) {
		return nil
	}
	base := labels[:dot+1]
	return []string{base + "svc." + domain, base + domain, base}
}

// search answers with the first name that exists, as CoreDNS's autopath does: with a CNAME record that leads to it. It returns
// nil if none exists, or if that is not known: the pod then asks for the others itself.
func (s *Server) search(ctx context.Context, msg []byte, q *query) []byte {
	for _, name := range q.search {
		a, mine := s.Resolver.Resolve(Question{name, q.question.Type})
		if !mine || a.Unknown {
			if s.Forwarder == nil || a.Rewritten != "" {
				return nil
			}
			records, rcode, err := s.addresses(ctx, name, q)
			if err != nil || rcode != dnsmessage.RCodeSuccess {
				return nil // it is the last
			}
			a = Answer{Records: records}
		}
		if a.RCode == dnsmessage.RCodeNameError {
			continue
		}
		if a.Chase != "" {
			if s.Forwarder == nil {
				return nil
			}
			rest, _, err := s.addresses(ctx, a.Chase, q)
			if err != nil {
				return nil
			}
			a.Records = append(a.Records, rest...)
		}
		a.Records = slices.Insert(a.Records, 0, Record{Name: q.question.Name.String(), Type: dnsmessage.TypeCNAME, TTL: TTL, Target: name})
		reply, err := pack(nil, q, &a, s.header(q, &a, true), q.size)
		if err != nil {
			return nil
		}
		return reply
	}
	return nil
}
