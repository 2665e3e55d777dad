package apisource_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"weir/backends/dataplane"
	"weir/spec"
)

// TestRedirects has the server send each kind of request elsewhere. The token must not follow it.
func TestRedirects(t *testing.T) {
	t.Parallel()
	var leaked atomic.Int32
	stranger := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			leaked.Add(1)
		}
		writeList(w, "Service", "", "forged")
	})
	other, plain := httptest.NewTLSServer(stranger), httptest.NewServer(stranger)
	t.Cleanup(other.Close)
	t.Cleanup(plain.Close)
	for name, to := range map[string]string{"another host": other.URL, "http": plain.URL} {
		redirect := func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, to+r.URL.Path, http.StatusTemporaryRedirect)
		}
		for what, api := range map[string]*scriptedAPI{
			"list":  serve(t, redirect, nil),
			"watch": serve(t, nil, redirect),
		} {
			t.Run(name+" for a "+what, func(t *testing.T) {
				t.Parallel()
				w := watch(t, api.options(t))
				w.await("the refusal", func() bool { return w.err != nil && strings.Contains(w.err.Error(), "the server redirects to") })
				if w.services() > 1 || w.endpoints("forged") != -1 {
					t.Error("the stranger's Services are used")
				}
				if n := leaked.Load(); n > 0 {
					t.Errorf("the token was sent to a stranger %d times", n)
				}
			})
		}
	}
	t.Run("the same host", func(t *testing.T) {
		t.Parallel()
		api := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("again") == "" {
				http.Redirect(w, r, r.URL.Path+"?again=1", http.StatusTemporaryRedirect)
				return
			}
			writeList(w, "Service", "", "a")
		}, nil)
		w := watch(t, api.options(t))
		w.await("the Service", func() bool { return w.endpoints("a") == 0 })
	})
}

// TestAnswersAreBounded has the server answer with more than weir takes: in one answer, in many pages, and in a watch.
func TestAnswersAreBounded(t *testing.T) {
	t.Parallel()
	large := serviceJSON("large", "10.96.1.1")
	large = strings.Replace(large, `"resourceVersion"`, fmt.Sprintf(`"annotations": {"weir/weights": %q}, "resourceVersion"`, strings.Repeat("x", 64<<10)), 1)
	for name, tc := range map[string]struct {
		list http.HandlerFunc
		want string
	}{
		"bytes without end": {func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write([]byte(`{"kind": "ServiceList", "apiVersion": "v1", "items": [`))
			for r.Context().Err() == nil {
				_, _ = w.Write([]byte(strings.Repeat(serviceJSON("a", "10.96.0.1")+",", 100)))
			}
		}, "larger than weir accepts"},
		"values that are small": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"kind": "ServiceList", "apiVersion": "v1", "items": [%s{}]}`, strings.Repeat("{},", 500_000))
		}, "larger than weir accepts"},
		"values that are small, in protobuf": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/vnd.kubernetes.protobuf")
			items := strings.Repeat("\x12\x00", 500_000)
			fmt.Fprintf(w, "k8s\x00\x0a\x11\x0a\x02v1\x12\x0bServiceList\x12%s%s", "\xc0\x84\x3d", items)
		}, "larger than weir accepts"},
		"pages without end": {func(w http.ResponseWriter, _ *http.Request) { writeList(w, "Service", "more", make([]string, 100)...) }, "more objects than weir accepts"},
		"an error without end": {func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusInternalServerError)
			for r.Context().Err() == nil {
				_, _ = w.Write([]byte(strings.Repeat("x", 1<<16)))
			}
		}, "larger than weir accepts"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := serve(t, tc.list, nil).options(t)
			o.MaxAnswer, o.MaxHeld = 2<<20, 1<<20
			w := watch(t, o)
			w.await("the refusal", func() bool { return w.err != nil && strings.Contains(w.err.Error(), tc.want) })
			if w.snap != nil {
				t.Errorf("%d Services came of it", w.services())
			}
		})
	}
	t.Run("a watch", func(t *testing.T) {
		t.Parallel()
		o := serve(t, nil, func(w http.ResponseWriter, r *http.Request) {
			for i := 0; r.Context().Err() == nil; i++ {
				say(w, "ADDED", strings.Replace(large, `"large"`, fmt.Sprintf(`"large-%d"`, i), 1))
			}
		}).options(t)
		o.MaxHeld = 1 << 20
		w := watch(t, o)
		w.await("the refusal", func() bool { return w.err != nil && strings.Contains(w.err.Error(), "more objects than weir accepts") })
	})
}

// TestLargeListsArePaged has a list that is too large for one answer, of a server that makes pages if it is asked to.
func TestLargeListsArePaged(t *testing.T) {
	t.Parallel()
	api := serve(t, func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		switch {
		case q.Get("resourceVersion") == "0": // from memory, where the limit does not count
			writeList(w, "Service", "", make([]string, 20_000)...)
		case q.Get("limit") != "500":
			t.Errorf("the limit is %q", q.Get("limit"))
		case q.Get("continue") == "":
			writeList(w, "Service", "more", "a", "b")
		default:
			writeList(w, "Service", "", "c")
		}
	}, nil)
	o := api.options(t)
	o.MaxAnswer = 1 << 20
	w := watch(t, o)
	w.await("all pages", func() bool { return w.services() == 3 })
	if w.err != nil {
		t.Error(w.err)
	}
}

// TestEmptyListDeletesNothing has a cluster answer that it has no Service, at the start and later.
func TestEmptyListDeletesNothing(t *testing.T) {
	t.Parallel()
	const refusal = "no Service at all"
	empty := func(w http.ResponseWriter, _ *http.Request) { writeList(w, "Service", "") }
	comes := make(chan struct{})
	follow := func(w http.ResponseWriter, r *http.Request) {
		<-comes
		say(w, "ADDED", serviceJSON("late", "10.96.0.9"))
		<-r.Context().Done()
	}
	w := watch(t, serve(t, empty, follow).options(t))
	w.await("the refusal", func() bool { return w.err != nil && strings.Contains(w.err.Error(), refusal) })
	if w.snap != nil {
		t.Error("a Snapshot came of it")
	}
	close(comes)
	w.await("the first Service", func() bool { return w.err == nil && w.endpoints("late") == 0 })

	o := serve(t, empty, nil).options(t)
	o.AllowEmpty = true
	w = watch(t, o)
	w.await("a Snapshot without a Service", func() bool { return w.services() == 0 })

	var lists atomic.Int32
	expire := make(chan struct{})
	w = watch(t, serve(t, func(w http.ResponseWriter, _ *http.Request) {
		if lists.Add(1) == 1 {
			writeList(w, "Service", "", "a")
			return
		}
		empty(w, nil)
	}, func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-expire:
			expire = nil
			refuse(w, http.StatusGone, "Expired")
		case <-r.Context().Done():
		}
	}).options(t))
	w.await("a Service", func() bool { return w.endpoints("a") == 0 })
	close(expire)
	w.await("the refusal of a later list", func() bool { return w.err != nil && strings.Contains(w.err.Error(), refusal) })
	if w.endpoints("a") != 0 {
		t.Error("the Service is gone")
	}
}

// TestAddressesOfTheAPI gives a Service addresses that files may not have either. It keeps its last valid state, another one
// follows its changes, and both follow once the address is right.
func TestAddressesOfTheAPI(t *testing.T) {
	t.Parallel()
	spec1 := func(extra string) string {
		return strings.Replace(serviceJSON("web", "10.96.0.1"), `"type"`, extra+`"type"`, 1)
	}
	slice := func(address string) string {
		return fmt.Sprintf(`{"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "metadata": {"name": "web-1", "namespace": "default",
			"labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4", "ports": [{"port": 80}],
			"endpoints": [{"addresses": ["10.244.1.1"]}, {"addresses": [%q]}]}`, address)
	}
	events := make(chan [2]string)
	api := serve(t, func(w http.ResponseWriter, _ *http.Request) { writeList(w, "Service", "", "web", "other") }, nil)
	api.Config.Handler = withEvents(api.Config.Handler, events)
	w := watch(t, api.options(t))
	w.await("a Snapshot", func() bool { return w.services() == 2 })
	good, n := slice("10.244.1.2"), 0
	for _, tc := range []struct{ path, bad, good, want string }{
		{"endpointslices", slice("127.0.0.1"), good, "127.0.0.1 is a loopback address"},
		{"endpointslices", slice("169.254.169.254"), good, "a link-local address"},
		{"endpointslices", slice("224.0.0.1"), good, "a multicast address"},
		{"endpointslices", slice("0.0.0.0"), good, "the unspecified address"},
		{"endpointslices", slice("255.255.255.255"), good, "the broadcast address"},
		{"endpointslices", slice("fd00::1"), good, "in a slice of addressType IPv4"},
		{"services", strings.ReplaceAll(spec1(""), "10.96.0.1", "127.0.0.1"), spec1(""), "spec.clusterIP: 127.0.0.1 is a loopback address"},
		{"services", strings.ReplaceAll(spec1(""), "10.96.0.1", "224.0.0.1"), spec1(""), "spec.clusterIP: 224.0.0.1 is a multicast address"},
		{"services", spec1(`"externalIPs": ["169.254.169.254"], `), spec1(""), "spec.externalIPs[0]: 169.254.169.254 is a link-local address"},
	} {
		events <- [2]string{"endpointslices", good}
		w.await("two endpoints", func() bool { return w.endpoints("web") == 2 })
		before := w.model[dataplane.ServiceName{Namespace: "default", Name: "web"}]
		events <- [2]string{tc.path, tc.bad}
		w.await(tc.want, func() bool { return strings.Contains(refusals(w.snap), tc.want) })
		n++
		events <- [2]string{"services", serviceJSON("other", fmt.Sprintf("10.96.0.%d", 100+n))}
		w.await("a change of the other Service", func() bool {
			other := w.model[dataplane.ServiceName{Namespace: "default", Name: "other"}]
			return other.Object.Spec.ClusterIP == fmt.Sprintf("10.96.0.%d", 100+n)
		})
		if after := w.model[before.Name]; after != before {
			t.Errorf("%s: the Service is not held back: %+v", tc.want, after)
		}
		events <- [2]string{tc.path, tc.good}
		w.await("that it heals", func() bool { return refusals(w.snap) == "" && w.endpoints("web") == 2 })
	}
}

func refusals(snap *spec.Snapshot) string {
	var all []string
	for _, n := range snap.Notices {
		if n.ID() == spec.ServiceRefused {
			all = append(all, n.Error())
		}
	}
	return strings.Join(all, "\n")
}

// withEvents has the watches of Services and slices send the events of their paths.
func withEvents(h http.Handler, events <-chan [2]string) http.Handler {
	to := map[string]chan string{"services": make(chan string), "endpointslices": make(chan string)}
	go func() {
		for e := range events {
			to[e[0]] <- e[1]
		}
	}()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path, q := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:], r.URL.Query()
		if to[path] == nil || q.Get("watch") == "" || q.Get("sendInitialEvents") != "" {
			h.ServeHTTP(w, r)
			return
		}
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		for {
			select {
			case object := <-to[path]:
				say(w, "MODIFIED", object)
			case <-r.Context().Done():
				return
			}
		}
	})
}
