package ipvs

import (
	"context"
	"errors"
	"fmt"

	"weir/backends"
)

// Kernel is all that the backend needs of the kernel besides iptables and sysctls. It has no context in most of its methods,
// since each is one short exchange. It is safe for concurrent use.
type Kernel interface {
	// Read returns all that is weir's.
	Read(ctx context.Context) (*State, error)

	// Destinations returns what a virtual server has now, none if it is not there.
	Destinations(key ServerKey) ([]Destination, error)

	// Put makes an Item what it says, whether it is there or not: a Link, Address, Server, Destination, Set, Member or
	// Timeouts. A virtual server that is there and not weir's is ErrForeign, unless it is to be retaken.
	Put(item backends.Item) error

	// PutMembers does what Put would with each of them, all of one set, at a fraction of the cost. After an error, any of
	// them may be there.
	PutMembers(members []Member) error

	// Delete removes an Item. To remove what is absent succeeds, and so does a virtual server that is not weir's: it stays.
	Delete(item backends.Item) error
}

// State is what the kernel holds of weir.
type State struct {
	// Link says that weir-ipvs0 is there. Without it there are no Addresses.
	Link         bool
	Addresses    []Address
	Servers      []Server
	Destinations []Destination
	Sets         []Set
	Members      []Member
	Timeouts     Timeouts
	// Accepted is how many connections each of the Servers was sent since it was made.
	Accepted map[ServerKey]uint64
}

// ErrForeign is a virtual server that somebody else made where weir wants one.
var ErrForeign = errors.New("somebody else made this virtual server, or edited it while weir was away, and weir leaves it alone; remove it with ipvsadm -D, or give the Service another address or port")

// ownerMark is what the top byte of the flags of weir's virtual servers holds.
const (
	ownerMark uint32 = 0x77 << 24
	ownerMask uint32 = 0xff << 24
)

func missingScheduler(name string, err error) error {
	return fmt.Errorf("the kernel has no IPVS scheduler %q: load the module with `modprobe ip_vs_%s`, or choose another scheduler: %w", name, name, err)
}
