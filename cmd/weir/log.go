package main

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
	"github.com/mattn/go-isatty"
	logsapi "k8s.io/component-base/logs/api/v1"

	"weir/backends/userspace"
	"weir/reconcile"
	"weir/reconcile/tell/changes"
	"weir/reconcile/tell/notices"
	"weir/spec"
)

// logger returns the logger that the flags describe. It writes to w, coloured if w is a terminal.
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

// liveLogger is a logger whose level and format follow the configuration, unless a flag sets them. Named loggers made
// from it follow too.
type liveLogger struct {
	hclog.InterceptLogger // writes text
	flags, inForce        logFlags
	out                   io.Writer
	text                  *gate
	json                  hclog.SinkAdapter // nil while the format is text
	opts                  atomic.Pointer[hclog.LoggerOptions]
}

func (f *logFlags) liveLogger(w io.Writer) *liveLogger {
	l := &liveLogger{flags: *f, out: w, text: &gate{w: w}}
	opts := f.options(w)
	opts.Output, opts.JSONFormat = l.text, false
	l.InterceptLogger = hclog.NewInterceptLogger(opts)
	l.use(*f)
	return l
}

// follow applies the configuration where no flag was given.
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
	l.opts.Store(opts)
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

// lossLine returns the line that tells of lines that were lost, in the format of the others.
func (l *liveLogger) lossLine(lost int64) []byte {
	var line bytes.Buffer
	opts := *l.opts.Load()
	opts.Output = &line
	hclog.New(&opts).Warn("lines of the log were lost, for nobody read them", "lines", lost)
	return line.Bytes()
}

// gate is a writer that drops everything while it is shut.
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

// changeLog logs each condition once while it lasts.
type changeLog struct {
	reconcile.NopObserver
	log   hclog.Logger
	book  *notices.Book
	count func(map[spec.NoticeID]int) // takes the number of notices by kind; may be nil
	input string                      // the last logged error of the input
	away  map[string]spec.Away        // the sources of pods that are away, as logged, by name

	// look returns the notices about the networks that the node has now, and ports the node ports at ::1 that are not served;
	// they may be nil. network and taken are what they returned. node and snap are in force.
	look    func(*spec.Snapshot, *nodeConfig) []spec.Notice
	ports   func() []userspace.NotServed
	network []spec.Notice
	taken   []userspace.NotServed
	node    *nodeConfig
	snap    *spec.Snapshot
}

func newChangeLog(log hclog.Logger) *changeLog {
	return &changeLog{log: log, book: notices.NewBook()}
}

// Configured implements reconcile.Observer. It logs what the configuration does not find on this node.
func (c *changeLog) Configured(snap *spec.Snapshot, s reconcile.Settings) {
	if t, ok := s.From.(*nodeConfig); ok {
		c.node, c.snap, c.network = t, snap, t.Network
		c.tellNode()
	}
}

// tellNode logs what is new of the notices about this node.
func (c *changeLog) tellNode() {
	all := slices.Concat(c.node.Notices, c.network)
	for _, p := range c.taken {
		var at spec.Origin
		if svc := c.snap.Services.Get(p.Service); svc != nil {
			at = svc.Origin
		}
		all = append(all, spec.PortNotServed.Notice(at, spec.ServiceObject(p.Service), "", fmt.Sprintf(
			"%s node port not served: %s; weir tries again with each full sync", p.Protocol, p.Reason)))
	}
	c.tell(c.book.Node(c.snap, c.node.Node.Name, all))
}

// Updated implements reconcile.Observer. It logs errors of the input, and the end of an error.
func (c *changeLog) Updated(u spec.Update) {
	if u.Err == nil {
		if c.input != "" {
			c.log.Info("the input is valid again", "revision", u.Revision.String())
		}
		c.input, c.snap = "", u.Snapshot
		c.tellAway(u.Snapshot.Away)
		c.tell(c.book.Update(u))
		return
	}
	if text := u.Err.Error(); text != c.input {
		c.input = text
		then := "what is in force stays"
		if c.snap == nil {
			then = "nothing is in force, and the kernel stays as it is"
		}
		c.log.Error("the input cannot be used; "+then, "revision", u.Revision.String())
		for _, p := range problemLines(u.Err) {
			c.log.Error(p)
		}
	}
}

// tellAway logs which sources of pods are away, and which are back.
func (c *changeLog) tellAway(all []spec.Away) {
	now := make(map[string]spec.Away, len(all))
	for _, a := range all {
		now[a.Source] = a
		if before, known := c.away[a.Source]; !known || before.Reason != a.Reason {
			c.log.Warn(spec.Clean(a.Source)+" is away", "error", spec.Clean(a.Reason), "meanwhile", spec.Clean(a.Stands))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.away)) {
		if _, still := now[name]; !still {
			c.log.Info(spec.Clean(name) + " is away no more")
		}
	}
	c.away = now
}

// Applied implements reconcile.Observer. It logs the notices that the round found. A full round looks at the node's
// networks again, because nothing notifies of routes.
func (c *changeLog) Applied(r reconcile.Report) {
	c.tell(c.book.Report(r))
	if c.node == nil {
		return
	}
	changed := false
	if c.ports != nil {
		was := c.taken
		c.taken = c.ports()
		changed = !slices.Equal(was, c.taken)
	}
	if r.Full && c.look != nil {
		c.network = c.look(c.snap, c.node)
		changed = true
	}
	if changed {
		c.tellNode()
	}
}

// tell logs new notices, those of one kind on one line.
func (c *changeLog) tell(fresh []spec.Notice) {
	if c.count != nil {
		c.count(c.book.Counts())
	}
	fresh = slices.DeleteFunc(fresh, func(n spec.Notice) bool {
		return n.Severity() == spec.SeverityInfo // weir validate reports it to the author
	})
	for _, g := range changes.GroupNotices(fresh, false) {
		c.log.Warn(g.String(), "id", g.ID.Short())
		for _, n := range g.Notices {
			if len(g.Notices) > 1 {
				c.log.Debug(n.Error(), "id", n.ID().Short())
			}
		}
	}
}

// coloured reports whether w is a terminal whose user has not asked for plain text (https://no-color.org).
func coloured(w io.Writer) bool {
	if l, ok := w.(*logWriter); ok {
		w = l.w
	}
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
