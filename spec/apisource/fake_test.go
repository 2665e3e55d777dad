package apisource_test

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weir/backends/dataplane"
	"weir/spec/apisource"
	"weir/spec/apisource/apitest"
)

// scriptedAPI is an HTTP server for what a real API server does not do on demand: it answers as the test says.
type scriptedAPI struct {
	*httptest.Server
	mu       sync.Mutex
	requests []*http.Request
}

// serve starts a server. list and watch answer requests for Services, nil for what an empty cluster would, which has one
// Service; there are neither slices nor Nodes.
func serve(t *testing.T, list, watch http.HandlerFunc) *scriptedAPI {
	t.Helper()
	if list == nil {
		list = func(w http.ResponseWriter, _ *http.Request) { writeList(w, "Service", "", "kubernetes") }
	}
	if watch == nil {
		watch = quietWatch
	}
	api := &scriptedAPI{}
	api.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		api.mu.Lock()
		api.requests = append(api.requests, r.Clone(r.Context()))
		api.mu.Unlock()
		q := r.URL.Query()
		services := strings.HasSuffix(r.URL.Path, "/services")
		switch {
		case q.Get("sendInitialEvents") != "": // as servers before 1.32
			refuse(w, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid)
		case q.Get("watch") != "" && services:
			watch(w, r)
		case q.Get("watch") != "":
			quietWatch(w, r)
		case services:
			list(w, r)
		case strings.HasSuffix(r.URL.Path, "/endpointslices"):
			writeList(w, "EndpointSlice", "")
		default:
			writeList(w, "Node", "")
		}
	}))
	t.Cleanup(api.Close)
	return api
}

// requested returns the requests so far that are not for a watch.
func (a *scriptedAPI) requested(path string, watch bool) []*http.Request {
	a.mu.Lock()
	defer a.mu.Unlock()
	var found []*http.Request
	for _, r := range a.requests {
		if q := r.URL.Query(); r.URL.Path == path && (q.Get("watch") != "") == watch && q.Get("sendInitialEvents") == "" {
			found = append(found, r)
		}
	}
	return found
}

// options returns what a Source needs to follow the server.
func (a *scriptedAPI) options(t *testing.T) apisource.Options {
	t.Helper()
	return apisource.Options{Connection: apisource.Connection{Kubeconfig: apitest.Kubeconfig(t, a.URL), QPS: -1}, NodeName: "node"}
}

func refuse(w http.ResponseWriter, code int, reason metav1.StatusReason) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: int32(code), Reason: reason, Message: "refused by the test"})
}

var groupOf = map[string]string{"Service": "v1", "Node": "v1", "EndpointSlice": "discovery.k8s.io/v1"}

// listOf returns a list in JSON; next is the token of the page after it.
func listOf(kind, next string, names ...string) string {
	var items []string
	for i, name := range names {
		items = append(items, serviceJSON(name, fmt.Sprintf("10.96.0.%d", i+1)))
	}
	return fmt.Sprintf(`{"kind": "%sList", "apiVersion": %q, "metadata": {"resourceVersion": "10", "continue": %q}, "items": [%s]}`,
		kind, groupOf[kind], next, strings.Join(items, ","))
}

func writeList(w http.ResponseWriter, kind, next string, names ...string) {
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprint(w, listOf(kind, next, names...))
}

func serviceJSON(name, ip string) string {
	return fmt.Sprintf(`{"kind": "Service", "apiVersion": "v1", "metadata": {"name": %q, "namespace": "default", "resourceVersion": "5"},
		"spec": {"clusterIP": %q, "clusterIPs": [%q], "type": "ClusterIP", "ports": [{"port": 80, "protocol": "TCP"}]}}`, name, ip, ip)
}

// say sends an event of a watch, now.
func say(w http.ResponseWriter, kind, object string) {
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"type": %q, "object": %s}`+"\n", kind, object)
	w.(http.Flusher).Flush()
}

const bookmark = `{"kind": "Service", "apiVersion": "v1", "metadata": {"resourceVersion": "11"}, "spec": {}, "status": {"loadBalancer": {}}}`

// quietWatch says nothing for as long as the client listens.
func quietWatch(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	w.(http.Flusher).Flush()
	<-r.Context().Done()
}

func (w *watcher) services() int {
	if w.snap == nil {
		return -1
	}
	return w.snap.Services.Len()
}

func TestRequestsAreThoseOfKubeProxy(t *testing.T) {
	t.Parallel()
	api := serve(t, nil, nil)
	o := api.options(t)
	o.Connection.UserAgent = "weir/test"
	w := watch(t, o)
	w.await("a Snapshot", func() bool { return w.snap != nil })
	for path, selector := range map[string]string{
		"/api/v1/services":                         "!service.kubernetes.io/service-proxy-name",
		"/apis/discovery.k8s.io/v1/endpointslices": "!service.kubernetes.io/headless",
		"/api/v1/nodes":                            "metadata.name=node",
	} {
		for _, r := range api.requested(path, false) {
			q := r.URL.Query()
			if got := q.Get("labelSelector") + q.Get("fieldSelector"); got != selector {
				t.Errorf("%s: selector %q, want %q", path, got, selector)
			}
			if got := r.Header.Get("Accept"); got != "application/vnd.kubernetes.protobuf,application/json" {
				t.Errorf("%s: Accept is %q", path, got)
			}
			if r.Header.Get("User-Agent") != "weir/test" || r.Header.Get("Authorization") != "Bearer t" {
				t.Errorf("%s: headers are %v", path, r.Header)
			}
		}
	}
}

func TestClientConnectionIsHonoured(t *testing.T) {
	t.Parallel()
	api := serve(t, nil, nil)
	o := api.options(t)
	o.Connection.AcceptContentTypes, o.Connection.ContentType = "application/json", "application/json"
	o.Connection.QPS, o.Connection.Burst = 2, 1
	o.Connection.Server = strings.Replace(api.URL, "127.0.0.1", "localhost", 1) // --master
	start := time.Now()
	w := watch(t, o)
	w.await("a Snapshot", func() bool { return w.snap != nil })
	if took := time.Since(start); took < 900*time.Millisecond {
		t.Errorf("three lists took %v at two a second", took)
	}
	for _, r := range api.requested("/api/v1/services", false) {
		if r.Header.Get("Accept") != "application/json" || !strings.HasPrefix(r.Host, "localhost:") {
			t.Errorf("the request is to %s, and Accept is %q", r.Host, r.Header.Get("Accept"))
		}
	}
}

// TestHeadlessServices are dropped, because a proxy needs none, unless they are wanted.
func TestHeadlessServices(t *testing.T) {
	t.Parallel()
	for _, wanted := range []bool{false, true} {
		changed := make(chan string)
		api := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"kind": "ServiceList", "apiVersion": "v1", "metadata": {"resourceVersion": "10"}, "items": [%s, %s]}`, serviceJSON("a", "10.96.0.1"), serviceJSON("b", "None"))
		}, func(w http.ResponseWriter, r *http.Request) {
			for {
				select {
				case object := <-changed:
					say(w, "MODIFIED", object)
				case <-r.Context().Done():
					return
				}
			}
		})
		o := api.options(t)
		o.Headless = wanted
		headless, selector := 0, "!service.kubernetes.io/headless"
		if wanted {
			headless, selector = 1, ""
		}
		w := watch(t, o)
		w.await("a Snapshot", func() bool { return w.services() == 1+headless })
		if w.endpoints("a") != 0 {
			t.Error("the Service that has a ClusterIP is not there")
		}
		if w.snap.Revision.ProxyOnly == wanted {
			t.Errorf("wanted: %t, left out: %t", wanted, w.snap.Revision.ProxyOnly)
		}
		if r := api.requested("/apis/discovery.k8s.io/v1/endpointslices", false); r[0].URL.Query().Get("labelSelector") != selector {
			t.Errorf("wanted: %t, slices are selected by %q", wanted, r[0].URL.Query().Get("labelSelector"))
		}
		changed <- serviceJSON("a", "None")
		w.await("it becomes headless", func() bool {
			return w.services() == 2*headless && (!wanted || w.model[dataplane.ServiceName{Namespace: "default", Name: "a"}].Object.Spec.ClusterIP == "None")
		})
	}
}

// TestSilence has a watch go silent while its connection stays open and lives.
func TestSilence(t *testing.T) {
	t.Parallel()
	const stall = 500 * time.Millisecond
	silent := make(chan struct{})
	var said atomic.Int64
	api := serve(t, nil, func(w http.ResponseWriter, r *http.Request) {
		for {
			select {
			case <-silent:
				<-r.Context().Done()
			case <-r.Context().Done():
			case <-time.After(stall / 10):
				say(w, "BOOKMARK", bookmark)
				said.Add(1)
				continue
			}
			return
		}
	})
	api.Config.Handler = onlyServicesStall(api.Config.Handler, stall)
	o := api.options(t)
	o.StallTimeout = stall
	w := watch(t, o)
	w.await("a Snapshot", func() bool { return w.snap != nil })
	talk := said.Load() + 40 // bookmarks take four times as long as a silence may
	w.await("much talk", func() bool {
		return said.Load() >= talk
	})
	if w.errs > 0 {
		t.Fatalf("%d errors while the server talked, the last: %v", w.errs, w.err)
	}
	before := len(api.requested("/api/v1/services", false))
	silent <- struct{}{}
	w.await("the silence", func() bool { return w.err != nil && strings.Contains(w.err.Error(), "nothing was heard") })
	w.await("another watch", func() bool { return w.err == nil })
	if n := len(api.requested("/api/v1/services", false)); n != before {
		t.Errorf("%d lists after the silence; a watch goes on where it was", n-before)
	}
}

// onlyServicesStall keeps the watches of the other resources talking.
func onlyServicesStall(h http.Handler, stall time.Duration) http.Handler {
	kinds := map[string]string{"/api/v1/nodes": "Node", "/apis/discovery.k8s.io/v1/endpointslices": "EndpointSlice"}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		kind, q := kinds[r.URL.Path], r.URL.Query()
		if kind == "" || q.Get("watch") == "" || q.Get("sendInitialEvents") != "" {
			h.ServeHTTP(w, r)
			return
		}
		for pace := time.NewTicker(stall / 10); ; {
			select {
			case <-r.Context().Done():
				pace.Stop()
				return
			case <-pace.C:
				say(w, "BOOKMARK", fmt.Sprintf(`{"kind": %q, "apiVersion": %q, "metadata": {"resourceVersion": "11"}}`, kind, groupOf[kind]))
			}
		}
	})
}

// TestSlowList has a list take far longer than a silence may, without ever being silent.
func TestSlowList(t *testing.T) {
	t.Parallel()
	const stall = 400 * time.Millisecond
	api := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		text := listOf("Service", "", "a", "b", "c")
		for len(text) > 0 {
			n := min(len(text), 1+len(text)/20)
			fmt.Fprint(w, text[:n])
			w.(http.Flusher).Flush()
			text = text[n:]
			time.Sleep(stall / 10)
		}
	}, nil)
	o := api.options(t)
	o.StallTimeout = stall
	w := watch(t, o)
	w.await("all Services", func() bool { return w.services() == 3 })
	if n := len(api.requested("/api/v1/services", false)); n != 1 {
		t.Errorf("%d lists; want one that was let come to its end", n)
	}
}

// TestIncompleteLists has history expire, so that everything is listed again, and those lists break off: in the middle of
// an object, and between two pages.
func TestIncompleteLists(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	lists := 0
	expire := make(chan struct{})
	api := serve(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		lists++
		switch lists {
		case 1:
			writeList(w, "Service", "", "a", "b", "c")
		case 2:
			text := listOf("Service", "", "a")
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Content-Length", fmt.Sprint(len(text)))
			fmt.Fprint(w, text[:len(text)-5])
		case 3:
			writeList(w, "Service", "more", "a")
		case 4:
			if r.URL.Query().Get("continue") == "" {
				t.Errorf("the request after a first page is %s", r.URL)
			}
			refuse(w, http.StatusInternalServerError, metav1.StatusReasonInternalError)
		default:
			writeList(w, "Service", "", "a", "b")
		}
	}, func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-expire:
			refuse(w, http.StatusGone, metav1.StatusReasonExpired)
		case <-r.Context().Done():
		}
	})
	w := watch(t, api.options(t))
	w.await("three Services", func() bool { return w.services() == 3 })
	close(expire)
	w.await("the complete list", func() bool {
		if n := w.services(); n != 3 && n != 2 {
			t.Fatalf("%d Services", n)
		}
		return w.services() == 2
	})
	mu.Lock()
	defer mu.Unlock()
	if lists < 5 {
		t.Errorf("the deletion came from list %d", lists)
	}
	if w.alls != 1 {
		t.Errorf("%d Updates said that everything changed", w.alls)
	}
}

// TestNoThunderingHerd has many nodes lose one API server at once. Each of them tries again after 0.8 s at least, then twice
// as long, and so on, and they do not stay together.
func TestNoThunderingHerd(t *testing.T) {
	t.Parallel()
	const nodes = 40
	fallen := &attempts{of: map[string][]time.Duration{}}
	watching, fall := make(chan struct{}, nodes), make(chan struct{})
	api := serve(t, nil, func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-fall:
			fallen.add(r.UserAgent())
			refuse(w, http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable)
		default:
			w.WriteHeader(http.StatusOK)
			w.(http.Flusher).Flush()
			watching <- struct{}{}
			select {
			case <-fall: // its connection ends
			case <-r.Context().Done():
			}
		}
	})
	for i := range nodes {
		o := api.options(t)
		o.Connection.UserAgent = fmt.Sprint("node-", i)
		w := watch(t, o)
		w.await("a Snapshot", func() bool { return w.snap != nil })
	}
	for range nodes {
		<-watching
	}
	fallen.begin()
	close(fall)
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		k, together := fallen.spread(t, nodes)
		if together <= nodes/3 {
			t.Logf("at most %d of %d attempts number %d are within half a second", together, nodes, k)
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d attempts number %d are within half a second", together, nodes, k)
		}
	}
}

// attempts are the times of the attempts of each node after a moment.
type attempts struct {
	mu    sync.Mutex
	start time.Time
	of    map[string][]time.Duration
}

func (a *attempts) begin() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.start = time.Now()
}

func (a *attempts) add(node string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.of[node] = append(a.of[node], time.Since(a.start))
}

// spread returns how many attempts every node has made, and how many of the last of those are within half a second. Until
// there is one by each, all are together.
func (a *attempts) spread(t *testing.T, nodes int) (k, together int) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.of) < nodes {
		return 0, nodes
	}
	k = math.MaxInt
	for node, times := range a.of {
		k = min(k, len(times))
		// The first may come at once. A slow machine makes it later, never earlier.
		for i, earliest := 1, time.Duration(0); i < len(times); i++ {
			if times[i] < earliest {
				t.Fatalf("%s tried for the %d. time after %v already", node, i+1, times[i])
			}
			earliest = min(2*earliest+800*time.Millisecond, earliest+30*time.Second)
		}
	}
	var last []time.Duration
	for _, times := range a.of {
		last = append(last, times[k-1])
	}
	slices.Sort(last)
	for i, j := 0, 0; j < len(last); j++ {
		for last[j]-last[i] > 500*time.Millisecond {
			i++
		}
		together = max(together, j-i+1)
	}
	return k, together
}

func TestConfigSyncPeriod(t *testing.T) {
	t.Parallel()
	api := serve(t, func(w http.ResponseWriter, _ *http.Request) { writeList(w, "Service", "", "a") }, nil)
	o := api.options(t)
	o.ResyncPeriod = 20 * time.Millisecond
	w := watch(t, o)
	w.await("everything handed over five times", func() bool { return w.alls == 5 })
	if n := len(api.requested("/api/v1/services", false)); n != 1 {
		t.Errorf("the API was asked %d times", n)
	}
}

func TestCredentialsThatAreNotThere(t *testing.T) {
	t.Parallel()
	for what, o := range map[string]apisource.Connection{
		"no such file":    {Kubeconfig: filepath.Join(t.TempDir(), "none")},
		"not in a pod":    {},
		"not a directory": {Kubeconfig: t.TempDir()},
	} {
		_, err := apisource.New(apisource.Options{Connection: o, NodeName: "n"}).Load(t.Context())
		if err == nil {
			t.Errorf("%s: no error", what)
		}
		t.Logf("%s: %v", what, err)
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	api := serve(t, func(w http.ResponseWriter, _ *http.Request) { writeList(w, "Service", "", "a", "b") }, nil)
	snap, err := apisource.New(api.options(t)).Load(t.Context())
	if err != nil || snap.Services.Len() != 2 || snap.Services.Get(dataplane.ServiceName{Namespace: "default", Name: "a"}).Object.Spec.Type != corev1.ServiceTypeClusterIP {
		t.Fatalf("%+v, %v", snap, err)
	}
	forbidden := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, http.StatusForbidden, metav1.StatusReasonForbidden)
	}, nil)
	if _, err := apisource.New(forbidden.options(t)).Load(t.Context()); err == nil || !strings.Contains(err.Error(), "services") {
		t.Errorf("what is forbidden is not named: %v", err)
	}
}
