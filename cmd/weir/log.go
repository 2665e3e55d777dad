package main

import (
	"io"
	"os"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
	"github.com/mattn/go-isatty"
	logsapi "k8s.io/component-base/logs/api/v1"

	"weir/spec"
)

// logger returns the logger that the flags ask for. It writes to w, coloured if w is a terminal.
func (f *logFlags) logger(w io.Writer) hclog.Logger { return hclog.New(f.options(w)) }

func (f *logFlags) options(w io.Writer) *hclog.LoggerOptions {
	level := hclog.LevelFromString(f.level)
	byVerbosity := hclog.Info
	switch {
	case f.verbosity >= 5:
		byVerbosity = hclog.Trace
	case f.verbosity >= 2:
		byVerbosity = hclog.Debug
	}
	if f.verbosity > 0 && byVerbosity < level {
		level = byVerbosity
	}
	color := hclog.ColorOff
	if coloured(w) {
		color = hclog.ForceColor
	}
	return &hclog.LoggerOptions{Name: "weir", Level: level, Output: w, JSONFormat: f.format == "json", Color: color, TimeFormat: "2006-01-02T15:04:05.000Z07:00"}
}

// liveLogger is a logger whose level and format follow the configuration, where no flag was given for them. Those named
// after it follow as well.
type liveLogger struct {
	hclog.InterceptLogger // writes text
	flags, inForce        logFlags
	out                   io.Writer
	text                  *gate
	json                  hclog.SinkAdapter // nil while the format is text
}

func (f *logFlags) liveLogger(w io.Writer) *liveLogger {
	l := &liveLogger{flags: *f, out: w, text: &gate{w: w}}
	opts := f.options(w)
	opts.Output, opts.JSONFormat = l.text, false
	l.InterceptLogger = hclog.NewInterceptLogger(opts)
	l.use(*f)
	return l
}

// follow takes the configuration's word for what no flag was given for.
func (l *liveLogger) follow(c *logsapi.LoggingConfiguration) {
	f := l.flags
	if !f.set.Changed("log-format") {
		f.format = c.Format
	}
	if !f.set.Changed("v") && !f.set.Changed("log-level") {
		f.verbosity = int(c.Verbosity)
	}
	if f != l.inForce {
		l.use(f)
	}
}

func (l *liveLogger) use(f logFlags) {
	l.inForce = f
	opts, before := f.options(l.out), l.json
	l.SetLevel(opts.Level)
	l.text.shut.Store(opts.JSONFormat)
	l.json = nil
	if opts.JSONFormat {
		l.json = hclog.NewSinkAdapter(opts)
		l.RegisterSink(l.json)
	}
	if before != nil {
		l.DeregisterSink(before)
	}
}

// gate passes on what is written to it while it is not shut.
type gate struct {
	w    io.Writer
	shut atomic.Bool
}

func (g *gate) Write(b []byte) (int, error) {
	if g.shut.Load() {
		return len(b), nil
	}
	return g.w.Write(b)
}

// changeLog tells of each thing once: while a condition lasts, it is not repeated.
type changeLog struct {
	log     hclog.Logger
	notices map[string]struct{}
	input   string // the error of the input that was last told
}

func newChangeLog(log hclog.Logger) *changeLog {
	return &changeLog{log: log, notices: map[string]struct{}{}}
}

// update tells what is wrong with the input, and when it has healed.
func (c *changeLog) update(u spec.Update) {
	if u.Err == nil {
		if c.input != "" {
			c.log.Info("the input is valid again", "revision", u.Revision.String())
		}
		c.input = ""
		c.noticeAll(u)
		return
	}
	if text := u.Err.Error(); text != c.input {
		c.input = text
		c.log.Error("the input cannot be used; what is in force stays", "revision", u.Revision.String())
		for _, p := range problemLines(u.Err) {
			c.log.Error(p)
		}
	}
}

// noticeAll tells the notices of what changed that were not told before.
func (c *changeLog) noticeAll(u spec.Update) {
	tell := func(problems []spec.Problem) {
		for _, p := range problems {
			if p.Code == spec.CodeUnpinned || p.Code == spec.CodeStaleLock {
				continue // that is for whoever writes the input: weir validate tells
			}
			if _, told := c.notices[p.Error()]; !told {
				c.log.Warn(p.Error())
				c.notices[p.Error()] = struct{}{}
			}
		}
	}
	if u.Delta.All || u.Delta.Config || len(u.Delta.Services) == 0 {
		tell(u.Snapshot.Notices)
	}
	if u.Delta.All {
		for svc := range u.Snapshot.Services() {
			tell(svc.Notices)
		}
	}
	for _, name := range u.Delta.Services {
		if svc := u.Snapshot.Service(name); svc != nil {
			tell(svc.Notices)
		}
	}
}

// coloured says whether w is a terminal whose user has not asked for plain text (https://no-color.org).
func coloured(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && isatty.IsTerminal(f.Fd())
}

// The colours of a terminal.
const (
	red    = "31"
	green  = "32"
	yellow = "33"
)

// paint colours the text if w is a terminal.
func paint(w io.Writer, colour, text string) string {
	if !coloured(w) {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}
