package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"weir/spec"
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

// TestNoticesAreGrouped prints an input with many notices of few kinds, and Services that no proxy serves.
func TestNoticesAreGrouped(t *testing.T) {
	for _, tt := range []struct {
		golden, args string
		code         int
	}{
		{"grouped.text", "validate -f grouped.yaml", exitOK},
		{"grouped.verbose", "validate -f grouped.yaml --verbose", exitOK},
		{"grouped.failed", "validate -f grouped.yaml --fail-on W005", exitFailure},
		{"grouped.plan", "plan -f grouped.yaml --against empty", exitOK},
		{"grouped.plan-failed", "plan -f grouped.yaml --against before.yaml --fail-on W005", exitFailure},
		{"grouped.markdown", "reconcile --dry-run -f grouped.yaml --against empty -o markdown", exitOK},
	} {
		out, errOut, code := weirCommand(t, strings.Fields(tt.args)...)
		if code != tt.code || code != exitOK && strings.Contains(out+errOut, "ok:") {
			t.Errorf("weir %s: exit code %d:\n%s%s", tt.args, code, out, errOut)
		}
		golden(t, tt.golden, out+errOut)
	}
	out, _, _ := weirCommand(t, "validate", "-f", "grouped.yaml", "-o", "json", "--fail-on", "W005")
	checkSchema(t, "validation.schema.json", []byte(out))
	if n := strings.Count(out, `"rule"`); n != 11 || !strings.Contains(out, `"failures": 5,`) {
		t.Errorf("%d findings in JSON:\n%s", n, out)
	}
	out, _, _ = weirCommand(t, "plan", "-f", "grouped.yaml", "--against", "empty", "-o", "json")
	checkSchema(t, "plan.schema.json", []byte(out))
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

var workflowCommand = regexp.MustCompile(`^::(error|warning|notice) (file=[^,:]+,(line=[0-9]+,)?)?title=[^,:]+::[^\r\n]+$`)

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

// TestWarningsAreDocumented compares the IDs that the code declares with those that "weir help warnings" and README.md have.
func TestWarningsAreDocumented(t *testing.T) {
	declared := declaredIDs(t)
	var kinds []string
	for _, k := range spec.NoticeKinds() {
		kinds = append(kinds, string(k.ID))
		if k.Severity != spec.SeverityWarning && k.Severity != spec.SeverityInfo || !strings.HasSuffix(k.Meaning, ".") {
			t.Errorf("%+v", k)
		}
	}
	if strings.Join(declared, " ") != string(spec.Invalid)+" "+strings.Join(kinds, " ") {
		t.Errorf("declared: %v\ndescribed: %v", declared, kinds)
	}
	help, _, _ := weirCommand(t, "help", "warnings")
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for i, k := range spec.NoticeKinds() {
		if short := "W" + strconv.Itoa(1001 + i)[1:]; k.ID.Short() != short {
			t.Errorf("%s should begin with %s", k.ID, short)
		}
		if !strings.Contains(help, string(k.ID)) {
			t.Errorf("weir help warnings does not have %s", k.ID)
		}
		if row := "| `" + string(k.ID) + "` | " + string(k.Severity) + " | " + k.Meaning + " |"; !bytes.Contains(readme, []byte(row)) {
			t.Errorf("README.md does not have the row\n%s", row)
		}
	}
}

// declaredIDs returns the values of the constants of type ID.
func declaredIDs(t *testing.T) (ids []string) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "../../spec/registry.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		declared, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if typ, ok := declared.Type.(*ast.Ident); ok && typ.Name == "NoticeID" {
			for _, v := range declared.Values {
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

// TestMalformedGlob names files with wildcards in a form that fits nothing. The directory around them is not read, and what
// has this very name is.
func TestMalformedGlob(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	const service = "apiVersion: v1\nkind: Service\nmetadata: {name: %s}\nspec: {clusterIP: None, ports: [{port: 80}]}\n"
	writeFiles(t, dir, map[string]string{
		"all/a.yaml": fmt.Sprintf(service, "secret"), "all/kp.yaml": "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n",
		"one.yaml": fmt.Sprintf(service, "one"),
	})
	for _, glob := range []string{"[", "x[1", "*[", "[]", "[!]", "a[[:nonesuch:]].yaml", "[b-a].yaml"} {
		path := "all/" + glob
		for _, args := range [][]string{
			{"validate", "-f", path},
			{"validate", "-f", "one.yaml", "-f", path},
			{"validate", "-f", "one.yaml", "--config", path},
			{"plan", "-f", path, "--against", "empty"},
			{"plan", "-f", "one.yaml", "--against", path},
			{"plan", "-f", "one.yaml", "--against", "empty", "--node", path},
			{"allocate", "-f", path},
			{"dns", "zone", "-f", path},
		} {
			out, errOut, code := run(args...)
			named := strings.Contains(errOut, path+": does not exist, and is not a pattern as in .gitignore")
			if args[len(args)-2] == "--config" {
				named = strings.Contains(errOut, path+": does not exist; ")
			}
			if code != exitFailure || strings.Contains(out, "secret") || !named {
				t.Errorf("%v: exit code %d: %s%s", args, code, out, errOut)
			}
		}
	}
	writeFiles(t, dir, map[string]string{"all/x[1": fmt.Sprintf(service, "literal"), "all/*.yaml": fmt.Sprintf(service, "literal")})
	for _, path := range []string{"all/x[1", "all/*.yaml"} {
		if out, errOut, code := run("plan", "-f", path, "--against", "empty"); code != exitOK || !strings.Contains(out, "1 not proxied") {
			t.Errorf("%s: exit code %d: %s%s", path, code, out, errOut)
		}
		if out, errOut, code := run("dns", "zone", "-f", path); code != exitOK || strings.Contains(out, "secret") {
			t.Errorf("%s: exit code %d: %s%s", path, code, out, errOut)
		}
	}
}

// TestHostileFileNames names files after what terminals and CI systems obey, and gives them to every command in every format.
// Neither what is wrong in them nor the path to them begins a line or reaches the terminal.
func TestHostileFileNames(t *testing.T) {
	const hostile = "x\n::error file=a::FORGED\n\x1b[31m\r\x7f\u009b\u202e.yaml"
	const broken = "kind: Service\napiVersion: v1\nmetadata: {name: a}\nspec: {\"x\\n::y\\e[31m\": 1}\n"
	const valid = "kind: Service\napiVersion: v1\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n"
	top := t.TempDir()
	dirs := map[string]string{"broken": broken, "text": "a: [", "valid": valid, hostile: valid}
	var inputs []string
	for name, text := range dirs {
		dir := filepath.Join(top, name)
		writeFiles(t, dir, map[string]string{hostile: text})
		inputs = append(inputs, dir, filepath.Join(dir, hostile))
		if err := os.Symlink("nowhere"+hostile, filepath.Join(dir, "link\n::y"+hostile)); err != nil {
			t.Fatal(err)
		}
	}
	gitIn := func(args ...string) {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-C", top, "-c", "user.name=t", "-c", "user.email=t@example.org"}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v: %s", args, err, out)
		}
	}
	gitIn("init", "-q", "-b", "main")
	gitIn("add", "-A")
	gitIn("commit", "-q", "-m", "x")
	inputs = append(inputs, filepath.Join(top, "missing"+hostile), filepath.Join(top, "x["+hostile))
	fine := filepath.Join(top, "fine.yaml")
	writeFiles(t, top, map[string]string{"fine.yaml": strings.Replace(valid, "name: a", "name: b", 1)})
	var commands [][]string
	for _, in := range inputs {
		for _, format := range []string{"text", "json", "junit", "sarif", "github"} {
			commands = append(commands, []string{"validate", "-f", in, "-o", format, "--verbose"})
		}
		for _, format := range []string{"text", "json", "yaml", "markdown"} {
			commands = append(commands, []string{"plan", "-f", in, "--against", "empty", "-o", format},
				[]string{"plan", "-f", fine, "--against", in, "-o", format})
		}
		commands = append(commands,
			[]string{"plan", "-f", in, "--state-dir", filepath.Join(top, "state")},
			[]string{"plan", "-f", in, "--against", "git:HEAD"},
			[]string{"plan", "-f", in, "--against", "git:main" + hostile},
			[]string{"plan", "-f", fine, "--against", "empty", "--node", in},
			[]string{"validate", "-f", fine, "--config", in},
			[]string{"validate", "-f", fine, "--lock", in},
			[]string{"validate", "-k", in},
			[]string{"allocate", "-f", in}, []string{"allocate", "-f", in, "-o", "json"},
			[]string{"allocate", "-f", fine, "--lock", in, "--write"},
			[]string{"dns", "zone", "-f", in}, []string{"dns", "lookup", "a", "-f", in},
			[]string{"status", "--state-dir", in}, []string{"snapshot", "--state-dir", in},
		)
	}
	commands = append(commands, []string{hostile}, []string{"plan", "--" + hostile}, []string{"plan", hostile}, []string{"validate", "-f", fine, "-o", hostile})
	for _, args := range commands {
		out, errOut, _ := run(args...)
		for name, text := range map[string]string{"stdout": out, "stderr": errOut} {
			for line := range strings.Lines(text) {
				line = strings.TrimSuffix(line, "\n")
				ours := slices.Contains(args, "github") && workflowCommand.MatchString(line)
				if plain := strings.ReplaceAll(line, "\t", ""); spec.Clean(plain) != plain || strings.HasPrefix(strings.TrimSpace(line), "::") && !ours {
					t.Errorf("%q: %s: %q", args, name, line)
				}
			}
		}
	}
}
