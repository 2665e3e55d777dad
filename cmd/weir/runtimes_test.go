package main_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	kubelet "k8s.io/kubelet/pkg/apis/pods/v1alpha1"

	"weir/backends/netlab"
)

// onePodCRI is a runtime that runs one pod, as a kubelet has it run one.
type onePodCRI struct {
	cri.UnimplementedRuntimeServiceServer
	address string
}

func (onePodCRI) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{RuntimeName: "fake"}, nil
}

func (r onePodCRI) ListPodSandbox(context.Context, *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	return &cri.ListPodSandboxResponse{Items: []*cri.PodSandbox{{
		Id: "s", Metadata: &cri.PodSandboxMetadata{Namespace: "default", Name: "web-node", Uid: "u" + r.address}, Labels: map[string]string{"app": "web"},
	}}}, nil
}

func (onePodCRI) ListContainers(context.Context, *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	return &cri.ListContainersResponse{Containers: []*cri.Container{{
		Id: "c", PodSandboxId: "s", Metadata: &cri.ContainerMetadata{Name: "server"}, State: cri.ContainerState_CONTAINER_RUNNING,
	}}}, nil
}

func (r onePodCRI) PodSandboxStatus(context.Context, *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	return &cri.PodSandboxStatusResponse{Status: &cri.PodSandboxStatus{Id: "s", Network: &cri.PodSandboxNetworkStatus{Ip: r.address}}}, nil
}

// onePodKubelet is a kubelet with the same pod, which is not ready by its word.
type onePodKubelet struct {
	kubelet.UnimplementedPodsServer
}

func (onePodKubelet) ListPods(context.Context, *kubelet.ListPodsRequest) (*kubelet.ListPodsResponse, error) {
	pod := corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web-node", UID: "u10.0.0.7", Labels: map[string]string{"app": "web"}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: "10.0.0.7"}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse}}},
	}
	raw, err := pod.Marshal()
	return &kubelet.ListPodsResponse{Pods: [][]byte{raw}}, err
}

// TestRuntimesAreFound has sockets at the usual places, in a /run and a /var/lib of the test.
func TestRuntimesAreFound(t *testing.T) {
	t.Parallel()
	netlab.Require(t)
	netlab.RequireProgram(t, "unshare")
	dir, err := os.MkdirTemp("", "found") // a short path
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	serve := func(name string, register func(*grpc.Server)) string {
		path := filepath.Join(dir, name)
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		s := grpc.NewServer()
		register(s)
		go func() { _ = s.Serve(l) }()
		t.Cleanup(s.Stop)
		return path
	}
	docker := serve("docker", func(*grpc.Server) {}) // docker's containerd has no CRI
	runtime := serve("cri", func(s *grpc.Server) { cri.RegisterRuntimeServiceServer(s, onePodCRI{address: "10.0.0.7"}) })
	node := serve("kubelet", func(s *grpc.Server) { kubelet.RegisterPodsServer(s, onePodKubelet{}) })
	const containerdAt, crioAt, kubeletAt = "/run/containerd/containerd.sock", "/run/crio/crio.sock", "/var/lib/kubelet/pods-api/pods-api.sock"
	weirWith := func(sockets map[string]string, args ...string) string {
		script := "mount -t tmpfs run /run && mount -t tmpfs lib /var/lib"
		for at, socket := range sockets {
			script += " && mkdir -p " + filepath.Dir(at) + " && ln -s " + socket + " " + at
		}
		cmd := exec.CommandContext(t.Context(), "unshare", append([]string{"-m", "--propagation", "private", "sh", "-c", script + ` && exec "$@"`, "sh", os.Getenv(binaryEnv)}, args...)...)
		out, _ := cmd.CombinedOutput()
		return string(out)
	}
	const head = "POD                STATE       ADDRESSES   RUNTIME   SERVICES\n"
	for _, test := range []struct {
		sockets map[string]string
		want    string
	}{
		{map[string]string{containerdAt: docker}, "error: no container runtime is at /run/podman/podman.sock, /run/docker.sock, " + kubeletAt + ", " + containerdAt + ", " + crioAt},
		{map[string]string{crioAt: runtime, containerdAt: docker}, "POD                STATE   ADDRESSES   RUNTIME   SERVICES\ndefault/web-node   ready   10.0.0.7    cri       -\n"},
		{map[string]string{containerdAt: runtime, kubeletAt: node}, head + "default/web-node   not ready   10.0.0.7    kubelet   -\n"},
	} {
		if got := weirWith(test.sockets, "discover"); !strings.HasPrefix(got, test.want) {
			t.Errorf("with %v weir discover printed\n%s", test.sockets, got)
		}
	}
	doctor := weirWith(map[string]string{containerdAt: runtime, kubeletAt: node}, "doctor")
	if !strings.Contains(doctor, "pods of kubelet at "+kubeletAt) || strings.Contains(doctor, "pods of cri") {
		t.Errorf("weir doctor printed\n%s", doctor)
	}

	// Asked for both, weir takes the kubelet's word.
	file := filepath.Join(dir, "web.yaml")
	if err := os.WriteFile(file, []byte(selectingWeb), 0o600); err != nil {
		t.Fatal(err)
	}
	both := weir(t, "", "discover", "-f", file, "--pod-source", "cri="+runtime, "--pod-source", "kubelet="+node).stdout
	if !strings.Contains(both, "default/web   app=web   10.0.0.7 (not ready)\n") {
		t.Errorf("of both, weir discover printed\n%s", both)
	}

	for what, want := range map[string]string{
		"cri":         "give the socket too, such as cri=unix:///run/containerd/containerd.sock",
		"kubelet=x":   `"x" is not the path of a socket, such as unix:///var/lib/kubelet/pods-api/pods-api.sock`,
		"crio=unix:/": `"crio" is not podman, docker, kubelet or cri`,
	} {
		if r := weir(t, "", "discover", "--pod-source", what); r.code != 2 || !strings.Contains(r.stderr, want) {
			t.Errorf("--pod-source %s: exit %d, %s", what, r.code, r.stderr)
		}
	}
}

// TestPodSourcesInConfiguration changes the sources of pods in the configuration while weir runs.
func TestPodSourcesInConfiguration(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "sources") // a short path
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	for name, address := range map[string]string{"a": "10.11.0.1", "b": "10.11.0.2"} {
		l, err := net.Listen("unix", filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		s := grpc.NewServer()
		cri.RegisterRuntimeServiceServer(s, onePodCRI{address: address})
		go func() { _ = s.Serve(l) }()
		t.Cleanup(s.Stop)
	}
	d := newDaemon(t, netlab.New(t, netlab.Topology{Pods: 1}), modeNamed(t, "nftables"))
	write := func(sources string) {
		d.write(map[string]string{"weir.yaml": "apiVersion: weir/v1alpha1\nkind: WeirConfiguration\npodSources: [" + strings.ReplaceAll(sources, "/", dir+"/") + "]\n"})
	}
	serves := func(what string, want ...string) {
		t.Helper()
		d.await(what, func() error {
			rules := d.nodeExec("nft", "list", "ruleset")
			for _, address := range []string{"10.11.0.1", "10.11.0.2"} {
				if strings.Contains(rules, address) != slices.Contains(want, address) {
					return fmt.Errorf("not %v:\n%s", want, rules)
				}
			}
			return nil
		})
	}
	write("none")
	d.write(map[string]string{"web.yaml": selectingWeb})
	d.start()
	d.awaitRunning()
	serves("no source")
	write("cri=/a")
	serves("the first source", "10.11.0.1")
	write("cri=/a, cri=/b")
	serves("both", "10.11.0.1", "10.11.0.2")
	write("cri=/b")
	serves("the second one", "10.11.0.2")
	write("cri=/b, nothing=/a")
	d.await("word of what is wrong", func() error {
		if out := d.status(); !strings.Contains(out, `weir.yaml:3: WeirConfiguration: podSources[1]: "nothing" is not podman`) {
			return fmt.Errorf("weir status says\n%s", out)
		}
		return nil
	})
	serves("what was right before", "10.11.0.2")
	write("none")
	serves("no source any more")
}

// TestRuntimeComesLater starts weir before any runtime is there. One that comes is asked for its pods, and when it is away while
// weir starts again, what it said last stands.
func TestRuntimeComesLater(t *testing.T) {
	t.Parallel()
	netlab.RequireProgram(t, "unshare")
	d := newDaemon(t, netlab.New(t, netlab.Topology{Pods: 1}), modes[2])
	d.write(map[string]string{"web.yaml": selectingWeb})
	crio := t.TempDir()
	start := func() {
		script := "mount -t tmpfs run /run && ln -s " + crio + ` /run/crio && exec "$@"`
		line := append([]string{"unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh"}, d.line(d.args("run")...)...)
		d.launch(d.lab.Node().Command(context.Background(), line[0], line[1:]...))
		d.awaitLog("synced")
	}
	has := func(want bool) error {
		rules, err := d.lab.Node().Exec(t.Context(), "nft", "list", "ruleset")
		if err == nil && strings.Contains(rules, "10.0.0.7") != want {
			err = fmt.Errorf("that the endpoint is programmed is %t", !want)
		}
		return err
	}
	start()
	if err := has(false); err != nil {
		t.Error(err)
	}
	l, err := net.Listen("unix", filepath.Join(crio, "crio.sock"))
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	cri.RegisterRuntimeServiceServer(s, onePodCRI{address: "10.0.0.7"})
	go func() { _ = s.Serve(l) }()
	d.await("a runtime that came", func() error { return has(true) })
	d.kill()
	s.Stop() // removes the socket
	start()
	d.awaitLog("/run/crio/crio.sock")
	if err := has(true); err != nil {
		t.Errorf("with the runtime away: %v", err)
	}
}
