package nfnltest

import (
	"bytes"
	"encoding/binary"

	"weir/backends/nfnl"

	"golang.org/x/sys/unix"
)

// transaction is a ruleset that messages change, and the notifications of the changes.
type transaction struct {
	ruleset
	refuse  func(nfnl.Table, string, nfnl.Element) error
	changed bool
	events  []event
}

func (t *transaction) note(m nfnl.Message) {
	t.changed = true
	t.events = append(t.events, event{m.Type, m.Data})
}

// apply makes one change.
func (t *transaction) apply(m nfnl.Message) error {
	if len(m.Data) < 4 {
		return unix.EINVAL
	}
	name, attributes := tableOf(m.Data), m.Data[4:]
	if m.Type == unix.NFT_MSG_NEWTABLE {
		return t.newTable(name, m)
	}
	if m.Type == unix.NFT_MSG_DELTABLE && (name.Family == unix.AF_UNSPEC || name.Name == "") {
		return t.flushRuleset(name.Family)
	}
	of := t.tables[name]
	if of == nil {
		return unix.ENOENT
	}
	switch m.Type {
	case unix.NFT_MSG_DELTABLE:
		t.deleteTable(name)
		return nil
	case unix.NFT_MSG_NEWSET:
		return t.newSet(name, nfnl.ParseSet(attributes), m)
	case unix.NFT_MSG_DELSET:
		return t.deleteSet(name, nfnl.ParseSet(attributes).Name)
	case unix.NFT_MSG_NEWCHAIN:
		c, _ := nfnl.ParseChain(attributes)
		return t.newChain(name, c, m)
	case unix.NFT_MSG_DELCHAIN:
		c, _ := nfnl.ParseChain(attributes)
		return t.deleteChain(name, c.Name)
	case unix.NFT_MSG_NEWRULE:
		return t.newRule(name, nfnl.ParseRule(attributes), m)
	case unix.NFT_MSG_DELRULE:
		return t.flushChain(name, nfnl.ParseRule(attributes).Chain)
	case unix.NFT_MSG_NEWSETELEM, unix.NFT_MSG_DELSETELEM:
		return t.elements(name, m)
	}
	return unix.EOPNOTSUPP
}

func (t *transaction) newTable(name nfnl.Table, m nfnl.Message) error {
	fresh := &table{sets: map[string]*set{}, chains: map[string]*chain{}}
	nfnl.Attributes(m.Data[4:], func(typ uint16, value []byte) {
		switch typ {
		case unix.NFTA_TABLE_FLAGS:
			fresh.flags = binary.BigEndian.Uint32(value)
		case 6: // NFTA_TABLE_USERDATA
			fresh.userdata = bytes.Clone(value)
		}
	})
	old := t.tables[name]
	switch {
	case old == nil:
		t.tables[name] = fresh
	case m.Flags&unix.NLM_F_EXCL != 0:
		return unix.EEXIST
	case old.flags == fresh.flags:
		return nil
	default:
		old.flags = fresh.flags
	}
	t.note(m)
	return nil
}

func (t *transaction) flushRuleset(family uint8) error {
	for name := range t.tables {
		if family == unix.AF_UNSPEC || family == name.Family {
			t.deleteTable(name)
		}
	}
	return nil
}

func (t *transaction) deleteTable(name nfnl.Table) {
	of := t.tables[name]
	for _, c := range sorted(of.chains) {
		t.dropRules(name, c)
	}
	for _, s := range sorted(of.sets) {
		t.note(nfnl.DeleteSet(name, s.Name))
	}
	for _, c := range sorted(of.chains) {
		t.note(nfnl.DeleteChain(name, c.Name))
	}
	t.note(nfnl.DeleteTable(name))
	delete(t.tables, name)
}

func (t *transaction) newSet(name nfnl.Table, s nfnl.Set, m nfnl.Message) error {
	of := t.tables[name]
	if s.DataType == unix.NFT_DATA_VERDICT {
		s.DataLen = 16 // a verdict and a pointer
	}
	old := of.sets[s.Name]
	switch {
	case old != nil && m.Flags&unix.NLM_F_EXCL != 0:
		return unix.EEXIST
	case old != nil && !sameSet(old.Set, s):
		return unix.EEXIST
	case old == nil && m.Flags&unix.NLM_F_CREATE == 0:
		return unix.ENOENT
	case old == nil:
		of.sets[s.Name] = &set{s, map[string]nfnl.Element{}}
	}
	t.note(m)
	return nil
}

func sameSet(a, b nfnl.Set) bool {
	return a.Flags == b.Flags && a.KeyType == b.KeyType && a.KeyLen == b.KeyLen && a.DataType == b.DataType && a.DataLen == b.DataLen
}

func (t *transaction) deleteSet(name nfnl.Table, s string) error {
	of := t.tables[name]
	if of.sets[s] == nil {
		return unix.ENOENT
	}
	if of.usesOfSet(s) > 0 {
		return unix.EBUSY
	}
	delete(of.sets, s)
	t.note(nfnl.DeleteSet(name, s))
	return nil
}

func (t *transaction) newChain(name nfnl.Table, c nfnl.Chain, m nfnl.Message) error {
	of := t.tables[name]
	old := of.chains[c.Name]
	switch {
	case old == nil:
		of.chains[c.Name] = &chain{Chain: c}
	case m.Flags&unix.NLM_F_EXCL != 0:
		return unix.EEXIST
	case c.Hook != nil && (old.Hook == nil || *old.Hook != *c.Hook):
		return unix.EOPNOTSUPP
	case c.Hook != nil:
		old.Policy = c.Policy
	}
	t.note(m)
	return nil
}

func (t *transaction) deleteChain(name nfnl.Table, c string) error {
	of := t.tables[name]
	old := of.chains[c]
	if old == nil {
		return unix.ENOENT
	}
	t.dropRules(name, old) // also if the chain is in use, because later messages of the rejected transaction see that
	if of.usesOfChain(c) > 0 {
		return unix.EBUSY
	}
	delete(of.chains, c)
	t.note(nfnl.DeleteChain(name, c))
	return nil
}

func (t *transaction) newRule(name nfnl.Table, r nfnl.Rule, m nfnl.Message) error {
	of := t.tables[name]
	c := of.chains[r.Chain]
	if c == nil {
		return unix.ENOENT
	}
	if m.Flags&unix.NLM_F_CREATE == 0 {
		return unix.EINVAL
	}
	refs := refersTo(r)
	for _, s := range refs.sets {
		if of.sets[s] == nil {
			return unix.ENOENT
		}
	}
	for _, to := range refs.chains {
		if err := of.leadsTo(to); err != nil {
			return err
		}
	}
	c.rules = append(c.rules, r)
	t.note(m)
	return nil
}

// leadsTo returns an error if a rule cannot jump to the chain.
func (t *table) leadsTo(name string) error {
	switch c := t.chains[name]; {
	case c == nil:
		return unix.ENOENT
	case c.Hook != nil:
		return unix.EOPNOTSUPP
	}
	return nil
}

func (t *transaction) flushChain(name nfnl.Table, c string) error {
	of := t.tables[name]
	if c == "" {
		for _, c := range sorted(of.chains) {
			t.dropRules(name, c)
		}
		return nil
	}
	if of.chains[c] == nil {
		return unix.ENOENT
	}
	t.dropRules(name, of.chains[c])
	return nil
}

func (t *transaction) dropRules(name nfnl.Table, c *chain) {
	for range c.rules {
		t.note(nfnl.FlushChain(name, c.Name))
	}
	c.rules = nil
}

// elements adds or deletes the elements of a message. Elements before a refused one stay.
func (t *transaction) elements(name nfnl.Table, m nfnl.Message) error {
	setName := nfnl.ParseNotification(m.Type, m.Data).Name
	s := t.tables[name].sets[setName]
	if s == nil {
		return unix.ENOENT
	}
	list := false
	nfnl.Attributes(m.Data[4:], func(typ uint16, _ []byte) { list = list || typ == unix.NFTA_SET_ELEM_LIST_ELEMENTS })
	if !list {
		if m.Type == unix.NFT_MSG_NEWSETELEM {
			return unix.EINVAL
		}
		for _, x := range sorted(s.elements) {
			t.deleteElement(name, s, x)
		}
		return nil
	}
	var err error
	nfnl.ParseElements(m.Data[4:], func(x nfnl.Element) {
		switch {
		case err != nil:
		case m.Type == unix.NFT_MSG_NEWSETELEM:
			err = t.addElement(name, s, clone(x), m.Flags&unix.NLM_F_EXCL != 0)
		default:
			err = t.removeElement(name, s, x)
		}
	})
	return err
}

func (t *transaction) addElement(name nfnl.Table, s *set, x nfnl.Element, exclusive bool) error {
	if t.refuse != nil {
		if err := t.refuse(name, s.Name, x); err != nil {
			return err
		}
	}
	if err := s.fits(x); err != nil {
		return err
	}
	if x.Verdict != nil && x.Verdict.Chain != "" {
		if err := t.tables[name].leadsTo(x.Verdict.Chain); err != nil {
			return err
		}
	}
	if old, ok := s.elements[keyOf(x)]; ok {
		if exclusive || !bytes.Equal(old.Value, x.Value) || !sameVerdict(old.Verdict, x.Verdict) {
			return unix.EEXIST
		}
		return nil
	}
	for _, old := range s.elements {
		// The kernel overlooks a range that lies within the new one.
		if x.End != nil && old.End != nil && (s.contains(old, x.Key) || s.contains(old, x.End)) {
			return unix.EEXIST
		}
	}
	s.elements[keyOf(x)] = x
	l := nfnl.AddTo(name, s.Name)
	l.Append(x)
	t.note(l.Messages()[0])
	return nil
}

// fits returns an error if an element does not fit the set.
func (s *set) fits(x nfnl.Element) error {
	isMap := s.Flags&unix.NFT_SET_MAP != 0
	ranges := s.Flags&unix.NFT_SET_INTERVAL != 0 && s.Flags&nfnl.SetConcat != 0
	switch {
	case x.Key != nil && len(x.Key) != int(s.KeyLen), x.End != nil && (!ranges || len(x.End) != int(s.KeyLen)):
		return unix.EINVAL
	case isMap != (x.Value != nil || x.Verdict != nil):
		return unix.EINVAL
	case isMap && (s.DataType == unix.NFT_DATA_VERDICT) != (x.Verdict != nil):
		return unix.EINVAL
	case x.Value != nil && len(x.Value) != int(s.DataLen):
		return unix.EINVAL
	}
	return nil
}

// contains reports whether a key lies in a range. It does if each of its fields does.
func (s *set) contains(x nfnl.Element, key []byte) bool {
	at := 0
	for _, n := range s.Fields {
		to := at + int(n)
		if bytes.Compare(x.Key[at:to], key[at:to]) > 0 || bytes.Compare(key[at:to], x.End[at:to]) > 0 {
			return false
		}
		at += int(n+3) &^ 3
	}
	return true
}

func (t *transaction) removeElement(name nfnl.Table, s *set, x nfnl.Element) error {
	old, ok := s.elements[keyOf(x)]
	if !ok {
		return unix.ENOENT
	}
	t.deleteElement(name, s, old)
	return nil
}

func (t *transaction) deleteElement(name nfnl.Table, s *set, x nfnl.Element) {
	delete(s.elements, keyOf(x))
	l := nfnl.DeleteFrom(name, s.Name)
	l.Append(x)
	t.note(l.Messages()[0])
}

func sameVerdict(a, b *nfnl.Verdict) bool {
	return a == nil && b == nil || a != nil && b != nil && *a == *b
}

func clone(x nfnl.Element) nfnl.Element {
	x.Key, x.End, x.Value = bytes.Clone(x.Key), bytes.Clone(x.End), bytes.Clone(x.Value)
	return x
}
