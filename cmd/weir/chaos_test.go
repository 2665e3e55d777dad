package main_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"weir/backends/netlab"
)

// TestKilledAtAnyMoment kills weir again and again while it changes the rules of many Services. In the modes of the kernel no
// connection is ever without an answer. In userspace mode those are answered that are made once a new process serves. And a
// process that has had the time never reports at /healthz that all is well while the kernel holds what was replaced.
func TestKilledAtAnyMoment(t *testing.T) {
	for _, m := range slices.Concat(ruleModes, []mode{ipvsMode, userspaceMode(t)}) {
		t.Run(m.name, func(t *testing.T) {
			if m.needs != nil {
				m.needs(t)
			}
			killAgainAndAgain(t, m)
		})
	}
}

func killAgainAndAgain(t *testing.T, m mode) {
	services := 300
	if os.Getenv(netlab.VMEnv) != "" { // which is slow
		services = 40
	}
	d, began := painDaemon(t, m), time.Now()
	config := strings.ReplaceAll(painConfig, "50ms", "50ms, syncPeriod: 1s")
	d.write(map[string]string{"config.yaml": config + "ipvs: {minSyncPeriod: 50ms, syncPeriod: 1s}\n"})
	d.write(manyServices(services, 1))
	d.start()
	d.awaitSync()
	asking, asked, health := d.keepAsking(), 0, d.watchHealth()
	for round := 0; moreRounds(t, began, round, 8); round++ {
		health.restarted()
		d.write(manyServices(services, round))
		lives := time.Duration(rand.IntN(1000)) * time.Millisecond // any moment
		if round%8 == 7 {                                          // long enough to be held to what /healthz reports
			pod := 1 + round/8%3
			d.write(map[string]string{"slice.yaml": painSlice(pod)})
			health.expect(fmt.Sprint("pod", pod))
			lives += healthLimit
		}
		time.Sleep(lives)
		if m.proxies {
			asked += asking.pause(t)
		}
		d.kill()
		d.start()
		if m.proxies {
			d.await("a new process to serve", func() error {
				if r := d.lab.Host(netlab.Client).Probe(netlab.TCP, webFront, time.Second); r.Outcome != netlab.Answered {
					return fmt.Errorf("%v", r)
				}
				return nil
			})
			asking = d.keepAsking()
		}
	}
	d.awaitSync()
	d.awaitRunning()
	asked += asking.pause(t)
	t.Logf("%s: %d connections; /healthz: %s", m.name, asked, health.stop(t))
}

// healthWatch asks /healthz without pause.
type healthWatch struct {
	d    *daemon
	end  atomic.Bool
	done chan struct{}

	mu    sync.Mutex
	pod   string // that has to answer
	since time.Time

	well, ill int
	checked   int   // of those that all was well
	err       error // the first wrong answer
}

// healthLimit is how long a process may report at /healthz that all is well although what was asked for is not there: two sync
// periods of a second, and as long again for a busy machine.
const healthLimit = 4 * time.Second

func (d *daemon) watchHealth() *healthWatch {
	w := &healthWatch{d: d, done: make(chan struct{}), pod: "pod1", since: time.Now()}
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: d.lab.Node().DialContext}}
	go func() {
		defer close(w.done)
		for !w.end.Load() && w.err == nil {
			w.look(client)
			time.Sleep(10 * time.Millisecond) // spares the machine
		}
	}()
	return w
}

// expect notes which pod has to answer from now on.
func (w *healthWatch) expect(pod string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pod, w.since = pod, time.Now()
}

// restarted notes that another process may report from now on.
func (w *healthWatch) restarted() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.since = time.Now()
}

func (w *healthWatch) expected() (pod string, since time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pod, w.since
}

// look asks once. If the answer is that all is well, a connection shows whether that is so.
func (w *healthWatch) look(client *http.Client) {
	pod, since := w.expected()
	late := time.Since(since) > healthLimit
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://127.0.0.1:10256/healthz", nil)
	if err != nil {
		w.err = err
		return
	}
	resp, err := client.Do(req)
	if err != nil {
		return // weir is not there
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		w.ill++
		return
	}
	w.well++
	if !late {
		return
	}
	r := w.d.lab.Host(netlab.Client).Probe(netlab.TCP, webFront, answerWait)
	w.checked++
	if now, _ := w.expected(); r.Outcome == netlab.Answered && r.Server != pod && now == pod {
		w.err = fmt.Errorf("/healthz is 200 at %s, and %s answers instead of %s, %s after the change", time.Now().Format(time.StampMilli), r.Server, pod, time.Since(since))
	}
}

// stop ends the watch and describes the answers.
func (w *healthWatch) stop(t *testing.T) string {
	t.Helper()
	w.end.Store(true)
	<-w.done
	if w.err != nil || w.checked == 0 {
		t.Errorf("/healthz was 200 %d times, of which %d were checked: %v", w.well, w.checked, w.err)
	}
	return fmt.Sprintf("%d times 200, all %d that were checked right, %d times 503", w.well, w.checked, w.ill)
}

// chaosEnv is how long each mode is to be killed again and again, such as "90s"; see make chaos.
const chaosEnv = "WEIR_CHAOS"

// moreRounds reports whether another round is due: a few, or as many as chaosEnv has time for.
func moreRounds(t *testing.T, began time.Time, round, few int) bool {
	t.Helper()
	text := os.Getenv(chaosEnv)
	if text == "" {
		return round < few
	}
	limit, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("%s: %v", chaosEnv, err)
	}
	if time.Since(began) >= limit {
		t.Logf("%d rounds in %s", round, limit)
		return false
	}
	return true
}

// manyServices writes n Services with an endpoint each, all of which change from one round to the next.
func manyServices(n, round int) map[string]string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Service\nmetadata: {name: s%d}\nspec: {clusterIP: 10.97.%d.%d, ports: [{port: 80}]}\n", i, i/250, i%250+1)
		fmt.Fprintf(&b, "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s%d, labels: {kubernetes.io/service-name: s%d}}\n", i, i)
		fmt.Fprintf(&b, "addressType: IPv4\nports: [{port: 80}]\nendpoints: [{addresses: [10.244.9.%d]}]\n", 1+round%250)
	}
	return map[string]string{"many.yaml": b.String()}
}

// asking is a client that asks the ClusterIP without pause, each time with a new connection.
type asking struct {
	end   atomic.Bool
	done  chan struct{}
	asked int
	err   error // the first question without an answer
}

func (d *daemon) keepAsking() *asking {
	a := &asking{done: make(chan struct{})}
	client := d.lab.Host(netlab.Client)
	go func() {
		defer close(a.done)
		for ; !a.end.Load() && a.err == nil; a.asked++ {
			if r := client.Probe(netlab.TCP, netip.MustParseAddrPort("10.96.0.10:80"), 10*time.Second); r.Outcome != netlab.Answered {
				a.err = fmt.Errorf("question %d at %s: %v", a.asked, time.Now().Format(time.StampMilli), r)
			}
			time.Sleep(3 * time.Millisecond) // spares the machine
		}
	}()
	return a
}

// stop ends the asking. All must have been answered.
func (a *asking) stop(t *testing.T) {
	t.Helper()
	if n := a.pause(t); n < 10 {
		t.Errorf("only %d questions asked", n)
	}
}

// pause ends the asking too, and returns how many questions there were, be they few.
func (a *asking) pause(t *testing.T) int {
	t.Helper()
	a.end.Store(true)
	<-a.done
	if a.err != nil {
		t.Errorf("%d questions asked: %v", a.asked, a.err)
	}
	return a.asked
}
