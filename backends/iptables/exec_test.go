package iptables

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	hclog "github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"weir/backends"
	"weir/backends/backendtest"
)

// TestAffinityOutlivesRewrite: the list of an endpoint's clients stays when other endpoints come and go.
func TestAffinityOutlivesRewrite(t *testing.T) {
	for _, mode := range []Mode{NFT, Legacy} {
		t.Run(string(mode), func(t *testing.T) {
			b := New(testConfig(), realKernel(t, mode))
			e := service("a", backends.IPv4, backends.TCP, 1, 3)
			e.Affinity = time.Hour
			converge(t, b, desired(t, b, []*backends.Entry{e}))

			list := "/proc/thread-self/net/xt_recent/WEIR-" + hash("recent", e.Key.String(), e.Endpoints[0].Addr.String())
			if err := os.WriteFile(list, []byte("+192.0.2.1\n"), 0); errors.Is(err, os.ErrPermission) {
				t.Skipf("only root of the system can put a client on the list: %v", err)
			} else if err != nil {
				t.Fatal(err)
			}
			fewer := *e
			fewer.Endpoints = e.Endpoints[:2]
			converge(t, b, desired(t, b, []*backends.Entry{&fewer}))
			if got, err := os.ReadFile(list); err != nil || !strings.Contains(string(got), "192.0.2.1") {
				t.Errorf("the list is now %q, %v", got, err)
			}
		})
	}
}

// TestPain13_Lock holds the lock of the legacy programs for a while.
func TestPain13_Lock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	t.Setenv("XTABLES_LOCKFILE", path)
	b := New(testConfig(), realKernel(t, Legacy))
	lock, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	want := desired(t, b, driftServices())
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := b.reread(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := b.Apply(ctx, backendtest.Diff(nil, want)); r.Err == nil || len(r.Refused) > 0 {
		t.Errorf("with the lock held: %+v", r)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	converge(t, b, want)
}

// TestPain15_BothMechanisms: weir uses the mechanism that the node uses, and warns if it uses both.
func TestPain15_BothMechanisms(t *testing.T) {
	probe := func(t *testing.T, force Mode) (Mode, string) {
		var out bytes.Buffer
		k, err := Probe(t.Context(), hclog.New(&hclog.LoggerOptions{Output: &out}), both, force)
		if err != nil {
			t.Fatal(err)
		}
		return k.(*programs).mode, out.String()
	}
	rules := func(t *testing.T, mode Mode, n int) {
		restore(t, &programs{mode: mode, paths: map[string]string{program(backends.IPv4, mode, "restore"): "/usr/sbin/" + program(backends.IPv4, mode, "restore")}},
			"filter", strings.Repeat("-A INPUT -p tcp -j ACCEPT\n", n))
	}
	for _, mode := range []Mode{NFT, Legacy} {
		t.Run(string(mode), func(t *testing.T) {
			realKernel(t, NFT)
			rules(t, mode, 2)
			if got, said := probe(t, ""); got != mode || strings.Contains(said, "[WARN]") {
				t.Errorf("chose %s and said %s", got, said)
			}
			rules(t, map[Mode]Mode{NFT: Legacy, Legacy: NFT}[mode], 1)
			if got, said := probe(t, ""); got != mode || !strings.Contains(said, "both iptables-legacy and iptables-nft hold rules") {
				t.Errorf("chose %s and said %s", got, said)
			}
			if got, _ := probe(t, Legacy); got != Legacy {
				t.Errorf("was told to use legacy and chose %s", got)
			}
		})
	}
}

// TestFamilyLeftOut has a node whose ip6tables cannot do what is needed: IPv4 is programmed all the same.
func TestFamilyLeftOut(t *testing.T) {
	realKernel(t, NFT)
	dir := t.TempDir()
	for _, name := range []string{"iptables-nft-save", "iptables-nft-restore", "ip6tables-nft-save"} {
		path, err := find(name)
		if err == nil {
			err = os.Symlink(path, filepath.Join(dir, name))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "ip6tables-nft-restore"), []byte("#!/bin/sh\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	defer func(dirs []string) { searched = dirs }(searched)
	searched = []string{dir}
	var out bytes.Buffer
	k, err := Probe(t.Context(), hclog.New(&hclog.LoggerOptions{Output: &out}), both, NFT)
	if err != nil {
		t.Fatal(err)
	}
	if got := k.Features().Families; !slices.Equal(got, []backends.Family{backends.IPv4}) || !strings.Contains(out.String(), "a family is left out") {
		t.Fatalf("uses %v and says %s", got, &out)
	}
	b := New(testConfig(), k)
	converge(t, b, desired(t, b, slices.DeleteFunc(driftServices(), func(e *backends.Entry) bool { return e.Key.Family == backends.IPv6 })))
}

// TestConflicts finds a kube-proxy.
func TestConflicts(t *testing.T) {
	eachKernel(t, func(t *testing.T, k Kernel) {
		b := New(testConfig(), k)
		if found, err := b.Conflicts(t.Context()); err != nil || len(found) > 0 {
			t.Errorf("%v, %v", found, err)
		}
		restore(t, k, "nat", ":KUBE-SERVICES - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n")
		if found, err := b.Conflicts(t.Context()); err != nil || len(found) != 1 || found[0] != "KUBE-SERVICES" {
			t.Errorf("%v, %v", found, err)
		}
	})
}

// TestMissingMatch names what the node lacks.
func TestMissingMatch(t *testing.T) {
	k := realKernel(t, NFT).(*programs)
	if err := k.accepts(t.Context(), backends.IPv4, "-m nonesuch"); err == nil {
		t.Error("a match that nobody has was accepted")
	}
	if !k.features.RandomFully || !k.features.BPF {
		t.Logf("this kernel has %+v", k.features)
	}
}
