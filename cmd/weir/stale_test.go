package main_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"weir/backends/netlab"
)

// brokenService is a Service that no revision can have.
const brokenService = "apiVersion: v1\nkind: Service\nmetadata: {name: broken}\nspec: {ports: [{port: 0}]}\n"

// weir runs a subcommand that only takes a state directory, and returns all that it prints.
func (d *daemon) weir(args ...string) (string, error) {
	line := d.line(append(args, "--state-dir", d.state)...)
	cmd := d.lab.Node().Command(context.Background(), line[0], line[1:]...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := d.lab.Node().Start(cmd); err != nil {
		return "", err
	}
	err := cmd.Wait()
	return out.String(), err
}

// awaitStatus waits until weir status prints all of the parts.
func (d *daemon) awaitStatus(parts ...string) {
	d.t.Helper()
	d.await("the status", func() error {
		out, err := d.weir("status")
		for _, part := range parts {
			if !strings.Contains(out, part) {
				err = errors.Join(err, fmt.Errorf("%q is missing in\n%s", part, out))
			}
		}
		return err
	})
}

// reboot ends weir and empties the kernel, as a reboot does.
func (d *daemon) reboot() {
	d.t.Helper()
	if d.cmd != nil {
		d.kill()
	}
	if out, err := d.cleanup(); err != nil {
		d.t.Fatalf("%v\n%s", err, out)
	}
}

// TestNeverStartsEmpty reboots a node whose input cannot be used then, for each reason that there may be: the last good state
// is in force, told as such, and healed by the next good input.
func TestNeverStartsEmpty(t *testing.T) {
	for _, m := range []mode{modes[0], modes[2], modes[4]} {
		t.Run(m.name, func(t *testing.T) {
			d := painDaemon(t, m)
			d.start()
			d.awaitAnswer("pod1")
			away := d.dir + ".away"
			for i, c := range []struct {
				name        string
				break_, fix func() error
				why         string
			}{
				{"invalid", func() error { d.write(map[string]string{"broken.yaml": brokenService}); return nil },
					func() error { d.write(map[string]string{"broken.yaml": ""}); return nil }, "broken.yaml:4: Service default/broken: spec.ports[0].port"},
				{"missing", func() error { return os.Rename(d.dir, away) }, func() error { return os.Rename(away, d.dir) }, "does not exist"},
				{"unreadable", func() error { return errors.Join(os.Rename(d.dir, away), syscall.Mkfifo(d.dir, 0o600)) },
					func() error { return errors.Join(os.Remove(d.dir), os.Rename(away, d.dir)) }, "not a regular file"},
			} {
				pod := fmt.Sprintf("pod%d", i+1)
				d.reboot()
				if err := c.break_(); err != nil {
					t.Fatal(err)
				}
				d.start()
				d.awaitAnswer(pod)
				d.awaitStatus("-stale\n", "kept      ", "refused   revision ", c.why)
				d.expectHTTP("http://127.0.0.1:10256/healthz", 200, c.why)
				d.expectHTTP("http://127.0.0.1:10249/metrics", 200, "weir_config_last_reload_successful 0")
				if log := d.logs(); !strings.Contains(log, "using its last good state") || !strings.Contains(log, c.why) {
					t.Errorf("%s: the log does not tell", c.name)
				}
				if err := c.fix(); err != nil {
					t.Fatal(err)
				}
				pod = fmt.Sprintf("pod%d", (i+1)%3+1)
				d.write(map[string]string{"slice.yaml": painSlice((i+1)%3 + 1)})
				d.awaitAnswer(pod)
				d.expectHTTP("http://127.0.0.1:10249/metrics", 200, "weir_kept_revision_timestamp_seconds 0\n")
				d.await("the last good state on disk", func() error { // it is written at most once a second
					text, err := os.ReadFile(filepath.Join(d.state, "files-snapshot"))
					if err == nil && !strings.Contains(string(text), netlab.PodIPv4((i+1)%3+1).String()) {
						err = errors.New("the last state is not kept yet")
					}
					return err
				})
			}
		})
	}
}

// exitCode returns the exit code of a command that was run, or 0.
func exitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return 0
}

// TestRefusedFromTheStart begins with an input that was never good, in every state that the kernel and the state directory may
// be in, and asks all that can be asked.
func TestRefusedFromTheStart(t *testing.T) {
	d := painDaemon(t, modes[2])
	const health, metrics = "http://127.0.0.1:10300", "http://127.0.0.1:10301"
	config := painConfig + "healthzBindAddress: 127.0.0.1:10300\nmetricsBindAddress: 127.0.0.1:10301\n"
	d.write(map[string]string{"config.yaml": config, "broken.yaml": brokenService})
	if out, err := d.weir("status"); err == nil || !strings.Contains(out, "no weir run is listening") {
		t.Errorf("before the start: %v: %s", err, out)
	}

	// Nothing is in force, at the addresses that the valid part of the input names.
	began := time.Now()
	d.start()
	d.expectHTTP(health+"/livez", 200, `"inForce":"nothing"`)
	d.expectHTTP(health+"/healthz", 503, `"refusedSince":"`)
	d.expectHTTP(metrics+"/metrics", 200, "weir_config_reloads_total{result=\"failure\"} 1\n")
	d.awaitStatus("in force  nothing\n", "refused   revision ", "broken.yaml:4: Service default/broken")
	t.Logf("everything answered %v after the start", time.Since(began).Round(time.Millisecond))

	// It heals, and what it programmed stays in force when it is restarted with an input that is refused.
	d.write(map[string]string{"broken.yaml": ""})
	d.awaitAnswer("pod1")
	d.expectHTTP(health+"/healthz", 200, `"inForce":"revision `)
	d.terminate()
	old, err := os.ReadFile(filepath.Join(d.state, "files-snapshot"))
	if err != nil {
		t.Fatal(err)
	}
	d.write(map[string]string{"slice.yaml": painSlice(2)})
	d.start()
	d.awaitAnswer("pod2")
	d.kill()
	// What was kept is older than what the kernel holds, as after a disk was full.
	if err := os.WriteFile(filepath.Join(d.state, "files-snapshot"), old, 0o600); err != nil {
		t.Fatal(err)
	}
	d.write(map[string]string{"config.yaml": painConfig + "mode: [\n"})
	d.start()
	d.expectHTTP("http://127.0.0.1:10256/healthz", 200, `"inForce":"what an earlier run programmed in nftables mode, revision sha256:`)
	d.awaitStatus("in force  what an earlier run programmed in nftables mode, revision sha256:", "refused   revision ")
	if err := d.answers("pod2"); err != nil {
		t.Errorf("what the kernel held does not stand: %v", err)
	}

	// A kept state that others may have written is not used.
	if err := os.Chmod(filepath.Join(d.state, "files-snapshot"), 0o666); err != nil {
		t.Fatal(err)
	}
	d.reboot()
	d.start()
	d.expectHTTP("http://127.0.0.1:10256/healthz", 503, `"inForce":"nothing"`)
	if log := d.logs(); !strings.Contains(log, "has mode 0666, so that others could have changed it") {
		t.Error("the log does not say why the kept state is not used")
	}
	if out, err := d.weir("snapshot"); err != nil || strings.Contains(out, "10.96.0.10") {
		t.Errorf("the snapshot of nothing: %v: %s", err, out)
	}
	d.terminate()
}

// TestDamagedFileIsNotADeletion starts, as after a crash of the node, with a Service's file that holds nothing of it any more,
// among files that are fine: the Service stays in force, with what the kernel holds and without, until the file is mended or
// removed.
func TestDamagedFileIsNotADeletion(t *testing.T) {
	d := painDaemon(t, modes[2])
	d.write(map[string]string{"other.yaml": strings.NewReplacer("web", "other", "10.96.0.10", "10.96.0.20").Replace(painService)})
	d.start()
	d.awaitAnswer("pod1")
	file := filepath.Join(d.dir, "web.yaml")
	const empty, changed = "web.yaml:1: is empty, and held Service default/web", "Service default/web: was here when the input was last good"
	for i, damage := range []struct {
		name, why string
		do        func() error
	}{
		{"nothing", empty, func() error { return os.WriteFile(file, nil, 0o644) }},
		{"zeros", empty, func() error { return os.WriteFile(file, make([]byte, 512), 0o644) }},
		{"another file's text", "web.yaml:1: is no complete object of Kubernetes, and held Service default/web", func() error { return os.WriteFile(file, []byte("some: text\n"), 0o644) }},
		{"a FIFO", "web.yaml: " + changed, func() error { return errors.Join(os.Remove(file), syscall.Mkfifo(file, 0o644)) }},
		{"a link to nothing", "web.yaml: " + changed, func() error { return errors.Join(os.Remove(file), os.Symlink("nowhere.yaml", file)) }},
	} {
		d.terminate()
		if err := damage.do(); err != nil {
			t.Fatal(err)
		}
		if i%2 == 1 {
			if out, err := d.cleanup(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		}
		d.start()
		d.awaitStatus("-stale\n", "refused   revision ", damage.why)
		d.awaitAnswer("pod1")
		if err := os.Remove(file); err != nil { // what is in place may be a FIFO
			t.Fatal(err)
		}
		d.write(map[string]string{"web.yaml": painService, "slice.yaml": painSlice(i%3 + 1)})
		d.awaitAnswer(fmt.Sprintf("pod%d", i%3+1))
		d.write(map[string]string{"slice.yaml": painSlice(1)})
		d.awaitAnswer("pod1")
	}
	d.terminate()
	d.write(map[string]string{"web.yaml": "", "slice.yaml": ""})
	d.start()
	d.await("the Service to go with its file", func() error {
		if s, err := d.weir("status"); err != nil || strings.Contains(s, "default/web") || strings.Contains(s, "refused") {
			return fmt.Errorf("%v: %s", err, s)
		}
		return nil
	})
}

// TestHungRead starts with a file that is regular by stat and whose read does not come back, as on a hung mount: it is named,
// the last good state is in force, and SIGTERM ends weir. Beside other files, those are followed.
func TestHungRead(t *testing.T) {
	const hung = "/proc/kmsg"
	netlab.RequireRoot(t, "read the kernel's log")
	f, err := os.Open(hung)
	if err != nil {
		netlab.Missing(t, "without CAP_SYSLOG: %v", err)
	}
	f.Close()
	d := painDaemon(t, modes[2])
	d.start()
	d.awaitAnswer("pod1")
	d.reboot()
	d.flags = []string{"-f", hung}
	d.start()
	d.awaitAnswer("pod1")
	d.awaitStatus("-stale\n", hung+": reading it has not come back for 5s")
	d.expectHTTP("http://127.0.0.1:10256/livez", 200, hung)
	began := time.Now()
	d.terminate()
	t.Logf("ended %v after SIGTERM", time.Since(began).Round(time.Millisecond))

	// Beside it, everything else is followed.
	d.write(map[string]string{"slice.yaml": painSlice(2)})
	d.flags = []string{"-f", d.dir, "-f", hung}
	d.start()
	d.awaitAnswer("pod2")
	d.awaitStatus("-stale\n", "not read  since ", hung+": reading it has not come back for 5s")
	d.write(map[string]string{"slice.yaml": painSlice(3)})
	d.awaitAnswer("pod3")
	d.expectHTTP("http://127.0.0.1:10256/livez", 200, hung)
	d.terminate()
}

// TestSnapshotOfNothing prints a snapshot after the end of weir, while the kernel holds it and after it does not any more.
func TestSnapshotOfNothing(t *testing.T) {
	d := painDaemon(t, modes[2])
	d.start()
	d.awaitAnswer("pod1")
	d.terminate()
	if out, err := d.weir("snapshot"); err != nil || !strings.Contains(out, "10.96.0.10") {
		t.Errorf("after the end: %v: %s", err, out)
	}
	d.reboot() // or weir cleanup: the record is there, and the kernel is empty
	if out, err := d.weir("snapshot"); exitCode(err) != 3 || !strings.Contains(out, "the kernel does not hold") || strings.Contains(out, "10.96.0.10") {
		t.Errorf("after a cleanup: %v: %s", err, out)
	}
}
