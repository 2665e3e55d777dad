package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"
)

// logBacklog is how many lines wait for a reader that stalls.
const logBacklog = 1024

// logFlush is how long the end of the program waits for them.
const logFlush = time.Second

// logWriter writes lines without ever keeping their author waiting. What its reader does not take, because it stalls or is
// gone, is lost; how much was lost is told once it reads again.
type logWriter struct {
	w     io.Writer
	lines chan []byte
	// told makes the line that tells of losses. It is set before the first line is written.
	told func(lost int64) []byte
	lost atomic.Int64
	done chan struct{}
}

func newLogWriter(w io.Writer) *logWriter {
	l := &logWriter{w: w, lines: make(chan []byte, logBacklog), done: make(chan struct{})}
	go l.drain()
	return l
}

// Write implements io.Writer, for one line.
func (l *logWriter) Write(line []byte) (int, error) {
	select {
	case l.lines <- oneEntry(line, coloured(l.w)):
	default:
		l.lost.Add(1)
	}
	return len(line), nil
}

func (l *logWriter) drain() {
	defer close(l.done)
	for line := range l.lines {
		if line == nil {
			return
		}
		if _, err := l.w.Write(line); err != nil {
			l.lost.Add(1)
			continue
		}
		if lost := l.lost.Swap(0); lost > 0 {
			if _, err := l.w.Write(l.told(lost)); err != nil {
				l.lost.Add(lost)
			}
		}
	}
}

// close writes what waits, unless the reader stalls. Nothing is written afterwards.
func (l *logWriter) close() {
	timeout := time.After(logFlush)
	select {
	case l.lines <- nil:
	case <-timeout:
		return
	}
	select {
	case <-l.done:
	case <-timeout:
	}
}

// outliveTerminal keeps the process from ending when nobody reads what it writes any more: writes then fail instead. Nor
// does SIGHUP end it; the channel receives it.
func outliveTerminal() <-chan os.Signal {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	return hangup
}

// colour is what a coloured log may send to a terminal beside text.
var colour = regexp.MustCompile("^\x1b\\[[0-9;]*m")

// oneEntry returns a copy of a line of the log in which nothing that others wrote steers a terminal or looks like another
// line. What hclog breaks into several lines goes on with two spaces.
func oneEntry(line []byte, colours bool) []byte {
	out := make([]byte, 0, len(line))
	for i := 0; i < len(line); {
		r, n := utf8.DecodeRune(line[i:])
		rest := line[i+n:]
		switch {
		case r == utf8.RuneError && n == 1:
			out = fmt.Appendf(out, "\\x%02x", line[i])
		case r == '\n' && len(bytes.TrimRight(rest, "\n")) > 0 && !bytes.HasPrefix(rest, []byte("  ")),
			r != '\n' && r != '\t' && (unicode.IsControl(r) || unicode.Is(unicode.Cf, r)) && !(colours && colour.Match(line[i:])):
			out = append(out, strings.Trim(strconv.QuoteRuneToASCII(r), "'")...)
		default:
			out = append(out, line[i:i+n]...)
		}
		i += n
	}
	return out
}
