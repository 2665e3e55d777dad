// Command demo shows weir at work: the real program on a node, three pods and two clients, all in network namespaces of
// their own, so that nothing on the host changes. It exits with 0 only if all it shows was really observed.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"weir/backends/netlab"
)

// binaryEnv tells the process inside the namespaces where the weir program is.
const binaryEnv = "WEIR_DEMO_BINARY"

func main() {
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

// build compiles weir outside of the namespaces, where the caches are.
func build(binary string) error {
	cmd := exec.Command("go", "build", "-o", binary, "weir/cmd/weir")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build weir: %w", err)
	}
	return os.Setenv(binaryEnv, binary)
}

// play runs the demo in a stage of its own.
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

// stage is the testing.TB that the lab asks for, outside of a test: what must not fail ends the demo.
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

// strike undoes everything, last things first.
func (s *stage) strike() {
	for i := len(s.cleanup) - 1; i >= 0; i-- {
		s.cleanup[i]()
	}
	os.RemoveAll(s.dir)
}
