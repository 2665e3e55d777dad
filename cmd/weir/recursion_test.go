package main_test

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"weir/backends/netlab"
)

// TestUserspaceDoesNotRecurse opens connections to Services whose endpoints are addresses of Services: their own, each
// other's, a node port, an external IP. The kernel redirects what weir sends there to weir again, and masquerades it. One
// connection must not open others until no descriptor is left.
func TestUserspaceDoesNotRecurse(t *testing.T) {
	for _, redirect := range []string{"iptables-nft", "nftables"} {
		for _, masquerade := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s masqueradeAll=%v", redirect, masquerade), func(t *testing.T) {
				m := userspaceMode(t)
				if redirect == "nftables" {
					m.flags = []string{"--proxy-mode", "userspace"}
				}
				d := painDaemon(t, m)
				d.alone = redirect == "nftables" // without the programs of iptables
				files := map[string]string{"config.yaml": strings.ReplaceAll(painConfig, "{", fmt.Sprintf("{masqueradeAll: %v, ", masquerade))}
				fronts := []string{"10.96.0.50:80", "10.96.0.51:80", "10.96.0.52:80", "10.96.0.53:80", "10.96.0.54:80"}
				for i, endpoint := range []string{"10.96.0.50:80", "10.96.0.52:80", "10.96.0.51:80", "192.168.78.1:30553", "203.0.113.54:80"} {
					files[fmt.Sprintf("loop%d.yaml", i)] = loop(i, netip.MustParseAddrPort(endpoint))
				}
				d.write(files)
				d.start()
				d.awaitSync()
				client := d.lab.Host(netlab.Client)
				before := d.connections()
				for _, to := range fronts {
					for _, p := range []netlab.Protocol{netlab.TCP, netlab.UDP} {
						if r := client.Probe(p, netip.MustParseAddrPort(to), time.Second); r.Outcome == netlab.Answered {
							t.Errorf("%s %s answers: %v", p, to, r)
						}
					}
				}
				// Each probe may take the client's connection, weir's own, and the one that is refused.
				if more := d.connections() - before; more > 3*2*len(fronts)+10 {
					t.Errorf("%d connections to %d addresses", more, len(fronts))
				}
				d.awaitAnswer("pod1")
			})
		}
	}
}

// loop returns a Service, of TCP and UDP, with one endpoint.
func loop(i int, endpoint netip.AddrPort) string {
	s := fmt.Sprintf(`apiVersion: v1
kind: Service
metadata: {name: loop%[1]d}
spec:
  type: NodePort
  clusterIP: 10.96.0.%[2]d
  externalIPs: [203.0.113.%[2]d]
  ports: [{name: t, port: 80, nodePort: 305%[2]d}, {name: u, port: 80, nodePort: 305%[2]d, protocol: UDP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: loop%[1]d, labels: {kubernetes.io/service-name: loop%[1]d}}
addressType: IPv4
ports: [{name: t, port: %[4]d}, {name: u, port: %[4]d, protocol: UDP}]
endpoints: [{addresses: [%[3]s]}]
`, i, 50+i, endpoint.Addr(), endpoint.Port())
	return s
}

// connections returns how many connections the node's kernel tracks.
func (d *daemon) connections() int {
	d.t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(d.nodeExec("cat", "/proc/sys/net/netfilter/nf_conntrack_count")))
	if err != nil {
		d.t.Fatal(err)
	}
	return n
}
