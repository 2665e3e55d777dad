package manifest

import (
	"strings"
	"testing"

	"weir/spec"
)

// TestSetBasedSelectors chooses Services by every form of a selector that kubectl's -l has. Slices go with their Service.
func TestSetBasedSelectors(t *testing.T) {
	t.Parallel()
	labelled := func(name, labels string) string {
		return strings.Replace(yamlService(name, ""), "name: "+name, "name: "+name+"\n  labels: {"+labels+"}", 1)
	}
	text := strings.Join([]string{labelled("b", "a: b, tier: test"), labelled("c", "a: c"), labelled("d", "a: d, x: z"), yamlService("none", "")}, "---\n")
	for selector, want := range map[string]string{
		"a in (b,c)":           "b c",
		"a in (b, c),!tier":    "c",
		"a notin (b,c)":        "d none",
		"a notin (b,c),a":      "d",
		"!x":                   "b c none",
		"!a":                   "none",
		"a":                    "b c d",
		"a!=b":                 "c d none",
		"a!=b,a!=c":            "d none",
		"a=b,tier=test":        "b",
		"a==b, tier in (test)": "b",
	} {
		snap, _ := mustUpdate(t, NewSet(Options{Choice: spec.ObjectChoice{Selector: selector}}), File{Path: "a.yaml", Data: []byte(text)})
		var got []string
		for svc := range snap.Services.All() {
			got = append(got, svc.Name.Name)
		}
		if names := strings.Join(got, " "); names != want {
			t.Errorf("%s: %s, want %s", selector, names, want)
		}
	}
}
