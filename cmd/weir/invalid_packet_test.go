package main_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/backends/netlab"
)

// TestInvalidPackets sends through the node what conntrack calls invalid: packets that belong to no connection leave without
// their address translated and make clients reset good connections (k/k#74839). They are dropped unless tcpBeLiberal says
// that conntrack does not use the word lightly.
func TestInvalidPackets(t *testing.T) {
	for _, m := range ruleModes { // as in kube-proxy
		t.Run(m.name, func(t *testing.T) {
			d := painDaemon(t, m)
			d.start()
			d.awaitSync()
			pod := d.lab.Host("pod1")
			var received *net.IPConn
			err := pod.Do(func() (err error) {
				received, err = net.ListenIP("ip4:tcp", &net.IPAddr{IP: netlab.PodIPv4(1).AsSlice()})
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			defer received.Close()
			// arrives sends one packet and reports whether it comes.
			arrives := func(seq uint32) bool {
				sendInvalid(t, d.lab.Host(netlab.Client), netlab.PodIPv4(1), seq)
				// What came after it has been there and back.
				if r := d.lab.Host(netlab.Client).Probe(netlab.TCP, netip.AddrPortFrom(netlab.PodIPv4(1), 80), patience); r.Outcome != netlab.Answered {
					t.Fatal(r)
				}
				if err := received.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
					t.Fatal(err)
				}
				for buf := make([]byte, 1500); ; {
					n, _, err := received.ReadFrom(buf)
					if errors.Is(err, os.ErrDeadlineExceeded) {
						return false
					}
					if err != nil {
						t.Fatal(err)
					}
					if n >= 8 && binary.BigEndian.Uint32(buf[4:]) == seq {
						return true
					}
				}
			}
			for seq := range uint32(5) {
				if arrives(1000 + seq) {
					t.Fatal("an invalid packet was forwarded")
				}
			}
			d.write(map[string]string{"config.yaml": painConfig + "conntrack: {tcpBeLiberal: true}\n"})
			d.awaitSync()
			seq := uint32(2000)
			d.await("a packet with tcpBeLiberal", func() error {
				if seq++; !arrives(seq) {
					return fmt.Errorf("it was dropped")
				}
				return nil
			})
		})
	}
}

// sendInvalid sends a TCP header that is SYN and FIN at once, which no connection can have, and whose checksum is wrong.
func sendInvalid(t *testing.T, from *netlab.Host, to netip.Addr, seq uint32) {
	t.Helper()
	header := make([]byte, 20)
	binary.BigEndian.PutUint16(header, 4000)
	binary.BigEndian.PutUint16(header[2:], 80)
	binary.BigEndian.PutUint32(header[4:], seq)
	header[12], header[13] = 5<<4, 0x03
	err := from.Do(func() error {
		conn, err := net.DialIP("ip4:tcp", nil, &net.IPAddr{IP: to.AsSlice()})
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write(header)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestInvalidSegmentsOfEndpoints has an endpoint send a segment outside of the window on a connection that goes on. It is
// not translated back. Where the connection is masqueraded it is addressed to the node, whose reset must not come back.
func TestInvalidSegmentsOfEndpoints(t *testing.T) {
	netlab.Require(t)
	eachMode(t, modes, func(t *testing.T, m mode) {
		if m.proxies {
			t.Skip("the connection to the endpoint is the proxy's own")
		}
		d := painDaemon(t, m)
		d.write(map[string]string{"web.yaml": strings.Replace(painService, "{port: 80}]", "{port: 80, nodePort: 30080}]\n  type: NodePort", 1)})
		d.start()
		d.awaitSync()
		d.await("an answer", func() error {
			return row{From: list{netlab.Outside}, To: list{"192.168.77.1:30080"}, Protocol: list{"TCP"}, Answers: []string{"pod1"}}.check(d.lab, nil)
		})
		tap := newTap(t, d.lab.Host("pod1"))
		for _, from := range []string{netlab.Client, netlab.Outside, netlab.Node} {
			for _, to := range []string{"10.96.0.10:80", "192.168.77.1:30080"} {
				name := from + " to " + to
				flow, err := d.lab.Host(from).Open(netlab.TCP, netip.MustParseAddrPort(to), answerWait)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				defer flow.Close()
				tap.drain(t)
				if r := flow.Ask(answerWait); r.Outcome != netlab.Answered {
					t.Fatalf("%s: %v", name, r)
				}
				seen := tap.lastSent(t)
				for range 3 {
					tap.sendOutOfWindow(t, seen)
				}
				if r := flow.Ask(answerWait); r.Outcome != netlab.Answered {
					t.Errorf("%s: after the segments: %v", name, r)
				}
				if n := tap.resets(t); n > 0 {
					t.Errorf("%s: %d resets came back", name, n)
				}
			}
		}
	})
}

// tap sees the IPv4 packets of a pod in both directions, and sends some.
type tap struct {
	fd  int
	raw *net.IPConn
}

func newTap(t *testing.T, pod *netlab.Host) *tap {
	t.Helper()
	p := &tap{}
	err := pod.Do(func() (err error) {
		if p.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, int(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL)))); err != nil {
			return err
		}
		p.raw, err = net.ListenIP("ip4:tcp", &net.IPAddr{IP: netlab.PodIPv4(1).AsSlice()})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(p.fd); p.raw.Close() })
	return p
}

// segment is what the tap saw of one TCP segment.
type segment struct {
	src, dst netip.AddrPort
	seq, ack uint32
	flags    byte
	length   int
}

const tcpRST = 0x04

// each reads the segments that passed since the last call.
func (p *tap) each(t *testing.T, see func(segment)) {
	t.Helper()
	for buf := make([]byte, 65536); ; {
		n, _, err := unix.Recvfrom(p.fd, buf, 0)
		if errors.Is(err, unix.EAGAIN) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		ip := buf[:n]
		if n < 40 || ip[0]>>4 != 4 || ip[9] != unix.IPPROTO_TCP {
			continue
		}
		total, header := int(binary.BigEndian.Uint16(ip[2:])), int(ip[0]&15)*4
		tcp := ip[header:total]
		port := func(at int) uint16 { return binary.BigEndian.Uint16(tcp[at:]) }
		see(segment{
			src: netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[12:16])), port(0)), dst: netip.AddrPortFrom(netip.AddrFrom4([4]byte(ip[16:20])), port(2)),
			seq: binary.BigEndian.Uint32(tcp[4:]), ack: binary.BigEndian.Uint32(tcp[8:]), flags: tcp[13], length: len(tcp) - int(tcp[12]>>4)*4,
		})
	}
}

func (p *tap) drain(t *testing.T) { p.each(t, func(segment) {}) }

// lastSent returns the last segment with data that the pod sent.
func (p *tap) lastSent(t *testing.T) (last segment) {
	t.Helper()
	p.each(t, func(s segment) {
		if s.src.Addr() == netlab.PodIPv4(1) && s.length > 0 {
			last = s
		}
	})
	if !last.dst.IsValid() {
		t.Fatal("the pod sent nothing")
	}
	return last
}

func (p *tap) resets(t *testing.T) (n int) {
	p.each(t, func(s segment) {
		if s.dst.Addr() == netlab.PodIPv4(1) && s.flags&tcpRST != 0 {
			n++
		}
	})
	return n
}

// sendOutOfWindow sends a segment like one that the pod sent, far outside of the window.
func (p *tap) sendOutOfWindow(t *testing.T, like segment) {
	t.Helper()
	const ack, away = 0x10, 0x20000000
	tcp := make([]byte, 20, 220)
	binary.BigEndian.PutUint16(tcp, like.src.Port())
	binary.BigEndian.PutUint16(tcp[2:], like.dst.Port())
	binary.BigEndian.PutUint32(tcp[4:], like.seq+away)
	binary.BigEndian.PutUint32(tcp[8:], like.ack)
	tcp[12], tcp[13] = 5<<4, ack
	binary.BigEndian.PutUint16(tcp[14:], 500)
	tcp = tcp[:cap(tcp)]
	src, dst := like.src.Addr().As4(), like.dst.Addr().As4()
	pseudo := append(append(append([]byte{}, src[:]...), dst[:]...), 0, unix.IPPROTO_TCP, 0, byte(len(tcp)))
	binary.BigEndian.PutUint16(tcp[16:], checksum(append(pseudo, tcp...)))
	if _, err := p.raw.WriteToIP(tcp, &net.IPAddr{IP: dst[:]}); err != nil {
		t.Fatal(err)
	}
}

// checksum returns the internet checksum (RFC 1071) of an even number of bytes.
func checksum(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
