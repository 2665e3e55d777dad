package apitest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
)

// Memory is an API server in memory. It lists and watches Services, EndpointSlices and Nodes, regardless of selectors,
// and can be made to refuse every request.
type Memory struct {
	*httptest.Server
	mu      sync.Mutex
	events  []memoryEvent // all since the beginning; the version of an object is its place here
	changed chan struct{} // closed by the next change
	refuses bool
	last    int // how many events there were when the server began to refuse; watches end with the last of them
}

// Object is an object of the API.
type Object interface {
	metav1.Object
	runtime.Object
}

type memoryEvent struct {
	kind, name string
	Type       string          `json:"type"`
	Object     json.RawMessage `json:"object"`
}

// kindOf maps the path of a request to the kind that it is about, and the group of that kind.
var kindOf = map[string][2]string{
	"/api/v1/services": {"Service", "v1"},
	"/api/v1/nodes":    {"Node", "v1"},
	"/apis/discovery.k8s.io/v1/endpointslices": {"EndpointSlice", "discovery.k8s.io/v1"},
}

// NewMemory returns a Memory without objects, which serves until the test ends.
func NewMemory(t testing.TB) *Memory {
	m := &Memory{changed: make(chan struct{})}
	m.Server = httptest.NewTLSServer(m)
	t.Cleanup(func() {
		m.Refuse(true) // ends the watches
		m.Close()
	})
	return m
}

// Put adds or replaces an object.
func (m *Memory) Put(o Object) { m.write("MODIFIED", o) }

// Delete removes an object. It does nothing if there is none of the name.
func (m *Memory) Delete(o Object) { m.write("DELETED", o) }

// Refuse makes the server end every watch and refuse every request, until it is called with false.
func (m *Memory) Refuse(on bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refuses = on; on {
		m.last = len(m.events)
	}
	m.wake()
}

func (m *Memory) wake() {
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *Memory) write(what string, o Object) {
	m.mu.Lock()
	defer m.mu.Unlock()
	kinds, _, err := scheme.Scheme.ObjectKinds(o)
	if err != nil {
		panic(err) // a type that the tests do not use
	}
	kind := kinds[0].Kind
	name := o.GetNamespace() + "/" + o.GetName()
	_, exists := m.objects(kind)[name]
	switch {
	case what == "DELETED" && !exists:
		return
	case what != "DELETED" && !exists:
		what = "ADDED"
	}
	o.SetResourceVersion(strconv.Itoa(len(m.events) + 1))
	o.GetObjectKind().SetGroupVersionKind(kinds[0])
	text, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	m.events = append(m.events, memoryEvent{kind, name, what, text})
	m.wake()
}

// objects returns the objects of a kind by name. The lock is held.
func (m *Memory) objects(kind string) map[string]json.RawMessage {
	all := map[string]json.RawMessage{}
	for _, e := range m.events {
		if e.kind != kind {
			continue
		}
		if delete(all, e.name); e.Type != "DELETED" {
			all[e.name] = e.Object
		}
	}
	return all
}

// ServeHTTP implements http.Handler.
func (m *Memory) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kind, known := kindOf[r.URL.Path]
	m.mu.Lock()
	refuses := m.refuses
	m.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	switch {
	case !known:
		refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound)
	case refuses:
		refuse(w, http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable)
	case r.URL.Query().Get("sendInitialEvents") != "": // as servers before 1.32
		refuse(w, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid)
	case r.URL.Query().Get("watch") != "":
		m.watch(w, r, kind[0])
	default:
		m.list(w, kind)
	}
}

func (m *Memory) list(w http.ResponseWriter, kind [2]string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	items := []json.RawMessage{}
	for _, o := range m.objects(kind[0]) {
		items = append(items, o)
	}
	_ = json.NewEncoder(w).Encode(map[string]any{
		"kind": kind[0] + "List", "apiVersion": kind[1], "items": items,
		"metadata": map[string]string{"resourceVersion": strconv.Itoa(len(m.events))},
	})
}

// watch sends what came after the version that the client has.
func (m *Memory) watch(w http.ResponseWriter, r *http.Request, kind string) {
	w.WriteHeader(http.StatusOK)
	w.(http.Flusher).Flush()
	for sent, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion")); ; {
		m.mu.Lock()
		end, changed, refuses := len(m.events), m.changed, m.refuses
		if refuses {
			end = m.last
		}
		more := m.events[min(sent, end):end]
		m.mu.Unlock()
		sent += len(more)
		for _, e := range more {
			if e.kind == kind {
				_ = json.NewEncoder(w).Encode(e)
			}
		}
		w.(http.Flusher).Flush()
		if refuses {
			return
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

func refuse(w http.ResponseWriter, code int, reason metav1.StatusReason) {
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure,
		Code: int32(code), Reason: reason, Message: "refused by the test"})
}

// Kubeconfig writes a kubeconfig for a test's HTTP server, and returns its name.
func Kubeconfig(t testing.TB, url string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{"apiVersion": "v1", "kind": "Config", "current-context": "x", "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
		"clusters": [{"name": "c", "cluster": {"server": %q, "insecure-skip-tls-verify": true}}], "users": [{"name": "u", "user": {"token": "t"}}]}`, url)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
