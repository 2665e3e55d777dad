package main_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"weir/backends/netlab"
)

// criPod is a pod of a runtime that a test plays.
type criPod struct {
	namespace, name, app, address string
	exit                          int32 // it has exited with that code, unless it is 0
}

// podsCRI is a runtime that runs these pods.
type podsCRI struct {
	onePodCRI
	pods []criPod
}

func (r podsCRI) ListPodSandbox(context.Context, *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	var out cri.ListPodSandboxResponse
	for _, p := range r.pods {
		out.Items = append(out.Items, &cri.PodSandbox{Id: p.address, Metadata: &cri.PodSandboxMetadata{Namespace: p.namespace, Name: p.name, Uid: p.address}, Labels: map[string]string{"app": p.app}})
	}
	return &out, nil
}

func (r podsCRI) ListContainers(context.Context, *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	var out cri.ListContainersResponse
	for _, p := range r.pods {
		c := &cri.Container{Id: "c-" + p.address, PodSandboxId: p.address, Metadata: &cri.ContainerMetadata{Name: "server"}, State: cri.ContainerState_CONTAINER_RUNNING}
		if p.exit != 0 {
			c.State = cri.ContainerState_CONTAINER_EXITED
		}
		out.Containers = append(out.Containers, c)
	}
	return &out, nil
}

func (r podsCRI) PodSandboxStatus(_ context.Context, in *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	i := slices.IndexFunc(r.pods, func(p criPod) bool { return p.address == in.PodSandboxId })
	return &cri.PodSandboxStatusResponse{Status: &cri.PodSandboxStatus{Id: in.PodSandboxId, Network: &cri.PodSandboxNetworkStatus{Ip: r.pods[i].address}}}, nil
}

func (r podsCRI) ContainerStatus(_ context.Context, in *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	i := slices.IndexFunc(r.pods, func(p criPod) bool { return "c-"+p.address == in.ContainerId })
	return &cri.ContainerStatusResponse{Status: &cri.ContainerStatus{Id: in.ContainerId, State: cri.ContainerState_CONTAINER_EXITED, ExitCode: r.pods[i].exit}}, nil
}

// serveCRI serves a runtime at a socket of a short path.
func serveCRI(t *testing.T, socket string, r cri.RuntimeServiceServer) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	cri.RegisterRuntimeServiceServer(s, r)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return s.Stop
}

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "w")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// TestDiscover has two runtimes with pods of all kinds, and Services that select some.
func TestDiscover(t *testing.T) {
	dir := shortDir(t)
	serveCRI(t, filepath.Join(dir, "a"), podsCRI{pods: []criPod{{"default", "web-0", "web", "10.0.0.1", 0}, {"default", "old", "wet", "10.0.0.2", 3}, {"No", "odd", "web", "10.0.0.3", 0}, {"prod", "web-0", "web", "10.0.0.4", 0}}})
	serveCRI(t, filepath.Join(dir, "b"), podsCRI{pods: []criPod{{"default", "web-0", "web", "10.1.0.1", 0}}})
	const services = `apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80}]}}
- {apiVersion: v1, kind: Service, metadata: {name: dead}, spec: {clusterIP: 10.96.0.2, selector: {app: wet}, ports: [{port: 80}]}}
- {apiVersion: v1, kind: Service, metadata: {name: near}, spec: {clusterIP: 10.96.0.3, selector: {app: wex}, ports: [{port: 80}]}}
- {apiVersion: v1, kind: Service, metadata: {name: open}, spec: {clusterIP: 10.96.0.4, ports: [{port: 80}]}}
- {apiVersion: v1, kind: Service, metadata: {name: named}, spec: {clusterIP: 10.96.0.5, selector: {app: web}, ports: [{port: 80, targetPort: http}]}}
- {apiVersion: v1, kind: Service, metadata: {name: shop, namespace: prod}, spec: {clusterIP: 10.96.0.6, selector: {app: web}, ports: [{port: 80}]}}
`
	file := filepath.Join(dir, "services.yaml")
	if err := os.WriteFile(file, []byte(services), 0o600); err != nil {
		t.Fatal(err)
	}
	discover := func(args ...string) result {
		t.Helper()
		r := weir(t, "", append([]string{"discover", "--pod-source", "cri=" + dir + "/a", "--pod-source", "cri=" + dir + "/b"}, args...)...)
		if r.code != 0 {
			t.Fatalf("%v: exit code %d\n%s%s", args, r.code, r.stdout, r.stderr)
		}
		r.stdout = strings.ReplaceAll(r.stdout, dir, "DIR")
		return r
	}
	all := discover("-f", file)
	const want = `POD             STATE                  ADDRESSES   RUNTIME      SERVICES
default/odd     ready                  10.0.0.3    cri at DIR/a   named,web
default/old     failed (exit code 3)   10.0.0.2    cri at DIR/a   dead
default/web-0   ready                  10.0.0.1    cri at DIR/a   named,web
default/web-0   ready                  10.1.0.1    cri at DIR/b   named,web
prod/web-0      ready                  10.0.0.4    cri at DIR/a   shop

SERVICE         SELECTS   ENDPOINTS
default/dead    app=wet   none: pod default/old has these labels, and is not running (exit code 3)
default/named   app=web   10.0.0.3, 10.0.0.1, 10.1.0.1; targetPort is "http" (TCP), and no container of pod default/odd, pod default/web-0 has a port of that name; podman and docker tell no names of ports: add what the pods were made of to the input, or give the number
default/near    app=wex   none: pod default/odd has app=web, wanted app=wex
default/open    -         none: it selects no pods
default/web     app=web   10.0.0.3, 10.0.0.1, 10.1.0.1
prod/shop        app=web   10.0.0.4
`
	squeezed := func(s string) string {
		return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == ' ' }), " ")
	}
	if squeezed(all.stdout) != squeezed(want) {
		t.Errorf("weir discover printed\n%s", all.stdout)
	}
	if want := `namespace: "No" is not the name of a namespace; the pod counts as one of default`; strings.Count(all.stderr, want) != 1 || strings.Count(all.stderr, "\n") != 1 {
		t.Errorf("weir discover told\n%s", all.stderr)
	}
	if got := discover("-f", file, "-n", "prod").stdout; strings.Contains(got, "default/") || !strings.Contains(got, "prod/web-0") || !strings.Contains(got, "prod/shop ") {
		t.Errorf("of one namespace it printed\n%s", got)
	}

	// The pods by themselves are an input elsewhere.
	var list corev1.PodList
	if err := json.Unmarshal([]byte(discover("-o", "json").stdout), &list); err != nil || len(list.Items) != 5 {
		t.Errorf("as JSON, there are %d pods: %v", len(list.Items), err)
	}
	pods := filepath.Join(dir, "pods.yaml")
	if err := os.WriteFile(pods, []byte(discover("-o", "yaml", "-n", "prod").stdout), 0o600); err != nil {
		t.Fatal(err)
	}
	r := weir(t, "", "discover", "-f", file, "-f", pods, "--pod-source", "none")
	if r.code != 0 || !strings.Contains(squeezed(r.stdout), "prod/shop app=web 10.0.0.4\n") {
		t.Errorf("with the printed pods as input:\n%s%s", r.stdout, r.stderr)
	}

	if r := weir(t, "", "discover", "--pod-source", "/run/x.sock"); r.code != 2 || !strings.Contains(r.stderr, "say what listens there too, such as podman=/run/x.sock") {
		t.Errorf("--pod-source with a path: exit code %d, %s", r.code, r.stderr)
	}
}

// TestPlanWithoutRuntime makes plans on a node with a runtime that is away, and one that hangs.
func TestPlanWithoutRuntime(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	hung, err := net.Listen("unix", filepath.Join(dir, "hung")) // it never accepts
	if err != nil {
		t.Fatal(err)
	}
	defer hung.Close()
	d := newDaemon(t, netlab.New(t, netlab.Topology{Pods: 1}), modes[2])
	d.write(map[string]string{"app.yaml": deployedWeb})
	args, want := d.args("reconcile", "--dry-run"), []string{"W045", "promisedEndpoint"}
	for _, source := range []string{"podman=" + dir + "/hung", "cri=" + dir + "/hung", "kubelet=" + dir + "/hung", "docker=" + dir + "/away"} {
		args, want = append(args, "--pod-source", source), append(want, "pods of "+strings.Replace(source, "=", " at ", 1)+": ")
	}
	started := time.Now()
	out, err := d.weir(append(args, "--verbose")...)
	if took := time.Since(started); took > 15*time.Second {
		t.Errorf("planned after %v", took)
	}
	if err := errors.Join(err, containsAll(out, want)); err != nil {
		t.Error(err)
	}
}

// TestPodSourceReplaced names another socket for a runtime while weir runs. As long as nothing answers there, what the former one
// told stands, after a restart too, and weir says so.
func TestPodSourceReplaced(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	serveCRI(t, filepath.Join(dir, "a"), onePodCRI{address: "10.11.0.1"})
	d := newDaemon(t, netlab.New(t, netlab.Topology{Pods: 1}), modeNamed(t, "nftables"))
	write := func(sources string) {
		d.write(map[string]string{"weir.yaml": "apiVersion: weir/v1alpha1\nkind: WeirConfiguration\npodSources: [" + strings.ReplaceAll(sources, "/", dir+"/") + "]\n"})
	}
	serves := func(what string, want ...string) {
		t.Helper()
		d.await(what, func() error { return d.hasEndpoints(want, "10.11.0.1", "10.11.0.2") })
	}
	says := func(want ...string) {
		t.Helper()
		d.await("status to tell", func() error { return containsAll(d.status(), want) })
	}
	write("cri=/a")
	d.write(map[string]string{"web.yaml": selectingWeb})
	d.start()
	serves("the source", "10.11.0.1")
	write("cri=/b")
	at := "cri at " + dir + "/b"
	says("away      "+at+", since ", "1 pod of cri at "+dir+"/a, which it replaces, stays until it answers", "10.11.0.1:8080")
	d.awaitLog(`WARN.*` + at + ` is away.*no such file or directory`)
	serves("what the former one told", "10.11.0.1")
	if logs := d.logs(); strings.Contains(logs, "the input cannot be used") {
		t.Errorf("the log blames the input:\n%s", logs)
	}
	d.kill()
	d.start()
	d.awaitRunning()
	says("away      "+at+", since ", "1 pod that it had before weir started stays", "10.11.0.1:8080")
	serves("the same after a restart", "10.11.0.1")
	serveCRI(t, filepath.Join(dir, "b"), onePodCRI{address: "10.11.0.2"})
	serves("the other one", "10.11.0.2")
	d.awaitLog(at + ` is away no more`)
	d.await("status to tell of nothing", func() error {
		if s := d.status(); strings.Contains(s, "away") {
			return fmt.Errorf("it says\n%s", s)
		}
		return nil
	})
	write("docker=/c")
	serves("one of another kind, which is away")
	says("away      docker at "+dir+"/c", "no pod of it is known")
}

// containsAll returns nil if the text contains all these.
func containsAll(text string, all []string) error {
	for _, want := range all {
		if !strings.Contains(text, want) {
			return fmt.Errorf("no %q in\n%s", want, text)
		}
	}
	return nil
}

// hasEndpoints returns nil if the rules have of these addresses exactly those that are wanted.
func (d *daemon) hasEndpoints(want []string, among ...string) error {
	rules := d.nodeExec("nft", "list", "ruleset")
	for _, address := range among {
		if strings.Contains(rules, address) != slices.Contains(want, address) {
			return fmt.Errorf("not %v:\n%s", want, rules)
		}
	}
	return nil
}

// TestCleanupWithoutRecord gives weir cleanup another state directory than weir run had.
func TestCleanupWithoutRecord(t *testing.T) {
	t.Parallel()
	netlab.RequireProgram(t, "unshare")
	d := newDaemon(t, netlab.New(t, netlab.Topology{Pods: 1}), modes[0])
	d.nodeExec("sh", "-c", "echo 0 >/proc/sys/"+ipForward)
	d.write(map[string]string{"web.yaml": selectingWeb})
	d.start()
	d.awaitSync()
	d.awaitParameter(ipForward, "1")
	d.kill()
	cleanup := func(usual, state string, args ...string) (string, error) {
		script := "mount -t tmpfs lib /var/lib && mkdir -p /var/lib/weir" + map[bool]string{true: " && mount --bind " + usual + " /var/lib/weir"}[usual != ""] + ` && exec "$@"`
		line := append([]string{"unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh"}, d.line(append([]string{"cleanup", "--state-dir", state}, args...)...)...)
		cmd := d.lab.Node().Command(t.Context(), line[0], line[1:]...)
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := d.lab.Node().Start(cmd); err != nil {
			return "", err
		}
		err := cmd.Wait()
		return out.String(), err
	}
	other := t.TempDir()
	const notice = " has no record of the values that kernel parameters and bridge ports of this node had"
	if out, err := cleanup("", other, "--dry-run"); err != nil || !strings.Contains(out, "notice: "+other+notice) {
		t.Errorf("--dry-run: %v\n%s", err, out)
	}
	if out, err := cleanup(d.state, other); err == nil || !strings.Contains(out, other+notice) || !strings.Contains(out, "/var/lib/weir has: weir cleanup --state-dir /var/lib/weir") {
		t.Errorf("with the record at the usual place: %v\n%s", err, out)
	}
	d.awaitParameter(ipForward, "1")
	if out, err := cleanup("", d.state); err != nil || strings.Contains(out, "notice") {
		t.Errorf("with the right one: %v\n%s", err, out)
	}
	d.awaitParameter(ipForward, "0")
	if out, err := cleanup("", other); err != nil || strings.Contains(out, "notice") {
		t.Errorf("with nothing left: %v\n%s", err, out)
	}
}
