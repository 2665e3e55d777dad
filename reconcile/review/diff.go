package review

import (
	"slices"

	"weir/backends"
)

// Op is what happens to a Service, to one of its ports, or to a fact.
type Op string

// The operations.
const (
	Add    Op = "add"
	Remove Op = "remove"
	Modify Op = "change"
)

// sign is how an Op is printed.
func (o Op) sign() string {
	switch o {
	case Add:
		return "+"
	case Remove:
		return "-"
	}
	return "~"
}

// Change is one fact that changes. Old is "" for what is added, New for what is removed.
type Change struct {
	Op    Op     `json:"op"`
	Field Field  `json:"field"`
	Key   string `json:"key,omitempty"`
	Old   string `json:"old,omitempty"`
	New   string `json:"new,omitempty"`
}

// Port is what changes of one Service port in one address family.
type Port struct {
	Op       Op       `json:"op"`
	Name     string   `json:"name,omitempty"`
	Protocol string   `json:"protocol"`
	Family   string   `json:"family"`
	Changes  []Change `json:"changes"`
}

// Service is what changes of one Service.
type Service struct {
	Op        Op     `json:"op"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	// Source is the file and line of the Service; of a removed one, where it was.
	Source string `json:"source,omitempty"`
	Ports  []Port `json:"ports"`
	// Kernel counts the kernel objects that change on the Service's account, those that it shares with others included; nil
	// if the plan is not against a kernel.
	Kernel *Count `json:"kernel,omitempty"`
	// Drift says that the kernel does not hold what weir is known to have applied.
	Drift bool `json:"drift,omitempty"`
}

// ServiceName returns the Service's name.
func (s *Service) ServiceName() backends.ServiceName {
	return backends.ServiceName{Namespace: s.Namespace, Name: s.Name}
}

// diffFacts compares the facts of one Service port.
func diffFacts(old, new []Fact) []Change {
	old, new = sorted(slices.Clone(old)), sorted(slices.Clone(new))
	changes := []Change{}
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
			changes = append(changes, gone(old[0]))
			old = old[1:]
		case order > 0:
			changes = append(changes, come(new[0]))
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

func come(f Fact) Change { return Change{Op: Add, Field: f.Field, Key: f.Key, New: f.Value} }
func gone(f Fact) Change { return Change{Op: Remove, Field: f.Field, Key: f.Key, Old: f.Value} }

func modified(old, new Fact) (Change, bool) {
	c := Change{Op: Modify, Field: old.Field, Key: old.Key, Old: old.Value, New: new.Value}
	if old.Value != new.Value {
		return c, true
	}
	c.Old, c.New = old.aside, new.aside
	return c, old.aside != new.aside
}

// diffPort compares what is known of one Service port on both sides; nil is a side on which there is none.
func diffPort(key backends.PortKey, old, new []Fact) (Port, bool) {
	p := Port{Op: Modify, Name: key.Port, Protocol: key.Protocol.String(), Family: key.Family.String(), Changes: diffFacts(old, new)}
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

// settle turns a value that comes or goes on a port that stays into a change from or to the value it has otherwise.
func (p *Port) settle() {
	for i := range p.Changes {
		c := &p.Changes[i]
		without := fields[c.Field].without
		if c.Op == Modify || without == "" {
			continue
		}
		if c.Op == Add {
			c.Old = without
		} else {
			c.New = without
		}
		c.Op = Modify
	}
}

// index holds the Entries of one side.
type index map[backends.ServiceName][]*backends.Entry

func indexOf(entries []*backends.Entry) index {
	m := make(index)
	for _, e := range entries {
		m[e.Key.Service] = append(m[e.Key.Service], e)
	}
	return m
}

// names returns the Services of both sides, in order.
func (m index) names(o index) []backends.ServiceName {
	names := make([]backends.ServiceName, 0, max(len(m), len(o)))
	for n := range m {
		names = append(names, n)
	}
	for n := range o {
		if _, both := m[n]; !both {
			names = append(names, n)
		}
	}
	slices.SortFunc(names, backends.ServiceName.Compare)
	return names
}

// diffService compares the Entries of one Service.
func diffService(name backends.ServiceName, old, new []*backends.Entry) (Service, bool) {
	s := Service{Op: opOf(len(old) > 0, len(new) > 0), Namespace: name.Namespace, Name: name.Name, Source: sourceOf(new, old), Ports: []Port{}}
	for _, key := range keysOf(old, new) {
		o, n := find(old, key), find(new, key)
		if p, differs := diffPort(key, factsOrNil(o), factsOrNil(n)); differs {
			s.Ports = append(s.Ports, p)
		}
	}
	return s, len(s.Ports) > 0
}

func opOf(before, after bool) Op {
	switch {
	case before && !after:
		return Remove
	case after && !before:
		return Add
	}
	return Modify
}

func factsOrNil(e *backends.Entry) []Fact {
	if e == nil {
		return nil
	}
	return factsOf(e)
}

func find(entries []*backends.Entry, key backends.PortKey) *backends.Entry {
	for _, e := range entries {
		if e.Key == key {
			return e
		}
	}
	return nil
}

// keysOf returns the keys of both sides, in order.
func keysOf(old, new []*backends.Entry) []backends.PortKey {
	var keys []backends.PortKey
	for _, e := range slices.Concat(old, new) {
		keys = append(keys, e.Key)
	}
	slices.SortFunc(keys, backends.PortKey.Compare)
	return slices.Compact(keys)
}

// sourceOf returns where the Service was written, by the first of the lists that knows.
func sourceOf(lists ...[]*backends.Entry) string {
	for _, entries := range lists {
		for _, e := range entries {
			if e.Origin != "" {
				return e.Origin
			}
		}
	}
	return ""
}
