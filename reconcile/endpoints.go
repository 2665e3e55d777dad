package reconcile

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	discoveryv1 "k8s.io/api/discovery/v1"

	"weir/backends/dataplane"
	"weir/spec"
)

// candidate is an endpoint as written in its slice, before any policy is applied.
type candidate struct {
	addr                        netip.AddrPort
	ready, serving, terminating bool
	local, remote               bool
	weight                      uint16
	hints                       *discoveryv1.EndpointHints
}

// draining reports whether the endpoint is used only when no ready one is left.
func (c candidate) draining() bool { return !c.ready && c.serving && c.terminating }

func (c candidate) zoneHints() []discoveryv1.ForZone {
	if c.hints == nil {
		return nil
	}
	return c.hints.ForZones
}

func (c candidate) nodeHints() []discoveryv1.ForNode {
	if c.hints == nil {
		return nil
	}
	return c.hints.ForNodes
}

func (c candidate) hinted() bool { return len(c.zoneHints()) > 0 || len(c.nodeHints()) > 0 }

func (c candidate) forZone(zone string) bool {
	return slices.ContainsFunc(c.zoneHints(), func(z discoveryv1.ForZone) bool { return z.Name == zone })
}

func (c candidate) forNode(name string) bool {
	return slices.ContainsFunc(c.nodeHints(), func(n discoveryv1.ForNode) bool { return n.Name == name })
}

// candidates returns the endpoints of one Service port, sorted by address, without duplicates. The port number comes
// from each slice, because a port's name may mean different numbers in different slices.
func (r *resolver) candidates(f dataplane.Family, port string, protocol dataplane.Protocol) []candidate {
	var found []candidate
	named := false
	for _, slice := range r.svc.Slices {
		if string(slice.AddressType) != f.String() || spec.Headless(slice) {
			continue
		}
		for i := range slice.Ports {
			p := &slice.Ports[i]
			if !portMatches(p, port, protocol) {
				continue
			}
			named = true
			if p.Port == nil || *p.Port < 1 || *p.Port > 65535 {
				r.notice(spec.EndpointsSkipped, "", "EndpointSlice %s: ports[%d].port is missing: its endpoints are not used for port %q", slice.Name, i, port)
				continue
			}
			found = slices.Grow(found, len(slice.Endpoints))
			for j := range slice.Endpoints {
				if c, ok := r.candidate(slice, j, uint16(*p.Port)); ok {
					found = append(found, c)
				}
			}
		}
	}
	if !named && r.hasEndpoints(f) && !r.svc.OfPods { // which TargetPortUnknown tells of
		r.notice(spec.PortWithoutEndpoints, "spec.ports", "no EndpointSlice has a port named %q with protocol %s, so that port has no endpoints", port, protocol)
	}
	return merge(found)
}

// portMatches compares names and protocols. A missing name means "", and a missing protocol means TCP.
func portMatches(p *discoveryv1.EndpointPort, name string, protocol dataplane.Protocol) bool {
	if p.Name != nil && *p.Name != name || p.Name == nil && name != "" {
		return false
	}
	if p.Protocol == nil {
		return protocol == dataplane.TCP
	}
	got, ok := parseProtocol(*p.Protocol)
	return ok && got == protocol
}

func (r *resolver) hasEndpoints(f dataplane.Family) bool {
	return slices.ContainsFunc(r.svc.Slices, func(s *discoveryv1.EndpointSlice) bool {
		return !spec.Headless(s) && string(s.AddressType) == f.String() && len(s.Endpoints) > 0
	})
}

func (r *resolver) candidate(slice *discoveryv1.EndpointSlice, i int, port uint16) (candidate, bool) {
	ep := &slice.Endpoints[i]
	if len(ep.Addresses) == 0 {
		return candidate{}, false
	}
	switch {
	case len(ep.Addresses) > 1 && r.svc.OfPods && ep.TargetRef != nil:
		r.notice(spec.EndpointsSkipped, "", "pod %s/%s is in several networks: of its %s addresses %s, only the first is used", ep.TargetRef.Namespace, ep.TargetRef.Name, slice.AddressType, strings.Join(ep.Addresses, ", "))
	case len(ep.Addresses) > 1:
		r.notice(spec.EndpointsSkipped, "", "EndpointSlice %s: endpoints[%d]: only the first of its %d addresses is used; write one endpoint for each", slice.Name, i, len(ep.Addresses))
	}
	addr, ok := parseAddr(ep.Addresses[0])
	if !ok || dataplane.FamilyOf(addr).String() != string(slice.AddressType) {
		r.notice(spec.EndpointsSkipped, "", "EndpointSlice %s: endpoints[%d]: %q is not used: it is not an %s address", slice.Name, i, ep.Addresses[0], slice.AddressType)
		return candidate{}, false
	}
	c := candidate{
		addr: netip.AddrPortFrom(addr, port),
		// A control plane marks all endpoints of a Service with publishNotReadyAddresses as ready. Slices from files
		// and from Endpoints have only the state of the pods.
		ready:       isTrue(ep.Conditions.Ready, true) || r.svc.Object.Spec.PublishNotReadyAddresses,
		serving:     isTrue(ep.Conditions.Serving, true),
		terminating: isTrue(ep.Conditions.Terminating, false),
		weight:      1,
		hints:       ep.Hints,
	}
	if ep.NodeName != nil && *ep.NodeName != "" {
		c.local = *ep.NodeName == r.node.Name
		c.remote = !c.local
	}
	if w, ok := r.weights[addr]; ok {
		c.weight = w
	}
	return c, true
}

func isTrue(b *bool, unset bool) bool {
	if b == nil {
		return unset
	}
	return *b
}

// merge sorts by address and keeps the best of several endpoints with the same one: a ready endpoint wins, then a
// draining one, then one on this node.
func merge(found []candidate) []candidate {
	slices.SortStableFunc(found, func(a, b candidate) int {
		return cmp.Or(a.addr.Compare(b.addr), better(a.ready, b.ready), better(a.draining(), b.draining()), better(a.local, b.local))
	})
	return slices.CompactFunc(found, func(a, b candidate) bool { return a.addr == b.addr })
}

func better(a, b bool) int {
	switch {
	case a && !b:
		return -1
	case b && !a:
		return 1
	}
	return 0
}

// policies holds which kinds of traffic policy a Service port uses.
type policies struct{ cluster, local bool }

// selectEndpoints applies readiness, topology and the traffic policies. any reports whether a usable endpoint exists on
// any node.
func selectEndpoints(all []candidate, use policies, node *Node) (chosen []dataplane.Endpoint, any bool) {
	inCluster := clusterSelection(all, node)
	inLocal := localSelection(all)
	var few [16]dataplane.Endpoint
	buf := few[:0]
	for _, c := range all {
		any = any || c.ready || c.draining()
		ep := dataplane.Endpoint{
			Addr:    c.addr,
			Cluster: use.cluster && inCluster(c),
			Local:   inLocal(c),
			Remote:  c.remote,
			Weight:  c.weight,
		}
		if ep.Cluster || ep.Local && use.local {
			buf = append(buf, ep)
		}
	}
	return append(chosen, buf...), any // without spare capacity, because they are kept
}

// servingAddrs returns the endpoints that keep their flows: a terminating endpoint finishes its connections.
// With local set, it returns only those on this node.
func servingAddrs(all []candidate, local bool) []netip.AddrPort {
	var addrs []netip.AddrPort
	for _, c := range all {
		if (c.ready || c.draining()) && (c.local || !local) {
			addrs = append(addrs, c.addr)
		}
	}
	return addrs
}

// clusterSelection returns the selection of policy Cluster: the ready endpoints that topology allows, or the draining
// ones if no endpoint is ready.
func clusterSelection(all []candidate, node *Node) func(candidate) bool {
	allowed := topology(all, node)
	chosen := func(c candidate) bool { return c.ready && allowed(c) }
	if !slices.ContainsFunc(all, chosen) {
		return candidate.draining
	}
	return chosen
}

// localSelection returns the selection of policy Local. It considers only this node's endpoints, and ignores hints.
func localSelection(all []candidate) func(candidate) bool {
	chosen := func(c candidate) bool { return c.local && c.ready }
	if !slices.ContainsFunc(all, chosen) {
		return func(c candidate) bool { return c.local && c.draining() }
	}
	return chosen
}

// topology returns a selection of the endpoints that the hints allow this node to use. Hints count only if every ready
// endpoint has them and one of them names this node or its zone. Node hints win over zone hints. The controller that
// writes the hints reads trafficDistribution; a proxy does not.
func topology(all []candidate, node *Node) func(candidate) bool {
	ready := 0
	var hinted, mine struct{ node, zone int }
	for _, c := range all {
		if !c.ready {
			continue
		}
		ready++
		if len(c.nodeHints()) > 0 {
			hinted.node++
		}
		if len(c.zoneHints()) > 0 {
			hinted.zone++
		}
		if c.forNode(node.Name) {
			mine.node++
		}
		if node.Zone != "" && c.forZone(node.Zone) {
			mine.zone++
		}
	}
	switch {
	case hinted.node == ready && mine.node > 0:
		return func(c candidate) bool { return c.forNode(node.Name) }
	case hinted.zone == ready && mine.zone > 0:
		return func(c candidate) bool { return c.forZone(node.Zone) }
	}
	return func(candidate) bool { return true }
}

// parseAddr accepts the addresses that the API accepts, and returns IPv4-mapped IPv6 addresses as IPv4.
func parseAddr(text string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, false
	}
	return a.Unmap(), true
}

func parseUint16(text string) (uint16, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	return uint16(n), err
}

func contains[K comparable, V any](m map[K]V, k K) bool {
	_, ok := m[k]
	return ok
}
