package dns

import (
	"golang.org/x/net/dns/dnsmessage"
)

// The sizes of answers over UDP, in bytes. Every client takes the first. The second is the most that is sent, since it fits
// into a packet on every path (DNS flag day 2020).
const (
	minUDPSize = 512
	maxUDPSize = 1232
)

// query is a question with what the client can take.
type query struct {
	header   dnsmessage.Header
	question dnsmessage.Question
	edns     bool
	// size is the most that the client takes over UDP, in bytes.
	size     int
	dnssecOK bool
	zone     uint8 // that it is counted with
	search   []string
	mine     bool // reports whether the answer comes from the zone alone
}

// parse reads a query. If reply is false, nothing may be answered. If rcode is not a success, it is the answer.
func parse(msg []byte) (q *query, rcode dnsmessage.RCode, reply bool) {
	q = &query{}
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil || h.Response {
		return q, 0, false
	}
	q.header, q.size = h, minUDPSize
	if h.OpCode != 0 {
		return q, dnsmessage.RCodeNotImplemented, true
	}
	q.question, err = p.Question()
	if err != nil {
		return q, dnsmessage.RCodeFormatError, true
	}
	if _, err = p.Question(); err != dnsmessage.ErrSectionDone {
		return q, dnsmessage.RCodeFormatError, true
	}
	if p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return q, dnsmessage.RCodeFormatError, true
	}
	for {
		r, err := p.AdditionalHeader()
		if err == dnsmessage.ErrSectionDone {
			break
		}
		if err != nil || p.SkipAdditional() != nil || r.Type == dnsmessage.TypeOPT && q.edns {
			return q, dnsmessage.RCodeFormatError, true
		}
		if r.Type == dnsmessage.TypeOPT {
			q.edns, q.dnssecOK = true, r.DNSSECAllowed()
			q.size = min(max(int(r.Class), minUDPSize), maxUDPSize)
			if version := r.TTL >> 16 & 0xff; version != 0 {
				return q, badVersion, true
			}
		}
	}
	if q.question.Class != dnsmessage.ClassINET {
		return q, dnsmessage.RCodeRefused, true
	}
	return q, dnsmessage.RCodeSuccess, true
}

// badVersion is the answer to a version of EDNS that is not known (RFC 6891).
const badVersion dnsmessage.RCode = 16

// pack returns the answer as it is sent, in buf if it has room. An answer of more than limit bytes goes without Extra, and
// if that is not enough with as many Records as fit, marked as truncated.
func pack(buf []byte, q *query, a *Answer, h dnsmessage.Header, limit int) ([]byte, error) {
	records, extra := a.Records, a.Extra
	for {
		msg, err := build(buf[:0], q, a, h, records, extra)
		switch {
		case err != nil || len(msg) <= limit:
			return msg, err
		case len(extra) > 0:
			extra = nil
		case len(records) > 0:
			h.Truncated = true
			records = records[:min(len(records)-1, len(records)*limit/len(msg))]
		default:
			return msg, nil // the question alone is longer than that
		}
		buf = msg
	}
}

func build(buf []byte, q *query, a *Answer, h dnsmessage.Header, records, extra []Record) ([]byte, error) {
	b := dnsmessage.NewBuilder(buf, h)
	b.EnableCompression()
	if err := b.StartQuestions(); err != nil {
		return nil, err
	}
	if q.question.Name.Length > 0 {
		if err := b.Question(q.question); err != nil {
			return nil, err
		}
	}
	if err := b.StartAnswers(); err != nil {
		return nil, err
	}
	if err := add(&b, records); err != nil {
		return nil, err
	}
	if a.SOA != nil {
		if err := b.StartAuthorities(); err != nil {
			return nil, err
		}
		if err := add(&b, []Record{*a.SOA}); err != nil {
			return nil, err
		}
	}
	if err := b.StartAdditionals(); err != nil {
		return nil, err
	}
	if err := add(&b, extra); err != nil {
		return nil, err
	}
	if q.edns {
		var opt dnsmessage.ResourceHeader
		if err := opt.SetEDNS0(maxUDPSize, a.RCode, q.dnssecOK); err != nil {
			return nil, err
		}
		if err := b.OPTResource(opt, dnsmessage.OPTResource{}); err != nil {
			return nil, err
		}
	}
	return b.Finish()
}

// add packs records. A record whose name is too long for the wire is left out.
func add(b *dnsmessage.Builder, records []Record) error {
	for i := range records {
		r := &records[i]
		name, err := dnsmessage.NewName(r.Name)
		if err != nil {
			continue
		}
		target, err := dnsmessage.NewName(r.Target)
		if err != nil {
			continue
		}
		if err := addOne(b, r, dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: r.TTL}, target); err != nil {
			return err
		}
	}
	return nil
}

func addOne(b *dnsmessage.Builder, r *Record, h dnsmessage.ResourceHeader, target dnsmessage.Name) error {
	switch r.Type {
	case dnsmessage.TypeA:
		return b.AResource(h, dnsmessage.AResource{A: r.Addr.As4()})
	case dnsmessage.TypeAAAA:
		return b.AAAAResource(h, dnsmessage.AAAAResource{AAAA: r.Addr.As16()})
	case dnsmessage.TypeCNAME:
		return b.CNAMEResource(h, dnsmessage.CNAMEResource{CNAME: target})
	case dnsmessage.TypePTR:
		return b.PTRResource(h, dnsmessage.PTRResource{PTR: target})
	case dnsmessage.TypeNS:
		return b.NSResource(h, dnsmessage.NSResource{NS: target})
	case dnsmessage.TypeSRV:
		return b.SRVResource(h, dnsmessage.SRVResource{Weight: r.Weight, Port: r.Port, Target: target})
	case dnsmessage.TypeTXT:
		return b.TXTResource(h, dnsmessage.TXTResource{TXT: []string{r.Text}})
	case dnsmessage.TypeSOA:
		ns, err := dnsmessage.NewName("ns.dns." + r.Name)
		if err != nil {
			return nil
		}
		mbox, err := dnsmessage.NewName("hostmaster." + r.Name)
		if err != nil {
			return nil
		}
		return b.SOAResource(h, dnsmessage.SOAResource{NS: ns, MBox: mbox, Serial: r.Serial, Refresh: soaRefresh, Retry: soaRetry, Expire: soaExpire, MinTTL: TTL})
	}
	return nil
}
