package dns

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"weir/backends/dataplane"
	"weir/spec/seed"
)

// TestTransfer copies zones over TCP. What comes is every record of the zone between two SOA records, and the connection answers
// questions afterwards.
func TestTransfer(t *testing.T) {
	rng := seed.Rand(t)
	for _, services := range []int{0, 1, 99, 200} {
		zone := &numberedZone{serial: 7}
		var all []dataplane.ServiceName
		for i := range services {
			name := dataplane.ServiceName{Namespace: "default", Name: fmt.Sprint("s", i)}
			zone.testZone, all = append(zone.testZone, randomNames(rng, name)), append(all, name)
		}
		s := &Server{Resolver: &Resolver{Zone: zone, Domain: "cluster.local."}}
		allowed := true
		s.Transfer = func(netip.Addr) (WholeZone, bool) { return WholeZone{zone, all}, allowed }
		at := serve(t, s)

		records, rcode := transferred(t, at)
		if n := len(records); rcode != dnsmessage.RCodeSuccess || n < 3 || records[0] != records[n-1] {
			t.Fatalf("%d Services: %s, %d records", services, rcode, n)
		}
		got := records[1 : len(records)-1]
		var want []string
		for _, r := range s.Resolver.Apex()[1:] {
			want = append(want, r.String())
		}
		for _, name := range all {
			for _, r := range s.Resolver.List(zone.Names(name)) {
				if r.Type != dnsmessage.TypePTR {
					want = append(want, r.String())
				}
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%d Services: %d records, want %d", services, len(got), len(want))
		}

		allowed = false
		if records, rcode := transferred(t, at); rcode != dnsmessage.RCodeRefused || len(records) > 0 {
			t.Errorf("a client that may not copy the zone: %s, %d records", rcode, len(records))
		}
	}
}

// transferred returns the records that a server sends of the zone.
func transferred(t *testing.T, at netip.AddrPort) (records []string, rcode dnsmessage.RCode) {
	t.Helper()
	var conn net.Conn
	eventually(t, "the server takes a connection", func() bool {
		var err error
		conn, err = net.Dial("tcp", at.String())
		return err == nil
	})
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	ask := func(name string, kind dnsmessage.Type) {
		msg, err := (&dnsmessage.Message{Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}}}).Pack()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...)); err != nil {
			t.Fatal(err)
		}
	}
	next := func() (m dnsmessage.Message) {
		var size [2]byte
		_, err := io.ReadFull(conn, size[:])
		msg := make([]byte, binary.BigEndian.Uint16(size[:]))
		if err == nil {
			_, err = io.ReadFull(conn, msg)
		}
		if err == nil {
			err = m.Unpack(msg)
		}
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	ask("cluster.local.", dnsmessage.TypeAXFR)
	for soa := 0; soa < 2; {
		m := next()
		if m.RCode != dnsmessage.RCodeSuccess {
			return records, m.RCode
		}
		for _, r := range m.Answers {
			if r.Header.Type == dnsmessage.TypeSOA {
				soa++
			}
			records = append(records, recordOf(t, r).String())
		}
	}
	ask("dns-version.cluster.local.", dnsmessage.TypeTXT)
	if m := next(); len(m.Answers) != 1 {
		t.Errorf("after the transfer a question has %d answers", len(m.Answers))
	}
	return records, rcode
}

func recordOf(t *testing.T, m dnsmessage.Resource) Record {
	t.Helper()
	r := Record{Name: m.Header.Name.String(), Type: m.Header.Type, TTL: m.Header.TTL}
	switch body := m.Body.(type) {
	case *dnsmessage.AResource:
		r.Addr = netip.AddrFrom4(body.A)
	case *dnsmessage.AAAAResource:
		r.Addr = netip.AddrFrom16(body.AAAA)
	case *dnsmessage.SRVResource:
		r.Target, r.Port, r.Weight = body.Target.String(), body.Port, body.Weight
	case *dnsmessage.TXTResource:
		r.Text = body.TXT[0]
	case *dnsmessage.NSResource:
		r.Target = body.NS.String()
	case *dnsmessage.SOAResource:
		r.Serial = body.Serial
	default:
		t.Fatalf("a record of type %s", r.Type)
	}
	return r
}
