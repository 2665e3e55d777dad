package ipvs

import (
	"context"
	"errors"
	"fmt"

	"weir/backends"
)

// Kernel is the part of the kernel that the backend uses besides iptables and sysctls. Most of its methods take no
// context, since each is one short exchange. It is safe for concurrent use.
type Kernel interface {
	// Read returns all objects of weir.
	Read(ctx context.Context) (*State, error)

	// Destinations returns the present destinations of a virtual server; none if it does not exist.
	Destinations(key ServerKey) ([]Destination, error)

	// Put creates or changes an Item: a Link, Address, Server, Destination, Set, Member or Timeouts. If the virtual
	// server exists and is not weir's, Put returns ErrForeign, unless Retake is set.
	Put(item backends.Item) error

	// PutMembers calls Put for each of the members, all of one set, at a fraction of the cost. After an error, any of
	// them may have been added.
	PutMembers(members []Member) error

	// Delete deletes an Item. Deleting an absent object succeeds. So does deleting a virtual server that is not weir's:
	// it stays.
	Delete(item backends.Item) error
}

// State is everything that the kernel holds of weir.
type State struct {
	// Link reports whether weir-ipvs0 exists. Without it there are no Addresses.
	Link         bool
	Addresses    []Address
	Servers      []Server
	Destinations []Destination
	Sets         []Set
	Members      []Member
	Timeouts     Timeouts
	// Accepted is the number of connections that each of the Servers received since it was made.
	Accepted map[ServerKey]uint64
}

// ErrForeign is returned if another program made a virtual server at an address where weir needs one.
var ErrForeign = errors.New("another program made this virtual server, or edited it while weir was away, and weir leaves it alone; remove it with ipvsadm -D, or give the Service another address or port")

// ownerMark is the value of the top byte of the flags of weir's virtual servers. The kernel uses only the lowest bits
// of the flags and keeps the others. Because the kernel stores the mark, a lost state directory loses nothing, `weir
// cleanup` needs none, and a crash never leaves a virtual server without an owner. weir never touches virtual servers
// without the mark, at any address, so it does not need the field excludeCIDRs. A virtual server that ipvsadm edits
// loses its mark. A process that knew it as weir's takes it back.
const (
	ownerMark uint32 = 0x77 << 24
	ownerMask uint32 = 0xff << 24
)

func missingScheduler(name string, err error) error {
	return fmt.Errorf("the kernel has no IPVS scheduler %q: load the module with `modprobe ip_vs_%s`, or choose another scheduler: %w", name, name, err)
}
