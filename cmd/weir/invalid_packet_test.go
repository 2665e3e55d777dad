package main_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

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
			// arrives sends one packet and says whether it comes.
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
