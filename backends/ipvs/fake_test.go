package ipvs

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"weir/backends"
)

// Fake is a Kernel in memory: a model of IPVS, of the interface and of ipsets. As in the kernel, addresses are deleted
// with the interface and destinations with their virtual server, and nothing can be added to an absent object. The
// exported fields may be used while no other goroutine uses the Fake.
type Fake struct {
	// Schedulers are the ones that the kernel has; nil means all.
	Schedulers []string
	// Err, if set, is returned by every method.
	Err error
	// Connections is the number of connections of a destination, by its ID.
	Connections map[backends.ID]int
	// Foreign holds the virtual servers of other programs.
	Foreign map[ServerKey]string
	// Calls counts the calls, by method and type of item.
	Calls map[string]int
	// Log holds every change in order.
	Log []string

	mu           sync.Mutex // guards all fields below, and the exported fields while a method runs
	link         bool
	addresses    map[backends.ID]Address
	servers      map[ServerKey]Server
	destinations map[ServerKey]map[backends.ID]Destination
	sets         map[string]Set
	members      map[string]map[backends.ID]Member
	timeouts     Timeouts
}

// NewFake returns a kernel that holds nothing.
func NewFake() *Fake {
	return &Fake{
		Connections: map[backends.ID]int{}, Foreign: map[ServerKey]string{}, Calls: map[string]int{},
		addresses: map[backends.ID]Address{}, servers: map[ServerKey]Server{},
		destinations: map[ServerKey]map[backends.ID]Destination{}, sets: map[string]Set{}, members: map[string]map[backends.ID]Member{},
		timeouts: Timeouts{TCP: 900e9, TCPFin: 120e9, UDP: 300e9},
	}
}

func (k *Fake) called(method string, item backends.Item) error {
	k.Calls[method]++
	if item != nil {
		k.Log = append(k.Log, method+" "+item.String())
	}
	return k.Err
}

// Read implements Kernel.
func (k *Fake) Read(context.Context) (*State, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.called("Read", nil); err != nil {
		return nil, err
	}
	s := &State{Link: k.link, Timeouts: k.timeouts, Addresses: slices.Collect(maps.Values(k.addresses))}
	for key, server := range k.servers {
		s.Servers = append(s.Servers, server)
		s.Destinations = append(s.Destinations, k.list(key)...)
	}
	for name, set := range k.sets {
		s.Sets = append(s.Sets, set)
		s.Members = append(s.Members, slices.Collect(maps.Values(k.members[name]))...)
	}
	return s, nil
}

func (k *Fake) list(key ServerKey) []Destination {
	list := slices.Collect(maps.Values(k.destinations[key]))
	for i := range list {
		list[i].Connections = k.Connections[list[i].ID()]
	}
	return list
}

// Destinations implements Kernel.
func (k *Fake) Destinations(key ServerKey) ([]Destination, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.called("Destinations", nil); err != nil {
		return nil, err
	}
	return k.list(key), nil
}

// Put implements Kernel.
func (k *Fake) Put(item backends.Item) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.put(item)
}

func (k *Fake) put(item backends.Item) error {
	if err := k.called("put", item); err != nil {
		return err
	}
	switch i := item.(type) {
	case Link:
		k.link = true
	case Address:
		if !k.link {
			return fmt.Errorf("there is no %s", LinkName)
		}
		k.addresses[i.ID()] = i
	case Server:
		return k.putServer(i)
	case Destination:
		if _, ok := k.servers[i.Server]; !ok {
			return unix.ESRCH
		}
		if i.Altered = false; i.Until > 0 {
			i.Weight = 0
		}
		k.destinations[i.Server][i.ID()] = i
	case Set:
		if old, ok := k.sets[i.Name]; ok && old != i {
			return unix.EEXIST
		} else if !ok {
			k.sets[i.Name], k.members[i.Name] = i, map[backends.ID]Member{}
		}
	case Member:
		if _, ok := k.sets[i.Set]; !ok {
			return unix.ENOENT
		}
		k.members[i.Set][i.ID()] = i
	case Timeouts:
		if i.TCP > 0 {
			k.timeouts.TCP = i.TCP
		}
		if i.TCPFin > 0 {
			k.timeouts.TCPFin = i.TCPFin
		}
		if i.UDP > 0 {
			k.timeouts.UDP = i.UDP
		}
	default:
		return fmt.Errorf("%T is not an object of IPVS", item)
	}
	return nil
}

// PutMembers implements Kernel.
func (k *Fake) PutMembers(members []Member) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, m := range members {
		if err := k.put(m); err != nil {
			return err
		}
	}
	return nil
}

func (k *Fake) putServer(s Server) error {
	if _, ok := k.Foreign[s.ServerKey]; ok && !s.Retake {
		return ErrForeign
	}
	delete(k.Foreign, s.ServerKey)
	s.Retake = false
	if k.Schedulers != nil && !slices.Contains(k.Schedulers, s.Scheduler) {
		return missingScheduler(s.Scheduler, unix.ENOENT)
	}
	if k.destinations[s.ServerKey] == nil {
		k.destinations[s.ServerKey] = map[backends.ID]Destination{}
	}
	k.servers[s.ServerKey] = s
	return nil
}

// Delete implements Kernel.
func (k *Fake) Delete(item backends.Item) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.called("delete", item); err != nil {
		return err
	}
	switch i := item.(type) {
	case Link:
		k.link = false
		clear(k.addresses)
	case Address:
		delete(k.addresses, i.ID())
	case Server:
		if _, ok := k.Foreign[i.ServerKey]; !ok {
			delete(k.servers, i.ServerKey)
			delete(k.destinations, i.ServerKey)
		}
	case Destination:
		delete(k.destinations[i.Server], i.ID())
	case Set:
		delete(k.sets, i.Name)
		delete(k.members, i.Name)
	case Member:
		delete(k.members[i.Set], i.ID())
	case Timeouts:
	default:
		return fmt.Errorf("%T is not an object of IPVS", item)
	}
	return nil
}
