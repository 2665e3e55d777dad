package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// The bounds of a Server.
const (
	// batch is how many datagrams one system call reads or writes.
	batch = 32
	// maxForwarded limits how many questions wait for resolvers elsewhere. One more is answered with SERVFAIL.
	maxForwarded = 1024
	// maxConns limits the open TCP connections, maxConnsOfClient those of one address, and idleTimeout how long one may be silent.
	maxConns         = 128
	maxConnsOfClient = 32
	idleTimeout      = 10 * time.Second
	// tellAgain is the time between two lines about clients that may not ask.
	tellAgain = 10 * time.Minute
	// maxTCPSize is the most that the length of a message over TCP can say.
	maxTCPSize = 1<<16 - 1
)

// Forwarder answers questions for names elsewhere.
type Forwarder interface {
	// Forward returns the answer to a message as it is sent over TCP, with the ID of the message.
	Forward(ctx context.Context, msg []byte, q dnsmessage.Question) ([]byte, error)
}

// Server answers over UDP and TCP.
type Server struct {
	Resolver *Resolver
	// Forwarder answers for all other names. Without one they are refused.
	Forwarder Forwarder
	// Allowed reports whether an address may ask. Questions of others are not answered.
	Allowed func(netip.Addr) bool
	Log     hclog.Logger
	// Namespace, if set, returns the namespace of the pod that has an address. The server then searches for what such a pod
	// does not find in its first search domain.
	Namespace func(netip.Addr) (string, bool)
	// Early, if set, has the Server listen at an address that this node may get later.
	Early bool
	// Open, if set, returns the sockets for an address: those that another process has, or else what listen opens.
	Open func(at netip.AddrPort, listen func() (*net.UDPConn, *net.TCPListener, error)) (*net.UDPConn, *net.TCPListener, error)
	// Metrics, if set, counts.
	Metrics *Metrics
	// Transfer, if set, returns the whole zone for a client that may copy it.
	Transfer func(netip.Addr) (WholeZone, bool)

	counters     *counters
	transferring sync.Mutex

	told      atomic.Int64  // when a client that may not ask was told of, in nanoseconds since 1970
	turns     atomic.Uint32 // of the addresses of answers
	forwarded atomic.Int64

	// leaving makes Serve read nothing more from its sockets.
	leaving atomic.Bool
	sockets atomic.Pointer[sockets]

	connsMu sync.Mutex
	conns   int
	clients map[netip.Addr]int // how many of conns each has
}

// sockets are those of a Server that serves.
type sockets struct {
	udp *net.UDPConn
	tcp *net.TCPListener
	// read is closed when nothing more is read from udp.
	read chan struct{}
}

// Leave reads no further questions, because another process has the sockets too, and waits until those that were read are
// answered, or until ctx is done. It does not end Serve.
func (s *Server) Leave(ctx context.Context) {
	s.leaving.Store(true)
	open := s.sockets.Load()
	if open == nil {
		return
	}
	open.tcp.Close()
	open.udp.SetReadDeadline(time.Unix(1, 0))
	select {
	case <-open.read:
	case <-ctx.Done():
	}
	for s.forwarded.Load() > 0 || s.connected() > 0 {
		select {
		case <-ctx.Done():
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// connected returns how many connections are open.
func (s *Server) connected() int {
	s.connsMu.Lock()
	defer s.connsMu.Unlock()
	return s.conns
}

// Serve answers on an address until ctx is done. It returns an error if it cannot listen there.
func (s *Server) Serve(ctx context.Context, at netip.AddrPort) error {
	open := s.Open
	if open == nil {
		open = func(_ netip.AddrPort, listen func() (*net.UDPConn, *net.TCPListener, error)) (*net.UDPConn, *net.TCPListener, error) {
			return listen()
		}
	}
	udp, tcp, err := open(at, func() (*net.UDPConn, *net.TCPListener, error) { return s.listen(ctx, at) })
	if err != nil {
		return err
	}
	defer udp.Close()
	defer tcp.Close()
	if s.Metrics != nil {
		s.counters = s.Metrics.server(at, s.Resolver.Domain)
	}
	stop := context.AfterFunc(ctx, func() { udp.Close(); tcp.Close() })
	defer stop()
	read := make(chan struct{})
	s.sockets.Store(&sockets{udp, tcp, read})
	var both sync.WaitGroup
	both.Go(func() {
		s.serveUDP(ctx, udp)
		close(read)
		<-ctx.Done() // until then answers may be sent
	})
	both.Go(func() { s.serveTCP(ctx, tcp) })
	both.Wait()
	return ctx.Err()
}

// listen opens the sockets, which have the same port if the address names none.
func (s *Server) listen(ctx context.Context, at netip.AddrPort) (*net.UDPConn, *net.TCPListener, error) {
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	if s.Early {
		config.Control = freely
	}
	udp, err := config.ListenPacket(ctx, "udp", at.String())
	if err != nil {
		return nil, nil, err
	}
	tcp, err := config.Listen(ctx, "tcp", netip.AddrPortFrom(at.Addr(), uint16(udp.LocalAddr().(*net.UDPAddr).Port)).String())
	if err != nil {
		udp.Close()
		return nil, nil, err
	}
	return udp.(*net.UDPConn), tcp.(*net.TCPListener), nil
}

// freely lets a socket have an address that is not one of this node.
func freely(network, _ string, conn syscall.RawConn) (err error) {
	level, option := unix.SOL_IP, unix.IP_FREEBIND
	if strings.HasSuffix(network, "6") {
		level, option = unix.SOL_IPV6, unix.IPV6_FREEBIND
	}
	if failed := conn.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) }); failed != nil {
		return failed
	}
	return err
}

// serveUDP answers datagrams in batches: a batch of questions costs one system call to read and one to answer.
func (s *Server) serveUDP(ctx context.Context, conn *net.UDPConn) {
	socket := ipv4.NewPacketConn(conn) // the calls are the same for IPv6
	in, out := make([]ipv4.Message, batch), make([]ipv4.Message, 0, batch)
	answers := make([][]byte, batch)
	for i := range in {
		in[i].Buffers = [][]byte{make([]byte, maxUDPSize)}
		answers[i] = make([]byte, 0, maxUDPSize)
	}
	limit := newLimiter()
	var kept packedAnswers
	for {
		n, err := socket.ReadBatch(in, 0)
		now := time.Now()
		switch {
		case errors.Is(err, net.ErrClosed), err != nil && s.leaving.Load():
			return
		case err != nil:
			continue // the error of an earlier answer, such as a port that no process listens at
		}
		out = out[:0]
		for i, m := range in[:n] {
			from, ok := m.Addr.(*net.UDPAddr)
			if !ok || !s.allowed(from.AddrPort().Addr()) {
				continue
			}
			who := client{addr: from.AddrPort().Addr().Unmap(), at: now}
			reply, later := s.answerKept(&kept, answers[i], m.Buffers[0][:m.N], &who)
			switch bounded := !limit.allow(who.addr, now); {
			case later != nil && !bounded:
				s.later(ctx, append([]byte(nil), m.Buffers[0][:m.N]...), later, &who, func(reply []byte) { conn.WriteToUDP(reply, from) })
				continue
			case later != nil:
				reply = s.bounded(later)
			case reply == nil:
				continue
			case bounded:
				reply = clip(reply, 0)
				s.counters.limit()
			}
			if cap(reply) <= maxUDPSize {
				answers[i] = reply
			}
			out = append(out, ipv4.Message{Buffers: [][]byte{reply}, Addr: from})
		}
		for sent := 0; sent < len(out); {
			k, err := socket.WriteBatch(out[sent:], 0)
			sent += max(k, 1) // a client that cannot be reached holds up no other
			if errors.Is(err, net.ErrClosed) {
				return
			}
		}
	}
}

// allowed reports whether an address may ask. One that may not is counted, and told at times: its user sees nothing but silence.
func (s *Server) allowed(a netip.Addr) bool {
	a = a.Unmap()
	if s.Allowed == nil || s.Allowed(a) {
		return true
	}
	s.counters.turnAway()
	if now, last := time.Now().UnixNano(), s.told.Load(); now-last > int64(tellAgain) && s.told.CompareAndSwap(last, now) {
		s.Log.Info("a client that may not ask for names gets no answer; if it should, name its network in dns.allow of the WeirConfiguration", "client", a.String())
	}
	return false
}

// answerKept is answer for a message over UDP. It gives the reply to an equal message again until the zone changes.
func (s *Server) answerKept(kept *packedAnswers, buf, msg []byte, from *client) (reply []byte, elsewhere *query) {
	serial := s.Resolver.Zone.Serial()
	if a, ok := kept.get(serial, msg); ok {
		s.counters.asked(from, a.zone, a.typ)
		reply = a.appendReply(buf[:0], msg)
		rotate(reply, s.turns.Add(1))
		s.counters.replied(from, a.zone, reply)
		return reply, nil
	}
	reply, q := s.answer(buf, msg, from)
	switch {
	case reply == nil:
		return nil, q
	case q.mine:
		kept.put(serial, msg, packed{reply, q.zone, q.question.Type})
	}
	return reply, nil
}

// answer returns the reply to a message, in buf if it has room, and the query. There is no query if there must be no reply, and
// no reply if it has to be asked for elsewhere.
func (s *Server) answer(buf, msg []byte, from *client) (reply []byte, q *query) {
	q, rcode, ok := parse(msg)
	if !ok {
		return nil, nil
	}
	if from.tcp {
		q.size = maxTCPSize
	}
	name := q.question.Name.String()
	if s.counters != nil {
		q.zone = s.Resolver.zoneIndex(name)
		s.counters.asked(from, q.zone, q.question.Type)
	}
	a, mine := Answer{RCode: rcode}, true
	if rcode == dnsmessage.RCodeSuccess {
		if q.question.Type == dnsmessage.TypeAXFR || q.question.Type == 251 { // IXFR
			a.RCode = dnsmessage.RCodeRefused
		} else {
			a, mine = s.Resolver.Resolve(Question{name, q.question.Type})
		}
	}
	if s.Forwarder != nil && (!mine || a.Chase != "" || a.Unknown) {
		return nil, q
	}
	if mine && a.RCode == dnsmessage.RCodeNameError {
		if q.search = s.candidates(q, from); q.search != nil {
			return nil, q
		}
	}
	if !mine {
		a.RCode = dnsmessage.RCodeRefused
	}
	// Another client may ask the same and have it searched for.
	q.mine = mine && rcode == dnsmessage.RCodeSuccess && (s.Namespace == nil || a.RCode != dnsmessage.RCodeNameError)
	reply, err := pack(buf, q, &a, s.header(q, &a, mine), q.size)
	if err != nil {
		s.Log.Debug("an answer cannot be packed", "name", name, "error", err)
		return nil, nil
	}
	rotate(reply, s.turns.Add(1))
	s.counters.replied(from, q.zone, reply)
	return reply, q
}

// Reply returns the reply to a message, as it is sent over TCP. It is nil if there must be none.
func (s *Server) Reply(ctx context.Context, msg []byte) []byte {
	return s.reply(ctx, msg, &client{tcp: true, at: time.Now()})
}

func (s *Server) reply(ctx context.Context, msg []byte, from *client) []byte {
	reply, q := s.answer(nil, msg, from)
	if reply == nil && q != nil {
		reply = s.elsewhere(ctx, msg, q)
		s.counters.replied(from, q.zone, reply)
	}
	return reply
}

// bounded returns the reply to a query that is not looked at, because its client asks too often.
func (s *Server) bounded(q *query) []byte {
	s.counters.limit()
	a := Answer{}
	h := s.header(q, &a, false)
	h.Truncated = true
	reply, _ := pack(nil, q, &a, h, q.size)
	return reply
}

func (s *Server) header(q *query, a *Answer, authoritative bool) dnsmessage.Header {
	return dnsmessage.Header{
		ID: q.header.ID, Response: true, OpCode: q.header.OpCode, Authoritative: authoritative && (a.RCode == dnsmessage.RCodeSuccess || a.RCode == dnsmessage.RCodeNameError),
		RecursionDesired: q.header.RecursionDesired, RecursionAvailable: s.Forwarder != nil, RCode: a.RCode & 0xf,
	}
}

// later has a query answered elsewhere, and calls send with the reply for UDP.
func (s *Server) later(ctx context.Context, msg []byte, q *query, from *client, send func([]byte)) {
	finish := func(reply []byte) {
		reply = clip(reply, q.size)
		s.counters.replied(from, q.zone, reply)
		send(reply)
	}
	if s.forwarded.Add(1) > maxForwarded {
		s.forwarded.Add(-1)
		if s.counters != nil {
			s.counters.rejected.Add(1)
		}
		finish(s.failed(q))
		return
	}
	go func() {
		defer s.forwarded.Add(-1)
		finish(s.elsewhere(ctx, msg, q))
	}()
}

// elsewhere answers a query with the help of the Forwarder. A name of the zone that stands for one outside is answered with
// both.
func (s *Server) elsewhere(ctx context.Context, msg []byte, q *query) []byte {
	a, mine := s.Resolver.Resolve(Question{q.question.Name.String(), q.question.Type})
	if len(q.search) > 0 {
		if reply := s.search(ctx, msg, q); reply != nil {
			return reply
		}
	} else if !mine || a.Unknown {
		forward := func() ([]byte, error) { return s.Forwarder.Forward(ctx, msg, q.question) }
		if a.Rewritten != "" {
			forward = func() ([]byte, error) { return s.forwardAs(ctx, a.Rewritten, msg, q) }
		}
		reply, err := forward()
		if err != nil {
			return s.failed(q)
		}
		return reply
	}
	if a.Chase != "" {
		rest, _, err := s.addresses(ctx, a.Chase, q)
		if err != nil {
			return s.failed(q)
		}
		a.Records = append(a.Records, rest...)
	}
	reply, err := pack(nil, q, &a, s.header(q, &a, true), q.size)
	if err != nil {
		return s.failed(q)
	}
	return reply
}

// addresses returns the addresses of a name elsewhere.
func (s *Server) addresses(ctx context.Context, name string, q *query) ([]Record, dnsmessage.RCode, error) {
	target, err := dnsmessage.NewName(name)
	if err != nil {
		return nil, 0, err
	}
	question := dnsmessage.Question{Name: target, Type: q.question.Type, Class: dnsmessage.ClassINET}
	ask := dnsmessage.Message{Header: dnsmessage.Header{ID: q.header.ID, RecursionDesired: true}, Questions: []dnsmessage.Question{question}}
	msg, err := ask.Pack()
	if err != nil {
		return nil, 0, err
	}
	reply, err := s.Forwarder.Forward(ctx, msg, question)
	if err != nil {
		return nil, 0, err
	}
	var m dnsmessage.Message
	if err := m.Unpack(reply); err != nil {
		return nil, 0, err
	}
	var records []Record
	for _, r := range m.Answers {
		record := Record{Name: r.Header.Name.String(), Type: r.Header.Type, TTL: r.Header.TTL}
		switch body := r.Body.(type) {
		case *dnsmessage.AResource:
			record.Addr = netip.AddrFrom4(body.A)
		case *dnsmessage.AAAAResource:
			record.Addr = netip.AddrFrom16(body.AAAA)
		case *dnsmessage.CNAMEResource:
			record.Target = body.CNAME.String()
		default:
			continue
		}
		records = append(records, record)
	}
	return records, m.RCode, nil
}

// failed returns a reply that tells the client to ask again later.
func (s *Server) failed(q *query) []byte {
	a := Answer{RCode: dnsmessage.RCodeServerFailure}
	reply, _ := pack(nil, q, &a, s.header(q, &a, false), maxUDPSize)
	return reply
}

// clip returns a reply as it is sent over UDP: without its records and marked as truncated if it is longer than limit bytes.
func clip(reply []byte, limit int) []byte {
	if len(reply) <= limit {
		return reply
	}
	var p dnsmessage.Parser
	h, err := p.Start(reply)
	if err != nil {
		return nil
	}
	questions, err := p.AllQuestions()
	if err != nil {
		return nil
	}
	h.Truncated = true
	m := dnsmessage.Message{Header: h, Questions: questions}
	short, err := m.Pack()
	if err != nil {
		return nil
	}
	return short
}

func (s *Server) serveTCP(ctx context.Context, l *net.TCPListener) {
	for {
		conn, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			select { // out of descriptors: others may end
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		from := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr()
		if !s.allowed(from) || !s.enter(from) {
			conn.Close()
			continue
		}
		go func() {
			defer s.leave(from)
			defer conn.Close()
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			s.serveConn(ctx, conn, from.Unmap())
		}()
	}
}

// enter reports whether a client may have one more connection, and counts it.
func (s *Server) enter(from netip.Addr) bool {
	s.connsMu.Lock()
	defer s.connsMu.Unlock()
	if s.conns >= maxConns || s.clients[from] >= maxConnsOfClient {
		return false
	}
	if s.clients == nil {
		s.clients = map[netip.Addr]int{}
	}
	s.conns++
	s.clients[from]++
	return true
}

func (s *Server) leave(from netip.Addr) {
	s.connsMu.Lock()
	defer s.connsMu.Unlock()
	s.conns--
	if s.clients[from]--; s.clients[from] == 0 {
		delete(s.clients, from)
	}
}

// serveConn answers the questions of one connection, one after the other.
func (s *Server) serveConn(ctx context.Context, conn net.Conn, from netip.Addr) {
	var buf []byte
	for {
		conn.SetDeadline(time.Now().Add(idleTimeout))
		var size [2]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return
		}
		msg := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(conn, msg); err != nil {
			return
		}
		if asked, err := s.transfer(conn, msg, from); err != nil {
			return
		} else if asked {
			continue
		}
		reply := s.reply(ctx, msg, &client{addr: from, tcp: true, at: time.Now()})
		if reply == nil {
			return
		}
		buf = append(binary.BigEndian.AppendUint16(buf[:0], uint16(len(reply))), reply...)
		if _, err := conn.Write(buf); err != nil {
			return
		}
	}
}
