package statefile

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// Log is a file that begins with a base, to which changes are appended, so that to keep one change costs in proportion to its
// size and not to that of everything. The writer writes a new base when Append asks for it. After a crash the last change
// may be there in part: the reader tells by the content. The zero value has no file. One goroutine may use a Log.
type Log struct {
	path string
	// base is the size of the base, and left is the file as it was left.
	base int64
	left os.FileInfo
}

// ErrRewrite means that a change cannot be appended, and that everything must be written again.
var ErrRewrite = errors.New("has to be written again")

// minAppended is how much may be appended to a base that is smaller, in bytes.
const minAppended = 64 << 10

// Write replaces the file as the function Write does.
func (l *Log) Write(path string, write func(io.Writer) error) error {
	*l = Log{}
	if err := Write(path, write); err != nil {
		return err
	}
	if fi, err := os.Lstat(path); err == nil { // otherwise nothing can be appended
		*l = Log{path: path, base: fi.Size(), left: fi}
	}
	return nil
}

// Append adds a change to the file. The error is ErrRewrite if the file is not as this Log left it, or if as much was
// appended as the base is large. After any error only Write goes on.
func (l *Log) Append(path string, change []byte) error {
	was := *l
	*l = Log{}
	if was.path != path || was.left.Size()-was.base+int64(len(change)) > max(was.base, minAppended) {
		return fmt.Errorf("%s %w", path, ErrRewrite)
	}
	var err error
	if was.left, err = appendTo(path, was.left, change); err != nil {
		return writeError(path, err)
	}
	*l = was
	return nil
}

// appendTo appends to a file that is as it was left, and returns how it is then.
func appendTo(path string, left os.FileInfo, change []byte) (now os.FileInfo, err error) {
	f, err := open(path, os.O_WRONLY|os.O_APPEND)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if now, err = f.Stat(); err != nil {
		return nil, err
	}
	if !os.SameFile(now, left) || now.Size() != left.Size() || !now.ModTime().Equal(left.ModTime()) {
		return nil, ErrRewrite
	}
	if _, err := f.Write(change); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	return f.Stat()
}
