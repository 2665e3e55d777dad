package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"

	"weir/spec"
	"weir/spec/choice"
)

// maxSettleTime catches typing errors. With a longer time weir would seem not to notice changes.
const maxSettleTime = time.Minute

// WeirFields are the fields of a WeirConfiguration as users write them, in a document or as flags. A nil or empty field
// is not set.
//
// The comments of the fields are what weir explain and the JSON Schema say, with the names of the document. A sentence
// "Example: VALUE." at the end becomes an example. Defaults that are values come from spec.DefaultWeirConfiguration.
type WeirFields struct {
	// ServiceCIDRs are the ranges from which Services that set no ClusterIP get one, at most one IPv4 and one IPv6 range.
	// Each has room for at least four addresses. A Service whose ClusterIP lies outside of a range that is given is
	// refused. If the input has a kubeadm ClusterConfiguration, its serviceSubnet takes the place of the default.
	// Example: [10.43.0.0/16, "fd00:43::/112"].
	ServiceCIDRs []string `json:"serviceCIDRs"`
	// NodePortRange is the range, FIRST-LAST, from which Services that set no node port get one. Both ends belong to it.
	// Example: 30000-30999.
	NodePortRange string `json:"nodePortRange"`
	// SettleTime is how long the files must stay unchanged before weir reads a change: a duration from 0s to 1m. A longer
	// time spares rounds while many files are written, and delays every change. Example: 250ms.
	SettleTime *metav1.Duration `json:"settleTime"`
	// StateDir is the directory, as an absolute path, for state that must survive a restart. Example: /run/weir.
	StateDir string `json:"stateDir"`
	// AllowEmpty accepts an input without any Service as an instruction to have none. If it is false, weir refuses such an
	// input and keeps what is in force. Example: true.
	AllowEmpty *bool `json:"allowEmpty"`
	// ExternalAddresses are the ranges that the external IPs of Services may come from. An empty list allows none. Default:
	// all addresses but the node's own, loopback, link-local, multicast and reserved ones, and those of service CIDRs that
	// are set. Example: [192.0.2.0/24, "2001:db8::/64"].
	ExternalAddresses []string `json:"externalAddresses"`
	// AllowedSigners is the absolute path of an allowed signers file of OpenSSH. If it is set, the input must come from a Git
	// work tree, its commit must be signed with an SSH key of that file, and the files must be those of the commit; else the
	// input is refused, and what is in force stays. Both that file and the one with this document must lie outside of the
	// repository, so that nobody who can change the repository can remove the check. Default: no signature is needed.
	// Example: /etc/weir/allowed_signers.
	AllowedSigners Path `json:"allowedSigners"`
	// Silence lists the IDs of warnings that are accepted for all of the input, whole or up to the first hyphen. "weir help
	// warnings" lists them all. Default: none. Example: [W009, W013-not-rendered].
	Silence []string `json:"silence"`
	// PodSources are the container runtimes, or the kubelet, that weir asks for the pods of this node: KIND=unix:///PATH of
	// a socket, where KIND is podman, docker, kubelet or cri. An empty list, or the word none alone, asks nothing. Default:
	// those that listen where they usually do. Example: ["cri=unix:///run/containerd/containerd.sock"].
	PodSources []string `json:"podSources"`
	// Include are patterns as in .gitignore: if there are any, only files that match one are read. Default: all files.
	// Example: ["services/", "*.svc.yaml"].
	Include []string `json:"include"`
	// Exclude are patterns as in .gitignore: files and directories that match one are not read. Default: none.
	// Example: ["drafts/"].
	Exclude []string `json:"exclude"`
	// Namespace is the only namespace whose objects are used. Objects that name none are taken to be in it. Default: all
	// namespaces. Example: shop.
	Namespace string `json:"namespace"`
	// Selector chooses Services by their labels, as kubectl's -l does. Endpoints go with their Service. Default: all
	// Services. Example: "app=web,tier!=test".
	Selector string `json:"selector"`
	// DNS has weir answer for the names of Services, such as web.default.svc.cluster.local. The section may be empty, as in
	// dns: {}. Without it weir answers only if the flag --dns is given. Example: {clusterDomain: edge.example}.
	DNS *DNSFields `json:"dns"`
	// Liveness is about the probes of endpoints: what weir asks to learn whether an endpoint works.
	// Example: {allowHosts: [192.0.2.0/24]}.
	Liveness *LivenessFields `json:"liveness"`
}

type weirDocument struct {
	metav1.TypeMeta `json:",inline"`
	WeirFields      `json:",inline"`
}

// DecodeWeir decodes a WeirConfiguration, sets its defaults and validates it. The result is usable only if there are no
// errors.
func DecodeWeir(doc Doc) (spec.WeirConfiguration, []spec.Problem) {
	r := reporter{doc: doc, object: WeirKind}
	c := spec.DefaultWeirConfiguration()
	var in weirDocument
	if !decodeStrict(&r, &in) {
		return c, r.sorted()
	}
	if in.APIVersion != WeirAPIVersion || in.Kind != WeirKind {
		r.add("apiVersion", "%q, kind %q: must be %s, kind %s", in.APIVersion, in.Kind, WeirAPIVersion, WeirKind)
		return c, r.sorted()
	}
	o := in.Overrides(r.add)
	if in.DNS != nil {
		o.ServeDNS = new(true)
	}
	return o.Apply(c), r.sorted()
}

// Path is an absolute path. Unlike in other fields, nothing is no value: a template whose variable is not set must not end a
// demand unseen.
type Path string

// UnmarshalJSON implements json.Unmarshaler.
func (p *Path) UnmarshalJSON(data []byte) error {
	var text *string
	if err := json.Unmarshal(data, &text); err != nil {
		return err
	}
	if text == nil || !filepath.IsAbs(*text) {
		return errors.New("not an absolute path")
	}
	*p = Path(*text)
	return nil
}

// Overrides returns the fields as Overrides. It reports invalid ones, in which case the result is not usable.
func (in *WeirFields) Overrides(report func(field, format string, args ...any)) spec.Overrides {
	o := spec.Overrides{StateDir: in.StateDir, AllowEmpty: in.AllowEmpty}
	for i, id := range in.Silence {
		if err := spec.CheckNoticeIDs(id); err != nil {
			report(fmt.Sprintf("silence[%d]", i), "%v", err)
		}
		o.Silence = append(o.Silence, id)
	}
	if in.ServiceCIDRs != nil {
		o.ServiceCIDRs = in.serviceCIDRs(report)
	}
	if in.NodePortRange != "" {
		ports, err := utilnet.ParsePortRange(in.NodePortRange)
		if err != nil || ports.Base < 1 {
			report("nodePortRange", "%q is not a port range, such as 30000-32767", in.NodePortRange)
		} else {
			o.NodePorts = &spec.PortRange{Min: uint16(ports.Base), Max: uint16(ports.Base + ports.Size - 1)}
		}
	}
	if in.SettleTime != nil {
		o.SettleTime = &in.SettleTime.Duration
		if d := *o.SettleTime; d < 0 || d > maxSettleTime {
			report("settleTime", "%v is not between 0s and %v", d, maxSettleTime)
		}
	}
	if in.StateDir != "" && !filepath.IsAbs(in.StateDir) {
		report("stateDir", "%q is not an absolute path", in.StateDir)
	}
	o.AllowedSigners = string(in.AllowedSigners)
	if in.ExternalAddresses != nil {
		o.ExternalAddresses = []netip.Prefix{}
	}
	for i, s := range in.ExternalAddresses {
		p, err := netip.ParsePrefix(s)
		switch field := fmt.Sprintf("externalAddresses[%d]", i); {
		case err != nil:
			report(field, "%q is not a CIDR, such as 192.0.2.0/24", s)
		case p != p.Masked():
			report(field, "%s has bits set after its prefix; write %s", p, p.Masked())
		case p.Addr().Is4In6():
			report(field, "%s is an IPv4 address in IPv6 form; write it as IPv4", p)
		}
		o.ExternalAddresses = append(o.ExternalAddresses, p)
	}
	if in.PodSources != nil {
		o.PodSources = spec.ParsePodSources(in.PodSources, func(i int, format string, args ...any) {
			report(fmt.Sprintf("podSources[%d]", i), format, args...)
		})
	}
	if in.DNS != nil {
		o.DNS = in.DNS.dns(report)
	}
	if in.Liveness != nil {
		o.Liveness = in.Liveness.liveness(report)
	}
	o.Choice = in.choice(report)
	return o
}

func (in *WeirFields) choice(report func(field, format string, args ...any)) spec.Choice {
	for field, patterns := range map[string][]string{"include": in.Include, "exclude": in.Exclude} {
		for i, p := range patterns {
			if err := choice.Check(p); err != nil {
				report(fmt.Sprintf("%s[%d]", field, i), "%v", err)
			}
		}
	}
	if in.Namespace != "" {
		for _, message := range utilvalidation.IsDNS1123Label(in.Namespace) {
			report("namespace", "%q: %s", in.Namespace, message)
		}
	}
	if _, err := labels.Parse(in.Selector); err != nil {
		report("selector", "%q is not a label selector, such as app=web,tier!=test: %v", in.Selector, err)
	}
	return spec.Choice{Include: in.Include, Exclude: in.Exclude, Namespace: in.Namespace, Selector: in.Selector}
}

func (in *WeirFields) serviceCIDRs(report func(field, format string, args ...any)) []netip.Prefix {
	if len(in.ServiceCIDRs) == 0 {
		report("serviceCIDRs", "is empty; leave it out for the defaults")
	}
	var prefixes []netip.Prefix
	families := map[bool]bool{}
	for i, s := range in.ServiceCIDRs {
		field := fmt.Sprintf("serviceCIDRs[%d]", i)
		p, err := netip.ParsePrefix(s)
		switch {
		case err != nil:
			report(field, "%q is not a CIDR, such as 10.96.0.0/12", s)
			continue
		case p != p.Masked():
			report(field, "%s has bits set after its prefix; write %s", p, p.Masked())
		case p.Addr().Is4In6():
			report(field, "%s is an IPv4 address in IPv6 form; write it as IPv4", p)
		case !p.Addr().IsGlobalUnicast():
			report(field, "%s is not a range of unicast addresses", p)
		case p.Addr().BitLen()-p.Bits() < 2:
			report(field, "%s has fewer than four addresses", p)
		case families[p.Addr().Is4()]:
			report(field, "%s is the second of its family; give at most one each", p)
		}
		families[p.Addr().Is4()] = true
		prefixes = append(prefixes, p)
	}
	return prefixes
}
