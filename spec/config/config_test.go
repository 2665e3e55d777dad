package config

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"weir/spec"
	"weir/spec/document"
)

var update = flag.Bool("update", false, "write the golden files")

const testdata = "../../testdata/config"

// TestGolden decodes every document in testdata/config and compares what comes of it with the file of the same name with
// ".golden" appended. A new case is a new file; -update writes its golden file.
func TestGolden(t *testing.T) {
	for _, dir := range []string{"good", "bad"} {
		files, err := filepath.Glob(filepath.Join(testdata, dir, "*"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no test data in %s: %v", dir, err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, ".golden") {
				continue
			}
			t.Run(dir+"/"+filepath.Base(file), func(t *testing.T) {
				data, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				got, failed := decodeAny(t, docOf(filepath.Base(file), 1, data))
				if failed != (dir == "bad") {
					t.Errorf("refused: %v\n%s", failed, got)
				}
				compareGolden(t, file+".golden", got)
			})
		}
	}
}

func docOf(file string, line int, data []byte) Doc {
	return Doc{file, document.Parse(document.Text{Line: line, Data: data})}
}

func compareGolden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

// decodeAny returns the problems of a document, or its warnings and what it sets apart from the defaults.
func decodeAny(t *testing.T, doc Doc) (text string, failed bool) {
	t.Helper()
	if inner, ok := FromConfigMap(doc); ok {
		doc = inner
	}
	if strings.Contains(doc.String("kind"), WeirKind) {
		c, problems := DecodeWeir(doc)
		if len(problems) > 0 {
			return lines("error: ", problems), true
		}
		data, err := json.MarshalIndent(c, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		return string(data) + "\n", false
	}
	c, warnings, problems := Decode(doc)
	if len(problems) > 0 {
		return lines("error: ", problems), true
	}
	data, err := yaml.Marshal(difference(t, Default(), c))
	if err != nil {
		t.Fatal(err)
	}
	return lines("warning: ", warnings) + string(data), false
}

func lines(prefix string, problems []spec.Problem) string {
	var b strings.Builder
	for _, p := range problems {
		b.WriteString(prefix + p.Error() + "\n")
	}
	return b.String()
}

// difference returns the fields in which b differs from a.
func difference(t *testing.T, a, b any) any {
	t.Helper()
	tree := func(v any) any {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		var out any
		if err := json.Unmarshal(data, &out); err != nil {
			t.Fatal(err)
		}
		return out
	}
	return subtract(tree(a), tree(b))
}

func subtract(a, b any) any {
	am, aok := a.(map[string]any)
	bm, bok := b.(map[string]any)
	if !aok || !bok {
		return b
	}
	out := map[string]any{}
	for k := range bm {
		if !reflect.DeepEqual(am[k], bm[k]) {
			out[k] = subtract(am[k], bm[k])
		}
	}
	return out
}

// TestDefault holds the defaults of kube-proxy.
func TestDefault(t *testing.T) {
	c := Default()
	_, warnings, problems := Decode(docOf("", 1, []byte("apiVersion: "+KubeProxyAPIVersion+"\nkind: "+KubeProxyKind)))
	if len(warnings)+len(problems) > 0 {
		t.Errorf("the defaults are not valid: %v %v", warnings, problems)
	}
	data, err := yaml.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	compareGolden(t, filepath.Join(testdata, "default.golden"), string(data))
}

func TestSetDefaultsTwice(t *testing.T) {
	c := Default()
	once := c.DeepCopy()
	SetDefaults(c.KubeProxyConfiguration)
	if diff := cmp.Diff(once, c.KubeProxyConfiguration); diff != "" {
		t.Error(diff)
	}
}

func TestDefaultsOfAddresses(t *testing.T) {
	tests := []struct{ bind, healthz, metrics, wantHealthz, wantMetrics string }{
		{"", "", "", "0.0.0.0:10256", "127.0.0.1:10249"},
		{"192.0.2.1", "", "", "0.0.0.0:10256", "127.0.0.1:10249"},
		{"::", "", "", "[::]:10256", "[::1]:10249"},
		{"2001:db8::1", "", "", "[::]:10256", "[::1]:10249"},
		{"", "1.2.3.4", "::1", "1.2.3.4:10256", "[::1]:10249"},
		{"", "::1", "1.2.3.4:5", "[::1]:10256", "1.2.3.4:5"},
	}
	for _, tt := range tests {
		cfg := Default().DeepCopy()
		cfg.BindAddress, cfg.HealthzBindAddress, cfg.MetricsBindAddress = tt.bind, tt.healthz, tt.metrics
		SetDefaults(cfg)
		if cfg.HealthzBindAddress != tt.wantHealthz || cfg.MetricsBindAddress != tt.wantMetrics {
			t.Errorf("%+v: got %s, %s", tt, cfg.HealthzBindAddress, cfg.MetricsBindAddress)
		}
	}
}

// TestEveryField sets each field of the type to a value and expects to find it in what is decoded, so that no field is
// dropped when the type grows.
func TestEveryField(t *testing.T) {
	in := &written{}
	fill(reflect.ValueOf(in).Elem())
	in.APIVersion, in.Kind = KubeProxyAPIVersion, KubeProxyKind
	data, err := yaml.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	r := reporter{doc: docOf("", 1, data)}
	var out written
	if !decodeStrict(&r, &out) || len(r.problems) > 0 {
		t.Fatal(spec.Problems(r.problems))
	}
	// TypeMeta and the sections are compared as text, since a Quantity caches its own.
	if diff := cmp.Diff(marshal(t, in), marshal(t, &out)); diff != "" {
		t.Errorf("decoded (-want +got):\n%s", diff)
	}
	c := out.config()
	if diff := cmp.Diff(marshal(t, in.Conntrack.KubeProxyConntrackConfiguration), marshal(t, c.Conntrack)); diff != "" {
		t.Errorf("conntrack (-want +got):\n%s", diff)
	}
	if c.UDPIdleTimeout != in.UDPIdleTimeout.Duration || c.PortRange == "" {
		t.Errorf("udpIdleTimeout %v, portRange %q", c.UDPIdleTimeout, c.PortRange)
	}
}

func marshal(t *testing.T, v any) string {
	t.Helper()
	data, err := yaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func fill(v reflect.Value) {
	if v.Type() == reflect.TypeFor[time.Duration]() {
		v.SetInt(int64(7 * time.Second))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int32, reflect.Int64:
		v.SetInt(7)
	case reflect.Uint32:
		v.SetUint(7)
	case reflect.Float32:
		v.SetFloat(7)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf("k"), reflect.ValueOf(true))
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() && v.Type().Field(i).Name != "InfoBufferSize" {
				fill(v.Field(i))
			}
		}
	}
}

func TestFromConfigMap(t *testing.T) {
	tests := []struct {
		name, doc string
		ok        bool
	}{
		{"no data", "kind: ConfigMap\n", false},
		{"other key", "kind: ConfigMap\ndata: {a: 'kind: KubeProxyConfiguration'}\n", false},
		{"other kind within", "kind: ConfigMap\ndata: {config.conf: 'kind: KubeletConfiguration'}\n", false},
		{"not text", "kind: ConfigMap\ndata: {config.conf: {kind: KubeProxyConfiguration}}\n", false},
		{"other kind", "kind: Secret\ndata: {config.conf: 'kind: KubeProxyConfiguration'}\n", false},
		{"not YAML", "kind: [\n", false},
		{"yes", "kind: ConfigMap\ndata: {config.conf: 'kind: KubeProxyConfiguration'}\n", true},
		{"broken within", "kind: ConfigMap\ndata: {config.conf: 'kind: [KubeProxyConfiguration'}\n", true},
	}
	for _, tt := range tests {
		if _, ok := FromConfigMap(docOf("", 1, []byte(tt.doc))); ok != tt.ok {
			t.Errorf("%s: got %v", tt.name, ok)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, dir := range []string{"good", "bad"} {
		files, err := filepath.Glob(filepath.Join(testdata, dir, "*"))
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		doc := docOf("f", 3, data)
		if inner, ok := FromConfigMap(doc); ok {
			doc = inner
		}
		c, warnings, problems := Decode(doc)
		if c == nil && len(problems) == 0 {
			t.Error("neither a configuration nor a problem")
		}
		_, more := DecodeWeir(doc)
		for _, p := range append(append(warnings, problems...), more...) {
			if p.Origin.Line < 3 || p.Detail == "" {
				t.Errorf("problem without a place or a reason: %+v", p)
			}
		}
	})
}
