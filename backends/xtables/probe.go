package xtables

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	coreiptables "github.com/coreos/go-iptables/iptables"
	hclog "github.com/hashicorp/go-hclog"

	"weir/backends/dataplane"
)

// Needs are the rules that a user of the Kernel requires.
type Needs struct {
	// Rules hold one rule for each need, by its name: "the mark match".
	Rules map[string]string
	// Modules are the kernel modules that implement them.
	Modules []string
}

// Probe finds the iptables of this node. force chooses the mechanism. With force "", Probe chooses the mechanism that
// the node uses: the one that holds rules of other programs, else the one of the iptables command. Probe leaves out a
// family for which iptables cannot be used, unless it is the only one. The error says what is missing.
func Probe(ctx context.Context, log hclog.Logger, families []dataplane.Family, force Mode, needs Needs) (Kernel, error) {
	k, err := probe(ctx, log, families, force, needs)
	if err == nil {
		err = ctx.Err() // an answer that was cut off says nothing about iptables
	}
	if err != nil {
		return nil, err
	}
	var unusable []error
	for _, f := range families {
		if err := k.unusable[f]; err != nil {
			unusable = append(unusable, err)
		}
	}
	if len(k.features.Families) == 0 {
		return nil, errors.Join(unusable...)
	}
	for _, err := range unusable {
		log.Warn("iptables cannot be used for a family: the family is left out", "error", err)
	}
	log.Info("found iptables", "mechanism", string(k.mode), "random-fully", k.features.RandomFully, "bpf", k.features.BPF, "labels", k.features.Labels)
	return k, nil
}

// Open returns the programs of a mechanism without trying which rules they accept.
func Open(mode Mode, families ...dataplane.Family) (Kernel, error) { return open(mode, families...) }

func open(mode Mode, families ...dataplane.Family) (*programs, error) {
	k := &programs{mode: mode, paths: map[string]string{}}
	for _, f := range families {
		if err := k.findPrograms(f); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// searched are the directories that find searches before PATH.
var searched = []string{"/usr/sbin", "/sbin", "/usr/local/sbin"}

// find returns the absolute path of a program. It also searches directories that a user's PATH lacks.
func find(name string) (string, error) {
	for _, dir := range searched {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", err
	}
	return filepath.Abs(path)
}

// detect determines which mechanism the node uses.
func detect(ctx context.Context, log hclog.Logger) (Mode, error) {
	legacy := holdsRules(ctx, Legacy)
	nft := holdsRules(ctx, NFT)
	if legacy > 0 && nft > 0 {
		log.Warn("both iptables-legacy and iptables-nft hold rules: a packet meets all of them, and a verdict of either counts",
			"legacy", legacy, "nft", nft)
	}
	switch {
	case legacy > nft:
		return Legacy, nil
	case nft > 0:
		return NFT, nil
	}
	path, err := find("iptables")
	if err != nil {
		return "", fmt.Errorf("iptables was not found: install the iptables package: %w", err)
	}
	ipt, err := coreiptables.New(coreiptables.Path(path))
	if err != nil {
		return "", fmt.Errorf("cannot run %s: %w", path, err)
	}
	if major, minor, _ := ipt.GetIptablesVersion(); major != 1 || minor < 8 {
		return "", fmt.Errorf("%s is version %d.%d: 1.8 or later is needed", path, major, minor)
	}
	// All commands of one mechanism are links to one program.
	if legacy, err := find(program(dataplane.IPv4, Legacy, "save")); err == nil && sameFile(path, legacy) {
		return Legacy, nil
	}
	return NFT, nil
}

func sameFile(a, b string) bool {
	infoA, errA := os.Stat(a)
	infoB, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(infoA, infoB)
}

// holdsRules counts the rules that a mechanism holds for IPv4. A table that cannot be read counts as empty.
func holdsRules(ctx context.Context, mode Mode) int {
	k, err := open(mode, dataplane.IPv4)
	if err != nil {
		return 0
	}
	rules := 0
	for _, table := range []string{"mangle", "nat", "filter"} {
		saved, err := k.Save(ctx, dataplane.IPv4, table)
		if err != nil {
			continue
		}
		rules += countRules(saved)
		_ = saved.Close()
	}
	return rules
}

// countRules counts the rules and the chains that a program made in the output of iptables-save. The kubelet's chain
// without rules counts, because it is a hint of the mechanism that the kubelet uses.
func countRules(r io.Reader) (n int) {
	for lines := NewScanner(r); lines.Scan(); {
		line := lines.Text()
		if strings.HasPrefix(line, "-A ") || strings.HasPrefix(line, ":") && strings.Contains(line, " - [") {
			n++
		}
	}
	return n
}

// The rules that are tried for Features.
const (
	tryRandomFully = "-j MASQUERADE --random-fully"
	tryBPF         = `-m bpf --bytecode "1,6 0 0 0"`
	tryUntracked   = "-j CT --notrack"
)

// probe opens the programs of a mechanism, and determines which rules they accept for each family.
func probe(ctx context.Context, log hclog.Logger, families []dataplane.Family, mode Mode, needs Needs) (*programs, error) {
	if mode == "" {
		var err error
		if mode, err = detect(ctx, log); err != nil {
			return nil, err
		}
	}
	k := &programs{mode: mode, paths: make(map[string]string), unusable: make(map[dataplane.Family]error)}
	for _, f := range families {
		if err := k.probe(ctx, f, needs.Rules); err != nil {
			k.unusable[f] = err
		}
	}
	return k, nil
}

// probe determines which rules the kernel and the programs accept for a family.
func (k *programs) probe(ctx context.Context, f dataplane.Family, needs map[string]string) error {
	if err := k.findPrograms(f); err != nil {
		return err
	}
	all := append(slices.Collect(maps.Values(needs)), tryBPF, tryRandomFully, SetLabel())
	raw := trial{"raw", []string{tryUntracked}}
	bpf, randomFully, labels, untracked := true, true, true, true
	if k.acceptsAll(ctx, f, trial{"nat", all}, raw) != nil {
		var missing []error
		for _, what := range slices.Sorted(maps.Keys(needs)) {
			if err := k.accepts(ctx, f, needs[what]); err != nil {
				missing = append(missing, fmt.Errorf("%s: %w", what, err))
			}
		}
		if len(missing) > 0 {
			return fmt.Errorf("iptables (%s) of this node cannot do what is needed for %s: %w", k.mode, f, errors.Join(missing...))
		}
		bpf = k.accepts(ctx, f, tryBPF) == nil
		randomFully = k.accepts(ctx, f, tryRandomFully) == nil
		labels = k.accepts(ctx, f, SetLabel()) == nil
		untracked = k.acceptsAll(ctx, f, raw) == nil
	}
	first := len(k.features.Families) == 0
	k.features.Families = append(k.features.Families, f)
	k.features.BPF = bpf && (first || k.features.BPF)
	k.features.RandomFully = randomFully && (first || k.features.RandomFully)
	k.features.Labels = labels && (first || k.features.Labels)
	k.features.Untracked = untracked && (first || k.features.Untracked)
	return nil
}

// findPrograms finds the programs for a family.
func (k *programs) findPrograms(f dataplane.Family) error {
	for _, verb := range []string{"save", "restore"} {
		name := program(f, k.mode, verb)
		path, err := find(name)
		if err != nil {
			return fmt.Errorf("%s was not found: install the iptables package (1.8 or later): %w", name, err)
		}
		k.paths[name] = path
	}
	return nil
}

// trial holds rules of one table to try.
type trial struct {
	table string
	rules []string
}

// accepts tries rules of the nat table; see acceptsAll.
func (k *programs) accepts(ctx context.Context, f dataplane.Family, rules ...string) error {
	return k.acceptsAll(ctx, f, trial{"nat", rules})
}

// acceptsAll tries rules without adding them. With the legacy mechanism even a trial would create the table. If a
// table does not exist, acceptsAll tries the rules in a new network namespace, as far as that is permitted.
func (k *programs) acceptsAll(ctx context.Context, f dataplane.Family, trials ...trial) error {
	var input strings.Builder
	absent := false
	for _, t := range trials {
		input.WriteString("*" + t.table + "\n:WEIR-PROBE - [0:0]\n")
		for _, rule := range t.rules {
			input.WriteString("-A WEIR-PROBE " + rule + "\n")
		}
		input.WriteString("COMMIT\n")
		absent = absent || !legacyTable(f, t.table)
	}
	if k.mode == Legacy && absent {
		err := k.restore(ctx, f, []byte(input.String()), &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}, "--noflush", "--test")
		if !errors.Is(err, os.ErrPermission) {
			return err
		}
	}
	return k.restore(ctx, f, []byte(input.String()), nil, "--noflush", "--test")
}
