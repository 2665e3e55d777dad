package nftables

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"weir/backends"

	nft "github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// maxChainName is how long the name of a chain may be in an element's compact form.
const maxChainName = 200

// observeAttempts is how often a read begins anew because somebody wrote meanwhile.
const observeAttempts = 5

// Observe reads weir's tables in both families, also those that are not configured.
func (b *Backend) Observe(ctx context.Context) iter.Seq2[backends.Item, error] {
	return func(yield func(backends.Item, error) bool) {
		b.mu.Lock()
		items, err := b.observe(ctx)
		if err == nil {
			b.watch.touched = touched{}
		}
		b.mu.Unlock()
		if err != nil {
			yield(nil, fmt.Errorf("nftables: read the tables %q: %w", b.name, err))
			return
		}
		for _, i := range items {
			if !yield(i, nil) {
				return
			}
		}
	}
}

// observe returns the Items of one moment.
func (b *Backend) observe(ctx context.Context) ([]backends.Item, error) {
	c, err := b.open()
	if err != nil {
		return nil, err
	}
	for range observeAttempts {
		var before, after uint32
		var items []backends.Item
		if before, err = c.generation(ctx); err != nil {
			return nil, err
		}
		for _, f := range []backends.Family{backends.IPv4, backends.IPv6} {
			var of []backends.Item
			if of, err = (&observer{b: b, c: c, table: table{f, b.name}}).items(ctx); err != nil {
				break
			}
			items = append(items, of...)
		}
		if err != nil && !errors.Is(err, errInterrupted) {
			return nil, err
		}
		if after, err = c.generation(ctx); err != nil {
			return nil, err
		}
		if before == after {
			return items, nil
		}
	}
	return nil, errInterrupted
}

// observer reads one family.
type observer struct {
	b *Backend
	c *conn
	table
}

func (o *observer) items(ctx context.Context) ([]backends.Item, error) {
	top, ok, err := o.top(ctx)
	if err != nil || !ok {
		return nil, err
	}
	setItems, fault, err := o.sets(ctx)
	if err != nil {
		return nil, err
	}
	if fault != "" {
		top.fault, top.rebuild = fault, true
		return []backends.Item{top}, nil
	}
	chains, err := o.chains(ctx)
	if err != nil {
		return nil, err
	}
	data, err := o.elements(ctx)
	if err != nil {
		return nil, err
	}
	return slices.Concat([]backends.Item{top}, setItems, chains, data), nil
}

func (o *observer) top(ctx context.Context) (tableItem, bool, error) {
	item, found := tableItem{table: o.table}, false
	err := o.c.get(ctx, unix.NFT_MSG_GETTABLE, tableRequest(o.table), func(data []byte) error {
		found = true
		attributes(data[4:], func(typ uint16, value []byte) {
			if typ == unix.NFTA_TABLE_FLAGS && len(value) == 4 {
				if flags := binary.BigEndian.Uint32(value); flags != 0 {
					item.fault = fmt.Sprintf("flags %#x", flags)
				}
			}
		})
		return nil
	})
	return item, found, err
}

// sets returns the definitions, and what is wrong with one of weir's own that cannot be mended in place.
func (o *observer) sets(ctx context.Context) (items []backends.Item, fault string, err error) {
	err = o.c.dump(ctx, unix.NFT_MSG_GETSET, tableRequest(o.table), func(data []byte) error {
		name, d := parseSet(data[4:])
		if d.flags&(unix.NFT_SET_ANONYMOUS) != 0 {
			return nil // part of a rule
		}
		item := setItem{fam: o.fam, name: name}
		id, known := setByName(name)
		if !known {
			item.foreign = "not weir's"
		} else if want := sets[id].definition(o.fam); !want.equal(d) {
			fault = fmt.Sprintf("the definition of set %s is not weir's", name)
		}
		items = append(items, item)
		return nil
	})
	return items, fault, err
}

func (d definition) equal(o definition) bool {
	const significant = unix.NFT_SET_CONSTANT | unix.NFT_SET_INTERVAL | unix.NFT_SET_MAP | unix.NFT_SET_TIMEOUT | unix.NFT_SET_EVAL | unix.NFT_SET_OBJECT
	return d.flags&significant == o.flags&significant && d.keyType == o.keyType && d.keyLen == o.keyLen &&
		d.dataType == o.dataType && (d.dataLen == o.dataLen || d.dataType == unix.NFT_DATA_VERDICT) && bytes.Equal(d.userdata, o.userdata)
}

func parseSet(data []byte) (string, definition) {
	var name string
	var d definition
	numbers := map[uint16]*uint32{
		unix.NFTA_SET_FLAGS: &d.flags, unix.NFTA_SET_KEY_TYPE: &d.keyType, unix.NFTA_SET_KEY_LEN: &d.keyLen,
		unix.NFTA_SET_DATA_TYPE: &d.dataType, unix.NFTA_SET_DATA_LEN: &d.dataLen,
	}
	attributes(data, func(typ uint16, value []byte) {
		switch {
		case typ == unix.NFTA_SET_NAME:
			name = cString(value)
		case typ == unix.NFTA_SET_USERDATA:
			d.userdata = bytes.Clone(value)
		case numbers[typ] != nil && len(value) == 4:
			*numbers[typ] = binary.BigEndian.Uint32(value)
		}
	})
	return name, d
}

// number reads a 32-bit attribute, 0 for one of another length.
func number(b []byte) uint32 {
	if len(b) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

func cString(b []byte) string { return strings.TrimRight(string(b), "\x00") }

// observedChain is a chain as the kernel has it.
type observedChain struct {
	name, kind     string
	hook, priority uint32
	hooked         bool
	policy         uint32
	flags          uint32
	rules          []observedRule
}

type observedRule struct {
	canonical string
	exprs     []byte
}

func (o *observer) chains(ctx context.Context) ([]backends.Item, error) {
	found := map[string]*observedChain{}
	err := o.c.dump(ctx, unix.NFT_MSG_GETCHAIN, []byte{nfproto(o.fam), unix.NFNETLINK_V0, 0, 0}, func(data []byte) error {
		if c, of := parseChain(data[4:]); of == o.name {
			found[c.name] = c
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = o.c.dump(ctx, unix.NFT_MSG_GETRULE, tableRequest(o.table), func(data []byte) error {
		if name, rule := parseRule(data[4:]); found[name] != nil {
			found[name].rules = append(found[name].rules, rule)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	items := make([]backends.Item, 0, len(found))
	for _, name := range slices.Sorted(maps.Keys(found)) {
		items = append(items, o.chainItem(found[name]))
	}
	return items, nil
}

func parseRule(data []byte) (chain string, r observedRule) {
	var user []byte
	attributes(data, func(typ uint16, value []byte) {
		switch typ {
		case unix.NFTA_RULE_CHAIN:
			chain = cString(value)
		case unix.NFTA_RULE_EXPRESSIONS:
			r.exprs = bytes.Clone(value)
		case unix.NFTA_RULE_USERDATA:
			user = value
		}
	})
	r.canonical = canonicalRule(r.exprs, user)
	return chain, r
}

func parseChain(data []byte) (c *observedChain, table string) {
	c = &observedChain{policy: 1}
	attributes(data, func(typ uint16, value []byte) {
		switch typ {
		case unix.NFTA_CHAIN_TABLE:
			table = cString(value)
		case unix.NFTA_CHAIN_NAME:
			c.name = cString(value)
		case unix.NFTA_CHAIN_TYPE:
			c.kind = cString(value)
		case unix.NFTA_CHAIN_POLICY:
			c.policy = number(value)
		case nftaChainFlags:
			c.flags = number(value)
		case unix.NFTA_CHAIN_HOOK:
			c.hooked = true
			attributes(value, func(typ uint16, value []byte) {
				switch typ {
				case unix.NFTA_HOOK_HOOKNUM:
					c.hook = number(value)
				case unix.NFTA_HOOK_PRIORITY:
					c.priority = number(value)
				}
			})
		}
	})
	return c, table
}

// chainItem returns the chain as an Item whose text is that of the chain that weir wants under this name exactly if the
// rules are the same.
func (o *observer) chainItem(c *observedChain) *chainItem {
	texts := map[string]string{}
	want := o.b.wantedChain(o.fam, c.name)
	if want != nil {
		for _, r := range want.rules {
			texts[r.canonical(o.fam)] = r.line()
		}
	}
	lines := make([]string, len(c.rules))
	for i, r := range c.rules {
		line, known := texts[r.canonical]
		if !known {
			line = foreignRule(r.exprs, r.canonical)
		}
		lines[i] = line
	}
	head := ""
	if c.hooked {
		head = hook{c.kind, c.hook, int32(c.priority)}.text(c.policy)
	}
	const chainBase = 1
	if c.flags&^chainBase != 0 {
		head += fmt.Sprintf("; flags %#x", c.flags&^chainBase)
	}
	item := &chainItem{fam: o.fam, name: c.name, text: chainText(o.fam, c.name, head, lines), hooked: c.hooked}
	if want != nil && item.text == newChainItem(o.fam, *want).text {
		item.want = want // it can stand for the one that is desired
	}
	return item
}

// elements reads every set that holds configuration.
func (o *observer) elements(ctx context.Context) ([]backends.Item, error) {
	var items []backends.Item
	fronts := map[frontKey][]element{}
	for id := range sets {
		if sets[id].dynamic {
			continue
		}
		members, err := o.dumpSet(ctx, setID(id), fronts)
		if err != nil {
			return nil, err
		}
		items = append(items, members...)
	}
	for k, elements := range fronts {
		items = append(items, newFrontItem(k, elements))
	}
	return items, nil
}

// dumpSet reads the elements of a set. It sorts them to their fronts, and returns those that are Items by themselves.
func (o *observer) dumpSet(ctx context.Context, id setID, fronts map[frontKey][]element) ([]backends.Item, error) {
	var items []backends.Item
	err := o.c.dump(ctx, unix.NFT_MSG_GETSETELEM, elementsRequest(o.table, id).b, func(data []byte) error {
		items = append(items, o.listed(id, data, fronts)...)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("set %s: %w", sets[id].name, err)
	}
	return items, nil
}

// listed does so with the elements of one message.
func (o *observer) listed(id setID, data []byte, fronts map[frontKey][]element) (items []backends.Item) {
	attributes(data[4:], func(typ uint16, list []byte) {
		if typ != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			return
		}
		attributes(list, func(_ uint16, item []byte) {
			if i := o.element(id, parseElement(item), fronts); i != nil {
				items = append(items, i)
			}
		})
	})
	return items
}

// element sorts an element to its front, or returns the Item that it is by itself.
func (o *observer) element(id setID, x rawElement, fronts map[frontKey][]element) backends.Item {
	s := sets[id]
	if x.key == nil {
		return catchallItem{o.fam, id}
	}
	if !s.front {
		if m, ok := parseMember(o.fam, id, x.key); ok {
			return m
		}
		return nil
	}
	k, rest, ok := parseFront(o.fam, s.scope, x.key)
	if !ok || !s.fits(o.fam, rest, x) {
		return nil // the definition of the set rules this out
	}
	e := element{set: id, comment: x.comment}
	switch s.suffix {
	case slotSuffix:
		e.suffix = slotKey(binary.NativeEndian.Uint32(rest))
	case rangeSuffix:
		e.suffix = string(rest) + string(x.end[len(x.end)-len(rest):])
	}
	switch s.value {
	case verdictValue:
		e.value = x.verdict
	case addrPortValue:
		e.value = string(x.value[:addrLen(o.fam)+2])
	case markValue:
		e.value = slotKey(binary.NativeEndian.Uint32(x.value))
	}
	fronts[k] = append(fronts[k], e)
	return nil
}

// fits says whether the rest of a key and the value have the lengths of the set's types.
func (s set) fits(f backends.Family, rest []byte, x rawElement) bool {
	n := addrLen(f)
	key := 0
	switch s.suffix {
	case slotSuffix:
		key = 4
	case rangeSuffix:
		key = n
	}
	if len(rest) != key || s.suffix == rangeSuffix && len(x.end) != len(x.key) {
		return false
	}
	switch s.value {
	case verdictValue:
		return x.verdict != ""
	case addrPortValue:
		return len(x.value) == n+4
	case markValue:
		return len(x.value) == 4
	}
	return true
}

// parseElement reads an element of a dump. Its bytes share the memory of data.
func parseElement(data []byte) rawElement {
	var x rawElement
	attributes(data, func(typ uint16, value []byte) {
		switch typ {
		case unix.NFTA_SET_ELEM_KEY:
			attributes(value, func(_ uint16, v []byte) { x.key = v })
		case nft.NFTA_SET_ELEM_KEY_END:
			attributes(value, func(_ uint16, v []byte) { x.end = v })
		case unix.NFTA_SET_ELEM_DATA:
			attributes(value, func(typ uint16, v []byte) {
				if typ == unix.NFTA_DATA_VALUE {
					x.value = v
				} else {
					x.verdict = parseVerdict(v)
				}
			})
		case unix.NFTA_SET_ELEM_USERDATA:
			x.comment = parseComment(value)
		}
	})
	return x
}

// parseComment returns the comment among user data, which anybody may have written: a list of type, length and value.
func parseComment(data []byte) string {
	for len(data) >= 2 && len(data) >= 2+int(data[1]) {
		if userdata.Type(data[0]) == userdata.NFTNL_UDATA_SET_ELEM_COMMENT {
			return cString(data[2 : 2+int(data[1])])
		}
		data = data[2+int(data[1]):]
	}
	return ""
}

func parseVerdict(data []byte) string {
	code, chain := byte(0), ""
	attributes(data, func(typ uint16, value []byte) {
		switch typ {
		case unix.NFTA_VERDICT_CODE:
			code = byte(number(value))
		case unix.NFTA_VERDICT_CHAIN:
			chain = cString(value)
		}
	})
	if len(chain) > maxChainName {
		chain = hash(chain) // of somebody else's; what it is to be replaced by is all that matters
	}
	return string([]byte{code}) + chain
}
