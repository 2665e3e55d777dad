package dns

import (
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"

	"weir/backends/dataplane"
)

// String returns the record as a line of a zone file.
func (r Record) String() string {
	data := r.Target
	switch r.Type {
	case dnsmessage.TypeA, dnsmessage.TypeAAAA:
		data = r.Addr.String()
	case dnsmessage.TypeSRV:
		data = fmt.Sprintf("0 %d %d %s", r.Weight, r.Port, r.Target)
	case dnsmessage.TypeTXT:
		data = fmt.Sprintf("%q", r.Text)
	case dnsmessage.TypeSOA:
		data = fmt.Sprintf("ns.dns.%s hostmaster.%s %d %d %d %d %d", r.Name, r.Name, r.Serial, soaRefresh, soaRetry, soaExpire, TTL)
	}
	return fmt.Sprintf("%s\t%d\tIN\t%s\t%s", r.Name, r.TTL, strings.TrimPrefix(r.Type.String(), "Type"), data)
}

// resourceText returns a record of another server as Record.String does its own.
func resourceText(r *dnsmessage.Resource) string {
	record := Record{Name: r.Header.Name.String(), Type: r.Header.Type, TTL: r.Header.TTL}
	switch b := r.Body.(type) {
	case *dnsmessage.AResource:
		record.Addr = netip.AddrFrom4(b.A)
	case *dnsmessage.AAAAResource:
		record.Addr = netip.AddrFrom16(b.AAAA)
	case *dnsmessage.CNAMEResource:
		record.Target = b.CNAME.String()
	case *dnsmessage.NSResource:
		record.Target = b.NS.String()
	case *dnsmessage.PTRResource:
		record.Target = b.PTR.String()
	case *dnsmessage.TXTResource:
		record.Text = strings.Join(b.TXT, "")
	case *dnsmessage.SRVResource:
		return fmt.Sprintf("%s\t%d\tIN\tSRV\t%d %d %d %s", record.Name, record.TTL, b.Priority, b.Weight, b.Port, b.Target)
	case *dnsmessage.SOAResource:
		return fmt.Sprintf("%s\t%d\tIN\tSOA\t%s %s %d %d %d %d %d", record.Name, record.TTL, b.NS, b.MBox, b.Serial, b.Refresh, b.Retry, b.Expire, b.MinTTL)
	}
	return record.String()
}

// List returns the records of a Service: of its name, its named ports, the endpoints of a headless Service, and its
// addresses.
func (r *Resolver) List(n *dataplane.Names) (records []Record) {
	own := n.Service.Name + "." + n.Service.Namespace + ".svc." + r.Domain
	seen := map[Record]bool{}
	ask := func(name string, types ...dnsmessage.Type) {
		for _, t := range types {
			a, _ := r.Resolve(Question{name, t})
			for _, record := range a.Records {
				if record.Name == name && !seen[record] { // not what a CNAME leads to
					seen[record] = true
					records = append(records, record)
				}
			}
		}
	}
	if n.ExternalName != "" {
		ask(own, dnsmessage.TypeCNAME)
		return records
	}
	ask(own, dnsmessage.TypeA, dnsmessage.TypeAAAA)
	ports := n.Ports
	if n.Headless() {
		for _, e := range n.Endpoints {
			ask(e.Host+"."+own, dnsmessage.TypeA, dnsmessage.TypeAAAA)
			ports = append(ports[:len(ports):len(ports)], e.Ports...)
		}
	}
	for _, p := range ports {
		if p.Name != "" {
			ask(fmt.Sprintf("_%s._%s.%s", p.Name, strings.ToLower(p.Protocol.String()), own), dnsmessage.TypeSRV)
		}
	}
	for _, ip := range n.ClusterIPs {
		ask(ReverseName(ip), dnsmessage.TypePTR)
	}
	if n.Headless() {
		for _, e := range n.Endpoints {
			ask(ReverseName(e.Addr), dnsmessage.TypePTR)
		}
	}
	return records
}

// ReverseName returns the name of an address, such as 10.0.96.10.in-addr.arpa.
func ReverseName(a netip.Addr) string {
	var b strings.Builder
	if a.Is4() {
		for _, octet := range [...]byte{a.As4()[3], a.As4()[2], a.As4()[1], a.As4()[0]} {
			fmt.Fprintf(&b, "%d.", octet)
		}
		return b.String() + reverse4
	}
	bytes := a.As16()
	for i := len(bytes) - 1; i >= 0; i-- {
		fmt.Fprintf(&b, "%x.%x.", bytes[i]&0xf, bytes[i]>>4)
	}
	return b.String() + reverse6
}
