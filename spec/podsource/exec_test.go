package podsource

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"weir/backends/dataplane"
)

// runsCommands has a runtime run commands in a container with busybox.
func runsCommands(t *testing.T, e Executor, pod dataplane.ServiceName, container string) {
	t.Helper()
	sh := func(script string) []string { return []string{"/bin/sh", "-c", script} }
	for _, tc := range []struct {
		command []string
		exit    int
		output  []string
	}{
		{[]string{"/bin/busybox", "true"}, 0, nil},
		{[]string{"/bin/busybox", "false"}, 1, nil},
		{sh("echo said; echo complained >&2; exit 3"), 3, []string{"said", "complained"}},
		{sh("echo begun; /bin/busybox yes | /bin/busybox head -c 100000"), 0, []string{"begun"}},
	} {
		exit, output, err := e.Exec(t.Context(), pod, container, tc.command)
		if err != nil || exit != tc.exit || len(output) > maxOutput {
			t.Errorf("%q in %s: exit code %d, %d bytes, %v", tc.command, pod, exit, len(output), err)
		}
		for _, want := range tc.output {
			if !strings.Contains(string(output), want) {
				t.Errorf("%q in %s said %q", tc.command, pod, output)
			}
		}
	}
	if exit, _, err := e.Exec(t.Context(), pod, container, []string{"/bin/none"}); err == nil && exit == 0 {
		t.Errorf("a command that is not there succeeds in %s", pod)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, _, err := e.Exec(ctx, pod, container, []string{"/bin/busybox", "sleep", "1000"}); err == nil {
		t.Errorf("a command that does not end has an exit code in %s", pod)
	}
	for _, other := range []dataplane.ServiceName{{Namespace: pod.Namespace, Name: "none"}, {Namespace: pod.Namespace, Name: pod.Name + "-1"}} {
		if _, _, err := e.Exec(t.Context(), other, container, []string{"/bin/busybox", "true"}); !errors.Is(err, ErrNoContainer) {
			t.Errorf("a command runs in %s, which is not there: %v", other, err)
		}
	}
}

// TestDockerRunsCommands has an engine that answers as Docker's does.
func TestDockerRunsCommands(t *testing.T) {
	l := newLiar(t)
	const id = "0123456789abcdef"
	status, output := "running", "fine\n"
	l.say(func(w http.ResponseWriter, path string) bool {
		switch path {
		case "/_ping":
		case "/containers/json":
			fmt.Fprintf(w, `[{"Id":%q,"Names":["/shop_web_1"]}]`, id)
		case "/containers/" + id + "/json", "/containers/shop_web_1/json":
			fmt.Fprintf(w, `{"Id":%q,"Name":"/shop_web_1","State":{"Status":%q}}`, id, status)
		case "/containers/" + id + "/exec":
			if status != "running" {
				w.WriteHeader(http.StatusConflict)
				return true
			}
			w.WriteHeader(http.StatusCreated)
			_ = json.NewEncoder(w).Encode(map[string]string{"Id": "e"})
		case "/exec/e/start":
			header := []byte{1, 0, 0, 0, 0, 0, 0, 0}
			binary.BigEndian.PutUint32(header[4:], uint32(len(output)))
			_, _ = w.Write(append(header, output...))
		case "/exec/e/json":
			fmt.Fprint(w, `{"Running":false,"ExitCode":7}`)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
		return true
	})
	e := &Containers{Socket: l.socket}
	run := func(pod string) (int, string, error) {
		exit, output, err := e.Exec(t.Context(), dataplane.ServiceName{Namespace: "default", Name: pod}, "server", []string{"check"})
		return exit, string(output), err
	}
	// The names that a container may have as a pod.
	for _, pod := range []string{"shop-web-1", "shop-web-1-0123456789ab", "pod-0123456789ab"} {
		if exit, said, err := run(pod); exit != 7 || said != output || err != nil {
			t.Errorf("in %s the command ends with %d, %q, %v", pod, exit, said, err)
		}
	}
	if _, _, err := run("shop-web"); !errors.Is(err, ErrNoContainer) {
		t.Errorf("in a container that is not there: %v", err)
	}
	output = strings.Repeat("x", maxOutput+1)
	if _, said, err := run("shop-web-1"); err != nil || len(said) != maxOutput {
		t.Errorf("much output: %d bytes, %v", len(said), err)
	}
	output = strings.Repeat("x", maxOutput+maxDiscarded)
	if _, _, err := run("shop-web-1"); err == nil {
		t.Error("output without end is taken")
	}
	status = "exited"
	if _, _, err := run("shop-web-1"); !errors.Is(err, ErrNoContainer) {
		t.Errorf("in a container that ended: %v", err)
	}
}
