package filesource

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// maxLinks is how many symlinks one path may lead through, as in the kernel.
const maxLinks = 40

// hint is what stat says of a file. Equal hints mean that the content is very probably the same: ctime moves with every
// change, and no program can set it back.
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

// sameInode says that both are one file or directory, whatever happened to its content.
func (h hint) sameInode(o hint) bool { return h.dev == o.dev && h.ino == o.ino }

// recent says that the file may change once more without a visible change of its times, since file systems count time
// in steps of up to 2 s.
func (h hint) recent(now time.Time) bool { return now.Sub(time.Unix(0, h.ctime)) < 2*time.Second }

// place is where a path leads.
type place struct {
	// real is the absolute path without a symlink in it.
	real string
	hint hint
	// seen are the absolute paths of the symlinks on the way, of the end, and of what is missing: a change to any of
	// them may change where the path leads.
	seen []string
	// links counts the symlinks; text is what the first one says, and seen[0] is where it is.
	links int
	text  string
}

// errDangling says that a symlink leads to nothing.
var errDangling = errors.New("symlink to nothing")

// resolve follows name, which is relative to the directory base; base holds no symlink. With all, every directory on the
// way counts as seen, not only the symlinks. The place is meaningful with an error too: seen says what to wait for.
func (c *calls) resolve(base, name string, all bool) (place, error) {
	var p place
	at, cur, todo := "", base, split(name) // at is where p.hint was taken
	if filepath.IsAbs(name) {
		cur = "/"
	}
	for len(todo) > 0 {
		part := todo[0]
		todo = todo[1:]
		if part == ".." {
			cur = filepath.Dir(cur)
			continue
		}
		next := filepath.Join(cur, part)
		fi, err := c.lstat(next)
		if err != nil {
			p.seen = append(p.seen, next)
			if p.links > 0 && errors.Is(err, os.ErrNotExist) {
				err = errDangling
			}
			return p, err
		}
		h := hintOf(fi)
		if fi.Mode()&os.ModeSymlink == 0 {
			if all || (len(todo) == 0 && p.links > 0) {
				p.seen = append(p.seen, next)
			}
			cur, at, p.hint = next, next, h
			continue
		}
		p.seen = append(p.seen, next)
		text, err := os.Readlink(next)
		if err != nil {
			return p, err
		}
		if p.links++; p.links == 1 {
			p.text = text
		}
		if p.links > maxLinks {
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

// calls does and counts what touches the file system, so that tests can say what a change costs.
type calls struct {
	Lstats, Lists, Reads int
}

func (c *calls) lstat(path string) (os.FileInfo, error) {
	c.Lstats++
	return os.Lstat(path)
}
