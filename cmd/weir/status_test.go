package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weir/backends/netlab"
)

// TestStatusOfDaemon asks a running weir, and the same once it is gone.
func TestStatusOfDaemon(t *testing.T) {
	t.Parallel()
	d := newRunDaemon(t)
	ask := func(args ...string) (string, error) { // on the node, since other tests have a weir in the test's own namespace
		cmd := d.lab.Node().Command(context.Background(), os.Getenv(binaryEnv), append(args, "--state-dir", d.state)...)
		var out []byte
		err := d.lab.Node().Do(func() (err error) {
			out, err = cmd.Output()
			return err
		})
		return string(out), err
	}
	if _, err := ask("status"); err == nil || err.(*exec.ExitError).ExitCode() != 3 {
		t.Errorf("without a daemon: %v", err)
	}
	d.start()
	d.awaitSync()
	out, err := ask("status", "-o", "json")
	var s struct {
		Mode     string
		Services []struct{ Name string }
	}
	if err != nil || json.Unmarshal([]byte(out), &s) != nil || s.Mode != "iptables" || len(s.Services) != 1 {
		t.Fatalf("%v: %s", err, out)
	}
	name := s.Services[0].Name
	if out, err := ask("status", name); err != nil || !strings.Contains(out, "default/"+name) {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := ask("status", "nonesuch"); err == nil || err.(*exec.ExitError).ExitCode() != 1 {
		t.Errorf("a Service that is not there: %v", err)
	}
	snapshot, err := ask("snapshot")
	file := filepath.Join(t.TempDir(), "node.json")
	if err != nil || os.WriteFile(file, []byte(snapshot), 0o600) != nil {
		t.Fatal(err)
	}
	if out, err := d.run("reconcile", "--dry-run", "--against", file, "--exit-code"); err != nil {
		t.Errorf("against what is in force: %v: %s", err, out)
	}
	if out, err := d.run("reconcile", "--dry-run", "--exit-code"); err != nil {
		t.Errorf("against the kernel: %v: %s", err, out)
	}
	d.kill()
	if again, err := ask("snapshot"); err != nil || again != snapshot {
		t.Errorf("after a crash: %v: %s", err, again)
	}
}

// TestStatusTraffic counts connections, in a mode where the kernel counts them and in one where weir does.
func TestStatusTraffic(t *testing.T) {
	netlab.Require(t)
	for _, flags := range [][]string{{"--proxy-mode", "iptables", "--iptables-variant", "nft"}, {"--proxy-mode", "iptables", "--iptables-variant", "legacy"}, {"--proxy-mode", "userspace"}, {"--proxy-mode", "nftables"}, ipvsMode.flags} {
		t.Run(strings.Join(flags, " "), func(t *testing.T) {
			if flags[1] == ipvsMode.name {
				needIPVS(t)
			}
			t.Parallel()
			d := newRunDaemon(t)
			d.lab.Host("pod1").Serve(t, netlab.TCP, 8080)
			d.mode.flags = flags
			d.start()
			d.awaitSync()
			for range 5 {
				if r := d.lab.Host(netlab.Client).Probe(netlab.TCP, netip.MustParseAddrPort("10.96.0.10:80"), patience); r.Server != "pod1" {
					t.Fatal(r)
				}
			}
			want := "10.96.0.10:80; connections: 5\n"
			if flags[1] == "nftables" {
				want = `traffic   not known: "weir counts no connections in this proxy mode"`
			}
			d.await("status to say "+want, func() error { // IPVS sums its counters up every two seconds
				got := weir(t, "", "status", "web", "--traffic", "--state-dir", d.state)
				if got.code != 0 || !strings.Contains(got.stdout, want) {
					return fmt.Errorf("exit code %d: %s%s", got.code, got.stdout, got.stderr)
				}
				return nil
			})
		})
	}
}

// TestStatusWatch follows a daemon through a change and through an input that it refuses.
func TestStatusWatch(t *testing.T) {
	t.Parallel()
	d := newRunDaemon(t)
	d.start()
	d.awaitSync()
	cmd := exec.CommandContext(t.Context(), os.Getenv(binaryEnv), "status", "--watch", "--state-dir", d.state)
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	await := func(want string) {
		t.Helper()
		d.await("status to say "+want, func() error {
			text, err := os.ReadFile(out.Name())
			if err == nil && !strings.Contains(string(text), want) {
				err = fmt.Errorf("it says %s", text)
			}
			return err
		})
	}
	await("10.96.0.10:80\n        10.244.1.1:8080 local\n")
	d.write(map[string]string{"web.yaml": strings.ReplaceAll(webService, "10.244.1.1", "10.244.1.2")})
	await("10.96.0.10:80\n        10.244.1.2:8080 local\n")
	d.write(map[string]string{"web.yaml": strings.ReplaceAll(webService, "port: 80,", "prot: 80,")})
	await("the one above stays:\n          " + d.dir + "/web.yaml:6: Service default/web: spec.ports[0].port: 0: ")
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("interrupted, it ends with %v", err)
	}
}

// TestColour looks at a plan on a terminal, with and without the wish for plain text, and through a pipe.
func TestColour(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		env      string
		terminal bool
		want     bool
	}{{"TERM=xterm", true, true}, {"NO_COLOR=1", true, false}, {"TERM=dumb", true, false}, {"TERM=xterm", false, false}} {
		cmd := exec.CommandContext(t.Context(), os.Getenv(binaryEnv), "reconcile", "--dry-run", "-f", "../../testdata/plans/after.yaml", "--against", "../../testdata/plans/before.yaml")
		cmd.Env = append(os.Environ(), "NO_COLOR=", "TERM=xterm", tc.env)
		var text []byte
		var err error
		if tc.terminal {
			text, err = onTerminal(cmd)
		} else {
			text, err = cmd.Output()
		}
		if err != nil || !bytes.Contains(text, []byte("default/web")) || bytes.Contains(text, []byte("\x1b[")) != tc.want {
			t.Errorf("%+v: %v: %q", tc, err, text)
		}
	}
}

// onTerminal runs a command whose standard output is a terminal, and returns what it prints.
func onTerminal(cmd *exec.Cmd) ([]byte, error) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer master.Close()
	fd := int(master.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		return nil, err
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	cmd.Stdout = slave
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	text := make(chan []byte)
	go func() {
		all, _ := io.ReadAll(master) // it ends with an error once nobody has the other side
		text <- all
	}()
	err = errors.Join(cmd.Wait(), slave.Close())
	return <-text, err
}

// TestStatusSocketRemoved: a weir whose state directory was removed is not said to be absent, and makes its socket again.
func TestStatusSocketRemoved(t *testing.T) {
	t.Parallel()
	d := newRunDaemon(t)
	ask := func() (string, error) {
		cmd := d.lab.Node().Command(context.Background(), os.Getenv(binaryEnv), "status", "--state-dir", d.state)
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := d.lab.Node().Start(cmd); err != nil {
			return "", err
		}
		err := cmd.Wait()
		return out.String(), err
	}
	if out, err := ask(); err == nil || !strings.Contains(out, "no weir run is listening") || strings.Contains(out, "runs as weir") {
		t.Errorf("before the start: %v: %s", err, out)
	}
	d.start()
	d.awaitSync()
	if out, err := ask(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.Rename(d.state, filepath.Join(t.TempDir(), "gone")); err != nil { // at once, because weir may be writing
		t.Fatal(err)
	}
	want := fmt.Sprintf("process %d runs as weir in this network namespace but cannot be reached", d.cmd.Process.Pid)
	if out, err := ask(); err == nil || !strings.Contains(out, want) {
		t.Errorf("without its directory: %v: %s", err, out)
	}
	d.write(map[string]string{"web.yaml": strings.ReplaceAll(webService, "10.96.0.10", "10.96.0.77")})
	d.await("the socket", func() error {
		out, err := ask()
		if err == nil && !strings.Contains(out, "10.96.0.77:80") {
			err = errors.New(out)
		}
		return err
	})
}
