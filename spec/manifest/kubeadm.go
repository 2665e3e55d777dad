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

// A ClusterConfiguration of kubeadm says from which range its cluster gives ClusterIPs. Nothing else of it is read.
const (
	kubeadmGroup   = "kubeadm.k8s.io"
	kubeadmKind    = "ClusterConfiguration"
	kubeadmSubnets = "networking.serviceSubnet"
)

// kubeadm takes the service subnets of a ClusterConfiguration.
func (d *decoding) kubeadm(at *document.Document) {
	var in struct {
		Networking struct {
			ServiceSubnet string `json:"serviceSubnet"`
		} `json:"networking"`
	}
	if err := json.Unmarshal(at.JSON(), &in); err != nil {
		d.problemAt(at.Line("networking"), kubeadmKind, kubeadmSubnets, "cannot be read: "+document.Printable(err.Error()))
		return
	}
	d.skip(kubeadmKind, at.Start())
	d.ours = true
	if in.Networking.ServiceSubnet == "" {
		return
	}
	fields := config.WeirFields{}
	for part := range strings.SplitSeq(in.Networking.ServiceSubnet, ",") {
		fields.ServiceCIDRs = append(fields.ServiceCIDRs, strings.TrimSpace(part))
	}
	valid := true
	o := fields.Overrides(func(_, format string, args ...any) {
		valid = false
		d.problemAt(at.Line(kubeadmSubnets), kubeadmKind, kubeadmSubnets, document.Printable(fmt.Sprintf(format, args...)))
	})
	if valid {
		d.out.config = &configuration{line: at.Line(kubeadmSubnets), subnets: o.ServiceCIDRs, embedded: true}
	}
}

// serviceSubnets returns the ranges that the ClusterConfigurations of the input agree on, or nil. Several clusters in
// one input may differ; then nobody can know which is meant.
func (u *update) serviceSubnets() []netip.Prefix {
	all := slices.SortedFunc(maps.Values(u.configs), func(a, b docAt) int { return compareOrigins(a.origin(), b.origin()) })
	all = slices.DeleteFunc(all, func(d docAt) bool { return d.config.subnets == nil })
	if len(all) == 0 {
		return nil
	}
	for _, d := range all[1:] {
		if !slices.Equal(d.config.subnets, all[0].config.subnets) {
			u.subnetNotices = append(u.subnetNotices, spec.SettingIgnored.Notice(d.origin(), kubeadmKind, kubeadmSubnets,
				fmt.Sprintf("is ignored, and so is that of %s, since they differ; set serviceCIDRs in a WeirConfiguration", all[0].origin())))
		}
	}
	if len(u.subnetNotices) > 0 {
		return nil
	}
	return all[0].config.subnets
}
