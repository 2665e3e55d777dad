package filesource

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"weir/spec"
)

// TestPain27_WatchPatterns makes every change to a directory that editors, Git, git-sync, the kubelet and rsync make. Each
// begins with a directory "d" below a temporary one, named by an absolute path, with a.yaml and sub/b.yaml.
func TestPain27_WatchPatterns(t *testing.T) {
	tests := []struct {
		name string
		do   func(t *testing.T, d string)
		want []string // names below d, and contents
	}{
		{"write in place", func(t *testing.T, d string) { write(t, d+"/a.yaml", "2") }, []string{"a.yaml", "2", "sub/b.yaml", "1"}},
		{"atomic rename", func(t *testing.T, d string) { replace(t, d+"/a.yaml", "2") }, []string{"a.yaml", "2", "sub/b.yaml", "1"}},
		{"vim: backup, write anew, delete the backup", func(t *testing.T, d string) {
			write(t, d+"/4913", "")
			must(t, os.Remove(d+"/4913"))
			must(t, os.Rename(d+"/a.yaml", d+"/a.yaml~"))
			write(t, d+"/a.yaml", "2")
			must(t, os.Remove(d+"/a.yaml~"))
		}, []string{"a.yaml", "2", "sub/b.yaml", "1"}},
		{"emacs: lock, temporary file, rename", func(t *testing.T, d string) {
			must(t, os.Symlink("user@host.1:1", d+"/.#a.yaml"))
			write(t, d+"/#a.yaml#", "BAD")
			replace(t, d+"/a.yaml", "2")
			must(t, os.Remove(d+"/#a.yaml#"))
			must(t, os.Remove(d+"/.#a.yaml"))
		}, []string{"a.yaml", "2", "sub/b.yaml", "1"}},
		{"rsync: a hidden temporary file", func(t *testing.T, d string) {
			write(t, d+"/.a.yaml.x7", "2")
			must(t, os.Rename(d+"/.a.yaml.x7", d+"/a.yaml"))
		}, []string{"a.yaml", "2", "sub/b.yaml", "1"}},
		{"several writes", func(t *testing.T, d string) {
			f, err := os.OpenFile(d+"/a.yaml", os.O_WRONLY|os.O_TRUNC, 0)
			must(t, err)
			for range 3 {
				_, err = f.WriteString("x")
				must(t, err)
			}
			must(t, f.Close())
		}, []string{"a.yaml", "xxx", "sub/b.yaml", "1"}},
		{"a file that has another hard link", func(t *testing.T, d string) {
			must(t, os.Link(d+"/a.yaml", filepath.Dir(d)+"/hard"))
			write(t, d+"/a.yaml", "2")
		}, []string{"a.yaml", "2", "sub/b.yaml", "1"}},
		{"file created", func(t *testing.T, d string) { write(t, d+"/c.yml", "1") }, []string{"a.yaml", "1", "c.yml", "1", "sub/b.yaml", "1"}},
		{"file deleted", func(t *testing.T, d string) { must(t, os.Remove(d+"/a.yaml")) }, []string{"sub/b.yaml", "1"}},
		{"file emptied", func(t *testing.T, d string) { must(t, os.Truncate(d+"/a.yaml", 0)) }, []string{"a.yaml", "", "sub/b.yaml", "1"}},
		{"file moved", func(t *testing.T, d string) { must(t, os.Rename(d+"/a.yaml", d+"/sub/c.json")) }, []string{"sub/b.yaml", "1", "sub/c.json", "1"}},
		{"directories created", func(t *testing.T, d string) { write(t, d+"/x/y/z/c.yaml", "1") }, []string{"a.yaml", "1", "sub/b.yaml", "1", "x/y/z/c.yaml", "1"}},
		{"directory removed", func(t *testing.T, d string) { must(t, os.RemoveAll(d+"/sub")) }, []string{"a.yaml", "1"}},
		{"directory moved", func(t *testing.T, d string) { must(t, os.Rename(d+"/sub", d+"/other")) }, []string{"a.yaml", "1", "other/b.yaml", "1"}},
		{"directory moved in", func(t *testing.T, d string) {
			write(t, filepath.Dir(d)+"/out/q/c.yaml", "1")
			must(t, os.Rename(filepath.Dir(d)+"/out", d+"/in"))
		}, []string{"a.yaml", "1", "in/q/c.yaml", "1", "sub/b.yaml", "1"}},
		{"directory moved out", func(t *testing.T, d string) { must(t, os.Rename(d+"/sub", filepath.Dir(d)+"/out")) }, []string{"a.yaml", "1"}},
		{"directory replaced by a file", func(t *testing.T, d string) {
			must(t, os.RemoveAll(d+"/sub"))
			write(t, d+"/sub", "no manifest")
		}, []string{"a.yaml", "1"}},
		{"file replaced by a directory of that name", func(t *testing.T, d string) {
			must(t, os.Remove(d+"/a.yaml"))
			write(t, d+"/a.yaml/c.yaml", "1")
		}, []string{"a.yaml/c.yaml", "1", "sub/b.yaml", "1"}},
		{"whole directory replaced", func(t *testing.T, d string) {
			write(t, d+".new/n.yaml", "1")
			must(t, os.Rename(d, d+".old"))
			must(t, os.Rename(d+".new", d))
		}, []string{"n.yaml", "1"}},
		{"whole directory deleted and back", func(t *testing.T, d string) {
			must(t, os.RemoveAll(d))
			write(t, d+"/n/n.yaml", "1")
		}, []string{"n/n.yaml", "1"}},
		{"parent directory replaced", func(t *testing.T, d string) {
			p := filepath.Dir(d)
			must(t, os.Rename(p, p+".old"))
			write(t, d+"/n.yaml", "1")
		}, []string{"n.yaml", "1"}},
		{"directory replaced by a symlink", func(t *testing.T, d string) {
			write(t, d+".1/n.yaml", "1")
			must(t, os.RemoveAll(d))
			must(t, os.Symlink(filepath.Base(d)+".1", d))
		}, []string{"n.yaml", "1"}},
		{"symlink to a directory outside", func(t *testing.T, d string) {
			write(t, d+".1/n.yaml", "1")
			must(t, os.Symlink(d+".1", d+"/link"))
		}, []string{"a.yaml", "1", "link/n.yaml", "1", "sub/b.yaml", "1"}},
		{"dotfiles, .git and other names are nothing", func(t *testing.T, d string) {
			write(t, d+"/.hidden.yaml", "BAD")
			write(t, d+"/.git/x.yaml", "BAD")
			write(t, d+"/.github/x.yaml", "BAD")
			write(t, d+"/README.md", "BAD")
			write(t, d+"/a.yaml.bak", "BAD")
			must(t, os.Symlink("README.md", d+"/link.txt"))
			must(t, os.Symlink("nowhere", d+"/link.conf"))
			write(t, d+"/a.yaml", "2")
		}, []string{"a.yaml", "2", "sub/b.yaml", "1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := filepath.Join(t.TempDir(), "p", "d")
			write(t, d+"/a.yaml", "1")
			write(t, d+"/sub/b.yaml", "1")
			h := start(t, Options{Paths: []string{d}, AllowOutsideLinks: true})
			h.awaitFiles(d+"/a.yaml", "1", d+"/sub/b.yaml", "1")
			tt.do(t, d)
			for i := 0; i < len(tt.want); i += 2 {
				tt.want[i] = filepath.Join(d, tt.want[i])
			}
			h.awaitFiles(tt.want...)
			// It still watches.
			write(t, d+"/last.yaml", "1")
			h.awaitFiles(append(tt.want, d+"/last.yaml", "1")...)
			must(t, os.Remove(d+"/last.yaml"))
			h.awaitFiles(tt.want...)
		})
	}
}

func TestPain18_ConfigMapMount(t *testing.T) {
	d := t.TempDir()
	version := func(v, text string) {
		write(t, d+"/"+v+"/a.yaml", text)
		write(t, d+"/"+v+"/config.conf", "no manifest")
	}
	version("..2024_1", "1")
	must(t, os.Symlink("..2024_1", d+"/..data"))
	must(t, os.Symlink("..data/a.yaml", d+"/a.yaml"))
	must(t, os.Symlink("..data/config.conf", d+"/config.conf"))
	h := start(t, Options{Paths: []string{d}, Config: d + "/config.conf"})
	h.awaitFiles(d+"/a.yaml", "1", d+"/config.conf", "no manifest")
	for _, v := range []string{"2", "3"} {
		version("..2024_"+v, v)
		relink(t, "..2024_"+v, d+"/..data")
		must(t, os.RemoveAll(d+"/..2024_1"))
		h.awaitFiles(d+"/a.yaml", v, d+"/config.conf", "no manifest")
	}
	write(t, d+"/..2024_3/config.conf", "4")
	h.awaitFiles(d+"/a.yaml", "3", d+"/config.conf", "4")
}

func TestGitSyncLink(t *testing.T) {
	top := t.TempDir()
	git(t, top, "init", "-q", "-b", "main", "repo")
	write(t, top+"/repo/manifests/a.yaml", "1")
	git(t, top+"/repo", "add", ".")
	git(t, top+"/repo", "commit", "-qm", "one")
	sync := func() string {
		id := git(t, top+"/repo", "rev-parse", "HEAD")
		git(t, top+"/repo", "worktree", "add", "-q", "--detach", top+"/trees/"+id)
		relink(t, "trees/"+id, top+"/current")
		return id
	}
	id := sync()
	d := top + "/current/manifests"
	h := start(t, Options{Paths: []string{d}})
	h.awaitFiles(d+"/a.yaml", "1")
	if h.rev.String() != id {
		t.Errorf("revision %s, want %s", h.rev, id)
	}
	write(t, top+"/repo/manifests/a.yaml", "2")
	git(t, top+"/repo", "commit", "-qam", "two")
	old := id
	id = sync()
	h.awaitFiles(d+"/a.yaml", "2")
	must(t, os.RemoveAll(top+"/trees/"+old))
	if h.rev.String() != id {
		t.Errorf("revision %s, want %s", h.rev, id)
	}
	// A worktree of the same content is another commit.
	write(t, top+"/repo/README", "x")
	git(t, top+"/repo", "add", ".")
	git(t, top+"/repo", "commit", "-qm", "three")
	id = sync()
	h.await("the third commit", func() bool { return h.rev.String() == id })
}

func TestExplicitFile(t *testing.T) {
	d := t.TempDir()
	f := filepath.Join(d, ".services")
	write(t, f, "1")
	write(t, d+"/other.yaml", "BAD")
	h := start(t, Options{Paths: []string{f}})
	h.awaitFiles(f, "1")
	replace(t, f, "2")
	h.awaitFiles(f, "2")
	must(t, os.Remove(f))
	h.awaitErr(f, "does not exist")
	write(t, f, "3")
	h.awaitFiles(f, "3")
}

func TestPain19_LastGoodStateStands(t *testing.T) {
	d := t.TempDir()
	a := d + "/a.yaml"
	write(t, a, "1")
	h := start(t, Options{Paths: []string{d}})
	h.awaitFiles(a, "1")
	write(t, a, "BAD")
	h.awaitErr(a, "is bad")
	// What comes meanwhile is not applied by itself, but not lost either.
	write(t, d+"/b.yaml", "1")
	h.await("the next revision", func() bool { return h.count == 3 })
	if h.err == nil {
		t.Fatal("half a revision was accepted")
	}
	write(t, a, "2")
	h.awaitFiles(a, "2", d+"/b.yaml", "1")
	// A fault that goes as it came is news too.
	write(t, a, "BAD")
	h.awaitErr("is bad")
	write(t, a, "2")
	h.awaitFiles(a, "2", d+"/b.yaml", "1")
}

func TestFaults(t *testing.T) {
	tests := []struct {
		name        string
		break_, fix func(t *testing.T, d string)
		words       []string
	}{
		{"fifo", func(t *testing.T, d string) { must(t, syscall.Mkfifo(d+"/x.yaml", 0o600)) },
			func(t *testing.T, d string) { must(t, os.Remove(d+"/x.yaml")) }, []string{"x.yaml", "not a regular file"}},
		{"1 GB file", func(t *testing.T, d string) { write(t, d+"/x.yaml", ""); must(t, os.Truncate(d+"/x.yaml", 1<<30)) },
			func(t *testing.T, d string) { must(t, os.Remove(d+"/x.yaml")) }, []string{"x.yaml", "larger than"}},
		{"symlink to itself", func(t *testing.T, d string) { must(t, os.Symlink("x.yaml", d+"/x.yaml")) },
			func(t *testing.T, d string) { must(t, os.Remove(d+"/x.yaml")) }, []string{"x.yaml", "leads to itself"}},
		{"symlink to a directory above", func(t *testing.T, d string) { must(t, os.Symlink("..", d+"/sub/up")) },
			func(t *testing.T, d string) { must(t, os.Remove(d+"/sub/up")) }, []string{"sub/up", "above it"}},
		{"symlink to nothing", func(t *testing.T, d string) { must(t, os.Symlink("../n.yaml", d+"/x.yaml")) },
			func(t *testing.T, d string) { must(t, os.Remove(d+"/x.yaml")) }, []string{"x.yaml", "leads to nothing"}},
		{"symlink to a file outside", func(t *testing.T, d string) {
			write(t, d+"-secret/n.yaml", "1") // its name begins as the root's does
			must(t, os.Symlink(d+"-secret/n.yaml", d+"/x.yaml"))
		}, func(t *testing.T, d string) { must(t, os.Remove(d+"/x.yaml")) }, []string{"x.yaml", "out of the directory"}},
		{"symlink to a directory outside", func(t *testing.T, d string) {
			write(t, d+"-secret/n.yaml", "1")
			must(t, os.Symlink("../../"+filepath.Base(d)+"-secret", d+"/sub/link"))
		}, func(t *testing.T, d string) { must(t, os.Remove(d+"/sub/link")) }, []string{"sub/link", "out of the directory"}},
		{"symlink that leads outside by another one", func(t *testing.T, d string) {
			write(t, d+"-secret/n.yaml", "1")
			must(t, os.Symlink("../"+filepath.Base(d)+"-secret", d+"/.hop"))
			must(t, os.Symlink(".hop/n.yaml", d+"/x.yaml"))
		}, func(t *testing.T, d string) { must(t, os.Remove(d+"/x.yaml")) }, []string{"x.yaml", "out of the directory"}},
		{"symlink outside that led inside before", func(t *testing.T, d string) {
			write(t, d+"-secret/n.yaml", "1")
			must(t, os.Remove(d+"/a.yaml"))
			must(t, os.Symlink(d+"-secret/n.yaml", d+"/a.yaml"))
		}, func(t *testing.T, d string) { must(t, os.Remove(d+"/a.yaml")); write(t, d+"/a.yaml", "1") }, []string{"a.yaml", "out of the directory"}},
		{"symlinked directory that vanishes", func(t *testing.T, d string) { must(t, os.Symlink("../gone", d+"/vol")) },
			func(t *testing.T, d string) { must(t, os.Remove(d+"/vol")) }, []string{"vol", "leads to nothing"}},
		{"directory that vanishes", func(t *testing.T, d string) { must(t, os.Rename(d, d+".away")) },
			func(t *testing.T, d string) { must(t, os.Rename(d+".away", d)) }, []string{"does not exist"}},
		{"directory that becomes a FIFO", func(t *testing.T, d string) {
			must(t, os.Rename(d, d+".away"))
			must(t, syscall.Mkfifo(d, 0o600))
		}, func(t *testing.T, d string) {
			must(t, os.Remove(d))
			must(t, os.Rename(d+".away", d))
		}, []string{"not a regular file"}},
		{"empty directory", func(t *testing.T, d string) {
			must(t, os.Rename(d+"/a.yaml", d+"/.a"))
			must(t, os.Rename(d+"/sub", d+"/.sub"))
		}, func(t *testing.T, d string) {
			must(t, os.Rename(d+"/.a", d+"/a.yaml"))
			must(t, os.Rename(d+"/.sub", d+"/sub"))
		}, []string{"no Service"}},
		{"too many files", func(t *testing.T, d string) {
			for _, n := range []string{"1", "2", "3", "4"} {
				write(t, d+"/many/"+n+".yaml", "1")
			}
		}, func(t *testing.T, d string) { must(t, os.RemoveAll(d+"/many")) }, []string{"more than 5 files"}},
		{"too much in all", func(t *testing.T, d string) {
			write(t, d+"/big1.yaml", string(make([]byte, 900)))
			write(t, d+"/big2.yaml", string(make([]byte, 900)))
		}, func(t *testing.T, d string) {
			must(t, os.Remove(d+"/big1.yaml"))
			must(t, os.Remove(d+"/big2.yaml"))
		}, []string{"all files together"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := filepath.Join(t.TempDir(), "d")
			write(t, d+"/a.yaml", "1")
			write(t, d+"/sub/b.yaml", "1")
			h := start(t, Options{Paths: []string{d}, MaxFiles: 5, MaxTotalSize: 1500, MaxFileSize: 1000, RescanInterval: 100 * time.Millisecond,
				StrictTree: true}) // without it, a symlink that leads nowhere is skipped: testdata/repositories
			h.awaitFiles(d+"/a.yaml", "1", d+"/sub/b.yaml", "1")
			tt.break_(t, d)
			h.awaitErr(append(tt.words, d)[:len(tt.words)]...)
			// The same fault is not repeated, however often it is looked at.
			h.quiet(func() { <-h.calls; <-h.calls; <-h.calls })
			tt.fix(t, d)
			h.awaitFiles(d+"/a.yaml", "1", d+"/sub/b.yaml", "1")
		})
	}
}

func TestEmptyRootAmongOthers(t *testing.T) {
	top := t.TempDir()
	write(t, top+"/one/a.yaml", "1")
	write(t, top+"/two/b.yaml", "1")
	h := start(t, Options{Paths: []string{top + "/one", top + "/two"}})
	h.awaitFiles(top+"/one/a.yaml", "1", top+"/two/b.yaml", "1")
	must(t, os.Rename(top+"/two/b.yaml", top+"/b"))
	h.awaitErr(top+"/two", "--allow-empty")
	must(t, os.Rename(top+"/b", top+"/two/b.yaml"))
	h.awaitFiles(top+"/one/a.yaml", "1", top+"/two/b.yaml", "1")
}

func TestTouchSendsNothing(t *testing.T) {
	d := t.TempDir()
	write(t, d+"/a.yaml", "1")
	h := start(t, Options{Paths: []string{d}})
	h.awaitFiles(d+"/a.yaml", "1")
	h.quiet(func() { must(t, os.Chtimes(d+"/a.yaml", time.Now(), time.Now())) })
	h.quiet(func() { replace(t, d+"/a.yaml", "1") })
	h.quiet(func() { write(t, d+"/notes.txt", "x") })
}

// TestReread makes a pass when it is asked to, though no event reports anything.
func TestReread(t *testing.T) {
	d, reread := t.TempDir(), make(chan os.Signal, 1)
	if err := os.WriteFile(filepath.Join(d, "a.yaml"), []byte("a"), 0o600); err != nil {
		t.Fatal(err)
	}
	h := start(t, Options{Paths: []string{d}, Reread: reread})
	for _, pass := range []string{"the first", "the one asked for"} {
		select {
		case <-h.calls:
		case <-time.After(deadline):
			t.Fatalf("no pass: %s", pass)
		}
		reread <- os.Interrupt
	}
}

// TestLockComesAndGoes watches a file given as Lock, which need not exist, nor its directory.
func TestLockComesAndGoes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir+"/d/a.yaml", "1")
	lock := dir + "/locks/edge.lock.yaml"
	h := start(t, Options{Paths: []string{dir + "/d"}, Lock: lock})
	h.awaitFiles(dir+"/d/a.yaml", "1")
	write(t, lock, "2")
	h.awaitFiles(dir+"/d/a.yaml", "1", lock, "2")
	replace(t, lock, "3")
	h.awaitFiles(dir+"/d/a.yaml", "1", lock, "3")
	must(t, os.RemoveAll(dir+"/locks"))
	h.awaitFiles(dir+"/d/a.yaml", "1")
}

// TestPipe gives pipes with -f, as a shell makes them: the message says what to do instead.
func TestPipe(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	defer w.Close()
	for _, dir := range []string{"/dev/fd", "/proc/self/fd"} {
		_, err := New(Options{Paths: []string{fmt.Sprintf("%s/%d", dir, r.Fd())}}).Load(t.Context())
		if err == nil || !strings.Contains(err.Error(), "a pipe, as <(command) makes one") || !strings.Contains(err.Error(), "-f -") {
			t.Errorf("%s: %v", dir, err)
		}
	}
}

// TestDoubleStar has ** in a glob after -f, in patterns of --include and --exclude, and in an ignore file.
func TestDoubleStar(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		glob             string
		include, exclude []string
		ignore           string
		want             string
	}{
		"a file at any depth":       {glob: "**/x.yaml", want: "a/b/x.yaml a/x.yaml x.yaml"},
		"below a directory":         {glob: "a/**/x.yaml", want: "a/b/x.yaml a/x.yaml"},
		"all below":                 {glob: "a/**", want: "a/b/x.yaml a/x.yaml a/y.yaml"},
		"included":                  {include: []string{"**/b/*.yaml"}, want: "a/b/x.yaml"},
		"included between":          {include: []string{"a/**/x.yaml"}, want: "a/b/x.yaml a/x.yaml"},
		"excluded":                  {exclude: []string{"**/x.yaml"}, want: "a/y.yaml"},
		"excluded below":            {exclude: []string{"a/**"}, want: "x.yaml"},
		"ignored":                   {ignore: "a/**/x.yaml\n", want: "a/y.yaml x.yaml"},
		"ignored, and taken back":   {ignore: "**/x.yaml\n!a/b/x.yaml\n", want: "a/b/x.yaml a/y.yaml"},
		"a glob and a pattern":      {glob: "a/**/*.yaml", exclude: []string{"y.yaml"}, want: "a/b/x.yaml a/x.yaml"},
		"one star is one directory": {glob: "a/*/x.yaml", want: "a/b/x.yaml"},
	} {
		t.Run(name, func(t *testing.T) {
			d := t.TempDir()
			for _, f := range []string{"x.yaml", "a/x.yaml", "a/y.yaml", "a/b/x.yaml"} {
				write(t, filepath.Join(d, f), "1")
			}
			if c.ignore != "" {
				write(t, d+"/.weirignore", c.ignore)
			}
			o := Options{Paths: []string{filepath.Join(d, c.glob)}, Overrides: spec.Overrides{Choice: spec.Choice{Include: c.include, Exclude: c.exclude}}}
			src, rec := newSource(o)
			snap, err := src.Load(t.Context())
			must(t, err)
			var got []string
			for f := range rec.state(snap) {
				got = append(got, strings.TrimPrefix(f, d+"/"))
			}
			slices.Sort(got)
			if text := strings.Join(got, " "); text != c.want {
				t.Errorf("%s, want %s", text, c.want)
			}
		})
	}
}
