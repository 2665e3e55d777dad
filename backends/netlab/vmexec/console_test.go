package main

import (
	"strings"
	"testing"
)

// TestConsole expects that the guest's output arrives in whole lines, and that vmexec filters out its marks, however
// the serial line splits them.
func TestConsole(t *testing.T) {
	const printed = startMark + "\r\n=== RUN   TestX\r\n    x_test.go:7: no\r\n" + exitMark + "3\r\n"
	for size := 1; size <= len(printed); size++ {
		var out strings.Builder
		started := 0
		c := &console{w: &out, code: -1, started: func() { started++ }}
		for rest := printed; rest != ""; {
			n, err := c.Write([]byte(rest[:min(size, len(rest))]))
			if err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if want := "=== RUN   TestX\n    x_test.go:7: no\n"; out.String() != want || c.code != 3 || started != 1 {
			t.Errorf("in pieces of %d: %q, exit code %d, started %d times", size, out.String(), c.code, started)
		}
	}
}
