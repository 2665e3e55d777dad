package spec

import (
	"cmp"
	"iter"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"weir/spec/probe"
)

// Probes say what tells whether the endpoints of a Service work. They are immutable. Nil means that nothing is asked.
//
// Of the three forms of a probe, the first that an endpoint has counts: the readinessProbes of the template that its pod was
// made of, unless the runtime itself asks them; the HealthCheckPolicy for its Service; the annotation of its Service.
type Probes struct {
	// Ports are the probes of the Service's ports, sorted by the name of the port. They come from a HealthCheckPolicy or the
	// annotation.
	Ports []PortProbe
	// Pods are the probes of the endpoints that are pods, sorted by the name of the pod. Such an endpoint works if all of them
	// say so.
	Pods []PodProbes
	// Template are the probes of the endpoints that are none of Pods, except for those in slices that a control plane made: those
	// of the templates that the Service selects.
	Template []*probe.Probe
	// MinHealthy is how many endpoints must work for probes to take any out.
	MinHealthy probe.MinHealthy
}

// PortProbe is the Probe of a Service port.
type PortProbe struct {
	Port  string // "" is the name of an only port
	Probe *probe.Probe
}

// PodProbes are the Probes of the containers of a pod.
type PodProbes struct {
	Pod    string // in the namespace of the Service; for a plan, the key of the Template that promises the pods
	Probes []*probe.Probe
}

// Of returns the Probes of an endpoint of a slice at the Service port of that name; all of them must succeed. It returns nil if
// nothing is asked, so that the endpoint is as its slice says. The result is not to be changed.
func (p *Probes) Of(port string, slice *discoveryv1.EndpointSlice, e *discoveryv1.Endpoint) []*probe.Probe {
	if p == nil {
		return nil
	}
	if e.TargetRef != nil && e.TargetRef.Kind == "Pod" {
		if i, ok := slices.BinarySearchFunc(p.Pods, e.TargetRef.Name, func(q PodProbes, name string) int { return cmp.Compare(q.Pod, name) }); ok {
			return p.Pods[i].Probes
		}
	}
	if len(p.Template) > 0 && !OfControlPlane(slice) {
		return p.Template
	}
	if i, ok := slices.BinarySearchFunc(p.Ports, port, func(q PortProbe, name string) int { return cmp.Compare(q.Port, name) }); ok {
		return []*probe.Probe{p.Ports[i].Probe}
	}
	return nil
}

// All yields each different Probe once.
func (p *Probes) All() iter.Seq[*probe.Probe] {
	return func(yield func(*probe.Probe) bool) {
		if p == nil {
			return
		}
		var last *probe.Probe
		for _, q := range p.Ports {
			if q.Probe != last && !yield(q.Probe) {
				return
			}
			last = q.Probe
		}
		done := map[*probe.Probe]bool{}
		for _, r := range p.Template {
			if done[r] = true; !yield(r) {
				return
			}
		}
		for _, q := range p.Pods {
			for _, r := range q.Probes {
				if !done[r] && !yield(r) {
					return
				}
				done[r] = true
			}
		}
	}
}

// Empty reports whether nothing is asked.
func (p *Probes) Empty() bool { return p == nil || len(p.Ports)+len(p.Pods)+len(p.Template) == 0 }

// Equal reports whether both ask the same, wherever that was written.
func (p *Probes) Equal(o *Probes) bool {
	if p == nil || o == nil {
		return p == o
	}
	same := func(a, b *probe.Probe) bool { return a == b || a.Equal(b) }
	return p.MinHealthy == o.MinHealthy && slices.EqualFunc(p.Template, o.Template, same) &&
		slices.EqualFunc(p.Ports, o.Ports, func(a, b PortProbe) bool { return a.Port == b.Port && same(a.Probe, b.Probe) }) &&
		slices.EqualFunc(p.Pods, o.Pods, func(a, b PodProbes) bool {
			return a.Pod == b.Pod && slices.EqualFunc(a.Probes, b.Probes, same)
		})
}

// Identical reports whether both ask the same and were written at the same places.
func (p *Probes) Identical(o *Probes) bool {
	if !p.Equal(o) || p == o || p == nil {
		return p.Equal(o)
	}
	same := func(a, b *probe.Probe) bool { return a.Origin == b.Origin }
	return slices.EqualFunc(p.Ports, o.Ports, func(a, b PortProbe) bool { return same(a.Probe, b.Probe) }) && slices.EqualFunc(p.Template, o.Template, same) &&
		slices.EqualFunc(p.Pods, o.Pods, func(a, b PodProbes) bool { return slices.EqualFunc(a.Probes, b.Probes, same) })
}

// NamedPorts returns the ports of a slice as a probe.Target has them.
func NamedPorts(slice *discoveryv1.EndpointSlice) []probe.NamedPort {
	named := make([]probe.NamedPort, 0, len(slice.Ports))
	for _, p := range slice.Ports {
		if p.Port != nil && *p.Port > 0 && *p.Port < 1<<16 && (p.Protocol == nil || *p.Protocol == corev1.ProtocolTCP) {
			named = append(named, probe.NamedPort{Name: deref(p.Name), Number: uint16(*p.Port)})
		}
	}
	return named
}
