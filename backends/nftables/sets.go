package nftables

import (
	"bytes"

	"weir/backends/dataplane"
	"weir/backends/nfnl"

	nft "github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// setID numbers the maps and sets of a table. A frontend's elements are kept and printed in this order.
type setID uint8

// Maps whose keys begin with an address frontend (address, protocol, port) come first, then the same for node ports,
// then the sets that do not belong to a frontend.
const (
	services setID = iota
	noEndpoints
	endpoints
	stickySlots
	stickyEndpoints
	restricted
	allowedSources

	nodePorts
	nodePortNoEndpoints
	nodePortEndpoints
	nodePortStickySlots
	nodePortStickyEndpoints

	clusterIPs
	hairpin
	nodePortAddresses
	listeners
	answered
	stickyClients
	nodePortStickyClients
	numSets
)

// scopeSets are the maps of the frontends of one scope.
type scopeSets struct {
	dispatch, refused                           setID // to a chain that chooses an endpoint, or to the verdict without one
	endpoints                                   setID // the endpoint in each slot
	stickySlots, stickyEndpoints, stickyClients setID // affinity: slot to identity, identity to endpoint, client to identity
}

var setsOf = [...]scopeSets{
	addrScope:     {services, noEndpoints, endpoints, stickySlots, stickyEndpoints, stickyClients},
	nodePortScope: {nodePorts, nodePortNoEndpoints, nodePortEndpoints, nodePortStickySlots, nodePortStickyEndpoints, nodePortStickyClients},
}

// suffix is the part of a key after the frontend.
type suffix uint8

const (
	noSuffix suffix = iota
	slotSuffix
	rangeSuffix // a range of source addresses
)

// value is the type of a map's values.
type value uint8

const (
	noValue value = iota
	verdictValue
	addrPortValue
	markValue
)

// set describes one map or set. Both families have the same ones, with their own address type.
type set struct {
	name    string
	comment string
	// front reports whether the keys begin with a frontend of the scope; plain keys are addresses instead.
	front  bool
	scope  scope
	suffix suffix
	value  value
	// dynamic reports whether the kernel itself writes the set while packets pass. Such elements are state, not
	// configuration, so Observe does not read them.
	dynamic bool
	// redirects reports whether only the tables have the set that redirect to listeners of userspace mode.
	redirects bool
	// ports reports whether the plain keys are addresses with protocol and port.
	ports bool
	// rare reports whether the set exists only while a ServicePort needs it.
	rare bool
}

// sets is the layout of all data. It is constant.
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
	listeners:             {name: "listeners", redirects: true, ports: true, comment: "where weir itself listens: nobody else may answer there"},
	answered:              {name: "answered", ports: true, rare: true, comment: "where weir itself answers: neither translated nor tracked"},
	stickyClients:         {name: "sticky-clients", dynamic: true, value: markValue, comment: "the endpoint each client was given; the kernel fills it"},
	nodePortStickyClients: {name: "node-port-sticky-clients", dynamic: true, scope: nodePortScope, value: markValue, comment: "as sticky-clients, for node ports"},
}

func setByName(name string) (setID, bool) {
	for id := range sets {
		if sets[id].name == name {
			return setID(id), true
		}
	}
	return 0, false
}

// maxClients bounds each map of remembered clients.
const maxClients = 1 << 20

// keyTypes returns the types of the fields of the key.
func (s set) keyTypes(f dataplane.Family) []nft.SetDatatype {
	addr := addrType(f)
	var types []nft.SetDatatype
	switch {
	case s.dynamic:
		types = append([]nft.SetDatatype{addr}, frontTypes(f, s.scope)...)
	case s.front:
		types = frontTypes(f, s.scope)
	case s.name == sets[hairpin].name:
		return []nft.SetDatatype{addr, addr}
	case s.ports:
		return frontTypes(f, addrScope)
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

func frontTypes(f dataplane.Family, s scope) []nft.SetDatatype {
	types := []nft.SetDatatype{nft.TypeInetProto, nft.TypeInetService}
	if s == addrScope {
		types = append([]nft.SetDatatype{addrType(f)}, types...)
	}
	return types
}

// dataTypes returns the types of the fields of the value; none for a set and for verdicts.
func (s set) dataTypes(f dataplane.Family) []nft.SetDatatype {
	switch s.value {
	case addrPortValue:
		return []nft.SetDatatype{addrType(f), nft.TypeInetService}
	case markValue:
		return []nft.SetDatatype{nft.TypeMark}
	}
	return nil
}

func addrType(f dataplane.Family) nft.SetDatatype {
	if f == dataplane.IPv6 {
		return nft.TypeIP6Addr
	}
	return nft.TypeIPAddr
}

// text returns the definition as nft writes it.
func (s set) text(f dataplane.Family) string {
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

// definition returns the set as the kernel has it.
func (s set) definition(f dataplane.Family) nfnl.Set {
	types := s.keyTypes(f)
	key := nft.MustConcatSetType(types...)
	d := nfnl.Set{Name: s.name, KeyType: key.GetNFTMagic(), KeyLen: key.Bytes}
	if len(types) > 1 {
		d.Flags |= nfnl.SetConcat
		for _, t := range types {
			d.Fields = append(d.Fields, t.Bytes)
		}
	}
	if s.dynamic {
		d.Flags |= unix.NFT_SET_EVAL | unix.NFT_SET_TIMEOUT
		d.Size = maxClients
	}
	if s.suffix == rangeSuffix {
		d.Flags |= unix.NFT_SET_INTERVAL
	}
	// A single type has a byte order, which nft needs for printing. The byte orders of a concatenation follow from its
	// parts.
	const hostOrder, networkOrder = 1, 2
	if len(types) == 1 {
		d.Userdata = userdata.AppendUint32(d.Userdata, userdata.NFTNL_UDATA_SET_KEYBYTEORDER, networkOrder)
	}
	if s.value != noValue {
		d.Flags |= unix.NFT_SET_MAP
		if s.value == verdictValue {
			d.DataType = unix.NFT_DATA_VERDICT
		} else {
			data := nft.MustConcatSetType(s.dataTypes(f)...)
			d.DataType, d.DataLen = data.GetNFTMagic(), data.Bytes
		}
		if s.value == markValue {
			d.Userdata = userdata.AppendUint32(d.Userdata, userdata.NFTNL_UDATA_SET_DATABYTEORDER, hostOrder)
		}
	}
	d.Userdata = userdata.AppendString(d.Userdata, userdata.NFTNL_UDATA_SET_COMMENT, s.comment)
	return d
}

// sameDefinition reports whether a set in the kernel has the definition that weir wants.
func sameDefinition(want, got nfnl.Set) bool {
	const significant = unix.NFT_SET_CONSTANT | unix.NFT_SET_INTERVAL | unix.NFT_SET_MAP | unix.NFT_SET_TIMEOUT | unix.NFT_SET_EVAL | unix.NFT_SET_OBJECT
	return want.Flags&significant == got.Flags&significant && want.KeyType == got.KeyType && want.KeyLen == got.KeyLen &&
		want.DataType == got.DataType && (want.DataLen == got.DataLen || want.DataType == unix.NFT_DATA_VERDICT) &&
		bytes.Equal(want.Userdata, got.Userdata)
}
