package userspace

import (
	"net/netip"
	"sync"
)

// dialed holds this process's connections to endpoints. By mistake an endpoint may be an address of a Service. The
// kernel then redirects the connection to this process again. Without dialed, one connection would open others until no
// descriptor is left. It is safe for concurrent use.
type dialed struct {
	mu    sync.Mutex
	count map[connection]int
}

// connection names a connection by its ends. The local end alone is not enough. Clients that are masqueraded have an
// address of the node too, and any port, which a connection to another address may have as well.
type connection struct{ local, remote netip.AddrPort }

func (d *dialed) add(c connection) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.count == nil {
		d.count = map[connection]int{}
	}
	d.count[c]++
}

func (d *dialed) remove(c connection) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.count[c]--; d.count[c] <= 0 {
		delete(d.count, c)
	}
}

// own reports whether a connection to one of the listeners comes from this process.
func (d *dialed) own(c connection) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.count[c] > 0
}
