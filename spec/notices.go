package spec

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"weir/backends/dataplane"
	"weir/spec/probe"
)

// LabelServiceProxyName is the label that hands a Service to another proxy, whatever its value.
const LabelServiceProxyName = "service.kubernetes.io/service-proxy-name"

// Headless reports whether an EndpointSlice is that of a headless Service. Its endpoints are for names, and kube-proxy does not
// even ask an API server for it.
func Headless(slice *discoveryv1.EndpointSlice) bool {
	_, ok := slice.Labels[corev1.IsHeadlessService]
	return ok
}

// EndpointSliceController is the value of the label endpointslice.kubernetes.io/managed-by of slices that a control plane made of
// pods. Endpoints that it made have the label too when they have become slices.
const EndpointSliceController = "endpointslice-controller.k8s.io"

// OfControlPlane reports whether a control plane made the slice of pods, so that ready is the word of their kubelets, which have
// asked the readinessProbes.
func OfControlPlane(slice *discoveryv1.EndpointSlice) bool {
	return slice.Labels[discoveryv1.LabelManagedBy] == EndpointSliceController
}

// AllNotices returns the Notices of the Snapshot and those about slices that belong to no Service in any layer. It does
// not return the Notices of Services.
func (s *Snapshot) AllNotices() []Notice {
	all := s.Notices
	for name := range s.Slices.Names() {
		all = append(slices.Clip(all), s.orphan(name)...)
	}
	return all
}

// NoticesOf returns the notices about the Service of that name, even if only its slices exist.
func (s *Snapshot) NoticesOf(name dataplane.ServiceName) []Notice {
	svc := s.Services.Get(name)
	if svc == nil {
		return s.orphan(name)
	}
	all := svc.AllNotices()
	for p := range svc.Probes.All() {
		if why := p.Refused(s.Weir.Liveness.Hosts); why != "" {
			all = append(slices.Clip(all), ProbeNotAsked.Notice(Origin{File: p.Origin.File, Line: p.Origin.Line}, ServiceObject(name), "",
				fmt.Sprintf("the %s %s: it is not asked, and no endpoint has an answer", p.Origin, why)))
		}
	}
	return all
}

// orphan returns the notice for the author of slices that no Service uses.
func (s *Snapshot) orphan(name dataplane.ServiceName) []Notice {
	set := s.Slices.Get(name)
	if set.Origin.File == "" || s.Services.Get(name) != nil {
		return nil
	}
	return []Notice{UnusedEndpoints.Notice(set.Origin, set.Object, "", fmt.Sprintf("belongs to Service %s, which is not in the input", name))}
}

// AllNotices returns the Notices of the Service and those that follow from its slices after the join, from whichever
// source they came. Only Services from files get the latter, because a control plane reports them by itself.
func (s *Service) AllNotices() []Notice {
	sp := &s.Object.Spec
	given := s.Notices
	if err := CheckNoticeIDs(s.Object.Annotations[AnnotationSilence]); err != nil {
		given = append(slices.Clip(given), AnnotationIgnored.Notice(s.Origin, ServiceObject(s.Name), "metadata.annotations["+AnnotationSilence+"]", err.Error()))
	}
	given = append(slices.Clip(given), s.tooManyForNames()...)
	_, otherProxy := s.Object.Labels[LabelServiceProxyName]
	if s.Origin.File == "" || otherProxy || s.Answered && len(s.Slices) == 0 || sp.Type == corev1.ServiceTypeExternalName || sp.ClusterIP == corev1.ClusterIPNone {
		return given
	}
	var all []Notice
	notice := func(id NoticeID, field, detail string) {
		all = append(all, id.Notice(s.Origin, ServiceObject(s.Name), field, detail))
	}
	noEndpoints := func(n Notice) bool { return n.ID() == NoReadyEndpoint }
	const ways = "add an EndpointSlice labelled kubernetes.io/service-name, or an Endpoints object of the same name, or let weir read them from an API server"
	hint := ""
	if s.Hint != "" {
		hint = "; " + s.Hint
	}
	switch {
	case len(s.Slices) > 0:
		if slices.ContainsFunc(given, noEndpoints) { // another source has endpoints
			given = slices.DeleteFunc(slices.Clone(given), noEndpoints)
		}
	case slices.ContainsFunc(given, noEndpoints):
	case s.Promised != "":
		notice(EndpointsPromised, "spec.selector", "selects pods that are promised by "+s.Promised+"; their addresses are known where they run")
	case len(sp.Selector) > 0 && s.Asked != "":
		notice(NoReadyEndpoint, "spec.selector", "selects no pod of "+s.Asked+hint+"; weir discover shows the pods that run; programmed without endpoints")
	case len(sp.Selector) > 0:
		notice(NoReadyEndpoint, "spec.selector", "selects nothing, since no controller is here to look for pods"+hint+"; programmed without endpoints: let weir ask a container runtime (systemctl enable --now podman.socket, or --pod-source), or "+ways)
	default:
		notice(NoReadyEndpoint, "", "has no endpoints: "+ways)
	}
	if p := s.Probes; len(s.Slices) > 0 && p != nil && p.Empty() && p.MinHealthy != (probe.MinHealthy{}) {
		notice(SettingIgnored, "metadata.annotations[weir/min-healthy]", "has no effect: no probe asks the endpoints of this Service")
	}
	for _, slice := range s.Slices {
		if Headless(slice) {
			notice(EndpointsSkipped, "", fmt.Sprintf("EndpointSlice %s is not used, since its label %s says that it is a headless Service's; remove the label", slice.Name, corev1.IsHeadlessService))
		}
		if f := corev1.IPFamily(slice.AddressType); slice.AddressType != discoveryv1.AddressTypeFQDN && len(sp.IPFamilies) > 0 && !slices.Contains(sp.IPFamilies, f) {
			notice(EndpointsSkipped, "spec.ipFamilies", fmt.Sprintf("EndpointSlice %s is not used, since the Service is not of family %s", slice.Name, f))
		}
	}
	for i, p := range sp.Ports {
		if s.OfPods {
			break // a port that they lack has TargetPortUnknown
		}
		if missing, has := portMissing(s.Slices, p.Name, p.Protocol); missing {
			notice(PortWithoutEndpoints, fmt.Sprintf("spec.ports[%d].name", i), fmt.Sprintf("no endpoints have a port with the name %q and protocol %s; they have %s", p.Name, p.Protocol, has))
		}
		if has := otherPorts(s.Slices, &p); has != "" {
			notice(TargetPortDiffers, fmt.Sprintf("spec.ports[%d].targetPort", i), fmt.Sprintf("is %d, and the endpoints have port %s, which is where connections go", p.TargetPort.IntVal, has))
		}
	}
	if len(all) == 0 {
		return given
	}
	return append(all, given...)
}

// tooManyForNames returns a notice for each family in which a headless Service has more endpoints than an answer for its name has
// room for: 64 KiB, over TCP, with a compressed name in each record.
func (s *Service) tooManyForNames() (notices []Notice) {
	if s.Object.Spec.ClusterIP != corev1.ClusterIPNone {
		return nil
	}
	for _, family := range []struct {
		kind discoveryv1.AddressType
		most int
	}{{discoveryv1.AddressTypeIPv4, 4092}, {discoveryv1.AddressTypeIPv6, 2338}} {
		n := 0
		for _, slice := range s.Slices {
			if slice.AddressType == family.kind {
				n += len(slice.Endpoints)
			}
		}
		if n > family.most {
			notices = append(notices, EndpointsSkipped.Notice(s.Origin, ServiceObject(s.Name), "",
				fmt.Sprintf("has %d endpoints of %s, and an answer for its name has room for about %d of them, which take turns", n, family.kind, family.most)))
		}
	}
	return notices
}

// ManagedBy is the value of the label that tells the slices that weir makes of pods from others.
const ManagedBy = "weir"

// otherPorts returns the ports of the endpoints that serve a Service port if its targetPort is none of them. A targetPort
// that equals the port may be a default, and a name is that of a container's port: both tell nothing.
func otherPorts(all []*discoveryv1.EndpointSlice, port *corev1.ServicePort) string {
	target := port.TargetPort
	if target.Type != intstr.Int || target.IntVal == 0 || target.IntVal == port.Port {
		return ""
	}
	var other []string
	for _, s := range all {
		for _, p := range s.Ports {
			switch {
			case p.Port == nil || len(s.Endpoints) == 0 || deref(p.Name) != port.Name || p.Protocol != nil && *p.Protocol != port.Protocol:
			case *p.Port == target.IntVal:
				return ""
			case !slices.Contains(other, strconv.Itoa(int(*p.Port))) && len(other) < 5:
				other = append(other, strconv.Itoa(int(*p.Port)))
			}
		}
	}
	return strings.Join(other, ", ")
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// portMissing reports whether there are endpoints but none has the port. It also returns the ports that they have.
func portMissing(all []*discoveryv1.EndpointSlice, name string, protocol corev1.Protocol) (missing bool, has string) {
	var names []string
	for _, s := range all {
		for _, p := range s.Ports {
			n, proto := deref(p.Name), corev1.ProtocolTCP
			if p.Protocol != nil {
				proto = *p.Protocol
			}
			if n == name && proto == protocol {
				return false, ""
			}
			if text := fmt.Sprintf("%q (%s)", n, proto); len(s.Endpoints) > 0 && !slices.Contains(names, text) && len(names) < 5 {
				names = append(names, text)
			}
		}
	}
	return len(names) > 0, strings.Join(names, ", ")
}
