package gitrev

import (
	"fmt"
	"path/filepath"
	"testing"
)

// BenchmarkCommit compares what reading a commit of 10,000 files costs here and in git: the first one, and one that changes
// one file.
func BenchmarkCommit(b *testing.B) {
	const files = 10_000
	repo := b.TempDir()
	file := func(i int) string { return filepath.Join(repo, fmt.Sprintf("d%02d", i%100), fmt.Sprintf("%d.yaml", i)) }
	for i := range files {
		write(b, file(i), fmt.Sprint(i))
	}
	git(b, repo, "init", "-q", "-b", "main")
	commit := func() string {
		git(b, repo, "add", ".")
		git(b, repo, "commit", "-qm", "x")
		return git(b, repo, "rev-parse", "HEAD")
	}
	before := commit()
	write(b, file(0), "changed")
	after := commit()
	git(b, repo, "repack", "-adq")
	r := Find(repo)
	walk := func(commit string, old *Tree) *Tree {
		t, err := r.Tree(commit, old)
		n := 0
		if err == nil {
			err = t.Walk("", func(string) bool { return false }, func(string, Entry) { n++ })
		}
		if err != nil || n != files {
			b.Fatal(n, err)
		}
		return t
	}
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			walk(before, nil)
		}
	})
	b.Run("first by git", func(b *testing.B) {
		for b.Loop() {
			git(b, repo, "ls-tree", "-r", before)
		}
	})
	old := walk(before, nil)
	b.Run("next", func(b *testing.B) {
		for b.Loop() {
			walk(after, old)
		}
	})
	b.Run("next by git", func(b *testing.B) {
		for b.Loop() {
			git(b, repo, "diff-tree", "-r", before, after)
		}
	})
}
