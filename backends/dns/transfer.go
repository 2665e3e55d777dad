package dns

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"weir/backends/dataplane"
)

// WholeZone is a zone that does not change, with the Services that are in it.
type WholeZone struct {
	Zone     Zone
	Services []dataplane.ServiceName
}

// transferBatch is how many records one message of a transfer has at most. Names have at most 255 bytes, so that they fit.
const transferBatch = 100

// transfer sends the whole zone of the cluster over a TCP connection (AXFR, RFC 5936), if the message asks for that and the
// client may have it. Names of addresses are not part of it, as in CoreDNS. If asked is false, nothing was sent.
func (s *Server) transfer(conn net.Conn, msg []byte, from netip.Addr) (asked bool, err error) {
	if s.Transfer == nil {
		return false, nil
	}
	q, rcode, ok := parse(msg)
	if !ok || rcode != dnsmessage.RCodeSuccess || q.question.Type != dnsmessage.TypeAXFR || !strings.EqualFold(q.question.Name.String(), s.Resolver.Domain) {
		return false, nil
	}
	if !s.transferring.TryLock() { // each holds a copy of the zone
		return false, nil
	}
	defer s.transferring.Unlock()
	whole, allowed := s.Transfer(from)
	if !allowed || whole.Zone.Serial() == 0 {
		return false, nil
	}
	r := *s.Resolver
	r.Zone = whole.Zone
	records := r.Apex()
	soa := records[0]
	for i := 0; ; {
		for ; i < len(whole.Services) && len(records) < transferBatch; i++ {
			for _, record := range r.List(whole.Zone.Names(whole.Services[i])) {
				if record.Type != dnsmessage.TypePTR {
					records = append(records, record)
				}
			}
		}
		last := i == len(whole.Services) && len(records) < transferBatch
		if last {
			records = append(records, soa)
		}
		n := min(len(records), transferBatch)
		if err := s.sendRecords(conn, q, records[:n]); err != nil {
			return true, err
		}
		if records = append(records[:0], records[n:]...); last {
			return true, nil
		}
	}
}

// sendRecords sends one message of a transfer.
func (s *Server) sendRecords(conn net.Conn, q *query, records []Record) error {
	a := Answer{Records: records}
	reply, err := build(nil, q, &a, s.header(q, &a, true), records, nil)
	if err != nil {
		return err
	}
	conn.SetDeadline(time.Now().Add(idleTimeout))
	_, err = conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...))
	return err
}

// Apex returns the records of the zone that no Service is behind, the SOA record first.
func (r *Resolver) Apex() (records []Record) {
	soa, _ := r.Resolve(Question{r.Domain, dnsmessage.TypeSOA})
	ns, _ := r.Resolve(Question{r.Domain, dnsmessage.TypeNS})
	version, _ := r.Resolve(Question{"dns-version." + r.Domain, dnsmessage.TypeTXT})
	return slices.Concat(soa.Records, ns.Records, ns.Extra, version.Records)
}
