package filesource

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"weir/spec/stall"
)

var (
	// errChanging means that a file changed while it was read.
	errChanging = errors.New("changed while it was read")
	// errTooLarge means that a file grew beyond the limit after it was looked at.
	errTooLarge = errors.New("larger than the limit")
)

// read returns the content of the regular file that was found at p. It returns errChanging if the file differs from p
// before or after. It opens only regular files: opening a FIFO wakes its writer, and opening a device may do anything.
func (c *calls) read(p place, limit int64) ([]byte, error) {
	if !p.hint.isRegular() {
		return nil, fmt.Errorf("not a regular file")
	}
	c.Reads++
	f, err := c.open(p, 0)
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

// ReadFile returns the content of one file that a command reads besides its input, under the checks of the input: it is
// regular, and not too large. The error is a spec.Problem, or os.ErrNotExist.
func ReadFile(ctx context.Context, name string) ([]byte, error) {
	o := Options{}.withDefaults()
	abs, err := filepath.Abs(name)
	if err != nil {
		return nil, err
	}
	data, err := stall.Do(ctx, stall.Limit, "reading "+name, func() ([]byte, error) {
		var c calls
		p, err := c.resolve("/", abs, true)
		switch {
		case err != nil:
			return nil, err
		case !p.hint.isRegular():
			return nil, errNotRegular
		}
		return c.read(p, o.MaxFileSize)
	})
	if err == nil || errors.Is(err, os.ErrNotExist) || errors.Is(err, stall.ErrStalled) || ctx.Err() != nil {
		return data, err
	}
	return nil, problem(name, err, o)
}

func unchanged(f *file, want hint) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if hintOf(fi) != want {
		return errChanging
	}
	return nil
}

// readBounded reads all of r, which is probably size bytes. It fails with errTooLarge if there are more than limit.
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
