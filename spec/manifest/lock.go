package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	yamlv3 "go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/config"
	"weir/spec/document"
)

// lockDocument is the written form of an AllocationLock.
type lockDocument struct {
	metav1.TypeMeta `json:",inline"`
	Services        []json.RawMessage `json:"services"`
}

// lockedService holds what an AllocationLock pins for one Service.
type lockedService struct {
	Namespace           string           `json:"namespace" yaml:"namespace"`
	Name                string           `json:"name" yaml:"name"`
	ClusterIPs          []string         `json:"clusterIPs" yaml:"clusterIPs,omitempty,flow"`
	NodePorts           []lockedNodePort `json:"nodePorts" yaml:"nodePorts,omitempty"`
	HealthCheckNodePort int32            `json:"healthCheckNodePort" yaml:"healthCheckNodePort,omitempty"`
}

type lockedNodePort struct {
	Port     int32 `json:"port" yaml:"port"`
	NodePort int32 `json:"nodePort" yaml:"nodePort"`
}

// pin holds the allocated values that a Service keeps, regardless of the needs of other Services.
type pin struct {
	addrs  []netip.Addr // at most one per family
	ports  map[int32]uint16
	health uint16
}

// addr returns the pinned address of a family. A nil pin has none.
func (p *pin) addr(f corev1.IPFamily) (netip.Addr, bool) {
	if p != nil {
		for _, a := range p.addrs {
			if familyOf(a) == f {
				return a, true
			}
		}
	}
	return netip.Addr{}, false
}

// port returns the pinned node port for a port of a Service, unless the Service sets that node port for another port.
func (p *pin) port(s *service, port int32) (uint16, bool) {
	if p == nil {
		return 0, false
	}
	return p.free(s, p.ports[port])
}

func (p *pin) healthPort(s *service) (uint16, bool) {
	if p == nil {
		return 0, false
	}
	return p.free(s, p.health)
}

func (p *pin) free(s *service, v uint16) (uint16, bool) {
	return v, v != 0 && !slices.Contains(s.nodePorts, int32(v)) && int32(v) != s.healthPort
}

// lock takes an AllocationLock: each of its entries is an object that belongs to a Service.
func (d *decoding) lock(at *document.Document, within string) {
	if within != "" {
		d.problemAt(at.Start(), spec.LockKind, within, "must be a document of its own, not part of a List")
		return
	}
	var doc lockDocument
	for _, p := range at.Decode(&doc) {
		d.problemAt(p.Line, spec.LockKind, p.Field, p.Detail)
	}
	if doc.APIVersion != config.WeirAPIVersion {
		d.problemAt(at.Line("apiVersion"), spec.LockKind, "apiVersion", document.Quote(doc.APIVersion)+": must be "+config.WeirAPIVersion)
		return
	}
	d.out.lock = true
	for i, item := range at.Items("services") {
		if len(d.out.problems) >= maxProblemsPerDocument {
			return
		}
		if item.JSON()[0] != '{' {
			d.problemAt(item.Start(), spec.LockKind, fmt.Sprintf("services[%d]", i), "is not an object")
			continue
		}
		d.locked(item)
	}
}

func (d *decoding) locked(at *document.Document) {
	var in lockedService
	shape := at.Decode(&in)
	v := &validator{}
	if in.Namespace == "" {
		in.Namespace = metav1.NamespaceDefault
	}
	v.addAll(utilvalidation.IsDNS1123Label(in.Namespace), in.Namespace, "namespace")
	if in.Name == "" {
		v.add("is missing", "name")
	} else {
		v.addAll(utilvalidation.IsDNS1123Label(in.Name), in.Name, "name")
	}
	p := v.pin(&in)
	id := objectID{kindLocked, dataplane.ServiceName{Namespace: d.intern.string(in.Namespace), Name: d.intern.string(in.Name)}}
	if d.accept(id, at, shape, v) {
		d.out.objects = append(d.out.objects, &object{id: id, line: at.Start(), pin: p})
	}
}

func (v *validator) pin(in *lockedService) *pin {
	p := &pin{}
	for i, ip := range in.ClusterIPs {
		a, ok := v.plainAddress(ip, "clusterIPs[%d]", i)
		if !ok {
			continue
		}
		if _, twice := p.addr(familyOf(a)); twice {
			v.add(fmt.Sprintf("%s is the second of its family", a), "clusterIPs[%d]", i)
		}
		p.addrs = append(p.addrs, a)
	}
	seen := map[int32]bool{}
	once := func(port int32, path string, args ...any) {
		v.port(port, path, args...)
		if seen[port] {
			v.add(fmt.Sprintf("%d is given twice", port), path, args...)
		}
		seen[port] = true
	}
	for i, n := range in.NodePorts {
		v.port(n.Port, "nodePorts[%d].port", i)
		once(n.NodePort, "nodePorts[%d].nodePort", i)
		if p.ports == nil {
			p.ports = map[int32]uint16{}
		}
		if p.ports[n.Port] != 0 {
			v.add(fmt.Sprintf("%d is given twice", n.Port), "nodePorts[%d].port", i)
		}
		p.ports[n.Port] = uint16(n.NodePort)
	}
	if in.HealthCheckNodePort != 0 {
		once(in.HealthCheckNodePort, "healthCheckNodePort")
		p.health = uint16(in.HealthCheckNodePort)
	}
	return p
}

// checkLock reports a file named with --lock that holds none, because the values that it pinned would move.
func (u *update) checkLock() {
	f := u.files[u.opts.LockFile]
	if f == nil || u.unread[f.path] || slices.ContainsFunc(f.docs, func(d doc) bool { return d.lock || len(d.problems) > 0 }) || f.broken != nil {
		return
	}
	u.problems = append(u.problems, spec.Problem{Origin: spec.Origin{File: f.path, Line: 1},
		Detail: "is named with --lock and has no " + spec.LockKind + "; restore it, or delete it to have all values allocated anew"})
}

// pinned returns the need after its pinned values were moved from "to be allocated" to "set by hand".
func (p *pools) pinned(s *service, n needs, pin *pin) needs {
	if pin == nil {
		return n
	}
	left := slices.DeleteFunc(slices.Clone(n.wanted), func(w need) bool {
		if isAddress(w) {
			a, ok := pin.addr(familyNeeded(w))
			if ok {
				n.addrs = append(slices.Clip(n.addrs), a)
			}
			return ok
		}
		port, ok := pin.port(s, int32(w))
		if w == needHealth {
			port, ok = pin.healthPort(s)
		}
		if ok {
			n.ports = append(n.ports, port)
		}
		return ok
	})
	if len(left) < len(n.wanted) {
		n.wanted = left
		slices.Sort(n.ports)
	}
	return n
}

func familyNeeded(w need) corev1.IPFamily {
	if w == needIPv4 {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

// locked reports whether any lock exists, so that unpinned values deserve a notice.
func (u *update) locked() bool { return len(u.locks) > 0 }

// lockOrigins returns the places where the AllocationLocks are written.
func (u *update) lockOrigins() []spec.Origin {
	var all []spec.Origin
	for _, d := range u.locks {
		all = append(all, spec.Origin{File: d.path, Line: d.line})
	}
	slices.SortFunc(all, compareOrigins)
	return all
}

// checkPinned reports pinned values that are out of their range, because the range was changed after they were pinned.
func (u *update) checkPinned(s *service, p *placed, n needs) {
	for _, a := range n.addrs {
		if detail := u.pools.outside(a); detail != "" && !slices.Contains(s.clusterIPs, a) {
			u.problem(p, "", detail+"; remove it to have another one allocated")
		}
	}
	for _, port := range n.ports {
		out := port < u.pools.min || port > u.pools.max
		if out && !slices.Contains(s.nodePorts, int32(port)) && int32(port) != s.healthPort {
			u.problem(p, "", fmt.Sprintf("node port %d is not in the node port range, %d-%d; remove it to have another one allocated", port, u.pools.min, u.pools.max))
		}
	}
}

// allocations returns the allocated values of a Service. Most of the results are shared.
func (p *pools) allocations(s *service, n needs, pin *pin) []spec.Allocation {
	if !s.proxied() {
		return nil
	}
	var all []spec.Allocation
	for i := len(s.clusterIPs); i < len(n.families); i++ {
		_, pinned := pin.addr(n.families[i])
		all = append(all, spec.Allocation{What: spec.AllocatedClusterIP, Index: i, Pinned: pinned})
	}
	for i, port := range s.base.Spec.Ports {
		if !s.hasNodePorts() || s.nodePorts != nil && s.nodePorts[i] != 0 || s.setNodePort(port.Port) != 0 {
			continue
		}
		_, pinned := pin.port(s, port.Port)
		all = append(all, spec.Allocation{What: spec.AllocatedNodePort, Index: i, Pinned: pinned})
	}
	if s.hasHealthPort() && s.healthPort == 0 {
		_, pinned := pin.healthPort(s)
		all = append(all, spec.Allocation{What: spec.AllocatedHealthCheckNodePort, Pinned: pinned})
	}
	for _, shared := range commonAllocations {
		if slices.Equal(all, shared) {
			return shared
		}
	}
	return all
}

var commonAllocations = [][]spec.Allocation{{{}}, {{Pinned: true}}}

// lockNotices adds notices about values of a Service that are not pinned although others are, and about unused pins.
func (u *update) lockNotices(svc *spec.Service, e *entry) {
	if u.locked() {
		for _, a := range svc.Allocated {
			if !a.Pinned {
				svc.Notices = append(svc.Notices, spec.UnpinnedAllocation.Notice(svc.Origin, e.service.id.String(), a.Field(),
					a.Value(svc.Object)+" was allocated and is not pinned, so that a new Service could displace it: weir allocate --write pins it"))
			}
		}
	}
	if e.pin != nil {
		for _, what := range e.pin.pin.unused(svc) {
			svc.Notices = append(svc.Notices, spec.StaleLock.Notice(e.pin.origin(), e.service.id.String(), "",
				what+" is pinned and not needed: weir allocate --write drops it"))
		}
	}
}

// unused returns the pinned values that the Service does not have.
func (p *pin) unused(svc *spec.Service) (out []string) {
	used := map[string]bool{}
	for _, a := range svc.Allocated {
		if a.Pinned {
			used[a.Value(svc.Object)] = true
		}
	}
	for _, a := range p.addrs {
		if !used[a.String()] {
			out = append(out, a.String())
		}
	}
	ports := slices.Collect(maps.Values(p.ports))
	if p.health != 0 {
		ports = append(ports, p.health)
	}
	slices.Sort(ports)
	for _, port := range ports {
		if text := fmt.Sprint(port); !used[text] {
			out = append(out, "node port "+text)
		}
	}
	return out
}

const lockComment = `# Written by "weir allocate --write": the ClusterIPs and node ports that Services were given, and keep. Remove an entry to have
# its values allocated anew.
`

// WriteLock returns the AllocationLock that pins all allocated values of a Snapshot.
func WriteLock(snap *spec.Snapshot) ([]byte, error) {
	services := []lockedService{}
	for svc := range snap.Services.All() {
		if len(svc.Allocated) == 0 {
			continue
		}
		l := lockedService{Namespace: svc.Name.Namespace, Name: svc.Name.Name}
		sp := &svc.Object.Spec
		for _, a := range svc.Allocated {
			switch a.What {
			case spec.AllocatedClusterIP:
				l.ClusterIPs = append(l.ClusterIPs, sp.ClusterIPs[a.Index])
			case spec.AllocatedHealthCheckNodePort:
				l.HealthCheckNodePort = sp.HealthCheckNodePort
			case spec.AllocatedNodePort:
				n := lockedNodePort{sp.Ports[a.Index].Port, sp.Ports[a.Index].NodePort}
				if !slices.Contains(l.NodePorts, n) { // ports of one number have one node port for all protocols
					l.NodePorts = append(l.NodePorts, n)
				}
			}
		}
		services = append(services, l)
	}
	text := bytes.NewBufferString(lockComment)
	enc := yamlv3.NewEncoder(text)
	enc.SetIndent(2)
	err := enc.Encode(struct {
		APIVersion string          `yaml:"apiVersion"`
		Kind       string          `yaml:"kind"`
		Services   []lockedService `yaml:"services"`
	}{config.WeirAPIVersion, spec.LockKind, services})
	return text.Bytes(), errors.Join(err, enc.Close())
}

// OnlyLock reports whether a file holds an AllocationLock and nothing else, so that it can be overwritten.
func OnlyLock(data []byte) bool {
	texts, broken := document.Split("", data)
	return broken == nil && len(texts) == 1 && document.Parse(texts[0]).String("kind") == spec.LockKind
}
