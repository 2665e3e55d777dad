package probe

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Policy says which hosts Probes may connect to besides the addresses of endpoints. The zero value allows none.
type Policy struct {
	// Networks are ranges of addresses.
	Networks []netip.Prefix
	// Names are host names, in lower case. One allows whatever addresses it has.
	Names []string
}

// ParsePolicy returns the Policy of a list of addresses, ranges of addresses and host names.
func ParsePolicy(hosts []string) (*Policy, error) {
	p := &Policy{}
	for i, h := range hosts {
		if a, err := netip.ParseAddr(h); err == nil && a.Zone() == "" {
			p.Networks = append(p.Networks, netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()))
			continue
		}
		if n, err := netip.ParsePrefix(h); err == nil {
			p.Networks = append(p.Networks, n.Masked())
			continue
		}
		name := strings.ToLower(strings.TrimSuffix(h, "."))
		if !isHostName(name) {
			return nil, &HostError{i, h}
		}
		p.Names = append(p.Names, name)
	}
	return p, nil
}

// HostError is the error for an entry of a list of hosts.
type HostError struct {
	Index int
	Host  string
}

// Error implements error.
func (e *HostError) Error() string {
	return fmt.Sprintf("%q is no address, range of addresses or host name", e.Host)
}

// Equal reports whether both allow the same hosts.
func (p *Policy) Equal(o *Policy) bool {
	if p == nil || o == nil {
		return p.empty() && o.empty()
	}
	return slices.Equal(p.Networks, o.Networks) && slices.Equal(p.Names, o.Names)
}

func (p *Policy) empty() bool { return p == nil || len(p.Networks)+len(p.Names) == 0 }

// Allows reports whether the Host of a Probe may be connected to, which is an address or a name.
func (p *Policy) Allows(host string) bool {
	if p == nil {
		return false
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return a.Zone() == "" && slices.ContainsFunc(p.Networks, func(n netip.Prefix) bool { return n.Contains(a.Unmap()) })
	}
	return slices.Contains(p.Names, strings.ToLower(strings.TrimSuffix(host, ".")))
}

// isHostName reports whether a name consists of labels as a host's does.
func isHostName(name string) bool {
	if name == "" || len(name) > 253 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	last := name[strings.LastIndexByte(name, '.')+1:]
	return strings.Trim(last, "0123456789") != "" // else it is a wrong address
}
