package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"debug/buildinfo"
)

// tags are those of the Makefile's build.
var tags = flag.String("weir-tags", "kustomize_disable_go_plugin_support,grpcnotrace", "build tags of weir")

// here is the platform of the machine that tests.
func here(t *testing.T) platform {
	t.Helper()
	for _, p := range platforms {
		if p.arch == runtime.GOARCH {
			return p
		}
	}
	t.Fatalf("weir is not published for %s: the release cannot be tried on this machine", runtime.GOARCH)
	return platform{}
}

// made is a program, and a release of it under two versions.
type made struct {
	binary string
	first  *release
	second *release
	deb    [2]string
	image  string
}

// makeTwo builds weir once, and makes the packages and the image of it twice, as of two versions.
func makeTwo(t *testing.T) *made {
	t.Helper()
	p, tmp := here(t), t.TempDir()
	source, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	m := &made{binary: filepath.Join(tmp, "weir")}
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-tags", *tags, "-o", m.binary, "./cmd/weir")
	build.Dir, build.Env = source, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if err := withOutput(build); err != nil {
		t.Fatal(err)
	}
	texts := filepath.Join(tmp, "texts")
	if err := writeTexts(m.binary, texts); err != nil {
		t.Fatal(err)
	}
	date := time.Date(2026, 11, 30, 3, 15, 0, 0, time.UTC)
	for i, version := range []string{"v0.4.0", "v0.5.0-0.20261201000000-1a2b3c4d5e6f"} {
		r := &release{source: source, out: filepath.Join(tmp, version), version: version, commit: "1a2b3c4d5e6f", date: date}
		var sums [2]string
		for n := range sums {
			if err := os.MkdirAll(r.out, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := r.packages(p, m.binary, texts); err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				if err := r.image(p, m.binary); err != nil {
					t.Fatal(err)
				}
			}
			if err := writeSums(r.out); err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(r.path(sumsFile))
			if err != nil {
				t.Fatal(err)
			}
			sums[n] = string(text)
			if i == 1 {
				break // once is enough
			}
			if n == 0 {
				if err := os.RemoveAll(r.out); err != nil {
					t.Fatal(err)
				}
			}
		}
		if i == 0 && sums[0] != sums[1] {
			t.Errorf("made twice, it differs:\n%s", different(sums[0], sums[1]))
		}
		debs, err := filepath.Glob(r.path("*.deb"))
		if err != nil || len(debs) != 1 {
			t.Fatalf("packages: %v, %v", debs, err)
		}
		if rpms, err := filepath.Glob(r.path("*.rpm")); err != nil || len(rpms) != 1 {
			t.Fatalf("packages: %v, %v", rpms, err)
		}
		m.deb[i] = debs[0]
		if i == 0 {
			m.first, m.image = r, r.path(fmt.Sprintf("weir_%s_linux_%s.image.tar", r.number(), p))
		} else {
			m.second = r
		}
	}
	return m
}

// TestRelease makes a release, and uses it: the package in a Debian of its own, and the image with podman.
func TestRelease(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("WEIR_TEST_REQUIRE") != "" {
			t.Fatal("only root can install packages")
		}
		t.Skip("only root can install packages")
	}
	m := makeTwo(t)
	t.Run("package", m.testPackage)
	t.Run("systemd", m.testSystemd)
	t.Run("image", m.testImage)
	t.Run("bill of materials", m.testBill)
}

// testPackage installs the package in a copy of this machine's system that lasts as long as the test: an overlay over /, in
// namespaces of its own. A systemctl that only notes how it is called stands for systemd.
func (m *made) testPackage(t *testing.T) {
	dir := m.packages(t)
	quickstart, err := filepath.Abs("../examples/quickstart")
	if err != nil {
		t.Fatal(err)
	}
	// The version before this way of upgrading, unless the history is missing.
	if err := withOutput(exec.Command("../.ci/previous", filepath.Join(dir, "old"))); err != nil {
		t.Fatal(err)
	}
	runApart(t, "testdata/install", dir, quickstart)
}

// testSystemd boots systemd, which runs what the package brings, and upgrades it under traffic.
func (m *made) testSystemd(t *testing.T) { runApart(t, "testdata/boot", m.packages(t)) }

// packages returns a directory with both packages, as 1.deb and 2.deb.
func (m *made) packages(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, source := range map[string]string{"1.deb": m.deb[0], "2.deb": m.deb[1]} {
		data, err := os.ReadFile(source)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// runApart runs a script in namespaces of mounts, networks and processes of its own. What it leaves ends with it.
func runApart(t *testing.T, script string, args ...string) {
	t.Helper()
	script, err := filepath.Abs(script)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", append([]string{"--mount", "--net", "--pid", "--fork", "--kill-child", "sh", script}, args...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

// testImage runs the image with podman.
func (m *made) testImage(t *testing.T) {
	if _, err := exec.LookPath("podman"); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "podman") // a short path: podman allows 50 characters
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	conf := filepath.Join(dir, "containers.conf")
	if err := os.WriteFile(conf, []byte("[containers]\ndefault_ulimits = [\"nofile=1024:1024\",\"nproc=1024:1024\"]\n[engine]\nevents_logger = \"file\"\nlock_type = \"file\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	podman := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("podman", append([]string{"--root", dir + "/root", "--runroot", dir + "/run", "--tmpdir", dir + "/tmp", "--storage-driver", "vfs", "--runtime", "runc", "--cgroup-manager", "cgroupfs"}, args...)...)
		cmd.Env = append(os.Environ(), "CONTAINERS_CONF="+conf)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("podman %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	podman("load", "-i", m.image)
	name := m.first.imageName()
	want, err := output(".", m.binary, "version")
	if err != nil {
		t.Fatal(err)
	}
	if got := podman("run", "--rm", "--network", "none", "--read-only", name, "version"); got != want {
		t.Errorf("the image says %q; want %q", got, want)
	}
	var images []struct {
		Architecture, Os string
		Labels           map[string]string
	}
	if err := json.Unmarshal([]byte(podman("image", "inspect", name)), &images); err != nil || len(images) != 1 {
		t.Fatal(err, images)
	}
	if i := images[0]; i.Architecture != runtime.GOARCH || i.Os != "linux" || i.Labels["org.opencontainers.image.version"] != "v0.4.0" || i.Labels["org.opencontainers.image.created"] != "2026-11-30T03:15:00Z" {
		t.Errorf("the image is %+v", i)
	}
}

// testBill compares the bill of materials with what go version -m says.
func (m *made) testBill(t *testing.T) {
	if err := m.first.bom(m.binary); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(m.binary + ".cdx.json")
	if err != nil {
		t.Fatal(err)
	}
	var bill struct {
		BOMFormat, SpecVersion, SerialNumber string
		Metadata                             struct {
			Timestamp string
			Component struct{ Name string }
		}
		Components   []struct{ Type, Name, Version, Purl string }
		Dependencies []struct{ DependsOn []string }
	}
	if err := json.Unmarshal(text, &bill); err != nil {
		t.Fatal(err)
	}
	info, err := buildinfo.ReadFile(m.binary)
	if err != nil {
		t.Fatal(err)
	}
	if bill.BOMFormat != "CycloneDX" || bill.SpecVersion != "1.6" || !strings.HasPrefix(bill.SerialNumber, "urn:uuid:") || len(bill.SerialNumber) != len("urn:uuid:")+36 ||
		bill.Metadata.Component.Name != "weir" || bill.Metadata.Timestamp != "2026-11-30T03:15:00Z" {
		t.Errorf("the head is %+v", bill)
	}
	if len(bill.Components) != len(info.Deps)+1 || len(bill.Dependencies) != 1 || len(bill.Dependencies[0].DependsOn) != len(bill.Components) {
		t.Errorf("%d components for %d modules", len(bill.Components), len(info.Deps))
	}
	for _, want := range info.Deps {
		if !bytes.Contains(text, []byte(`"purl": "pkg:golang/`+want.Path+"@"+want.Version+`"`)) {
			t.Errorf("%s is missing", want.Path)
		}
	}
}
