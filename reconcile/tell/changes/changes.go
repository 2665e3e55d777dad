// Package changes describes the effect of a plan in terms of Services: for each Service what is added, removed and
// changed, from which value to which, and what a reviewer should be warned of. Diff is its type; all output (text,
// Markdown, JSON, YAML) is made from it.
//
// The package is pure. It compares either two lists of ServicePorts, without a kernel, or the two sides that the Engine
// found in the kernel. cmd/weir and the packages beside it import it.
package changes

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/spec"
)

// APIVersion and Kind identify the JSON and YAML form of a Diff. plan.schema.json holds for every Diff of this version;
// fields may be added to it.
const (
	APIVersion = "weir/v1alpha1"
	Kind       = "Plan"
)

// Diff describes a change completely, for one node or many.
type Diff struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	// From is the input before, To the input after.
	From    Input   `json:"from"`
	To      Input   `json:"to"`
	Summary summary `json:"summary"`
	// Groups hold the nodes with the same changes.
	Groups []Group `json:"groups"`
	// Names are the DNS names that come and go; nil if none do, or weir does not answer for names.
	Names    *NameChanges `json:"names,omitempty"`
	Warnings []Warning    `json:"warnings"`
}

// NameChanges lists DNS names, sorted.
type NameChanges struct {
	Added   []string `json:"added,omitempty"`
	Removed []string `json:"removed,omitempty"`
}

// NamesBetween compares the names of two inputs, each with the Service that it is of. It returns nil if nothing changes, and
// for each Service whose names go, a notice.
func NamesBetween(before, after map[string]dataplane.ServiceName) (*NameChanges, []spec.Notice) {
	c := &NameChanges{}
	gone := map[dataplane.ServiceName][]string{}
	for _, name := range slices.Sorted(maps.Keys(before)) {
		if _, stays := after[name]; !stays {
			c.Removed = append(c.Removed, name)
			gone[before[name]] = append(gone[before[name]], name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(after)) {
		if _, was := before[name]; !was {
			c.Added = append(c.Added, name)
		}
	}
	if len(c.Added)+len(c.Removed) == 0 {
		return nil, nil
	}
	var notices []spec.Notice
	for _, svc := range slices.SortedFunc(maps.Keys(gone), func(a, b dataplane.ServiceName) int { return strings.Compare(a.String(), b.String()) }) {
		detail := gone[svc][0] + " goes"
		if more := len(gone[svc]) - 1; more > 0 {
			detail += fmt.Sprintf(", and %d more", more)
		}
		notices = append(notices, spec.NameRemoved.Notice(spec.Origin{}, spec.ServiceObject(svc), "", detail+": clients that look it up find nothing"))
	}
	return c, notices
}

// Input is one side of a Diff.
type Input struct {
	// Kind is files, api, git, snapshot, empty or kernel.
	Kind     string `json:"kind"`
	Name     string `json:"name,omitempty"`
	Revision string `json:"revision,omitempty"`
	// LeftOut counts the problems for which files of an invalid input were left out.
	LeftOut int `json:"leftOut,omitempty"`
}

// summary counts Services, each once, however many nodes it changes on.
type summary struct {
	Added     int `json:"added"`
	Changed   int `json:"changed"`
	Removed   int `json:"removed"`
	Unchanged int `json:"unchanged"`
	Nodes     int `json:"nodes"`
	// HeldBack counts the Services that are held back. Their kernel objects may still change.
	HeldBack int `json:"heldBack,omitempty"`
	// NotProxied counts the Services of the input that are in no group because no proxy serves them; nil for none.
	NotProxied *Unproxied `json:"notProxied,omitempty"`
	// Kernel counts the kernel objects; nil if the comparison is not with a kernel.
	Kernel *count `json:"kernel,omitempty"`
}

// Unproxied counts Services that no proxy serves.
type Unproxied struct {
	Services int    `json:"services"`
	Kinds    string `json:"kinds"` // "2 headless, 1 ExternalName"
}

// count counts the kernel objects that are created, updated and deleted.
type count struct {
	Create int `json:"create"`
	Update int `json:"update"`
	Delete int `json:"delete"`
}

func (c *count) add(op backends.Op) {
	switch op {
	case backends.Create:
		c.Create++
	case backends.Update:
		c.Update++
	case backends.Delete:
		c.Delete++
	}
}

// Group holds the changes on some nodes.
type Group struct {
	Nodes    []string      `json:"nodes"`
	Mode     *modeChange   `json:"mode,omitempty"`
	Services []serviceDiff `json:"services"`
	// Kernel counts the kernel changes of no known Service; nil if the comparison is not with a kernel.
	Kernel *kernelChanges `json:"kernel,omitempty"`
}

// modeChange is a change of the proxy mode.
type modeChange struct {
	Old string `json:"old"`
	New string `json:"new"`
}

// State is the content of one side for one node.
type State struct {
	// Mode is "" if unknown. Traits are the mode's.
	Mode         string
	Traits       backends.Traits
	ServicePorts []*dataplane.ServicePort
	// Promised are the Services whose pods are only promised, and by which templates.
	Promised map[dataplane.ServiceName]string
	// Hints are what is near to the selectors of Services that select nothing.
	Hints map[dataplane.ServiceName]string
}

// Between returns the changes on a node from one State to another.
func Between(node string, old, new State) Group {
	g := Group{Nodes: []string{node}, Services: []serviceDiff{}}
	if old.Mode != "" && new.Mode != "" && old.Mode != new.Mode {
		g.Mode = &modeChange{Old: old.Mode, New: new.Mode}
	}
	before, after := indexOf(old.ServicePorts), indexOf(new.ServicePorts)
	for _, name := range before.names(after) {
		if s, differs := diffService(name, before[name], after[name]); differs {
			g.Services = append(g.Services, s)
		}
	}
	g.Promise(new.Promised)
	return g
}

// Promise has the Group tell of promised endpoints where it tells that there is none.
func (g *Group) Promise(promised map[dataplane.ServiceName]string) {
	for i := range g.Services {
		s := &g.Services[i]
		by := promised[s.ServiceName()]
		for p := range s.Ports {
			for c := range s.Ports[p].Changes {
				if c := &s.Ports[p].Changes[c]; by != "" && c.Field == fieldNoEndpoint && c.Op != Remove {
					*c = fieldChange{Op: Add, Field: fieldPromised, New: "by " + by + ", at addresses not known here"}
				}
			}
		}
	}
}

// New makes a Diff. Services counts the Services of the input after that are proxied, and notProxied the others.
func New(from, to Input, services int, notProxied *Unproxied, groups []Group, warnings []Warning) *Diff {
	p := &Diff{APIVersion: APIVersion, Kind: Kind, From: from, To: to, Groups: merge(groups), Warnings: warnings}
	p.Summary.NotProxied = notProxied
	if p.Warnings == nil {
		p.Warnings = []Warning{}
	}
	ops := map[dataplane.ServiceName]Action{}
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
			p.Summary.HeldBack = len(g.Kernel.HeldBack)
			for _, i := range g.Kernel.HeldBack {
				if _, changes := ops[i.service]; !changes && i.service != (dataplane.ServiceName{}) {
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

// merge puts nodes with the same changes into one group, in the order in which they were given.
func merge(groups []Group) []Group {
	at := map[string]int{}
	merged := []Group{}
	for _, g := range groups {
		alike := g
		alike.Nodes = nil
		text, err := json.Marshal(alike)
		if err != nil {
			merged = append(merged, g) // cannot happen: every value of these types can be marshalled
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

// Empty reports whether nothing changes on any node.
func (p *Diff) Empty() bool {
	for _, g := range p.Groups {
		if len(g.Services) > 0 || g.Mode != nil || g.Kernel != nil && g.Kernel.Total != (count{}) {
			return false
		}
	}
	return p.Names == nil
}

// Selected returns how many of the warnings a list such as "warning,W005" names.
func (p *Diff) Selected(list string) int {
	n := 0
	for _, w := range p.Warnings {
		if w.Notice.Selected(list) {
			n++
		}
	}
	return n
}
