// Package endpoints makes EndpointSlices of the pods that a Service selects, as the EndpointSlice controller of a control
// plane does. Of returns the slices of one Service. Index knows which pods a Service selects, and which Services a change
// of a pod is about, at a cost that does not depend on the number of either.
//
// The controller's own code, k8s.io/endpointslice, is the oracle of the tests. It is no part of the program, because it
// works on a client of an API server, which would add a sixth to the program's size.
package endpoints

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/endpointslice/trafficdist"

	"weir/spec"
)

// maxEndpoints is the greatest number of endpoints in a slice, as with the EndpointSlice controller.
const maxEndpoints = 100

// Of returns the slices of a Service for the pods that it selects, sorted by name. Pods that have ended or have no address
// are left out. zone returns the zone of a node, or "".
func Of(svc *corev1.Service, pods []*corev1.Pod, zone func(node string) string) []*discoveryv1.EndpointSlice {
	var all []*discoveryv1.EndpointSlice
	for _, family := range families(svc) {
		groups := map[string][]discoveryv1.Endpoint{}
		ports := map[string][]discoveryv1.EndpointPort{}
		for _, pod := range pods {
			if ended(pod) {
				continue
			}
			e := endpoint(svc, pod, family, zone)
			if len(e.Addresses) == 0 {
				continue
			}
			p := portsOf(svc, pod)
			key := portsKey(p)
			ports[key], groups[key] = p, append(groups[key], e)
		}
		all = append(all, group(svc, family, groups, ports)...)
	}
	trafficdist.ReconcileHints(svc.Spec.TrafficDistribution, all, nil, nil)
	return all
}

// group returns the slices of one family, one or more for each list of ports.
func group(svc *corev1.Service, family discoveryv1.AddressType, groups map[string][]discoveryv1.Endpoint, ports map[string][]discoveryv1.EndpointPort) []*discoveryv1.EndpointSlice {
	var all []*discoveryv1.EndpointSlice
	for _, key := range slices.Sorted(maps.Keys(groups)) {
		for part := range slices.Chunk(groups[key], maxEndpoints) {
			all = append(all, &discoveryv1.EndpointSlice{
				ObjectMeta: metav1.ObjectMeta{
					Namespace: svc.Namespace,
					Name:      fmt.Sprintf("%s-weir-%s-%03d", svc.Name, strings.ToLower(string(family)), len(all)),
					Labels:    labelsOf(svc),
				},
				AddressType: family,
				Ports:       ports[key],
				Endpoints:   part,
			})
		}
	}
	return all
}

func labelsOf(svc *corev1.Service) map[string]string {
	l := map[string]string{}
	for k, v := range svc.Labels {
		// A slice of its own has the first two, and a Service may carry the last one for itself.
		if k != discoveryv1.LabelServiceName && k != discoveryv1.LabelManagedBy && k != corev1.IsHeadlessService {
			l[k] = v
		}
	}
	l[discoveryv1.LabelServiceName], l[discoveryv1.LabelManagedBy] = svc.Name, spec.ManagedBy
	if svc.Spec.ClusterIP == corev1.ClusterIPNone {
		l[corev1.IsHeadlessService] = ""
	}
	return l
}

func families(svc *corev1.Service) []discoveryv1.AddressType {
	var types []discoveryv1.AddressType
	for _, f := range svc.Spec.IPFamilies {
		types = append(types, discoveryv1.AddressType(f))
	}
	if len(types) == 0 { // an ExternalName, or a Service without defaults
		return []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4}
	}
	slices.Sort(types)
	return types
}

// ended reports whether the pod will not run again.
func ended(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded
}

// WhyNone returns why none of the pods that a Service selects is an endpoint: "pod default/web-0 has these labels, and is not
// running (exit code 1)". There is at least one pod; one that runs counts first.
func WhyNone(pods []*corev1.Pod) string {
	pod := pods[0]
	if i := slices.IndexFunc(pods, func(p *corev1.Pod) bool { return !ended(p) }); i >= 0 {
		pod = pods[i]
	}
	text := fmt.Sprintf("pod %s/%s has these labels, and ", pod.Namespace, pod.Name)
	switch how := Ending(pod); {
	case !ended(pod):
		text += "no address"
	case how != "":
		text += "is not running (" + how + ")"
	default:
		text += "is not running"
	}
	switch more := len(pods) - 1; more {
	case 0:
	case 1:
		text += "; 1 more has them too"
	default:
		text += fmt.Sprintf("; %d more have them too", more)
	}
	return text
}

// Ending returns how the containers of a pod ended, such as "exit code 1", or "" if that is not known.
func Ending(pod *corev1.Pod) string {
	for _, c := range pod.Status.ContainerStatuses {
		if t := c.State.Terminated; t != nil && (t.ExitCode != 0 || pod.Status.Phase == corev1.PodSucceeded) {
			return fmt.Sprintf("exit code %d", t.ExitCode)
		}
	}
	return ""
}

func endpoint(svc *corev1.Service, pod *corev1.Pod, family discoveryv1.AddressType, zone func(string) string) discoveryv1.Endpoint {
	serving, terminating := Ready(pod), pod.DeletionTimestamp != nil
	ready := svc.Spec.PublishNotReadyAddresses || serving && !terminating
	e := discoveryv1.Endpoint{
		Addresses:  addresses(pod, family),
		Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating},
		TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
	}
	if node := pod.Spec.NodeName; node != "" {
		e.NodeName = &node
		if z := zone(node); z != "" {
			e.Zone = &z
		}
	}
	if pod.Spec.Hostname != "" && pod.Spec.Subdomain == svc.Name {
		hostname := pod.Spec.Hostname
		e.Hostname = &hostname
	}
	return e
}

// Ready reports whether the pod's condition Ready is true.
func Ready(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

func addresses(pod *corev1.Pod, family discoveryv1.AddressType) []string {
	var all []string
	for _, ip := range pod.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil && a.Unmap().Is4() == (family == discoveryv1.AddressTypeIPv4) {
			all = append(all, a.Unmap().String())
		}
	}
	return all
}

// portsOf returns the ports of the endpoint that the pod is. A port by a name that the pod does not have is left out.
func portsOf(svc *corev1.Service, pod *corev1.Pod) []discoveryv1.EndpointPort {
	ports := []discoveryv1.EndpointPort{}
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		if n, ok := FindPort(pod, p); ok {
			ports = append(ports, discoveryv1.EndpointPort{Name: &p.Name, Port: &n, Protocol: &p.Protocol, AppProtocol: p.AppProtocol})
		}
	}
	return ports
}

// FindPort returns the port of the pod that a Service port leads to. A named one may be that of a container, or of an
// init container that goes on to run beside them.
func FindPort(pod *corev1.Pod, p *corev1.ServicePort) (int32, bool) {
	if p.TargetPort.Type == intstr.Int {
		return p.TargetPort.IntVal, true
	}
	named := func(c *corev1.Container) (int32, bool) { return namedPort(c.Ports, p) }
	for i := range pod.Spec.Containers {
		if n, ok := named(&pod.Spec.Containers[i]); ok {
			return n, true
		}
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if n, ok := named(c); ok && c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			return n, true
		}
	}
	return 0, false
}

// namedPort returns the port with the name that a Service port leads to.
func namedPort(ports []corev1.ContainerPort, p *corev1.ServicePort) (int32, bool) {
	for _, port := range ports {
		if port.Name == p.TargetPort.StrVal && cmp.Or(port.Protocol, corev1.ProtocolTCP) == p.Protocol {
			return port.ContainerPort, true
		}
	}
	return 0, false
}

// maxNamed is how many templates, and how many ports, UnknownPort names.
const maxNamed = 3

// UnknownPort returns what is wrong with a Service port whose target is a name that none of the selected pods, or, as long as
// there are none, of the templates of such pods, gives to a port. It returns "" if there are neither.
func UnknownPort(p *corev1.ServicePort, pods []*corev1.Pod, templates []*spec.Template) string {
	if p.TargetPort.Type == intstr.Int || len(pods)+len(templates) == 0 {
		return ""
	}
	var whose, others []string
	more := func(list *[]string, text string) {
		if !slices.Contains(*list, text) && len(*list) <= maxNamed {
			*list = append(*list, text)
		}
	}
	ports := func(all []corev1.ContainerPort) {
		for _, port := range all {
			if port.Name != "" {
				more(&others, port.Name+" ("+string(cmp.Or(port.Protocol, corev1.ProtocolTCP))+")")
			}
		}
	}
	for _, pod := range pods {
		if _, ok := FindPort(pod, p); ok {
			return ""
		}
		more(&whose, "pod "+pod.Namespace+"/"+pod.Name)
		for _, c := range slices.Concat(pod.Spec.Containers, pod.Spec.InitContainers) {
			ports(c.Ports)
		}
	}
	if len(pods) == 0 {
		for _, t := range templates {
			if _, ok := namedPort(t.Ports, p); ok {
				return ""
			}
			more(&whose, t.String())
			ports(t.Ports)
		}
	}
	text := fmt.Sprintf("is %q (%s), and no container of %s has a port of that name", p.TargetPort.StrVal, p.Protocol, listed(whose))
	switch {
	case len(others) > 0:
		return text + "; they have " + listed(others)
	case len(templates) == 0:
		return text + "; podman and docker tell no names of ports: add what the pods were made of to the input, or give the number"
	}
	return text + "; name one there, or give the number"
}

// listed returns the first texts of a list.
func listed(all []string) string {
	if len(all) > maxNamed {
		all = append(slices.Clone(all[:maxNamed]), "others")
	}
	return strings.Join(all, ", ")
}

// portsKey returns a string that is the same for the same ports.
func portsKey(ports []discoveryv1.EndpointPort) string {
	var b strings.Builder
	for _, p := range ports {
		fmt.Fprintf(&b, "%s %d %s\n", *p.Name, *p.Port, *p.Protocol)
	}
	return b.String()
}
