package manifest

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	yamlv3 "go.yaml.in/yaml/v3"
	"golang.org/x/tools/txtar"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"weir/spec/apisource/apitest"
	"weir/spec/document"
)

// repositoryFile is a file of a case in testdata/repositories.
type repositoryFile struct{ name, data string }

var repositoryResult = regexp.MustCompile(`^(validate|plan|run( [0-9]+)?)$`)

// repositoryFiles returns the manifests of all cases in testdata/repositories, at all steps.
func repositoryFiles(t *testing.T) []repositoryFile {
	t.Helper()
	cases, err := filepath.Glob("../../testdata/repositories/*.txtar")
	if err != nil || len(cases) == 0 {
		t.Fatal("there are no cases: ", err)
	}
	var files []repositoryFile
	for _, c := range cases {
		archive, err := txtar.ParseFile(c)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range archive.Files {
			name, data := f.Name, string(f.Data)
			if plain, ok := strings.CutSuffix(name, " (escaped)"); ok {
				name, data = plain, unescaped(t, data)
			}
			switch path.Ext(name) {
			case ".yaml", ".yml", ".json":
				if !repositoryResult.MatchString(name) && !strings.Contains(name, " -> ") {
					files = append(files, repositoryFile{strings.TrimSuffix(filepath.Base(c), ".txtar") + ": " + name, data})
				}
			}
		}
	}
	return files
}

// unescaped returns the text of which every line is the inside of a Go string, with its line end.
func unescaped(t *testing.T, data string) string {
	t.Helper()
	var out strings.Builder
	for line := range strings.Lines(data) {
		text, err := strconv.Unquote(`"` + strings.ReplaceAll(strings.TrimSuffix(line, "\n"), `"`, `\"`) + `"`)
		if err != nil {
			t.Fatal(err)
		}
		out.WriteString(text)
	}
	return out.String()
}

// asKubectl returns the documents of a file as JSON, as kubectl reads them.
func asKubectl(data string) (docs []string, err error) {
	reader := utilyaml.NewYAMLReader(bufio.NewReader(strings.NewReader(data)))
	for {
		text, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return docs, nil
		} else if err != nil {
			return nil, err
		}
		asJSON, err := yaml.YAMLToJSONStrict(text)
		if err != nil {
			return nil, err
		}
		if string(asJSON) != "null" {
			docs = append(docs, string(asJSON))
		}
	}
}

// asParser returns the documents of a file as JSON, as yaml/v3 reads them.
func asParser(data string) (docs []string, err error) {
	decoder := yamlv3.NewDecoder(strings.NewReader(data))
	for {
		var v any
		if err := decoder.Decode(&v); errors.Is(err, io.EOF) {
			return docs, nil
		} else if err != nil {
			return nil, err
		}
		asJSON, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		if string(asJSON) != "null" {
			docs = append(docs, string(asJSON))
		}
	}
}

// asWeir returns the documents of a file as JSON, as weir reads them.
func asWeir(f repositoryFile) (docs []string, err error) {
	texts, problem := document.Split(f.name, []byte(f.data))
	if problem != nil {
		return nil, errors.New(problem.Detail)
	}
	for _, text := range texts {
		d := document.Parse(text)
		if len(d.Problems()) > 0 {
			return nil, errors.New(d.Problems()[0].Detail)
		}
		if s := string(d.JSON()); s != "null" && s != "" {
			docs = append(docs, s)
		}
	}
	return docs, nil
}

// yamlExceptions are the files that weir reads otherwise than a peer does, by their names and the peer's.
var yamlExceptions = []struct {
	names *regexp.Regexp
	why   string
}{
	{regexp.MustCompile(`\.json .*`), "a file called .json is JSON to weir, and not YAML"},
	{regexp.MustCompile(`^ours-booleans: repo/a.yaml yaml/v3$`), "keys such as on and y are booleans to kubectl, and strings to yaml/v3"},
	{regexp.MustCompile(`^ours-encodings: repo/utf-16.yaml yaml/v3$`), "yaml/v3 reads UTF-16"},
	{regexp.MustCompile(`^ours-left-over: repo/a.yaml kubectl$`), "kubectl drops what follows the first document of a chunk"},
	{regexp.MustCompile(`^ours-line-ends-garbage: repo/web.yaml kubectl$`), "kubectl knows no line end but a line feed, and drops the rest"},
	{regexp.MustCompile(`^ours-line-ends: repo/web.yaml kubectl$`), "the same: it loses the second document"},
	{regexp.MustCompile(`^ours-line-ends: repo/db.yaml `), "a byte order mark before the second document is one to weir only"},
	{regexp.MustCompile(`^ours-merge-keys: repo/web.yaml `), "the peers know %YAML 1.1 only"},
	{regexp.MustCompile(`^ours-merge-keys: repo/svc.yaml kubectl$`), "to the strict reader a key that overrides a merged one is there twice"},
}

// TestRepositoriesYAML reads the files in testdata/repositories with sigs.k8s.io/yaml, as kubectl does, and with yaml/v3.
// Each of them gets the same documents as weir, or an error as weir does, but for the exceptions above.
func TestRepositoriesYAML(t *testing.T) {
	t.Parallel()
	used := map[int]bool{}
	for _, f := range repositoryFiles(t) {
		got, err := asWeir(f)
		for peer, read := range map[string]func(string) ([]string, error){"kubectl": asKubectl, "yaml/v3": asParser} {
			want, wantErr := read(f.data)
			diff := ""
			if err == nil && wantErr == nil {
				diff = cmp.Diff(normalJSON(t, want), normalJSON(t, got))
			}
			if (err != nil) == (wantErr != nil) && diff == "" {
				continue
			}
			excepted := false
			for i, e := range yamlExceptions {
				if e.names.MatchString(f.name + " " + peer) {
					excepted, used[i] = true, true
				}
			}
			if !excepted {
				t.Errorf("%s: weir: %v; %s: %v\n%s", f.name, err, peer, wantErr, diff)
			}
		}
	}
	for i, e := range yamlExceptions {
		if !used[i] {
			t.Errorf("nothing differs because of %s: %s", e.names, e.why)
		}
	}
}

func normalJSON(t *testing.T, docs []string) []any {
	t.Helper()
	var all []any
	for _, d := range docs {
		var v any
		if err := json.Unmarshal([]byte(d), &v); err != nil {
			t.Fatal(err)
		}
		all = append(all, v)
	}
	return all
}

// TestRepositoriesPeer has a real API server judge every document of weir's kinds in testdata/repositories: it and weir
// refuse the same ones, but for the exceptions of TestPeer.
func TestRepositoriesPeer(t *testing.T) {
	server := apitest.Start(t, apitest.Options{})
	judged := map[string]int{}
	for _, f := range repositoryFiles(t) {
		docs, err := asWeir(f)
		if err != nil {
			continue // TestRepositoriesYAML compares what cannot be read
		}
		for _, doc := range docs {
			for _, object := range objectsOf(t, doc) {
				kind, path, text := forServer(t, object)
				if path == "" {
					continue
				}
				judged[kind]++
				refused := askServer(t, server, path, []string{text})[0]
				if problem := compareWithServer(text, refused); problem != "" {
					t.Errorf("%s: %s\n%s", f.name, problem, text)
				}
			}
		}
	}
	if judged["Service"] < 100 || judged["EndpointSlice"] < 50 {
		t.Errorf("only %v are judged", judged)
	}
}

// objectsOf returns the objects of a document, which may be a List, even of Lists.
func objectsOf(t *testing.T, doc string) []map[string]any {
	t.Helper()
	var object any
	if err := json.Unmarshal([]byte(doc), &object); err != nil {
		t.Fatal(err)
	}
	return within(object)
}

func within(v any) (all []map[string]any) {
	object, ok := v.(map[string]any)
	if !ok {
		return nil
	}
	items, isList := object["items"].([]any)
	if !isList {
		return []map[string]any{object}
	}
	for _, item := range items {
		all = append(all, within(item)...)
	}
	return all
}

// forServer returns where an API server takes an object, and the object in the namespace that the server has. The path is
// "" if weir reads no such objects.
func forServer(t *testing.T, object map[string]any) (kind, path, text string) {
	t.Helper()
	version, _ := object["apiVersion"].(string)
	kind, _ = object["kind"].(string)
	for _, k := range peerKinds {
		var base struct{ APIVersion, Kind string }
		if err := json.Unmarshal([]byte(k.base), &base); err != nil {
			t.Fatal(err)
		}
		if base.APIVersion == version && base.Kind == kind {
			path = k.path
		}
	}
	if m, ok := object["metadata"].(map[string]any); ok {
		delete(m, "namespace")
	}
	data, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	return kind, path, string(data)
}
