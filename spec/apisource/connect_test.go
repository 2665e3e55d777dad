package apisource

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestIrregularCredentials names what never ends where a file of credentials belongs: a FIFO, a device, a file too large. All
// are refused, with their name, and nothing waits for them.
func TestIrregularCredentials(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	fifo, large := filepath.Join(dir, "fifo"), filepath.Join(dir, "large")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(large, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(large, 1<<40); err != nil {
		t.Fatal(err)
	}
	kubeconfig := func(cluster, user string) string {
		return fmt.Sprintf(`{"apiVersion": "v1", "kind": "Config", "current-context": "x", "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
			"clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"%s}}], "users": [{"name": "u", "user": {%s}}]}`, cluster, user)
	}
	for kind, where := range map[string]string{"fifo": fifo, "a relative fifo": "fifo", "device": "/dev/zero", "large": large, "directory": dir} {
		for field, text := range map[string]string{
			"token":       kubeconfig("", fmt.Sprintf(`"tokenFile": %q`, where)),
			"CA":          kubeconfig(fmt.Sprintf(`, "certificate-authority": %q`, where), `"token": "x"`),
			"certificate": kubeconfig("", fmt.Sprintf(`"client-certificate": %q, "client-key": "key"`, where)),
			"key":         kubeconfig("", fmt.Sprintf(`"client-certificate": "cert", "client-key": %q`, where)),
			"kubeconfig":  "",
		} {
			t.Run(kind+" as "+field, func(t *testing.T) {
				t.Parallel()
				file, name := where, where
				if !filepath.IsAbs(where) {
					name = filepath.Join(dir, where)
					file = name
				}
				if text != "" {
					file = filepath.Join(dir, kind+field)
					if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				done := make(chan error, 1)
				go func() {
					_, err := readCredentials(Connection{Kubeconfig: file})
					done <- err
				}()
				select {
				case err := <-done:
					if err == nil || !strings.Contains(err.Error(), name+" is ") {
						t.Errorf("got %v, want an error that names %s", err, name)
					}
				case <-time.After(time.Minute):
					t.Fatal("the read does not end")
				}
			})
		}
	}
}

// TestRewrittenKubeconfigIsNoticed rewrites a kubeconfig while it is read. The hash is never newer than the token, because a
// token that changed in between would then be taken for the current one for ever.
func TestRewrittenKubeconfigIsNoticed(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	versions := map[[32]byte]int{}
	write := func(version int) {
		text := fmt.Sprintf(`{"apiVersion": "v1", "kind": "Config", "current-context": "x", "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
			"clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}], "users": [{"name": "u", "user": {"token": "%d"}}]}`, version)
		if err := os.WriteFile(file+".new", []byte(text), 0o600); err != nil {
			t.Error(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Error(err)
		}
	}
	const rewrites = 150
	for v := range rewrites {
		write(v)
		c, err := readCredentials(Connection{Kubeconfig: file})
		if err != nil {
			t.Fatal(err)
		}
		versions[c.sum] = v
	}
	write(0)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for v := range rewrites {
			write(v)
		}
	}()
	reads := 0
	for ended := false; !ended; reads++ {
		select {
		case <-done:
			ended = true
		default:
		}
		c, err := readCredentials(Connection{Kubeconfig: file})
		if err != nil {
			t.Fatal(err)
		}
		if token, err := strconv.Atoi(c.config.BearerToken); err != nil || token < versions[c.sum] {
			t.Fatalf("the hash is of version %d, and the token of version %d: %v", versions[c.sum], token, err)
		}
	}
	t.Logf("%d reads beside %d rewrites", reads, rewrites)
}
