package main_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestBrokenInput does to the input of a running weir what accidents and attackers do. Each time weir says what is wrong
// and where, the kernel keeps every rule, traffic flows on, and what is put right is taken up.
func TestBrokenInput(t *testing.T) {
	d := painDaemon(t, iptablesMode("nft"))
	d.flags = append(d.flags, "--strict-tree") // otherwise garbage that is not of weir is no concern of it
	d.start()
	d.awaitSync()
	rules := d.ownRules()
	for _, tc := range []struct {
		name   string
		break_ func(dir string) error
		fix    func(dir string) error // default: remove x.yaml
		want   string
	}{
		{"FIFO", mkfifo("x.yaml"), nil, `x\.yaml: .*not a regular file`},
		{"device", symlink("/dev/zero", "x.yaml"), nil, `x\.yaml: .*leads out of the directory`},
		{"1 GB file", sparse("x.yaml"), nil, `x\.yaml: .*larger than`},
		{"symlink to itself", symlink("x.yaml", "x.yaml"), nil, `x\.yaml: .*leads to itself`},
		{"symlink to its own directory", symlink(".", "x.yaml"), nil, `x\.yaml: .*leads to itself or to a directory above`},
		{"garbage", fill("x.yaml", "\x00\x01\xfe\xff\n\x7f: [}"), nil, `x\.yaml:1: `},
		{"half of a file", fill("x.yaml", painService[:len(painService)/2]+"\n  ports: ["), nil, `x\.yaml:\d+: not YAML`},
		{"alias bomb", invalid("alias-bomb"), nil, `x\.yaml:1: .*aliases`},
		{"deep nesting", invalid("nested-deep"), nil, `x\.yaml:1: .*depth`},
		{"unfinished merge", invalid("merge-conflict"), nil, `x\.yaml:\d+: .*conflict markers`},
		{"a name with a rule in it", invalid("hostile-name-iptables"), nil, `x\.yaml:\d+: Service "default/web -j ACCEPT": metadata\.name`},
		{"a name with a line of rules in it", invalid("hostile-name-newline"), nil, `x\.yaml:\d+: Service "default/web\\n-A WEIR`},
		{"a name for the shell", invalid("hostile-name-shell"), nil, `x\.yaml:\d+: Service "default/web\$\(reboot\)"`},
		{"a name for the terminal", invalid("hostile-name-terminal"), nil, `x\.yaml:\d+: Service "default/\\x1b\[2J`},
		{"an interface with a rule in it", fill("config.yaml", painConfig+"detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: \"a -j DROP\"}\n"),
			fill("config.yaml", painConfig), `config\.yaml:\d+: KubeProxyConfiguration: detectLocal\.interfaceNamePrefix`},
		{"empty directory", hide("config.yaml", "web.yaml", "slice.yaml"), unhide("config.yaml", "web.yaml", "slice.yaml"), `no Service`},
		{"vanished directory", func(dir string) error { return os.Rename(dir, dir+".away") }, func(dir string) error { return os.Rename(dir+".away", dir) },
			`does not exist`},
		{"directory that becomes a FIFO", func(dir string) error { return errors.Join(os.Rename(dir, dir+".away"), unix.Mkfifo(dir, 0o600)) },
			func(dir string) error { return errors.Join(os.Remove(dir), os.Rename(dir+".away", dir)) }, `not a regular file`},
	} {
		read := len(d.logs())
		if err := tc.break_(d.dir); err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		re := regexp.MustCompile(`\[ERROR\].*` + tc.want)
		d.await(tc.name, func() error {
			if log := d.logs(); !re.MatchString(log[min(read, len(log)):]) {
				return fmt.Errorf("no line of the log matches %s", re)
			}
			return nil
		})
		if err := d.answers("pod1"); err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
		if got := d.ownRules(); got != rules {
			t.Errorf("%s: the rules changed:\n%s\nwere:\n%s", tc.name, got, rules)
		}
		fix := tc.fix
		if fix == nil {
			fix = func(dir string) error { return os.Remove(filepath.Join(dir, "x.yaml")) }
		}
		if err := fix(d.dir); err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		d.await(tc.name+" to heal", func() error {
			code, body, err := httpGet(d, "http://127.0.0.1:10256/healthz")
			if err == nil && (code != 200 || strings.Contains(body, "inputError")) {
				err = fmt.Errorf("%d %s", code, body)
			}
			return err
		})
	}
	if strings.Contains(d.logs(), "\x1b") {
		t.Error("the log has control characters of the input")
	}
	d.write(map[string]string{"slice.yaml": painSlice(2)})
	d.awaitAnswer("pod2")
}

func mkfifo(name string) func(string) error {
	return func(dir string) error { return unix.Mkfifo(filepath.Join(dir, name), 0o600) }
}

func symlink(to, name string) func(string) error {
	return func(dir string) error { return os.Symlink(to, filepath.Join(dir, name)) }
}

func fill(name, text string) func(string) error {
	return func(dir string) error { return os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644) }
}

// sparse makes a file of 1 GB that takes no space.
func sparse(name string) func(string) error {
	return func(dir string) error {
		return errors.Join(fill(name, "")(dir), os.Truncate(filepath.Join(dir, name), 1<<30))
	}
}

// invalid takes a file of the table of invalid documents.
func invalid(name string) func(string) error {
	return func(dir string) error {
		text, err := os.ReadFile(filepath.Join("../../testdata/invalid", name+".yaml"))
		return errors.Join(err, fill("x.yaml", string(text))(dir))
	}
}

func hide(names ...string) func(string) error { return rename("", ".", names) }

func unhide(names ...string) func(string) error { return rename(".", "", names) }

func rename(from, to string, names []string) func(string) error {
	return func(dir string) error {
		var errs []error
		for _, name := range names {
			errs = append(errs, os.Rename(filepath.Join(dir, from+name), filepath.Join(dir, to+name)))
		}
		return errors.Join(errs...)
	}
}

// TestFullDisk runs weir with a state directory on a disk without space: that is told, and traffic is none the worse.
func TestFullDisk(t *testing.T) {
	d := painDaemon(t, iptablesMode("nft"))
	if err := unix.Mount("tmpfs", d.state, "tmpfs", 0, "size=16k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(d.state, unix.MNT_DETACH) })
	filler, err := os.Create(filepath.Join(d.state, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer filler.Close()
	for err == nil {
		_, err = filler.Write(make([]byte, 4096))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	d.start()
	d.awaitSync()
	d.awaitLog(`\[WARN\].*no space left on device`)
	d.write(map[string]string{"slice.yaml": painSlice(2)})
	d.awaitAnswer("pod2")
	// With space the record is written again, at the next full sync.
	if err := errors.Join(filler.Close(), os.Remove(filler.Name())); err != nil {
		t.Fatal(err)
	}
	d.terminate()
	d.start()
	d.await("the record", func() error {
		_, err := os.Stat(filepath.Join(d.state, "applied.json"))
		return err
	})
	if left, _ := filepath.Glob(filepath.Join(d.state, ".*-*")); len(left) > 0 {
		t.Errorf("half-written files are left: %v", left)
	}
}
