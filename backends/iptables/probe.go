package iptables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	coreiptables "github.com/coreos/go-iptables/iptables"
	hclog "github.com/hashicorp/go-hclog"

	"weir/backends"
)

// Probe finds the iptables of this node. force chooses the mechanism; "" finds out which one the node uses: the one that
// holds the rules of others, else the one that the iptables command stands for. A family for which iptables cannot be used
// is left out, unless it is the only one. The error says what is missing.
func Probe(ctx context.Context, log hclog.Logger, families []backends.Family, force Mode) (Kernel, error) {
	mode := force
	if mode == "" {
		var err error
		if mode, err = detect(ctx, log); err != nil {
			return nil, err
		}
	}
	k := &programs{mode: mode, paths: make(map[string]string)}
	var unusable []error
	for _, f := range families {
		if err := k.probe(ctx, f); err != nil {
			unusable = append(unusable, err)
			continue
		}
		k.features.Families = append(k.features.Families, f)
	}
	if len(k.features.Families) == 0 {
		return nil, errors.Join(unusable...)
	}
	for _, err := range unusable {
		log.Warn("a family is left out, since iptables cannot be used for it", "error", err)
	}
	log.Info("found iptables", "mechanism", string(mode), "random-fully", k.features.RandomFully, "bpf", k.features.BPF)
	return k, nil
}

// searched are the directories in which programs are looked for before PATH.
var searched = []string{"/usr/sbin", "/sbin", "/usr/local/sbin"}

// find returns the absolute path of a program, looking also where a user's PATH does not.
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

// detect finds out which mechanism the node uses.
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
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("cannot run %s: %w", path, err)
	}
	if strings.Contains(string(out), "nf_tables") {
		return NFT, nil
	}
	return Legacy, nil
}

// holdsRules counts the rules that a mechanism holds for IPv4. What cannot be read counts as none.
func holdsRules(ctx context.Context, mode Mode) int {
	name := program(backends.IPv4, mode, "save")
	path, err := find(name)
	if err != nil {
		return 0
	}
	k := &programs{mode: mode, paths: map[string]string{name: path}}
	rules := 0
	for _, table := range []string{"mangle", "nat", "filter"} {
		saved, err := k.Save(ctx, backends.IPv4, table)
		if err != nil {
			continue
		}
		rules += countRules(saved)
		_ = saved.Close()
	}
	return rules
}

// The probes. Each has to be accepted, or its feature is missing.
var (
	needs = map[string]string{
		"the statistic match":   "-m statistic --mode random --probability 0.5",
		"the recent match":      "-m recent --set --name WEIR-PROBE --rsource",
		"the addrtype match":    "-m addrtype --dst-type LOCAL",
		"the conntrack match":   "-m conntrack --ctstate NEW",
		"the mark match":        "-m mark --mark 1/1",
		"the MARK target":       "-j MARK --set-xmark 1/1",
		"the MASQUERADE target": "-j MASQUERADE",
	}
	probeRandomFully = "-j MASQUERADE --random-fully"
	probeBPF         = "-m bpf --bytecode " + hairpinProgram4
)

// probe finds out what the kernel and the programs can do for a family.
func (k *programs) probe(ctx context.Context, f backends.Family) error {
	if err := k.findPrograms(f); err != nil {
		return err
	}
	first := len(k.features.Families) == 0
	all := append(slices.Collect(maps.Values(needs)), probeBPF, probeRandomFully)
	if k.accepts(ctx, f, all...) == nil {
		k.features.BPF = first || k.features.BPF
		k.features.RandomFully = first || k.features.RandomFully
		return nil
	}
	var missing []error
	for what, rule := range needs {
		if err := k.accepts(ctx, f, rule); err != nil {
			missing = append(missing, fmt.Errorf("%s: %w", what, err))
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("iptables (%s) of this node cannot do what is needed for %s: %w", k.mode, f, errors.Join(missing...))
	}
	bpf := k.accepts(ctx, f, probeBPF) == nil
	random := k.accepts(ctx, f, probeRandomFully) == nil
	k.features.BPF = bpf && (first || k.features.BPF)
	k.features.RandomFully = random && (first || k.features.RandomFully)
	return nil
}

// findPrograms finds the programs for a family.
func (k *programs) findPrograms(f backends.Family) error {
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

// accepts tries rules without making them. To the legacy mechanism even that would give the table which they are tried
// in; if it is not there, a network namespace of their own is used, as far as that is permitted.
func (k *programs) accepts(ctx context.Context, f backends.Family, rules ...string) error {
	var input strings.Builder
	input.WriteString("*nat\n:WEIR-PROBE - [0:0]\n")
	for _, rule := range rules {
		input.WriteString("-A WEIR-PROBE " + rule + "\n")
	}
	input.WriteString("COMMIT\n")
	if k.mode == Legacy && !legacyTable(f, "nat") {
		err := k.restore(ctx, f, []byte(input.String()), &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}, "--noflush", "--test")
		if !errors.Is(err, os.ErrPermission) {
			return err
		}
	}
	return k.restore(ctx, f, []byte(input.String()), nil, "--noflush", "--test")
}
