package config

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weir/spec"
)

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

func (in *weirDocument) apply(r *reporter, c *spec.WeirConfiguration) {}
