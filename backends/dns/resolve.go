package dns

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/dns/dnsmessage"

	"weir/backends/dataplane"
)

// Question is one question, with the name as it was asked.
type Question struct {
	Name string // ends in a dot
	Type dnsmessage.Type
}

// Record is one record of an answer. The fields besides Name, Type and TTL depend on the type.
type Record struct {
	Name   string
	Type   dnsmessage.Type
	TTL    uint32
	Addr   netip.Addr // A, AAAA
	Target string     // CNAME, PTR, SRV, NS
	Port   uint16     // SRV
	Weight uint16     // SRV
	Text   string     // TXT
	Serial uint32     // SOA
}

// Answer is the answer to a Question.
type Answer struct {
	RCode dnsmessage.RCode
	// Records are the answer, Extra the addresses of the targets in it.
	Records, Extra []Record
	// SOA is the record of the zone that a negative answer comes from.
	SOA *Record
	// Chase is the name outside of the zone that the last CNAME of Records leads to. The answer is complete with the
	// records of that name.
	Chase string
	// Rewritten is the name to ask for elsewhere in the place of the question's.
	Rewritten string
	// Unknown reports whether the name is of an address that no Service has. If another server can be asked, it knows
	// better.
	Unknown bool
}

// Resolver answers questions for the zone of a cluster and for addresses in it.
type Resolver struct {
	Zone Zone
	// Domain is the domain of the cluster in lower case, such as "cluster.local.".
	Domain string
	Pods   PodNames
	// Hosts has the addresses of further names, which are in none of the zones. Its keys are in lower case, without a dot
	// at the end.
	Hosts map[string][]netip.Addr
	// Rewrite, if set, has the names that are asked for in the place of others.
	Rewrite *Rewriter
	// Servers are the addresses of the server itself, for the zone's NS records.
	Servers []netip.Addr
}

// The zones of addresses.
const (
	reverse4 = "in-addr.arpa."
	reverse6 = "ip6.arpa."
)

// maxChain limits the CNAME records of one answer.
const maxChain = 10

// Mine returns the zone that a name belongs to, as it is written in the name, or "" if it belongs to none.
func (r *Resolver) Mine(name string) string {
	for _, zone := range [...]string{r.Domain, reverse4, reverse6} {
		if inZone(name, zone) {
			return name[len(name)-len(zone):]
		}
	}
	return ""
}

// inZone reports whether a name is the zone or in it, whatever their case.
func inZone(name, zone string) bool {
	at := len(name) - len(zone)
	return at >= 0 && strings.EqualFold(name[at:], zone) && (at == 0 || name[at-1] == '.')
}

// Resolve answers a question. ok is false if the name is in none of the zones.
func (r *Resolver) Resolve(q Question) (a Answer, ok bool) {
	name, rewritten := r.Rewrite.rewrite(q.Name)
	if !rewritten {
		return r.resolve(q)
	}
	a, ok = r.resolve(Question{name, q.Type})
	a.Records = renamed(a.Records, name, q.Name)
	if !ok || a.Unknown {
		a.Rewritten = name
	}
	return a, ok
}

func (r *Resolver) resolve(q Question) (a Answer, ok bool) {
	zone := r.Mine(q.Name)
	if zone == "" {
		return r.host(q)
	}
	if r.Zone.Serial() == 0 {
		return Answer{RCode: dnsmessage.RCodeServerFailure}, true
	}
	l := lookup{Resolver: r, q: q, zone: zone}
	a, exists := l.answer()
	switch {
	case !exists:
		a = Answer{RCode: dnsmessage.RCodeNameError, SOA: l.soa(), Unknown: a.Unknown}
	case len(a.Records) == 0:
		a = Answer{SOA: l.soa(), Unknown: a.Unknown}
	}
	return a, true
}

// host answers for a name of Hosts.
func (r *Resolver) host(q Question) (a Answer, ok bool) {
	addrs, ok := r.Hosts[strings.ToLower(strings.TrimSuffix(q.Name, "."))]
	for _, addr := range addrs {
		a.Records = appendAddr(a.Records, q.Name, addr, q.Type)
	}
	return a, ok
}

// lookup is one question.
type lookup struct {
	*Resolver
	q    Question
	zone string // in the case of the question
	// chain holds the CNAME records that led here.
	chain []Record
}

func (l *lookup) soa() *Record {
	return &Record{Name: l.zone, Type: dnsmessage.TypeSOA, TTL: TTL, Serial: l.Zone.Serial()}
}

// answer returns the records of the answer. exists is false if no record of any type has the name.
func (l *lookup) answer() (a Answer, exists bool) {
	if l.zone == l.q.Name {
		return l.apex(), true
	}
	if !strings.EqualFold(l.zone, l.Domain) {
		return l.pointers()
	}
	labels := strings.Split(strings.ToLower(l.q.Name[:len(l.q.Name)-len(l.zone)-1]), ".")
	last := len(labels) - 1
	kind := labels[last]
	if kind != "svc" && kind != "pod" {
		return l.special(labels)
	}
	switch {
	case last == 0:
		return Answer{}, true
	case !l.Zone.HasNamespace(labels[last-1]):
		return Answer{}, false
	case kind == "pod":
		return l.pod(labels[:last])
	case last == 1:
		return Answer{}, true
	}
	return l.service(labels[:last])
}

// special answers for the names that are neither of Services nor of pods.
func (l *lookup) special(labels []string) (a Answer, exists bool) {
	switch strings.Join(labels, ".") {
	case "dns-version":
		if l.q.Type == dnsmessage.TypeTXT {
			a.Records = []Record{{Name: l.q.Name, Type: l.q.Type, TTL: versionTTL, Text: specification}}
		}
	case "ns.dns":
		a.Records = l.servers(l.q.Name, l.q.Type)
	case "dns":
	default:
		return a, false
	}
	return a, true
}

// apex answers for the zone itself.
func (l *lookup) apex() (a Answer) {
	switch l.q.Type {
	case dnsmessage.TypeSOA:
		a.Records = []Record{*l.soa()}
	case dnsmessage.TypeNS:
		host := "ns.dns." + l.zone
		a.Extra = append(l.servers(host, dnsmessage.TypeA), l.servers(host, dnsmessage.TypeAAAA)...)
		if len(a.Extra) > 0 {
			a.Records = []Record{{Name: l.q.Name, Type: l.q.Type, TTL: TTL, Target: host}}
		}
	}
	return a
}

func (l *lookup) servers(name string, t dnsmessage.Type) (records []Record) {
	for _, addr := range l.Servers {
		records = appendAddr(records, name, addr, t)
	}
	return records
}

// appendAddr appends the record of an address, if it is of the type that is wanted.
func appendAddr(records []Record, name string, addr netip.Addr, t dnsmessage.Type) []Record {
	if r := addrRecord(name, addr); r.Type == t {
		return append(records, r)
	}
	return records
}

func addrRecord(name string, addr netip.Addr) Record {
	t := dnsmessage.TypeAAAA
	if addr.Is4() {
		t = dnsmessage.TypeA
	}
	return Record{Name: name, Type: t, TTL: TTL, Addr: addr}
}

// pod answers for the name of an address in a namespace: labels are those before "pod".
func (l *lookup) pod(labels []string) (a Answer, exists bool) {
	if l.Pods == PodsDisabled || len(labels) > 4 {
		return a, false
	}
	if len(labels) == 1 {
		return a, true
	}
	addr, ok := undash(labels[len(labels)-2])
	namespace := labels[len(labels)-1]
	if !ok || l.Pods == PodsVerified && !slices.ContainsFunc(l.Zone.Pointers(addr), func(n dataplane.ServiceName) bool { return n.Namespace == namespace }) {
		return a, false
	}
	a.Records = appendAddr(nil, l.q.Name, addr, l.q.Type)
	return a, true
}

// undash returns the address that a label such as 10-0-0-1 stands for.
func undash(label string) (netip.Addr, bool) {
	sep := ":"
	if strings.Count(label, "-") == 3 && !strings.Contains(label, "--") {
		sep = "."
	}
	addr, err := netip.ParseAddr(strings.ReplaceAll(label, "-", sep))
	return addr.Unmap(), err == nil
}

// target is what a question asks of a Service: a name of one endpoint, or a port. Each part is "" if the question leaves
// it open.
type target struct{ host, port, protocol string }

// service answers for a Service: labels are those before "svc", of which the last two are the Service's.
func (l *lookup) service(labels []string) (a Answer, exists bool) {
	n := len(labels)
	names := l.Zone.Names(dataplane.ServiceName{Namespace: labels[n-1], Name: labels[n-2]})
	var want target
	switch {
	case names == nil || n > 4:
		return a, false
	case n == 3:
		want.host = labels[0]
	case n == 4:
		want.port, want.protocol = strings.TrimPrefix(labels[0], "_"), strings.TrimPrefix(labels[1], "_")
	}
	if names.ExternalName != "" {
		if n > 2 {
			return a, false
		}
		return l.external(names.ExternalName)
	}
	found := l.match(names, want)
	if len(found) == 0 {
		// A name above that of a port exists too (RFC 8020), or resolvers that minimize names stop there.
		protocol := target{protocol: strings.TrimPrefix(want.host, "_")}
		return a, protocol.protocol != want.host && protocol.protocol != "" && len(l.match(names, protocol)) > 0
	}
	switch l.q.Type {
	case dnsmessage.TypeA, dnsmessage.TypeAAAA:
		for _, f := range found {
			a.Records = appendAddr(a.Records, l.q.Name, f.addr, l.q.Type)
		}
		a.Records = unique(a.Records, func(r Record) netip.Addr { return r.Addr })
	case dnsmessage.TypeSRV:
		l.srv(&a, found)
	}
	return a, true
}

// match is an address and port that a question asks for, and the labels of the address's own name before the zone.
type match struct {
	addr netip.Addr
	port NamedPort
	name string
}

// NamedPort is a port with its name.
type NamedPort = dataplane.NamedPort

func (l *lookup) match(names *dataplane.Names, want target) (found []match) {
	own := names.Service.Name + "." + names.Service.Namespace + ".svc."
	if !names.Headless() && want.host == "" {
		for _, p := range names.Ports {
			if !want.matches(p) {
				continue
			}
			for _, ip := range names.ClusterIPs {
				found = append(found, match{ip, p, own})
			}
		}
		return found
	}
	for _, e := range names.Endpoints {
		if want.host != "" && !strings.EqualFold(want.host, e.Host) {
			continue
		}
		for _, p := range e.Ports {
			if want.matches(p) {
				found = append(found, match{e.Addr, p, e.Host + "." + own})
			}
		}
	}
	return found
}

func (t target) matches(p NamedPort) bool {
	protocol := ""
	if p.Protocol != 0 {
		protocol = p.Protocol.String()
	}
	return (t.port == "" || strings.EqualFold(t.port, p.Name)) && (t.protocol == "" || strings.EqualFold(t.protocol, protocol))
}

// srv adds the SRV records of what was found, and the addresses of their targets.
func (l *lookup) srv(a *Answer, found []match) {
	weight := uint16(max(100/len(found), 1))
	for _, f := range found {
		if f.port.Protocol == 0 {
			continue
		}
		host := f.name + l.zone
		a.Records = append(a.Records, Record{Name: l.q.Name, Type: l.q.Type, TTL: TTL, Target: host, Port: f.port.Port, Weight: weight})
		a.Extra = append(a.Extra, addrRecord(host, f.addr))
	}
	type end struct {
		target string
		port   uint16
	}
	type host struct {
		name string
		addr netip.Addr
	}
	a.Records = unique(a.Records, func(r Record) end { return end{r.Target, r.Port} })
	a.Extra = unique(a.Extra, func(r Record) host { return host{r.Name, r.Addr} })
}

// unique returns the records without those that have the same key as an earlier one.
func unique[K comparable](records []Record, key func(Record) K) []Record {
	if len(records) < 2 {
		return records
	}
	seen := make(map[K]bool, len(records))
	return slices.DeleteFunc(records, func(r Record) bool {
		k := key(r)
		defer func() { seen[k] = true }()
		return seen[k]
	})
}

// external answers for a Service that stands for another name. Names of the zone itself are followed.
func (l *lookup) external(name string) (a Answer, exists bool) {
	if _, err := netip.ParseAddr(name); err == nil {
		return a, false // an address is not a name
	}
	if !strings.HasSuffix(name, ".") {
		name += "."
	}
	cname := Record{Name: l.q.Name, Type: dnsmessage.TypeCNAME, TTL: TTL, Target: name}
	switch l.q.Type {
	case dnsmessage.TypeCNAME:
		return Answer{Records: []Record{cname}}, true
	case dnsmessage.TypeA, dnsmessage.TypeAAAA:
	default:
		return a, true
	}
	known := func(r Record) bool { return strings.EqualFold(r.Name, name) }
	if known(cname) || len(l.chain) > maxChain || slices.ContainsFunc(l.chain, known) {
		return a, true
	}
	if !inZone(name, l.zone) {
		return Answer{Records: []Record{cname}, Chase: name}, true
	}
	next := lookup{Resolver: l.Resolver, q: Question{name, l.q.Type}, zone: name[len(name)-len(l.zone):], chain: append(slices.Clip(l.chain), cname)}
	if end, ok := next.answer(); ok && len(end.Records) > 0 {
		return Answer{Records: append([]Record{cname}, end.Records...), Chase: end.Chase}, true
	}
	return a, true
}

// pointers answers for the name of an address.
func (l *lookup) pointers() (a Answer, exists bool) {
	addr, ok := addrOf(l.q.Name)
	if !ok {
		return Answer{Unknown: true}, aboveAddress(l.q.Name)
	}
	for _, service := range l.Zone.Pointers(addr) {
		names := l.Zone.Names(service)
		if names == nil {
			continue
		}
		own := service.Name + "." + service.Namespace + ".svc." + l.Domain
		if slices.Contains(names.ClusterIPs, addr) {
			a.Records = []Record{l.ptr(own)}
			break
		}
		for _, e := range names.Endpoints {
			if e.Addr == addr {
				a.Records = append(a.Records, l.ptr(e.Host+"."+own))
			}
		}
	}
	if exists = len(a.Records) > 0; !exists {
		return Answer{Unknown: true}, false
	}
	if l.q.Type != dnsmessage.TypePTR {
		return Answer{}, exists
	}
	a.Records = unique(a.Records, func(r Record) string { return r.Target })
	return a, exists
}

func (l *lookup) ptr(target string) Record {
	return Record{Name: l.q.Name, Type: dnsmessage.TypePTR, TTL: TTL, Target: target}
}

// aboveAddress reports whether names of addresses may be below a name of their zones. Resolvers that minimize names ask for
// it, and stop at a name that does not exist (RFC 8020).
func aboveAddress(name string) bool {
	name = strings.ToLower(name)
	labels, is4 := strings.CutSuffix(name, "."+reverse4)
	length, base, bits := 4, 10, 8
	if !is4 {
		labels = strings.TrimSuffix(name, "."+reverse6)
		length, base, bits = 32, 16, 4
	}
	parts := strings.Split(labels, ".")
	return len(parts) < length && !slices.ContainsFunc(parts, func(p string) bool {
		_, err := strconv.ParseUint(p, base, bits)
		return err != nil
	})
}

// addrOf returns the address whose reverse name is given.
func addrOf(name string) (addr netip.Addr, ok bool) {
	name = strings.ToLower(name)
	if labels, is4 := strings.CutSuffix(name, "."+reverse4); is4 {
		parts := strings.Split(labels, ".")
		slices.Reverse(parts)
		addr, err := netip.ParseAddr(strings.Join(parts, "."))
		return addr, err == nil && len(parts) == 4
	}
	labels, is6 := strings.CutSuffix(name, "."+reverse6)
	digits := strings.Split(labels, ".")
	if !is6 || len(digits) != 32 {
		return addr, false
	}
	slices.Reverse(digits)
	var b strings.Builder
	for i, d := range digits {
		if len(d) != 1 {
			return addr, false
		}
		if i > 0 && i%4 == 0 {
			b.WriteByte(':')
		}
		b.WriteString(d)
	}
	addr, err := netip.ParseAddr(b.String())
	return addr, err == nil
}
