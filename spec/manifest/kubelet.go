package manifest

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"weir/spec"
	"weir/spec/config"
	"weir/spec/document"
)

// A KubeletConfiguration says at which address its pods ask for names, and in which domain. Nothing else of it is read.
const (
	kubeletGroup  = "kubelet.config.k8s.io"
	kubeletKind   = "KubeletConfiguration"
	kubeletDNS    = "clusterDNS"
	kubeletDomain = "clusterDomain"
)

// kubeletNames are what a KubeletConfiguration says of names.
type kubeletNames struct {
	addrs  []netip.Addr
	domain string
}

// kubelet takes the addresses and the domain of a KubeletConfiguration.
func (d *decoding) kubelet(at *document.Document) {
	var in struct {
		ClusterDNS    []string `json:"clusterDNS"`
		ClusterDomain string   `json:"clusterDomain"`
	}
	if err := json.Unmarshal(at.JSON(), &in); err != nil {
		d.problemAt(at.Line(kubeletDNS), kubeletKind, kubeletDNS, "cannot be read: "+document.Printable(err.Error()))
		return
	}
	d.skip(kubeletKind, at.Start())
	d.ours = true
	names, valid := kubeletNames{domain: strings.ToLower(strings.TrimSuffix(in.ClusterDomain, "."))}, true
	for i, text := range in.ClusterDNS {
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" {
			field := fmt.Sprintf("%s[%d]", kubeletDNS, i)
			d.problemAt(at.Line(field), kubeletKind, field, document.Quote(text)+" is not an IP address")
			valid = false
			continue
		}
		if a = a.Unmap(); notOfNames(a) != "" {
			field := fmt.Sprintf("%s[%d]", kubeletDNS, i)
			d.out.notices = append(d.out.notices, spec.SettingIgnored.Notice(spec.Origin{File: d.path, Line: at.Line(field)}, kubeletKind, field,
				fmt.Sprintf("is ignored: %s is %s, where weir cannot answer pods", a, notOfNames(a))))
			continue
		}
		names.addrs = append(names.addrs, a)
	}
	if names.domain != "" {
		if err := config.CheckClusterDomain(names.domain); err != nil {
			d.problemAt(at.Line(kubeletDomain), kubeletKind, kubeletDomain, document.Quote(in.ClusterDomain)+" "+err.Error())
			valid = false
		}
	}
	if valid && (len(names.addrs) > 0 || names.domain != "") {
		d.out.config = &configuration{line: at.Line(kubeletDNS), kubelet: &names, embedded: true}
	}
}

// metadata are the addresses at which clouds describe their machines.
var metadata = []netip.Prefix{netip.MustParsePrefix("169.254.169.0/24"), netip.MustParsePrefix("169.254.170.0/24"), netip.MustParsePrefix("fd00:ec2::/32")}

// notOfNames returns what an address is at which weir cannot answer pods, or "". A link-local address is usual: that of a NodeLocal
// DNSCache.
func notOfNames(a netip.Addr) string {
	if slices.ContainsFunc(metadata, func(p netip.Prefix) bool { return p.Contains(a) }) {
		return "an address of the cloud's metadata"
	}
	if a.Is4() && a.IsLinkLocalUnicast() {
		return ""
	}
	return specialAddress(a)
}

// kubeletNames returns what the KubeletConfigurations of the input agree on, or nil. Those of several clusters may differ; then
// nobody can know which is meant.
func (u *update) kubeletNames() *kubeletNames {
	all := slices.SortedFunc(maps.Values(u.configs), func(a, b docAt) int { return compareOrigins(a.origin(), b.origin()) })
	all = slices.DeleteFunc(all, func(d docAt) bool { return d.config.kubelet == nil })
	if len(all) == 0 {
		return nil
	}
	first := all[0].config.kubelet
	for _, d := range all[1:] {
		if k := d.config.kubelet; !slices.Equal(k.addrs, first.addrs) || k.domain != first.domain {
			u.kubeletNotices = append(u.kubeletNotices, spec.SettingIgnored.Notice(d.origin(), kubeletKind, kubeletDNS,
				fmt.Sprintf("is ignored, and so is that of %s, since they differ; leave out one of the two", all[0].origin())))
		}
	}
	if len(u.kubeletNotices) > 0 {
		return nil
	}
	return first
}
