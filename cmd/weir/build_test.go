package main_test

import (
	"debug/buildinfo"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
)

// TestEveryBuildHasTheTag: whatever builds the program for use leaves plugins of Go out of it.
func TestEveryBuildHasTheTag(t *testing.T) {
	for _, file := range []string{"../../Makefile", "../../examples/daemonset/Dockerfile", "internal/demo/main.go", "../../backends/netlab/vmexec/job.go", "../../.release/release_test.go"} {
		if text, err := os.ReadFile(file); err != nil || !strings.Contains(string(text), buildTags) {
			t.Errorf("%s builds without the tag %s: %v", file, buildTags, err)
		}
	}
	info, err := buildinfo.ReadFile(os.Getenv(binaryEnv))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(info.Settings, debug.BuildSetting{Key: "-tags", Value: buildTags}) {
		t.Errorf("the tests run a program that is built with %v", info.Settings)
	}
}
