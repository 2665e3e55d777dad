package config

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"

	"weir/spec"
)

// maxSettleTime keeps a slip of the pen from looking as if weir did not notice changes.
const maxSettleTime = time.Minute

// weirDocument is spec.WeirConfiguration as people write it.
type weirDocument struct {
	metav1.TypeMeta `json:",inline"`

	ServiceCIDRs  []string         `json:"serviceCIDRs"`
	NodePortRange string           `json:"nodePortRange"` // "30000-32767"
	SettleTime    *metav1.Duration `json:"settleTime"`
	StateDir      string           `json:"stateDir"`
	AllowEmpty    bool             `json:"allowEmpty"`
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
	in.apply(&r, &c)
	return c, r.sorted()
}

// apply sets in c what the document sets.
func (in *weirDocument) apply(r *reporter, c *spec.WeirConfiguration) {
	if in.ServiceCIDRs != nil {
		c.ServiceCIDRs, c.ServiceCIDRsGiven = in.serviceCIDRs(r), true
	}
	if in.NodePortRange != "" {
		ports, err := utilnet.ParsePortRange(in.NodePortRange)
		if err != nil || ports.Base < 1 {
			r.add("nodePortRange", "%q is not a port range, such as 30000-32767", in.NodePortRange)
		} else {
			c.NodePortMin, c.NodePortMax = uint16(ports.Base), uint16(ports.Base+ports.Size-1)
		}
	}
	if in.SettleTime != nil {
		c.SettleTime = in.SettleTime.Duration
		if c.SettleTime < 0 || c.SettleTime > maxSettleTime {
			r.add("settleTime", "%v is not between 0s and %v", c.SettleTime, maxSettleTime)
		}
	}
	if in.StateDir != "" {
		c.StateDir = in.StateDir
		if !filepath.IsAbs(c.StateDir) {
			r.add("stateDir", "%q is not an absolute path", c.StateDir)
		}
	}
	c.AllowEmpty = in.AllowEmpty
}

func (in *weirDocument) serviceCIDRs(r *reporter) []netip.Prefix {
	if len(in.ServiceCIDRs) == 0 {
		r.add("serviceCIDRs", "is empty; leave it out for the defaults")
	}
	var prefixes []netip.Prefix
	families := map[bool]bool{}
	for i, s := range in.ServiceCIDRs {
		field := fmt.Sprintf("serviceCIDRs[%d]", i)
		p, err := netip.ParsePrefix(s)
		switch {
		case err != nil:
			r.add(field, "%q is not a CIDR, such as 10.96.0.0/12", s)
			continue
		case p != p.Masked():
			r.add(field, "%s has bits set after its prefix; write %s", p, p.Masked())
		case p.Addr().Is4In6():
			r.add(field, "%s is an IPv4 address in IPv6 form; write it as IPv4", p)
		case !p.Addr().IsGlobalUnicast():
			r.add(field, "%s is not a range of unicast addresses", p)
		case p.Addr().BitLen()-p.Bits() < 2:
			r.add(field, "%s has fewer than four addresses", p)
		case families[p.Addr().Is4()]:
			r.add(field, "%s is the second of its family; give at most one each", p)
		}
		families[p.Addr().Is4()] = true
		prefixes = append(prefixes, p)
	}
	return prefixes
}
