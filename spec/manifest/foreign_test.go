package manifest

import (
	"errors"
	"hash/maphash"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"weir/spec"
	"weir/spec/document"
)

// FuzzForeign takes documents for foreign by their raw bytes and decodes them all the same: none that counts as foreign
// is of a kind that a Set reads, declares anything, or would be told as a problem.
func FuzzForeign(f *testing.F) {
	seeds, err := filepath.Glob(invalidDir + "/*.yaml")
	repositories, errRepositories := filepath.Glob(invalidDir + "/../repositories/*.txtar")
	if err := errors.Join(err, errRepositories); err != nil || len(repositories) == 0 {
		f.Fatal("there are no seeds: ", err)
	}
	for _, name := range seeds {
		if data, err := os.ReadFile(name); err == nil && len(data) < 4096 {
			f.Add(data)
		}
	}
	for _, name := range repositories {
		archive, err := txtar.ParseFile(name)
		if err != nil {
			f.Fatal(err)
		}
		for _, part := range archive.Files {
			if strings.HasPrefix(part.Name, "repo/") && len(part.Data) < 4096 {
				f.Add(part.Data)
			}
		}
	}
	for _, text := range []string{
		"kind: Deployment\n\"kind\": Service\n", "kind: Deployment\n? kind\n: Service\n", "kind: &a Service\n", "kind: 'Service' # x\n",
		"---\nkind: A\n...\nkind: Service\n", "a: |\n  kind: Service\nkind: Deployment\n", "kind:\n  Service\n", "{kind: Service, a: b}\n",
		"k\u0085kind: Service\n", "kind: Deployment\r kind: Service\r", "x: \"\\x6bind\"\n", "\"\\x6bind\": Service\n", "kind : Service\n", "kind: List\nitems: [{kind: Service}]\n",
		"\ufeffkind: Service\n", "kind: PodList\nitems: [{apiVersion: v1, kind: Service}]\n", "<<: {kind: Service}\nkind: Foo\n",
	} {
		f.Add([]byte("apiVersion: v1\n" + text))
		f.Add([]byte("apiVersion: apps/v1\n" + text))
		f.Add([]byte("apiVersion: v1/\n" + text))
		f.Add([]byte(text))
	}
	d := &decoder{seed: maphash.MakeSeed(), intern: &interner{}}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, name := range []string{"a.yaml", "a.json"} {
			texts, fault := document.Split(name, data)
			if fault != nil {
				continue
			}
			for _, text := range texts {
				tops := topKind.FindAllSubmatch(text.Data, 2)
				if only, ok := onlyTopKind(text.Data); ok != (len(tops) == 1 && len(tops[0][1]) > 0) || ok && only != string(tops[0][1]) {
					t.Errorf("the only kind is %q, %v; the expression finds %q in %q", only, ok, tops, text.Data)
				}
				kind, ok := foreign(name, text.Data)
				if !ok || mayPromise(kind, text.Data) { // which is decoded all the same
					continue
				}
				c := d.decode(name, text, 0)
				if c.ours || c.declares() || len(c.problems) > 0 || c.chart || c.kustomization != nil || len(c.unchosen) > 0 {
					t.Errorf("%s is taken for foreign (%s): ours %v, declares %v, problems %v:\n%q", name, kind, c.ours, c.declares(), c.problems, text.Data)
				}
			}
		}
	})
}

// TestIgnoreMarkBelowDirective leaves out a file whose head has a directive of YAML above the comment.
func TestIgnoreMarkBelowDirective(t *testing.T) {
	all := Skim("a.yaml", []byte("%YAML 1.1\n# weir:ignore\n---\napiVersion: v1\nkind: Service\n"))
	if len(all) != 1 || all[0].Kind != spec.SkippedFile || all[0].Origin.Line != 2 {
		t.Errorf("got %v", all)
	}
}
