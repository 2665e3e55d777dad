package main_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"weir/backends/netlab"
)

// TestCompletionInBash has bash complete lines by the script that weir prints for it.
func TestCompletionInBash(t *testing.T) {
	netlab.RequireProgram(t, "bash")
	const script = `
_get_comp_words_by_ref() { # what the package bash-completion does for words without colons
	cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words=("${COMP_WORDS[@]}") cword=$COMP_CWORD
}
weir() { "$WEIR" "$@"; }
source <(weir completion bash)
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_TYPE=9
COMP_POINT=${#COMP_LINE}
compopt() { :; } # it works while a person completes only
__start_weir
printf '%s\n' "${COMPREPLY[@]}"
`
	for _, test := range []struct {
		line string
		want []string
	}{
		{"validate --fail-on wa", []string{"warning"}},
		{"validate --fail-on warning,W04", []string{"warning,W040", "warning,W047"}},
		{"plan -o ma", []string{"markdown"}},
		{"reconcile --detail ru", []string{"rules"}},
		{"explain dns.forw", []string{"dns.forward"}},
		{"cleanup ", nil},
		{"handover ", nil},
	} {
		cmd := exec.Command("bash", append([]string{"-c", script, "bash", "weir"}, strings.Split(test.line, " ")...)...)
		cmd.Env = append(os.Environ(), "WEIR="+os.Getenv(binaryEnv))
		cmd.Dir = t.TempDir()
		if err := os.WriteFile(filepath.Join(cmd.Dir, "file"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v: %s", test.line, err, out)
		}
		lines := strings.Fields(string(out))
		for _, want := range test.want {
			if !slices.Contains(lines, want) {
				t.Errorf("%s| completes to %q; want %q", test.line, out, test.want)
			}
		}
		if test.want == nil && len(lines) > 0 {
			t.Errorf("%s| completes to %q; want nothing", test.line, out)
		}
	}
}
