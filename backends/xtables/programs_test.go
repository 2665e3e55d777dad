package xtables

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	hclog "github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"weir/backends/backendtest"
	"weir/backends/dataplane"
)

// TestPain13_Lock holds the lock of the legacy programs for a while.
func TestPain13_Lock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	t.Setenv("XTABLES_LOCKFILE", path)
	b := testTables(realKernel(t, Legacy))
	lock, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	want := testItems()
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

// TestPain15_BothMechanisms expects weir to use the mechanism that the node uses, and to warn if the node uses both.
func TestPain15_BothMechanisms(t *testing.T) {
	probe := func(t *testing.T, force Mode) (Mode, string) {
		var out bytes.Buffer
		k, err := Probe(t.Context(), hclog.New(&hclog.LoggerOptions{Output: &out}), both, force, testNeeds)
		if err != nil {
			t.Fatal(err)
		}
		return k.(*programs).mode, out.String()
	}
	rules := func(t *testing.T, mode Mode, n int) {
		restore(t, &programs{mode: mode, paths: map[string]string{program(dataplane.IPv4, mode, "restore"): "/usr/sbin/" + program(dataplane.IPv4, mode, "restore")}},
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

// TestFamilyLeftOut has a node whose ip6tables lacks a feature, and expects IPv4 to be programmed even so.
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
	k, err := Probe(t.Context(), hclog.New(&hclog.LoggerOptions{Output: &out}), both, NFT, testNeeds)
	if err != nil {
		t.Fatal(err)
	}
	if got := k.Features().Families; !slices.Equal(got, []dataplane.Family{dataplane.IPv4}) || !strings.Contains(out.String(), "the family is left out") {
		t.Fatalf("uses %v and says %s", got, &out)
	}
	if got := Families(k, both); !slices.Equal(got, []dataplane.Family{dataplane.IPv4}) {
		t.Errorf("%v can be programmed", got)
	}
	converge(t, NewTables(k, Families(k, both), testLayout), testItems())
}

// TestMissingMatch expects the error to name what the node lacks.
func TestMissingMatch(t *testing.T) {
	k := realKernel(t, NFT).(*programs)
	if err := k.accepts(t.Context(), dataplane.IPv4, "-m nonesuch"); err == nil {
		t.Error("an unknown match was accepted")
	}
	if !k.features.RandomFully || !k.features.BPF {
		t.Logf("this kernel has %+v", k.features)
	}
}
