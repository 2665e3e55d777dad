package podsource

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"weir/backends/netlab"
	"weir/spec"
)

// liar is a runtime that speaks podman's API and says what it is told to.
type liar struct {
	socket string
	mu     sync.Mutex
	events chan string
	// answer answers a request; it may be nil.
	answer func(w http.ResponseWriter, path string) bool
	bodies map[string]string // by the ID of the container
}

func newLiar(t *testing.T) *liar {
	t.Helper()
	l := &liar{socket: filepath.Join(t.TempDir(), "s"), events: make(chan string, 1000), bodies: map[string]string{}}
	listener, err := net.Listen("unix", l.socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: l}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	return l
}

// ServeHTTP implements http.Handler.
func (l *liar) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	l.mu.Lock()
	answer := l.answer
	l.mu.Unlock()
	path := strings.TrimPrefix(r.URL.Path, "/v4.0.0/libpod")
	if answer != nil && answer(w, path) {
		return
	}
	switch {
	case path == "/_ping":
		w.Header().Set("Libpod-API-Version", "4.3.1")
	case path == "/events":
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		for {
			select {
			case e := <-l.events:
				fmt.Fprintln(w, e)
				w.(http.Flusher).Flush()
			case <-r.Context().Done():
				return
			}
		}
	case path == "/containers/json":
		var all []map[string]string
		l.mu.Lock()
		for id := range l.bodies {
			all = append(all, map[string]string{"Id": id})
		}
		l.mu.Unlock()
		_ = json.NewEncoder(w).Encode(all)
	default:
		id := strings.TrimSuffix(strings.TrimPrefix(path, "/containers/"), "/json")
		l.mu.Lock()
		body, ok := l.bodies[id]
		l.mu.Unlock()
		if !ok {
			http.NotFound(w, r)
			return
		}
		fmt.Fprint(w, body)
	}
}

func (l *liar) say(answer func(w http.ResponseWriter, path string) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answer = answer
}

func (l *liar) put(id, body string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if body == "" {
		delete(l.bodies, id)
	} else {
		l.bodies[id] = body
	}
}

// running describes a container that runs, as podman does.
func running(id, addr string, labels map[string]string) string {
	var c container
	c.ID, c.Name = id, "name-"+id
	c.State.Status = "running"
	c.Config.Labels = labels
	c.HostConfig.NetworkMode = "bridge"
	c.NetworkSettings.Networks = map[string]struct{ IPAddress, GlobalIPv6Address string }{"podman": {IPAddress: addr}}
	text, err := json.Marshal(c)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// exited describes a container that ended.
func exited(id, addr string, code int) string {
	return strings.Replace(running(id, addr, map[string]string{"app": "web"}), `"Status":"running","ExitCode":0`, fmt.Sprintf(`"Status":"exited","ExitCode":%d`, code), 1)
}

func about(action, id string) string {
	return fmt.Sprintf(`{"Type":"container","Action":%q,"Actor":{"ID":%q}}`, action, id)
}

func (l *liar) source() *Source {
	return New(Options{Name: "podman", Retry: 10 * time.Millisecond, Reader: &Containers{Socket: l.socket, Node: "n", HostAddresses: func() []string { return nil }}})
}

// TestFloodOfHostilePods has 2,000 containers of one name, one in ten with labels that are made to hurt, and events about them and about
// ten times as many that do not exist. What weir keeps of them is bounded.
func TestFloodOfHostilePods(t *testing.T) {
	netlab.RequireFull(t)
	const many, ceiling = 2_000, 36 << 20
	l := newLiar(t)
	labels := map[string]string{"app": "web", "big": strings.Repeat("x", 64<<10), "esc": "a\x1b[2J\nb", labelNamespace: "../../etc", "io.podman/../x": "y"}
	for i := range 1000 {
		labels[fmt.Sprintf("l%d", i)] = "v"
	}
	bodies := []string{running("ID", "10.89.0.1", labels), running("ID", "10.89.0.1", map[string]string{"app": "web"})}
	for i := range many {
		id := fmt.Sprintf("%012x", i)
		addr := fmt.Sprintf("10.%d.%d.%d", 100+i>>16, i>>8&255, i&255)
		l.put(id, strings.NewReplacer(`"ID":"ID"`, `"ID":"`+id+`"`, "name-ID", "web", "10.89.0.1", addr).Replace(bodies[min(1, i%10)]))
	}
	before := heap()
	v := follow(t, l.source())
	v.untilPods(t, func(pods spec.Pods) bool { return pods.Len() == many })
	for i := range many / 10 {
		l.events <- about("start", fmt.Sprintf("%012x", i))
		for j := range 10 {
			l.events <- about("start", fmt.Sprintf("%012x", many+10*i+j))
		}
	}
	gone := fmt.Sprintf("%012x", 7)
	l.put(gone, "")
	l.events <- about("remove", gone)
	v.untilPods(t, func(pods spec.Pods) bool { return pods.Len() == many-1 })
	for p := range v.pods.All() {
		if len(p.Labels) > maxLabels || p.Namespace != "default" || strings.ContainsAny(p.Name, "\n\x1b/") {
			t.Fatalf("pod %s/%s has %d labels", p.Namespace, p.Name, len(p.Labels))
		}
		for k, value := range p.Labels {
			if len(value) > 63 || strings.ContainsAny(k+value, "\n\x1b") {
				t.Fatalf("label %q of %s is %q", k, p.Name, value)
			}
		}
	}
	if grown := heap() - before; grown > ceiling {
		t.Errorf("%d pods take %d MB", many, grown>>20)
	} else {
		t.Logf("%d pods take %d MB", many, grown>>20)
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestLyingRuntime has a runtime lie, answer half, and hang: the last word stands, and an event alone makes no pod.
func TestLyingRuntime(t *testing.T) {
	t.Parallel()
	l := newLiar(t)
	l.put("a", running("a", "10.89.0.5", map[string]string{"app": "web"}))
	v := follow(t, l.source())
	const there = "default/name-a app=web Running ready addressed"
	v.until(t, there)

	// An event about a container that nobody has makes none, and a death of it ends none.
	l.events <- about("start", "ghost")
	l.events <- about("died", "ghost")
	l.put("b", running("b", "10.89.0.6", map[string]string{"app": "other"}))
	l.events <- about("start", "b")
	v.until(t, there+"\ndefault/name-b app=other Running ready addressed")
	l.put("b", "")
	l.events <- about("remove", "b")
	v.until(t, there)

	half := func(text string) func(w http.ResponseWriter, path string) bool {
		return func(w http.ResponseWriter, path string) bool {
			if strings.HasPrefix(path, "/containers") {
				fmt.Fprint(w, text)
				return true
			}
			return false
		}
	}
	for what, lie := range map[string]func(w http.ResponseWriter, path string) bool{
		"half a list":   half(`[{"Id":"a"},{"Id":`),
		"no JSON":       half("\x00\xff"),
		"another type":  half(`{"Id":"a"}`),
		"an error":      func(w http.ResponseWriter, _ string) bool { w.WriteHeader(http.StatusInternalServerError); return true },
		"a broken line": func(w http.ResponseWriter, _ string) bool { panic(http.ErrAbortHandler) },
		"no such path": func(w http.ResponseWriter, path string) bool {
			http.Error(w, "", http.StatusNotFound)
			return path != "/_ping"
		},
		"an endless one": func(w http.ResponseWriter, path string) bool {
			for strings.HasPrefix(path, "/containers") {
				if _, err := w.Write(make([]byte, 1<<20)); err != nil {
					return true
				}
			}
			return false
		},
	} {
		l.say(lie)
		l.events <- "not JSON" // ends the connection
		v.until(t, there+"\nstale")
		l.say(nil)
		v.until(t, there)
		t.Log(what)
	}
	// A line without an end, larger than any event.
	l.events <- strings.Repeat("x", maxEvent+1)
	v.until(t, there+"\nstale")
	v.until(t, there)
}

// TestAddressesThatNoPodHas has a runtime tell addresses that would lead elsewhere.
func TestAddressesThatNoPodHas(t *testing.T) {
	for _, addr := range []string{"127.0.0.1", "0.0.0.0", "::", "::1", "224.0.0.1", "ff02::1", "169.254.1.1", "fe80::1", "255.255.255.255", "", "x", "10.0.0.1%eth0", "::ffff:127.0.0.1"} {
		var c container
		c.NetworkSettings.Networks = map[string]struct{ IPAddress, GlobalIPv6Address string }{"n": {IPAddress: addr}, "m": {GlobalIPv6Address: addr}}
		if got := addressesOf(&c); len(got) != 0 {
			t.Errorf("%q gives %v", addr, got)
		}
	}
}
