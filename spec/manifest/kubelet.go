package manifest

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	utilvalidation "k8s.io/apimachinery/pkg/util/validation"

	"weir/spec"
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
		names.addrs = append(names.addrs, a.Unmap())
	}
	if names.domain != "" && len(utilvalidation.IsDNS1123Subdomain(names.domain)) > 0 {
		d.problemAt(at.Line(kubeletDomain), kubeletKind, kubeletDomain, document.Quote(in.ClusterDomain)+" is not a domain")
		valid = false
	}
	if valid && (len(names.addrs) > 0 || names.domain != "") {
		d.out.config = &configuration{line: at.Line(kubeletDNS), kubelet: &names, embedded: true}
	}
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
