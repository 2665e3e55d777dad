package liveness

import (
	"cmp"
	"net/netip"
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/probe"
)

// Question is a Probe of one endpoint of a Service.
type Question struct {
	Service dataplane.ServiceName
	Probe   *probe.Probe
	// Address is that of the endpoint, and Ports are all that it has.
	Address netip.AddrPort
	Ports   []probe.NamedPort
	// Pod is the pod that the endpoint is, or zero.
	Pod dataplane.ServiceName
}

// Questions returns what is asked of the endpoints of a Service, each once, sorted.
func Questions(svc *spec.Service) (all []Question) {
	known := map[netip.AddrPort][]*probe.Probe{}
	eachProbe(svc.Probes, svc.Slices, func(a at, p *probe.Probe, to probe.Target) {
		key := keyOf(p, to)
		if slices.ContainsFunc(known[key], func(o *probe.Probe) bool { return o == p || o.Equal(p) }) {
			return
		}
		known[key] = append(known[key], p)
		all = append(all, Question{svc.Name, p, to.Address, to.Ports, podOf(svc.Name.Namespace, &svc.Slices[a.slice].Endpoints[a.endpoint])})
	})
	slices.SortStableFunc(all, compare)
	return all
}

func compare(a, b Question) int {
	return cmp.Or(a.Service.Compare(b.Service), cmp.Compare(From(a.Probe), From(b.Probe)), cmp.Compare(a.Probe.String(), b.Probe.String()), a.Address.Compare(b.Address))
}

// Questions returns what is asked of the Services that match: "" for all, "web" in any namespace, or "default/web".
func (l *Layer) Questions(match string) (all []Question) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, s := range l.services {
		if match != "" && match != name.Name && match != name.String() {
			continue
		}
		for c := range s.checks {
			all = append(all, Question{name, c.probe, c.to.Address, c.to.Ports, c.pod})
		}
	}
	slices.SortFunc(all, compare)
	return all
}

// at is an endpoint of a slice at one of the slice's ports.
type at struct{ slice, endpoint, port int }

// eachProbe calls yield for each Probe of each endpoint.
func eachProbe(probes *spec.Probes, in []*discoveryv1.EndpointSlice, yield func(at, *probe.Probe, probe.Target)) {
	for i, slice := range in {
		named := spec.NamedPorts(slice)
		for j := range slice.Endpoints {
			e := &slice.Endpoints[j]
			if len(e.Addresses) == 0 {
				continue
			}
			addr, err := netip.ParseAddr(e.Addresses[0])
			if err != nil {
				continue
			}
			for k, port := range slice.Ports {
				if port.Port == nil || *port.Port < 1 || *port.Port > 65535 {
					continue
				}
				name := ""
				if port.Name != nil {
					name = *port.Name
				}
				to := probe.Target{Address: netip.AddrPortFrom(addr.Unmap(), uint16(*port.Port)), Ports: named, Mark: dataplane.ProbeMark}
				for _, p := range probes.Of(name, slice, e) {
					yield(at{i, j, k}, p, to)
				}
			}
		}
	}
}

// podOf returns the pod that an endpoint is, or zero.
func podOf(namespace string, e *discoveryv1.Endpoint) dataplane.ServiceName {
	if e.TargetRef == nil || e.TargetRef.Kind != "Pod" {
		return dataplane.ServiceName{}
	}
	return dataplane.ServiceName{Namespace: cmp.Or(e.TargetRef.Namespace, namespace), Name: e.TargetRef.Name}
}
