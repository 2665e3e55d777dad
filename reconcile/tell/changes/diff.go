package changes

import (
	"slices"

	"weir/backends/dataplane"
)

// Action is what happens to a Service, to one of its ports, or to a fact.
type Action string

// The actions.
const (
	Add    Action = "add"
	Remove Action = "remove"
	Modify Action = "change"
)

// sign returns the printed form of an Action.
func (a Action) sign() string {
	switch a {
	case Add:
		return "+"
	case Remove:
		return "-"
	}
	return "~"
}

// fieldChange is one changed fact. Old is "" for an added one, New for a removed one.
type fieldChange struct {
	Op    Action `json:"op"`
	Field field  `json:"field"`
	Key   string `json:"key,omitempty"`
	Old   string `json:"old,omitempty"`
	New   string `json:"new,omitempty"`
}

// portDiff is the difference of one Service port in one address family.
type portDiff struct {
	Op       Action        `json:"op"`
	Name     string        `json:"name,omitempty"`
	Protocol string        `json:"protocol"`
	Family   string        `json:"family"`
	Changes  []fieldChange `json:"changes"`
}

// serviceDiff is the difference of one Service.
type serviceDiff struct {
	Op        Action `json:"op"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	// Source is the file and line of the Service; of a removed one, its former place.
	Source string     `json:"source,omitempty"`
	Ports  []portDiff `json:"ports"`
	// Kernel counts the kernel objects that change because of the Service, including shared ones; nil if the comparison
	// is not with a kernel.
	Kernel *count `json:"kernel,omitempty"`
	// Drift reports whether the kernel differs from what weir is known to have applied.
	Drift bool `json:"drift,omitempty"`
}

// ServiceName returns the Service's name.
func (s *serviceDiff) ServiceName() dataplane.ServiceName {
	return dataplane.ServiceName{Namespace: s.Namespace, Name: s.Name}
}

// diffFacts compares the facts of one Service port.
func diffFacts(old, new []fact) []fieldChange {
	old, new = sorted(slices.Clone(old)), sorted(slices.Clone(new))
	changes := []fieldChange{}
	for len(old) > 0 || len(new) > 0 {
		order := 0
		switch {
		case len(old) == 0:
			order = 1
		case len(new) == 0:
			order = -1
		default:
			order = compare(old[0], new[0])
		}
		switch {
		case order < 0:
			changes = append(changes, removed(old[0]))
			old = old[1:]
		case order > 0:
			changes = append(changes, added(new[0]))
			new = new[1:]
		default:
			if c, differ := modified(old[0], new[0]); differ {
				changes = append(changes, c)
			}
			old, new = old[1:], new[1:]
		}
	}
	return changes
}

func added(f fact) fieldChange { return fieldChange{Op: Add, Field: f.Field, Key: f.Key, New: f.Value} }
func removed(f fact) fieldChange {
	return fieldChange{Op: Remove, Field: f.Field, Key: f.Key, Old: f.Value}
}

func modified(old, new fact) (fieldChange, bool) {
	c := fieldChange{Op: Modify, Field: old.Field, Key: old.Key, Old: old.Value, New: new.Value}
	if old.Value != new.Value {
		return c, true
	}
	c.Old, c.New = old.note, new.note
	return c, old.note != new.note
}

// diffPort compares the facts of one Service port on both sides; a nil side does not have the port.
func diffPort(key dataplane.ServicePortName, old, new []fact) (portDiff, bool) {
	p := portDiff{Op: Modify, Name: key.Port, Protocol: key.Protocol.String(), Family: key.Family.String(), Changes: diffFacts(old, new)}
	switch {
	case old == nil && new != nil:
		p.Op = Add
	case new == nil && old != nil:
		p.Op = Remove
	}
	if p.Op == Modify {
		p.settle()
	}
	return p, len(p.Changes) > 0
}

// settle turns an added or removed value, on a port that stays, into a change from or to the field's default.
func (p *portDiff) settle() {
	for i := range p.Changes {
		c := &p.Changes[i]
		absent := fields[c.Field].absent
		if c.Op == Modify || absent == "" {
			continue
		}
		if c.Op == Add {
			c.Old = absent
		} else {
			c.New = absent
		}
		c.Op = Modify
	}
}

// index holds the ServicePorts of one side.
type index map[dataplane.ServiceName][]*dataplane.ServicePort

func indexOf(servicePorts []*dataplane.ServicePort) index {
	m := make(index)
	for _, e := range servicePorts {
		m[e.Key.Service] = append(m[e.Key.Service], e)
	}
	return m
}

// names returns the Services of both sides, in order.
func (m index) names(o index) []dataplane.ServiceName {
	names := make([]dataplane.ServiceName, 0, max(len(m), len(o)))
	for n := range m {
		names = append(names, n)
	}
	for n := range o {
		if _, both := m[n]; !both {
			names = append(names, n)
		}
	}
	slices.SortFunc(names, dataplane.ServiceName.Compare)
	return names
}

// diffService compares the ServicePorts of one Service.
func diffService(name dataplane.ServiceName, old, new []*dataplane.ServicePort) (serviceDiff, bool) {
	s := serviceDiff{Op: opOf(len(old) > 0, len(new) > 0), Namespace: name.Namespace, Name: name.Name, Source: sourceOf(new, old), Ports: []portDiff{}}
	for _, key := range keysOf(old, new) {
		o, n := find(old, key), find(new, key)
		if p, differs := diffPort(key, factsOrNil(o), factsOrNil(n)); differs {
			s.Ports = append(s.Ports, p)
		}
	}
	return s, len(s.Ports) > 0
}

func opOf(before, after bool) Action {
	switch {
	case before && !after:
		return Remove
	case after && !before:
		return Add
	}
	return Modify
}

func factsOrNil(e *dataplane.ServicePort) []fact {
	if e == nil {
		return nil
	}
	return factsOf(e)
}

func find(servicePorts []*dataplane.ServicePort, key dataplane.ServicePortName) *dataplane.ServicePort {
	for _, e := range servicePorts {
		if e.Key == key {
			return e
		}
	}
	return nil
}

// keysOf returns the keys of both sides, in order.
func keysOf(old, new []*dataplane.ServicePort) []dataplane.ServicePortName {
	var keys []dataplane.ServicePortName
	for _, e := range slices.Concat(old, new) {
		keys = append(keys, e.Key)
	}
	slices.SortFunc(keys, dataplane.ServicePortName.Compare)
	return slices.Compact(keys)
}

// sourceOf returns the place where the Service was written, from the first list that knows it.
func sourceOf(lists ...[]*dataplane.ServicePort) string {
	for _, servicePorts := range lists {
		for _, e := range servicePorts {
			if e.Origin != "" {
				return e.Origin
			}
		}
	}
	return ""
}
