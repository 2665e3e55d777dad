package podsource

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"weir/backends/dataplane"
	"weir/spec/document"
	"weir/spec/endpoints"
)

// labelNamespace is the label by which a runtime names the namespace of a pod of Kubernetes.
const labelNamespace = "io.kubernetes.pod.namespace"

// maxLabels bounds the labels of a pod, which its author writes.
const maxLabels = 128

// object returns the Pod for a pod of the runtime and its containers.
func (v *view) object(p *pod, members []*container) *corev1.Pod {
	labels := labelsOf(p, members)
	namespace, fault := namespaceOf("label "+labelNamespace, namespaceIn(p, members))
	o := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: v.nameOf(p, namespace), UID: types.UID(p.ID), Labels: labels},
		Spec:       corev1.PodSpec{NodeName: v.Node},
		Status:     corev1.PodStatus{Message: fault},
	}
	net := network(members)
	if mode, other, _ := strings.Cut(net.HostConfig.NetworkMode, ":"); mode == "container" && v.containers[other] != nil {
		net = v.containers[other]
	}
	o.Spec.HostNetwork = net.HostConfig.NetworkMode == "host"
	addrs := addressesOf(net)
	if o.Spec.HostNetwork {
		addrs = v.HostAddresses()
	}
	s := stateOf(members)
	s.unasked = !slices.ContainsFunc(members, func(c *container) bool { return c.Config.Healthcheck != nil })
	s.healthy = s.ready && !s.unasked
	setStatus(o, addrs, s)
	return o
}

// reasonUnprobed is the reason of a pod's condition Ready if its containers run, and the kubelet's probes do not succeed.
const reasonUnprobed = "ContainersNotReady"

// setStatus gives a Pod its addresses and its state.
func setStatus(o *corev1.Pod, addrs []string, s state) {
	for _, a := range addrs {
		o.Status.PodIPs = append(o.Status.PodIPs, corev1.PodIP{IP: a})
	}
	if len(addrs) > 0 {
		o.Status.PodIP = addrs[0]
	}
	o.Status.Phase = s.phase
	if s.terminating {
		o.DeletionTimestamp = &metav1.Time{Time: time.Unix(0, 0)} // when is not told; that it is set is what counts
	}
	ready := corev1.ConditionFalse
	if s.ready {
		ready = corev1.ConditionTrue
	}
	o.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}
	switch {
	case s.unasked:
		o.Status.Conditions[0].Reason = endpoints.ReasonRuns
	case s.healthy:
		o.Status.Conditions[0].Reason = endpoints.ReasonHealthy
	case s.unhealthy:
		o.Status.Conditions[0].Reason = endpoints.ReasonUnhealthy
	case s.unprobed:
		o.Status.Conditions[0].Reason = reasonUnprobed
	}
	if s.ended && o.Status.ContainerStatuses == nil {
		o.Status.ContainerStatuses = []corev1.ContainerStatus{{State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: s.code}}}}
	}
}

// labelsOf returns the labels of a pod and of its containers that Kubernetes allows.
func labelsOf(p *pod, members []*container) map[string]string {
	all := map[string]string{}
	slices.SortFunc(members, func(a, b *container) int { return strings.Compare(a.ID, b.ID) })
	for _, c := range members {
		if !c.IsInfra { // whose image has labels of its own
			maps.Copy(all, c.Config.Labels)
		}
	}
	maps.Copy(all, p.Labels)
	return allowed(all)
}

// allowed removes the labels that Kubernetes does not allow, which no selector can match, and those beyond a bound.
func allowed(all map[string]string) map[string]string {
	for _, k := range slices.Sorted(maps.Keys(all)) {
		if len(validation.IsQualifiedName(k)) > 0 || len(validation.IsValidLabelValue(all[k])) > 0 {
			delete(all, k)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(all))[min(maxLabels, len(all)):] {
		delete(all, k)
	}
	return all
}

// namespaceOf returns the namespace that a text names, or the default one, and what is wrong with the text. An empty text is
// none.
func namespaceOf(what, text string) (namespace, fault string) {
	switch {
	case text == "":
		return metav1.NamespaceDefault, ""
	case len(validation.IsDNS1123Label(text)) > 0:
		return metav1.NamespaceDefault, fmt.Sprintf("%s: %s is not the name of a namespace; the pod counts as one of %s", what, document.Quote(text), metav1.NamespaceDefault)
	}
	return text, ""
}

// namespaceIn returns the namespace that the labels of a pod, or of its containers, name.
func namespaceIn(p *pod, members []*container) (namespace string) {
	for _, c := range members { // which labelsOf has sorted
		if !c.IsInfra {
			namespace = cmp.Or(c.namespace, namespace)
		}
	}
	return cmp.Or(p.namespace, namespace)
}

// nameOf returns the name of a pod, with its ID if the runtime has another of that name, or if it is not a name.
func (v *view) nameOf(p *pod, namespace string) string {
	id := p.ID[:min(12, len(p.ID))]
	name := podName(p.Name)
	if len(validation.IsDNS1123Subdomain(name)) > 0 {
		return "pod-" + id
	}
	for other, taken := range v.names {
		if other != p.ID && taken == (dataplane.ServiceName{Namespace: namespace, Name: name}) {
			return name + "-" + id
		}
	}
	return name
}

// podName returns the name of a pod for that of a runtime, whose names may have underscores and capitals.
func podName(theirs string) string { return strings.ToLower(strings.ReplaceAll(theirs, "_", "-")) }

// network returns the container whose network the pod has.
func network(members []*container) *container {
	if i := slices.IndexFunc(members, func(c *container) bool { return c.IsInfra }); i >= 0 {
		return members[i]
	}
	return members[0]
}

// addressesOf returns the addresses of a container, in the order of its networks' names, those of IPv4 first.
func addressesOf(c *container) []string {
	var texts []string
	for _, name := range slices.Sorted(maps.Keys(c.NetworkSettings.Networks)) {
		n := c.NetworkSettings.Networks[name]
		texts = append(texts, n.IPAddress, n.GlobalIPv6Address)
	}
	return reachable(texts)
}

// reachable returns the addresses that a pod may have, those of IPv4 first.
func reachable(texts []string) []string {
	var four, six []string
	for _, text := range texts {
		a, err := netip.ParseAddr(text)
		switch {
		case err != nil || !a.IsGlobalUnicast():
		case a.Unmap().Is4():
			four = append(four, a.Unmap().String())
		default:
			six = append(six, a.WithZone("").String())
		}
	}
	return append(four, six...)
}

// state is the state of a pod.
type state struct {
	phase       corev1.PodPhase
	ready       bool
	terminating bool
	// unasked reports whether the pod is ready because it runs: the runtime checks nothing else.
	unasked bool
	// healthy reports whether the pod is ready because its health check succeeds.
	healthy bool
	// unhealthy reports whether the pod is not ready for nothing but its health check.
	unhealthy bool
	// unprobed reports the same of the probes of a kubelet.
	unprobed bool
	// ended reports whether the pod has ended with an exit code that is known.
	ended bool
	code  int32
}

// stateOf returns the state of a pod with these containers. A container that ended well, as one that prepares the others
// does, counts neither way.
func stateOf(members []*container) state {
	var n tally
	terminating := false
	for _, c := range members {
		status := c.State.Status
		terminating = terminating || status == "stopping" || status == "removing"
		switch status {
		case "running", "stopping":
			if !c.IsInfra {
				n.running++
				n.unhealthy = n.unhealthy || !healthy(c)
			}
		case "exited", "stopped", "dead", "removing":
			if c.IsInfra { // the network is gone
				n.unready = true
			} else {
				n.end(int32(c.State.ExitCode))
			}
		default: // created, configured, initialized, paused, restarting, unknown
			n.unready = true
			if !c.IsInfra {
				n.waiting++
			}
		}
	}
	s := n.state()
	s.terminating = terminating
	return s
}

// tally counts the containers of a pod.
type tally struct {
	running, waiting, failed, ended int
	unhealthy                       bool  // a health check keeps the pod from being ready
	unready                         bool  // something else does
	code                            int32 // of the first that failed
}

// end counts a container that ended.
func (n *tally) end(code int32) {
	if code == 0 {
		n.ended++
		return
	}
	if n.failed++; n.code == 0 {
		n.code = code
	}
}

func (n tally) state() state {
	runs := !n.unready && n.running > 0 && n.waiting == 0 && n.failed == 0
	s := state{phase: corev1.PodPending, ready: runs && !n.unhealthy, unhealthy: runs && n.unhealthy}
	switch {
	case n.running > 0:
		s.phase = corev1.PodRunning
	case n.waiting > 0:
	case n.failed > 0:
		s.phase, s.ended, s.code = corev1.PodFailed, true, n.code
	case n.ended > 0:
		s.phase, s.ended = corev1.PodSucceeded, true
	}
	return s
}

// healthy reports whether the container's health check succeeded, or there is none.
func healthy(c *container) bool {
	for _, h := range []*struct{ Status string }{c.State.Health, c.State.Healthcheck} {
		if h != nil && h.Status != "" && h.Status != "none" && h.Status != "healthy" {
			return false
		}
	}
	return true
}

// allowedPorts returns the ports that Kubernetes allows, or none if there are too many.
func allowedPorts(all []corev1.ContainerPort) []corev1.ContainerPort {
	if len(all) > maxPorts {
		return nil
	}
	return slices.DeleteFunc(all, func(p corev1.ContainerPort) bool {
		known := p.Protocol == "" || p.Protocol == corev1.ProtocolTCP || p.Protocol == corev1.ProtocolUDP || p.Protocol == corev1.ProtocolSCTP
		return !known || len(validation.IsValidPortNum(int(p.ContainerPort))) > 0 || p.Name != "" && len(validation.IsValidPortName(p.Name)) > 0
	})
}
