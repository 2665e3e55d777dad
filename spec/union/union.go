// Package union is a spec.Source that joins files and a Kubernetes API. The configuration always comes from the files,
// and with it how to reach the API; Services and Nodes come from both. Of an object that both have, the API's counts, and
// the Service carries a notice that says so.
package union

import (
	"context"
	"slices"
	"sync"

	iradix "github.com/hashicorp/go-immutable-radix/v2"
	corev1 "k8s.io/api/core/v1"

	"weir/spec"
)

// Source joins two Sources.
type Source struct {
	files spec.Source
	api   func(*spec.Snapshot) (spec.Source, error)
}

var _ spec.Source = (*Source)(nil)

// New returns a Source over files and over what api returns for a Snapshot of the files. The same Source as before says
// that nothing changed for it; another one replaces it, and what the former had said stands until the new one has
// something to say.
func New(files spec.Source, api func(*spec.Snapshot) (spec.Source, error)) *Source {
	return &Source{files, api}
}

// Load implements spec.Source.
func (s *Source) Load(ctx context.Context) (*spec.Snapshot, error) {
	files, err := s.files.Load(ctx)
	if err != nil {
		return nil, err
	}
	source, err := s.api(files)
	if err != nil {
		return nil, err
	}
	api, err := source.Load(ctx)
	if err != nil {
		return nil, err
	}
	j := joined{files: files, api: api}
	snap, _ := j.join(spec.Delta{All: true}, spec.Delta{})
	return snap, nil
}

// Watch implements spec.Source. Nothing is sent before both have sent a Snapshot, but for errors.
func (s *Source) Watch(ctx context.Context, out chan<- spec.Update) error {
	ctx, cancel := context.WithCancel(ctx)
	l := &loop{Source: s, ctx: ctx, out: out}
	defer l.wg.Wait()
	defer cancel()
	return l.run()
}

// loop is one Watch. Everything in it belongs to the goroutine that called run.
type loop struct {
	*Source
	ctx context.Context
	out chan<- spec.Update
	wg  sync.WaitGroup
	box spec.Outbox

	joined
	source  spec.Source // the API in use
	updates <-chan spec.Update
	stop    context.CancelFunc
	// fileErr and apiErr say why what was found last cannot be used.
	fileErr, apiErr *spec.Update
}

func (l *loop) run() error {
	files := make(chan spec.Update)
	ended := make(chan error, 1)
	l.wg.Go(func() { ended <- l.Source.files.Watch(l.ctx, files) })
	for {
		out, news := l.box.Offer(l.out)
		select {
		case <-l.ctx.Done():
			return l.ctx.Err()
		case err := <-ended:
			return err
		case u := <-files:
			l.onFiles(u)
		case u := <-l.updates:
			l.onAPI(u)
		case out <- news:
			l.box.Sent()
		}
	}
}

func (l *loop) onFiles(u spec.Update) {
	if u.Err != nil {
		l.fileErr = &u
		l.box.Put(u)
		return
	}
	if err := l.follow(u.Snapshot); err != nil {
		u.Snapshot, u.Err = nil, err
		l.fileErr = &u
		l.box.Put(u)
		return
	}
	l.fileErr = nil
	l.joined.files = u.Snapshot
	l.send(u.Delta, spec.Delta{})
}

// follow connects to the API that the files name.
func (l *loop) follow(files *spec.Snapshot) error {
	source, err := l.Source.api(files)
	if err != nil || source == l.source {
		return err
	}
	if l.stop != nil {
		l.stop()
	}
	updates := make(chan spec.Update)
	ctx, stop := context.WithCancel(l.ctx)
	l.source, l.updates, l.stop = source, updates, stop
	l.wg.Go(func() { _ = source.Watch(ctx, updates) }) // it ends with ctx only
	return nil
}

func (l *loop) onAPI(u spec.Update) {
	if u.Err != nil {
		l.apiErr = &u
		l.box.Put(u)
		return
	}
	l.apiErr = nil
	l.joined.api = u.Snapshot
	l.send(spec.Delta{}, u.Delta)
}

// send puts the joined Snapshot into the outbox, and after it what is still wrong.
func (l *loop) send(files, api spec.Delta) {
	if l.joined.files == nil || l.joined.api == nil {
		return
	}
	snap, delta := l.join(files, api)
	l.box.Put(spec.Update{Snapshot: snap, Delta: delta, Revision: snap.Revision})
	for _, u := range []*spec.Update{l.fileErr, l.apiErr} {
		if u != nil {
			l.box.Put(*u)
		}
	}
}

// joined is what both said last, and their union.
type joined struct {
	files, api *spec.Snapshot
	tree       *iradix.Tree[*spec.Service]
}

// join brings the union up to date, at a cost that grows with the Deltas.
func (j *joined) join(files, api spec.Delta) (*spec.Snapshot, spec.Delta) {
	delta := files.Merge(api)
	if j.tree == nil || delta.All {
		j.tree = j.all()
		delta = spec.Delta{All: true}
	} else {
		txn := j.tree.Txn()
		for _, name := range delta.Services {
			if svc := j.service(name); svc != nil {
				txn.Insert(spec.ServiceKey(name), svc)
			} else {
				txn.Delete(spec.ServiceKey(name))
			}
		}
		j.tree = txn.Commit()
	}
	snap := *j.files
	snap.Revision = j.revision()
	snap.Nodes = j.nodes()
	snap.Notices = slices.Concat(j.files.Notices, j.api.Notices)
	return snap.WithServices(j.tree), delta
}

func (j *joined) all() *iradix.Tree[*spec.Service] {
	txn := iradix.New[*spec.Service]().Txn()
	for svc := range j.files.Services() {
		txn.Insert(spec.ServiceKey(svc.Name), svc)
	}
	for svc := range j.api.Services() {
		txn.Insert(spec.ServiceKey(svc.Name), j.service(svc.Name))
	}
	return txn.Commit()
}

// service returns the Service that counts, or nil.
func (j *joined) service(name spec.Name) *spec.Service {
	api, file := j.api.Service(name), j.files.Service(name)
	switch {
	case api == nil:
		return file
	case file == nil:
		return api
	}
	both := *api
	both.Notices = append(slices.Clip(api.Notices), spec.Problem{Origin: file.Origin, Object: "Service " + name.String(),
		Detail: "is in the Kubernetes API too, and that one is used; remove one of them"})
	return &both
}

func (j *joined) nodes() map[string]*corev1.Node {
	if len(j.files.Nodes) == 0 {
		return j.api.Nodes
	}
	nodes := make(map[string]*corev1.Node, len(j.files.Nodes)+len(j.api.Nodes))
	for _, from := range []*spec.Snapshot{j.files, j.api} {
		for name, n := range from.Nodes {
			nodes[name] = n
		}
	}
	return nodes
}

// revision names both states.
func (j *joined) revision() spec.Revision {
	r := j.files.Revision
	r.Stale = j.api.Revision.Stale
	switch {
	case r.ID == "":
		r.ID = j.api.Revision.ID
	case j.api.Revision.ID != "":
		r.ID += "+" + j.api.Revision.ID
	}
	return r
}
