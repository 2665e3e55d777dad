// Command demo shows weir at work: the real program on a node, three pods and two clients, all in their own network
// namespaces, so that nothing on the host changes. It exits with 0 only if everything it shows was really observed.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"weir/backends/netlab"
)

// binaryEnv passes the path of the weir program to the process inside the namespaces.
const binaryEnv = "WEIR_DEMO_BINARY"

func main() {
	testing.Init() // the kits of the lab ask how tests are run
	flag.Parse()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run() error {
	if !netlab.Inside() {
		dir, err := os.MkdirTemp("", "weir-demo-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		if err := build(filepath.Join(dir, "weir")); err != nil {
			return err
		}
	}
	inside, status, err := netlab.Enter()
	switch {
	case err != nil:
		return fmt.Errorf("cannot make network namespaces; run it as root, or allow user namespaces: %w", err)
	case inside:
		return play()
	case status != 0:
		return fmt.Errorf("not everything was observed")
	}
	return nil
}

// build compiles weir outside the namespaces, where the build cache is.
func build(binary string) error {
	cmd := exec.Command("go", "build", "-tags", "kustomize_disable_go_plugin_support,grpcnotrace", "-o", binary, "weir/cmd/weir")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build weir: %w", err)
	}
	return os.Setenv(binaryEnv, binary)
}

// play runs the demo in its own stage.
func play() (err error) {
	dir, err := os.MkdirTemp("", "weir-demo-")
	if err != nil {
		return err
	}
	st := &stage{dir: dir, ctx: context.Background()}
	defer st.strike()
	defer func() {
		if r := recover(); r != nil {
			f, ok := r.(failure)
			if !ok {
				panic(r)
			}
			err = f
		}
	}()
	newShow(st).play()
	return nil
}

// stage implements the testing.TB that the lab needs, outside of a test. A failure ends the demo.
type stage struct {
	testing.TB
	dir     string
	ctx     context.Context
	cleanup []func()
}

// failure ends the demo.
type failure string

func (f failure) Error() string { return string(f) }

func (s *stage) Helper()                           {}
func (s *stage) Logf(format string, args ...any)   {}
func (s *stage) Fatal(args ...any)                 { panic(failure(fmt.Sprint(args...))) }
func (s *stage) Skip(args ...any)                  { s.Fatal(args...) }
func (s *stage) Fatalf(format string, args ...any) { panic(failure(fmt.Sprintf(format, args...))) }
func (s *stage) Skipf(format string, args ...any)  { s.Fatalf(format, args...) }
func (s *stage) Cleanup(f func())                  { s.cleanup = append(s.cleanup, f) }
func (s *stage) Context() context.Context          { return s.ctx }

func (s *stage) TempDir() string {
	dir, err := os.MkdirTemp(s.dir, "")
	if err != nil {
		s.Fatalf("%v", err)
	}
	return dir
}

// strike runs all cleanups, last one first.
func (s *stage) strike() {
	for i := len(s.cleanup) - 1; i >= 0; i-- {
		s.cleanup[i]()
	}
	os.RemoveAll(s.dir)
}
