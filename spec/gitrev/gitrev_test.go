package gitrev

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"weir/backends/netlab"
)

// git runs git in dir and returns its output.
func git(t testing.TB, dir string, args ...string) string {
	t.Helper()
	netlab.RequireProgram(t, "git")
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "HOME="+dir,
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("git %v: %v: %s", args, err, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// newRepo returns a work tree with one commit.
func newRepo(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(dir, "repo")
	write(t, filepath.Join(dir, "sub", "a.yaml"), "a: 1\n")
	git(t, dir, "init", "-q", "-b", "main")
	git(t, dir, "add", ".")
	git(t, dir, "commit", "-qm", "one")
	return dir
}

func TestHead(t *testing.T) {
	tests := []struct {
		name string
		// prepare changes the repository and returns the directory to ask about.
		prepare func(t *testing.T, repo string) string
	}{
		{"branch", func(t *testing.T, repo string) string { return repo }},
		{"subdirectory", func(t *testing.T, repo string) string { return filepath.Join(repo, "sub") }},
		{"detached", func(t *testing.T, repo string) string { git(t, repo, "checkout", "-q", "--detach"); return repo }},
		{"branch with a slash", func(t *testing.T, repo string) string { git(t, repo, "checkout", "-qb", "a/b"); return repo }},
		{"packed refs", func(t *testing.T, repo string) string { git(t, repo, "pack-refs", "--all"); return repo }},
		{"linked work tree", func(t *testing.T, repo string) string {
			git(t, repo, "worktree", "add", "-q", "../linked")
			return filepath.Join(filepath.Dir(repo), "linked", "sub")
		}},
		{"linked work tree, detached", func(t *testing.T, repo string) string {
			git(t, repo, "worktree", "add", "-q", "--detach", "../linked")
			return filepath.Join(filepath.Dir(repo), "linked")
		}},
		{"separate git directory", func(t *testing.T, repo string) string {
			git(t, repo, "clone", "-q", "--separate-git-dir=../elsewhere", ".", "../clone")
			return filepath.Join(filepath.Dir(repo), "clone")
		}},
		{"shallow clone", func(t *testing.T, repo string) string {
			git(t, repo, "clone", "-q", "--depth=1", "file://"+repo, "../clone")
			return filepath.Join(filepath.Dir(repo), "clone")
		}},
		{"borrowed objects", func(t *testing.T, repo string) string {
			git(t, repo, "clone", "-q", "--shared", ".", "../clone")
			return filepath.Join(filepath.Dir(repo), "clone")
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := tt.prepare(t, newRepo(t))
			r := Find(dir)
			if r == nil {
				t.Fatal("no repository found")
			}
			if want := git(t, dir, "rev-parse", "--show-toplevel"); r.WorkTree != want {
				t.Errorf("WorkTree = %s, want %s", r.WorkTree, want)
			}
			commit, dirs, err := r.Head()
			if want := git(t, dir, "rev-parse", "HEAD"); err != nil || commit != want {
				t.Errorf("Head() = %q, %v, want %s", commit, err, want)
			}
			if len(dirs) == 0 {
				t.Error("Head() names no directory to watch")
			}
			compareTree(t, r, commit)
		})
	}
}

func TestHeadErrors(t *testing.T) {
	if r := Find(t.TempDir()); r != nil {
		t.Errorf("found %+v where there is no repository", r)
	}
	unborn := t.TempDir()
	git(t, unborn, "init", "-q")
	if _, _, err := Find(unborn).Head(); err == nil {
		t.Error("a branch without a commit has a commit")
	}
	for name, head := range map[string]string{
		"garbage": "what", "escape": "ref: refs/../../../etc/passwd", "loop": "ref: refs/heads/loop", "empty": "",
	} {
		repo := newRepo(t)
		write(t, filepath.Join(repo, ".git", "refs", "heads", "loop"), "ref: refs/heads/loop")
		write(t, filepath.Join(repo, ".git", "HEAD"), head)
		if id, _, err := Find(repo).Head(); err == nil {
			t.Errorf("%s: Head() = %q", name, id)
		}
	}
}

// compareTree compares what a commit holds with what git says.
func compareTree(t *testing.T, r *Repo, commit string) {
	t.Helper()
	tree, err := r.Tree(commit, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	err = tree.Walk("", func(string) bool { return false }, func(path string, e Entry) { got[path] = e.ID.String() })
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(git(t, r.WorkTree, "ls-tree", "-r", commit), "\n")
	for _, line := range lines {
		meta, path, _ := strings.Cut(line, "\t")
		if want := strings.Fields(meta)[2]; got[path] != want {
			t.Errorf("%s: %q, want %q", path, got[path], want)
		}
		if e, ok, err := tree.Entry(path); err != nil || !ok || e.Link != strings.HasPrefix(meta, modeLink) {
			t.Errorf("Entry(%s) = %+v, %v, %v", path, e, ok, err)
		}
	}
	if len(got) != len(lines) {
		t.Errorf("%d files, want %d", len(got), len(lines))
	}
}

// TestPacks reads trees that git stored as deltas of deltas.
func TestPacks(t *testing.T) {
	repo := newRepo(t)
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 300 {
		write(t, filepath.Join(repo, "many", fmt.Sprintf("f%03d.yaml", i)), fmt.Sprint(i))
	}
	if err := os.Symlink("many/f001.yaml", filepath.Join(repo, "link.yaml")); err != nil {
		t.Fatal(err)
	}
	var commits []string
	for i := range 12 {
		write(t, filepath.Join(repo, "many", fmt.Sprintf("f%03d.yaml", rnd.IntN(300))), fmt.Sprint("changed ", i))
		git(t, repo, "add", ".")
		git(t, repo, "commit", "-qm", "a long message, so that commits are worth a delta as well, and again the same text")
		commits = append(commits, git(t, repo, "rev-parse", "HEAD"))
	}
	r := Find(repo)
	check := func(how string) {
		t.Run(how, func(t *testing.T) {
			for _, c := range commits {
				compareTree(t, r, c)
			}
		})
	}
	check("loose")
	git(t, repo, "repack", "-adfq", "--depth=50", "--window=50")
	if chain := git(t, repo, "verify-pack", "-sv", filepath.Join(repo, ".git/objects/pack/", firstIndex(t, repo))); !strings.Contains(chain, "chain length") {
		t.Fatal("git made no deltas, so that this proves nothing")
	}
	check("offset deltas")
	git(t, repo, "-c", "repack.useDeltaBaseOffset=false", "repack", "-adfq", "--depth=50", "--window=50")
	check("reference deltas")
}

func firstIndex(t *testing.T, repo string) string {
	t.Helper()
	names, _ := filepath.Glob(filepath.Join(repo, ".git/objects/pack/*.idx"))
	if len(names) == 0 {
		t.Fatal("no pack")
	}
	return filepath.Base(names[0])
}

// TestTreeReuse proves that the directories that two commits share are read once.
func TestTreeReuse(t *testing.T) {
	repo := newRepo(t)
	for i := range 20 {
		write(t, filepath.Join(repo, fmt.Sprint("d", i), "x.yaml"), fmt.Sprint(i))
	}
	git(t, repo, "add", ".")
	git(t, repo, "commit", "-qm", "two")
	r := Find(repo)
	walk := func(old *Tree) *Tree {
		t.Helper()
		id, _, err := r.Head()
		if err != nil {
			t.Fatal(err)
		}
		tree, err := r.Tree(id, old)
		if err != nil {
			t.Fatal(err)
		}
		if err := tree.Walk("", func(string) bool { return false }, func(string, Entry) {}); err != nil {
			t.Fatal(err)
		}
		return tree
	}
	one := walk(nil)
	write(t, filepath.Join(repo, "d3", "x.yaml"), "new")
	git(t, repo, "add", ".")
	git(t, repo, "commit", "-qm", "three")
	// Of the 22 directories all but two are the same; without their objects only memory can know them.
	for id := range one.dirs {
		if hex := id.String(); id != one.root && os.Remove(filepath.Join(repo, ".git/objects", hex[:2], hex[2:])) != nil {
			t.Fatal("object is not loose")
		}
	}
	if two := walk(one); len(two.dirs) != len(one.dirs) {
		t.Errorf("%d directories, want %d", len(two.dirs), len(one.dirs))
	}
}

func TestBlobID(t *testing.T) {
	repo := newRepo(t)
	if got, want := BlobID([]byte("a: 1\n")).String(), git(t, repo, "rev-parse", "HEAD:sub/a.yaml"); got != want {
		t.Errorf("BlobID = %s, want %s", got, want)
	}
}

func FuzzPackedObject(f *testing.F) {
	f.Add([]byte("\x95\x0ax\x9c\x00"), []byte("\x05\x05\x90\x05"))
	f.Add([]byte{0x60, 0x01}, []byte{0x80})
	f.Fuzz(func(t *testing.T, pack, delta []byte) {
		_, _, _ = packedAt(t.TempDir(), bytes.NewReader(pack), 0, 0)
		_, _ = applyDelta([]byte("hello"), delta)
		_, _ = parseTree(pack)
	})
}
