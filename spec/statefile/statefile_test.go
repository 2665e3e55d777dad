package statefile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
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

// TestLog appends to a file, as far as it is what was left, and small beside what is appended.
func TestLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	base := func(l *Log) {
		t.Helper()
		if err := l.Write(path, func(w io.Writer) error { _, err := io.WriteString(w, "base;"); return err }); err != nil {
			t.Fatal(err)
		}
	}
	var l Log
	if err := l.Append(path, []byte("x")); !errors.Is(err, ErrRewrite) {
		t.Errorf("before there is a file: %v", err)
	}
	base(&l)
	for _, change := range []string{"one;", "two;"} {
		if err := l.Append(path, []byte(change)); err != nil {
			t.Fatal(err)
		}
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "base;one;two;" {
		t.Errorf("%q, %v", text, err)
	}
	if err := l.Append(path, make([]byte, minAppended)); !errors.Is(err, ErrRewrite) {
		t.Errorf("more than may be appended: %v", err)
	}
	for what, harm := range map[string]func() error{
		"written to":  func() error { return os.WriteFile(path, []byte("base;and more"), 0o600) },
		"cut off":     func() error { return os.Truncate(path, 3) },
		"gone":        func() error { return os.Remove(path) },
		"open to all": func() error { return os.Chmod(path, 0o666) },
		"a symlink":   func() error { return errors.Join(os.Rename(path, path+"2"), os.Symlink(path+"2", path)) },
		"a FIFO":      func() error { return errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o600)) },
	} {
		base(&l)
		if err := harm(); err != nil {
			t.Fatal(err)
		}
		if err := l.Append(path, []byte("x")); err == nil {
			t.Errorf("%s: appended", what)
		}
		if err := l.Append(path, []byte("x")); !errors.Is(err, ErrRewrite) {
			t.Errorf("%s: after an error: %v", what, err)
		}
	}
	base(&l)
	if err := l.Append(path+"2", []byte("x")); !errors.Is(err, ErrRewrite) {
		t.Errorf("another path: %v", err)
	}
}

// TestCheckWay leads a path through symlinks, over other directories, to a file, and then has another user own, or be able to
// write to, one of the directories or symlinks on the way.
func TestCheckWay(t *testing.T) {
	const other = 4242
	base := t.TempDir()
	in := func(name string) string { return filepath.Join(base, name) }
	var dirs []string
	for _, d := range []string{"start", "start/deep", "hop", "hop/over", "end", "end/here"} {
		dirs = append(dirs, in(d))
		if err := os.Mkdir(in(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	links := map[string]string{in("start/deep/file"): "../../hop/over/link", in("hop/over/link"): in("end/to/file"), in("end/to"): "./here"}
	for from, to := range links {
		if err := os.Symlink(to, from); err != nil {
			t.Fatal(err)
		}
	}
	if err := put(in("end/here/file"), "text"); err != nil {
		t.Fatal(err)
	}
	check := func(what string, trusted bool) {
		t.Helper()
		if _, err := CheckWay(in("start/deep/file")); (err == nil) != trusted || !trusted && !errors.Is(err, ErrUntrusted) {
			t.Errorf("%s: %v", what, err)
		}
	}
	check("as made", true)
	for _, d := range dirs {
		for mode, trusted := range map[fs.FileMode]bool{0o775: false, 0o757: false, 0o777 | fs.ModeSticky: true, 0o700: true} {
			if err := os.Chmod(d, mode); err != nil {
				t.Fatal(err)
			}
			check(fmt.Sprintf("%s has mode %v", d, mode), trusted)
		}
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := CheckWay(in("start/deep/file")); err != nil || !slices.Equal(got, []string{in("start/deep/file"), in("hop/over/link"), in("end/to")}) {
		t.Errorf("the symlinks are %v, %v", got, err)
	}
	if _, err := CheckWay(in("start/nothing/file")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a path to nothing: %v", err)
	}
	if err := errors.Join(os.Symlink("round", in("hop/about")), os.Symlink("about", in("hop/round"))); err != nil {
		t.Fatal(err)
	}
	if _, err := CheckWay(in("hop/round")); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("a path that goes round: %v", err)
	}
	netlab.RequireRoot(t, "give directories away")
	for _, what := range append(dirs, slices.Collect(maps.Keys(links))...) {
		if err := os.Lchown(what, other, other); err != nil {
			t.Fatal(err)
		}
		check(what+" is another's", false)
		if err := os.Lchown(what, 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	check("as at first", true)
}
