package filesource

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"weir/backends/netlab"
	"weir/spec"
)

// signedRepo is a Git repository, and beside it what a node has outside of it: keys, the allowed signers file, and a
// WeirConfiguration that demands a signature.
type signedRepo struct {
	testing.TB
	base, dir, signers, weir string
}

const signedService = "apiVersion: v1\nkind: Service\nmetadata: {name: %s}\nspec: {clusterIP: 10.96.0.%d, ports: [{port: 80}]}\n"

func newSignedRepo(t testing.TB) *signedRepo {
	t.Helper()
	netlab.RequireProgram(t, "git")
	netlab.RequireProgram(t, "ssh-keygen")
	base, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r := &signedRepo{t, base, filepath.Join(base, "repo"), filepath.Join(base, "etc", "allowed_signers"), filepath.Join(base, "etc", "weir.yaml")}
	for _, dir := range []string{r.dir, filepath.Dir(r.signers)} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r.git("init", "-q", "-b", "main")
	for _, key := range []string{"good", "bad"} {
		r.run("ssh-keygen", "-q", "-N", "", "-C", "", "-t", "ed25519", "-f", filepath.Join(base, key))
	}
	r.allow("good")
	r.write(r.weir, "apiVersion: weir/v1alpha1\nkind: WeirConfiguration\nallowedSigners: "+r.signers+"\n")
	r.write("a.yaml", fmt.Sprintf(signedService, "a", 1))
	r.commit("good")
	return r
}

func (r *signedRepo) run(name string, args ...string) string {
	r.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = r.dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "HOME="+r.base, "SSH_AUTH_SOCK=",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com")
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func (r *signedRepo) git(args ...string) string { r.Helper(); return r.run("git", args...) }

// write writes a file, whose name is relative to the repository.
func (r *signedRepo) write(name, text string) {
	r.Helper()
	if !filepath.IsAbs(name) {
		name = filepath.Join(r.dir, name)
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		r.Fatal(err)
	}
	if err := os.WriteFile(name+"~", []byte(text), 0o644); err != nil {
		r.Fatal(err)
	}
	if err := os.Rename(name+"~", name); err != nil {
		r.Fatal(err)
	}
}

func (r *signedRepo) link(to, name string) {
	r.Helper()
	name = filepath.Join(r.dir, name)
	_ = os.Remove(name)
	if err := os.Symlink(to, name); err != nil {
		r.Fatal(err)
	}
}

// allow makes the keys those of the allowed signers file. The principal has the name of the key.
func (r *signedRepo) allow(keys ...string) {
	r.Helper()
	text := "# who may sign\n"
	for _, key := range keys {
		public, err := os.ReadFile(filepath.Join(r.base, key+".pub"))
		if err != nil {
			r.Fatal(err)
		}
		text += key + "@example.com " + string(public)
	}
	r.write(r.signers, text)
}

// commit commits all files. The key signs, if one is given.
func (r *signedRepo) commit(key string) {
	r.Helper()
	r.git("add", "-A")
	if key == "" {
		r.git("commit", "-q", "--allow-empty", "-m", "x")
	} else {
		r.git("-c", "gpg.format=ssh", "-c", "user.signingKey="+filepath.Join(r.base, key), "commit", "-q", "--allow-empty", "-S", "-m", "x")
	}
}

// options returns those with the paths, which are relative to the repository's parent, and the WeirConfiguration.
func (r *signedRepo) options(paths ...string) Options {
	o := Options{Paths: []string{r.weir}}
	for _, p := range paths {
		o.Paths = append(o.Paths, filepath.Join(r.base, p))
	}
	return o
}

// load returns what a Load of the input declares, or its problems, without the directory of the test.
func (r *signedRepo) load(o Options) (names []string, rev spec.Revision, problems string) {
	r.Helper()
	snap, err := New(o).Load(context.Background())
	if err != nil {
		return nil, rev, strings.ReplaceAll(err.Error(), r.base+"/", "")
	}
	for svc := range snap.Services.All() {
		names = append(names, svc.Name.Name)
	}
	slices.Sort(names)
	return names, snap.Revision, ""
}

// refused fails the test unless the input is refused with the text.
func (r *signedRepo) refused(what string, o Options, text string) {
	r.Helper()
	if names, _, problems := r.load(o); names != nil || !strings.Contains(problems, text) {
		r.Errorf("%s: %v; got %q, want %q", what, names, problems, text)
	}
}

func (r *signedRepo) accepted(what string, o Options, want ...string) {
	r.Helper()
	names, rev, problems := r.load(o)
	if !slices.Equal(names, want) || rev.Signer != "good@example.com" || rev.ID != r.git("rev-parse", "HEAD") || rev.Dirty {
		r.Errorf("%s: got %v %+v, want %v\n%s", what, names, rev, want, problems)
	}
}

func TestSigned(t *testing.T) {
	r := newSignedRepo(t)
	o := r.options("repo")
	r.accepted("a signed commit", o, "a")
	byFlag := Options{Paths: []string{r.dir}, Overrides: spec.Overrides{AllowedSigners: r.signers}}
	r.accepted("a signed commit, by a flag", byFlag, "a")
	o.Config = ""

	r.write("a.yaml", fmt.Sprintf(signedService, "a", 2))
	r.refused("a change that is not committed", o, "repo/a.yaml: differs from commit "+r.git("rev-parse", "HEAD")[:12]+", so that its signature does not vouch for it")
	r.commit("")
	r.refused("an unsigned commit", o, "repo: commit "+r.git("rev-parse", "HEAD")[:12]+" is not signed; sign it with an SSH key")
	r.refused("an unsigned commit, by a flag", byFlag, "is not signed")
	r.git("commit", "-q", "--amend", "-m", "gpgsig -----BEGIN SSH SIGNATURE-----")
	r.refused("an unsigned commit whose message has a signature", o, "is not signed")
	r.commit("bad")
	r.refused("a commit by another key", o, "which "+"etc/allowed_signers does not list")
	r.git("reset", "-q", "--soft", "HEAD~2")
	r.commit("good")
	r.accepted("signed again", o, "a")
	r.git("-c", "gpg.format=ssh", "commit", "-q", "--amend", "--no-gpg-sign", "-m", "x")
	r.refused("amended without a signature", o, "is not signed")

	r.commit("good")
	r.git("gc", "-q", "--aggressive", "--prune=now")
	r.accepted("packed", o, "a")
	shallow := filepath.Join(r.base, "shallow")
	r.git("clone", "-q", "--depth", "1", "file://"+r.dir, shallow)
	r.accepted("a shallow clone", r.options("shallow"), "a")
	r.git("worktree", "add", "-q", "--detach", filepath.Join(r.base, "linked"))
	r.accepted("a linked work tree", r.options("linked"), "a")
	if err := os.Symlink("linked", filepath.Join(r.base, "current")); err != nil {
		t.Fatal(err)
	}
	r.accepted("a symlink to a work tree, as git-sync makes it", r.options("current"), "a")

	r.git("checkout", "-q", "-b", "side")
	r.write("b.yaml", fmt.Sprintf(signedService, "b", 3))
	r.commit("")
	r.git("checkout", "-q", "main")
	r.git("-c", "gpg.format=ssh", "-c", "user.signingKey="+filepath.Join(r.base, "good"), "merge", "-q", "--no-ff", "-S", "-m", "merge", "side")
	r.accepted("a signed merge of unsigned commits", o, "a", "b")
	r.git("-c", "gpg.format=ssh", "commit", "-q", "--amend", "--no-gpg-sign", "-m", "x")
	r.refused("a merge that is not signed, of which one side is", o, "is not signed")
}

// TestSignedFiles changes the work tree of a signed commit in every way that would have weir use something else.
func TestSignedFiles(t *testing.T) {
	r := newSignedRepo(t)
	r.write("sub/b.yaml", fmt.Sprintf(signedService, "b", 2))
	r.write("draft/c.yaml", fmt.Sprintf(signedService, "c", 3))
	r.write("linked/e.yaml", fmt.Sprintf(signedService, "e", 5))
	r.write(".weirignore", "draft/\nlinked/\n")
	r.link("linked", "via")
	r.link("linked/e.yaml", "e.txt")
	r.write("README.md", "read me")
	r.commit("good")
	o := r.options("repo")
	r.accepted("as it is", o, "a", "b", "e")
	for _, c := range []struct {
		name   string
		change func()
		want   string
	}{
		{"changed", func() { r.write("a.yaml", fmt.Sprintf(signedService, "a", 9)) }, "repo/a.yaml: differs"},
		{"added", func() { r.write("new.yaml", fmt.Sprintf(signedService, "new", 9)) }, "repo/new.yaml: differs"},
		{"added and ignored by Git", func() {
			r.write(".git/info/exclude", "*.yml\n")
			r.write("new.yml", fmt.Sprintf(signedService, "new", 9))
		}, "repo/new.yml: differs"},
		{"staged", func() {
			r.write("a.yaml", fmt.Sprintf(signedService, "a", 9))
			r.git("add", "a.yaml")
		}, "repo/a.yaml: differs"},
		{"assumed to be unchanged", func() {
			r.git("update-index", "--assume-unchanged", "a.yaml")
			r.write("a.yaml", fmt.Sprintf(signedService, "a", 9))
		}, "repo/a.yaml: differs"},
		{"removed", func() { _ = os.Remove(filepath.Join(r.dir, "a.yaml")) }, "repo/a.yaml: differs"},
		{"directory removed", func() { _ = os.RemoveAll(filepath.Join(r.dir, "sub")) }, "repo/sub/b.yaml: differs"},
		{"emptied to comments", func() { r.write("a.yaml", "# nothing\n") }, "repo/a.yaml: differs"},
		{"renamed", func() { r.git("mv", "a.yaml", "z.yaml") }, "repo/z.yaml: differs"},
		{"rules removed", func() { _ = os.Remove(filepath.Join(r.dir, ".weirignore")) }, "repo/.weirignore: differs"},
		{"rules changed", func() { r.write(".weirignore", "draft/\nlinked/\nsub/\n") }, "repo/.weirignore: differs"},
		{"rules added", func() { r.write("sub/.weirignore", "*\n") }, "repo/sub/.weirignore: differs"},
		{"symlink to a file added", func() { r.link("../draft/c.yaml", "sub/c.yaml") }, "repo/sub/c.yaml: differs"},
		{"symlink to a directory added", func() { r.link("draft", "live") }, "repo/live: differs"},
		{"symlink to a directory led elsewhere", func() { r.link("draft", "via") }, "repo/via: differs"},
		{"symlink to a directory removed", func() { _ = os.Remove(filepath.Join(r.dir, "via")) }, "repo/via: differs"},
		{"symlink in the place of a file", func() { r.link("draft/c.yaml", "a.yaml") }, "repo/a.yaml: differs"},
		{"chart added", func() { r.write("sub/Chart.yaml", "name: x\n") }, "repo/sub/Chart.yaml: differs"},
		{"FIFO in the place of a file", func() {
			_ = os.Remove(filepath.Join(r.dir, "a.yaml"))
			r.run("mkfifo", "a.yaml")
		}, "repo/a.yaml: differs"},
		{"repository in a directory", func() {
			r.git("init", "-q", "nested")
			r.write("nested/n.yaml", fmt.Sprintf(signedService, "n", 9))
		}, "repo/nested/n.yaml: differs"},
		{"submodule", func() {
			r.git("-c", "protocol.file.allow=always", "submodule", "add", "-q", "file://"+r.dir, "module")
			r.commit("good")
		}, "repo/module/a.yaml: differs"},
		{"HEAD moved", func() { r.git("update-ref", "HEAD", "HEAD~1") }, "differs"},
		{"no HEAD", func() { r.write(".git/HEAD", "what") }, "cannot be told, so that no signature vouches for it"},
		{"SHA-256", func() { r.write(".git/HEAD", strings.Repeat("a", 64)) }, "only SHA-1 repositories"},
		{"commit that is not there", func() { r.write(".git/HEAD", strings.Repeat("a", 40)) }, "cannot be read, so that its signature is not known"},
		{"no .git", func() { _ = os.RemoveAll(filepath.Join(r.dir, ".git")) }, "repo: is in no Git work tree, so that no signature vouches for it"},
	} {
		copied := filepath.Join(r.base, "copy")
		r.run("cp", "-a", r.dir, copied)
		c.change()
		// Both at once, and while it runs.
		r.refused(c.name, o, c.want)
		if err := os.RemoveAll(r.dir); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(copied, r.dir); err != nil {
			t.Fatal(err)
		}
	}
	r.accepted("at last", o, "a", "b", "e")
	r.write("README.md", "changed")
	r.write("notes.txt", "new")
	r.accepted("what weir does not read may differ", o, "a", "b", "e")
}

// TestSignedPlaces has the demand, the keys, or an input where they must not be.
func TestSignedPlaces(t *testing.T) {
	r := newSignedRepo(t)
	demand := "apiVersion: weir/v1alpha1\nkind: WeirConfiguration\n"
	r.write("weir.yaml", demand+"stateDir: /run/weir\nallowedSigners: "+r.signers+"\n")
	r.commit("good")
	r.refused("a demand in the repository", Options{Paths: []string{r.dir}}, "repo/weir.yaml:4: WeirConfiguration: allowedSigners: there is nothing to check but the directory that has this document")
	r.refused("a demand in a part of the repository", Options{Paths: []string{r.dir + "/a.yaml", r.dir + "/weir.yaml"}}, "repo/weir.yaml:4: WeirConfiguration: allowedSigners: is in the repository that it is to check")
	r.refused("two demands", r.options("repo"), "is the second")
	linked := filepath.Join(r.base, "linked")
	r.git("worktree", "add", "-q", "--detach", linked)
	r.refused("a demand in another work tree", Options{Paths: []string{r.dir + "/a.yaml", linked + "/weir.yaml"}}, "linked/weir.yaml:4: WeirConfiguration: allowedSigners: is in the repository that it is to check")
	r.git("rm", "-q", "weir.yaml")

	// What would leave out the demand.
	r.write("weir.yaml", demand+"exclude: [conf/, weir.yaml, '*']\n")
	r.commit("bad")
	r.write(filepath.Join(r.base, "etc/conf/weir.yaml"), demand+"allowedSigners: "+r.signers+"\n")
	if err := os.Remove(r.weir); err != nil {
		t.Fatal(err)
	}
	r.refused("a second configuration that leaves out the demand", Options{Paths: []string{r.base + "/etc", r.dir}}, "is the second")
	r.refused("the same in another order", Options{Paths: []string{r.dir, r.base + "/etc"}}, "is the second")
	r.git("rm", "-q", "weir.yaml")
	r.write(r.weir, demand+"allowedSigners: "+r.signers+"\n")
	if err := os.RemoveAll(filepath.Join(r.base, "etc/conf")); err != nil {
		t.Fatal(err)
	}
	r.commit("good")

	// A symlink in the repository to the demand, which is reached by more symlinks itself, would make the repository its directory.
	if err := os.Rename(r.weir, filepath.Join(r.base, "real.yaml")); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{r.base + "/weir.yaml": "one", r.base + "/one": "two", r.base + "/two": "real.yaml"} {
		if err := os.Symlink(to, name); err != nil {
			t.Fatal(err)
		}
	}
	viaLinks := Options{Paths: []string{r.dir, r.base + "/weir.yaml"}}
	r.accepted("symlinks to the demand", viaLinks, "a")
	r.link("../real.yaml", "x.yaml")
	r.write("evil.yaml", fmt.Sprintf(signedService, "evil", 6))
	r.commit("")
	r.refused("a symlink of the repository to the demand", viaLinks, "is reached by a symlink that leads out of its directory")
	slices.Reverse(viaLinks.Paths)
	r.refused("the same in another order", viaLinks, "is reached by a symlink that leads out of its directory")
	r.git("reset", "-q", "--hard", "HEAD~1")
	if err := os.Rename(filepath.Join(r.base, "real.yaml"), r.weir); err != nil {
		t.Fatal(err)
	}

	for what, file := range map[string]string{"the demand": r.weir, "its directory": filepath.Dir(r.weir)} {
		fi, err := os.Stat(file)
		if err == nil {
			err = os.Chmod(file, fi.Mode().Perm()|0o022)
		}
		if err != nil {
			t.Fatal(err)
		}
		r.refused("others can change "+what, r.options("repo"), "so that others could have changed it")
		if err := os.Chmod(file, fi.Mode().Perm()); err != nil {
			t.Fatal(err)
		}
	}
	loose := filepath.Join(r.base, "loose")
	if err := errors.Join(os.Mkdir(loose, 0o755), os.Chmod(loose, 0o777), os.Symlink(r.weir, loose+"/weir.yaml")); err != nil {
		t.Fatal(err)
	}
	r.refused("others can replace a symlink to the demand", Options{Paths: []string{loose + "/weir.yaml", r.dir}}, "loose has mode 0777, so that others could have changed it")
	if err := os.RemoveAll(loose); err != nil {
		t.Fatal(err)
	}
	for _, empty := range []string{`""`, "", "null"} {
		r.write(r.weir, demand+"allowedSigners: "+empty+"\n")
		r.refused("an empty demand", r.options("repo"), "etc/weir.yaml:3: WeirConfiguration: allowedSigners: must be an absolute path")
	}
	r.write(r.weir, demand+"allowedSigners: allowed_signers\n")
	r.refused("a relative demand", r.options("repo"), `allowedSigners: must be an absolute path such as "/etc/weir/file", not "allowed_signers"`)
	r.write(r.weir, demand+"allowedSigners: "+r.signers+"\n")
	r.accepted("the directory of the demand", Options{Paths: []string{r.base + "/etc", r.dir}}, "a")
	r.write(filepath.Join(r.base, "etc/own.yaml"), fmt.Sprintf(signedService, "own", 7))
	r.accepted("what is beside the demand needs no signature", Options{Paths: []string{r.base + "/etc", r.dir}}, "a", "own")
	r.write(filepath.Join(r.base, "other/o.yaml"), fmt.Sprintf(signedService, "o", 8))
	r.refused("another directory", r.options("repo", "other"), "other: is in no Git work tree, so that no signature vouches for it; check it out with git, or move it to the directory of etc/weir.yaml, which needs none")
	r.git("init", "-q", filepath.Join(r.base, "other"))
	r.refused("another repository", r.options("repo", "other"), "other: is in another Git work tree than repo")
	r.refused("a repository without a commit", r.options("other"), "cannot be told")
	if err := os.Rename(filepath.Join(r.base, "other"), filepath.Join(r.base, "etc/other")); err != nil {
		t.Fatal(err)
	}
	r.refused("a checkout beside the demand", Options{Paths: []string{r.base + "/etc", r.dir}}, "etc/other: is a Git work tree in the directory of etc/weir.yaml, where nothing is verified")
	if err := os.RemoveAll(filepath.Join(r.base, "etc/other")); err != nil {
		t.Fatal(err)
	}
	r.refused("nothing but the demand", Options{Paths: []string{r.base + "/etc"}}, "there is nothing to check but")
	r.write(filepath.Join(r.base, "proxy.yaml"), "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n---\n"+demand+"allowedSigners: "+r.signers+"\n")
	byConfig := Options{Paths: []string{r.dir}, Config: filepath.Join(r.base, "proxy.yaml")}
	r.accepted("--config", byConfig, "a")
	for file, o := range map[string]Options{"proxy.yaml": byConfig, "etc/own.yaml": {Paths: []string{r.base + "/etc", r.dir}}} {
		if err := os.Chmod(filepath.Join(r.base, file), 0o666); err != nil {
			t.Fatal(err)
		}
		r.refused("what needs no signature, and others can write it", o, "so that others could have changed it")
		if err := os.Chmod(filepath.Join(r.base, file), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r.link(r.weir, "demand.yaml")
	r.link(r.signers, "signers")
	r.link(filepath.Dir(r.signers), "keys")
	r.commit("good")
	for what, o := range map[string]Options{
		"a symlink in the repository to the demand":       {Paths: []string{r.dir + "/demand.yaml", r.dir + "/a.yaml"}},
		"a symlink in the repository to the signers":      {Paths: []string{r.dir + "/a.yaml"}, Overrides: spec.Overrides{AllowedSigners: r.dir + "/signers"}},
		"a directory of the repository above the signers": {Paths: []string{r.dir + "/a.yaml"}, Overrides: spec.Overrides{AllowedSigners: r.dir + "/keys/" + filepath.Base(r.signers)}},
	} {
		r.refused(what, o, "is in the repository that it is to check")
	}
	r.git("reset", "-q", "--hard", "HEAD~1")
	r.write("weir.yaml", demand)
	r.commit("")
	r.refused("--config, and a configuration in the repository", Options{Paths: []string{r.dir}, Config: filepath.Join(r.base, "proxy.yaml")}, "is not signed")
	byFlag := Options{Paths: []string{r.dir}, Overrides: spec.Overrides{AllowedSigners: r.signers}}
	r.refused("a flag, and a configuration in the repository", byFlag, "is not signed")
	r.write("weir.yaml", demand+"allowedSigners: "+r.dir+"/signers\n")
	r.write("signers", "*@example.com "+r.run("cat", "../bad.pub")+"\n")
	r.commit("bad")
	r.refused("a flag, and other signers in the repository", byFlag, "does not list")
	r.git("rm", "-q", "weir.yaml", "signers")
	r.commit("good")

	// The kustomization is in the repository, and what it makes of it.
	r.write("kustomization.yaml", "resources: [a.yaml]\n")
	r.commit("good")
	built := Options{Paths: []string{r.weir}, Kustomize: []string{r.dir}}
	r.accepted("a kustomization", built, "a")
	r.write("patch.yaml", "not used")
	r.accepted("a kustomization, and a file that it does not read", built, "a")
	r.write("a.yaml", fmt.Sprintf(signedService, "a", 9))
	r.refused("a kustomization with a changed base", built, "repo/a.yaml: differs")
	r.git("checkout", "-q", ".")
	r.write("kustomization.yaml", "resources: [a.yaml, ../other]\n")
	r.write(filepath.Join(r.base, "other/kustomization.yaml"), "resources: [o.yaml]\n")
	r.write(filepath.Join(r.base, "other/o.yaml"), fmt.Sprintf(signedService, "o", 8))
	r.commit("good")
	built.AllowOutsideLinks = true
	r.refused("a kustomization with a base outside", built, "out of the Git work tree, so that the signature")
	r.git("reset", "-q", "--hard", "HEAD~1")
	r.link("../other/o.yaml", "o.yaml")
	r.commit("good")
	outside := r.options("repo")
	outside.AllowOutsideLinks = true
	r.refused("a symlink that leads out", outside, "repo/o.yaml: leads to other/o.yaml, out of the Git work tree")
	r.refused("a repository that is gone", r.options("repo", "gone"), "gone: does not exist")
}

// TestAllowedSignersFile has allowed signers files that cannot be used.
func TestAllowedSignersFile(t *testing.T) {
	r := newSignedRepo(t)
	o := r.options("repo")
	const place = "etc/weir.yaml:3: WeirConfiguration: allowedSigners: "
	remake := func() {
		_ = os.RemoveAll(r.signers)
		r.allow("good")
	}
	for _, c := range []struct {
		name   string
		change func()
		want   string
	}{
		{"missing", func() { _ = os.Remove(r.signers) }, place + "etc/allowed_signers does not exist"},
		{"a directory", func() { _ = os.Remove(r.signers); _ = os.Mkdir(r.signers, 0o755) }, place + "etc/allowed_signers is not a regular file"},
		{"a FIFO", func() { _ = os.Remove(r.signers); r.run("mkfifo", r.signers) }, "is not a regular file"},
		{"empty", func() { r.write(r.signers, "") }, "does not list"},
		{"broken", func() { r.write(r.signers, "# x\ngood@example.com what\n") }, "etc/allowed_signers:2: has a word that is neither an option"},
		{"large", func() { r.write(r.signers, strings.Repeat("#", maxSignersFile+1)) }, "larger than the limit"},
		{"writable for all", func() { _ = os.Chmod(r.signers, 0o666) }, "others could have changed it"},
		{"directory writable for all", func() { _ = os.Chmod(filepath.Dir(r.signers), 0o777) }, "others could have changed it"},
		{"directory above writable for all", func() { _ = os.Chmod(r.base, 0o777) }, r.base + " has mode 0777, so that others could have changed it"},
		{"in the repository", func() {
			r.run("cp", r.signers, "allowed_signers")
			_ = os.Remove(r.signers)
			_ = os.Symlink(r.dir+"/allowed_signers", r.signers)
		}, place + "etc/allowed_signers is in the repository that it is to check"},
		{"in .git", func() {
			r.run("cp", r.signers, ".git/allowed_signers")
			_ = os.Remove(r.signers)
			_ = os.Symlink(r.dir+"/.git/allowed_signers", r.signers)
		}, "is in the repository"},
	} {
		c.change()
		r.refused(c.name, o, c.want)
		for _, dir := range []string{filepath.Dir(r.signers), r.base} {
			_ = os.Chmod(dir, 0o755)
		}
		remake()
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(r.signers, 12345, -1); err != nil {
			t.Fatal(err)
		}
		r.refused("of another user", o, "belongs to user 12345")
		remake()
	}
	other := filepath.Join(r.base, "keys")
	if err := os.Rename(r.signers, other); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(other, r.signers); err != nil {
		t.Fatal(err)
	}
	r.accepted("a symlink", o, "a")
}

// TestSignedWatch follows a repository whose commits, files and allowed signers change.
func TestSignedWatch(t *testing.T) {
	r := newSignedRepo(t)
	updates := make(chan spec.Update, 100)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	o := r.options("repo")
	settle := 20 * time.Millisecond
	o.Overrides.SettleTime, o.RescanInterval = &settle, time.Hour // what follows is found by events alone
	go func() {
		defer close(done)
		_ = New(o).Watch(ctx, func(u spec.Update) { updates <- u })
	}()
	t.Cleanup(func() { cancel(); <-done })
	// until waits for an Update with the text in its error, or without one for a good Update.
	until := func(what, text string) spec.Update {
		t.Helper()
		after := time.After(time.Minute)
		for {
			select {
			case u := <-updates:
				if text == "" && u.Err == nil || text != "" && u.Err != nil && strings.Contains(u.Err.Error(), text) {
					return u
				}
				if u.Err == nil {
					t.Fatalf("%s: accepted: %+v", what, u.Revision)
				}
			case <-after:
				t.Fatalf("%s: no Update with %q", what, text)
			}
		}
	}
	first := until("the first commit", "")
	if first.Revision.Signer != "good@example.com" || first.Snapshot.Services.Len() != 1 {
		t.Fatalf("%+v", first.Revision)
	}
	r.write("b.yaml", fmt.Sprintf(signedService, "b", 2))
	until("a file without a commit", "repo/b.yaml: differs")
	r.commit("")
	if u := until("an unsigned commit", "is not signed"); u.Settings == nil || u.Settings.Weir.AllowedSigners != r.signers || u.Settings.ConfigOrigin.File != "" {
		t.Errorf("settings %+v", u.Settings)
	}
	r.write("proxy.yaml", "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmetricsBindAddress: 0.0.0.0:10249\n")
	r.commit("bad")
	if u := until("a commit by another key", "does not list"); u.Settings == nil || u.Settings.Config.MetricsBindAddress == "0.0.0.0:10249" {
		t.Errorf("settings of a commit that is refused: %+v", u.Settings)
	}
	r.allow("good", "bad")
	if u := until("the key is allowed", ""); u.Revision.Signer != "bad@example.com" || u.Snapshot.Services.Len() != 2 {
		t.Errorf("%+v", u.Revision)
	}
	r.allow("good")
	until("the key is allowed no more", "does not list")
	r.allow("good", "bad")
	until("it is again", "")
	r.git("reset", "-q", "--hard", "HEAD~2")
	if u := until("back to the first", ""); u.Revision.Signer != "good@example.com" || u.Snapshot.Services.Len() != 1 {
		t.Errorf("%+v", u.Revision)
	}
	r.write("c.yaml", fmt.Sprintf(signedService, "c", 3))
	r.commit("")
	until("an unsigned commit again", "is not signed")
	if err := os.Chmod(filepath.Dir(r.weir), 0o777); err != nil {
		t.Fatal(err)
	}
	r.write(r.weir, "apiVersion: weir/v1alpha1\nkind: WeirConfiguration\n")
	if u := until("the demand is taken back where others can write", "is demanded no more, and "+filepath.Dir(r.weir)+" has mode 0777"); strings.Contains(u.Err.Error(), "followed") {
		t.Errorf("it tells what is not the matter: %v", u.Err)
	}
	if err := os.Remove(r.weir); err != nil {
		t.Fatal(err)
	}
	until("its file is removed", "is demanded no more, and its file is gone")
	r.write(r.weir, "apiVersion: weir/v1alpha1\nkind: WeirConfiguration\n")
	until("it comes back without the demand", "is demanded no more, and "+filepath.Dir(r.weir)+" has mode 0777")
	if err := os.Chmod(filepath.Dir(r.weir), 0o755); err != nil {
		t.Fatal(err)
	}
	r.write(r.weir, "apiVersion: weir/v1alpha1\nkind: WeirConfiguration\n")
	if u := until("the demand is gone", ""); u.Revision.Signer != "" || u.Snapshot.Services.Len() != 2 {
		t.Errorf("%+v", u.Revision)
	}
	r.write(r.weir, "apiVersion: weir/v1alpha1\nkind: WeirConfiguration\nallowedSigners: "+r.signers+"\n")
	until("the demand is back", "is not signed")
	r.commit("good")
	if u := until("signed", ""); u.Snapshot.Services.Len() != 2 {
		t.Errorf("%+v", u.Revision)
	}
}

// TestSignedOnce proves that a commit is verified once, however often the files are read.
func TestSignedOnce(t *testing.T) {
	r := newSignedRepo(t)
	src := New(r.options("repo"))
	sess := newSession(src.newTree(&oversight{stuck: src.newStuck()}, nil), src.newSet)
	for i := range 3 {
		if i > 0 {
			sess.tree.marked[filepath.Join(r.dir, "a.yaml")] = hint{}
		}
		updates, err := sess.pass(context.Background())
		if err != nil || i == 0 && (len(updates) != 1 || updates[0].Err != nil) || i > 0 && len(updates) > 0 {
			t.Fatalf("pass %d: %+v, %v", i, updates, err)
		}
		// Without the object, only memory knows the signature.
		if id := r.git("rev-parse", "HEAD"); i == 0 {
			if err := os.Remove(filepath.Join(r.dir, ".git/objects", id[:2], id[2:])); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// BenchmarkSigned is a pass in which nothing changed, without and with a demand.
func BenchmarkSigned(b *testing.B) {
	r := newSignedRepo(b)
	for i := range 200 {
		r.write(fmt.Sprintf("d%d/s%d.yaml", i%20, i), fmt.Sprintf(signedService, fmt.Sprint("s", i), i+2))
	}
	r.commit("good")
	for name, signers := range map[string]string{"none": "", "demanded": r.signers} {
		b.Run(name, func(b *testing.B) {
			src := New(Options{Paths: []string{r.dir}, Overrides: spec.Overrides{AllowedSigners: signers}})
			sess := newSession(src.newTree(&oversight{stuck: src.newStuck()}, nil), src.newSet)
			for b.Loop() {
				if _, err := sess.pass(context.Background()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
