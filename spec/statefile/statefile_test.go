package statefile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"weir/backends/netlab"
)

func put(path, text string) error {
	return Write(path, func(w io.Writer) error {
		_, err := io.WriteString(w, text)
		return err
	})
}

func TestWriteAndOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "state")
	for _, text := range []string{"first", "second"} {
		if err := put(path, text); err != nil {
			t.Fatal(err)
		}
		f, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(f)
		if string(got) != text || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		f.Close()
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}
	if fi, err := os.Stat(filepath.Dir(path)); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", fi, err)
	}
	failure := errors.New("cannot")
	if err := Write(path, func(io.Writer) error { return failure }); !errors.Is(err, failure) {
		t.Errorf("a failed write: %v", err)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// TestWriteErrorsAreTheSame has writes fail, again and again, at each step that names a file. The text does not change, so that it
// can be told once.
func TestWriteErrorsAreTheSame(t *testing.T) {
	dir := t.TempDir()
	long, taken := filepath.Join(dir, strings.Repeat("x", 250)), filepath.Join(dir, "taken")
	if err := os.MkdirAll(filepath.Join(taken, "inside"), 0o700); err != nil {
		t.Fatal(err)
	}
	full := func(io.Writer) error {
		return &fs.PathError{Op: "write", Path: dir + "/.state-" + fmt.Sprint(rand.Int()), Err: syscall.ENOSPC}
	}
	none := func(io.Writer) error { return nil }
	for path, c := range map[string]struct {
		write func(io.Writer) error
		want  error
	}{
		long:                        {none, syscall.ENAMETOOLONG},
		taken:                       {none, syscall.EEXIST},
		filepath.Join(dir, "state"): {full, syscall.ENOSPC},
	} {
		for range 2 {
			err := Write(path, c.write)
			if want := "write " + path + ": " + c.want.Error(); err == nil || !errors.Is(err, c.want) || err.Error() != want {
				t.Errorf("%v, want %s", err, want)
			}
		}
	}
}

// TestOpenRefuses has every way in which another user may have made a file.
func TestOpenRefuses(t *testing.T) {
	const other = 4242
	asRoot := func(do func(path string) error) func(string) error {
		return func(path string) error {
			netlab.RequireRoot(t, "give files away")
			return do(path)
		}
	}
	inDir := func(do func(dir string) error) func(string) error {
		return func(path string) error { return do(filepath.Dir(path)) }
	}
	for name, c := range map[string]struct {
		change  func(path string) error
		allowed bool
	}{
		"as written":                      {func(string) error { return nil }, true},
		"readable by others":              {func(p string) error { return os.Chmod(p, 0o644) }, true},
		"writable by the group":           {func(p string) error { return os.Chmod(p, 0o620) }, false},
		"writable by others":              {func(p string) error { return os.Chmod(p, 0o602) }, false},
		"owned by another":                {asRoot(func(p string) error { return os.Chown(p, other, other) }), false},
		"a symlink":                       {func(p string) error { return errors.Join(os.Rename(p, p+".away"), os.Symlink(p+".away", p)) }, false},
		"a FIFO":                          {func(p string) error { return errors.Join(os.Remove(p), syscall.Mkfifo(p, 0o600)) }, false},
		"a directory":                     {func(p string) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o700)) }, false},
		"directory writable by others":    {inDir(func(d string) error { return os.Chmod(d, 0o777) }), false},
		"directory like /tmp":             {inDir(func(d string) error { return os.Chmod(d, 0o777|os.ModeSticky) }), true},
		"directory readable by all":       {inDir(func(d string) error { return os.Chmod(d, 0o755) }), true},
		"directory owned by another":      {asRoot(inDir(func(d string) error { return os.Chown(d, other, other) })), false},
		"directory writable by the group": {inDir(func(d string) error { return os.Chmod(d, 0o770) }), false},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "dir", "state")
			if err := errors.Join(put(path, "text"), c.change(path)); err != nil {
				t.Fatal(err)
			}
			f, err := Open(path)
			if err == nil {
				f.Close()
			}
			if (err == nil) != c.allowed || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("error %v", err)
			}
		})
	}
}
