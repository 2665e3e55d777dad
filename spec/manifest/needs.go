package manifest

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"weir/backends/dataplane"
)

// needs holds the values that a Service takes from the pools.
type needs struct {
	families []corev1.IPFamily
	addrs    []netip.Addr // set by hand
	ports    []uint16     // set by hand, sorted, each once
	wanted   []need       // to be allocated
}

func (n needs) equal(o needs) bool {
	return slices.Equal(n.families, o.families) && slices.Equal(n.addrs, o.addrs) && slices.Equal(n.ports, o.ports) && slices.Equal(n.wanted, o.wanted)
}

// needsOf returns what a Service needs from the pools, and the problems with needs that cannot be met.
func (p *pools) needsOf(s *service, pin *pin) (needs, []fieldProblem) {
	var problems []fieldProblem
	n := needs{addrs: s.clusterIPs}
	if s.base.Spec.Type == corev1.ServiceTypeExternalName {
		return n, nil
	}
	n.families = sharedFamilies(p.familiesOf(s))
	if s.policy == corev1.IPFamilyPolicyRequireDualStack && len(n.families) < 2 {
		problems = append(problems, fieldProblem{"spec.ipFamilyPolicy", "is RequireDualStack, but there is a service CIDR of one family only"})
	}
	if !s.proxied() {
		return n, problems
	}
	for i, f := range n.families {
		if i < len(s.clusterIPs) {
			continue
		}
		if _, pinned := pin.addr(f); p.ip[f] == nil && !pinned {
			problems = append(problems, fieldProblem{"spec.ipFamilies", fmt.Sprintf("no ClusterIP can be allocated, since there is no service CIDR of family %s", f)})
			continue
		}
		n.wanted = append(n.wanted, needOf(f))
	}
	for i, a := range s.clusterIPs {
		if detail := p.outside(a); detail != "" {
			field := "spec.clusterIP"
			if i > 0 {
				field = fmt.Sprintf("spec.clusterIPs[%d]", i)
			}
			problems = append(problems, fieldProblem{field, detail + "; leave it out to have one allocated, or change serviceCIDRs"})
		}
	}
	n, problems = p.portNeeds(s, n, problems)
	n = p.pinned(s, n, pin)
	if slices.Equal(n.wanted, onlyNeedIPv4) {
		n.wanted = onlyNeedIPv4
	}
	return n, problems
}

// outside returns what is wrong with an address that is in none of the service CIDRs that a user set, or "".
func (p *pools) outside(a netip.Addr) string {
	if p.given == nil || slices.ContainsFunc(p.given, func(cidr netip.Prefix) bool { return cidr.Contains(a) }) {
		return ""
	}
	var ranges []string
	for _, cidr := range p.given {
		ranges = append(ranges, cidr.String())
	}
	return fmt.Sprintf("%s is not in the service CIDR, %s", a, strings.Join(ranges, " or "))
}

// The needs of most Services, shared between them.
var (
	onlyNeedIPv4 = []need{needIPv4}
	onlyIPv4     = []corev1.IPFamily{corev1.IPv4Protocol}
	onlyIPv6     = []corev1.IPFamily{corev1.IPv6Protocol}
)

func sharedFamilies(families []corev1.IPFamily) []corev1.IPFamily {
	for _, shared := range [][]corev1.IPFamily{onlyIPv4, onlyIPv6} {
		if slices.Equal(families, shared) {
			return shared
		}
	}
	return slices.Clip(families)
}

func needOf(f corev1.IPFamily) need {
	if f == corev1.IPv4Protocol {
		return needIPv4
	}
	return needIPv6
}

// familiesOf returns the address families of a Service, as the API server would set them.
func (p *pools) familiesOf(s *service) []corev1.IPFamily {
	families := slices.Clone(s.families)
	for _, a := range s.clusterIPs[min(len(families), len(s.clusterIPs)):] {
		families = append(families, familyOf(a))
	}
	if len(families) == 0 && len(p.families) > 0 {
		families = append(families, p.families[0])
	}
	if dual := s.policy == corev1.IPFamilyPolicyPreferDualStack || s.policy == corev1.IPFamilyPolicyRequireDualStack; dual {
		for _, f := range p.families {
			if !slices.Contains(families, f) {
				families = append(families, f)
			}
		}
	}
	return families
}

func (p *pools) portNeeds(s *service, n needs, problems []fieldProblem) (needs, []fieldProblem) {
	set := func(port int32, field string) {
		n.ports = append(n.ports, uint16(port))
		if port < int32(p.min) || port > int32(p.max) {
			problems = append(problems, fieldProblem{field, fmt.Sprintf("%d is not in the node port range, %d-%d", port, p.min, p.max)})
		}
	}
	for i, port := range s.base.Spec.Ports {
		value := s.setNodePort(port.Port)
		if s.nodePorts != nil && s.nodePorts[i] != 0 {
			set(s.nodePorts[i], fmt.Sprintf("spec.ports[%d].nodePort", i))
		} else if s.hasNodePorts() && value == 0 && !slices.Contains(n.wanted, need(port.Port)) {
			n.wanted = append(n.wanted, need(port.Port))
		}
	}
	if s.hasHealthPort() {
		if s.healthPort != 0 {
			set(s.healthPort, "spec.healthCheckNodePort")
		} else {
			n.wanted = append(n.wanted, needHealth)
		}
	}
	slices.Sort(n.ports)
	n.ports = slices.Compact(n.ports)
	return n, problems
}

// setNodePort returns the node port that is set for a port, perhaps of another protocol, or 0. As with the API server,
// ports of one number have one node port for all protocols.
func (s *service) setNodePort(port int32) int32 {
	for i, p := range s.nodePorts {
		if p != 0 && s.base.Spec.Ports[i].Port == port {
			return p
		}
	}
	return 0
}

// complete returns the Service with all fields that an API server would have set. base holds the other fields.
func (p *pools) complete(name dataplane.ServiceName, s *service, n needs, pin *pin) *corev1.Service {
	out := *s.base
	sp := &out.Spec
	sp.IPFamilies = n.families
	sp.IPFamilyPolicy = nil
	if sp.Type != corev1.ServiceTypeExternalName {
		sp.IPFamilyPolicy = sharedPolicy(s.policy)
	}
	if !s.proxied() {
		if s.headless {
			sp.ClusterIPs = headlessIPs
		}
		return &out
	}
	ips := make([]string, 0, len(n.families))
	for i, f := range n.families {
		if i < len(s.clusterIPs) {
			ips = append(ips, s.clusterIPs[i].String())
		} else if a, ok := pin.addr(f); ok {
			ips = append(ips, a.String())
		} else if c := p.ip[f].claims[owner{name, needOf(f)}]; c != nil {
			ips = append(ips, c.value.String())
		}
	}
	sp.ClusterIP, sp.ClusterIPs = "", ips
	if len(ips) > 0 {
		sp.ClusterIP = ips[0]
	}
	if s.hasNodePorts() {
		sp.Ports = slices.Clone(sp.Ports)
	}
	for i := range sp.Ports {
		port := &sp.Ports[i]
		if !s.hasNodePorts() || s.nodePorts != nil && s.nodePorts[i] != 0 {
			continue
		}
		if port.NodePort = s.setNodePort(port.Port); port.NodePort != 0 {
			continue
		}
		if v, ok := pin.port(s, port.Port); ok {
			port.NodePort = int32(v)
		} else {
			port.NodePort = p.allocatedPort(owner{name, need(port.Port)})
		}
	}
	if sp.HealthCheckNodePort = s.healthPort; s.hasHealthPort() && s.healthPort == 0 {
		if v, ok := pin.healthPort(s); ok {
			sp.HealthCheckNodePort = int32(v)
		} else {
			sp.HealthCheckNodePort = p.allocatedPort(owner{name, needHealth})
		}
	}
	return &out
}

func (p *pools) allocatedPort(o owner) int32 {
	if c := p.port.claims[o]; c != nil {
		return int32(c.value)
	}
	return 0
}

var (
	headlessIPs = []string{corev1.ClusterIPNone}

	singleStack = corev1.IPFamilyPolicySingleStack
	preferDual  = corev1.IPFamilyPolicyPreferDualStack
	requireDual = corev1.IPFamilyPolicyRequireDualStack
	policies    = map[corev1.IPFamilyPolicy]*corev1.IPFamilyPolicy{"": &singleStack, singleStack: &singleStack, preferDual: &preferDual, requireDual: &requireDual}
)

func sharedPolicy(p corev1.IPFamilyPolicy) *corev1.IPFamilyPolicy { return policies[p] }
