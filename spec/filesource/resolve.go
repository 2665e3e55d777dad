package filesource

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// maxLinks limits the symlinks on one path, as in the kernel.
const maxLinks = 40

// hint is the result of stat for a file. Equal hints mean that the content is very probably the same: ctime moves with
// every change, and no program can set it back.
type hint struct {
	dev, ino     uint64
	mode         uint32
	size         int64
	mtime, ctime int64 // nanoseconds
}

func hintOf(fi os.FileInfo) hint {
	st := fi.Sys().(*syscall.Stat_t)
	return hint{
		dev: st.Dev, ino: st.Ino, mode: st.Mode, size: st.Size,
		mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano(),
	}
}

func (h hint) isDir() bool     { return h.mode&syscall.S_IFMT == syscall.S_IFDIR }
func (h hint) isRegular() bool { return h.mode&syscall.S_IFMT == syscall.S_IFREG }

// sameInode reports whether both are the same file or directory, whatever happened to its content.
func (h hint) sameInode(o hint) bool { return h.dev == o.dev && h.ino == o.ino }

// recent reports whether the file may change once more without a visible change of its times. File systems count time
// in steps of up to 2 s.
func (h hint) recent(now time.Time) bool { return now.Sub(time.Unix(0, h.ctime)) < 2*time.Second }

// place is the target of a path.
type place struct {
	// real is the absolute path without symlinks.
	real string
	hint hint
	// seen holds the absolute paths of the symlinks on the way, of the end, and of what is missing. A change to any of
	// them may change the target.
	seen []string
	// links are the symlinks, in the order in which they were followed.
	links []link
}

// link is a symlink on the way to a place.
type link struct{ path, text string }

// errDangling means that the target of a symlink does not exist.
var errDangling = errors.New("symlink to nothing")

// resolve follows name, which is relative to the directory base; base holds no symlink. With all, every directory on
// the way counts as seen, not only the symlinks. The place is also valid with an error: seen says what to wait for.
func (c *calls) resolve(base, name string, all bool) (place, error) {
	var p place
	at, cur, todo := "", base, split(name) // at is the path of p.hint
	if filepath.IsAbs(name) {
		cur = "/"
	}
	own := len(todo) // so many parts at the end of todo are of name, and those before them of a symlink
	for len(todo) > 0 {
		part := todo[0]
		todo = todo[1:]
		ofLink := len(todo) >= own
		own = min(own, len(todo))
		if part == ".." {
			cur = filepath.Dir(cur)
			continue
		}
		next := filepath.Join(cur, part)
		fi, err := c.lstat(next)
		if err != nil {
			p.seen = append(p.seen, next)
			if ofLink && errors.Is(err, os.ErrNotExist) {
				err = errDangling
			}
			return p, err
		}
		h := hintOf(fi)
		if fi.Mode()&os.ModeSymlink == 0 {
			if all || (len(todo) == 0 && len(p.links) > 0) {
				p.seen = append(p.seen, next)
			}
			cur, at, p.hint = next, next, h
			continue
		}
		p.seen = append(p.seen, next)
		text, err := c.readlink(next)
		if err != nil {
			return p, err
		}
		if p.links = append(p.links, link{next, text}); len(p.links) > maxLinks {
			return p, syscall.ELOOP
		}
		if filepath.IsAbs(text) {
			cur = "/"
		}
		todo = append(split(text), todo...)
	}
	p.real = cur
	if at != cur {
		fi, err := c.lstat(cur)
		if err != nil {
			return p, err
		}
		p.hint = hintOf(fi)
	}
	return p, nil
}

// split returns the parts of a path, without the empty ones and ".".
func split(path string) []string {
	var parts []string
	for _, s := range strings.Split(path, "/") {
		if s != "" && s != "." {
			parts = append(parts, s)
		}
	}
	return parts
}

// calls makes and counts the calls to the file system, so that tests can state the cost of a change.
type calls struct {
	Lstats, Lists, Reads int
	// oversight oversees the calls; nil oversees none.
	oversight *oversight
}

func (c *calls) lstat(path string) (os.FileInfo, error) {
	c.Lstats++
	if err := c.oversight.begin(path, 0, oneStep); err != nil {
		return nil, err
	}
	fi, err := os.Lstat(path)
	c.oversight.end()
	return fi, err
}

func (c *calls) readlink(path string) (string, error) {
	if err := c.oversight.begin(path, 0, oneStep); err != nil {
		return "", err
	}
	text, err := os.Readlink(path)
	c.oversight.end()
	return text, err
}

// file is an open file, all of whose calls are overseen.
type file struct {
	*os.File
	calls *calls
	dev   uint64
}

// open opens the file or directory that was found at p.
func (c *calls) open(p place, flags int) (*file, error) {
	if err := c.oversight.begin(p.real, p.hint.dev, oneStep); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(p.real, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW|syscall.O_NOCTTY|flags, 0)
	c.oversight.end()
	if err != nil {
		return nil, err
	}
	return &file{f, c, p.hint.dev}, nil
}

func (f *file) begin() error { return f.calls.oversight.begin(f.Name(), f.dev, oneStep) }

// maxRead bounds one read, so that a slow disk makes progress between two of them.
const maxRead = 1 << 20

// Read implements io.Reader.
func (f *file) Read(p []byte) (int, error) {
	if err := f.begin(); err != nil {
		return 0, err
	}
	n, err := f.File.Read(p[:min(len(p), maxRead)])
	f.calls.oversight.end()
	return n, err
}

// Stat is like that of os.File.
func (f *file) Stat() (os.FileInfo, error) {
	if err := f.begin(); err != nil {
		return nil, err
	}
	fi, err := f.File.Stat()
	f.calls.oversight.end()
	return fi, err
}

// ReadDir is like that of os.File.
func (f *file) ReadDir(n int) ([]os.DirEntry, error) {
	if err := f.begin(); err != nil {
		return nil, err
	}
	entries, err := f.File.ReadDir(n)
	f.calls.oversight.end()
	return entries, err
}

// Close closes the file. A file system that has stopped to answer keeps it open.
func (f *file) Close() {
	if f.begin() == nil {
		_ = f.File.Close() // nothing was written
		f.calls.oversight.end()
	}
}
