package backends

import (
	"encoding/json"
	"fmt"
	"strings"

	"weir/backends/dataplane"
)

// Op is what a Change does to its Item.
type Op uint8

// The operations, in the order in which a backend without transactions applies them, so that nothing is deleted before
// its replacement exists.
const (
	Create Op = iota
	Update
	Delete
)

// String returns "create", "update" or "delete".
func (o Op) String() string { return [...]string{"create", "update", "delete"}[o] }

// MarshalText makes an Op readable in JSON.
func (o Op) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// Change is one difference between the Items that should exist and those that do.
type Change struct {
	Op Op
	ID ID
	// Old is nil for Create, New is nil for Delete.
	Old, New Item
	// Owners are the Service ports that want, or wanted, the Item. It is empty for the Items of Base and for objects
	// that another process put among weir's own.
	Owners []dataplane.ServicePortName
}

// String returns the change as a plan prints it: "+", "~" or "-" and the Item.
func (c Change) String() string {
	switch c.Op {
	case Create:
		return prefixLines("+ ", c.New.String())
	case Delete:
		return prefixLines("- ", c.Old.String())
	}
	return prefixLines("~ - ", c.Old.String()) + "\n" + prefixLines("~ + ", c.New.String())
}

func prefixLines(prefix, text string) string {
	return prefix + strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\n", "\n"+prefix)
}

// MarshalJSON writes Items as their canonical strings.
func (c Change) MarshalJSON() ([]byte, error) {
	text := func(i Item) string {
		if i == nil {
			return ""
		}
		return i.String()
	}
	owners := make([]string, len(c.Owners))
	for i, o := range c.Owners {
		owners[i] = o.String()
	}
	return json.Marshal(struct {
		Op     Op       `json:"op"`
		ID     ID       `json:"id"`
		Old    string   `json:"old,omitempty"`
		New    string   `json:"new,omitempty"`
		Owners []string `json:"owners,omitempty"`
	}{c.Op, c.ID, text(c.Old), text(c.New), owners})
}

// Plan is the list of Changes that takes the kernel from what it holds to what it should hold, sorted by ID. If a Plan
// is empty, there is nothing to do.
type Plan struct {
	Backend string   `json:"backend"` // the proxy mode: "iptables", "ipvs", "nftables" or "userspace"
	Reason  string   `json:"reason"`
	Changes []Change `json:"changes"`
}

// Empty reports whether the kernel already holds everything that was asked for.
func (p Plan) Empty() bool { return len(p.Changes) == 0 }

// Count returns how many Items the Plan creates, updates and deletes.
func (p Plan) Count() (created, updated, deleted int) {
	for _, c := range p.Changes {
		switch c.Op {
		case Create:
			created++
		case Update:
			updated++
		case Delete:
			deleted++
		}
	}
	return created, updated, deleted
}

// String prints every Change and a summary line.
func (p Plan) String() string {
	var b strings.Builder
	for _, c := range p.Changes {
		b.WriteString(c.String())
		b.WriteByte('\n')
	}
	created, updated, deleted := p.Count()
	fmt.Fprintf(&b, "%s: %d to create, %d to update, %d to delete\n", p.Backend, created, updated, deleted)
	return b.String()
}
