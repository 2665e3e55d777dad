package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestManPages writes the man pages, which say what the help says, the same each time.
func TestManPages(t *testing.T) {
	b := build{Version: "v0.4.0", Time: "2026-11-30T03:15:00Z"}
	write := func() map[string]string {
		dir, pages := t.TempDir(), map[string]string{}
		if err := writeManPages(dir, b); err != nil {
			t.Fatal(err)
		}
		files, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			pages[filepath.Base(file)] = string(text)
		}
		return pages
	}
	pages := write()
	for name, text := range write() {
		if pages[name] != text {
			t.Errorf("%s is another one the second time", name)
		}
	}
	for name, wants := range map[string][]string{
		"weir.8":        {`.TH "WEIR" "8" "Nov 2026" "weir v0.4.0" "weir"`, "weir-run(8)"},
		"weir-run.8":    {"--proxy-mode"},
		"weir-dns.8":    {`_http._tcp.web.default.svc.cluster.local for a named port`},
		"weir-status.8": {"[NAME | NAMESPACE/NAME]", "no weir is running"},
	} {
		for _, want := range wants {
			if !strings.Contains(strings.ReplaceAll(pages[name], `\&`, ""), want) {
				t.Errorf("%s does not say %q:\n%s", name, want, pages[name])
			}
		}
	}
	if _, ok := pages["weir-man.8"]; ok {
		t.Error("the command that writes the pages has one")
	}
}
