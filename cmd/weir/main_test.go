package main_test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"testing"

	"weir/backends/netlab"
)

// binaryEnv names the weir program that the tests run; it is built once, before the namespaces are made.
const binaryEnv = "WEIR_TEST_BINARY"

func TestMain(m *testing.M) {
	becomeContainer()
	becomeServer()
	becomeSuccessor()
	if err := raiseParallel(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if netlab.Inside() {
		netlab.Main(m)
	}
	dir, err := os.MkdirTemp("", "weir-test-")
	if err == nil {
		// Where weir has its lock: no test uses the machine's.
		err = os.Setenv("RUNTIME_DIRECTORY", filepath.Join(dir, "runtime"))
	}
	if err == nil && os.Getenv(binaryEnv) == "" {
		err = build(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "build weir for its tests:", err)
		os.Exit(1)
	}
	code := netlab.Run(m)
	os.RemoveAll(dir)
	os.Exit(code)
}

// buildTags are those of the Makefile, without which the program is half as large again.
const buildTags = "kustomize_disable_go_plugin_support,grpcnotrace"

// build compiles weir, with the race detector if this test was.
func build(dir string) error {
	args := []string{"build", "-tags", buildTags, "-o", filepath.Join(dir, "weir")}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "-race" && s.Value == "true" {
				args = append(args, "-race")
				// A program with the detector sleeps for a second before it exits; tests run thousands.
				if err := os.Setenv("GORACE", os.Getenv("GORACE")+" atexit_sleep_ms=10"); err != nil {
					return err
				}
			}
		}
	}
	cmd := exec.Command("go", append(args, ".")...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return err
	}
	return os.Setenv(binaryEnv, filepath.Join(dir, "weir"))
}

// raiseParallel runs more scenarios at once than there are cores, unless -parallel was given: they mostly wait.
func raiseParallel() error {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if given {
		return nil
	}
	return flag.Set("test.parallel", "6")
}
