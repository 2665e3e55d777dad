// Command release makes what is published of a commit of weir: static programs, packages for Debian and for distributions with
// RPM, container images, lists of what is in them, and checksums. The same commit and the same Go make the same bytes.
package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// sumsFile has the checksums of all other files, for sha256sum -c.
const sumsFile = "SHA256SUMS"

// release is what is published of one commit.
type release struct {
	source  string // a checkout of the commit
	out     string
	tags    string // of the build
	version string // as the program tells it: "v0.4.0"
	commit  string
	date    time.Time
}

// platform is one that weir is published for.
type platform struct {
	arch string // GOARCH
	arm  string // GOARM
	nfpm string // the name of the packager
}

// platforms are all of them.
var platforms = []platform{{arch: "amd64", nfpm: "amd64"}, {arch: "arm64", nfpm: "arm64"}, {arch: "arm", arm: "7", nfpm: "arm7"}, {arch: "riscv64", nfpm: "riscv64"}}

func (p platform) String() string {
	if p.arm != "" {
		return p.arch + "v" + p.arm
	}
	return p.arch
}

func main() {
	repository := flag.String("repository", "..", "repository of weir")
	revision := flag.String("revision", "HEAD", "commit or tag to release")
	out := flag.String("out", "../bin/release", "directory to write to; what is in it goes")
	tags := flag.String("tags", "", "build tags")
	only := flag.String("arch", "", "architectures, such as amd64,armv7 (default: all)")
	check := flag.Bool("check", false, "build again, with an empty build cache, and compare with the checksums in the directory")
	flag.Parse()
	if err := run(*repository, *revision, *out, *tags, *only, *check); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

func run(repository, revision, out, tags, only string, check bool) error {
	var chosen []platform
	for _, p := range platforms {
		if only == "" || strings.Contains(","+only+",", ","+p.String()+",") {
			chosen = append(chosen, p)
		}
	}
	if len(chosen) == 0 {
		return fmt.Errorf("-arch %s names none of %v", only, platforms)
	}
	dir, err := os.MkdirTemp("", "weir-release-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	// A clone has the commit, and nothing that was not committed.
	source := filepath.Join(dir, "source")
	if err := command(".", "git", "clone", "--quiet", "--shared", "--no-checkout", repository, source); err != nil {
		return err
	}
	if text, err := output(repository, "git", "rev-parse", "--verify", revision+"^{commit}"); err != nil {
		return err
	} else if err := command(source, "git", "checkout", "--quiet", "--detach", strings.TrimSpace(text)); err != nil {
		return err
	}
	if check {
		published := filepath.Join(out, sumsFile)
		want, err := os.ReadFile(published)
		if err != nil {
			return fmt.Errorf("nothing to compare with: %w", err)
		}
		out = filepath.Join(dir, "again")
		os.Setenv("GOCACHE", filepath.Join(dir, "cache"))
		defer func() { _ = command(".", "go", "clean", "-cache") }()
		if err := makeAll(source, out, tags, dir, chosen); err != nil {
			return err
		}
		got, err := os.ReadFile(filepath.Join(out, sumsFile))
		if err != nil {
			return err
		}
		if string(got) != string(want) {
			return fmt.Errorf("this build differs from %s:\n%s", published, different(string(want), string(got)))
		}
		fmt.Printf("a second build, in another directory and from an empty cache, gives the same %d files\n", strings.Count(string(got), "\n"))
		return nil
	}
	return makeAll(source, out, tags, dir, chosen)
}

// different returns the lines that are in one text only.
func different(before, after string) string {
	var lines []string
	for line := range strings.Lines(before) {
		if !strings.Contains(after, line) {
			lines = append(lines, "-"+line)
		}
	}
	for line := range strings.Lines(after) {
		if !strings.Contains(before, line) {
			lines = append(lines, "+"+line)
		}
	}
	return strings.Join(lines, "")
}

// makeAll makes everything from a checkout.
func makeAll(source, out, tags, tmp string, chosen []platform) error {
	if err := os.RemoveAll(out); err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	r := &release{source: source, out: out, tags: tags}
	// The program of this machine writes completions and man pages.
	here := filepath.Join(tmp, "weir")
	if err := r.build(here, platform{arch: runtime.GOARCH, arm: os.Getenv("GOARM")}); err != nil {
		return err
	}
	if err := r.identify(here); err != nil {
		return err
	}
	texts := filepath.Join(tmp, "texts")
	if err := writeTexts(here, texts); err != nil {
		return err
	}
	for _, p := range chosen {
		binary := r.path(fmt.Sprintf("weir_%s_linux_%s", r.number(), p))
		fmt.Println("linux/" + p.String())
		if err := r.build(binary, p); err != nil {
			return err
		}
		if err := r.packages(p, binary, texts); err != nil {
			return err
		}
		if err := r.image(p, binary); err != nil {
			return err
		}
		if err := r.bom(binary); err != nil {
			return err
		}
	}
	return writeSums(out)
}

// build builds a static program.
func (r *release) build(to string, p platform) error {
	to, err := filepath.Abs(to)
	if err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=true", "-tags", r.tags, "-ldflags", "-s -w", "-o", to, "./cmd/weir")
	cmd.Dir = r.source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOOS=linux", "GOARCH="+p.arch, "GOARM="+p.arm)
	return withOutput(cmd)
}

// identify takes version, commit and date from a program, so that everything tells the same.
func (r *release) identify(binary string) error {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return err
	}
	r.version = info.Main.Version
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			r.commit = s.Value
		case "vcs.time":
			if r.date, err = time.Parse(time.RFC3339, s.Value); err != nil {
				return err
			}
		}
	}
	if r.commit == "" || !strings.HasPrefix(r.version, "v") {
		return fmt.Errorf("%s does not know its version: %q, commit %q", binary, r.version, r.commit)
	}
	return nil
}

// number returns the version without its v.
func (r *release) number() string { return strings.TrimPrefix(r.version, "v") }

func (r *release) path(name string) string { return filepath.Join(r.out, name) }

// writeSums writes the checksums of all files of a directory.
func writeSums(dir string) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var text strings.Builder
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			return err
		}
		fmt.Fprintf(&text, "%x  %s\n", sha256.Sum256(data), f.Name())
	}
	return os.WriteFile(filepath.Join(dir, sumsFile), []byte(text.String()), 0o644)
}

func command(dir, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	return withOutput(cmd)
}

func output(dir, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: %w", strings.Join(cmd.Args, " "), err)
	}
	return string(out), err
}

func withOutput(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return nil
}
