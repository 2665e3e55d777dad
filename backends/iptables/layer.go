package iptables

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"iter"
	"strings"

	"weir/backends"
)

// layerPrefix is what the chains of a Layer begin with.
const layerPrefix = "WEIR-U-"

// elsewhere are the chains that begin as this package's own do, and belong to other parts of weir.
var elsewhere = []string{"WEIR-IPVS-", layerPrefix}

// Layer is the same as a Backend, in chains of its own: they begin with WEIR-U- where a Backend's begin with WEIR-. Another
// proxy mode can use it below itself without sharing anything with iptables mode, so that one of the two can be set up
// before the other is taken down.
//
// It is a Backend that is shown, and that is taken at, other names than the kernel's.
type Layer struct {
	b *Backend
}

var (
	_ backends.Backend    = (*Layer)(nil)
	_ backends.Generation = (*Layer)(nil)
	_ backends.Describer  = (*Layer)(nil)
)

// NewLayer returns a Layer that programs the families of cfg through kernel.
func NewLayer(cfg backends.Config, kernel Kernel) *Layer {
	return &Layer{b: New(cfg, renamed{kernel})}
}

// Base implements backends.Backend.
func (l *Layer) Base() []backends.Item { return outwardAll(l.b.Base()) }

// Render implements backends.Backend.
func (l *Layer) Render(e *backends.Entry) ([]backends.Item, error) {
	items, err := l.b.Render(e)
	return outwardAll(items), err
}

// Observe implements backends.Backend.
func (l *Layer) Observe(ctx context.Context) iter.Seq2[backends.Item, error] {
	return func(yield func(backends.Item, error) bool) {
		for i, err := range l.b.Observe(ctx) {
			if err == nil {
				i = outward(i)
			}
			if !yield(i, err) {
				return
			}
		}
	}
}

// Apply implements backends.Backend.
func (l *Layer) Apply(ctx context.Context, p backends.Plan) backends.Result {
	result := l.b.Apply(ctx, inwardPlan(p))
	if result.Refused != nil {
		refused := make(map[backends.ID]error, len(result.Refused))
		for id, err := range result.Refused {
			refused[backends.ID(outwardText(string(id)))] = err
		}
		result.Refused = refused
	}
	return result
}

// Generation implements backends.Generation.
func (l *Layer) Generation(ctx context.Context) (uint64, error) { return l.b.Generation(ctx) }

// Describe implements backends.Describer.
func (l *Layer) Describe(items []backends.Item) []backends.Front {
	own := make([]backends.Item, 0, len(items))
	for _, i := range items {
		own = append(own, inward(i))
	}
	fronts := l.b.Describe(own)
	for i := range fronts {
		for _, ids := range [][]backends.ID{fronts[i].Own, fronts[i].Shared} {
			for j, id := range ids {
				ids[j] = backends.ID(outwardText(string(id)))
			}
		}
	}
	return fronts
}

// The name of a chain follows a space or a colon wherever there is one; Services' names, in comments, are in lower case.
var (
	outwardNames = strings.NewReplacer(" WEIR-", " "+layerPrefix, ":WEIR-", ":"+layerPrefix)
	// What others call WEIR- is theirs.
	inwardNames = strings.NewReplacer(" "+layerPrefix, " WEIR-", ":"+layerPrefix, ":WEIR-", " WEIR-", " weir-", ":WEIR-", ":weir-")
)

func outwardText(s string) string { return outwardNames.Replace(s) }
func inwardText(s string) string  { return inwardNames.Replace(s) }

func outward(i backends.Item) backends.Item { return item(outwardText(i.String())) }

func inward(i backends.Item) backends.Item {
	if i == nil {
		return nil
	}
	return item(inwardText(i.String()))
}

func inwardPlan(p backends.Plan) backends.Plan {
	changes := make([]backends.Change, len(p.Changes))
	for i, c := range p.Changes {
		c.ID, c.Old, c.New = backends.ID(inwardText(string(c.ID))), inward(c.Old), inward(c.New)
		changes[i] = c
	}
	p.Changes = changes
	return p
}

func outwardAll(items []backends.Item) []backends.Item {
	all := make([]backends.Item, len(items))
	for i, it := range items {
		all[i] = outward(it)
	}
	return all
}

// renamed is a Kernel in which the chains of a Layer have the names of a Backend's.
type renamed struct{ Kernel }

// Save implements Kernel.
func (k renamed) Save(ctx context.Context, f backends.Family, table string) (io.ReadCloser, error) {
	saved, err := k.Kernel.Save(ctx, f, table)
	if err != nil {
		return nil, err
	}
	return &renaming{lines: bufio.NewReader(saved), Closer: saved}, nil
}

// Restore implements Kernel.
func (k renamed) Restore(ctx context.Context, f backends.Family, input []byte) error {
	return k.Kernel.Restore(ctx, f, []byte(outwardText(string(input))))
}

// renaming reads lines with other names in them.
type renaming struct {
	lines *bufio.Reader
	rest  []byte
	err   error
	io.Closer
}

// inOther says whether a line is about what a chain of iptables mode holds, of which there may be very many.
func inOther(line []byte) bool {
	name, ok := bytes.CutPrefix(line, []byte("-A "))
	if !ok {
		name, ok = bytes.CutPrefix(line, []byte(":"))
	}
	return ok && bytes.HasPrefix(name, []byte("WEIR-")) && !bytes.HasPrefix(name, []byte(layerPrefix))
}

// Read implements io.Reader.
func (r *renaming) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		var line []byte
		line, r.err = r.lines.ReadSlice('\n')
		if r.err == bufio.ErrBufferFull {
			r.err = nil // a name that is cut in two is in no line of weir's, all of which are shorter
		}
		if inOther(line) {
			continue
		}
		if bytes.Contains(line, []byte("WEIR-")) {
			line = []byte(inwardText(string(line)))
		}
		r.rest = line
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
