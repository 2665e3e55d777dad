package nftables

import (
	"weir/backends"

	"golang.org/x/sys/unix"
)

// maxTouched is of how many elements the keys are kept; where there are more, whole sets are read.
const maxTouched = 4096

// touched is what others wrote to weir's tables, as far as that has not been read since. The zero value is nothing.
type touched struct {
	// everything says that it is not known.
	everything bool
	// chains are the families in which a chain or a rule was written.
	chains map[backends.Family]struct{}
	// sets are those to be read whole, elements the keys of those to be read in part.
	sets     map[object]struct{}
	elements map[object]map[string]struct{}
	keys     int
}

// object is a set.
type object struct {
	fam  backends.Family
	name string
}

func mark[K comparable](m *map[K]struct{}, key K) {
	if *m == nil {
		*m = map[K]struct{}{}
	}
	(*m)[key] = struct{}{}
}

// note takes up a notification, and says whether it is about one of the tables of this name.
func (t *touched) note(typ uint16, data []byte, name string) bool {
	if len(data) < 4 {
		return false
	}
	var o object
	switch data[0] {
	case nfproto(backends.IPv4):
		o.fam = backends.IPv4
	case nfproto(backends.IPv6):
		o.fam = backends.IPv6
	default:
		return false
	}
	// All notifications have the table's name as attribute 1; what 2 and 3 are depends on the message.
	table := ""
	var second, third []byte
	attributes(data[4:], func(typ uint16, value []byte) {
		switch typ {
		case 1:
			table = cString(value)
		case 2:
			second = value
		case 3:
			third = value
		}
	})
	if table != name {
		return false
	}
	switch typ {
	case subsys(unix.NFT_MSG_NEWTABLE), subsys(unix.NFT_MSG_DELTABLE):
		t.everything = true
	case subsys(unix.NFT_MSG_NEWCHAIN), subsys(unix.NFT_MSG_DELCHAIN), subsys(unix.NFT_MSG_NEWRULE), subsys(unix.NFT_MSG_DELRULE):
		mark(&t.chains, o.fam)
	case subsys(unix.NFT_MSG_NEWSET), subsys(unix.NFT_MSG_DELSET):
		o.name = cString(second)
		mark(&t.sets, o)
	case subsys(unix.NFT_MSG_NEWSETELEM), subsys(unix.NFT_MSG_DELSETELEM):
		o.name = cString(second)
		if _, whole := t.sets[o]; whole {
			break
		}
		attributes(third, func(_ uint16, item []byte) { t.element(o, parseElement(item).key) })
	}
	return true
}

// element notes one element by its key, nil for the one that stands for all keys which have none.
func (t *touched) element(o object, key []byte) {
	id, known := setByName(o.name)
	if _, whole := t.sets[o]; whole || !known || sets[id].dynamic {
		return
	}
	if key == nil || sets[id].suffix == rangeSuffix || t.keys >= maxTouched {
		mark(&t.sets, o)
		return
	}
	if t.elements == nil {
		t.elements = map[object]map[string]struct{}{}
	}
	if t.elements[o] == nil {
		t.elements[o] = map[string]struct{}{}
	}
	t.elements[o][string(key)] = struct{}{}
	t.keys++
}
