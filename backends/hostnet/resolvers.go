package hostnet

import (
	"net/netip"
	"strings"
)

// Nameservers returns the resolvers that the text of a resolv.conf names.
func Nameservers(text string) (servers []netip.Addr) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(fields[1]); err == nil {
			servers = append(servers, a)
		}
	}
	return servers
}
