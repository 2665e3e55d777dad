package fake

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"

	"weir/backends"
	"weir/backends/dataplane"
)

// Errors that a Kernel returns when it was told to fail.
var (
	ErrInterrupted = errors.New("fake: the dump was interrupted")
	ErrBusy        = errors.New("fake: another program holds the lock")
	ErrUnknown     = errors.New("fake: the connection broke, it is unknown how much was applied")
)

// Item is an object of the Kernel. Needs names the objects that it refers to. As with chains and sets, an object cannot
// exist without those, and those cannot be deleted before it.
type Item struct {
	Name  backends.ID
	Text  string
	Needs []backends.ID
}

// ID returns the Item's name.
func (i Item) ID() backends.ID { return i.Name }

// String returns all fields of the Item.
func (i Item) String() string { return fmt.Sprintf("%s %s %v", i.Name, i.Text, i.Needs) }

// Faults makes a Kernel fail. The zero value makes it work.
type Faults struct {
	// Observe fails every read before its first item. InterruptAfter, if not 0, fails every read after that many items.
	Observe        error
	InterruptAfter int
	// Refuse returns an error for a change that the Kernel does not accept. With Partial set, the other changes of the
	// plan are made even so; otherwise the plan is rejected as a whole.
	Refuse  func(backends.Change) error
	Partial bool
	// Busy fails that many plans before any change.
	Busy int
	// Unknown fails that many plans after UnknownAfter of their changes were made.
	Unknown, UnknownAfter int
	// Generation fails every read of the generation.
	Generation error
	// Render returns an error for a ServicePort that cannot be rendered.
	Render func(*dataplane.ServicePort) error
}

// Calls counts the operations of a Kernel.
type Calls struct {
	Render, Observe, Reread, Apply, Generation int
	// Changes counts the changes that were made.
	Changes int
}

// Kernel is a model of a kernel mechanism: named objects that refer to each other, changed by transactions. It outlives
// the Backends that program it, as a real kernel does.
type Kernel struct {
	Faults Faults
	Calls  Calls
	// NoGeneration removes the ability to tell whether another process wrote.
	NoGeneration bool
	// Tells adds the ability to tell what another process wrote.
	Tells bool

	objects    map[backends.ID]Item
	foreign    map[string]string
	generation uint64
	written    map[backends.ID]struct{} // by another process, since the last read
	// OnCall, if set, is called before each operation of a Backend on the Kernel.
	OnCall func()
	// OnChange, if set, is called with the objects after each change of an Apply.
	OnChange func(map[backends.ID]Item)
}

// NewKernel returns a Kernel that holds nothing.
func NewKernel() *Kernel {
	return &Kernel{objects: map[backends.ID]Item{}, foreign: map[string]string{}, written: map[backends.ID]struct{}{}}
}

// Write puts an object among weir's own, or over one, as another process would.
func (k *Kernel) Write(i Item) {
	k.objects[i.Name] = i
	k.wrote(i.Name)
}

// Remove deletes one of weir's objects, as another process would.
func (k *Kernel) Remove(id backends.ID) {
	delete(k.objects, id)
	k.wrote(id)
}

// Flush deletes all of weir's objects, as another process would.
func (k *Kernel) Flush() {
	k.wrote(slices.Collect(maps.Keys(k.objects))...)
	clear(k.objects)
}

func (k *Kernel) wrote(ids ...backends.ID) {
	k.generation++
	for _, id := range ids {
		k.written[id] = struct{}{}
	}
}

// WriteForeign writes a foreign object, as another process would.
func (k *Kernel) WriteForeign(name, text string) {
	k.foreign[name] = text
	k.generation++
}

// Foreign returns the foreign objects.
func (k *Kernel) Foreign() map[string]string { return maps.Clone(k.foreign) }

// Objects returns weir's objects, sorted.
func (k *Kernel) Objects() []string {
	var all []string
	for _, i := range k.objects {
		all = append(all, i.String())
	}
	slices.Sort(all)
	return all
}

// Has reports whether the Kernel holds one of weir's objects.
func (k *Kernel) Has(id backends.ID) bool {
	_, ok := k.objects[id]
	return ok
}

func (k *Kernel) called() {
	if k.OnCall != nil {
		k.OnCall()
	}
}

func (k *Kernel) observe(ctx context.Context) iter.Seq2[backends.Item, error] {
	return func(yield func(backends.Item, error) bool) {
		k.called()
		k.Calls.Observe++
		if err := errors.Join(ctx.Err(), k.Faults.Observe); err != nil {
			yield(nil, err)
			return
		}
		for n, id := range slices.Sorted(maps.Keys(k.objects)) {
			if k.Faults.InterruptAfter > 0 && n == k.Faults.InterruptAfter {
				yield(nil, ErrInterrupted)
				return
			}
			if !yield(k.objects[id], nil) {
				return
			}
		}
		clear(k.written)
	}
}

func (k *Kernel) reread(ctx context.Context) (map[backends.ID]backends.Item, bool, error) {
	k.called()
	k.Calls.Reread++
	if err := errors.Join(ctx.Err(), k.Faults.Observe); err != nil {
		return nil, false, err
	}
	items := map[backends.ID]backends.Item{}
	for id := range k.written {
		items[id] = nil
		if i, ok := k.objects[id]; ok {
			items[id] = i
		}
	}
	clear(k.written)
	return items, true, nil
}

func (k *Kernel) apply(ctx context.Context, p backends.Plan) backends.Result {
	k.called()
	k.Calls.Apply++
	if err := ctx.Err(); err != nil {
		return backends.Result{Err: err}
	}
	if k.Faults.Busy > 0 {
		k.Faults.Busy--
		return backends.Result{Err: ErrBusy}
	}
	if k.Faults.Unknown > 0 {
		k.Faults.Unknown--
		k.objects = k.commit(p.Changes[:min(k.Faults.UnknownAfter, len(p.Changes))])
		return backends.Result{Err: ErrUnknown}
	}
	refused := map[backends.ID]error{}
	var rest []backends.Change
	for _, c := range p.Changes {
		if k.Faults.Refuse != nil {
			if err := k.Faults.Refuse(c); err != nil {
				refused[c.ID] = err
				continue
			}
		}
		rest = append(rest, c)
	}
	if len(refused) > 0 && !k.Faults.Partial {
		return backends.Result{Refused: refused, Err: errors.New("fake: transaction rejected")}
	}
	next := k.commit(rest)
	if dangling := k.dangling(next, rest); len(dangling) > 0 {
		maps.Copy(refused, dangling)
		return backends.Result{Refused: refused, Err: errors.New("fake: transaction rejected")}
	}
	k.objects = next
	k.Calls.Changes += len(rest)
	return backends.Result{Refused: refused}
}

// commit returns the objects after the changes.
func (k *Kernel) commit(changes []backends.Change) map[backends.ID]Item {
	next := maps.Clone(k.objects)
	for _, c := range changes {
		if c.Op == backends.Delete {
			delete(next, c.ID)
		} else {
			next[c.ID] = c.New.(Item)
		}
		if k.OnChange != nil {
			k.OnChange(next)
		}
	}
	return next
}

// dangling returns the changes that would leave an object without one of its Needs.
func (k *Kernel) dangling(objects map[backends.ID]Item, changes []backends.Change) map[backends.ID]error {
	changed := map[backends.ID]bool{}
	for _, c := range changes {
		changed[c.ID] = true
	}
	bad := map[backends.ID]error{}
	for _, i := range objects {
		for _, need := range i.Needs {
			if _, ok := objects[need]; ok {
				continue
			}
			err := fmt.Errorf("fake: %s needs %s", i.Name, need)
			if changed[i.Name] {
				bad[i.Name] = err
			} else if changed[need] {
				bad[need] = err
			}
		}
	}
	return bad
}
