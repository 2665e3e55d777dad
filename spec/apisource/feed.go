package apisource

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
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

	"weir/spec"
	"weir/spec/manifest"
)

// resource is one of the kinds that are watched.
type resource int

const (
	services resource = iota
	endpointSlices
	nodes
	resources // how many there are
)

var resourceNames = [resources]string{"services", "endpointslices", "nodes"}

func (r resource) String() string { return resourceNames[r] }

// without selects the objects that have no such label.
func without(label string) string {
	r, err := labels.NewRequirement(label, selection.DoesNotExist, nil)
	if err != nil {
		panic(err) // the labels are constants
	}
	return labels.NewSelector().Add(*r).String()
}

// The selectors are kube-proxy's: Services that are not for another proxy, and slices that are not of headless Services.
// What it asks of Services besides, a clusterIP, servers before 1.35 cannot select, so that headless ones are dropped here.
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
}

// change is one thing that a watch says.
type change struct {
	resource resource
	version  string // the resourceVersion
	complete bool   // the objects are all that there are
	objects  []object
	deleted  []spec.Name
}

// event is what a feed tells the loop: a change, or how the feed is doing.
type event struct {
	session int
	change  *change
	// heard says that a resource is being watched, and failed why it is not.
	resource resource
	heard    bool
	stalled  bool
	failed   error
}

// feed keeps up the watch of one resource: a cache.Reflector's store, and its way to the server. What it hears goes to
// events, from a goroutine of client-go's.
type feed struct {
	session  int
	resource resource
	node     string
	client   rest.Interface
	trim     *manifest.Trimmer
	stall    time.Duration
	events   chan<- event
	done     <-chan struct{}
}

// run watches until ctx is done.
func (f *feed) run(ctx context.Context) {
	quiet := logr.Discard() // what client-go would log, the loop is told
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
		o.LabelSelector = slicesHere
	case nodes:
		o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, f.node).String()
	}
	return o
}

func (f *feed) request(o *metav1.ListOptions) *rest.Request {
	return f.client.Get().Resource(f.resource.String()).VersionedParams(f.options(o), metav1.ParameterCodec)
}

func (f *feed) list(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	ctx, cancel := guarded(ctx, f.stall, f.failed)
	defer cancel(nil)
	list, err := f.request(&o).Do(ctx).Get()
	return list, f.failure(ctx, err)
}

// watch opens a watch that is given up if it stays silent.
func (f *feed) watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	ctx, cancel := guarded(ctx, f.stall, f.failed)
	o.Watch = true
	w, err := f.request(&o).Watch(ctx)
	if err != nil {
		defer cancel(nil)
		if o.SendInitialEvents != nil && apierrors.IsInvalid(err) {
			return nil, err // a server that cannot stream a list; the Reflector asks for one as of old
		}
		return nil, f.failure(ctx, err)
	}
	h := &heard{feed: f, inner: w, out: make(chan watch.Event), ctx: ctx, cancel: cancel}
	go h.run()
	return h, nil
}

// openFor is how long a watch without an event has to stay open before it counts as one.
const openFor = 500 * time.Millisecond

// failure tells the loop why a request ended, unless the loop knows, and returns the error.
func (f *feed) failure(ctx context.Context, err error) error {
	if err != nil && !watchdogOf(ctx).told.Load() {
		f.failed(cmp.Or(context.Cause(ctx), err))
	}
	return err
}

// failed tells the loop of an error.
func (f *feed) failed(err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err // the URL has numbers that differ each time
	}
	_ = f.send(event{resource: f.resource, failed: err, stalled: errors.Is(err, errSilent)})
}

// heard is a watch that tells the loop how it is doing.
type heard struct {
	*feed
	inner  watch.Interface
	out    chan watch.Event
	ctx    context.Context
	cancel context.CancelCauseFunc
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
			if h.ctx.Err() == nil && e.Type == watch.Bookmark {
				_ = h.send(event{resource: h.resource, heard: true})
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

// The methods of cache.ReflectorStore. A Reflector hands over a list only when it is complete.

// Add implements cache.ReflectorStore.
func (f *feed) Add(o any) error { return f.Update(o) }

// Update implements cache.ReflectorStore.
func (f *feed) Update(o any) error {
	if headless(o) {
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
	return f.sendChange(change{version: m.GetResourceVersion(), deleted: []spec.Name{{Namespace: m.GetNamespace(), Name: m.GetName()}}})
}

// Replace implements cache.ReflectorStore.
func (f *feed) Replace(list []any, version string) error {
	c := change{version: version, complete: true, objects: make([]object, 0, len(list))}
	for _, o := range list {
		if headless(o) {
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

// headless says that nothing is proxied for the object.
func headless(o any) bool {
	svc, ok := o.(*corev1.Service)
	return ok && svc.Spec.ClusterIP == corev1.ClusterIPNone
}

// Resync implements cache.ReflectorStore.
func (f *feed) Resync() error { return nil }

// Transformer implements cache.TransformingStore: a list is trimmed while it arrives.
func (f *feed) Transformer() cache.TransformFunc {
	return func(o any) (any, error) {
		switch o := o.(type) {
		case *corev1.Service:
			return f.trim.Service(o), nil
		case *discoveryv1.EndpointSlice:
			owner := o.Labels[discoveryv1.LabelServiceName]
			s, _ := f.trim.Slice(o)
			if owner != "" { // trimming it once more has to find it
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
	if m == nil {
		m = map[string]string{}
	}
	m[key] = value
	return m
}

func (f *feed) trimmed(o any) (object, error) {
	switch o := o.(type) {
	case *corev1.Service:
		s := f.trim.Service(o)
		return object{meta: &s.ObjectMeta, service: s}, nil
	case *discoveryv1.EndpointSlice:
		s, owner := f.trim.Slice(o)
		return object{meta: &s.ObjectMeta, slice: s, sliceOf: owner}, nil
	case *corev1.Node:
		n := f.trim.Node(o)
		return object{meta: &n.ObjectMeta, node: n}, nil
	}
	return object{}, fmt.Errorf("a watch of %s sent a %T", f.resource, o)
}
