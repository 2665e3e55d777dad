package nftables

import (
	"weir/backends"

	nft "github.com/google/nftables"
)

// set describes one map or set. Both families have the same ones, with their own address type.
type set struct {
	name    string
	comment string
	// front says that the keys begin with a front of the scope; plain keys are addresses instead.
	front  bool
	scope  scope
	suffix suffix
	value  value
	// dynamic sets are written by the kernel itself while packets pass. They are state, not configuration: Observe does not
	// read their elements.
	dynamic bool
}

// sets is the whole layout of the data. It is constant.
var sets = [numSets]set{
	services:        {name: "services", front: true, value: verdictValue, comment: "what happens to a connection to this address and port"},
	noEndpoints:     {name: "no-endpoints", front: true, value: verdictValue, comment: "what happens where no endpoint may be used"},
	endpoints:       {name: "endpoints", front: true, suffix: slotSuffix, value: addrPortValue, comment: "the endpoint in each slot; from 0x10000 on, for policy Local"},
	stickySlots:     {name: "sticky-slots", front: true, suffix: slotSuffix, value: markValue, comment: "with session affinity: the endpoint's identity in each slot"},
	stickyEndpoints: {name: "sticky-endpoints", front: true, suffix: slotSuffix, value: addrPortValue, comment: "with session affinity: where the endpoint of an identity is"},
	restricted:      {name: "restricted", front: true, value: verdictValue, comment: "load balancer addresses with source ranges"},
	allowedSources:  {name: "allowed-sources", front: true, suffix: rangeSuffix, comment: "who may use the restricted addresses"},

	nodePorts:               {name: "node-ports", front: true, scope: nodePortScope, value: verdictValue, comment: "what happens to a connection to this port of the node"},
	nodePortNoEndpoints:     {name: "node-port-no-endpoints", front: true, scope: nodePortScope, value: verdictValue, comment: "as no-endpoints, for node ports"},
	nodePortEndpoints:       {name: "node-port-endpoints", front: true, scope: nodePortScope, suffix: slotSuffix, value: addrPortValue, comment: "as endpoints, for node ports"},
	nodePortStickySlots:     {name: "node-port-sticky-slots", front: true, scope: nodePortScope, suffix: slotSuffix, value: markValue, comment: "as sticky-slots, for node ports"},
	nodePortStickyEndpoints: {name: "node-port-sticky-endpoints", front: true, scope: nodePortScope, suffix: slotSuffix, value: addrPortValue, comment: "as sticky-endpoints, for node ports"},

	clusterIPs:            {name: "cluster-ips", comment: "every ClusterIP: what no Service port takes is rejected"},
	hairpin:               {name: "hairpin", comment: "endpoints that may reach themselves through their Service"},
	nodePortAddresses:     {name: "node-port-addresses", comment: "the addresses of the node that serve node ports"},
	stickyClients:         {name: "sticky-clients", dynamic: true, value: markValue, comment: "the endpoint each client was given; the kernel fills it"},
	nodePortStickyClients: {name: "node-port-sticky-clients", dynamic: true, scope: nodePortScope, value: markValue, comment: "as sticky-clients, for node ports"},
}

// maxClients bounds each map of remembered clients.
const maxClients = 1 << 20

// keyTypes returns the types that the key is concatenated of.
func (s set) keyTypes(f backends.Family) []nft.SetDatatype {
	addr := addrType(f)
	var types []nft.SetDatatype
	switch {
	case s.dynamic:
		types = append([]nft.SetDatatype{addr}, frontTypes(f, s.scope)...)
	case s.front:
		types = frontTypes(f, s.scope)
	case s.name == sets[hairpin].name:
		return []nft.SetDatatype{addr, addr}
	default:
		return []nft.SetDatatype{addr}
	}
	switch s.suffix {
	case slotSuffix:
		types = append(types, nft.TypeMark)
	case rangeSuffix:
		types = append(types, addr)
	}
	return types
}

func frontTypes(f backends.Family, s scope) []nft.SetDatatype {
	types := []nft.SetDatatype{nft.TypeInetProto, nft.TypeInetService}
	if s == addrScope {
		types = append([]nft.SetDatatype{addrType(f)}, types...)
	}
	return types
}

// dataTypes returns the types that the value is concatenated of; none for a set and for verdicts.
func (s set) dataTypes(f backends.Family) []nft.SetDatatype {
	switch s.value {
	case addrPortValue:
		return []nft.SetDatatype{addrType(f), nft.TypeInetService}
	case markValue:
		return []nft.SetDatatype{nft.TypeMark}
	}
	return nil
}

func addrType(f backends.Family) nft.SetDatatype {
	if f == backends.IPv6 {
		return nft.TypeIP6Addr
	}
	return nft.TypeIPAddr
}

// text returns the definition as nft writes it.
func (s set) text(f backends.Family) string {
	names := func(types []nft.SetDatatype) string { return nft.MustConcatSetType(types...).Name }
	text := familyName(f) + " set " + s.name + ": " + names(s.keyTypes(f))
	switch {
	case s.value == verdictValue:
		text += " : verdict"
	case s.value != noValue:
		text += " : " + names(s.dataTypes(f))
	}
	if s.dynamic {
		text += ", dynamic"
	}
	if s.suffix == rangeSuffix {
		text += ", interval"
	}
	return text
}
