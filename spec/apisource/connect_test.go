package apisource

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

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
