package gitsource

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestAmbiguousNamesAreRefused gives a tag or a branch the name of another revision. Every name means one commit, or the error
// tells the names to choose from.
func TestAmbiguousNamesAreRefused(t *testing.T) {
	r := honest(t)
	good := r.git("rev-parse", "HEAD")
	r.git("commit", "-q", "-a", "-m", "other")
	other := r.git("rev-parse", "HEAD")
	for ref, id := range map[string]string{
		"refs/remotes/origin/main": good, "refs/tags/origin/main": other, // a tag for a remote's branch
		"refs/remotes/origin/next": good, "refs/heads/origin/next": other, // a branch
		"refs/remotes/up/HEAD": good, "refs/tags/up": other, // the remote's default branch
		"refs/heads/both": good, "refs/tags/both": other,
		"refs/heads/" + good[:8]: other, "refs/tags/v1-0-g" + good[:8]: other, "refs/heads/" + good: other,
		"refs/tags/refs/remotes/gone/main": other,
		"refs/heads/alone":                 good, "refs/remotes/origin/alone": good, "refs/tags/HEAD": other,
	} {
		r.git("update-ref", ref, id)
	}
	for _, tc := range []struct{ rev, want string }{
		{"origin/main", "ambiguous; choose one of git:refs/tags/origin/main, git:refs/remotes/origin/main"},
		{"origin/main^{commit}", "ambiguous"},
		{"origin/main~0", "ambiguous"},
		{"origin/main@{0}", "ambiguous"},
		{"origin/next", "git:refs/heads/origin/next, git:refs/remotes/origin/next"},
		{"up", "git:refs/tags/up, git:refs/remotes/up/HEAD"},
		{"both", "git:refs/tags/both, git:refs/heads/both"},
		{good[:8], "git:refs/heads/" + good[:8] + ", git:" + good},
		{"v1-0-g" + good[:8], "ambiguous"},
		{"refs/remotes/gone/main", "no revision"},
		{"refs/remotes/origin/main", good},
		{"origin/alone", good},
		{"alone", good},
		{"HEAD", other},
		{"@~1", good},
		{good, good},
		{good[:9], good},
	} {
		snap, err := Load(t.Context(), Options{Rev: tc.rev, Paths: []string{filepath.Join(r.dir, "cluster")}})
		got := fmt.Sprint(err)
		if err == nil {
			got = snap.Revision.ID
		}
		if !strings.Contains(got, tc.want) {
			t.Errorf("%s: %s, want %s", tc.rev, got, tc.want)
		}
	}
}

// honest returns a repository whose HEAD has the Service "honest" in cluster/, while the work tree has another one.
func honest(t *testing.T) repo {
	r := newRepo(t)
	r.write("cluster/a.yaml", service("honest"))
	r.commit()
	r.write("cluster/a.yaml", service("changed"))
	return r
}

// TestRepositoryCannotForgeTheBaseline tries everything by which a repository, or what surrounds it, could supply another
// content than that of the revision, or have a program run.
func TestRepositoryCannotForgeTheBaseline(t *testing.T) {
	tests := map[string]func(t *testing.T, r repo, program string){
		"bare repository in the directory": func(t *testing.T, r repo, program string) {
			r.git("clone", "-q", "--bare", forged(t).dir, filepath.Join(r.dir, "bare"))
			for _, name := range []string{"HEAD", "config", "objects", "refs", "packed-refs"} {
				if err := os.Rename(filepath.Join(r.dir, "bare", name), filepath.Join(r.dir, "cluster", name)); err != nil && !os.IsNotExist(err) {
					t.Fatal(err)
				}
			}
			gitIn(t, filepath.Join(r.dir, "cluster"), "config", "core.fsmonitor", program)
			if top := gitIn(t, filepath.Join(r.dir, "cluster"), "rev-parse", "--is-bare-repository"); top != "true" {
				t.Fatal("git does not take it for a bare repository, so that this proves nothing")
			}
		},
		"programs in the configuration": func(_ *testing.T, r repo, program string) {
			for _, key := range []string{"core.fsmonitor", "core.pager", "pager.ls-tree", "pager.cat-file", "core.sshCommand", "core.editor",
				"core.alternateRefsCommand", "core.gitProxy", "credential.helper", "diff.external", "filter.x.smudge", "gpg.program"} {
				r.git("config", key, program)
			}
			r.git("config", "alias.ls-tree", "!"+program)
			r.write(".git/info/attributes", "* filter=x diff=x\n")
		},
		"hooks": func(_ *testing.T, r repo, program string) {
			for _, hook := range []string{"post-index-change", "reference-transaction", "post-checkout", "fsmonitor-watchman"} {
				_ = os.Symlink(program, filepath.Join(r.dir, ".git", "hooks", hook))
			}
		},
		"replaced commit": func(_ *testing.T, r repo, _ string) {
			old := r.git("rev-parse", "HEAD")
			r.write("cluster/a.yaml", service("forged"))
			r.git("add", "-A")
			tree := r.git("write-tree")
			r.git("replace", old, r.git("commit-tree", "-m", "x", tree))
		},
		"another work tree in the configuration": func(t *testing.T, r repo, _ string) {
			r.git("config", "core.worktree", forged(t).dir)
		},
		"environment": func(t *testing.T, _ repo, program string) {
			other := forged(t).dir
			for name, value := range map[string]string{
				"GIT_DIR": filepath.Join(other, ".git"), "GIT_WORK_TREE": other, "GIT_COMMON_DIR": filepath.Join(other, ".git"),
				"GIT_OBJECT_DIRECTORY": filepath.Join(other, ".git", "objects"), "GIT_INDEX_FILE": filepath.Join(other, ".git", "index"),
				"GIT_NAMESPACE": "x", "GIT_PAGER": program, "GIT_SSH_COMMAND": program, "GIT_EXEC_PATH": other,
				"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.fsmonitor", "GIT_CONFIG_VALUE_0": program,
				"GIT_TRACE2": filepath.Join(other, "trace"), "GIT_CEILING_DIRECTORIES": "/",
			} {
				t.Setenv(name, value)
			}
		},
	}
	for name, prepare := range tests {
		t.Run(name, func(t *testing.T) {
			r := honest(t)
			program, ran := witness(t)
			prepare(t, r, program)
			ran("prepare")
			snap, err := Load(t.Context(), Options{Rev: "HEAD", Paths: []string{filepath.Join(r.dir, "cluster")}})
			if err != nil {
				t.Fatal(err)
			}
			if got := names(snap); !strings.HasPrefix(got, "honest@") || snap.Services.Len() != 1 {
				t.Errorf("the baseline is %s", got)
			}
			if ran("load") {
				t.Error("a program that the repository names has run")
			}
		})
	}
}

// TestNestedRepositoryIsRefused has a commit put a repository of another author in the place of the directory. A linked
// work tree in the main one is of the same repository, and is read.
func TestNestedRepositoryIsRefused(t *testing.T) {
	nest := map[string]func(t *testing.T, r repo){
		"submodule": func(t *testing.T, r repo) {
			r.git("rm", "-rqf", "cluster")
			r.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", forged(t).dir, "cluster")
		},
		"clone": func(t *testing.T, r repo) {
			r.git("rm", "-rqf", "cluster")
			r.git("clone", "-q", forged(t).dir, "cluster")
		},
		"below a linked work tree": func(t *testing.T, r repo) {
			r.git("worktree", "add", "-q", "cluster/linked")
			r.git("clone", "-q", forged(t).dir, "cluster/linked/cluster/own")
		},
		"linked work tree of a clone": func(t *testing.T, r repo) {
			r.git("rm", "-rqf", "cluster")
			gitIn(t, forged(t).dir, "worktree", "add", "-q", filepath.Join(r.dir, "cluster"))
		},
	}
	for name, prepare := range nest {
		t.Run(name, func(t *testing.T) {
			r := honest(t)
			prepare(t, r)
			dir := "cluster"
			if name == "below a linked work tree" {
				dir = "cluster/linked/cluster/own"
			}
			_, err := Load(t.Context(), Options{Rev: "HEAD", Paths: []string{filepath.Join(r.dir, dir)}})
			if err == nil || !strings.Contains(err.Error(), "the Git repository "+filepath.Join(r.dir, dir)+" lies in the work tree of another one, "+r.dir) {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("linked work tree of its own repository", func(t *testing.T) {
		r := honest(t)
		r.git("worktree", "add", "-q", "linked")
		snap, err := Load(t.Context(), Options{Rev: "HEAD", Paths: []string{filepath.Join(r.dir, "linked", "cluster")}})
		if err != nil || !strings.HasPrefix(names(snap), "honest@") {
			t.Errorf("got %v", err)
		}
	})
}

// TestGitErrorsQuoteNoFile has the configuration include files of the node, whose text git quotes when it cannot parse them.
func TestGitErrorsQuoteNoFile(t *testing.T) {
	r := honest(t)
	secret := filepath.Join(t.TempDir(), "secret")
	r.git("config", "include.path", secret)
	for _, text := range []string{"[core]\n\tbare = hunter2\n", "[hunter2\n"} {
		if err := os.WriteFile(secret, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Load(t.Context(), Options{Rev: "HEAD", Paths: []string{filepath.Join(r.dir, "cluster")}})
		if err == nil || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "git rev-parse failed with exit status 128") {
			t.Errorf("%q: got %v", text, err)
		}
	}
}

// TestNothingIsFetched has a partial clone whose missing object a remote program would supply.
func TestNothingIsFetched(t *testing.T) {
	r := honest(t)
	program, ran := witness(t)
	blob := r.git("rev-parse", "HEAD:cluster/a.yaml")
	if err := os.Remove(filepath.Join(r.dir, ".git", "objects", blob[:2], blob[2:])); err != nil {
		t.Fatal(err)
	}
	for key, value := range map[string]string{
		"core.repositoryFormatVersion": "1", "extensions.partialClone": "origin", "remote.origin.promisor": "true",
		"remote.origin.url": "ext::" + program + " %S", "protocol.ext.allow": "always", "protocol.allow": "always",
	} {
		r.git("config", key, value)
	}
	_, err := Load(t.Context(), Options{Rev: "HEAD", Paths: []string{filepath.Join(r.dir, "cluster")}})
	if err == nil {
		t.Error("a revision with a missing object was read")
	}
	if ran("load") {
		t.Error("git ran the program of the remote")
	}
}

// forged returns a repository with a Service of which there is nothing in the honest one.
func forged(t *testing.T) repo {
	r := newRepo(t)
	r.write("cluster/a.yaml", service("forged"))
	r.write("a.yaml", service("forged"))
	r.commit()
	return r
}

func gitIn(t *testing.T, dir string, args ...string) string {
	t.Helper()
	return repo{t, dir}.git(args...)
}

// witness returns a program, and whether it has run since that was last asked.
func witness(t *testing.T) (program string, ran func(when string) bool) {
	t.Helper()
	dir := t.TempDir()
	mark := filepath.Join(dir, "ran")
	program = filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n: >"+mark+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return program, func(string) bool { return os.Remove(mark) == nil }
}

// TestIrregularFilesAreNotOpened has a FIFO, which would be waited for, wherever git would open a file.
func TestIrregularFilesAreNotOpened(t *testing.T) {
	fifo := func(path string) error {
		_ = os.Remove(path)
		_ = os.MkdirAll(filepath.Dir(path), 0o755)
		return syscall.Mkfifo(path, 0o644)
	}
	for _, name := range []string{"config", "packed-refs", "refs/heads/main", "objects/info/alternates", "objects/pack/pack-x.idx", "info/grafts", "shallow", "commondir"} {
		t.Run(name, func(t *testing.T) {
			r := honest(t)
			if err := fifo(filepath.Join(r.dir, ".git", name)); err != nil {
				t.Fatal(err)
			}
			refused(t, r)
		})
	}
	t.Run("a symlink to one", func(t *testing.T) {
		r := honest(t)
		if err := fifo(filepath.Join(r.dir, "fifo")); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("../fifo", filepath.Join(r.dir, ".git", "packed-refs")); err != nil {
			t.Fatal(err)
		}
		refused(t, r)
	})
	t.Run("in a store that objects are borrowed from", func(t *testing.T) {
		r, other := honest(t), t.TempDir()
		if err := fifo(filepath.Join(other, "pack", "pack-x.idx")); err != nil {
			t.Fatal(err)
		}
		r.write(".git/objects/info/alternates", other+"\n")
		refused(t, r)
	})
}

// refused requires that the revision is refused, without waiting for anything.
func refused(t *testing.T, r repo) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, err := Load(ctx, Options{Rev: "HEAD", Paths: []string{filepath.Join(r.dir, "cluster")}})
	if err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("got %v", err)
	}
}

// TestTreeWithoutEnd reads a commit whose few objects describe more files than there can be.
func TestTreeWithoutEnd(t *testing.T) {
	r := newRepo(t)
	r.write("x.txt", "x")
	r.commit()
	tree := r.git("rev-parse", "HEAD^{tree}")
	for range 12 {
		var lines []string
		for i := range 10 {
			lines = append(lines, fmt.Sprintf("040000 tree %s\td%d", tree, i))
		}
		tree = r.gitWith(strings.Join(lines, "\n")+"\n", "mktree")
	}
	_, err := Load(t.Context(), Options{Rev: r.git("commit-tree", "-m", "bomb", tree), Paths: []string{r.dir}})
	if err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("got %v", err)
	}
}

// TestLinksWithoutEnd reads a commit whose symlinks make ten directories of each one, twelve times over.
func TestLinksWithoutEnd(t *testing.T) {
	r := newRepo(t)
	for level := range 12 {
		for i := range 10 {
			link := filepath.Join(r.dir, fmt.Sprint("l", level), fmt.Sprint("d", i))
			if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(fmt.Sprint("../l", level+1), link); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.write("l12/note.txt", "no manifest")
	r.commit()
	_, err := Load(t.Context(), Options{Rev: "HEAD", Paths: []string{filepath.Join(r.dir, "l0")}})
	if err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("got %v", err)
	}
}

// TestListIsBounded gives the parser what a git that has lost its mind would write.
func TestListIsBounded(t *testing.T) {
	for name, line := range map[string]string{
		"entries": "100644 blob 0123\tf\x00",
		"path":    "100644 blob 0123\t" + strings.Repeat("x", 1<<20),
	} {
		_, err := parseTree(bufio.NewReader(&endless{text: line}))
		if err == nil || !strings.Contains(err.Error(), "more than") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// endless is a text, again and again.
type endless struct {
	text string
	at   int
}

func (e *endless) Read(p []byte) (int, error) {
	n := copy(p, e.text[e.at:])
	e.at = (e.at + n) % len(e.text)
	return n, nil
}
