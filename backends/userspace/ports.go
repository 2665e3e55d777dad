package userspace

import (
	"fmt"
	"hash/fnv"
	"os"
	"strconv"
	"strings"
	"sync"

	"weir/backends/dataplane"
)

// Ports are the local ports on which Service ports are proxied in the redirecting form. A Service port always asks for
// the same port first, so that the redirection of a killed process fits its successor. Ports are safe for concurrent
// use.
type Ports struct {
	min, max uint16
	mu       sync.Mutex
	byUse    map[portUse]uint16
	taken    map[slot]bool
}

// portUse is the purpose of a port.
type portUse struct {
	key   dataplane.ServicePortName
	local bool
}

// slot is a port as sockets can use it: once for each protocol and family.
type slot struct {
	protocol dataplane.Protocol
	family   dataplane.Family
	port     uint16
}

func (u portUse) slot(port uint16) slot { return slot{u.key.Protocol, u.key.Family, port} }

// NewPorts returns the ports from min to max, both inclusive (portRange in the configuration).
func NewPorts(min, max uint16) *Ports {
	return &Ports{min: min, max: max, byUse: map[portUse]uint16{}, taken: map[slot]bool{}}
}

// port returns the port of a Service port, the same one every time until it is released.
func (p *Ports) port(use portUse) (uint16, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if port, ok := p.byUse[use]; ok {
		return port, nil
	}
	size := uint32(p.max) - uint32(p.min) + 1
	h := fnv.New32a()
	fmt.Fprint(h, use.key, use.local)
	for i := range size {
		port := uint16(uint32(p.min) + (h.Sum32()%size+i)%size)
		if !p.taken[use.slot(port)] {
			p.byUse[use], p.taken[use.slot(port)] = port, true
			return port, nil
		}
	}
	return 0, fmt.Errorf("all %d ports of portRange %d-%d are in use; widen it", size, p.min, p.max)
}

// avoid makes a Service port ask for another port, because another process uses this one.
func (p *Ports) avoid(use portUse) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.byUse, use) // the slot stays taken
}

// release frees a port.
func (p *Ports) release(use portUse, port uint16) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.byUse[use] == port {
		delete(p.byUse, use)
		delete(p.taken, use.slot(port))
	}
}

// follow records the port that another process uses for the same purpose.
func (p *Ports) follow(use portUse, port uint16) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, known := p.byUse[use]; !known && !p.taken[use.slot(port)] && port >= p.min && port <= p.max {
		p.byUse[use], p.taken[use.slot(port)] = port, true
	}
}

// DefaultPorts chooses from these ports. A node's own servers listen on lower ones.
const firstPort, lastPort = 10240, 65535

// DefaultPorts returns the widest range of ports that contains neither node ports nor the ports that the kernel gives
// to clients (net.ipv4.ip_local_port_range). If 20000 to 29999 is free, the range is at most that.
func DefaultPorts(nodePortMin, nodePortMax uint16) *Ports {
	clientMin, clientMax := clientPorts()
	return NewPorts(widestGap([][2]int{{int(nodePortMin), int(nodePortMax)}, {clientMin, clientMax}}))
}

func clientPorts() (min, max int) {
	min, max = 32768, 60999 // the kernel's default
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if fields := strings.Fields(string(text)); err == nil && len(fields) == 2 {
		a, errA := strconv.Atoi(fields[0])
		b, errB := strconv.Atoi(fields[1])
		if errA == nil && errB == nil {
			min, max = a, b
		}
	}
	return min, max
}

// widestGap returns the longest run of ports outside the ranges, or all ports if there is none. A port that is in use
// is avoided later, when listening on it fails.
func widestGap(ranges [][2]int) (min, max uint16) {
	free := func(port int) bool {
		for _, r := range ranges {
			if r[0] <= port && port <= r[1] {
				return false
			}
		}
		return true
	}
	bestStart, best, start := firstPort, 0, -1
	for port := firstPort; port <= lastPort+1; port++ {
		switch {
		case port <= lastPort && free(port):
			if start < 0 {
				start = port
			}
		case start >= 0:
			if port-start > best {
				bestStart, best = start, port-start
			}
			start = -1
		}
	}
	if best == 0 {
		return firstPort, lastPort
	}
	last := bestStart + best - 1
	if bestStart < 20000 && last >= 29999 {
		return 20000, 29999
	}
	return uint16(bestStart), uint16(last)
}
