package nftables

import (
	"weir/backends/dataplane"
	"weir/backends/nfnl"

	"golang.org/x/sys/unix"
)

// maxTouched bounds the number of elements whose keys are kept. If there are more, whole sets are read.
const maxTouched = 4096

// touched holds what other processes wrote to weir's tables since weir last read them. The zero value means nothing.
type touched struct {
	// everything reports whether it is unknown what they wrote.
	everything bool
	// chains are the families in which a chain or a rule was written.
	chains map[dataplane.Family]struct{}
	// sets are to be read whole; elements holds the keys to be read of the other sets.
	sets     map[setName]struct{}
	elements map[setName]map[string]struct{}
	keys     int
}

// setName names a set.
type setName struct {
	fam  dataplane.Family
	name string
}

func mark[K comparable](m *map[K]struct{}, key K) {
	if *m == nil {
		*m = map[K]struct{}{}
	}
	(*m)[key] = struct{}{}
}

// note records a notification, and reports whether it is about one of the tables of this name.
func (t *touched) note(n nfnl.Notification, name string) bool {
	s := setName{name: n.Name}
	switch n.Table.Family {
	case unix.NFPROTO_IPV4:
		s.fam = dataplane.IPv4
	case unix.NFPROTO_IPV6:
		s.fam = dataplane.IPv6
	}
	if s.fam == 0 || n.Table.Name != name {
		return false
	}
	switch n.Type {
	case unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE:
		t.everything = true
	case unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
		mark(&t.chains, s.fam)
	case unix.NFT_MSG_NEWSET, unix.NFT_MSG_DELSET:
		mark(&t.sets, s)
	case unix.NFT_MSG_NEWSETELEM, unix.NFT_MSG_DELSETELEM:
		n.Keys(func(key []byte) { t.element(s, key) })
	}
	return true
}

// element records one element by its key, nil for the catchall element.
func (t *touched) element(s setName, key []byte) {
	id, known := setByName(s.name)
	if _, whole := t.sets[s]; whole || !known || sets[id].dynamic {
		return
	}
	if key == nil || sets[id].suffix == rangeSuffix || t.keys >= maxTouched {
		mark(&t.sets, s)
		return
	}
	if t.elements == nil {
		t.elements = map[setName]map[string]struct{}{}
	}
	if t.elements[s] == nil {
		t.elements[s] = map[string]struct{}{}
	}
	t.elements[s][string(key)] = struct{}{}
	t.keys++
}
