package podsource

import (
	"context"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"weir/backends/dataplane"
	"weir/backends/netlab/podmantest"
	"weir/spec"
	"weir/spec/endpoints"
)

// seen collects what a Source sends.
type seen struct {
	updates chan spec.Update
	pods    spec.Pods
	err     error
}

func follow(t *testing.T, s *Source) *seen {
	t.Helper()
	v := &seen{updates: make(chan spec.Update, 1000)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Watch(ctx, func(u spec.Update) { v.updates <- u }) }()
	t.Cleanup(func() { cancel(); <-done })
	return v
}

// until takes updates until the pods are as they should be.
func (v *seen) until(t *testing.T, want string) {
	t.Helper()
	deadline := time.After(time.Minute)
	for v.text() != want {
		select {
		case u := <-v.updates:
			if v.err = u.Err; u.Err == nil {
				v.pods = u.Snapshot.Pods
			}
		case <-deadline:
			t.Fatalf("the pods are\n%s\nnot\n%s", v.text(), want)
		}
	}
}

// text returns a line for each pod, without addresses.
func (v *seen) text() string {
	var lines []string
	for p := range v.pods.All() {
		line := fmt.Sprintf("%s/%s app=%s %s", p.Namespace, p.Name, p.Labels["app"], p.Status.Phase)
		if endpoints.Ready(p) {
			line += " ready"
		}
		if p.DeletionTimestamp != nil {
			line += " terminating"
		}
		if len(p.Status.PodIPs) > 0 {
			line += " addressed"
		}
		lines = append(lines, line)
	}
	if v.err != nil {
		lines = append(lines, "stale")
	}
	return strings.Join(lines, "\n")
}

const deployment = `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: server, image: "` + podmantest.Image + `"}
`

func TestPodman(t *testing.T) {
	p := podmantest.New(t, (*exec.Cmd).Start)
	stop := p.Serve(t)
	source := New(Options{Name: "podman", Reader: &Containers{Socket: p.Socket, Node: "n", HostAddresses: func() []string { return []string{"192.0.2.1"} }}})
	v := follow(t, source)

	p.Play(t, deployment)
	v.until(t, "default/web-pod-0 app=web Running ready addressed")
	pod := v.pods.Get(dataplane.ServiceName{Namespace: "default", Name: "web-pod-0"})
	if pod.Spec.NodeName != "n" || pod.Status.PodIP == "" || string(pod.UID) == "" {
		t.Errorf("the pod is %+v", pod)
	}

	runsCommands(t, &Containers{Socket: p.Socket}, podNamed("default", "web-pod-0"), "server")

	// A container outside of a pod, by its labels and its health.
	p.Run(t, "run", "-d", "--name", "plain_one", "--label", "app=plain", "--label", labelNamespace+"=shop", "--health-cmd", "/bin/busybox test -e /tmp/healthy",
		"--health-interval", "disable", "--network", "podman", podmantest.Image)
	v.until(t, "default/web-pod-0 app=web Running ready addressed\nshop/plain-one app=plain Running addressed")
	runsCommands(t, &Containers{Socket: p.Socket}, podNamed("shop", "plain-one"), "any")
	p.Run(t, "exec", "plain_one", "/bin/busybox", "touch", "/tmp/healthy")
	p.Run(t, "healthcheck", "run", "plain_one")
	v.until(t, "default/web-pod-0 app=web Running ready addressed\nshop/plain-one app=plain Running ready addressed")
	p.Run(t, "rm", "-f", "-t", "0", "plain_one")
	v.until(t, "default/web-pod-0 app=web Running ready addressed")

	// What uses the node's network has the node's address.
	p.Run(t, "run", "-d", "--name", "host", "--label", "app=host", "--network", "host", podmantest.Image)
	v.until(t, "default/host app=host Running ready addressed\ndefault/web-pod-0 app=web Running ready addressed")
	if got := v.pods.Get(dataplane.ServiceName{Namespace: "default", Name: "host"}).Status.PodIP; got != "192.0.2.1" {
		t.Errorf("the pod in the node's network has address %s", got)
	}
	p.Run(t, "rm", "-f", "-t", "0", "host")
	v.until(t, "default/web-pod-0 app=web Running ready addressed")

	// Killed, the pod ends.
	p.Run(t, "kill", "web-pod-0-server")
	v.untilPods(t, func(pods spec.Pods) bool {
		pod := pods.Get(dataplane.ServiceName{Namespace: "default", Name: "web-pod-0"})
		return pod != nil && !endpoints.Ready(pod)
	})
	p.Run(t, "pod", "start", "web-pod-0")
	v.until(t, "default/web-pod-0 app=web Running ready addressed")

	// The socket goes and comes back: the last word stands meanwhile, and what happened is seen afterwards.
	stop()
	v.until(t, "default/web-pod-0 app=web Running ready addressed\nstale")
	p.Run(t, "pod", "create", "--name", "other", "--label", "app=other")
	p.Serve(t)
	v.untilPods(t, func(pods spec.Pods) bool {
		return pods.Len() == 2 && v.err == nil
	})
	p.Run(t, "pod", "rm", "-f", "-t", "0", "other")
	p.Run(t, "pod", "rm", "-f", "-t", "0", "web-pod-0")
	v.until(t, "")

	listed, err := source.Load(t.Context())
	if err != nil || listed.Pods.Len() != 0 {
		t.Errorf("a list has %d pods, %v", listed.Pods.Len(), err)
	}
}

// untilPods takes updates until the pods satisfy the condition.
func (v *seen) untilPods(t *testing.T, enough func(spec.Pods) bool) {
	t.Helper()
	deadline := time.After(3 * time.Minute)
	for !enough(v.pods) {
		select {
		case u := <-v.updates:
			if v.err = u.Err; u.Err == nil {
				v.pods = u.Snapshot.Pods
			}
		case <-deadline:
			t.Fatalf("the pods are\n%s", v.text())
		}
	}
}

func TestStateOf(t *testing.T) {
	member := func(status string, code int, health string, infra bool) *container {
		c := &container{IsInfra: infra}
		c.State.Status, c.State.ExitCode = status, code
		c.State.Health = &struct{ Status string }{health}
		return c
	}
	infra := member("running", 0, "", true)
	for want, members := range map[string][]*container{
		"Running ready":             {infra, member("running", 0, "", false), member("exited", 0, "", false)},
		"Running":                   {infra, member("running", 0, "starting", false)},
		"Running ready again":       {infra, member("running", 0, "healthy", false)},
		"Running failed beside":     {infra, member("running", 0, "", false), member("exited", 1, "", false)},
		"Running paused beside":     {infra, member("running", 0, "", false), member("paused", 0, "", false)},
		"Running ready terminating": {infra, member("stopping", 0, "", false)},
		"Running without network":   {member("exited", 0, "", true), member("running", 0, "", false)},
		"Pending":                   {infra, member("created", 0, "", false)},
		"Pending alone":             {infra},
		"Failed":                    {infra, member("exited", 137, "", false)},
		"Succeeded":                 {infra, member("exited", 0, "", false)},
	} {
		s := stateOf(members)
		if got, word := string(s.phase), strings.Fields(want); got != word[0] || s.ready != strings.Contains(want, "ready") || s.terminating != strings.Contains(want, "terminating") {
			t.Errorf("%s: %+v", want, s)
		}
	}
}

// TestHostileNames expects that nothing of what the author of a pod writes reaches a name or label that Kubernetes forbids.
func TestHostileNames(t *testing.T) {
	r := &Containers{Node: "n", HostAddresses: func() []string { return nil }}
	v := r.view()
	many := map[string]string{}
	for i := range 1000 {
		many[fmt.Sprintf("l%d", i)] = "v"
	}
	for _, labels := range []map[string]string{
		{"app": "web\nx"}, {"a b": "c"}, {"app": strings.Repeat("x", 64)}, {labelNamespace: "../etc"}, {labelNamespace: strings.Repeat("n", 64)}, many,
	} {
		for _, name := range []string{"web\x1b[31m", "../web", "", strings.Repeat("w", 300), "/web", "a\nb"} {
			c := &container{ID: "0123456789abcdef", Name: name}
			c.Config.Labels = labels
			o := v.object(&pod{ID: c.ID, Name: name, Labels: labels}, []*container{c})
			if strings.ContainsAny(o.Name+o.Namespace, "\n\x1b/ ") || o.Name == "" || len(o.Name) > 253 || o.Namespace != "default" || len(o.Labels) > maxLabels {
				t.Errorf("%q and %v: pod %s/%s with %d labels", name, labels, o.Namespace, o.Name, len(o.Labels))
			}
			if i := slices.IndexFunc(slices.Collect(maps.Values(o.Labels)), func(s string) bool { return strings.Contains(s, "\n") || len(s) > 63 }); i >= 0 {
				t.Errorf("labels %v", o.Labels)
			}
		}
	}
}
