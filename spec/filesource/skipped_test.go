package filesource

import (
	"bytes"
	"context"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"weir/spec"
)

// TestSkippedAreNamedAtDebugLevel reads what is of no kind of weir's, each for another reason: the log names each document
// and why, once, and only at debug level.
func TestSkippedAreNamedAtDebugLevel(t *testing.T) {
	const (
		service = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}\n"
		line    = `\[DEBUG\] document skipped: (.*)`
	)
	d := t.TempDir()
	write(t, d+"/web.yaml", service+"---\napiVersion: apps/v1\nkind: Deployment\n")
	write(t, d+"/compose.yaml", "services: {web: {image: nginx}}\n")
	write(t, d+"/broken.yaml", "a: [\n---\n{% if x %}\nkind: Deployment\n")
	write(t, d+"/left.yaml", "# weir:ignore\n"+service)
	write(t, d+"/chart/Chart.yaml", "apiVersion: v2\nname: web\n")
	must(t, os.Symlink("nowhere.yaml", d+"/gone.yaml"))
	for _, level := range []hclog.Level{hclog.Debug, hclog.Info} {
		var out bytes.Buffer
		ctx, cancel := context.WithCancel(t.Context())
		updates := 0
		err := New(Options{Paths: []string{d}, Log: hclog.New(&hclog.LoggerOptions{Output: &out, Level: level, DisableTime: true})}).Watch(ctx, func(u spec.Update) {
			if updates++; u.Err != nil {
				t.Error(u.Err)
			}
			cancel()
		})
		if ctx.Err() == nil || updates != 1 {
			t.Fatalf("%d updates: %v", updates, err)
		}
		var got []string
		for _, m := range regexp.MustCompile(line).FindAllStringSubmatch(out.String(), -1) {
			got = append(got, strings.ReplaceAll(m[1], d+"/", ""))
		}
		slices.Sort(got)
		want := []string{
			`place=broken.yaml:1 kind="(no kind)" reason=""`, // it is not parsed
			`place=broken.yaml:3 kind=Deployment reason="is a template that has not been rendered; give weir what it renders to (helm template, envsubst, ...), or keep it elsewhere"`,
			`place=chart/Chart.yaml:1 kind="Helm chart" reason=""`,
			`place=compose.yaml:1 kind="(no kind)" reason=""`,
			`place=gone.yaml kind=symlink reason="a symlink that leads to nothing; restore its target, or remove it"`,
			`place=left.yaml:1 kind=file reason="has # weir:ignore"`,
			`place=web.yaml:6 kind=Deployment reason=""`,
		}
		if level == hclog.Info {
			want = nil
		}
		if !slices.Equal(got, want) {
			t.Errorf("at level %s:\n%s\nwant\n%s", level, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}
