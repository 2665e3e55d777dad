package choice

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"weir/backends/netlab"
	"weir/spec/seed"
)

// TestLikeGit compares random patterns with what the git program makes of the same ones in .gitignore files, one at the
// top and one further down.
func TestLikeGit(t *testing.T) {
	netlab.RequireProgram(t, "git")
	r := seed.Rand(t)
	dir := t.TempDir()
	git(t, dir, "", "init", "-q")
	var paths []string
	isDir := map[string]bool{}
	for _, top := range []string{"a", "ab", "x y", "a{1}", "b.yaml", "#a", "!a", "e ", "A", "a[b]", `a\b`} {
		for _, below := range []string{"", "a", "b.yaml", "c", "c/a", "c/d", "c/d/b.yaml", "c/.h"} {
			p := path.Join(top, below)
			paths = append(paths, p)
			isDir[p] = below == "" || below == "c" || below == "c/d"
			var err error
			if isDir[p] {
				err = os.Mkdir(filepath.Join(dir, p), 0o755)
			} else {
				err = os.WriteFile(filepath.Join(dir, p), nil, 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 80 {
		rules := Rules{Ignores: map[string]Patterns{}}
		texts := map[string]string{}
		for _, at := range []string{".", "a/c"} {
			texts[at] = randomFile(r)
			if at != "." && r.IntN(2) == 0 {
				texts[at] = ""
			}
			if err := os.WriteFile(filepath.Join(dir, at, ".gitignore"), []byte(texts[at]), 0o644); err != nil {
				t.Fatal(err)
			}
			rules.Ignores[at] = ParseFile([]byte(texts[at]))
		}
		ignored := "\x00" + git(t, dir, strings.Join(paths, "\x00"), "check-ignore", "--no-index", "--stdin", "-z")
		for _, p := range paths {
			if got, want := excluded(&rules, p, isDir[p]), strings.Contains(ignored, "\x00"+p+"\x00"); got != want {
				t.Errorf("%q: %q is excluded: %v, git: %v", texts, p, got, want)
			}
		}
	}
}

// randomFile returns an ignore file, as any editor may write one.
func randomFile(r *rand.Rand) string {
	end := "\n"
	if r.IntN(4) == 0 {
		end = "\r\n"
	}
	text := strings.Join(randomLines(r), end)
	if r.IntN(4) > 0 {
		text += end
	}
	if r.IntN(6) == 0 {
		text = "\xef\xbb\xbf" + text
	}
	return text
}

// excluded reports whether a path or a directory above it is left out.
func excluded(r *Rules, p string, isDir bool) bool {
	if dir := path.Dir(p); dir != "." && excluded(r, dir, true) {
		return true
	}
	return r.Excludes(p, isDir)
}

func randomLines(r *rand.Rand) []string {
	parts := []string{"a", "ab", "*", "**", "b.yaml", "*.yaml", "c", "?", "[ab]", "[!a]*", "[^a]", "[a-c]", "d", "a{1}", "x y", "*a*", "#a", `\#a`, `\!a`, "!a",
		`e\ `, "e ", "A", `\a`, `a\[b\]`, "a[[]b]", `a\\b`, ".h", "[+-a]", "[a-]", "[z-a]", "[!/]", "**.yaml", "[[:alpha:]]", "[]a]", "[", "a[", "c/", ""}
	var lines []string
	for range 1 + r.IntN(4) {
		line := ""
		if r.IntN(4) == 0 {
			line = "!"
		}
		if r.IntN(4) == 0 {
			line += "/"
		}
		for i := range 1 + r.IntN(3) {
			if i > 0 {
				line += "/"
			}
			line += parts[r.IntN(len(parts))]
		}
		if r.IntN(4) == 0 {
			line += "/"
		}
		lines = append(lines, line+strings.Repeat(" ", r.IntN(2))+oneOf(r, "", "", "", "", "\t"))
	}
	return lines
}

func oneOf(r *rand.Rand, values ...string) string { return values[r.IntN(len(values))] }

func git(t *testing.T, dir, stdin string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", append([]string{"-c", "core.quotePath=false", "-c", "core.excludesFile=/dev/null"}, args...)...)
	cmd.Dir, cmd.Stdin = dir, strings.NewReader(stdin)
	out, err := cmd.Output()
	if err != nil && cmd.ProcessState.ExitCode() != 1 { // 1: nothing is ignored
		t.Fatal(err)
	}
	return string(out)
}

func TestParseGlob(t *testing.T) {
	for name, want := range map[string]string{"services/*.yaml": "services|*.yaml", "*.yaml": ".|*.yaml", "/srv/**/web.yaml": "/srv|**/web.yaml", "/*.yaml": "/|*.yaml", "a[b]/c": ".|a[b]/c"} {
		if g, err := ParseGlob(name); err != nil || g.Dir+"|"+g.Rest != want || len(g.Files) != 1 {
			t.Errorf("%s: %+v, %v, want %s", name, g, err, want)
		}
	}
	if g, err := ParseGlob("services"); g != nil || err != nil {
		t.Error("a plain path passes for a glob")
	}
	for _, name := range []string{"[", "t/[", "sub/x[1", "*[", "[]", "[!]", "[[:alpha:]", "[[:nonesuch:]]", "*\\", "d/[b-a].yaml/["} {
		if g, err := ParseGlob(name); g != nil || err == nil {
			t.Errorf("%s: %+v passes for a glob", name, g)
		}
	}
}
