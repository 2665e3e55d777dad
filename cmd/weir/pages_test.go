package main

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// maxPage is how many lines a page has at most.
const maxPage = 200

// pages returns the README and the pages that it leads to, by path.
func pages(t *testing.T) map[string]string {
	t.Helper()
	link := regexp.MustCompile(`\]\(([^)#:]+)\)`)
	all := map[string]string{}
	todo := []string{"../../README.md"}
	for len(todo) > 0 {
		path := todo[0]
		todo = todo[1:]
		if _, seen := all[path]; seen {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Errorf("a page leads to what is not there: %v", err)
			continue
		}
		all[path] = string(text)
		if filepath.Ext(path) == ".md" {
			for _, to := range link.FindAllStringSubmatch(string(text), -1) {
				todo = append(todo, filepath.Join(filepath.Dir(path), to[1]))
			}
		}
	}
	return all
}

// TestPages holds that pages are short, lead nowhere that is not there, and show only commands that exist.
func TestPages(t *testing.T) {
	all := pages(t)
	if len(all) < 10 {
		t.Fatalf("the README leads to %d pages only", len(all))
	}
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	commands := 0
	for path, text := range all {
		if filepath.Ext(path) != ".md" {
			continue
		}
		lines := strings.Split(text, "\n")
		if len(lines) > maxPage {
			t.Errorf("%s has %d lines, more than %d", path, len(lines), maxPage)
		}
		for i, line := range lines {
			line, shown := strings.CutPrefix(line, "    ")
			if !shown {
				continue
			}
			line, _, _ = strings.Cut(line, " #")
			line, _, _ = strings.Cut(line, " > ")
			line = strings.TrimPrefix(strings.TrimSpace(line), "$ ")
			switch fields := strings.Fields(line); {
			case len(fields) == 0:
			case fields[0] == "weir" && !strings.HasSuffix(fields[1], ":"): // no message of weir's
				commands++
				if err := parses(fields[1:]); err != nil {
					t.Errorf("%s:%d: %s: %v", path, i+1, line, err)
				}
			case fields[0] == "make" && len(fields) == 2:
				commands++
				if !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(fields[1]) + `:`).Match(makefile) {
					t.Errorf("%s:%d: the Makefile has no %s", path, i+1, fields[1])
				}
			}
		}
	}
	if commands < 25 {
		t.Errorf("the pages show %d commands, fewer than they did", commands)
	}
}

// parses returns why weir would refuse a command line.
func parses(args []string) error {
	root := newRoot()
	root.SetOut(io.Discard)
	if err := checkCommand(root, args); err != nil {
		return err
	}
	cmd, rest, err := root.Find(args)
	if err != nil {
		return err
	}
	if err := cmd.ParseFlags(rest); err != nil {
		return err
	}
	return cmd.ValidateArgs(cmd.Flags().Args())
}

// TestBenchmarksOfPages holds that each benchmark which a page says to run exists.
func TestBenchmarksOfPages(t *testing.T) {
	said := regexp.MustCompile(`go test (\./[a-z/.]+) -run '\^\$' -bench ([A-Za-z./|]+)`)
	found := 0
	for path, text := range pages(t) {
		for _, m := range said.FindAllStringSubmatch(strings.ReplaceAll(text, "\n", " "), -1) {
			found++
			dir := filepath.Join("../..", strings.TrimSuffix(m[1], "/..."))
			name, _, _ := strings.Cut(m[2], "/")
			if !slices.ContainsFunc(benchmarks(t, dir), regexp.MustCompile(name).MatchString) {
				t.Errorf("%s: %s has no benchmark %s", path, m[1], m[2])
			}
		}
	}
	if found < 5 {
		t.Errorf("the pages say to run %d benchmarks, fewer than they did", found)
	}
}

// benchmarks returns the names of those below a directory.
func benchmarks(t *testing.T, dir string) (names []string) {
	t.Helper()
	declared := regexp.MustCompile(`(?m)^func Benchmark([A-Za-z0-9]*)`)
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range declared.FindAllStringSubmatch(string(text), -1) {
			names = append(names, m[1])
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// TestFirstService holds that the manifests of the README are ones that weir takes without a word.
func TestFirstService(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, yaml, found := strings.Cut(string(text), "```yaml\n")
	yaml, _, closed := strings.Cut(yaml, "```\n")
	if !found || !closed {
		t.Fatal("the README has no manifests")
	}
	file := filepath.Join(t.TempDir(), "app.yaml")
	if err := os.WriteFile(file, []byte(yaml), 0o644); err != nil {
		t.Fatal(err)
	}
	out, errors, code := weirCommand(t, "validate", "-f", file, "--fail-on", "warning")
	if code != exitOK {
		t.Errorf("exit code %d\n%s\n%s", code, out, errors)
	}
}
