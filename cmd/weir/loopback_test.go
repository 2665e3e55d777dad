package main_test

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/backends/netlab"
)

// answerRoutes returns the routes of weir by which answers to node ports at ::1 come, sorted: the kernel has them in the order in
// which they were made.
func (d *daemon) answerRoutes() string {
	d.t.Helper()
	routes := slices.Sorted(strings.Lines(d.nodeExec("ip", "-6", "route", "show", "::1", "table", "local", "proto", "119")))
	return strings.Join(routes, "")
}

const (
	loopbackService = `apiVersion: v1
kind: Service
metadata:
  name: six
spec:
  clusterIP: "fd00:10:96::10"
  ipFamilies: [IPv6]
  ports:
  - {name: t, port: 80, nodePort: 30080}
  - {name: u, port: 80, nodePort: 30080, protocol: UDP}
  type: NodePort
`
	loopbackSlice = `apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: six-1
  labels: {kubernetes.io/service-name: six}
addressType: IPv6
ports: [{name: t, port: 80}, {name: u, port: 80, protocol: UDP}]
endpoints: [{addresses: ["fd00:244:1::1"], nodeName: node}]
`
)

// atLoopback returns an error unless the node reaches pod1 at ::1, or is refused.
func (d *daemon) atLoopback(served bool) error {
	r := d.lab.Node().Probe(netlab.TCP, netip.MustParseAddrPort("[::1]:30080"), time.Second)
	if served && r.Server != "pod1" || !served && r.Outcome != netlab.Refused {
		return fmt.Errorf("got %v, want it served: %v", r, served)
	}
	return nil
}

func (d *daemon) awaitLoopback(when string, served bool) {
	d.t.Helper()
	d.await("node ports at ::1: "+when, func() error { return d.atLoopback(served) })
}

// loopbackDaemon starts a weir that serves a node port at ::1.
func loopbackDaemon(t *testing.T, m mode) *daemon {
	t.Helper()
	d := painDaemon(t, m)
	d.write(map[string]string{"config.yaml": shortSyncs + "nodePortAddresses: [all]\n", "six.yaml": loopbackService, "slice6.yaml": loopbackSlice})
	d.start()
	d.awaitSync()
	d.awaitLoopback("at the start", true)
	return d
}

// TestNodePortsAtLoopbackFollowInterfaces has another program delete the route of an interface, an interface go down and come
// back, weir be killed meanwhile, and a bridge come whose frames pass through the packet filter.
func TestNodePortsAtLoopbackFollowInterfaces(t *testing.T) {
	for _, m := range ruleModes {
		t.Run(m.name, func(t *testing.T) {
			d := loopbackDaemon(t, m)
			repaired := func() (n float64) {
				t.Helper()
				_, text, err := httpGet(d, "http://127.0.0.1:10249/metrics")
				if err != nil {
					t.Fatal(err)
				}
				for line := range strings.Lines(text) {
					if rest, ok := strings.CutPrefix(line, "weir_drift_repaired_total "); ok {
						_, _ = fmt.Sscan(rest, &n)
					}
				}
				return n
			}
			d.nodeExec("sh", "-ec", "ip link add late type veth peer name peer; ip link set late up")
			d.await("the route of a new interface", func() error {
				if got := d.answerRoutes(); !strings.Contains(got, "dev late ") {
					return fmt.Errorf("%s", got)
				}
				return nil
			})
			d.nodeExec("ip", "link", "del", "late")
			if n := repaired(); n != 0 {
				t.Errorf("%g objects count as drift before there was any", n)
			}
			d.nodeExec("ip", "-6", "route", "del", "local", "::1", "dev", "vethpod1", "table", "local", "proto", "119")
			d.awaitLoopback("another program deleted the route", true)
			d.await("the repaired drift", func() error {
				if n := repaired(); n != 1 {
					return fmt.Errorf("%g objects", n)
				}
				return nil
			})

			d.kill()
			d.nodeExec("sh", "-ec", "ip link add late type veth peer name peer; ip link set late up")
			if err := d.atLoopback(true); err != nil {
				t.Errorf("weir killed: %v", err)
			}
			plan, err := d.pendingPlan()
			if err != nil || !strings.Contains(plan, "there is none at late") {
				t.Errorf("the plan for an interface that came while weir did not run: %v\n%s", err, plan)
			}
			d.start()
			d.awaitSync()
			if got := d.answerRoutes(); !strings.Contains(got, "dev late ") {
				t.Errorf("an interface that came while weir did not run: %s", got)
			}

			d.nodeExec("sh", "-ec", "ip link add br6 type bridge; ip address add fd00:99::1/64 dev br6 nodad; ip link set br6 up")
			const filters = "/proc/sys/net/bridge/bridge-nf-call-ip6tables"
			if _, err := d.lab.Node().Exec(t.Context(), "sh", "-c", "echo 1 >"+filters); err == nil {
				d.await("that no route is left", func() error {
					if got := d.answerRoutes(); got != "" {
						return fmt.Errorf("%s", got)
					}
					return nil
				})
				d.awaitLoopback("a bridge passes its frames through the packet filter: weir carries the connections", true)
				d.awaitSync()
				listening := func() string { return d.nodeExec("ss", "-Hlnt", "src", "[::1]:30080") }
				if listening() == "" {
					t.Error("weir does not listen at ::1")
				}
				if out, err := d.run("reconcile", "--dry-run"); err != nil || !strings.Contains(out, "W047-loopback-proxied") {
					t.Errorf("the plan does not tell who carries them: %v\n%s", err, out)
				}
				d.write(map[string]string{"slice6.yaml": strings.Replace(loopbackSlice, "fd00:244:1::1", "fd00:244:1::2", 1)})
				d.await("the other pod", func() error {
					if r := d.lab.Node().Probe(netlab.TCP, netip.MustParseAddrPort("[::1]:30080"), time.Second); r.Server != "pod2" {
						return fmt.Errorf("%v", r)
					}
					return nil
				})
				d.write(map[string]string{"slice6.yaml": loopbackSlice})
				d.nodeExec("sh", "-c", "echo 0 >"+filters)
				d.await("that weir listens no more", func() error {
					if got := listening(); got != "" {
						return fmt.Errorf("%s", got)
					}
					return nil
				})
				d.awaitLoopback("it does so no more", true)
				d.awaitSync()

				var other net.Listener
				if err := d.lab.Node().Do(func() (err error) {
					other, err = net.Listen("tcp6", "[::1]:30080")
					return err
				}); err != nil {
					t.Fatal(err)
				}
				defer other.Close()
				d.nodeExec("sh", "-c", "echo 1 >"+filters)
				d.awaitStatus("Service default/six: TCP node port not served: [::1]:30080 is in use by another process", "[W019]")
				if out, err := d.weir("status", "-o", "json", "six"); err != nil || !strings.Contains(out, "W019") {
					t.Errorf("status of the Service: %v\n%s", err, out)
				}
				other.Close()
				d.awaitLoopback("the port is free again", true)
				d.await("the status without it", func() error {
					if out, err := d.weir("status"); err != nil || strings.Contains(out, "W019") {
						return fmt.Errorf("%v\n%s", err, out)
					}
					return nil
				})
				d.nodeExec("sh", "-c", "echo 0 >"+filters)
				d.awaitSync()
			}
			d.terminate()
			if err := d.atLoopback(true); err != nil {
				t.Errorf("weir ended: %v", err)
			}
			if out, err := d.cleanup(); err != nil || d.answerRoutes() != "" {
				t.Errorf("cleanup: %v\n%s\n%s", err, out, d.answerRoutes())
			}
		})
	}
}

// datagram returns an IPv6 packet with a UDP datagram.
func datagram(from, to netip.AddrPort, text string) []byte {
	src, dst := from.Addr().As16(), to.Addr().As16()
	udp := binary.BigEndian.AppendUint16(nil, from.Port())
	udp = binary.BigEndian.AppendUint16(udp, to.Port())
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(text)))
	udp = append(append(udp, 0, 0), text...)
	sum := uint32(len(udp)) + unix.IPPROTO_UDP
	add := func(data []byte) {
		for i, b := range data {
			sum += uint32(b) << (8 * (1 - i%2))
		}
	}
	add(src[:])
	add(dst[:])
	add(udp)
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(udp[6:], ^uint16(sum))
	head := []byte{0x60, 0, 0, 0, 0, byte(len(udp)), unix.IPPROTO_UDP, 64}
	return append(append(append(head, src[:]...), dst[:]...), udp...)
}

// inject sends a packet by the interface eth0 of a neighbour to an interface of the node.
func inject(t *testing.T, lab *netlab.Lab, neighbour, nodeInterface string, packet []byte) {
	t.Helper()
	to, err := lab.Node().Handle().LinkByName(nodeInterface)
	if err != nil {
		t.Fatal(err)
	}
	host := lab.Host(neighbour)
	by, err := host.Handle().LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	at := &unix.SockaddrLinklayer{Protocol: binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_IPV6)), Ifindex: by.Attrs().Index, Halen: 6}
	copy(at.Addr[:], to.Attrs().HardwareAddr)
	err = host.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, packet, 0, at)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestNeighboursDoNotReachLoopbackIPv6 sends packets for ::1 and from ::1 by each interface: to a node port, to a server at all
// addresses, and to one at ::1 alone. Packets of the same neighbour with its own address come through before and after.
func TestNeighboursDoNotReachLoopbackIPv6(t *testing.T) {
	for _, m := range ruleModes {
		t.Run(m.name, func(t *testing.T) {
			d := loopbackDaemon(t, m)
			heard := make(chan string, 1000)
			listen := func(host, at string) {
				t.Helper()
				var server net.PacketConn
				if err := d.lab.Host(host).Do(func() (err error) { server, err = net.ListenPacket("udp6", at); return err }); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { server.Close() })
				go func() {
					for buf := make([]byte, 100); ; {
						n, _, err := server.ReadFrom(buf)
						if err != nil {
							return
						}
						heard <- string(buf[:n])
					}
				}()
			}
			listen(netlab.Node, "[::]:9191")
			listen(netlab.Node, "[::1]:9292")
			listen("pod1", "[fd00:244:1::1]:80")
			expect := func(want string) {
				t.Helper()
				select {
				case got := <-heard:
					if got != want {
						t.Fatalf("heard %q, want %q", got, want)
					}
				case <-time.After(answerWait):
					t.Fatalf("did not hear %q, so that this proves nothing", want)
				}
			}
			for _, by := range []struct {
				neighbour, nodeInterface string
				own                      netip.Addr
			}{{netlab.Outside, "eth0", netlab.OutsideIPv6}, {netlab.Remote, "eth1", netlab.RemoteIPv6}, {"pod2", "vethpod2", netlab.PodIPv6(2)}} {
				send := func(from, to string, text string) {
					t.Helper()
					inject(t, d.lab, by.neighbour, by.nodeInterface, datagram(netip.MustParseAddrPort(from), netip.MustParseAddrPort(to), text))
				}
				node, own, port := netlab.NodeIPv6.String(), by.own.String(), 20000
				for round := range 2 {
					for _, at := range []int{9191, 30080} {
						text := fmt.Sprintf("from %s to %d, round %d", by.neighbour, at, round)
						port++
						send(fmt.Sprintf("[%s]:%d", own, port), fmt.Sprintf("[%s]:%d", node, at), text)
						expect(text)
					}
					for _, at := range []int{9191, 9292, 30080, 80} { // what comes through is heard in place of what is expected next
						for _, ends := range [][2]string{{own, "::1"}, {"::1", node}, {"::1", "::1"}, {node, "::1"}} {
							port++
							send(fmt.Sprintf("[%s]:%d", ends[0], port), fmt.Sprintf("[%s]:%d", ends[1], at), fmt.Sprintf("for ::1 by %s: from %s to %s, %d", by.nodeInterface, ends[0], ends[1], at))
						}
					}
				}
			}
			select {
			case got := <-heard:
				t.Errorf("heard %q", got)
			case <-time.After(dropWait):
			}
			if err := d.atLoopback(true); err != nil {
				t.Error(err)
			}
		})
	}
}
