package main_test

import (
	"slices"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
	corev1 "k8s.io/api/core/v1"

	"weir/backends/dns"
)

// wantedDifference is one between CoreDNS and weir that is meant. The test fails for one that no longer occurs.
type wantedDifference struct {
	// sentence says why, in the words of a specification where there are any.
	sentence string
	// adapt changes CoreDNS's reply to the one that is wanted, if the difference is about such a question.
	adapt func(c *comparison)
}

// comparison is one question with CoreDNS's reply.
type comparison struct {
	*peerWorld
	question dnsmessage.Question
	// name is that of the question in lower case.
	name   string
	theirs *dnsmessage.Message
	// exists reports whether CoreDNS says of another type that the name exists.
	exists bool
}

var wantedDifferences = []wantedDifference{
	{`RFC 1035, 4.1.1: RA "denotes whether recursive query support is available in the name server". weir asks resolvers elsewhere.`, func(c *comparison) {
		c.theirs.RecursionAvailable = true
	}},
	{`RFC 2308, 2.1: NXDOMAIN says that "the domain referred to by the QNAME does not exist", whatever the type. CoreDNS says so for TXT only.`, func(c *comparison) {
		if c.question.Type == dnsmessage.TypeTXT && c.exists && c.theirs.RCode == dnsmessage.RCodeNameError {
			c.empty(dnsmessage.RCodeSuccess)
		}
	}},
	{`RFC 2308, 2.2: NODATA says that "the name is valid". CoreDNS says so of every name if the type is SOA.`, func(c *comparison) {
		if c.question.Type == dnsmessage.TypeSOA && !c.exists && c.theirs.RCode == dnsmessage.RCodeSuccess {
			c.absent()
		}
	}},
	{`RFC 8020, 2: after NXDOMAIN for a name, resolvers deny "any name at or below" it. These have a record, or one below them.`, func(c *comparison) {
		switch c.name {
		case "dns.cluster.local.", "dns-version.cluster.local.":
			if c.theirs.RCode == dnsmessage.RCodeNameError {
				c.empty(dnsmessage.RCodeSuccess)
			}
		}
	}},
	{`RFC 8020, 2, as above: the name of a protocol is above those of its ports.`, func(c *comparison) {
		first, service, _ := strings.Cut(c.name, ".")
		if protocol, ok := strings.CutPrefix(first, "_"); ok && c.theirs.RCode == dnsmessage.RCodeNameError && c.hasPort(service, protocol) {
			c.empty(dnsmessage.RCodeSuccess)
		}
	}},
	{`RFC 2308, 2.1, as above: the name of an address that has a name exists for other types than PTR, too.`, func(c *comparison) {
		if isArpa(c.question.Name) && c.theirs.RCode == dnsmessage.RCodeNameError && c.exists {
			c.empty(dnsmessage.RCodeSuccess)
		}
	}},
	{`RFC 3596, 2.5: the name of an IPv6 address has its 32 nibbles. CoreDNS takes what stands before them as well.`, func(c *comparison) {
		if c.question.Type == dnsmessage.TypePTR && tooLong(c.name) {
			c.absent()
		}
	}},
	{`Kubernetes DNS specification, 2.3.2: SRV records are for "each named port" of a Service. A pod has none.`, func(c *comparison) {
		if c.question.Type == dnsmessage.TypeSRV && strings.HasSuffix(c.name, ".pod.cluster.local.") && len(c.theirs.Answers) > 0 {
			c.empty(dnsmessage.RCodeSuccess)
		}
	}},
	{`Kubernetes DNS specification, 2.5: a Service with an external name has a CNAME record. It has no endpoints, whatever slices name it.`, func(c *comparison) {
		c.theirs.Answers = slices.DeleteFunc(c.theirs.Answers, func(r dnsmessage.Resource) bool {
			ptr, ok := r.Body.(*dnsmessage.PTRResource)
			return ok && c.isExternal(ptr.PTR.String())
		})
		if len(c.theirs.Answers) == 0 && len(c.theirs.Authorities) == 0 && c.theirs.RCode == dnsmessage.RCodeSuccess {
			c.absent()
		}
	}},
}

// doesExist reports whether a reply says that a name exists. Endpoints of a Service with an external name do not count.
func (c *comparison) doesExist(m *dnsmessage.Message) bool {
	return m.RCode == dnsmessage.RCodeSuccess && !tooLong(c.name) && (len(m.Answers) == 0 || slices.ContainsFunc(m.Answers, func(r dnsmessage.Resource) bool {
		ptr, ok := r.Body.(*dnsmessage.PTRResource)
		return !ok || !c.isExternal(ptr.PTR.String())
	}))
}

// absent turns the reply into the one for a name that is neither of a Service nor of a pod: names of addresses are asked for
// elsewhere.
func (c *comparison) absent() {
	c.empty(dnsmessage.RCodeNameError)
	if isArpa(c.question.Name) {
		c.theirs.Authorities, c.theirs.Authoritative = nil, false
	}
}

// empty turns the reply into one without an answer.
func (c *comparison) empty(rcode dnsmessage.RCode) {
	asked := c.question.Name.String()
	zone := asked
	for _, z := range c.Zones {
		if strings.HasSuffix(c.name, z) {
			zone = asked[len(asked)-len(z):]
		}
	}
	c.theirs.RCode, c.theirs.Authoritative, c.theirs.Answers, c.theirs.Additionals = rcode, true, nil, nil
	c.theirs.Authorities = []dnsmessage.Resource{{
		Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(zone), Type: dnsmessage.TypeSOA, Class: dnsmessage.ClassINET, TTL: dns.TTL},
		Body: &dnsmessage.SOAResource{NS: dnsmessage.MustNewName("ns.dns." + zone), MBox: dnsmessage.MustNewName("hostmaster." + zone),
			Refresh: 7200, Retry: 1800, Expire: 86400, MinTTL: dns.TTL},
	}}
}

// service returns the Service that a full name is of or below.
func (w *peerWorld) service(name string) *corev1.Service {
	for _, s := range w.Services {
		own := s.Name + "." + s.Namespace + ".svc.cluster.local."
		if name == own || strings.HasSuffix(name, "."+own) {
			return s
		}
	}
	return nil
}

func (w *peerWorld) isExternal(name string) bool {
	s := w.service(name)
	return s != nil && s.Spec.Type == corev1.ServiceTypeExternalName
}

// hasPort reports whether a Service with this full name, or a ready endpoint of a headless one, has a port of the protocol.
func (w *peerWorld) hasPort(name, protocol string) bool {
	s := w.service(name)
	if s == nil || name != s.Name+"."+s.Namespace+".svc.cluster.local." || s.Spec.Type == corev1.ServiceTypeExternalName {
		return false
	}
	if s.Spec.ClusterIP != corev1.ClusterIPNone {
		return slices.ContainsFunc(s.Spec.Ports, func(p corev1.ServicePort) bool { return strings.EqualFold(string(p.Protocol), protocol) })
	}
	for _, slice := range w.Slices {
		if slice.Namespace != s.Namespace || slice.Labels["kubernetes.io/service-name"] != s.Name {
			continue
		}
		for _, e := range slice.Endpoints {
			for _, p := range slice.Ports {
				if (e.Conditions.Ready == nil || *e.Conditions.Ready) && strings.EqualFold(string(*p.Protocol), protocol) {
					return true
				}
			}
		}
	}
	return false
}

// tooLong reports whether a name has more than an IPv6 address before the zone of such names.
func tooLong(name string) bool {
	labels, ok := strings.CutSuffix(name, ".ip6.arpa.")
	return ok && strings.Count(labels, ".") >= 32
}
