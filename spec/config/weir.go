package config

import (
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
type WeirFields struct {
	ServiceCIDRs  []string         `json:"serviceCIDRs"`
	NodePortRange string           `json:"nodePortRange"` // "30000-32767"
	SettleTime    *metav1.Duration `json:"settleTime"`
	StateDir      string           `json:"stateDir"`
	AllowEmpty    *bool            `json:"allowEmpty"`
	// ExternalAddresses are CIDRs; given and empty, they allow none.
	ExternalAddresses []string `json:"externalAddresses"`
	Silence           []string `json:"silence"` // IDs of notices
	// PodSources are the words of --pod-source, such as cri=unix:///run/containerd/containerd.sock, or none.
	PodSources []string `json:"podSources"`
	// Include and Exclude are patterns as in .gitignore, Namespace and Selector what kubectl's -n and -l take.
	Include   []string `json:"include"`
	Exclude   []string `json:"exclude"`
	Namespace string   `json:"namespace"`
	Selector  string   `json:"selector"`
	// DNS, if it is there, has weir answer for names.
	DNS *DNSFields `json:"dns"`
	// Liveness is about the probes of endpoints.
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
