package reconcile_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// importRules says what each part of the module may import of the module itself. The first rule whose prefix matches
// counts.
var importRules = []struct {
	in      string   // the importing package, or a folder above it
	allowed []string // packages, or folders that end in "/..."
	why     string
}{
	{"cmd", []string{"..."}, ""},
	{"reconcile/tell/", []string{"spec/...", "backends", "backends/dataplane", "reconcile", "reconcile/tell/..."},
		"what tells hangs on the Loop and on values: it knows no backend"},
	{"reconcile", []string{"spec/...", "backends", "backends/dataplane", "reconcile"},
		"reconcile decides: it sees backends through their interface, and never one of them; what tells depends on it, and it on none of that"},
	{"spec", []string{"spec/...", "backends/dataplane"}, "spec knows what people write: it knows no kernel and no reconciler"},
	{"backends/netlab", []string{"backends/netlab/..."}, "the network laboratory is for tests of everything else"},
	{"backends/backendtest", []string{"backends", "backends/dataplane"}, "the conformance suite knows a backend by its interface only"},
	{"backends/dataplane", nil, "the vocabulary of the data path is a leaf"},
	{"backends/doctor", nil, "the words of an examination are a leaf"},
	{"backends/nfnl", []string{"backends/nfnl/..."}, "the wire of nf_tables knows the kernel's objects and nothing of weir"},
	{"backends/xtables", []string{"backends", "backends/dataplane", "backends/doctor", "backends/nfnl"},
		"the kernel part under the backends that write rules of iptables holds plain values: it knows no backend"},
	{"backends/", []string{"backends", "backends/dataplane", "backends/SELF/...", "backends/conntrack", "backends/doctor", "backends/hostnet", "backends/nfnl", "backends/xtables"},
		"a backend imports the shared words and the kernel parts below backends, neither another backend nor anything above"},
	{"backends", []string{"backends/dataplane"}, "what a backend is knows the vocabulary and nothing else of weir"},
}

// testsMayImport is what tests may use besides.
var testsMayImport = map[string][]string{
	"reconcile": {"backends/fake", "backends/backendtest", "backends/netlab/..."},
	"backends":  {"backends/fake", "backends/backendtest", "backends/netlab/...", "backends/nfnl/nfnltest", "backends", "spec/seed"},
	"spec":      {"testdata/...", "backends/netlab/..."},
}

// forbidden are names of packages that collect what belongs elsewhere.
var forbidden = map[string]bool{"util": true, "utils": true, "common": true, "helpers": true, "misc": true}

func TestImportsRunOneWay(t *testing.T) {
	root := moduleRoot(t)
	module := "weir"
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, file)
		if d.IsDir() {
			if name := d.Name(); rel != "." && (strings.HasPrefix(name, ".") || name == "testdata") {
				return filepath.SkipDir
			}
			if forbidden[d.Name()] {
				t.Errorf("%s: a package is named for what it is, not %q", rel, d.Name())
			}
			return nil
		}
		if !strings.HasSuffix(file, ".go") {
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			t.Errorf("%s: %v", rel, err)
			return nil
		}
		for _, spec := range parsed.Imports {
			imported, _ := strconv.Unquote(spec.Path.Value)
			if imported, ours := strings.CutPrefix(imported, module+"/"); ours {
				checkImport(t, filepath.ToSlash(rel), imported)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func checkImport(t *testing.T, file, imported string) {
	pkg := path.Dir(file)
	for _, rule := range importRules {
		if !strings.HasPrefix(pkg, rule.in) {
			continue
		}
		allowed := rule.allowed
		if strings.HasSuffix(file, "_test.go") {
			top, _, _ := strings.Cut(pkg, "/")
			allowed = append(append([]string(nil), allowed...), testsMayImport[top]...)
		}
		for _, a := range allowed {
			if matches(strings.Replace(a, "SELF", second(pkg), 1), imported) {
				return
			}
		}
		t.Errorf("%s must not import %s: %s", file, imported, rule.why)
		return
	}
	if pkg != "." && strings.HasPrefix(pkg, "examples") {
		return
	}
	if !strings.HasSuffix(file, "_test.go") {
		t.Errorf("%s imports %s, and no rule says what %s may import", file, imported, pkg)
	}
}

func second(pkg string) string {
	parts := strings.Split(pkg, "/")
	if len(parts) < 2 {
		return ""
	}
	return parts[1]
}

func matches(pattern, imported string) bool {
	if pattern == "..." {
		return true
	}
	if folder, ok := strings.CutSuffix(pattern, "/..."); ok {
		return imported == folder || strings.HasPrefix(imported, folder+"/")
	}
	return imported == pattern
}

// moduleRoot returns the directory of go.mod.
func moduleRoot(t *testing.T) string {
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for dir != filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		dir = filepath.Dir(dir)
	}
	t.Fatal("no go.mod above the test")
	return ""
}
