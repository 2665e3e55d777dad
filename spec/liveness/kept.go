package liveness

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"weir/spec/probe"
	"weir/spec/stall"
	"weir/spec/statefile"
)

const (
	// fileName is the file with the verdicts in the state directory, and header its first line.
	fileName = "liveness"
	header   = "weir liveness 2"
	// maxKept is how many verdicts are read, and maxLine how long a line is.
	maxKept = 200_000
	maxLine = 128
	// spare is how many lines more than needed the file may have before it is written anew.
	spare = 1000
	// restoreFor is how long after the start an endpoint may come and have its earlier verdict, since a runtime may start later.
	restoreFor = 10 * time.Minute
)

// kept keeps verdicts across restarts. A verdict is one line that is added to the file, of which the last one for a check
// counts. The file is written anew, and replaced in one step, when too much of it is out of date. It is safe for concurrent use.
type kept struct {
	log hclog.Logger

	mu      sync.Mutex
	dir     string
	earlier map[string]record // of the process before
	until   time.Time         // when those are forgotten
	pending []byte            // lines that are not written
	lines   int               // in pending
	anew    bool              // the file is to be written anew
	live    int               // checks with a line
	wake    chan struct{}
	told    string // the last logged error; of write alone
}

// record is what is known of a check.
type record struct {
	verdict verdict
	awaited bool
	since   time.Time
	// question is the questionKey of the check, by which the record of the last line is found too.
	question string
	line     int
}

func newKept(log hclog.Logger) *kept {
	return &kept{log: log, wake: make(chan struct{}, 1), earlier: map[string]record{}}
}

// print is the fingerprint of a Probe, and question that of what it asks, whenever it asks and however often.
type print struct{ all, question uint64 }

// prints are the fingerprints of Probes, each worked out once.
type prints map[*probe.Probe]print

func (p prints) of(q *probe.Probe) print {
	if known, ok := p[q]; ok {
		return known
	}
	c := *q
	c.Origin = probe.Origin{Container: q.Origin.Container}
	all := sum(&c)
	c.Period, c.Timeout, c.InitialDelay, c.SuccessThreshold, c.FailureThreshold = 0, 0, 0, 0, 0
	p[q] = print{all, sum(&c)}
	return p[q]
}

func sum(p *probe.Probe) uint64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%+v", *p)
	return h.Sum64()
}

func (c *check) id() string       { return c.key.String() + " " + strconv.FormatUint(c.print.all, 16) }
func (c *check) question() string { return strconv.FormatUint(c.print.question, 16) }

// questionKey returns the key of the last record for a question to an address.
func questionKey(address, question string) string { return address + " ? " + question }

// letters are those of the verdicts in the file: stands, healthy, unhealthy. A check that is awaited has the letter awaited.
const (
	letters = "shu"
	awaited = "a"
)

// use sets the state directory, and reads what an earlier process kept there.
func (k *kept) use(dir string) {
	k.mu.Lock()
	same := k.dir == dir
	k.mu.Unlock()
	if same {
		return
	}
	path := filepath.Join(dir, fileName)
	earlier, err := stall.Do(context.Background(), stall.Limit, "reading "+path, func() (map[string]record, error) { return read(path) })
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		k.log.Warn("the verdicts of the last run cannot be read: endpoints are as their slices say until they are probed", "error", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.dir == "" {
		k.earlier, k.until = earlier, time.Now().Add(restoreFor)
	}
	k.dir, k.anew = dir, true
	if k.live > 0 {
		k.awake()
	}
}

// read reads a file of verdicts. What cannot be understood is left out, as the end of a line that was cut.
func read(path string) (map[string]record, error) {
	f, err := statefile.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all, n := map[string]record{}, 0
	lines := bufio.NewScanner(io.LimitReader(f, (2*maxKept+spare)*maxLine))
	if !lines.Scan() || lines.Text() != header {
		return nil, fmt.Errorf("%s is not a list of verdicts of this version of weir; it is replaced", path)
	}
	for lines.Scan() {
		at, rest, _ := strings.Cut(lines.Text(), " ")
		print, rest, _ := strings.Cut(rest, " ")
		letter, rest, _ := strings.Cut(rest, " ")
		seconds, question, _ := strings.Cut(rest, " ")
		id := at + " " + print
		if letter == "-" {
			delete(all, id)
			continue
		}
		v := strings.Index(letters, letter)
		if letter == awaited {
			v = int(unjudged)
		}
		since, err := strconv.ParseInt(seconds, 10, 64)
		if v < 0 || len(letter) != 1 || err != nil || len(all) >= maxKept {
			continue
		}
		n++
		all[id] = record{verdict(v), letter == awaited, time.Unix(since, 0), questionKey(at, question), n}
	}
	for _, r := range maps.Clone(all) {
		if all[r.question].line < r.line {
			all[r.question] = r
		}
	}
	return all, lines.Err()
}

// restore gives a new check what an earlier process knew of it, and reports whether there was anything.
func (k *kept) restore(c *check) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.earlier) == 0 {
		return false
	}
	if time.Now().After(k.until) {
		k.earlier = nil
		return false
	}
	id := c.id()
	r, ok := k.earlier[id]
	if !ok {
		r, ok = k.earlier[questionKey(c.key.String(), c.question())]
	}
	if !ok {
		return false
	}
	delete(k.earlier, id)
	c.restored, c.told, c.since, c.awaited = true, r.verdict, r.since, r.awaited
	c.stands(r.verdict)
	k.add(c)
	return true
}

// note has the verdict on a check kept.
func (k *kept) note(c *check) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.add(c)
}

func (k *kept) add(c *check) {
	if !c.noted {
		c.noted = true
		k.live++
	}
	k.pending = appendLine(k.pending, c)
	k.lines++
	k.awake()
}

// forget has nothing kept of a check.
func (k *kept) forget(c *check) {
	if !c.noted {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.live--
	k.pending = append(append(k.pending, c.id()...), " -\n"...)
	k.lines++
	k.awake()
}

func appendLine(b []byte, c *check) []byte {
	letter := letters[c.verdict]
	if c.awaited {
		letter = awaited[0]
	}
	b = append(append(b, c.id()...), ' ', letter, ' ')
	since := c.since
	if since.IsZero() {
		since = time.Now()
	}
	b = append(strconv.AppendInt(b, since.Unix(), 10), ' ')
	return append(append(b, c.question()...), '\n')
}

func (k *kept) awake() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// write writes what is to be kept, until ctx is done. records returns a line for each check that is noted.
func (k *kept) write(ctx context.Context, records func() []byte) {
	var gate stall.Gate
	var file *os.File
	lines := 0
	defer func() { file.Close() }()
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.wake:
		}
		k.mu.Lock()
		dir, pending := k.dir, k.pending
		lines += k.lines
		anew := k.anew || file == nil || lines > 2*k.live+spare
		if dir == "" || len(pending) == 0 && !k.anew {
			k.mu.Unlock()
			continue
		}
		k.pending, k.lines, k.anew = nil, 0, false
		k.mu.Unlock()
		if anew {
			pending = records()
		}
		was := file
		path := filepath.Join(dir, fileName)
		opened := make(chan *os.File, 1)
		err := gate.Do(ctx, stall.Limit, "writing "+path, func() error {
			if !anew {
				_, err := was.Write(pending)
				return err
			}
			was.Close()
			f, err := writeAnew(path, pending)
			opened <- f
			return err
		})
		switch {
		case err != nil:
			if anew {
				file = nil
			}
			k.mu.Lock()
			k.anew = true // with the next verdict
			k.mu.Unlock()
		case anew:
			file, lines = <-opened, bytes.Count(pending, []byte{'\n'})
		}
		k.tell(ctx, err)
	}
}

func writeAnew(path string, lines []byte) (*os.File, error) {
	err := statefile.Write(path, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s\n%s", header, lines)
		return err
	})
	if err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_WRONLY|os.O_APPEND|syscall.O_NOFOLLOW, 0)
}

func (k *kept) tell(ctx context.Context, err error) {
	text := ""
	if err != nil && ctx.Err() == nil {
		text = err.Error()
	}
	switch {
	case text == k.told:
	case text != "":
		k.log.Warn("verdicts cannot be kept for the next start; trying again with each", "error", text)
	default:
		k.log.Info("verdicts are kept again")
	}
	k.told = text
}

// records returns a line for each check that is noted.
func (l *Layer) records() (lines []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, at := range l.checks {
		for _, c := range at {
			if c.noted {
				lines = appendLine(lines, c)
			}
		}
	}
	return lines
}
