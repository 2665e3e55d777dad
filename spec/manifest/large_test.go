package manifest

import (
	"strings"
	"testing"

	"weir/spec"
	"weir/spec/seed"
)

// TestForeignBeyondTheLimits has documents that are too large to be parsed, or whose aliases expand to too much: only what may
// be one of weir's at its top refuses the input.
func TestForeignBeyondTheLimits(t *testing.T) {
	large := strings.Repeat("x", 17<<20)
	bomb := "&a [l,l,l,l,l,l,l,l,l]\n" + strings.Join([]string{"b: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]", "c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]", "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]",
		"e: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]", "f: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]", "g: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]", "h: [*g,*g,*g,*g,*g,*g,*g,*g,*g]\n"}, "\n")
	many := "[" + strings.Repeat("1,", 1<<21) + "1]"
	const service = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n"
	for name, c := range map[string]struct {
		text string
		ours bool
	}{
		"a dashboard":              {`{"title": "kind: Service", "panels": [{"kind": "Service"}], "text": "` + large + `"}`, false},
		"a dashboard in lines":     {"{\n  \"panels\": [\n    {\"kind\": \"Service\"}\n  ],\n  \"a\\\"\": \"" + large + "\"\n}\n", false},
		"many values":              {`{"objects": [{"kind": "Service"}], "values": ` + many + `}`, false},
		"Helm values":              {"# values\nservice:\n  kind: Service\n  text: " + large + "\n", false},
		"values with a bomb":       {"service: {kind: Service}\na: " + bomb, false},
		"a list of others":         {"- kind: Service\n- " + large + "\n", false},
		"a JSON list":              {`[{"kind": "Service"}, "` + large + `"]`, false},
		"another kind":             {"apiVersion: v1\nkind: ConfigMap\ndata:\n  a: |\n    kind: Service\n  b: " + large + "\n", false},
		"another kind in JSON":     {`{"kind": "ConfigMap", "data": {"kind": "Service"}, "text": "` + large + `"}`, false},
		"a nested kind, indented":  {"  a:\n    kind: Service\n  b: " + large + "\n", false},
		"one of ours":              {service + "a: " + large + "\n", true},
		"one of ours with a bomb":  {service + "a: " + bomb, true},
		"one of ours in JSON":      {`{"data": {"a": [1]}, "text": "` + large + `", "kind": "Service"}`, true},
		"one of ours, indented":    {"  apiVersion: v1\n  kind: Service\n  a: " + large + "\n", true},
		"a List of ours":           {"apiVersion: v1\nkind: List\nitems:\n- kind: Service\n- " + large + "\n", true},
		"a List of ours in JSON":   {`{"items": [{"kind": "Service"}, "` + large + `"], "kind": "List"}`, true},
		"a List of others in JSON": {`{"items": [{"kind": "Pod"}, "` + large + `"], "kind": "List"}`, false},
		"merged":                   {"a: &a {kind: Service}\n<<: *a\nb: " + large + "\n", true},
	} {
		t.Run(name, func(t *testing.T) {
			for _, strict := range []bool{false, true} {
				if strict && seed.Race {
					continue // the detector makes each take seconds
				}
				s := NewSet(Options{StrictTree: strict})
				_, _, err := s.Update(t.Context(), spec.Revision{}, []File{{Path: "web.yaml", Data: []byte(service + "spec: {ports: [{port: 80}]}\n")}, {Path: "x.yaml", Data: []byte(c.text)}})
				if refused := err != nil; refused != (c.ours || strict) {
					t.Errorf("strict %v: %v", strict, err)
				}
			}
			// What held one of weir's is one of weir's.
			s := NewSet(Options{})
			if _, _, err := s.Update(t.Context(), spec.Revision{}, []File{{Path: "x.yaml", Data: []byte(service + "spec: {ports: [{port: 80}]}\n")}}); err != nil {
				t.Fatal(err)
			}
			if _, _, err := s.Update(t.Context(), spec.Revision{}, []File{{Path: "x.yaml", Data: []byte(c.text)}, {Path: "y.yaml", Data: []byte(strings.Replace(service, "web", "y", 1) + "spec: {ports: [{port: 80}]}\n")}}); err == nil || !strings.Contains(err.Error(), "x.yaml") {
				t.Errorf("instead of a Service: %v", err)
			}
		})
	}
}
