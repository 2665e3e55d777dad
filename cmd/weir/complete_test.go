package main

import (
	"bytes"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"weir/backends/dataplane"
	"weir/reconcile/tell/status"
	"weir/spec"
)

// complete returns what the shells' scripts get for a command line, the last word of which has been begun.
func complete(t *testing.T, line ...string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	if code := execute(append([]string{cobra.ShellCompNoDescRequestCmd}, line...), strings.NewReader(""), &stdout, &stderr); code != exitOK {
		t.Errorf("%q: exit code %d: %s", line, code, stderr.String())
	}
	// The script of a shell discards what cobra says on standard error about the directive.
	if lines := strings.Count(stderr.String(), "\n"); lines > 1 {
		t.Errorf("%q says %s", line, stderr.String())
	}
	return strings.ReplaceAll(strings.TrimSpace(stdout.String()), "\n", " ")
}

// TestCompletion completes words from a weir that runs.
func TestCompletion(t *testing.T) {
	several, one := t.TempDir(), t.TempDir()
	for dir, names := range map[string][]string{several: {"default/web", "default/db", "shop/web", "shop/api", "stage/api"}, one: {"default/web", "default/db"}} {
		services := spec.Services{}.Edit()
		for _, name := range names {
			namespace, name, _ := strings.Cut(name, "/")
			n := dataplane.ServiceName{Namespace: namespace, Name: name}
			services.Put(n, &spec.Service{Name: n})
		}
		board := status.NewBoard("")
		board.Update(spec.Update{Snapshot: &spec.Snapshot{Services: services.Commit()}}, time.Now())
		server := status.NewServer(board)
		if err := server.Listen(dir); err != nil {
			t.Fatal(err)
		}
		defer server.Close()
	}
	for _, test := range []struct{ dir, line, want string }{
		{several, "status |", "default/ shop/ stage/ :6"},
		{several, "status s|", "shop/ stage/ :6"},
		{several, "status shop/|", "shop/api shop/web :4"},
		{several, "status sh|", "shop/api shop/web :4"},
		{several, "status w|", "web :4"},
		{several, "status d|", "db default/db default/web :4"},
		{several, "status nonesuch|", ":4"},
		{several, "status web |", ":4"},
		{several, "probe shop/a|", "shop/api :4"},
		{several, "probe -n s|", "shop stage :4"},
		{several, "dns lookup |", "db.default web.default api.shop web.shop api.stage :4"},
		{several, "dns lookup web|", "web.default web.shop :4"},
		{several, "dns lookup web.s|", "web.shop :4"},
		{several, "dns lookup web.shop |", "A AAAA CNAME NS PTR SOA SRV TXT :4"},
		{one, "status |", "default/db default/web :4"},
		{one, "status -o |", "text json :4"},
		{one, "validate -o |", "text json junit sarif github :4"},
		{one, "plan -o |", "text json yaml markdown :4"},
		{one, "discover --output |", "table yaml json :4"},
		{one, "reconcile --detail |", "services rules kernel :4"},
		{one, "validate --fail-on w|", "warning :4"},
		{one, "plan --fail-on warning,W00|", "warning,W001 warning,W002 warning,W003 warning,W004 warning,W005 warning,W006 warning,W007 warning,W008 warning,W009 :4"},
		{one, "validate --fail-on W001,W002,W00|", "W001,W002,W003 W001,W002,W004 W001,W002,W005 W001,W002,W006 W001,W002,W007 W001,W002,W008 W001,W002,W009 :4"},
		{one, "validate --fail-on nonesuch|", ":4"},
		{one, "run --log-level |", "error warn info debug trace :4"},
	} {
		words := strings.Split(strings.TrimSuffix(test.line, "|"), " ")
		command := 1
		if words[0] == "dns" {
			command = 2
		}
		at := slices.Concat(words[:command], []string{"--state-dir", test.dir}, words[command:])
		if got := complete(t, at...); got != test.want {
			t.Errorf("%s completes to %s; want %s", test.line, got, test.want)
		}
	}
}

// TestCompletionIsSilent completes without a weir, and beside one that does not answer, in no time.
func TestCompletionIsSilent(t *testing.T) {
	mute := t.TempDir()
	listener, err := net.Listen("unix", filepath.Join(mute, "weir.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close() // it accepts nothing, so that clients wait
	for _, dir := range []string{t.TempDir(), mute, filepath.Join(mute, "nonesuch")} {
		begun := time.Now()
		if got := complete(t, "status", "--state-dir", dir, "w"); got != ":4" {
			t.Errorf("completes to %s", got)
		}
		if took := time.Since(begun); took > completionLimit+10*time.Second { // the machine may be busy
			t.Errorf("took %s", took)
		}
	}
}
