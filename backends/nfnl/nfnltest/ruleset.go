package nfnltest

import (
	"cmp"
	"maps"
	"slices"

	"weir/backends/nfnl"

	"golang.org/x/sys/unix"
)

// ruleset is everything that the kernel holds.
type ruleset struct {
	generation uint32
	tables     map[nfnl.Table]*table
}

type table struct {
	flags    uint32
	userdata []byte
	sets     map[string]*set
	chains   map[string]*chain
}

type set struct {
	nfnl.Set
	elements map[string]nfnl.Element // by keyOf
}

type chain struct {
	nfnl.Chain
	rules []nfnl.Rule
}

// keyOf returns the key that distinguishes the elements of a set.
func keyOf(x nfnl.Element) string { return string(x.Key) + "-" + string(x.End) }

func (r ruleset) clone() ruleset {
	next := ruleset{r.generation, make(map[nfnl.Table]*table, len(r.tables))}
	for name, t := range r.tables {
		c := &table{t.flags, t.userdata, make(map[string]*set, len(t.sets)), make(map[string]*chain, len(t.chains))}
		for n, s := range t.sets {
			c.sets[n] = &set{s.Set, maps.Clone(s.elements)}
		}
		for n, ch := range t.chains {
			c.chains[n] = &chain{ch.Chain, slices.Clone(ch.rules)}
		}
		next.tables[name] = c
	}
	return next
}

// usesOfChain returns how many rules and elements lead to a chain.
func (t *table) usesOfChain(name string) int {
	n := 0
	for _, c := range t.chains {
		for _, r := range c.rules {
			for _, v := range refersTo(r).chains {
				if v == name {
					n++
				}
			}
		}
	}
	for _, s := range t.sets {
		for _, x := range s.elements {
			if x.Verdict != nil && x.Verdict.Chain == name {
				n++
			}
		}
	}
	return n
}

// usesOfSet returns how many rules name a set.
func (t *table) usesOfSet(name string) int {
	n := 0
	for _, c := range t.chains {
		for _, r := range c.rules {
			if slices.Contains(refersTo(r).sets, name) {
				n++
			}
		}
	}
	return n
}

// references are the sets and chains that a rule names.
type references struct{ sets, chains []string }

func refersTo(r nfnl.Rule) references {
	var refs references
	r.EachExpression(func(name string, data []byte) {
		nfnl.Attributes(data, func(typ uint16, value []byte) {
			switch {
			case name == "lookup" && typ == unix.NFTA_LOOKUP_SET, name == "dynset" && typ == unix.NFTA_DYNSET_SET_NAME:
				refs.sets = append(refs.sets, text(value))
			case name == "immediate" && typ == unix.NFTA_IMMEDIATE_DATA:
				if v := verdictIn(value); v != nil && v.Chain != "" {
					refs.chains = append(refs.chains, v.Chain)
				}
			}
		})
	})
	return refs
}

// verdictIn returns the verdict in the data of an expression.
func verdictIn(data []byte) *nfnl.Verdict {
	// An element's data has the same form.
	e := nfnl.NewEncoder(0)
	e.Bytes(unix.NFTA_SET_ELEM_DATA, data)
	return nfnl.ParseElement(e.B[4:]).Verdict
}

func text(value []byte) string {
	for i, b := range value {
		if b == 0 {
			return string(value[:i])
		}
	}
	return string(value)
}

// answer returns the data of the kernel's answers to a request; none if the requested object is absent.
func (r ruleset) answer(q nfnl.Request) ([][]byte, error) {
	var answers [][]byte
	name := tableOf(q.Data)
	t := r.tables[name]
	switch {
	case q.Type == unix.NFT_MSG_GETGEN:
		answers = append(answers, generationAnswer(r.generation))
	case q.Type == unix.NFT_MSG_GETCHAIN && q.List:
		for _, n := range slices.SortedFunc(maps.Keys(r.tables), compareTables) {
			for _, c := range sorted(r.tables[n].chains) {
				if n.Family == name.Family {
					answers = append(answers, nfnl.NewChain(n, c.Chain).Data)
				}
			}
		}
	case t == nil:
	case q.Type == unix.NFT_MSG_GETTABLE && !q.List:
		answers = append(answers, tableAnswer(name, t))
	case q.Type == unix.NFT_MSG_GETSET && q.List:
		for _, s := range sorted(t.sets) {
			answers = append(answers, nfnl.NewSet(name, s.Set).Data)
		}
	case q.Type == unix.NFT_MSG_GETRULE && q.List:
		for _, c := range sorted(t.chains) {
			for _, rule := range c.rules {
				answers = append(answers, nfnl.AppendRule(name, rule).Data)
			}
		}
	case q.Type == unix.NFT_MSG_GETSETELEM:
		answers = t.elementAnswers(name, q)
	default:
		return nil, unix.EOPNOTSUPP
	}
	return answers, nil
}

func (t *table) elementAnswers(name nfnl.Table, q nfnl.Request) (answers [][]byte) {
	n := nfnl.ParseNotification(q.Type, q.Data)
	s := t.sets[n.Name]
	if s == nil {
		return nil
	}
	list := nfnl.AddTo(name, n.Name)
	if q.List {
		for _, x := range sorted(s.elements) {
			list.Append(x)
		}
	} else {
		nfnl.ParseElements(q.Data[4:], func(x nfnl.Element) {
			if found, ok := s.elements[keyOf(x)]; ok {
				list.Append(found)
			}
		})
	}
	for _, m := range list.Messages() {
		answers = append(answers, m.Data)
	}
	return answers
}

func generationAnswer(id uint32) []byte {
	e := nfnl.NewEncoder(0)
	e.Uint32(unix.NFTA_GEN_ID, id)
	return e.B
}

func tableAnswer(name nfnl.Table, t *table) []byte {
	e := nfnl.NewEncoder(name.Family)
	e.String(unix.NFTA_TABLE_NAME, name.Name)
	e.Uint32(unix.NFTA_TABLE_FLAGS, t.flags)
	return e.B
}

// tableOf returns the table of a message or request. Its name is attribute 1 in all of them.
func tableOf(data []byte) nfnl.Table {
	return nfnl.ParseNotification(unix.NFT_MSG_NEWTABLE, data).Table
}

func compareTables(a, b nfnl.Table) int {
	return cmp.Or(cmp.Compare(a.Family, b.Family), cmp.Compare(a.Name, b.Name))
}

// sorted returns the values of a map in the order of their keys.
func sorted[V any](m map[string]V) []V {
	values := make([]V, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		values = append(values, m[k])
	}
	return values
}
