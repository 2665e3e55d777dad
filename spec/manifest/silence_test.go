package manifest

import (
	"strings"
	"testing"
)

// TestSilenceComments writes comments at the head of a file, and elsewhere, and changes them.
func TestSilenceComments(t *testing.T) {
	service := yamlService("a", "")
	for _, tt := range []struct{ head, want string }{
		{"", ""},
		{"# weir:silence W001\n", "W001"},
		{"\ufeff#weir:silence: W001, W005\r\n# another\n\n---\n# weir:silence W017\n", "W001, W005,W017"},
		{"%YAML 1.2\n---\n# weir:silence W001\n", "W001"},
		{service + "---\n# weir:silence W001\n", ""},
	} {
		s := NewSet(Options{})
		snap, _ := mustUpdate(t, s, File{Path: "a.yaml", Data: []byte(tt.head + strings.ReplaceAll(service, "name: a", "name: b"))})
		if got := snap.Silenced["a.yaml"]; got != tt.want {
			t.Errorf("%q: %q, want %q", tt.head, got, tt.want)
		}
		again, delta := mustUpdate(t, s, File{Path: "c.yaml", Data: []byte(yamlService("c", ""))})
		if delta.Config || again.Silenced["a.yaml"] != tt.want {
			t.Errorf("%q: after another file, %v, %v", tt.head, delta, again.Silenced)
		}
		if _, delta := mustUpdate(t, s, File{Path: "a.yaml", Data: []byte(strings.ReplaceAll(service, "name: a", "name: b"))}); delta.Config != (tt.want != "") {
			t.Errorf("%q: without the comment, %v", tt.head, delta)
		}
	}
}

// TestSilenceCommentsThatAreWrong has comments at the head of a file that have no effect, or not the one they are meant to have.
func TestSilenceCommentsThatAreWrong(t *testing.T) {
	for head, want := range map[string]string{
		"# weir:silence W001, W005\n# weir: prose\n# about weir:silence\n": "",
		"# weir:silence\n":             "silences nothing",
		"\n# weir:silence: W001 W01\n": `"W01" is not the ID of a notice`,
		"# weir:silenced W001\n":       "is no comment that weir knows; did you mean # weir:silence",
		"#weir/silence: W001\n":        "is no comment that weir knows; did you mean # weir:silence",
		"#weir:ignore\n":               "is no comment that leaves out the file",
		"# weir:ignore: generated\n":   "is no comment that leaves out the file",
	} {
		s := NewSet(Options{})
		snap, _ := mustUpdate(t, s, File{Path: "a.yaml", Data: []byte(head + yamlService("a", ""))})
		got := ""
		for _, n := range snap.Notices {
			got += n.Error()
		}
		if !strings.Contains(got, want) || (got == "") != (want == "") || want != "" && !strings.HasPrefix(got, "a.yaml:") {
			t.Errorf("%q: %q, want %q", head, got, want)
		}
		if snap, _ := mustUpdate(t, s, File{Path: "a.yaml", Data: []byte(yamlService("a", ""))}); len(snap.Notices) > 0 {
			t.Errorf("%q: without it: %v", head, snap.Notices)
		}
	}
}
