package ipvs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/moby/ipvs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weir/backends"
	"weir/backends/dataplane"
)

// Flags of virtual servers, and the lower threshold of a leaving destination.
const (
	flagPersistent = 0x1
	flagFallback   = 0x8
	leavingMark    = 1
)

// dumpAttempts bounds how often a list that changed during the read is read again.
const dumpAttempts = 5

// Linux is the Kernel of the network namespace that Open was called in.
type Linux struct {
	mu    sync.Mutex // guards all fields below: the sockets serve one exchange at a time
	ipvs  *ipvs.Handle
	route *netlink.Handle
	sets  *ipsets
	link  netlink.Link // weir-ipvs0 as it was last read
}

// Open opens the kernel of this network namespace. The error names what the kernel lacks; Probe would try to load it
// first.
func Open() (*Linux, error) {
	// The library asks for the number of IPVS only once in a process, so it must not ask before IPVS is there.
	if missing, err := lacking(); err != nil || len(missing) > 0 {
		return nil, cmp.Or(err, fmt.Errorf("the kernel lacks %s", strings.Join(missing, ", ")))
	}
	handle, err := ipvs.New("")
	if err != nil {
		return nil, fmt.Errorf("open IPVS: %w", err)
	}
	k := &Linux{ipvs: handle}
	if k.route, err = netlink.NewHandle(unix.NETLINK_ROUTE); err == nil {
		k.sets, err = openIPSets()
	}
	if err != nil {
		k.Close()
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return k, nil
}

// Close closes the sockets.
func (k *Linux) Close() {
	k.ipvs.Close()
	if k.route != nil {
		k.route.Close()
	}
	if k.sets != nil {
		k.sets.close()
	}
}

// Read implements Kernel.
func (k *Linux) Read(ctx context.Context) (*State, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := &State{Accepted: map[ServerKey]uint64{}}
	if err := k.readAddresses(s); err != nil {
		return nil, err
	}
	services, err := k.ipvs.GetServices()
	if err != nil {
		return nil, fmt.Errorf("list virtual servers: %w", err)
	}
	for _, svc := range services {
		if !owned(svc) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		server := serverOf(svc)
		destinations, err := k.destinations(server.ServerKey, svc)
		if err != nil {
			return nil, err
		}
		s.Servers = append(s.Servers, server)
		s.Accepted[server.ServerKey] = uint64(svc.Stats.Connections)
		s.Destinations = append(s.Destinations, destinations...)
	}
	config, err := k.ipvs.GetConfig()
	if err != nil {
		return nil, fmt.Errorf("read the timeouts of IPVS: %w", err)
	}
	s.Timeouts = Timeouts{TCP: config.TimeoutTCP, TCPFin: config.TimeoutTCPFin, UDP: config.TimeoutUDP}
	s.Sets, s.Members, err = k.sets.list()
	if err != nil {
		return nil, fmt.Errorf("list ipsets: %w", err)
	}
	return s, nil
}

func (k *Linux) readAddresses(s *State) error {
	if err := k.findLink(); err != nil || k.link == nil {
		return err
	}
	s.Link = true
	var list []netlink.Addr
	var err error
	for range dumpAttempts {
		list, err = k.route.AddrList(k.link, netlink.FAMILY_ALL)
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("list the addresses of %s: %w", LinkName, err)
	}
	for _, a := range list {
		addr, ok := netip.AddrFromSlice(a.IP)
		if addr = addr.Unmap(); !ok || addr.IsLinkLocalUnicast() {
			continue
		}
		s.Addresses = append(s.Addresses, Address{Addr: addr, Leaving: a.Flags&unix.IFA_F_DEPRECATED != 0})
	}
	return nil
}

// findLink finds weir-ipvs0.
func (k *Linux) findLink() error {
	link, err := k.route.LinkByName(LinkName)
	if missing := (netlink.LinkNotFoundError{}); errors.As(err, &missing) {
		k.link = nil
		return nil
	}
	if err != nil {
		return fmt.Errorf("find %s: %w", LinkName, err)
	}
	if link.Type() != "dummy" {
		return fmt.Errorf("%s is an interface of type %s, and not weir's: remove or rename it", LinkName, link.Type())
	}
	k.link = link
	return nil
}

// Destinations implements Kernel.
func (k *Linux) Destinations(key ServerKey) ([]Destination, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	list, err := k.destinations(key, service(Server{ServerKey: key}))
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	return list, err
}

func (k *Linux) destinations(key ServerKey, svc *ipvs.Service) ([]Destination, error) {
	found, err := k.ipvs.GetDestinations(svc)
	if err != nil {
		return nil, fmt.Errorf("list the destinations of %s: %w", key, err)
	}
	list := make([]Destination, 0, len(found))
	for _, d := range found {
		a, _ := netip.AddrFromSlice(d.Address)
		dest := Destination{
			Server: key, Addr: netip.AddrPortFrom(a, d.Port), Weight: uint16(d.Weight),
			Connections: d.ActiveConnections + d.InactiveConnections,
		}
		if d.Weight == 0 && d.LowerThreshold == leavingMark {
			dest.Until = d.UpperThreshold
		} else {
			dest.Altered = d.UpperThreshold > 0 || d.LowerThreshold > 0
		}
		dest.Altered = dest.Altered || d.ConnectionFlags&ipvs.ConnectionFlagFwdMask != ipvs.ConnFwdMasq
		list = append(list, dest)
	}
	return list, nil
}

// Put implements Kernel.
func (k *Linux) Put(item backends.Item) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch i := item.(type) {
	case Link:
		return k.putLink()
	case Address:
		return k.putAddress(i)
	case Server:
		return k.putServer(i)
	case Destination:
		svc, dest := service(Server{ServerKey: i.Server}), destination(i)
		err := k.ipvs.NewDestination(svc, dest)
		if errors.Is(err, unix.EEXIST) {
			err = k.ipvs.UpdateDestination(svc, dest)
		}
		return err
	case Set:
		return k.sets.create(i)
	case Member:
		return k.sets.add([]Member{i})
	case Timeouts:
		return k.ipvs.SetConfig(&ipvs.Config{TimeoutTCP: i.TCP, TimeoutTCPFin: i.TCPFin, TimeoutUDP: i.UDP})
	}
	return fmt.Errorf("%T is not an object of IPVS", item)
}

// PutMembers implements Kernel.
func (k *Linux) PutMembers(members []Member) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for some := range slices.Chunk(members, membersAtOnce) {
		if err := k.sets.add(some); err != nil {
			return err
		}
	}
	return nil
}

// Delete implements Kernel.
func (k *Linux) Delete(item backends.Item) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	err := k.remove(item)
	for _, absent := range []error{unix.ESRCH, unix.ENOENT, unix.EADDRNOTAVAIL, unix.ENODEV} {
		if errors.Is(err, absent) {
			return nil
		}
	}
	return err
}

func (k *Linux) remove(item backends.Item) error {
	switch i := item.(type) {
	case Link:
		if err := k.findLink(); err != nil || k.link == nil {
			return err
		}
		link := k.link
		k.link = nil
		return k.route.LinkDel(link)
	case Address:
		if k.link == nil {
			if err := k.findLink(); err != nil || k.link == nil {
				return err
			}
		}
		return k.route.AddrDel(k.link, address(i.Addr))
	case Server:
		svc := service(i)
		if there, err := k.ipvs.GetService(svc); err != nil || !owned(there) {
			return err
		}
		return k.ipvs.DelService(svc)
	case Destination:
		return k.ipvs.DelDestination(service(Server{ServerKey: i.Server}), destination(i))
	case Set:
		return k.sets.destroy(i)
	case Member:
		return k.sets.del(i)
	case Timeouts:
		return nil
	}
	return fmt.Errorf("%T is not an object of IPVS", item)
}

// putLink makes the interface. It stays down: its addresses are local even so, and no packet ever leaves through it.
func (k *Linux) putLink() error {
	if err := k.findLink(); err != nil || k.link != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = LinkName
	if err := k.route.LinkAdd(&netlink.Dummy{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("create the dummy interface %s: %w", LinkName, err)
	}
	return k.findLink()
}

func (k *Linux) putAddress(a Address) error {
	if k.link == nil {
		if err := k.findLink(); err != nil {
			return err
		}
		if k.link == nil {
			return fmt.Errorf("there is no %s", LinkName)
		}
	}
	addr := address(a.Addr)
	const forever = min(math.MaxUint32, math.MaxInt) // where int has 32 bits, 68 years
	addr.ValidLft = forever
	if !a.Leaving {
		addr.PreferedLft = forever
	}
	return k.route.AddrReplace(k.link, addr)
}

// putServer creates a virtual server, or changes one that is weir's.
func (k *Linux) putServer(s Server) error {
	svc := service(s)
	err := k.ipvs.NewService(svc)
	if errors.Is(err, unix.EEXIST) {
		there, getErr := k.ipvs.GetService(svc)
		switch {
		case getErr != nil:
			return fmt.Errorf("read %s: %w", s.ServerKey, getErr)
		case !owned(there) && !s.Retake:
			return ErrForeign
		}
		err = k.ipvs.UpdateService(svc)
	}
	if errors.Is(err, unix.ENOENT) {
		return missingScheduler(s.Scheduler, err)
	}
	return err
}

// owned reports whether a virtual server has weir's mark.
func owned(svc *ipvs.Service) bool { return svc.Flags&ownerMask == ownerMark }

func address(a netip.Addr) *netlink.Addr {
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}}
	if a.Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	return addr
}

func service(s Server) *ipvs.Service {
	svc := &ipvs.Service{
		AddressFamily: unix.AF_INET, Netmask: 0xffffffff, FWMark: s.Mark, Protocol: uint16(s.Protocol),
		SchedName: s.Scheduler, Flags: ownerMark, Timeout: s.Affinity,
	}
	if s.Family == dataplane.IPv6 {
		svc.AddressFamily, svc.Netmask = unix.AF_INET6, 128
	}
	if s.Affinity > 0 {
		svc.Flags |= flagPersistent
	}
	if s.Fallback {
		svc.Flags |= flagFallback
	}
	if s.Mark == 0 {
		svc.Address, svc.Port = s.Addr.Addr().AsSlice(), s.Addr.Port()
	}
	return svc
}

func serverOf(svc *ipvs.Service) Server {
	s := Server{Scheduler: svc.SchedName, Fallback: svc.Flags&flagFallback != 0}
	s.Family = dataplane.IPv4
	if svc.AddressFamily == unix.AF_INET6 {
		s.Family = dataplane.IPv6
	}
	if s.Mark = svc.FWMark; s.Mark == 0 {
		a, _ := netip.AddrFromSlice(svc.Address)
		s.Protocol, s.Addr = dataplane.Protocol(svc.Protocol), netip.AddrPortFrom(a, svc.Port)
	}
	if svc.Flags&flagPersistent != 0 {
		s.Affinity = svc.Timeout
	}
	return s
}

func destination(d Destination) *ipvs.Destination {
	dest := &ipvs.Destination{Address: d.Addr.Addr().AsSlice(), Port: d.Addr.Port(), Weight: int(d.Weight)}
	if d.Until > 0 {
		dest.Weight, dest.UpperThreshold, dest.LowerThreshold = 0, d.Until, leavingMark
	}
	return dest
}
