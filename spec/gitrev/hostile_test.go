package gitrev

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestIrregularFilesAreNotOpened replaces each file that is read by a FIFO, which would be waited for.
func TestIrregularFilesAreNotOpened(t *testing.T) {
	for _, name := range []string{"HEAD", "commondir", "refs/heads/main", "packed-refs", "objects/info/alternates", "objects/pack/pack-x.idx", "object"} {
		t.Run(name, func(t *testing.T) {
			repo := newRepo(t)
			commit := git(t, repo, "rev-parse", "HEAD")
			if name == "packed-refs" {
				git(t, repo, "pack-refs", "--all")
			}
			path := filepath.Join(repo, ".git", name)
			if name == "object" {
				path = filepath.Join(repo, ".git", "objects", commit[:2], commit[2:])
			}
			_ = os.Remove(path)
			if err := syscall.Mkfifo(path, 0o644); err != nil {
				t.Fatal(err)
			}
			r := Find(repo)
			// Each of these returns; whether it fails depends on whether the file was needed.
			id, _, headErr := r.Head()
			tree, treeErr := r.Tree(commit, nil)
			if treeErr == nil {
				treeErr = tree.Walk("", func(string) bool { return false }, func(string, Entry) {})
			}
			if headErr == nil && id != commit {
				t.Errorf("Head() = %s, want %s", id, commit)
			}
			if failed := headErr != nil || treeErr != nil; failed != (name == "HEAD" || name == "refs/heads/main" || name == "packed-refs" || name == "object") {
				t.Errorf("Head: %v; Tree: %v", headErr, treeErr)
			}
			if err := r.CheckFiles(); err == nil || !strings.Contains(err.Error(), path) {
				t.Errorf("CheckFiles() = %v, want %s named", err, path)
			}
		})
	}
}

// TestTreeWithoutEnd walks a commit whose few objects describe more files than there can be.
func TestTreeWithoutEnd(t *testing.T) {
	repo := newRepo(t)
	tree := git(t, repo, "rev-parse", "HEAD^{tree}")
	for range 20 {
		var lines strings.Builder
		for i := range 10 {
			fmt.Fprintf(&lines, "040000 tree %s\td%d\n", tree, i)
		}
		cmd := exec.Command("git", "mktree")
		cmd.Dir, cmd.Stdin = repo, strings.NewReader(lines.String())
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		tree = strings.TrimSpace(string(out))
	}
	r := Find(repo)
	commit, err := r.Tree(git(t, repo, "commit-tree", "-m", "bomb", tree), nil)
	if err != nil {
		t.Fatal(err)
	}
	err = commit.Walk("", func(string) bool { return false }, func(string, Entry) {})
	if err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("got %v", err)
	}
}

// TestForeignTextIsNotPrinted has a ref lead to a file that is none of Git's.
func TestForeignTextIsNotPrinted(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	for _, text := range []string{"password", "ref: password"} {
		repo := newRepo(t)
		write(t, secret, text)
		head := filepath.Join(repo, ".git", "HEAD")
		_ = os.Remove(head)
		if err := os.Symlink(secret, head); err != nil {
			t.Fatal(err)
		}
		if _, _, err := Find(repo).Head(); err == nil || strings.Contains(err.Error(), "password") {
			t.Errorf("got %v", err)
		}
	}
}

// TestForgedObject has other content under the ID of an object, by which a signature would be of nothing.
func TestForgedObject(t *testing.T) {
	repo := newRepo(t)
	write(t, filepath.Join(repo, "sub", "a.yaml"), "a: 2\n")
	git(t, repo, "add", ".")
	git(t, repo, "commit", "-qm", "two")
	paths := map[string]string{}
	for _, rev := range []string{"HEAD", "HEAD~1", "HEAD:sub", "HEAD~1:sub"} {
		id := git(t, repo, "rev-parse", rev)
		paths[rev] = filepath.Join(repo, ".git", "objects", id[:2], id[2:])
	}
	commit, other := git(t, repo, "rev-parse", "HEAD"), git(t, repo, "rev-parse", "HEAD^{tree}")
	r := Find(repo)
	if data, err := r.Commit(commit); err != nil || !strings.HasSuffix(string(data), "\n\ntwo\n") {
		t.Fatalf("%q, %v", data, err)
	}
	if _, err := r.Commit(other); err == nil {
		t.Error("a tree is a commit")
	}
	tree, err := r.Tree(commit, nil)
	if err != nil {
		t.Fatal(err)
	}
	forge := func(rev, by string) {
		t.Helper()
		if err := errors.Join(os.Remove(paths[rev]), os.Link(paths[by], paths[rev])); err != nil {
			t.Fatal(err)
		}
	}
	forge("HEAD:sub", "HEAD~1:sub")
	if _, _, err := tree.Entry("sub/a.yaml"); err == nil || !strings.Contains(err.Error(), "run git fsck") {
		t.Errorf("a forged tree: %v", err)
	}
	forge("HEAD", "HEAD~1")
	if _, err := r.Tree(commit, nil); err == nil || !strings.Contains(err.Error(), "run git fsck") {
		t.Errorf("a forged commit: %v", err)
	}
	if data, err := r.Commit(commit); err == nil {
		t.Errorf("a forged commit: %q", data)
	}
}
