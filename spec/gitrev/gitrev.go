// Package gitrev tells which Git commit a directory is checked out at, and what that commit holds, by reading the files
// that Git keeps. It runs no program and writes nothing.
//
// It reads the object store itself, because the question is small (the blob IDs of a few paths) and asked again for each
// change: a status of the whole work tree would cost what the repository is large, and a general Git library holds the
// pack indexes of a large repository in memory. Not supported are SHA-256 repositories and the reftable format: there the
// commit or its content is an error.
package gitrev

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// ID is the name of a Git object.
type ID [sha1.Size]byte

// String returns the ID in hexadecimal.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// BlobID returns the ID that Git gives to a file of that content.
func BlobID(data []byte) ID {
	h := sha1.New()
	fmt.Fprintf(h, "blob %d\x00", len(data))
	h.Write(data)
	return ID(h.Sum(nil))
}

// parseID reads an ID in hexadecimal.
func parseID(s string) (ID, bool) {
	var id ID
	if len(s) != 2*len(id) {
		return id, false
	}
	_, err := hex.Decode(id[:], []byte(s))
	return id, err == nil
}

// Repo is a Git work tree and where its repository is. It holds no open file.
type Repo struct {
	// WorkTree is the directory that holds .git.
	WorkTree string
	gitDir   string // of this work tree: HEAD, index
	common   string // of all work trees: refs, objects; equal to gitDir in the main one
}

// Find returns the work tree that dir is in, or nil if it is in none. dir is absolute and without symlinks.
func Find(dir string) *Repo {
	for {
		if r := open(dir); r != nil {
			return r
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return nil
		}
		dir = parent
	}
}

// open returns the work tree whose top is dir, or nil.
func open(dir string) *Repo {
	r := &Repo{WorkTree: dir, gitDir: filepath.Join(dir, ".git")}
	fi, err := os.Stat(r.gitDir)
	if err != nil {
		return nil
	}
	if !fi.IsDir() {
		// A linked work tree has a file there that says where its part of the repository is.
		text, err := readSmall(r.gitDir)
		path, ok := strings.CutPrefix(text, "gitdir:")
		if err != nil || !ok {
			return nil
		}
		r.gitDir = join(dir, path)
	}
	r.common = r.gitDir
	if text, err := readSmall(filepath.Join(r.gitDir, "commondir")); err == nil {
		r.common = join(r.gitDir, text)
	}
	if _, err := os.Lstat(filepath.Join(r.gitDir, "HEAD")); err != nil {
		return nil
	}
	return r
}

// join returns path, which is relative to dir unless it is absolute.
func join(dir, path string) string {
	path = strings.TrimSpace(path)
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(dir, path)
}

// maxSmall bounds the files that hold one name or ID.
const maxSmall = 4096

// readSmall returns the content of a small regular file, without the space around it.
func readSmall(path string) (string, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if !fi.Mode().IsRegular() || fi.Size() > maxSmall {
		return "", fmt.Errorf("%s: not a small file", path)
	}
	data, err := os.ReadFile(path)
	return strings.TrimSpace(string(bytes.TrimRight(data, "\x00"))), err
}

// IndexLock returns the path of the file that exists while Git changes the work tree.
func (r *Repo) IndexLock() string { return filepath.Join(r.gitDir, "index.lock") }

// maxRefs is how many symbolic refs may lead to each other.
const maxRefs = 5

// Head returns the ID of the commit that is checked out, and the directories whose change may change it.
func (r *Repo) Head() (commit string, dirs []string, err error) {
	dirs = []string{r.gitDir}
	if r.common != r.gitDir {
		dirs = append(dirs, r.common)
	}
	text, err := readSmall(filepath.Join(r.gitDir, "HEAD"))
	for range maxRefs {
		if err != nil {
			return "", dirs, fmt.Errorf("read the checked out commit: %w", err)
		}
		ref, symbolic := strings.CutPrefix(text, "ref:")
		if !symbolic {
			if _, ok := parseID(text); !ok && len(text) != 64 {
				return "", dirs, fmt.Errorf("read the checked out commit: %q is no commit", text)
			}
			return text, dirs, nil
		}
		ref = strings.TrimSpace(ref)
		if !strings.HasPrefix(ref, "refs/") || strings.Contains(ref, "..") {
			return "", dirs, fmt.Errorf("read the checked out commit: %q is no ref", ref)
		}
		dirs = append(dirs, filepath.Join(r.common, filepath.Dir(ref)))
		text, err = r.ref(ref)
	}
	return "", dirs, errors.New("read the checked out commit: too many symbolic refs")
}

// ref returns what a ref holds.
func (r *Repo) ref(name string) (string, error) {
	for _, dir := range []string{r.gitDir, r.common} {
		if text, err := readSmall(filepath.Join(dir, name)); err == nil {
			return text, nil
		}
	}
	return packedRef(filepath.Join(r.common, "packed-refs"), name)
}

// packedRef looks a ref up in the file that holds many.
func packedRef(path, name string) (string, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("%s does not exist: nothing is committed yet", name)
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	lines := bufio.NewScanner(io.LimitReader(f, maxObject))
	for lines.Scan() {
		if id, ref, ok := strings.Cut(lines.Text(), " "); ok && ref == name {
			return id, nil
		}
	}
	if err := lines.Err(); err != nil {
		return "", err
	}
	return "", fmt.Errorf("%s does not exist: nothing is committed yet", name)
}
