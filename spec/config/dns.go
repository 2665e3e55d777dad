package config

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	utilvalidation "k8s.io/apimachinery/pkg/util/validation"

	"weir/spec"
)

// DNSFields are the fields of the section dns of a WeirConfiguration, as users write them.
type DNSFields struct {
	// Listen are the addresses, ADDRESS:PORT, at which weir answers questions for names, over UDP and TCP. An IPv6 address
	// has brackets. Example: ["127.0.0.1:53", "[::1]:53"].
	Listen []string `json:"listen"`
	// ClusterDomain is the domain that the names of Services end in. Example: edge.example.
	ClusterDomain string `json:"clusterDomain"`
	// Pods says which names of pods there are, such as 10-244-1-7.default.pod.cluster.local. With insecure, every address
	// has one in every namespace; with verified, only in the namespace of a Service that it is an endpoint of; with
	// disabled, none has. Example: verified.
	Pods string `json:"pods"`
	// NodeResolver is how the processes of this node come to ask weir, which weir sets while it runs. With auto, weir uses
	// the way in which the node resolves names; with none, it leaves the node alone. Example: none.
	NodeResolver string `json:"nodeResolver"`
	// Upstreams are the resolvers, ADDRESS or ADDRESS:PORT, that weir asks for all other names. Default: those of
	// /etc/resolv.conf. Example: [192.0.2.53, "192.0.2.54:5353"].
	Upstreams []string `json:"upstreams"`
	// Forward has the resolvers for the names of some domains, as lists of ADDRESS or ADDRESS:PORT by domain. Default: none.
	// Example: {corp.example: [10.0.0.1, "10.0.0.2:5353"]}.
	Forward map[string][]string `json:"forward"`
	// Allow are ranges of addresses that may ask, besides the node itself and its pods. Default: none.
	// Example: [192.168.1.0/24].
	Allow []string `json:"allow"`
	// Transfer are ranges of addresses that may copy the whole zone, over TCP (AXFR). Default: none.
	// Example: [192.168.1.2/32].
	Transfer []string `json:"transfer"`
	// Hosts has further names: lists of addresses by name. No name may be in the cluster domain. Default: none.
	// Example: {printer.lan: [192.0.2.7, "2001:db8::7"]}.
	Hosts map[string][]string `json:"hosts"`
	// Rewrite has names that stand for others: a question for the first is answered with what the second has. With
	// "*." before both, it is for all names below a domain. Default: none.
	// Example: {shop.lan: web.default.svc.cluster.local, "*.old.example": "*.new.example"}.
	Rewrite map[string]string `json:"rewrite"`
	// Search answers a pod after its first question for a short name: a name that does not exist in the pod's first search
	// domain is answered with the name that its resolver would find after it. Example: true.
	Search bool `json:"search"`
}

// podNames are the values of pods.
var podNames = []string{"disabled", "insecure", "verified"}

// NodeResolvers are the values of nodeResolver: how the processes of the node find the names of Services.
var NodeResolvers = []string{"auto", "none", "resolved", "networkmanager", "dnsmasq", "resolv.conf", "hosts"}

// dns returns the fields as settings. It reports invalid ones, in which case the result is not usable.
func (in *DNSFields) dns(report func(field, format string, args ...any)) spec.DNS {
	d := spec.DNS{Pods: in.Pods, NodeResolver: in.NodeResolver, Search: in.Search}
	for i, text := range in.Listen {
		at, err := netip.ParseAddrPort(text)
		switch field := fmt.Sprintf("dns.listen[%d]", i); {
		case err != nil:
			report(field, "%q is not ADDRESS:PORT, such as 127.0.0.1:53", text)
		case at.Port() == 0:
			report(field, "%q: port 0 is not between 1 and 65535", text)
		case ofMany(at.Addr()):
			report(field, "%q: %s is an address of many hosts, at which none can answer", text, at.Addr())
		}
		d.Listen = append(d.Listen, at)
	}
	own := spec.DefaultWeirConfiguration().DNS.ClusterDomain
	if in.ClusterDomain != "" {
		d.ClusterDomain = strings.ToLower(strings.TrimSuffix(in.ClusterDomain, "."))
		if err := CheckClusterDomain(d.ClusterDomain); err != nil {
			report("dns.clusterDomain", "%q %v", in.ClusterDomain, err)
		}
		own = d.ClusterDomain
	}
	if in.Pods != "" && !slices.Contains(podNames, in.Pods) {
		report("dns.pods", "%q is not one of %s", in.Pods, strings.Join(podNames, ", "))
	}
	if in.NodeResolver != "" && !slices.Contains(NodeResolvers, in.NodeResolver) {
		report("dns.nodeResolver", "%q is not one of %s", in.NodeResolver, strings.Join(NodeResolvers, ", "))
	}
	d.Upstreams = resolvers(in.Upstreams, "dns.upstreams", report)
	for _, name := range slices.Sorted(maps.Keys(in.Forward)) {
		list, field := in.Forward[name], "dns.forward."+name
		if len(list) == 0 {
			report(field, "names no resolver")
		}
		if d.Forward == nil {
			d.Forward = map[string][]netip.AddrPort{}
		}
		from := domain(name, field, report)
		if within(from, own) {
			report(field, "is in %s, for whose names weir answers itself", own)
		}
		d.Forward[from] = resolvers(list, field, report)
	}
	d.Allow, d.Transfer = ranges(in.Allow, "dns.allow", report), ranges(in.Transfer, "dns.transfer", report)
	in.hosts(&d, own, report)
	in.rewrite(&d, report)
	return d
}

// rewrite reads names that stand for others. A chain of them would be followed by no server, so it is refused.
func (in *DNSFields) rewrite(d *spec.DNS, report func(field, format string, args ...any)) {
	for _, text := range slices.Sorted(maps.Keys(in.Rewrite)) {
		field := "dns.rewrite." + text
		from, below := strings.CutPrefix(text, "*.")
		to, belowToo := strings.CutPrefix(in.Rewrite[text], "*.")
		from, to = domain(from, field, report), domain(to, field, report)
		switch {
		case below != belowToo:
			report(field, "%q: write *. before both domains, or before none", in.Rewrite[text])
		case from == to:
			report(field, "stands for itself")
		case below:
			from, to = "*."+from, "*."+to
		}
		if d.Rewrite == nil {
			d.Rewrite = map[string]string{}
		}
		if _, twice := d.Rewrite[from]; twice {
			report(field, "is there twice, in another case or with a dot at its end")
		}
		d.Rewrite[from] = to
	}
}

// ranges returns a list of CIDRs.
func ranges(list []string, field string, report func(field, format string, args ...any)) (found []netip.Prefix) {
	for i, text := range list {
		p, err := netip.ParsePrefix(text)
		switch at := fmt.Sprintf("%s[%d]", field, i); {
		case err != nil:
			report(at, "%q is not a CIDR, such as 192.0.2.0/24", text)
		case p != p.Masked():
			report(at, "%s has bits set after its prefix; write %s", p, p.Masked())
		}
		found = append(found, p)
	}
	return found
}

func (in *DNSFields) hosts(d *spec.DNS, own string, report func(field, format string, args ...any)) {
	for _, name := range slices.Sorted(maps.Keys(in.Hosts)) {
		list, field := in.Hosts[name], "dns.hosts."+name
		host := domain(name, field, report)
		switch {
		case len(list) == 0:
			report(field, "has no address")
		case within(host, own):
			report(field, "is in %s, whose names are those of Services", own)
		}
		for i, text := range list {
			a, err := netip.ParseAddr(text)
			if err != nil {
				report(fmt.Sprintf("%s[%d]", field, i), "%q is not an IP address", text)
			}
			if d.Hosts == nil {
				d.Hosts = map[string][]netip.Addr{}
			}
			d.Hosts[host] = append(d.Hosts[host], a.Unmap())
		}
	}
}

// within reports whether a name is a domain or below it.
func within(name, domain string) bool { return name == domain || strings.HasSuffix(name, "."+domain) }

// maxClusterDomain leaves room for _PORT._PROTOCOL.SERVICE.NAMESPACE.svc before it, with the longest names, in the 253 characters of a
// name in DNS.
const maxClusterDomain = 253 - (16 + 6 + 64 + 64 + 4)

// CheckClusterDomain returns why the names of Services cannot end in a domain, which is in lower case and has no dot at its end.
func CheckClusterDomain(domain string) error {
	switch errs := notADomain(domain); {
	case len(errs) > 0:
		return fmt.Errorf("is not a domain, such as cluster.local: %s", strings.Join(errs, "; "))
	case len(domain) > maxClusterDomain:
		return fmt.Errorf("has %d characters: with more than %d, names of Services before it are too long", len(domain), maxClusterDomain)
	case within(domain, "arpa"):
		return errors.New("is of the names of addresses: names of Services cannot end in it")
	}
	return nil
}

// ofMany reports whether an address stands for many hosts.
func ofMany(a netip.Addr) bool {
	return a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// notADomain returns why a text in lower case is not a domain.
func notADomain(text string) []string {
	errs := utilvalidation.IsDNS1123Subdomain(text)
	if slices.ContainsFunc(strings.Split(text, "."), func(label string) bool { return len(label) > 63 }) {
		errs = append(errs, "a part between dots has more than 63 characters")
	}
	return errs
}

// domain returns a domain in lower case and without a dot at its end.
func domain(text, field string, report func(field, format string, args ...any)) string {
	d := strings.ToLower(strings.TrimSuffix(text, "."))
	if errs := notADomain(d); len(errs) > 0 {
		report(field, "%q is not a domain, such as cluster.local: %s", text, strings.Join(errs, "; "))
	}
	return d
}

func resolvers(list []string, field string, report func(field, format string, args ...any)) (all []netip.AddrPort) {
	for i, text := range list {
		at, err := netip.ParseAddrPort(text)
		if a, err2 := netip.ParseAddr(text); err2 == nil {
			at, err = netip.AddrPortFrom(a, 53), nil
		}
		switch field := fmt.Sprintf("%s[%d]", field, i); {
		case err != nil:
			report(field, "%q is not ADDRESS or ADDRESS:PORT, such as 192.0.2.53", text)
		case at.Port() == 0 || at.Addr().IsUnspecified() || ofMany(at.Addr()):
			report(field, "%q: no resolver can be asked there", text)
		}
		all = append(all, at)
	}
	return all
}
