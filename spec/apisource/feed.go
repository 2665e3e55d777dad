package apisource

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"weir/backends/dataplane"
	"weir/spec/manifest"
)

// resource is a kind of object that is watched.
type resource int

const (
	services resource = iota
	endpointSlices
	nodes
	resources // the number of kinds
)

var resourceNames = [resources]string{"services", "endpointslices", "nodes"}

func (r resource) String() string { return resourceNames[r] }

// without selects the objects that do not have the label.
func without(label string) string {
	r, err := labels.NewRequirement(label, selection.DoesNotExist, nil)
	if err != nil {
		panic(err) // the labels are constants
	}
	return labels.NewSelector().Add(*r).String()
}

// The selectors are kube-proxy's: Services that are not for another proxy, and slices that are not of headless
// Services. kube-proxy also selects Services by their clusterIP, but servers before 1.35 cannot do this. So weir drops
// headless Services here, unless their names are wanted.
var (
	servicesHere = without("service.kubernetes.io/service-proxy-name")
	slicesHere   = without(corev1.IsHeadlessService)
)

// object is one trimmed object.
type object struct {
	meta    *metav1.ObjectMeta
	service *corev1.Service
	slice   *discoveryv1.EndpointSlice
	sliceOf string // the name of the slice's Service
	node    *corev1.Node
	fault   string // why the object cannot be used, or ""
}

// change is one change that a watch reported.
type change struct {
	resource resource
	version  string // the resourceVersion
	complete bool   // the objects are a complete list
	listed   int    // how many objects a complete list had, headless Services included
	objects  []object
	deleted  []dataplane.ServiceName
}

// event is a message of a feed to the loop: a change, or the state of the feed.
type event struct {
	session int
	change  *change
	// heard means that the resource is being watched. failed is the reason why it is not.
	resource resource
	heard    bool
	stalled  bool
	failed   error
}

// feed keeps one resource watched: it is a cache.Reflector's store, and its way to the server. It sends events from a
// goroutine of client-go.
type feed struct {
	session  int
	resource resource
	node     string
	client   rest.Interface
	trim     *manifest.Trimmer
	headless bool // see Options.Headless
	stall    time.Duration
	events   chan<- event
	done     <-chan struct{}

	maxAnswer, maxHeld int64
	// held is the cost of all objects of the resource that the loop holds.
	held *atomic.Int64
	// paged has lists asked for in pages, because a whole one was too large. pages and listed are how many pages of the
	// current list have come, and what their objects cost.
	paged  bool
	pages  int
	listed int64
}

// run watches until ctx is done.
func (f *feed) run(ctx context.Context) {
	quiet := logr.Discard() // the loop gets the errors that client-go would log
	ctx = klog.NewContext(ctx, quiet)
	lw := &cache.ListWatch{ListWithContextFunc: f.list, WatchFuncWithContext: f.watch}
	expected := map[resource]runtime.Object{services: &corev1.Service{}, endpointSlices: &discoveryv1.EndpointSlice{}, nodes: &corev1.Node{}}[f.resource]
	cache.NewReflectorWithOptions(lw, expected, f, cache.ReflectorOptions{Name: "weir " + f.resource.String(), Logger: &quiet}).RunWithContext(ctx)
}

func (f *feed) send(e event) error {
	e.session = f.session
	select {
	case f.events <- e:
		return nil
	case <-f.done:
		return context.Canceled
	}
}

func (f *feed) sendChange(c change) error {
	c.resource = f.resource
	return f.send(event{change: &c, resource: f.resource, heard: true})
}

func (f *feed) options(o *metav1.ListOptions) *metav1.ListOptions {
	switch f.resource {
	case services:
		o.LabelSelector = servicesHere
	case endpointSlices:
		if o.LabelSelector = slicesHere; f.headless {
			o.LabelSelector = ""
		}
	case nodes:
		o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, f.node).String()
	}
	return o
}

func (f *feed) request(o *metav1.ListOptions) *rest.Request {
	return f.client.Get().Resource(f.resource.String()).VersionedParams(f.options(o), metav1.ParameterCodec)
}

// list asks for one page of a list, or for the whole list if the server has it in memory and it is not too large.
func (f *feed) list(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	ctx, cancel := guarded(ctx, f.stall, f.maxAnswer, f.failed)
	defer cancel(nil)
	if f.paged {
		page(&o)
	}
	list, err := f.request(&o).Do(ctx).Get()
	if errors.Is(err, errTooLarge) && !f.paged && o.Continue == "" {
		f.paged = true
		page(&o)
		list, err = f.request(&o).Do(ctx).Get()
	}
	if err == nil {
		err = f.count(list, o.Continue == "")
	}
	return list, f.failure(ctx, err)
}

// count adds a page to the current list, and returns an error if that has become too large.
func (f *feed) count(list runtime.Object, first bool) error {
	if first {
		f.pages, f.listed = 0, 0
	}
	f.pages++
	err := meta.EachListItem(list, func(o runtime.Object) error {
		f.listed += cost(o)
		return nil
	})
	if err == nil && (f.listed > f.maxHeld || f.pages > maxPages) {
		err = errTooMany
	}
	return err
}

// watch opens a watch that ends if the server stays silent.
func (f *feed) watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	ctx, cancel := guarded(ctx, f.stall, 0, f.failed)
	o.Watch = true
	w, err := f.request(&o).Watch(ctx)
	if err != nil {
		defer cancel(nil)
		if o.SendInitialEvents != nil && apierrors.IsInvalid(err) {
			return nil, err // the server cannot stream a list, so the Reflector falls back to a list request
		}
		return nil, f.failure(ctx, err)
	}
	h := &heard{feed: f, inner: w, out: make(chan watch.Event), ctx: ctx, cancel: cancel, initial: o.SendInitialEvents != nil && *o.SendInitialEvents}
	go h.run()
	return h, nil
}

// openFor is how long a watch without an event must stay open to count as working.
const openFor = 500 * time.Millisecond

// failure reports to the loop why a request ended, unless the loop knows, and returns the error.
func (f *feed) failure(ctx context.Context, err error) error {
	if err != nil && !watchdogOf(ctx).told.Load() {
		f.failed(cmp.Or(context.Cause(ctx), err))
	}
	return err
}

// failed reports an error to the loop.
func (f *feed) failed(err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err // the URL has numbers that differ each time
	}
	_ = f.send(event{resource: f.resource, failed: brief{err}, stalled: errors.Is(err, errSilent)})
}

// heard is a watch that reports its state to the loop.
type heard struct {
	*feed
	inner  watch.Interface
	out    chan watch.Event
	ctx    context.Context
	cancel context.CancelCauseFunc

	// initial reports whether a list is being streamed; streamed is the cost of its objects so far.
	initial  bool
	streamed int64
}

// Stop implements watch.Interface.
func (h *heard) Stop() { h.cancel(nil) }

// ResultChan implements watch.Interface.
func (h *heard) ResultChan() <-chan watch.Event { return h.out }

func (h *heard) run() {
	defer close(h.out)
	defer h.cancel(nil)
	defer h.inner.Stop()
	open := time.NewTimer(openFor)
	defer open.Stop()
	for {
		select {
		case <-open.C:
			_ = h.send(event{resource: h.resource, heard: true})
		case e, ok := <-h.inner.ResultChan():
			if h.ctx.Err() == nil && !ok {
				return
			}
			if h.ctx.Err() == nil {
				e = h.look(e)
			}
			select {
			case h.out <- e:
			case <-h.ctx.Done():
			}
		case <-h.ctx.Done():
		}
		if h.ctx.Err() != nil {
			_ = h.failure(h.ctx, h.ctx.Err())
			return
		}
	}
}

// look reports what an event says of the watch, and returns the event. If there are too many objects it returns an error in
// its place: a list that is streamed is tried again later, and otherwise everything is listed again.
func (h *heard) look(e watch.Event) watch.Event {
	switch e.Type {
	case watch.Bookmark:
		_ = h.send(event{resource: h.resource, heard: true})
		if m, err := meta.Accessor(e.Object); err == nil && m.GetAnnotations()[metav1.InitialEventsAnnotationKey] == "true" {
			h.initial = false
		}
	case watch.Error:
		if err := apierrors.FromObject(e.Object); !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
			h.failed(err)
		}
	case watch.Added, watch.Modified:
		var refusal *apierrors.StatusError
		if h.initial {
			if h.streamed += cost(e.Object); h.streamed > h.maxHeld {
				refusal = apierrors.NewTooManyRequests(errTooMany.Error(), 0)
			}
		} else if h.held.Load() > h.maxHeld {
			refusal = apierrors.NewResourceExpired(errTooMany.Error())
		}
		if refusal != nil {
			h.failed(errTooMany)
			return watch.Event{Type: watch.Error, Object: &refusal.ErrStatus}
		}
	}
	return e
}

// The methods of cache.ReflectorStore. A Reflector hands over only complete lists.

// Add implements cache.ReflectorStore.
func (f *feed) Add(o any) error { return f.Update(o) }

// Update implements cache.ReflectorStore.
func (f *feed) Update(o any) error {
	if f.drops(o) {
		return f.Delete(o)
	}
	t, err := f.trimmed(o)
	if err != nil {
		return err
	}
	return f.sendChange(change{version: t.meta.ResourceVersion, objects: []object{t}})
}

// Delete implements cache.ReflectorStore.
func (f *feed) Delete(o any) error {
	m, err := meta.Accessor(o)
	if err != nil {
		return err
	}
	return f.sendChange(change{version: m.GetResourceVersion(), deleted: []dataplane.ServiceName{{Namespace: m.GetNamespace(), Name: m.GetName()}}})
}

// Replace implements cache.ReflectorStore.
func (f *feed) Replace(list []any, version string) error {
	c := change{version: version, complete: true, listed: len(list), objects: make([]object, 0, len(list))}
	for _, o := range list {
		if f.drops(o) {
			continue
		}
		t, err := f.trimmed(o)
		if err != nil {
			return err
		}
		c.objects = append(c.objects, t)
	}
	return f.sendChange(c)
}

// drops reports whether the object is a headless Service, which needs no proxy, and its names are not wanted.
func (f *feed) drops(o any) bool {
	svc, ok := o.(*corev1.Service)
	return ok && !f.headless && svc.Spec.ClusterIP == corev1.ClusterIPNone
}

// Resync implements cache.ReflectorStore.
func (f *feed) Resync() error { return nil }

// Transformer implements cache.TransformingStore. It trims a list while it arrives.
func (f *feed) Transformer() cache.TransformFunc {
	return func(o any) (any, error) {
		switch o := o.(type) {
		case *corev1.Service:
			return f.trim.Service(o), nil
		case *discoveryv1.EndpointSlice:
			owner := o.Labels[discoveryv1.LabelServiceName]
			s, _ := f.trim.Slice(o)
			if owner != "" { // trimming the object again must find its owner
				s.Labels = withLabel(s.Labels, discoveryv1.LabelServiceName, owner)
			}
			return s, nil
		case *corev1.Node:
			return f.trim.Node(o), nil
		}
		return o, nil
	}
}

func withLabel(m map[string]string, key, value string) map[string]string {
	c := make(map[string]string, len(m)+1) // the map is shared
	maps.Copy(c, m)
	c[key] = value
	return c
}

func (f *feed) trimmed(o any) (object, error) {
	switch o := o.(type) {
	case *corev1.Service:
		s := f.trim.Service(o)
		return object{meta: &s.ObjectMeta, service: s, fault: manifest.ServiceFault(s)}, nil
	case *discoveryv1.EndpointSlice:
		s, owner := f.trim.Slice(o)
		return object{meta: &s.ObjectMeta, slice: s, sliceOf: owner, fault: manifest.SliceFault(s)}, nil
	case *corev1.Node:
		n := f.trim.Node(o)
		return object{meta: &n.ObjectMeta, node: n}, nil
	}
	return object{}, fmt.Errorf("a watch of %s sent a %T", f.resource, o)
}
