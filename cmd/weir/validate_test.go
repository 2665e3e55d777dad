package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"weir/reconcile/review"
)

// TestValidateFormats prints what is wrong with an input, and what is notable about another, in every format.
func TestValidateFormats(t *testing.T) {
	for _, input := range []struct {
		name string
		code int
	}{{"broken", exitFailure}, {"noticed", exitOK}} {
		for format, check := range map[string]func(*testing.T, string){
			"text":   func(*testing.T, string) {},
			"json":   func(t *testing.T, out string) { checkSchema(t, "validation.schema.json", []byte(out)) },
			"junit":  checkJUnit,
			"sarif":  checkSARIF,
			"github": checkGitHub,
		} {
			t.Run(input.name+"/"+format, func(t *testing.T) {
				args := []string{"validate", "-f", input.name + ".yaml", "-o", format}
				out, errOut, code := weirCommand(t, args...)
				if code != input.code || format != "text" && errOut != "" {
					t.Errorf("exit code %d: %s", code, errOut)
				}
				golden(t, input.name+"."+format, out+errOut)
				check(t, out)
				if again, _, _ := weirCommand(t, args...); again != out {
					t.Error("the same again prints something else")
				}
			})
		}
	}
}

func TestValidateExitCodes(t *testing.T) {
	for _, tt := range []struct {
		args string
		want int
	}{
		{"-f noticed.yaml --fail-on warning", exitFailure},
		{"-f noticed.yaml --fail-on warning -o json", exitFailure},
		{"-f before.yaml --fail-on error", exitUsage},
		{"-f before.yaml -o html", exitUsage},
		{"-f nonesuch -o sarif", exitFailure},
	} {
		if out, errOut, code := weirCommand(t, append([]string{"validate"}, strings.Fields(tt.args)...)...); code != tt.want {
			t.Errorf("%s: exit code %d, want %d: %s%s", tt.args, code, tt.want, out, errOut)
		}
	}
}

// checkJUnit parses a report as the systems do that show it.
func checkJUnit(t *testing.T, out string) {
	var doc struct {
		XMLName  xml.Name `xml:"testsuites"`
		Tests    int      `xml:"tests,attr"`
		Failures int      `xml:"failures,attr"`
		Suites   []struct {
			Tests    int `xml:"tests,attr"`
			Failures int `xml:"failures,attr"`
			Cases    []struct {
				Name    string `xml:"name,attr"`
				Class   string `xml:"classname,attr"`
				Failure *struct {
					Message string `xml:"message,attr"`
				} `xml:"failure"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal([]byte(out), &doc); err != nil || len(doc.Suites) != 1 {
		t.Fatalf("%v: %+v", err, doc)
	}
	failures := 0
	for _, c := range doc.Suites[0].Cases {
		if c.Name == "" || c.Class == "" || c.Failure != nil && c.Failure.Message == "" {
			t.Errorf("%+v", c)
		}
		if c.Failure != nil {
			failures++
		}
	}
	if s := doc.Suites[0]; doc.Tests != len(s.Cases) || s.Tests != len(s.Cases) || doc.Failures != failures || s.Failures != failures {
		t.Errorf("the counts are wrong: %+v", doc)
	}
}

// checkSARIF checks a log against the published schema, and what the schema cannot say: that results refer to rules that
// are there, and that files are named relative to the working directory.
func checkSARIF(t *testing.T, out string) {
	conforms(t, sarifSchema(t), []byte(out))
	var log struct {
		Version string
		Runs    []struct {
			Tool struct {
				Driver struct{ Rules []struct{ ID string } }
			}
			Results []struct {
				RuleID    string
				RuleIndex int
				Locations []struct {
					PhysicalLocation struct{ ArtifactLocation struct{ URI string } }
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &log); err != nil || log.Version != sarifVersion || len(log.Runs) != 1 {
		t.Fatalf("%v: %+v", err, log)
	}
	run := log.Runs[0]
	for _, r := range run.Results {
		if i := r.RuleIndex; i < 0 || i >= len(run.Tool.Driver.Rules) || run.Tool.Driver.Rules[i].ID != r.RuleID {
			t.Errorf("%s has the rule %d", r.RuleID, r.RuleIndex)
		}
		for _, l := range r.Locations {
			if uri := l.PhysicalLocation.ArtifactLocation.URI; strings.HasPrefix(uri, "/") || strings.Contains(uri, ":") {
				t.Errorf("a file is named %s", uri)
			}
		}
	}
}

var workflowCommand = regexp.MustCompile(`^::(error|warning|notice) (file=[^,:]+,line=[0-9]+,)?title=[^,:]+::[^\r\n]+$`)

func checkGitHub(t *testing.T, out string) {
	for line := range strings.Lines(out) {
		if !workflowCommand.MatchString(strings.TrimSuffix(line, "\n")) {
			t.Errorf("not a workflow command: %s", line)
		}
	}
}

// TestHostileFindings names files and fields after what formats have a meaning for.
func TestHostileFindings(t *testing.T) {
	dir := t.TempDir()
	name := dir + "/a,b:c%0A::error::d\x1b[31m\"<&>.yaml"
	text := "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {\"x\\n::error::y\": 1, ports: [{port: 80}]}\n"
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	for format, check := range map[string]func(*testing.T, string){"github": checkGitHub, "junit": checkJUnit, "sarif": nil, "json": nil, "text": nil} {
		var out, errOut bytes.Buffer
		if code := execute([]string{"validate", "-f", name, "-o", format}, strings.NewReader(""), &out, &errOut); code != exitFailure {
			t.Errorf("%s: exit code %d", format, code)
		}
		if strings.Contains(out.String()+errOut.String(), "\x1b") {
			t.Errorf("%s: an escape sequence gets through: %q", format, out.String()+errOut.String())
		}
		if check != nil {
			check(t, out.String())
		}
		if format == "sarif" || format == "json" {
			dec := json.NewDecoder(&out)
			if err := dec.Decode(new(any)); err != nil {
				t.Errorf("%s: %v", format, err)
			}
		}
	}
}

// TestWarningsAreDocumented compares the IDs that the code declares with those that "weir help warnings" and README have.
func TestWarningsAreDocumented(t *testing.T) {
	declared := declaredIDs(t)
	var kinds []string
	for _, k := range review.Kinds() {
		kinds = append(kinds, string(k.ID))
		if k.Severity != review.SeverityWarning && k.Severity != review.SeverityInfo || !strings.HasSuffix(k.Meaning, ".") {
			t.Errorf("%+v", k)
		}
	}
	if strings.Join(declared, " ") != strings.Join(kinds, " ") {
		t.Errorf("declared: %v\ndescribed: %v", declared, kinds)
	}
	help, _, _ := weirCommand(t, "help", "warnings")
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for i, k := range review.Kinds() {
		if short := "W" + strconv.Itoa(1001 + i)[1:]; k.ID.Short() != short {
			t.Errorf("%s should begin with %s", k.ID, short)
		}
		if !strings.Contains(help, string(k.ID)) {
			t.Errorf("weir help warnings does not have %s", k.ID)
		}
		if row := "| `" + string(k.ID) + "` | " + k.Severity + " | " + k.Meaning + " |"; !bytes.Contains(readme, []byte(row)) {
			t.Errorf("README does not have the row\n%s", row)
		}
	}
}

// declaredIDs returns the values of the constants of type ID.
func declaredIDs(t *testing.T) (ids []string) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "../../reconcile/review/kinds.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if typ, ok := spec.Type.(*ast.Ident); ok && typ.Name == "ID" {
			for _, v := range spec.Values {
				id, err := strconv.Unquote(v.(*ast.BasicLit).Value)
				if err != nil {
					t.Fatal(err)
				}
				ids = append(ids, id)
			}
		}
		return true
	})
	return ids
}
