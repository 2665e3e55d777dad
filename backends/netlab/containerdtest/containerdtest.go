// Package containerdtest runs containerd for tests, with everything that it writes in a directory of the test or in a mount
// namespace of its own. The networks of its pods are those of the network namespace that the test runs in. Only tests import it.
package containerdtest

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"weir/backends/netlab"
)

const (
	// Image is an image whose command serves the name of its host over HTTP at port 8080.
	Image = "localhost/weir-test:1"
	// pause is the image that keeps the network of a pod.
	pause = "localhost/weir-pause:1"
	// Bridge is the bridge that the pods are on.
	Bridge = "cni0"
	// annotationPorts is where the kubelet writes the ports of a container.
	annotationPorts = "io.kubernetes.container.ports"
)

// Containerd is a containerd of a test.
type Containerd struct {
	// Socket is the path of its socket.
	Socket string
	// Runtime is a client of it.
	Runtime cri.RuntimeServiceClient
	dir     string
	start   func(*exec.Cmd) error
	holder  *exec.Cmd // keeps the mount namespace
	daemon  *exec.Cmd
	conn    *grpc.ClientConn
}

// New starts containerd with Image. start starts a process in the network namespace that containerd is to work in;
// (*exec.Cmd).Start does for that of the test. New skips the test without root of the system.
func New(t testing.TB, start func(*exec.Cmd) error) *Containerd {
	t.Helper()
	netlab.RequireFull(t)
	netlab.Require(t)
	netlab.RequireRoot(t, "run containers as containerd is configured here")
	for _, program := range []string{"containerd", "ctr", "runc", "busybox", "unshare", "nsenter"} {
		netlab.RequireProgram(t, program)
	}
	dir, err := os.MkdirTemp("", "containerd") // a short path: that of a socket has 107 characters at most
	if err != nil {
		t.Fatal(err)
	}
	c := &Containerd{dir: dir, Socket: filepath.Join(dir, "containerd.sock"), start: start}
	t.Cleanup(func() { c.remove(t) })
	c.configure(t)
	// What containerd and its shims keep in fixed places under /run is theirs alone.
	c.holder = exec.Command("unshare", "-m", "--propagation", "private", "sh", "-c", "mount -t tmpfs run /run && echo ready && exec sleep 1000000")
	ready, err := c.holder.StdoutPipe()
	if err == nil {
		err = start(c.holder)
	}
	if err == nil {
		_, err = ready.Read(make([]byte, 1))
	}
	if err != nil {
		t.Fatalf("a mount namespace for containerd: %v", err)
	}
	if c.conn, err = grpc.NewClient("unix://"+c.Socket, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		t.Fatal(err)
	}
	c.Runtime = cri.NewRuntimeServiceClient(c.conn)
	c.Serve(t)
	c.load(t)
	return c
}

func (c *Containerd) configure(t testing.TB) {
	t.Helper()
	plugins := "/usr/lib/cni" // Debian's
	if _, err := os.Stat(filepath.Join(plugins, "bridge")); err != nil {
		plugins = "/opt/cni/bin"
	}
	config := `version = 2
root = "DIR/root"
state = "DIR/state"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "DIR/containerd.sock"
[ttrpc]
  address = "DIR/containerd.sock.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
  disable_apparmor = true
  restrict_oom_score_adj = true
  sandbox_image = "` + pause + `"
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "` + plugins + `"
    conf_dir = "DIR/net.d"
`
	network := `{"cniVersion": "0.4.0", "name": "weir", "plugins": [{"type": "bridge", "bridge": "` + Bridge + `", "isGateway": true, "hairpinMode": true,
"ipam": {"type": "host-local", "dataDir": "DIR/ipam", "ranges": [[{"subnet": "10.90.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}`
	if err := os.Mkdir(filepath.Join(c.dir, "net.d"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"config.toml": config, "net.d/10-weir.conflist": network} {
		if err := os.WriteFile(filepath.Join(c.dir, name), []byte(strings.ReplaceAll(text, "DIR", c.dir)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// inside returns a command in the mount namespace of containerd.
func (c *Containerd) inside(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"-t", fmt.Sprint(c.holder.Process.Pid), "-m", "--"}, args...)...)
}

// Serve starts the daemon, and waits until it answers.
func (c *Containerd) Serve(t testing.TB) {
	t.Helper()
	if err := c.serve(); err != nil {
		t.Fatalf("containerd: %v\n%s", err, c.tail())
	}
}

func (c *Containerd) serve() error {
	log, err := os.OpenFile(filepath.Join(c.dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	daemon := c.inside(context.Background(), "containerd", "-c", filepath.Join(c.dir, "config.toml"))
	daemon.Stdout, daemon.Stderr = log, log
	if err := c.start(daemon); err != nil {
		return err
	}
	c.daemon = daemon
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		c.conn.ResetConnectBackoff()
		s, err := c.Runtime.Status(context.Background(), &cri.StatusRequest{})
		if err == nil && !slices.ContainsFunc(s.GetStatus().GetConditions(), func(c *cri.RuntimeCondition) bool { return !c.Status }) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("is not ready: %v, %w", s, err)
		}
	}
}

// Stop ends the daemon, and not what it runs.
func (c *Containerd) Stop() {
	if c.daemon != nil {
		_ = c.daemon.Process.Kill()
		_ = c.daemon.Wait()
		_ = os.Remove(c.Socket)
		c.daemon = nil
	}
}

// tail returns the end of what containerd logged.
func (c *Containerd) tail() string {
	text, _ := os.ReadFile(filepath.Join(c.dir, "log"))
	return string(text[max(0, len(text)-4<<10):])
}

// load imports the images, of one layer with busybox.
func (c *Containerd) load(t testing.TB) {
	t.Helper()
	var err error
	layer := netlab.RootFS(t)
	files := map[string][]byte{"layer.tar": layer}
	var manifest []map[string]any
	for name, command := range map[string][]string{
		pause: {"/bin/busybox", "sleep", "1000000"},
		Image: {"/bin/sh", "-c", "/bin/busybox hostname > /www/index.html; exec /bin/busybox httpd -f -p 8080 -h /www"},
	} {
		config := fmt.Sprintf("%x.json", sha256.Sum256([]byte(name)))
		files[config], err = json.Marshal(map[string]any{
			"architecture": "amd64", "os": "linux", "config": map[string]any{"Cmd": command},
			"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
		})
		if err != nil {
			t.Fatal(err)
		}
		manifest = append(manifest, map[string]any{"Config": config, "RepoTags": []string{name}, "Layers": []string{"layer.tar"}})
	}
	if files["manifest.json"], err = json.Marshal(manifest); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for name, content := range files {
		_ = w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))})
		_, _ = w.Write(content)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := c.inside(ctx, "ctr", "-a", c.Socket, "-n", "k8s.io", "images", "import", "--snapshotter", "native", "-")
	cmd.Stdin = &archive
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("ctr images import: %v\n%s", err, out)
	}
}

// Pod is a pod to run.
type Pod struct {
	Name   string
	Labels map[string]string
	// Ports is the list of ports that the kubelet would write for the container, in JSON.
	Ports string
	// HostNetwork has the pod in the network of the node.
	HostNetwork bool
	// Command replaces the command of Image.
	Command []string
	Attempt uint32
}

// Run runs a pod as a kubelet does, and returns its sandbox and its container.
func (c *Containerd) Run(t testing.TB, p Pod) (sandbox, container string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	config := p.sandbox()
	s, err := c.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatalf("pod %s: %v\n%s", p.Name, err, c.tail())
	}
	return s.PodSandboxId, c.Start(t, s.PodSandboxId, p)
}

func (p Pod) sandbox() *cri.PodSandboxConfig {
	config := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: p.Name, Namespace: "default", Uid: "uid-of-" + p.Name, Attempt: p.Attempt}, Hostname: p.Name,
		Labels: map[string]string{"io.kubernetes.pod.name": p.Name, "io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": "uid-of-" + p.Name},
		Linux:  &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{}}},
	}
	for k, v := range p.Labels {
		config.Labels[k] = v
	}
	if p.HostNetwork {
		config.Hostname = ""
		config.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	}
	return config
}

// Start starts a container in a sandbox.
func (c *Containerd) Start(t testing.TB, sandbox string, p Pod) (container string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "server", Attempt: p.Attempt}, Image: &cri.ImageSpec{Image: Image}, Command: p.Command, Annotations: map[string]string{},
	}
	if p.Ports != "" {
		config.Annotations[annotationPorts] = p.Ports
	}
	created, err := c.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: sandbox, Config: config, SandboxConfig: p.sandbox()})
	if err == nil {
		container = created.ContainerId
		_, err = c.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: container})
	}
	if err != nil {
		t.Fatalf("a container of pod %s: %v\n%s", p.Name, err, c.tail())
	}
	return container
}

// Kill ends a container as the kernel would, with SIGKILL.
func (c *Containerd) Kill(t testing.TB, container string) {
	t.Helper()
	if out, err := c.inside(t.Context(), "ctr", "-a", c.Socket, "-n", "k8s.io", "tasks", "kill", "-s", "SIGKILL", container).CombinedOutput(); err != nil {
		t.Fatalf("ctr tasks kill: %v\n%s", err, out)
	}
}

// Remove ends a pod and removes it.
func (c *Containerd) Remove(t testing.TB, sandbox string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := c.removePod(ctx, sandbox); err != nil {
		t.Fatalf("%v\n%s", err, c.tail())
	}
}

func (c *Containerd) removePod(ctx context.Context, sandbox string) error {
	_, err := c.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: sandbox})
	if err == nil {
		_, err = c.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: sandbox})
	}
	return err
}

// remove ends everything that containerd runs, since nothing else would.
func (c *Containerd) remove(t testing.TB) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if c.Runtime != nil {
		var err error
		if c.daemon == nil {
			err = c.serve()
		}
		pods, _ := c.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
		for _, p := range pods.GetItems() {
			err = errors.Join(err, c.removePod(ctx, p.Id))
		}
		if err != nil {
			t.Logf("containerd: %v\n%s", err, c.tail())
		}
		c.conn.Close()
	}
	c.Stop()
	if c.holder != nil && c.holder.Process != nil {
		_ = c.holder.Process.Kill()
		_ = c.holder.Wait()
	}
	for deadline := time.Now().Add(10 * time.Second); os.RemoveAll(c.dir) != nil && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
	}
}
