package hostnet

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxTextFile bounds the size of the files of others that weir adds to.
const maxTextFile = 4 << 20

// readTextFile returns the content of a regular file.
func readTextFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil {
		return nil, err
	} else if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxTextFile+1))
	if len(data) > maxTextFile {
		return nil, fmt.Errorf("%s has more than %d bytes", path, maxTextFile)
	}
	return data, err
}

// writeTextFile replaces the content of a file, which readers see as it was or as it will be. Its mode, owner and extended
// attributes stay. A file that cannot be replaced, because it is mounted or its directory is read-only, is written in place.
// path must not be a symlink. A file that does not exist is made.
func writeTextFile(path string, data []byte) error {
	fi, err := os.Lstat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil && !fi.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", path)
	}
	replaced := replaceTextFile(path, fi, data)
	if replaced == nil || fi == nil {
		return replaced
	}
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	if err == nil {
		err = f.Truncate(int64(len(data)))
	}
	return errors.Join(err, f.Close())
}

// replaceTextFile renames a new file over path. fi is what path has, or nil.
func replaceTextFile(path string, fi os.FileInfo, data []byte) error {
	if fi != nil && fi.Sys().(*syscall.Stat_t).Nlink > 1 {
		return errors.New("it has other names, which would keep the old content")
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".weir-*")
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	if err == nil {
		err = likeFile(tmp, path, fi)
	}
	if err == nil {
		err = tmp.Sync() // it outlives a crash of the node
	}
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		os.Remove(tmp.Name())
	}
	return err
}

// likeFile gives a new file the owner, the mode and the extended attributes of another one.
func likeFile(f *os.File, path string, fi os.FileInfo) error {
	if fi == nil {
		return f.Chmod(0o644)
	}
	st := fi.Sys().(*syscall.Stat_t)
	if err := f.Chown(int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := f.Chmod(fi.Mode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)); err != nil {
		return err
	}
	return copyAttributes(path, f)
}

func copyAttributes(from string, to *os.File) error {
	list := make([]byte, 16<<10)
	n, err := unix.Llistxattr(from, list)
	if errors.Is(err, unix.ENOTSUP) || n == 0 {
		return nil
	} else if err != nil {
		return err
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(from, name, value)
		if err == nil {
			err = unix.Fsetxattr(int(to.Fd()), name, value[:n], 0)
		}
		if err != nil {
			return fmt.Errorf("%s: attribute %s: %w", from, name, err)
		}
	}
	return nil
}

// The lines around what weir adds to a file of others.
const (
	blockBegin = "# Begin of what weir adds. weir cleanup takes it away.\n"
	// blockBeginOpen follows text whose last line had no end, and got one.
	blockBeginOpen = "# Begin of what weir adds, after a line that had no end. weir cleanup takes it away.\n"
	blockEnd       = "# End of what weir adds.\n"
)

// cutBlock returns a text without what weir added, and what that was. Of a block without its end, the lines go that ours
// reports to be of weir. clean reports whether there is one whole block.
func cutBlock(text string, ours func(line string) bool) (rest, block string, clean bool) {
	var keep, cut strings.Builder
	lines := slices.Collect(strings.Lines(text))
	blocks, whole := 0, true
	for i := 0; i < len(lines); i++ {
		if lines[i] != blockBegin && lines[i] != blockBeginOpen {
			if lines[i] == blockEnd { // without its begin
				whole = false
				continue
			}
			keep.WriteString(lines[i])
			continue
		}
		if lines[i] == blockBeginOpen && strings.HasSuffix(keep.String(), "\n") {
			text := strings.TrimSuffix(keep.String(), "\n")
			keep.Reset()
			keep.WriteString(text)
		}
		blocks++
		end := slices.Index(lines[i:], blockEnd)
		for i++; i < len(lines) && lines[i] != blockEnd && (end > 0 || ours(lines[i])); i++ {
			cut.WriteString(lines[i])
		}
		if end < 0 {
			whole, i = false, i-1 // the line is of others
		}
	}
	return keep.String(), cut.String(), whole && blocks == 1
}

// prepended returns a text with a block before it.
func prepended(block, rest string) string { return blockBegin + block + blockEnd + rest }

// appended returns a text with a block after it.
func appended(rest, block string) string {
	if rest != "" && !strings.HasSuffix(rest, "\n") {
		return rest + "\n" + blockBeginOpen + block + blockEnd
	}
	return rest + blockBegin + block + blockEnd
}
