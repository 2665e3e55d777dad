package main_test

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"weir/backends/netlab"
	"weir/backends/netlab/containerdtest"
)

// TestPodsOfContainerd runs pods with containerd as a kubelet does, and a Service that selects them by a named port, and
// nothing else.
func TestPodsOfContainerd(t *testing.T) {
	t.Parallel()
	lab := netlab.New(t, netlab.Topology{Pods: 1})
	node, outside := lab.Node(), lab.Host(netlab.Outside)
	c := containerdtest.New(t, node.Start)
	d := newDaemon(t, lab, modeNamed(t, "nftables"), "--pod-source", "cri=unix://"+c.Socket)
	d.write(map[string]string{"web.yaml": strings.Replace(selectingWeb, "targetPort: 8080", "targetPort: http", 1)})
	d.start()
	d.awaitRunning()
	clusterIP, nodePort := "http://10.96.0.10/", "http://192.168.77.1:30080/"
	everywhere := func(what string, want ...string) {
		t.Helper()
		d.await(what, func() error {
			return errors.Join(answeredBy(node, t, clusterIP, want...), answeredBy(outside, t, nodePort, want...))
		})
	}
	everywhere("no pod")
	pod := func(name string) containerdtest.Pod {
		return containerdtest.Pod{Name: name, Labels: map[string]string{"app": "web"}, Ports: `[{"name":"http","containerPort":8080,"protocol":"TCP"}]`}
	}
	podA, serverA := c.Run(t, pod("pod-a"))
	d.nodeExec("ip", "link", "set", containerdtest.Bridge, "address", "02:00:00:00:aa:01")
	everywhere("the first pod", "pod-a")
	podB, _ := c.Run(t, pod("pod-b"))
	everywhere("the second pod", "pod-a", "pod-b")

	out, err := d.weir("discover", "-f", d.dir, "--pod-source", "cri=unix://"+c.Socket)
	const want = `POD             STATE   ADDRESSES   RUNTIME   SERVICES
default/pod-a   ready   ADDR   cri       web
default/pod-b   ready   ADDR   cri       web

SERVICE       SELECTS   ENDPOINTS
default/web   app=web   ADDR, ADDR
`
	if got := regexp.MustCompile(`10\.90\.0\.\d+`).ReplaceAllString(out, "ADDR"); err != nil || got != want {
		t.Errorf("weir discover printed\n%s%v", out, err)
	}

	c.Kill(t, serverA)
	everywhere("the pod that is left", "pod-b")
	again := pod("pod-a")
	again.Attempt = 1
	c.Start(t, podA, again)
	everywhere("the pod whose container was started again", "pod-a", "pod-b")

	// The runtime's end takes nothing away, and what happens then is seen when it is back.
	c.Stop()
	d.await("word that the runtime is away", func() error {
		if out := d.status(); !strings.Contains(out, "cri") {
			return fmt.Errorf("weir status says\n%s", out)
		}
		return nil
	})
	everywhere("the runtime away", "pod-a", "pod-b")
	c.Serve(t)
	c.Remove(t, podB)
	c.Run(t, pod("pod-c"))
	everywhere("the runtime back", "pod-a", "pod-c")
	c.Remove(t, podA)
	everywhere("the pod that is left at last", "pod-c")
}
