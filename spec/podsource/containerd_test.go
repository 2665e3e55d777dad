package podsource

import (
	"os/exec"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"weir/backends/netlab/containerdtest"
	"weir/spec"
)

// TestContainerd follows the pods of a real containerd.
func TestContainerd(t *testing.T) {
	c := containerdtest.New(t, (*exec.Cmd).Start)
	source := New(Options{Name: "containerd", Reader: &CRI{Socket: c.Socket, Node: "n", HostAddresses: func() []string { return []string{"192.0.2.1"} }}})
	v := follow(t, source)

	web0, server := c.Run(t, containerdtest.Pod{Name: "web-0", Labels: web, Ports: `[{"name":"http","containerPort":8080,"protocol":"TCP"}]`})
	v.until(t, "default/web-0 app=web Running ready addressed")
	pod := v.pods.Get(podNamed("default", "web-0"))
	if pod.Spec.NodeName != "n" || pod.UID != "uid-of-web-0" || len(pod.Spec.Containers) != 1 || pod.Spec.Containers[0].Ports[0].Name != "http" {
		t.Errorf("the pod is %+v", pod)
	}
	runsCommands(t, &CRI{Socket: c.Socket}, podNamed("default", "web-0"), "server")
	host, _ := c.Run(t, containerdtest.Pod{Name: "host", Labels: web, HostNetwork: true, Command: []string{"/bin/busybox", "sleep", "1000000"}})
	v.until(t, "default/host app=web Running ready addressed\ndefault/web-0 app=web Running ready addressed")
	if got := v.pods.Get(podNamed("default", "host")).Status.PodIP; got != "192.0.2.1" {
		t.Errorf("the pod in the node's network has address %s", got)
	}
	c.Remove(t, host)

	// Killed, the pod is not ready until another container runs in it.
	c.Kill(t, server)
	v.until(t, "default/web-0 app=web Failed addressed")
	second := c.Start(t, web0, containerdtest.Pod{Name: "web-0", Attempt: 1})
	v.until(t, "default/web-0 app=web Running ready addressed")

	// Stopped, and its sandbox too, as before a reboot; then it runs again in another one.
	if _, err := c.Runtime.StopContainer(t.Context(), &cri.StopContainerRequest{ContainerId: second}); err != nil {
		t.Fatal(err)
	}
	v.until(t, "default/web-0 app=web Failed addressed")
	if _, err := c.Runtime.StopPodSandbox(t.Context(), &cri.StopPodSandboxRequest{PodSandboxId: web0}); err != nil {
		t.Fatal(err)
	}
	before := pod.Status.PodIP
	again, _ := c.Run(t, containerdtest.Pod{Name: "web-0", Labels: web, Attempt: 2})
	v.untilPods(t, func(p spec.Pods) bool {
		pod := p.Get(podNamed("default", "web-0"))
		return pod != nil && pod.Status.PodIP != before && v.text() == "default/web-0 app=web Running ready addressed"
	})
	c.Remove(t, web0)

	// The daemon ends and comes back: the last word stands meanwhile, and what happened is seen afterwards.
	c.Stop()
	v.until(t, "default/web-0 app=web Running ready addressed\nstale")
	c.Serve(t)
	c.Remove(t, again)
	c.Run(t, containerdtest.Pod{Name: "other", Labels: web})
	v.until(t, "default/other app=web Running ready addressed")
}
