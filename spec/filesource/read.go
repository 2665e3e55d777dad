package filesource

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

var (
	// errChanging says that a file changed while it was read.
	errChanging = errors.New("changed while it was read")
	// errTooLarge says that a file grew past the limit after it was looked at.
	errTooLarge = errors.New("larger than the limit")
)

// read returns the content of the regular file that was found at p, or errChanging if it is not, before and after, what
// it was when it was looked at. Anything but a regular file is never opened: opening a FIFO wakes its writer, opening a
// device may do anything.
func (c *calls) read(p place, limit int64) ([]byte, error) {
	if !p.hint.isRegular() {
		return nil, fmt.Errorf("not a regular file")
	}
	c.Reads++
	f, err := os.OpenFile(p.real, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW|syscall.O_NOCTTY, 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ELOOP) {
		return nil, errChanging
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := unchanged(f, p.hint); err != nil {
		return nil, err
	}
	data, err := readBounded(f, p.hint.size, limit)
	if err != nil {
		return nil, err
	}
	if int64(len(data)) != p.hint.size {
		return nil, errChanging
	}
	return data, unchanged(f, p.hint)
}

func unchanged(f *os.File, want hint) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if hintOf(fi) != want {
		return errChanging
	}
	return nil
}

// readBounded reads all of r, which is probably size bytes, or fails with errTooLarge if there are more than limit.
func readBounded(r io.Reader, size, limit int64) ([]byte, error) {
	buf := make([]byte, 0, min(size, limit)+1)
	for {
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if int64(len(buf)) > limit {
			return nil, errTooLarge
		}
		if err == io.EOF {
			return buf, nil
		}
		if err != nil {
			return nil, err
		}
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
	}
}
