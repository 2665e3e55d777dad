package reconcile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"

	"weir/backends"
)

// maxReplans bounds how often one round goes back to plan without those that the kernel refused.
const maxReplans = 64

// dataPath is one backend with what it should hold and what it holds. An Engine has one, or several while it changes from
// one proxy mode to another.
type dataPath struct {
	mode    string
	backend backends.Backend
	tracker *Tracker
	log     hclog.Logger

	// rendered holds the Entries that the tracker's desired side is made from.
	rendered map[backends.ServiceName][]*backends.Entry
	// good holds what the kernel accepted last of the Services of which that is not what is rendered, as far as is known;
	// fresh names those that were rendered since.
	good  map[backends.ServiceName][]*backends.Entry
	fresh map[backends.ServiceName]struct{}
	// stale names the Services to render again; all says that everything is, the scaffolding included.
	stale map[backends.ServiceName]struct{}
	all   bool

	// observed says that a full read has succeeded in this process: the delete gate. trusted says that the observed side is
	// what the kernel confirmed. unread says that a full read was asked for and failed.
	observed, trusted, unread bool
	// keep says that nothing is to be deleted, since what is desired is only what an earlier process knew.
	keep bool
	// generation is the kernel's at the last full read, if known.
	generation uint64
	known      bool

	isolated isolation
	// drift holds the IDs in which the kernel was found to differ from what it had confirmed; repaired their owners once
	// they were put right, until the Engine takes them.
	drift    map[backends.ID]struct{}
	repaired []backends.PortKey
}

// wanted is what a dataPath renders: the Entries that a Service should have now, none if it is gone, and the names of all
// Services in order.
type wanted interface {
	entries(backends.ServiceName) []*backends.Entry
	names() []backends.ServiceName
}

func newDataPath(mode string, b backends.Backend, log hclog.Logger) *dataPath {
	return &dataPath{
		mode:     mode,
		backend:  b,
		tracker:  NewTracker(),
		log:      log,
		rendered: map[backends.ServiceName][]*backends.Entry{},
		good:     map[backends.ServiceName][]*backends.Entry{},
		fresh:    map[backends.ServiceName]struct{}{},
		stale:    map[backends.ServiceName]struct{}{},
		all:      true,
		isolated: isolation{},
		drift:    map[backends.ID]struct{}{},
	}
}

// replace hands over to a backend of the same mode with other settings. What is known of the kernel stays.
func (d *dataPath) replace(b backends.Backend) {
	if b != d.backend {
		d.dismiss()
	}
	d.backend = b
	d.all = true
	d.known = false
	clear(d.isolated)
}

// dismiss has the backend give back what it holds.
func (d *dataPath) dismiss() {
	if c, ok := d.backend.(io.Closer); ok {
		if err := c.Close(); err != nil {
			d.log.Debug("close the backend", "error", err)
		}
	}
}

// retire asks for nothing any more, not even the scaffolding.
func (d *dataPath) retire() {
	d.tracker.Clear()
	clear(d.rendered)
	clear(d.good)
	clear(d.fresh)
	clear(d.stale)
	clear(d.isolated)
	d.all, d.keep = false, false
}

// changed says that a Service's Entries are others now.
func (d *dataPath) changed(name backends.ServiceName) { d.stale[name] = struct{}{} }

// pardon lets a Service have another try at once, since its input changed.
func (d *dataPath) pardon(name backends.ServiceName) {
	c := culprit{service: name}
	if d.isolated[c] != nil {
		delete(d.isolated, c)
		d.stale[name] = struct{}{}
	}
}

// moved says that somebody else may have written since the last full read, and untouched that certainly nobody has. Both
// are false if the backend cannot tell.
func (d *dataPath) moved(ctx context.Context) bool {
	if !d.trusted || d.unread { // what has to be read anyway is read when the failed round is tried again
		return false
	}
	now, ok := d.now(ctx)
	return ok && (!d.known || now != d.generation)
}

func (d *dataPath) untouched(ctx context.Context) bool {
	now, ok := d.now(ctx)
	return ok && d.known && now == d.generation
}

func (d *dataPath) now(ctx context.Context) (generation uint64, ok bool) {
	g, ok := d.backend.(backends.Generation)
	if !ok {
		return 0, false
	}
	generation, err := g.Generation(ctx)
	return generation, err == nil
}

// observe reads the kernel if that is asked for and cannot be avoided. The error is nil if the observed side can be
// trusted to be what the kernel confirmed last, though rep.Err may say that a fresh read failed.
func (d *dataPath) observe(ctx context.Context, full bool, rep *Report) error {
	if d.trusted && !d.unread {
		if !full {
			return nil
		}
		if d.untouched(ctx) {
			rep.Full = true
			return nil
		}
	}
	start := time.Now()
	err := d.read(ctx, rep)
	rep.Stages.Observe += time.Since(start)
	if err == nil {
		rep.Full, rep.Observed = true, true
		return nil
	}
	err = fmt.Errorf("read what the kernel holds for %s: %w", d.mode, err)
	d.unread = true
	if !d.trusted {
		return err
	}
	rep.Err = errors.Join(rep.Err, err)
	return nil
}

func (d *dataPath) read(ctx context.Context, rep *Report) error {
	// The generation is taken before the read, so that a write during the read moves it on.
	generation, known := d.now(ctx)
	differ, done, err := d.readTouched(ctx, known)
	rep.Touched = done
	if err == nil && !done {
		differ, err = d.readAll(ctx)
	}
	if err != nil {
		return err
	}
	if d.observed && d.trusted {
		rep.Drifted += len(differ)
		for _, id := range differ {
			d.drift[id] = struct{}{}
		}
	}
	d.generation, d.known = generation, known
	d.observed, d.trusted, d.unread = true, true, false
	return nil
}

// readTouched reads only what somebody else wrote; it is not done if the backend does not know that, or if what is known
// of the rest cannot be trusted.
func (d *dataPath) readTouched(ctx context.Context, known bool) (differ []backends.ID, done bool, err error) {
	r, ok := d.backend.(backends.Rereader)
	if !ok || !known || !d.known || !d.trusted || d.unread {
		return nil, false, nil
	}
	items, ok, err := r.Reread(ctx, d.tracker)
	if !ok || err != nil {
		return nil, false, err
	}
	return d.tracker.Reobserve(items), true, nil
}

func (d *dataPath) readAll(ctx context.Context) ([]backends.ID, error) {
	items := make([]backends.Item, 0, d.tracker.Len())
	for item, err := range d.backend.Observe(ctx) {
		if err != nil {
			return nil, err
		}
		items = append(items, item)
	}
	if err := ctx.Err(); err != nil {
		return nil, err // a pass that was cut short may have ended without an error of its own
	}
	return d.tracker.ReplaceObserved(items), nil
}

// render brings the desired side up to date. A port that cannot be rendered keeps what it had, and its Service is blamed.
func (d *dataPath) render(want wanted, now time.Time) error {
	for c, p := range d.isolated {
		if c.item == "" && !p.retry.After(now) {
			d.stale[c.service] = struct{}{}
		}
	}
	if d.all {
		if err := d.renderAll(want, now); err != nil {
			return err
		}
		d.all = false
		d.stale = map[backends.ServiceName]struct{}{}
		return nil
	}
	for name := range d.stale {
		if d.isolated.waits(culprit{service: name}, now) {
			continue // it is put among the stale again when its time has come
		}
		entries, items, err := d.renderService(want.entries(name), d.rendered[name])
		if err != nil {
			d.blame(culprit{service: name}, err, now)
		}
		d.set(name, entries, items, now)
	}
	d.stale = map[backends.ServiceName]struct{}{}
	return nil
}

// renderAll renders everything before it takes over any of it, so that items which many Services share change once.
func (d *dataPath) renderAll(want wanted, now time.Time) error {
	names := want.names()
	rendered := make([][][]backends.Item, len(names))
	entries := make([][]*backends.Entry, len(names))
	for i, name := range names {
		var err error
		if entries[i], rendered[i], err = d.renderService(want.entries(name), d.rendered[name]); err != nil {
			d.blame(culprit{service: name}, err, now)
		}
	}
	d.tracker.Clear()
	for name := range d.rendered {
		d.rerender(name)
	}
	clear(d.rendered)
	if err := d.tracker.SetBase(d.backend.Base()); err != nil {
		return fmt.Errorf("the scaffolding of %s: %w", d.mode, err)
	}
	for i, name := range names {
		d.set(name, entries[i], rendered[i], now)
	}
	return nil
}

// renderService returns what a Service's Entries want. The error is about those that cannot be rendered: in their place is
// what had, the Service's Entries so far, says of the same port, if it has it.
func (d *dataPath) renderService(entries, had []*backends.Entry) (taken []*backends.Entry, rendered [][]backends.Item, err error) {
	taken, rendered = entries, make([][]backends.Item, 0, len(entries))
	for i, e := range entries {
		items, fault := d.renderEntry(e)
		switch {
		case fault == nil:
		case err == nil:
			taken, err = slices.Clone(entries[:i]), fault
		default:
			err = fmt.Errorf("%w; %w", err, fault)
		}
		if fault != nil {
			if e = find(had, e.Key); e == nil {
				continue
			}
			items = d.tracker.ItemsOf(e.Key)
		}
		if err != nil {
			taken = append(taken, e)
		}
		rendered = append(rendered, items)
	}
	return taken, rendered, err
}

func (d *dataPath) renderEntry(e *backends.Entry) ([]backends.Item, error) {
	items, err := d.backend.Render(e)
	if err == nil {
		_, err = unique(items)
	}
	if err != nil {
		return nil, fmt.Errorf("render %v: %w", e.Key, err)
	}
	return items, nil
}

// set makes the items what the Service's Entries want.
func (d *dataPath) set(name backends.ServiceName, entries []*backends.Entry, items [][]backends.Item, now time.Time) {
	for _, old := range d.rendered[name] {
		if find(entries, old.Key) == nil {
			d.tracker.Remove(old.Key)
		}
	}
	for i, e := range entries {
		if err := d.tracker.Set(e.Key, items[i]); err != nil {
			d.blame(culprit{service: name}, err, now)
		}
	}
	d.rerender(name)
	if len(entries) == 0 {
		delete(d.rendered, name)
	} else {
		d.rendered[name] = entries
	}
}

// rerender notes that what is rendered of a Service is about to change.
func (d *dataPath) rerender(name backends.ServiceName) {
	d.fresh[name] = struct{}{}
	if _, ok := d.good[name]; !ok {
		d.good[name] = d.rendered[name]
	}
}

// accepted records that the kernel holds what is desired, except for those who are held back.
func (d *dataPath) accepted(now time.Time) {
	for name := range d.fresh {
		if !d.isolated.holds(culprit{service: name}, now) {
			delete(d.good, name)
		}
	}
	if len(d.good) == 0 {
		d.good = map[backends.ServiceName][]*backends.Entry{}
	}
	d.fresh = map[backends.ServiceName]struct{}{}
	clear(d.drift)
	d.isolated.acquit(now)
}

// refuse holds back a culprit whose change the kernel did not take. A Service is first put back to what the kernel took
// before; if that is refused as well, it is left out altogether. It says whether that makes a new plan worth trying.
func (d *dataPath) refuse(c culprit, err error, now time.Time) bool {
	news := d.blame(c, err, now)
	if news && c.item == "" && d.revert(c.service, now) {
		return true
	}
	p := d.isolated[c]
	progress := news || !p.held
	p.held = true
	return progress
}

func (d *dataPath) revert(name backends.ServiceName, now time.Time) bool {
	good, ok := d.good[name]
	if !ok || slices.Equal(good, d.rendered[name]) {
		return false
	}
	_, items, err := d.renderService(good, nil)
	if err != nil {
		return false
	}
	d.set(name, good, items, now)
	return true
}

// plan returns what is to be done now. Nothing is deleted before a full read has succeeded, nor for what is only remembered:
// the kernel may know better, having been programmed after it was written down.
func (d *dataPath) plan(reason string, now time.Time) backends.Plan {
	changes := d.tracker.Pending(func(id backends.ID, owners []backends.PortKey) bool {
		return d.isolated.holdsAll(id, owners, now)
	})
	if !d.observed || d.keep {
		kept := changes[:0]
		for _, c := range changes {
			if c.Op != backends.Delete {
				kept = append(kept, c)
			}
		}
		changes = kept
	}
	return backends.Plan{Backend: d.mode, Reason: reason, Changes: changes}
}

// apply has the kernel brought to the desired side, without those who are held back.
func (d *dataPath) apply(ctx context.Context, now time.Time, rep *Report) error {
	for range maxReplans {
		start := time.Now()
		plan := d.plan(rep.Reason, now)
		rep.Stages.Plan += time.Since(start)
		if plan.Empty() {
			d.accepted(now)
			return nil
		}
		start = time.Now()
		result := d.backend.Apply(ctx, plan)
		rep.Stages.Apply += time.Since(start)
		if err := d.learn(plan, result, now, rep); err != nil {
			return err
		}
	}
	return fmt.Errorf("apply to %s: gave up for now after the kernel refused %d plans, each for another reason", d.mode, maxReplans)
}

// learn records what the kernel confirmed of a plan, and blames those it refused. The error says that the rest cannot be
// tried again before the next round.
func (d *dataPath) learn(plan backends.Plan, result backends.Result, now time.Time, rep *Report) error {
	var confirmed, refused []backends.Change
	switch {
	case len(result.Refused) > 0:
		for _, c := range plan.Changes {
			if _, no := result.Refused[c.ID]; no {
				refused = append(refused, c)
			} else if result.Err == nil {
				confirmed = append(confirmed, c)
			}
		}
	case result.Err == nil:
		confirmed = plan.Changes
	}
	d.tracker.Confirm(confirmed)
	for _, c := range confirmed {
		rep.count(c)
		if _, ok := d.drift[c.ID]; ok {
			delete(d.drift, c.ID)
			d.repaired = append(d.repaired, c.Owners...)
			rep.Repaired++
		}
	}
	progress := d.refuseAll(result, refused, now) || len(confirmed) > 0
	if result.Err == nil && (progress || len(refused) == 0) || result.Err != nil && len(refused) > 0 && progress {
		return nil
	}
	d.trusted = false
	return fmt.Errorf("apply to %s: %w", d.mode, cmp.Or(result.Err, errNoProgress))
}

// refuseAll blames whoever wants the refused changes, once however many they are. It says whether that makes a new plan
// worth trying.
func (d *dataPath) refuseAll(result backends.Result, refused []backends.Change, now time.Time) bool {
	// What is to go may only be refused because what still uses it was not let go of: it is innocent until it is alone.
	if slices.ContainsFunc(refused, func(c backends.Change) bool { return c.Op != backends.Delete }) {
		refused = slices.DeleteFunc(refused, func(c backends.Change) bool { return c.Op == backends.Delete })
	}
	progress := false
	blamed := map[culprit]bool{}
	for _, c := range refused {
		err := fmt.Errorf("the kernel refused %s of %s: %w", c.Op, c.ID, result.Refused[c.ID])
		for _, who := range culpritsOf(c.ID, c.Owners) {
			if !blamed[who] {
				blamed[who] = true
				progress = d.refuse(who, err, now) || progress
			}
		}
	}
	return progress
}

// errNoProgress is a backend that refuses what it was not asked.
var errNoProgress = errors.New("the same changes were refused again")

func (d *dataPath) blame(c culprit, err error, now time.Time) bool {
	news := d.isolated.blame(c, err, now)
	if news && c.item != "" {
		d.log.Warn("held back: nobody's item", "item", c.item, "error", err, "retry", d.isolated[c].delay.String())
	} else if news {
		d.log.Warn("held back; nothing else is affected", "service", c.service.String(), "error", err, "retry", d.isolated[c].delay.String())
	}
	return news
}

// round does all of it. The error says that the kernel may not hold what is desired.
func (d *dataPath) round(ctx context.Context, full bool, want wanted, rep *Report) error {
	if err := d.observe(ctx, full, rep); err != nil {
		return err
	}
	start := time.Now()
	if err := d.render(want, rep.Start); err != nil {
		return err
	}
	rep.Stages.Plan += time.Since(start)
	return d.apply(ctx, rep.Start, rep)
}

func find(entries []*backends.Entry, key backends.PortKey) *backends.Entry {
	for _, e := range entries {
		if e.Key == key {
			return e
		}
	}
	return nil
}

// dryRun returns what a round would do, after a fresh read.
func (d *dataPath) dryRun(ctx context.Context, want wanted, rep *Report) (backends.Plan, error) {
	d.unread = true
	err := d.observe(ctx, true, rep)
	if err = errors.Join(err, rep.Err); err != nil {
		return backends.Plan{}, err
	}
	if err := d.render(want, rep.Start); err != nil {
		return backends.Plan{}, err
	}
	return d.plan(rep.Reason, rep.Start), nil
}
