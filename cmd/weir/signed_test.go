package main_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"weir/backends/netlab"
)

// signer makes commits of a daemon's directory, and has the keys and the allowed signers file of its node.
type signer struct {
	*daemon
	keys, allowed string
}

// newSigner makes the directory of a daemon a Git repository, and has it demand signatures from now on.
func newSigner(d *daemon) *signer {
	d.t.Helper()
	netlab.RequireProgram(d.t, "git")
	netlab.RequireProgram(d.t, "ssh-keygen")
	s := &signer{daemon: d, keys: d.t.TempDir()}
	etc := d.t.TempDir()
	s.allowed = filepath.Join(etc, "allowed_signers")
	for _, key := range []string{"alice", "mallory"} {
		s.do("ssh-keygen", "-q", "-N", "", "-C", "", "-t", "ed25519", "-f", filepath.Join(s.keys, key))
	}
	s.allow("alice")
	config := filepath.Join(etc, "weir.yaml")
	if err := os.WriteFile(config, []byte("apiVersion: weir/v1alpha1\nkind: WeirConfiguration\nallowedSigners: "+s.allowed+"\n"), 0o644); err != nil {
		d.t.Fatal(err)
	}
	d.flags = append(d.flags, "-f", config)
	s.do("git", "init", "-q", "-b", "main")
	return s
}

func (s *signer) do(name string, args ...string) string {
	s.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "HOME="+s.keys, "SSH_AUTH_SOCK=",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com")
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// allow makes the keys those of the allowed signers file.
func (s *signer) allow(keys ...string) {
	s.t.Helper()
	text := ""
	for _, key := range keys {
		public, err := os.ReadFile(filepath.Join(s.keys, key+".pub"))
		if err != nil {
			s.t.Fatal(err)
		}
		text += key + "@example.com namespaces=\"git\" " + string(public)
	}
	if err := errors.Join(os.WriteFile(s.allowed+"~", []byte(text), 0o644), os.Rename(s.allowed+"~", s.allowed)); err != nil {
		s.t.Fatal(err)
	}
}

// push brings files to the node in a commit, as a pull does: the key signs, if one is given.
func (s *signer) push(key string, files map[string]string) (commit string) {
	s.t.Helper()
	clone := filepath.Join(s.keys, "clone")
	if _, err := os.Stat(filepath.Join(s.dir, ".git", "refs", "heads", "main")); err != nil {
		s.write(files)
		s.commit(s.dir, key)
		return s.do("git", "rev-parse", "HEAD")
	}
	if err := os.RemoveAll(clone); err != nil {
		s.t.Fatal(err)
	}
	s.do("git", "clone", "-q", s.dir, clone)
	dir := s.dir
	s.dir = clone
	s.write(files)
	s.dir = dir
	s.commit(clone, key)
	s.do("git", "pull", "-q", "--ff-only", clone, "main")
	return s.do("git", "rev-parse", "HEAD")
}

func (s *signer) commit(dir, key string) {
	s.t.Helper()
	args := []string{"-C", dir, "commit", "-q", "-m", "a change"}
	if key != "" {
		args = append([]string{"-c", "gpg.format=ssh", "-c", "user.signingKey=" + filepath.Join(s.keys, key)}, append(args, "-S")...)
	}
	s.do("git", "-C", dir, "add", "-A")
	s.do("git", args...)
}

// TestSignedCommits runs a node whose configuration demands signatures. What is not signed changes no traffic, while weir runs
// and after a restart, and what is signed next is applied.
func TestSignedCommits(t *testing.T) {
	for _, m := range []mode{modes[0], modes[2]} {
		t.Run(m.name, func(t *testing.T) {
			d := painDaemon(t, m)
			s := newSigner(d)
			first := s.push("alice", nil)
			d.start()
			d.awaitAnswer("pod1")
			d.awaitStatus("revision  " + first + ", signed by alice@example.com\n")
			d.awaitLog(`the signature of the commit is good: revision=` + first + ` signer=alice@example.com key="?SHA256:`)

			refused := func(commit, why string) {
				t.Helper()
				d.awaitStatus("refused   revision "+commit, why)
				if err := d.answers("pod1"); err != nil {
					t.Errorf("%s: %v", why, err)
				}
				d.expectHTTP("http://127.0.0.1:10249/metrics", 200, "weir_config_last_reload_successful 0")
				for _, command := range [][]string{{"validate"}, {"plan"}, {"reconcile", "--dry-run"}, {"plan", "--against", "git:" + first}} {
					args := append(command, "-f", d.dir, "--allowed-signers", s.allowed)
					if out, err := d.weir(args...); exitCode(err) != 1 || !strings.Contains(out, why) || !strings.Contains(out, "invalid: 1 problem\n") {
						t.Errorf("%v: %v\n%s", command, err, out)
					}
				}
			}
			unsigned := s.push("", map[string]string{"slice.yaml": painSlice(2)})
			refused(unsigned, "commit "+unsigned[:12]+" is not signed; sign it with an SSH key: git config gpg.format ssh, and git commit -S")
			foreign := s.push("mallory", map[string]string{"slice.yaml": painSlice(3)})
			refused(foreign, "commit "+foreign[:12]+" is signed by key SHA256:")

			// The kernel is empty, as after a reboot, and the head is still bad.
			d.reboot()
			d.start()
			d.awaitAnswer("pod1")
			d.awaitStatus(first+"-stale, signed by alice@example.com\n", "kept      ", "refused   revision "+foreign)
			d.terminate()
			if out, err := d.run("reconcile"); exitCode(err) != 1 || !strings.Contains(fmt.Sprint(err), "does not list") {
				t.Errorf("reconcile: %v\n%s", err, out)
			}
			d.start()
			d.awaitStatus("refused   revision " + foreign)
			if err := d.answers("pod1"); err != nil {
				t.Error(err)
			}

			// A signed merge of what was not signed is a signed commit.
			next := s.push("alice", map[string]string{"slice.yaml": painSlice(2)})
			d.awaitAnswer("pod2")
			d.awaitStatus("revision  " + next + ", signed by alice@example.com\n")
			if out, err := d.run("plan", "--exit-code"); err != nil {
				t.Errorf("plan: %v\n%s", err, out)
			}
			if out, err := d.weir("validate", "-f", d.dir, "--allowed-signers", s.allowed); err != nil || !strings.Contains(out, "; signed by alice@example.com") {
				t.Errorf("validate: %v\n%s", err, out)
			}

			// By hand, on the node.
			d.write(map[string]string{"slice.yaml": painSlice(3)})
			d.awaitStatus("revision  "+next, "refused   revision "+next+"-dirty", "slice.yaml: differs from commit "+next[:12])
			if err := d.answers("pod2"); err != nil {
				t.Error(err)
			}
			s.do("git", "checkout", "-q", ".")
			d.expectHTTP("http://127.0.0.1:10249/metrics", 200, "weir_config_last_reload_successful 1")

			// The key is taken from the list, and another one gets in.
			s.allow("mallory")
			d.awaitStatus("revision  "+next, "commit "+next[:12]+" is signed by key", "does not list")
			if err := d.answers("pod2"); err != nil {
				t.Error(err)
			}
			last := s.push("mallory", map[string]string{"slice.yaml": painSlice(3)})
			d.awaitAnswer("pod3")
			status := struct{ Revision, Signer string }{}
			d.await("the signer", func() error {
				out, err := d.weir("status", "-o", "json")
				if err == nil {
					err = json.Unmarshal([]byte(out), &status)
				}
				if err == nil && (status.Revision != last || status.Signer != "mallory@example.com") {
					err = fmt.Errorf("got %+v", status)
				}
				return err
			})
		})
	}
}
