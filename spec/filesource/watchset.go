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

// notifier is the part of fsnotify.Watcher that a watchSet needs. Add succeeds for a path that is already watched, and
// watches the current directory there if it is a different one.
type notifier interface {
	Add(path string) error
	Remove(path string) error
}

// watchSet holds the watched directories by real path, with a count, because several names may need the same one. A nil
// watchSet watches nothing.
type watchSet struct {
	n   notifier // nil if the kernel refused one
	log hclog.Logger
	// oversight oversees the calls that look up a path; nil oversees none.
	oversight *oversight
	refs      map[string]int
	// early holds directories that an event announced and no pass has adopted yet. They are watched so that writes into
	// them count as changes that have not settled.
	early map[string]bool
	// limited reports whether the kernel refused a watch for lack of resources, so that changes must be polled for.
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

// release reverts one acquire.
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
	err, stuck := during(w.oversight, path, oneStep, func() error { return w.n.Add(path) })
	if stuck != nil {
		err = stuck
	}
	switch {
	case err == nil, errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ENOTDIR):
		// If a directory is gone, the watch of its parent reports it.
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
	// Remove fails for a directory that is gone, because its watch is gone too.
	_ = w.n.Remove(path)
}

// renew watches everything again. The kernel drops a watch silently when a file system is unmounted, and the limit may
// have been raised.
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

// announce watches the new directory at path and everything below it, until the next pass.
func (w *watchSet) announce(path string) {
	if w.oversight.begin(path, 0, oneStep) != nil {
		return
	}
	var found []string
	_ = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if w.oversight.end(); w.oversight.begin(p, 0, oneStep) != nil { // one step came back
			return filepath.SkipAll
		}
		if err != nil || !d.IsDir() {
			return nil
		}
		if hidden(d.Name()) {
			return filepath.SkipDir
		}
		found = append(found, p)
		return nil
	})
	w.oversight.end()
	for _, p := range found {
		if w.refs[p] == 0 {
			w.early[p] = true
			w.add(p)
		}
	}
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

// watcher is an fsnotify watcher, or nothing if the kernel has no resources for one.
type watcher struct {
	notifier
	events <-chan fsnotify.Event
	errors <-chan error
	close  func()
}

// newWatcher returns a watcher for directories. If the kernel refuses, it has no notifier, and the error is the reason.
func newWatcher() (watcher, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return watcher{close: func() {}}, err
	}
	return watcher{notifier: w, events: w.Events, errors: w.Errors, close: func() { _ = w.Close() }}, nil
}

// below reports whether path is dir or below it.
func below(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}
