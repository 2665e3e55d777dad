package filesource

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/fsnotify/fsnotify"
	"github.com/hashicorp/go-hclog"
)

// notifier is the part of fsnotify.Watcher that a watchSet needs. Add of what is watched already succeeds, and watches
// what is now there if that is something else.
type notifier interface {
	Add(path string) error
	Remove(path string) error
}

// watchSet holds the watched directories, by real path and counted, since several names may need the same one. A nil
// watchSet watches nothing.
type watchSet struct {
	n    notifier // nil if the kernel gave none
	log  hclog.Logger
	refs map[string]int
	// early are directories that an event announced and no pass has adopted yet: they are watched so that what is
	// written into them counts as a change that has not settled.
	early map[string]bool
	// limited says that the kernel refused a watch for want of room, so that changes have to be looked for.
	limited bool
}

func newWatchSet(n notifier, log hclog.Logger) *watchSet {
	return &watchSet{n: n, log: log, refs: map[string]int{}, early: map[string]bool{}, limited: n == nil}
}

// acquire watches a directory, and returns whether it was not watched before.
func (w *watchSet) acquire(path string) bool {
	if w == nil {
		return false
	}
	w.refs[path]++
	w.add(path)
	return w.refs[path] == 1
}

// release undoes one acquire.
func (w *watchSet) release(path string) {
	if w == nil {
		return
	}
	if w.refs[path]--; w.refs[path] > 0 {
		return
	}
	delete(w.refs, path)
	w.remove(path)
}

func (w *watchSet) add(path string) {
	if w.n == nil {
		return
	}
	err := w.n.Add(path)
	switch {
	case err == nil, errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ENOTDIR):
		// A directory that is gone is noticed by what watches its parent.
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENOMEM):
		if !w.limited {
			w.log.Warn("the kernel's limit of file watches is reached; polling instead",
				"path", path, "error", err, "remedy", "raise the sysctl fs.inotify.max_user_watches")
		}
		w.limited = true
	default:
		w.log.Debug("cannot watch; relying on rescans", "path", path, "error", err)
	}
}

func (w *watchSet) remove(path string) {
	if w.n == nil {
		return
	}
	// It fails for a directory that is gone, whose watch went with it.
	_ = w.n.Remove(path)
}

// renew watches everything again: a watch is lost without notice when a file system is unmounted, and the limit may have
// been raised.
func (w *watchSet) renew() {
	was := w.limited
	w.limited = w.n == nil
	for path := range w.refs {
		if w.add(path); w.limited {
			return
		}
	}
	if was && !w.limited {
		w.log.Info("all directories are watched again")
	}
}

// announce watches the new directory at path and all below it, until the next pass.
func (w *watchSet) announce(path string) {
	_ = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		if hidden(d.Name()) {
			return filepath.SkipDir
		}
		if w.refs[p] == 0 {
			w.early[p] = true
			w.add(p)
		}
		return nil
	})
}

// settled drops the announced directories that no pass has adopted.
func (w *watchSet) settled() {
	for path := range w.early {
		if w.refs[path] == 0 {
			w.remove(path)
		}
	}
	clear(w.early)
}

// watcher is fsnotify, or nothing where the kernel has no room for it.
type watcher struct {
	notifier
	events <-chan fsnotify.Event
	errors <-chan error
	close  func()
}

// newWatcher returns a watcher for directories; one without a notifier if the kernel refuses, with the reason.
func newWatcher() (watcher, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return watcher{close: func() {}}, err
	}
	return watcher{notifier: w, events: w.Events, errors: w.Errors, close: func() { _ = w.Close() }}, nil
}

// below says that path is dir or below it.
func below(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}
