package main_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestAttacksAreHeld checks that every test and scenario exists that the page of attacks names.
func TestAttacksAreHeld(t *testing.T) {
	t.Parallel()
	const root = "../.."
	page, err := os.ReadFile(root + "/testdata/ATTACKS.md")
	if err != nil {
		t.Fatal(err)
	}
	word := regexp.MustCompile("`([^`]+)`|\\bTest\\w+")
	found := 0
	for line := range strings.Lines(string(page)) {
		if cells := strings.Split(line, "|"); len(cells) == 5 && !strings.HasPrefix(line, "| fault") {
			checkHolders(t, root, cells, word)
			found++
		}
	}
	if found < 20 {
		t.Errorf("only %d rows were found", found)
	}
}

func checkHolders(t *testing.T, root string, cells []string, word *regexp.Regexp) {
	t.Helper()
	dir, held := "", false
	for _, m := range word.FindAllStringSubmatch(cells[2], -1) {
		switch {
		case m[1] == "":
			held = true
			if !hasTest(t, filepath.Join(root, dir), m[0]) {
				t.Errorf("%s: %s has no %s", strings.TrimSpace(cells[1]), dir, m[0])
			}
		case strings.HasSuffix(m[1], ".txtar"):
			held = true
			if _, err := os.Stat(filepath.Join(root, m[1])); err != nil {
				t.Error(err)
			}
		default:
			dir = m[1]
		}
	}
	if !held && !strings.Contains(cells[2], "---") {
		t.Errorf("%s: no test is named", strings.TrimSpace(cells[1]))
	}
}

func hasTest(t *testing.T, dir, name string) bool {
	t.Helper()
	files, err := filepath.Glob(dir + "/*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "\nfunc "+name+"(") {
			return true
		}
	}
	return false
}
