package dataplane

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"time"
)

// jsonFields are the fields of a ServicePort that encoding/json writes by their tags. The tags stand at the
// ServicePort.
type jsonFields ServicePort

// servicePortDoc is the JSON form of a ServicePort: its name and its affinity in readable form, and its other fields.
type servicePortDoc struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	PortName  string `json:"port,omitempty"`
	Protocol  string `json:"protocol"`
	Family    string `json:"family"`
	jsonFields
	AffinitySeconds int64 `json:"affinitySeconds,omitempty"`
}

// MarshalJSON implements json.Marshaler.
func (p *ServicePort) MarshalJSON() ([]byte, error) {
	return json.Marshal(servicePortDoc{
		Namespace: p.Key.Service.Namespace, Name: p.Key.Service.Name, PortName: p.Key.Port, Protocol: p.Key.Protocol.String(), Family: p.Key.Family.String(),
		jsonFields: jsonFields(*p), AffinitySeconds: int64(p.Affinity / time.Second),
	})
}

// UnmarshalJSON implements json.Unmarshaler. It refuses fields that it does not know, and addresses of another family.
func (p *ServicePort) UnmarshalJSON(data []byte) error {
	var doc servicePortDoc
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&doc); err != nil {
		return err
	}
	key := ServicePortName{Service: ServiceName{Namespace: doc.Namespace, Name: doc.Name}, Port: doc.PortName}
	var err error
	if key.Family, err = ParseFamily(doc.Family); err != nil {
		return fmt.Errorf("%s: %w", key.Service, err)
	}
	if key.Protocol, err = parseProtocol(doc.Protocol); err != nil {
		return fmt.Errorf("%s: %w", key.Service, err)
	}
	*p = ServicePort(doc.jsonFields)
	p.Key, p.Affinity = key, time.Duration(doc.AffinitySeconds)*time.Second
	if err := p.checkFamily(); err != nil {
		return fmt.Errorf("%s: %w", key.Service, err)
	}
	return nil
}

// checkFamily returns an error if an address is not a plain one of the ServicePort's family.
func (p *ServicePort) checkFamily() error {
	addrs := append(append([]netip.Addr{p.ClusterIP}, p.ExternalIPs...), p.LoadBalancerIPs...)
	for _, r := range p.SourceRanges {
		addrs = append(addrs, r.Addr())
	}
	for _, ep := range p.Endpoints {
		addrs = append(addrs, ep.Addr.Addr())
	}
	for _, a := range addrs {
		if !a.IsValid() || a.Zone() != "" || a.Is4In6() || FamilyOf(a) != p.Key.Family {
			return fmt.Errorf("%q is not an %s address", a, p.Key.Family)
		}
	}
	return nil
}

// ParseFamily returns the Family whose String is name.
func ParseFamily(name string) (Family, error) {
	for _, f := range []Family{IPv4, IPv6} {
		if f.String() == name {
			return f, nil
		}
	}
	return 0, fmt.Errorf("family %q: must be IPv4 or IPv6", name)
}

func parseProtocol(name string) (Protocol, error) {
	for _, p := range []Protocol{TCP, UDP, SCTP} {
		if p.String() == name {
			return p, nil
		}
	}
	return 0, fmt.Errorf("protocol %q: must be TCP, UDP or SCTP", name)
}
