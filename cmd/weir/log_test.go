package main

import (
	"bytes"
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	logsapi "k8s.io/component-base/logs/api/v1"

	"weir/spec"
)

// TestToldOnce checks that a condition that lasts is logged once.
func TestToldOnce(t *testing.T) {
	var out bytes.Buffer
	told := newChangeLog(hclog.New(&hclog.LoggerOptions{Output: &out}))
	lines := func() int {
		n := strings.Count(out.String(), "\n")
		out.Reset()
		return n
	}
	bad := spec.Update{Err: spec.Problems{{Detail: "one"}, {Detail: "two"}}}
	good := spec.Update{Snapshot: &spec.Snapshot{Notices: []spec.Problem{{Detail: "a notice"}}}, Delta: spec.Delta{All: true}}
	for i, step := range []struct {
		u    spec.Update
		want int
	}{
		{bad, 3}, {bad, 0}, {spec.Update{Err: errors.New("gone")}, 2}, {good, 2}, {good, 0}, {bad, 3}, {good, 1},
	} {
		told.Updated(step.u)
		if got := lines(); got != step.want {
			t.Errorf("step %d: %d lines, want %d", i, got, step.want)
		}
	}
}

// TestLoggingFollowsTheConfiguration changes the configuration under a logger and one that was named after it.
func TestLoggingFollowsTheConfiguration(t *testing.T) {
	text, json := regexp.MustCompile(`^\S+ \[DEBUG\] weir\.part: hello: n=1\n$`), regexp.MustCompile(`^\{"@level":"debug","@message":"hello","@module":"weir\.part",.*"n":1\}\n$`)
	for _, tc := range []struct {
		flags    string
		format   string
		verbose  logsapi.VerbosityLevel
		want     *regexp.Regexp // of a debug line; nil for none
		warnings bool
	}{
		{"", "text", 0, nil, true},
		{"", "text", 2, text, true},
		{"", "json", 4, json, true},
		{"", "json", 0, nil, true},
		{"--log-format text", "json", 2, text, true},
		{"--log-format json", "text", 2, json, true},
		{"-v 2", "json", 0, json, true},
		{"-v 0", "text", 4, nil, true},
		{"--log-level error", "text", 4, nil, false},
	} {
		var flags logFlags
		cmd := &cobra.Command{}
		flags.add(cmd, "info")
		if err := cmd.ParseFlags(strings.Fields(tc.flags)); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		log := flags.liveLogger(&out)
		part := log.Named("part")
		for _, c := range []logsapi.LoggingConfiguration{{Format: "json", Verbosity: 9}, {Format: "text"}, {Format: tc.format, Verbosity: tc.verbose}} {
			log.follow(&c)
		}
		part.Debug("hello", "n", 1)
		if got := out.String(); tc.want == nil && got != "" || tc.want != nil && !tc.want.MatchString(got) {
			t.Errorf("%s, %s, %d: %q, want %v", tc.flags, tc.format, tc.verbose, got, tc.want)
		}
		out.Reset()
		if part.Warn("hello"); strings.Count(out.String(), "\n") == 1 != tc.warnings {
			t.Errorf("%s, %s, %d: warned %q", tc.flags, tc.format, tc.verbose, out.String())
		}
	}
}

func TestVerbosity(t *testing.T) {
	for _, tc := range []struct {
		level string
		v     int
		want  hclog.Level
	}{
		{"info", 0, hclog.Info}, {"error", 0, hclog.Error}, {"info", 2, hclog.Debug}, {"warn", 1, hclog.Info}, {"info", 9, hclog.Trace}, {"trace", 2, hclog.Trace},
	} {
		f := logFlags{format: "text", level: tc.level, verbosity: tc.v}
		if got := f.logger(&bytes.Buffer{}).GetLevel(); got != tc.want {
			t.Errorf("--log-level %s -v %d: %v, want %v", tc.level, tc.v, got, tc.want)
		}
	}
}

// TestLogSaysWhetherAnythingIsInForce refuses an input before any other was in force, and after one was.
func TestLogSaysWhetherAnythingIsInForce(t *testing.T) {
	var out bytes.Buffer
	c := newChangeLog(hclog.New(&hclog.LoggerOptions{Output: &out}))
	c.Updated(spec.Update{Err: errors.New("one")})
	if !strings.Contains(out.String(), "the input cannot be used; nothing is in force, and the kernel stays as it is") {
		t.Errorf("before the first: %s", &out)
	}
	out.Reset()
	c.Updated(spec.Update{Snapshot: &spec.Snapshot{}})
	c.Updated(spec.Update{Err: errors.New("two")})
	if !strings.Contains(out.String(), "the input cannot be used; what is in force stays") {
		t.Errorf("after the first: %s", &out)
	}
}
