package ipvs

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"weir/backends"
	"weir/backends/dataplane"
)

var _ backends.Describer = (*Backend)(nil)

// Describe implements backends.Describer. A Frontend is a member of one of the sets that hold all addresses and ports
// of Services. The kernel does not know the names of Services.
func (b *Backend) Describe(items []backends.Item) []backends.ProgrammedFrontend {
	d := &describer{
		b: b, servers: map[ServerKey]Server{}, destinations: map[ServerKey][]Destination{}, fronts: map[ServerKey]*backends.ProgrammedFrontend{},
		members: map[ServerKey][]Member{}, addresses: map[netip.Addr][]backends.ID{}, loops: map[ServerKey]backends.ID{},
	}
	var all []Member
	for _, i := range items {
		switch i := i.(type) {
		case Server:
			d.servers[i.ServerKey] = i
		case Destination:
			d.destinations[i.Server] = append(d.destinations[i.Server], i)
		case Address:
			d.addresses[i.Addr] = append(d.addresses[i.Addr], i.ID())
		case Member:
			switch key := keyOf(i); {
			case strings.HasPrefix(i.Set, addrSet):
				d.addresses[i.Addr] = append(d.addresses[i.Addr], i.ID())
			case strings.HasPrefix(i.Set, loopSet):
				d.loops[key] = i.ID()
			case i.Addr.IsValid():
				d.members[key] = append(d.members[key], i)
				all = append(all, i)
			}
		}
	}
	for _, m := range all {
		if role(m) != "" {
			d.front(m)
		}
	}
	fronts := make([]backends.ProgrammedFrontend, 0, len(d.order))
	for _, k := range d.order {
		f := d.fronts[k]
		for _, ids := range []*[]backends.ID{&f.Own, &f.Shared} {
			slices.Sort(*ids)
			*ids = slices.Compact(*ids) // a node port has several addresses
		}
		slices.Sort(f.Sources)
		f.Sources = slices.Compact(f.Sources)
		fronts = append(fronts, *f)
	}
	return fronts
}

type describer struct {
	b            *Backend
	servers      map[ServerKey]Server
	destinations map[ServerKey][]Destination
	members      map[ServerKey][]Member // by the address, protocol and port that they match
	addresses    map[netip.Addr][]backends.ID
	loops        map[ServerKey]backends.ID // by endpoint
	fronts       map[ServerKey]*backends.ProgrammedFrontend
	order        []ServerKey
}

func keyOf(m Member) ServerKey {
	k := ServerKey{Protocol: m.Protocol, Addr: netip.AddrPortFrom(m.Addr, m.Port)}
	if m.Addr.IsValid() {
		k.Family = dataplane.FamilyOf(m.Addr)
	}
	return k
}

// role returns "serve", "reject" or "drop" for a member that decides about connections, else "".
func role(m Member) string {
	name, f := m.Set[:len(m.Set)-1], dataplane.FamilyOf(m.Addr)
	if m.Set != named(name, f) {
		return ""
	}
	switch name {
	case clusterSet, externalSet, localSet:
		return "serve"
	case rejectSet:
		return "reject"
	case dropSet:
		return "drop"
	}
	return ""
}

// front adds one address and port. All addresses of a node port are one Frontend.
func (d *describer) front(m Member) {
	at := keyOf(m)
	key := at
	if slices.Contains(d.b.cfg.NodeAddresses, m.Addr) {
		key.Addr = netip.AddrPortFrom(netip.Addr{}, m.Port)
	}
	f := d.fronts[key]
	if f == nil {
		f = &backends.ProgrammedFrontend{Frontend: dataplane.Frontend{Family: key.Family, Protocol: key.Protocol, Addr: key.Addr.Addr(), Port: key.Addr.Port()}}
		d.fronts[key] = f
		d.order = append(d.order, key)
	}
	f.Shared = append(f.Shared, d.addresses[m.Addr]...)
	if refusal := role(m); refusal != "serve" {
		f.Refusal = refusal
	} else {
		f.Affinity = time.Duration(d.servers[at].Affinity) * time.Second
		f.Endpoints = d.serve(f, at)
	}
	for _, other := range d.members[at] {
		f.Own = append(f.Own, other.ID())
		switch {
		case strings.HasPrefix(other.Set, insideSet):
			f.FromNode = d.serve(f, ServerKey{Family: at.Family, Mark: other.Mark})
		case strings.HasPrefix(other.Set, allowSet):
			f.Sources = append(f.Sources, other.Other.String())
		}
	}
}

// serve returns the shares of the destinations of a virtual server, and adds its Items to the Frontend.
func (d *describer) serve(f *backends.ProgrammedFrontend, key ServerKey) []dataplane.EndpointShare {
	server, ok := d.servers[key]
	if !ok {
		return nil
	}
	f.Own = append(f.Own, server.ID())
	sum := 0
	for _, dest := range d.destinations[key] {
		sum += int(dest.Weight)
	}
	var shares []dataplane.EndpointShare
	for _, dest := range d.destinations[key] {
		f.Own = append(f.Own, dest.ID())
		endpoint := ServerKey{Family: key.Family, Protocol: f.Protocol, Addr: dest.Addr}
		if id, ok := d.loops[endpoint]; ok {
			f.Shared = append(f.Shared, id)
		}
		if dest.Weight > 0 {
			shares = append(shares, dataplane.EndpointShare{Addr: dest.Addr, Fraction: float64(dest.Weight) / float64(sum)})
		}
	}
	return shares
}
