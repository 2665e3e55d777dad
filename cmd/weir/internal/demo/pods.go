package main

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"weir/backends/netlab"
	"weir/backends/netlab/podmantest"
)

// usualSocket is where podman's service listens, and weir looks for it. The demo has a /run of its own.
const usualSocket = "/run/podman/podman.sock"

// bound is how long after the death of a pod requests may still meet it.
const bound = time.Second

var podsNodePort = netip.AddrPortFrom(netlab.NodeIPv4, 30081)

// podmanHere reports whether podman can run pods here: it is installed, and this is root of the system.
func podmanHere() bool {
	_, err := exec.LookPath("podman")
	ids, mapErr := os.ReadFile("/proc/self/uid_map")
	return err == nil && mapErr == nil && strings.Join(strings.Fields(string(ids)), " ") == "0 0 4294967295"
}

// preparePodman starts podman's service on the node.
func (s *show) preparePodman() {
	if err := os.MkdirAll(filepath.Dir(usualSocket), 0o755); err != nil {
		s.Fatalf("%v", err)
	}
	s.runtime = podmantest.New(s.stage, s.lab.Node().Start)
	s.runtime.Socket = usualSocket
	s.runtime.Serve(s.stage)
}

// pods runs pods with podman, with a Service that selects them, and replaces one under load.
func (s *show) pods() {
	s.act("Pods by podman, a Service by file: nobody writes down an address")
	const service = `apiVersion: v1
kind: Service
metadata: {name: api}
spec:
  type: NodePort
  selector: {app: api}
  ports: [{port: 80, targetPort: 8080, nodePort: 30081}]
`
	if err := os.WriteFile(filepath.Join(s.input, "api.yaml"), []byte(service), 0o644); err != nil {
		s.Fatalf("%v", err)
	}
	s.shell("podman kube play api-1.yaml api-2.yaml      # labels: {app: api}")
	s.runPod("api-1")
	// As netavark leaves it, the bridge changes its address when the pod with the lowest one goes.
	if _, err := s.lab.Node().Exec(s.ctx, "ip", "link", "set", "podman1", "address", "02:00:00:00:aa:01"); err != nil {
		s.Fatalf("%v", err)
	}
	s.runPod("api-2")
	took := s.until("both pods answer", limit, func() error { return s.metPods("api-1", "api-2") })
	s.observed("both answer %s after the second one started", took)

	s.shell("podman kill api-1-server")
	load := s.load()
	s.runtime.Run(s.stage, "kill", "api-1-server")
	died := time.Now()
	for time.Since(died) < 3*bound {
		time.Sleep(10 * time.Millisecond)
	}
	asked, failed := load()
	var late strings.Builder
	for _, f := range failed {
		if f.began.After(died.Add(bound)) {
			fmt.Fprintf(&late, "%s after the death, for %s: %v\n", f.began.Sub(died), f.took, f.err)
		}
	}
	if late.Len() > 0 {
		s.Fatalf("requests were lost that began later than %s after the death of a pod:\n%s%s", bound, late.String(), s.log.String())
	}
	if len(failed) > 0 {
		if last := failed[len(failed)-1].began.Sub(died); last > 0 {
			s.observed("the last request that met the dead pod: %s after its death", last.Round(time.Millisecond))
		}
	}
	s.observed("%d requests from outside meanwhile, none lost later than %s after the death", asked, bound)

	// A new pod counts as soon as it runs, and its server may listen a little later: it is not asked under load.
	s.shell("podman kube play api-3.yaml")
	s.runPod("api-3")
	took = s.until("the new pod answers, and the dead one does not", limit, func() error { return s.metPods("api-2", "api-3") })
	s.observed("the new pod answers %s after it started", took)
	fmt.Printf("   outside -> NodePort  %-18s   %s\n", podsNodePort, s.podCounts("api-1", "api-2", "api-3"))
}

func (s *show) runPod(name string) {
	s.runtime.Play(s.stage, "apiVersion: v1\nkind: Pod\nmetadata: {name: "+name+", labels: {app: api}}\nspec:\n  hostname: "+name+
		"\n  containers: [{name: server, image: \""+podmantest.Image+"\"}]\n")
}

// get asks the NodePort from outside, and returns the pod that answers.
func (s *show) get() (pod string, err error) {
	err = s.lab.Host(netlab.Outside).Do(func() error {
		conn, err := net.DialTimeout("tcp", podsNodePort.String(), 2*time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
		if _, err := fmt.Fprint(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
			return err
		}
		answer, err := io.ReadAll(conn)
		_, body, found := strings.Cut(string(answer), "\r\n\r\n")
		if err == nil && !found {
			err = fmt.Errorf("half an answer: %q", answer)
		}
		pod = strings.TrimSpace(body)
		return err
	})
	return pod, err
}

// metPods returns an error unless exactly these pods answer.
func (s *show) metPods(pods ...string) error {
	counts := map[string]int{}
	for range 12 * len(pods) {
		pod, err := s.get()
		if err != nil {
			return err
		}
		counts[pod]++
	}
	return exactly(counts, pods)
}

func (s *show) podCounts(pods ...string) string {
	var line strings.Builder
	counts := map[string]int{}
	for range 60 {
		pod, err := s.get()
		if err != nil {
			s.Fatalf("%v", err)
		}
		counts[pod]++
	}
	for _, pod := range pods {
		fmt.Fprintf(&line, "  %s %2d", pod, counts[pod])
	}
	return strings.TrimSpace(line.String())
}

// lostRequest is a request that was not answered.
type lostRequest struct {
	began time.Time
	took  time.Duration
	err   error
}

// load asks without a pause until the function that it returns is called. That one returns how many requests there were, and those
// that were lost, in order.
func (s *show) load() func() (asked int, lost []lostRequest) {
	var (
		asked int
		lost  []lostRequest
		done  = make(chan struct{})
		ended sync.WaitGroup
	)
	ended.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			began := time.Now()
			if _, err := s.get(); err != nil {
				lost = append(lost, lostRequest{began, time.Since(began), err})
			}
			asked++
		}
	})
	stop := sync.OnceFunc(func() { close(done); ended.Wait() })
	s.Cleanup(stop)
	return func() (int, []lostRequest) {
		stop()
		return asked, lost
	}
}
