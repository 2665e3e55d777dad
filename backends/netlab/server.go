package netlab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
)

// Protocol is "TCP", "UDP" or "SCTP".
type Protocol string

// The protocols that servers and probes speak.
const (
	TCP  Protocol = "TCP"
	UDP  Protocol = "UDP"
	SCTP Protocol = "SCTP"
)

// Serve answers on a port of all the host's addresses, IPv4 and IPv6, until the test ends. It answers every line or
// datagram with the host's name, the port, and the source that it sees. On SCTP it answers an INIT chunk, on all ports
// at once.
func (h *Host) Serve(t testing.TB, proto Protocol, port uint16) {
	t.Helper()
	var err error
	switch proto {
	case TCP:
		err = h.serveTCP(t, port)
	case UDP:
		err = h.serveUDP(t, port)
	case SCTP:
		err = h.serveSCTP(t)
	default:
		err = fmt.Errorf("unknown protocol")
	}
	if err != nil {
		t.Fatalf("netlab: %s: serve %s port %d: %v", h.Name, proto, port, err)
	}
}

// answer returns a server's answer: "pod1:80 10.244.1.2:34567".
func (h *Host) answer(port uint16, from netip.AddrPort) string {
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	return fmt.Sprintf("%s:%d %s\n", h.Name, port, from)
}

func (h *Host) serveTCP(t testing.TB, port uint16) error {
	var ln net.Listener
	err := h.Do(func() (err error) {
		ln, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	})
	if err != nil {
		return err
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				if errors.Is(err, net.ErrClosed) {
					return
				}
				continue
			}
			go h.talk(t, conn, port)
		}
	}()
	return nil
}

// talk answers every line of a connection.
func (h *Host) talk(t testing.TB, conn net.Conn, port uint16) {
	stop := context.AfterFunc(t.Context(), func() { conn.Close() })
	defer stop()
	defer conn.Close()
	answer := h.answer(port, conn.RemoteAddr().(*net.TCPAddr).AddrPort())
	for r := bufio.NewReader(conn); ; {
		if _, err := r.ReadString('\n'); err != nil {
			return
		}
		if _, err := conn.Write([]byte(answer)); err != nil {
			return
		}
	}
}

func (h *Host) serveUDP(t testing.TB, port uint16) error {
	// One socket per address: a reply must leave from the address that was asked.
	for _, a := range []netip.Addr{h.IPv4, h.IPv6} {
		var conn *net.UDPConn
		err := h.Do(func() (err error) {
			conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, port)))
			return err
		})
		if err != nil {
			return err
		}
		t.Cleanup(func() { conn.Close() })
		go func() {
			for buf := make([]byte, 1500); ; {
				_, from, err := conn.ReadFromUDPAddrPort(buf)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err == nil {
					_, _ = conn.WriteToUDPAddrPort([]byte(h.answer(port, from)), from)
				}
			}
		}()
	}
	return nil
}

// serveSCTP answers INIT chunks from raw sockets, since many kernels have no SCTP sockets.
func (h *Host) serveSCTP(t testing.TB) error {
	for _, a := range []netip.Addr{h.IPv4, h.IPv6} {
		conn, err := h.listenSCTP(a)
		if err != nil {
			return err
		}
		t.Cleanup(func() { conn.Close() })
		go func() {
			for buf := make([]byte, 1500); ; {
				n, from, err := conn.ReadFromIP(buf)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err != nil {
					continue
				}
				p, err := parseSCTP(buf[:n])
				if err != nil || p.chunk != sctpInit {
					continue
				}
				src, _ := netip.AddrFromSlice(from.IP)
				text := h.answer(p.dst, netip.AddrPortFrom(src, p.src))
				reply := sctpPacket{src: p.dst, dst: p.src, tag: p.initTag, chunk: sctpInitAck, initTag: p.initTag, text: text}
				_, _ = conn.WriteToIP(reply.marshal(), from)
			}
		}()
	}
	return nil
}

func (h *Host) listenSCTP(a netip.Addr) (*net.IPConn, error) {
	network := "ip4:132"
	if a.Is6() {
		network = "ip6:132"
	}
	var conn *net.IPConn
	err := h.Do(func() (err error) {
		conn, err = net.ListenIP(network, &net.IPAddr{IP: a.AsSlice()})
		return err
	})
	return conn, err
}
