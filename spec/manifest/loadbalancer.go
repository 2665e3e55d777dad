package manifest

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"weir/spec"
	"weir/spec/document"
)

// addressAnnotations hold the addresses that a load balancer is asked for, separated by commas, in the order in which
// they are looked for after spec.loadBalancerIP.
var addressAnnotations = []string{
	"metallb.io/loadBalancerIPs",
	"metallb.universe.tf/loadBalancerIPs",
	"lbipam.cilium.io/ips",
	"kube-vip.io/loadbalancerIPs",
}

// loadBalancer sets the addresses of a load balancer. A status is seldom written in a file; without an address in one, those
// that the Service asks for are taken.
func (v *validator) loadBalancer(svc *corev1.Service) {
	v.dropStatus(svc)
	v.serviceStatus(svc)
	status := svc.Status.LoadBalancer.Ingress
	if svc.Spec.Type != corev1.ServiceTypeLoadBalancer || slices.ContainsFunc(status, func(in corev1.LoadBalancerIngress) bool { return in.IP != "" }) {
		return
	}
	asked := v.askedAddresses(svc)
	for _, a := range asked {
		svc.Status.LoadBalancer.Ingress = append(svc.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a.String(), IPMode: &modeVIP})
	}
	if len(asked) == 0 && len(status) == 0 && len(svc.Spec.ExternalIPs) == 0 {
		reached := "its node ports"
		if a := svc.Spec.AllocateLoadBalancerNodePorts; a != nil && !*a {
			reached = "its ClusterIP"
		}
		v.notice(spec.NoLoadBalancerAddress, "is LoadBalancer, and nothing here gives it an address, so that it is reached at "+reached+" only: write the address as spec.loadBalancerIP, or as the annotation "+addressAnnotations[0], "spec.type")
	}
}

// dropStatus drops the status of a Service that can have none. The API server drops every status when an object is
// created, so that such a file is no mistake elsewhere.
func (v *validator) dropStatus(svc *corev1.Service) {
	if len(svc.Status.Conditions) > 0 {
		v.notice(spec.SettingIgnored, "is dropped, as an API server does when a Service is created", "status.conditions")
		svc.Status.Conditions = nil
	}
	if svc.Spec.Type == corev1.ServiceTypeLoadBalancer || len(svc.Status.LoadBalancer.Ingress) == 0 {
		return
	}
	v.notice(spec.SettingIgnored, "is dropped, as an API server does: only a Service of type LoadBalancer has it", "status.loadBalancer.ingress")
	svc.Status = corev1.ServiceStatus{}
}

// askedAddresses returns the addresses of the first field that holds any.
func (v *validator) askedAddresses(svc *corev1.Service) []netip.Addr {
	var found []netip.Addr
	var from string
	take := func(id spec.NoticeID, field, value string) {
		if strings.TrimSpace(value) == "" {
			return
		}
		addrs, fault := parseAddresses(value)
		switch {
		case fault != "":
			v.notice(id, "is ignored: "+fault, "%s", field)
		case found == nil:
			found, from = addrs, field
		case !slices.Equal(found, addrs):
			v.notice(id, fmt.Sprintf("is ignored, since %s asks for %s", from, found[0]), "%s", field)
		}
	}
	take(spec.SettingIgnored, "spec.loadBalancerIP", svc.Spec.LoadBalancerIP)
	for _, name := range addressAnnotations {
		take(spec.AnnotationIgnored, "metadata.annotations["+name+"]", svc.Annotations[name])
	}
	return found
}

// parseAddresses returns the addresses in a list, sorted and unique, or what is wrong with it.
func parseAddresses(list string) (addrs []netip.Addr, fault string) {
	for part := range strings.SplitSeq(list, ",") {
		one := &validator{}
		a, ok := one.plainAddress(strings.TrimSpace(part), "")
		if !ok {
			return nil, document.Printable(one.problems[0].detail)
		}
		addrs = append(addrs, a)
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs), ""
}
