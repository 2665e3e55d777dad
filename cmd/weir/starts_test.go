package main_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"weir/backends/netlab"
	"weir/spec/seed"
)

// startModel is what must be in force, and what an earlier run kept: the number of the pod that the Service leads to, or 0
// for nothing.
type startModel struct {
	input        string // the reason why it is refused, or "" if it is good
	pod          int    // in the input, if that is good
	kernel, kept int
	// restored and empty count the starts that served the kept state, and those with nothing to serve.
	restored, empty int
}

// The reasons why inputs are refused.
const (
	inputInvalid    = "broken.yaml:4: Service default/broken"
	inputMissing    = "does not exist"
	inputUnreadable = "not a regular file"
)

// settle takes what weir makes of the input. started reports whether a process has just begun.
func (m *startModel) settle(started bool) {
	switch {
	case m.input == "":
		m.kernel, m.kept = m.pod, m.pod
	case started && m.kernel == 0:
		if m.kernel = m.kept; m.kept > 0 {
			m.restored++
		} else {
			m.empty++
		}
	}
}

// startSteps is how many steps TestRandomStarts takes, each of less than half a second.
const startSteps = 40

// TestRandomStarts does at random to a weir what a node goes through: inputs that are good, invalid, missing and unreadable,
// starts after a crash or an orderly end, with what the kernel and the state directory held and without it. After each step,
// traffic and status are those of a model.
func TestRandomStarts(t *testing.T) {
	d := painDaemon(t, modes[2])
	rnd := seed.Rand(t)
	m := &startModel{pod: 1}
	inputs := []string{"", "", inputInvalid, inputMissing, inputUnreadable}
	d.start()
	m.settle(true)
	d.expectStart(m, "start")
	for i := range startSteps {
		m.input = inputs[rnd.IntN(len(inputs))]
		m.pod = m.pod%3 + 1
		what := fmt.Sprintf("step %d: input %q of pod%d", i, m.input, m.pod)
		restart := rnd.IntN(3) > 0
		if restart {
			what += d.end(m, rnd.IntN(2) == 0, rnd.IntN(2) == 0, rnd.IntN(9))
		}
		d.lay(m.input, m.pod)
		if restart {
			d.start()
		}
		m.settle(restart)
		t.Log(what)
		d.expectStart(m, what)
		if t.Failed() {
			t.FailNow()
		}
	}
	if m.restored == 0 || m.empty == 0 {
		t.Errorf("%d starts served the kept state, and %d had nothing to serve: the sequence is too tame", m.restored, m.empty)
	}
}

// end ends weir, by a crash or in order, empties the kernel if asked to, and damages the kept state in one of three ways;
// with more, it leaves that alone. It returns what it did.
func (d *daemon) end(m *startModel, crash, flush bool, damage int) (what string) {
	d.t.Helper()
	what = ", ended"
	if crash {
		what = ", killed"
		d.kill()
	} else {
		d.terminate()
	}
	if flush {
		what += ", kernel empty"
		if out, err := d.cleanup(); err != nil {
			d.t.Fatalf("%v\n%s", err, out)
		}
		m.kernel = 0
	}
	file := filepath.Join(d.state, "files-snapshot")
	data, err := os.ReadFile(file)
	if damage > 2 || errors.Is(err, os.ErrNotExist) {
		return what
	}
	switch damage {
	case 0:
		what, err = what+", kept state removed", os.Remove(file)
	case 1:
		what, err = what+", kept state cut short", os.WriteFile(file, data[:len(data)/2], 0o600)
	case 2:
		what, err = what+", kept state with a bit changed", os.WriteFile(file, bytes.Replace(data, []byte("10.96.0.10"), []byte("10.96.0.11"), 1), 0o600)
	}
	if err != nil {
		d.t.Fatal(err)
	}
	m.kept = 0
	return what
}

// lay makes the input one that is refused for a reason, or good. No input appears in between that is good and another.
func (d *daemon) lay(refused string, pod int) {
	d.t.Helper()
	away, content := d.dir+".away", d.dir
	fi, err := os.Lstat(d.dir)
	isAway := err != nil || !fi.IsDir()
	if isAway {
		content = away
	}
	put := func(name, text string) error { // at once
		return errors.Join(os.WriteFile(d.dir+".new", []byte(text), 0o644), os.Rename(d.dir+".new", filepath.Join(content, name)))
	}
	var errs []error
	goes := refused == inputMissing || refused == inputUnreadable
	if refused == inputInvalid {
		errs = append(errs, put("broken.yaml", brokenService))
	}
	if goes && !isAway {
		errs = append(errs, os.Rename(d.dir, away))
		content = away
	}
	if isAway && err == nil {
		errs = append(errs, os.Remove(d.dir)) // the FIFO
	}
	errs = append(errs, put("slice.yaml", painSlice(pod)))
	if refused == "" {
		errs = append(errs, os.RemoveAll(filepath.Join(content, "broken.yaml")))
	}
	if refused == inputUnreadable {
		errs = append(errs, syscall.Mkfifo(d.dir, 0o600))
	}
	if isAway && !goes {
		errs = append(errs, os.Rename(away, d.dir))
	}
	if err := errors.Join(errs...); err != nil {
		d.t.Fatal(err)
	}
}

// expectStart waits until status says what the model says, and traffic follows it.
func (d *daemon) expectStart(m *startModel, what string) {
	d.t.Helper()
	d.await(what+": the status", func() error {
		out, err := d.weir("status")
		refused, nothing := strings.Contains(out, "refused   revision "), strings.Contains(out, "in force  nothing\n")
		if err != nil || refused != (m.input != "") || !strings.Contains(out, m.input) || nothing != (m.kernel == 0) {
			return fmt.Errorf("want %+v: %v: %s", m, err, out)
		}
		return nil
	})
	if m.kernel > 0 {
		d.awaitAnswer(fmt.Sprintf("pod%d", m.kernel))
	} else if r := d.lab.Host(netlab.Client).Probe(netlab.TCP, netip.MustParseAddrPort("10.96.0.10:80"), time.Second); r.Server != "" {
		d.t.Errorf("%s: %s answers, and nothing should", what, r.Server)
	}
	if m.input != "" {
		return
	}
	d.await(what+": the state to be kept", func() error {
		text, err := os.ReadFile(filepath.Join(d.state, "files-snapshot"))
		if err == nil && !strings.Contains(string(text), netlab.PodIPv4(m.pod).String()) {
			err = errors.New("an older one is kept")
		}
		return err
	})
}
