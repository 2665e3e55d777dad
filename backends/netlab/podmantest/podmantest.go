// Package podmantest runs podman for tests, with everything that it writes in a directory of the test. The networks of its
// pods are those of the network namespace that the test runs in. Only tests and the demo import it.
package podmantest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weir/backends/netlab"
)

// Image is an image whose command serves the name of its host over HTTP at port 8080.
const Image = "localhost/weir-test:1"

// Podman is a podman of a test.
type Podman struct {
	// Socket is the path of the socket of its service, once Serve was called.
	Socket string
	dir    string
	env    []string
	start  func(*exec.Cmd) error
}

// New prepares podman with Image. start starts a process in the network namespace that podman is to work in; (*exec.Cmd).Start
// does for that of the test. New skips the test without root of the system.
func New(t testing.TB, start func(*exec.Cmd) error) *Podman {
	t.Helper()
	netlab.RequireFull(t)
	netlab.Require(t)
	netlab.RequireRoot(t, "run containers as podman is configured here")
	netlab.RequireProgram(t, "podman")
	dir, err := os.MkdirTemp("", "podman") // a short path: podman allows 50 characters
	if err != nil {
		t.Fatal(err)
	}
	p := &Podman{dir: dir, Socket: filepath.Join(dir, "podman.sock"), start: start}
	conf := filepath.Join(dir, "containers.conf")
	// As its default, podman would ask for more descriptors than a test machine may allow, and would share locks in memory
	// with the podmans of other tests. It keeps two processes of each command that its API ran in a container, for 5 minutes.
	if err := os.WriteFile(conf, []byte("[containers]\ndefault_ulimits = [\"nofile=1024:1024\",\"nproc=1024:1024\"]\n[engine]\nexit_command_delay = 5\nevents_logger = \"file\"\nlock_type = \"file\"\n[network]\nnetwork_config_dir = \""+dir+"/networks\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.env = append(os.Environ(), "CONTAINERS_CONF="+conf)
	t.Cleanup(func() { p.remove(t); _ = os.RemoveAll(dir) })
	p.Import(t, Image, 8080)
	if out, err := p.output(t.Context(), nil, "run", "--rm", "--network", "host", Image, "/bin/busybox", "true"); err != nil {
		t.Fatalf("podman cannot run a container here: %v\n%s", err, out)
	}
	return p
}

// output runs a command of podman, and returns what it printed.
func (p *Podman) output(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	cmd := p.Command(ctx, args...)
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &out
	err := p.start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	return strings.TrimSpace(out.String()), err
}

// Import makes an image whose command serves the name of its host over HTTP at a port.
func (p *Podman) Import(t testing.TB, image string, port int) {
	t.Helper()
	serve := fmt.Sprintf(`CMD ["/bin/sh","-c","/bin/busybox hostname > /www/index.html; exec /bin/busybox httpd -f -p %d -h /www"]`, port)
	if out, err := p.output(t.Context(), bytes.NewReader(netlab.RootFS(t)), "import", "--change", serve, "-", image); err != nil {
		t.Fatalf("podman import: %v\n%s", err, out)
	}
}

// Command returns a command of podman.
func (p *Podman) Command(ctx context.Context, args ...string) *exec.Cmd {
	fixed := []string{"--cgroup-manager", "cgroupfs", "--root", p.dir + "/root", "--runroot", p.dir + "/run", "--tmpdir", p.dir + "/tmp"}
	if runc, err := exec.LookPath("runc"); err == nil {
		fixed = append(fixed, "--runtime", runc)
	}
	cmd := exec.CommandContext(ctx, "podman", append(fixed, args...)...)
	cmd.Env, cmd.Dir = p.env, p.dir
	return cmd
}

// Run runs a command of podman, and returns what it printed.
func (p *Podman) Run(t testing.TB, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	out, err := p.output(ctx, nil, args...)
	if err != nil {
		t.Fatalf("podman %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// Try is Run for a command that may fail.
func (p *Podman) Try(ctx context.Context, args ...string) (string, error) {
	return p.output(ctx, nil, args...)
}

// Play runs a manifest.
func (p *Podman) Play(t testing.TB, manifest string) {
	t.Helper()
	dir := t.TempDir() // next to a manifest podman looks for a directory to build the image from
	file := filepath.Join(dir, "play.yaml")
	if err := os.WriteFile(file, []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	p.Run(t, "play", "kube", file)
}

// Serve starts the service at Socket. The function that it returns ends the service.
func (p *Podman) Serve(t testing.TB) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := p.Command(ctx, "system", "service", "-t", "0", "unix://"+p.Socket)
	if err := p.start(cmd); err != nil {
		cancel()
		t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cancel()
			_ = cmd.Wait()
			_ = os.Remove(p.Socket)
		}
	}
	t.Cleanup(stop)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("unix", p.Socket)
		if err == nil {
			c.Close()
			return stop
		}
		if time.Now().After(deadline) {
			t.Fatal(fmt.Errorf("podman's service does not listen: %w", err))
		}
	}
}

// remove ends everything that podman runs, since nothing else would.
func (p *Podman) remove(t testing.TB) {
	for _, args := range [][]string{{"pod", "rm", "-f", "-a", "-t", "0"}, {"rm", "-f", "-a", "-t", "0"}, {"umount", "-a"}} {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		if out, err := p.output(ctx, nil, args...); err != nil {
			t.Logf("podman %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		cancel()
	}
}
