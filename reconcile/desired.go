package reconcile

import (
	"fmt"
	"slices"
	"time"

	"weir/backends"
	"weir/backends/dataplane"
)

// wanted is the source of the desired state: the current ServicePorts of a Service, none if it is gone, and the names
// of all Services in order.
type wanted interface {
	servicePorts(dataplane.ServiceName) []*dataplane.ServicePort
	names() []dataplane.ServiceName
}

// desired keeps the desired side of a tracker. It renders what changed, and can put a Service back to the state that
// the kernel accepted last.
type desired struct {
	tracker    *tracker
	quarantine *quarantine

	// current holds the ServicePorts of the desired side.
	current map[dataplane.ServiceName][]*dataplane.ServicePort
	// lastAccepted holds the last accepted ServicePorts of Services for which they may differ from current.
	// renderedSinceApply names the Services rendered since the last apply.
	lastAccepted       map[dataplane.ServiceName][]*dataplane.ServicePort
	renderedSinceApply map[dataplane.ServiceName]struct{}
	// toRender names the Services to render again. all means everything, including the scaffolding.
	toRender map[dataplane.ServiceName]struct{}
	all      bool
}

func newDesired(t *tracker, q *quarantine) desired {
	return desired{
		tracker:            t,
		quarantine:         q,
		current:            map[dataplane.ServiceName][]*dataplane.ServicePort{},
		lastAccepted:       map[dataplane.ServiceName][]*dataplane.ServicePort{},
		renderedSinceApply: map[dataplane.ServiceName]struct{}{},
		toRender:           map[dataplane.ServiceName]struct{}{},
		all:                true,
	}
}

// nothing empties the desired side, including the scaffolding.
func (d *desired) nothing() {
	d.tracker.Clear()
	*d = newDesired(d.tracker, d.quarantine)
	d.all = false
}

// changed records that the ServicePorts of a Service changed.
func (d *desired) changed(name dataplane.ServiceName) { d.toRender[name] = struct{}{} }

// render brings the desired side up to date. A port that cannot be rendered keeps its items, and its Service is held
// back.
func (d *desired) render(b backends.Backend, from wanted, now time.Time) error {
	for _, name := range d.quarantine.retries(now) {
		d.toRender[name] = struct{}{}
	}
	if d.all {
		if err := d.renderAll(b, from, now); err != nil {
			return err
		}
		d.all = false
		d.toRender = map[dataplane.ServiceName]struct{}{}
		return nil
	}
	for name := range d.toRender {
		if d.quarantine.waits(suspect{service: name}, now) {
			continue // rendered when its retry is due
		}
		ports, items, err := d.renderService(b, from.servicePorts(name), d.current[name])
		if err != nil {
			d.quarantine.fail(suspect{service: name}, err, now)
		}
		d.set(name, ports, items, now)
	}
	d.toRender = map[dataplane.ServiceName]struct{}{}
	return nil
}

// renderAll renders everything before it changes the desired side, so that items shared by many Services change once.
func (d *desired) renderAll(b backends.Backend, from wanted, now time.Time) error {
	names := from.names()
	items := make([][][]backends.Item, len(names))
	ports := make([][]*dataplane.ServicePort, len(names))
	for i, name := range names {
		var err error
		if ports[i], items[i], err = d.renderService(b, from.servicePorts(name), d.current[name]); err != nil {
			d.quarantine.fail(suspect{service: name}, err, now)
		}
	}
	d.tracker.Clear()
	for name := range d.current {
		d.remember(name)
	}
	clear(d.current)
	if err := d.tracker.SetBase(b.Base()); err != nil {
		return fmt.Errorf("render the scaffolding: %w", err)
	}
	for i, name := range names {
		d.set(name, ports[i], items[i], now)
	}
	return nil
}

// renderService returns the items of a Service's ServicePorts. A port that fails to render keeps its previously
// rendered items, which are those of the same port in had. If had lacks the port, it is left out. The error covers all
// failed ports.
func (d *desired) renderService(b backends.Backend, ports, had []*dataplane.ServicePort) (taken []*dataplane.ServicePort, rendered [][]backends.Item, err error) {
	taken, rendered = ports, make([][]backends.Item, 0, len(ports))
	for i, p := range ports {
		items, fault := renderPort(b, p)
		switch {
		case fault == nil:
		case err == nil:
			taken, err = slices.Clone(ports[:i]), fault
		default:
			err = fmt.Errorf("%w; %w", err, fault)
		}
		if fault != nil {
			if p = find(had, p.Key); p == nil {
				continue
			}
			items = d.tracker.ItemsOf(p.Key)
		}
		if err != nil {
			taken = append(taken, p)
		}
		rendered = append(rendered, items)
	}
	return taken, rendered, err
}

func renderPort(b backends.Backend, p *dataplane.ServicePort) ([]backends.Item, error) {
	items, err := b.Render(p)
	if err == nil {
		_, err = unique(items)
	}
	if err != nil {
		return nil, fmt.Errorf("render %v: %w", p.Key, err)
	}
	return items, nil
}

// set makes the items the desired items of the Service's ServicePorts.
func (d *desired) set(name dataplane.ServiceName, ports []*dataplane.ServicePort, items [][]backends.Item, now time.Time) {
	for _, old := range d.current[name] {
		if find(ports, old.Key) == nil {
			d.tracker.Remove(old.Key)
		}
	}
	for i, p := range ports {
		if err := d.tracker.Set(p.Key, items[i]); err != nil {
			d.quarantine.fail(suspect{service: name}, err, now)
		}
	}
	d.remember(name)
	if len(ports) == 0 {
		delete(d.current, name)
	} else {
		d.current[name] = ports
	}
}

// remember keeps the accepted state of a Service before its current state changes.
func (d *desired) remember(name dataplane.ServiceName) {
	d.renderedSinceApply[name] = struct{}{}
	if _, ok := d.lastAccepted[name]; !ok {
		d.lastAccepted[name] = d.current[name]
	}
}

// accepted records that the kernel holds the desired state, except for what is held back.
func (d *desired) accepted(now time.Time) {
	for name := range d.renderedSinceApply {
		if !d.quarantine.holds(suspect{service: name}, now) {
			delete(d.lastAccepted, name)
		}
	}
	if len(d.lastAccepted) == 0 { // ranging over a map costs its peak size, so allocate a new one
		d.lastAccepted = map[dataplane.ServiceName][]*dataplane.ServicePort{}
	}
	d.renderedSinceApply = map[dataplane.ServiceName]struct{}{}
}

// revert puts a Service back to the state that the kernel accepted last. It returns false if that is the desired state
// already.
func (d *desired) revert(b backends.Backend, name dataplane.ServiceName, now time.Time) bool {
	ports, ok := d.lastAccepted[name]
	if !ok || slices.Equal(ports, d.current[name]) {
		return false
	}
	_, items, err := d.renderService(b, ports, nil)
	if err != nil {
		return false
	}
	d.set(name, ports, items, now)
	return true
}

func find(ports []*dataplane.ServicePort, key dataplane.ServicePortName) *dataplane.ServicePort {
	for _, p := range ports {
		if p.Key == key {
			return p
		}
	}
	return nil
}
