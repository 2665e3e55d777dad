package review

import (
	"encoding/json"
	"slices"

	"weir/backends"
)

// APIVersion and Kind identify the JSON and YAML form of a Plan. What is documented in plan.schema.json holds for every
// Plan of this version; fields may be added to it.
const (
	APIVersion = "weir/v1alpha1"
	Kind       = "Plan"
)

// Plan is everything that there is to say about a change, for one node or many.
type Plan struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	// From is what is compared with, To what was asked for.
	From    Input   `json:"from"`
	To      Input   `json:"to"`
	Summary Summary `json:"summary"`
	// Groups hold the nodes on which the same happens.
	Groups   []Group   `json:"groups"`
	Warnings []Warning `json:"warnings"`
}

// Input is one side of a Plan.
type Input struct {
	// Kind is files, api, git, snapshot, empty or kernel.
	Kind     string `json:"kind"`
	Name     string `json:"name,omitempty"`
	Revision string `json:"revision,omitempty"`
}

// Summary counts Services, each once however many nodes it changes on.
type Summary struct {
	Added     int `json:"added"`
	Changed   int `json:"changed"`
	Removed   int `json:"removed"`
	Unchanged int `json:"unchanged"`
	Nodes     int `json:"nodes"`
	// Isolated counts those that cannot be programmed. What the kernel holds for them may still change.
	Isolated int `json:"isolated,omitempty"`
	// Kernel counts the kernel objects; nil if the plan is not against a kernel.
	Kernel *Count `json:"kernel,omitempty"`
}

// Count is how many kernel objects are created, updated and deleted.
type Count struct {
	Create int `json:"create"`
	Update int `json:"update"`
	Delete int `json:"delete"`
}

func (c *Count) add(op backends.Op) {
	switch op {
	case backends.Create:
		c.Create++
	case backends.Update:
		c.Update++
	case backends.Delete:
		c.Delete++
	}
}

// Group is what happens on some nodes.
type Group struct {
	Nodes    []string  `json:"nodes"`
	Mode     *Mode     `json:"mode,omitempty"`
	Services []Service `json:"services"`
	// Kernel is what changes in the kernel for no Service that is known; nil if the plan is not against a kernel.
	Kernel *Kernel `json:"kernel,omitempty"`
}

// Mode is a change of the proxy mode.
type Mode struct {
	Old string `json:"old"`
	New string `json:"new"`
}

// State is what one side holds for one node.
type State struct {
	// Mode is "" if it is not known.
	Mode    string
	Entries []*backends.Entry
}

// Compare returns what happens on a node on the way from one State to another.
func Compare(node string, old, new State) Group {
	g := Group{Nodes: []string{node}, Services: []Service{}}
	if old.Mode != "" && new.Mode != "" && old.Mode != new.Mode {
		g.Mode = &Mode{Old: old.Mode, New: new.Mode}
	}
	before, after := indexOf(old.Entries), indexOf(new.Entries)
	for _, name := range before.names(after) {
		if s, differs := diffService(name, before[name], after[name]); differs {
			g.Services = append(g.Services, s)
		}
	}
	return g
}

// New puts a Plan together. Services counts those that were asked for.
func New(from, to Input, services int, groups []Group, warnings []Warning) *Plan {
	p := &Plan{APIVersion: APIVersion, Kind: Kind, From: from, To: to, Groups: merge(groups), Warnings: warnings}
	if p.Warnings == nil {
		p.Warnings = []Warning{}
	}
	ops := map[backends.ServiceName]Op{}
	for _, g := range p.Groups {
		p.Summary.Nodes += len(g.Nodes)
		for i := range g.Services {
			s := &g.Services[i]
			if old, seen := ops[s.ServiceName()]; seen && old != s.Op {
				ops[s.ServiceName()] = Modify
			} else {
				ops[s.ServiceName()] = s.Op
			}
		}
		if g.Kernel != nil {
			p.Summary.Kernel = &g.Kernel.Total
			p.Summary.Isolated = len(g.Kernel.Isolated)
			for _, i := range g.Kernel.Isolated {
				if _, changes := ops[i.service]; !changes && i.service != (backends.ServiceName{}) {
					services--
				}
			}
		}
	}
	gone := 0
	for _, op := range ops {
		switch op {
		case Add:
			p.Summary.Added++
		case Remove:
			p.Summary.Removed++
			gone++
		default:
			p.Summary.Changed++
		}
	}
	p.Summary.Unchanged = max(0, services-(len(ops)-gone))
	return p
}

// merge puts nodes on which the same happens into one group, in the order in which they were given.
func merge(groups []Group) []Group {
	at := map[string]int{}
	merged := []Group{}
	for _, g := range groups {
		alike := g
		alike.Nodes = nil
		text, err := json.Marshal(alike)
		if err != nil {
			merged = append(merged, g) // cannot happen: the types hold nothing that cannot be marshalled
			continue
		}
		i, seen := at[string(text)]
		if !seen {
			at[string(text)] = len(merged)
			merged = append(merged, g)
			continue
		}
		merged[i].Nodes = append(slices.Clip(merged[i].Nodes), g.Nodes...)
	}
	return merged
}

// Empty says whether nothing changes on any node.
func (p *Plan) Empty() bool {
	for _, g := range p.Groups {
		if len(g.Services) > 0 || g.Mode != nil || g.Kernel != nil && g.Kernel.Total != (Count{}) {
			return false
		}
	}
	return true
}

// Worst returns the highest severity among the warnings, or "".
func (p *Plan) Worst() string {
	worst := ""
	for _, w := range p.Warnings {
		if w.Severity == SeverityWarning {
			return SeverityWarning
		}
		worst = w.Severity
	}
	return worst
}
