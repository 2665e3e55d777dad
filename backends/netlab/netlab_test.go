package netlab

import (
	"context"
	"net/netip"
	"testing"
	"time"
)

func TestMain(m *testing.M) { Main(m) }

const patience = 5 * time.Second

var protocols = []Protocol{TCP, UDP, SCTP}

func serveAll(t *testing.T, l *Lab) {
	for _, name := range []string{"pod1", "pod2", "pod3", Client, Remote} {
		for _, p := range protocols {
			l.Host(name).Serve(t, p, 80)
		}
	}
}

func topologies() map[string]Topology {
	return map[string]Topology{"routed": {}, "bridge": {Bridge: "cni0"}}
}

func TestEveryHostReachesEveryPod(t *testing.T) {
	for name, topo := range topologies() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := New(t, topo)
			serveAll(t, l)
			for _, proto := range protocols {
				for _, from := range []string{Node, Client, Outside, Remote, "pod1"} {
					for _, to := range []string{"pod1", "pod2", Remote} {
						for _, v6 := range []bool{false, true} {
							src := l.Host(from)
							r := src.Probe(proto, netip.AddrPortFrom(l.Host(to).Addr(v6), 80), patience)
							if r.Outcome != Answered || r.Server != to || r.Port != 80 {
								t.Errorf("%s from %s to %s (IPv6 %v): %v", proto, from, to, v6, r)
							}
							routed := from == Client || from == "pod1" || from == Outside
							if routed && r.Source.Addr() != src.Addr(v6) {
								t.Errorf("%s from %s to %s: server saw %s", proto, from, to, r.Source)
							}
						}
					}
				}
			}
		})
	}
}

func TestOutcomes(t *testing.T) {
	l := New(t, Topology{})
	serveAll(t, l)
	RequireProgram(t, "iptables-restore")
	_, err := l.Node().ExecInput(context.Background(), `*filter
-A FORWARD -d 192.0.2.1 -j REJECT
-A FORWARD -d 192.0.2.2 -j DROP
-A OUTPUT -d 192.0.2.1 -j REJECT
-A OUTPUT -d 192.0.2.2 -j DROP
COMMIT
*nat
-A PREROUTING -d 192.0.2.3 -j DNAT --to-destination 10.244.1.1
-A OUTPUT -d 192.0.2.3 -j DNAT --to-destination 10.244.1.1
-A POSTROUTING -s 10.244.1.1 -d 10.244.1.1 -j MASQUERADE
COMMIT
`, "iptables-restore", "--noflush")
	if err != nil {
		t.Fatal(err)
	}
	for _, proto := range protocols {
		for _, from := range []string{Node, Client, Outside, "pod1"} {
			for _, row := range []struct {
				to   string
				want Outcome
			}{
				{"192.0.2.1", Refused}, {"192.0.2.2", Dropped}, {"192.0.2.3", Answered}, {"192.0.2.4", Unreachable},
			} {
				wait := patience
				if row.want == Dropped {
					wait = 300 * time.Millisecond
				}
				r := l.Host(from).Probe(proto, netip.AddrPortFrom(netip.MustParseAddr(row.to), 80), wait)
				if r.Outcome != row.want {
					t.Errorf("%s from %s to %s: %v, want %s", proto, from, row.to, r, row.want)
				}
				if row.want == Answered && from == "pod1" && r.Source.Addr() != NodeIPv4 {
					t.Errorf("%s hairpin: pod saw %s, want the node", proto, r.Source)
				}
			}
		}
	}
}

func TestFlowKeepsItsSourcePort(t *testing.T) {
	l := New(t, Topology{})
	serveAll(t, l)
	for _, proto := range protocols {
		f, err := l.Host(Client).Open(proto, netip.AddrPortFrom(PodIPv4(1), 80), patience)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for range 3 {
			if r := f.Ask(patience); r.Source.Port() != f.LocalPort() {
				t.Errorf("%s: server saw %v, want port %d", proto, r, f.LocalPort())
			}
		}
	}
}

func TestLabsAreIndependent(t *testing.T) {
	a, b := New(t, Topology{}), New(t, Topology{Pods: 1})
	a.Host("pod1").Serve(t, TCP, 80)
	to := netip.AddrPortFrom(PodIPv4(1), 80)
	if r := a.Node().Probe(TCP, to, patience); r.Outcome != Answered {
		t.Errorf("first lab: %v", r)
	}
	if r := b.Node().Probe(TCP, to, patience); r.Outcome != Refused {
		t.Errorf("second lab: %v", r)
	}
}

func TestParseSCTP(t *testing.T) {
	want := sctpPacket{src: 4711, dst: 80, tag: 7, chunk: sctpInitAck, initTag: 7, text: "pod1:80 192.0.2.1:4711\n"}
	b := want.marshal()
	if got, err := parseSCTP(b); err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	for n := range b {
		_, _ = parseSCTP(b[:n]) // no length panics
	}
}
