package hostnet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"weir/backends"
)

// oursIn returns the function that recognizes lines of weir, in the file of a way.
func oursIn(way Way) func(line string) bool {
	if way == WayHosts {
		return func(line string) bool {
			fields := strings.Fields(line)
			return len(fields) == 2 && strings.Contains(fields[1], ".svc.")
		}
	}
	if way == WayDnsmasq || way == WayNetworkManager {
		return func(line string) bool { return strings.HasPrefix(line, "server=/") }
	}
	seen := false
	return func(line string) bool {
		first := !seen
		seen = true
		return first && strings.HasPrefix(line, "nameserver ")
	}
}

var wayFiles = map[Way]string{
	WayResolvConf: resolvConf, WayHosts: "etc/hosts", WayDnsmasq: dnsmasqDir + "/weir.conf", WayNetworkManager: managerDir + "/weir.conf",
}

// target returns the file of a way: what a symlink leads to, because the symlink is another program's.
func (n *NodeNames) target(way Way) string {
	path := filepath.Join("/", n.Root, wayFiles[way])
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return path
}

// Observe implements backends.Backend. It looks into the files that weir adds to now, and into those that it is known to have
// added to.
func (n *NodeNames) Observe(ctx context.Context) iter.Seq2[backends.Item, error] {
	return func(yield func(backends.Item, error) bool) {
		paths := maps.Clone(n.record.Files)
		for way := range wayFiles {
			paths[n.target(way)] = namesFile{Way: way}
		}
		for _, path := range slices.Sorted(maps.Keys(paths)) {
			item, found := n.look(paths[path].Way, path)
			if found && !yield(item, nil) {
				return
			}
		}
		if item, found := n.lookResolved(ctx); found {
			yield(item, nil)
		}
	}
}

// look returns what weir has added to a file. What cannot be read has nothing of weir, or cannot be mended.
func (n *NodeNames) look(way Way, path string) (nodeName, bool) {
	if wayFiles[way] == "" || n.elsewhere(path) {
		return nodeName{}, false
	}
	text, err := readTextFile(path)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			n.warn(err.Error())
		}
		return nodeName{}, false
	}
	rest, block, clean := cutBlock(string(text), oursIn(way))
	if rest == string(text) {
		return nodeName{}, false
	}
	i := nodeName{way: way, path: path, text: block}
	switch {
	case !clean:
		i.broken = "another process changed"
	case way == WayResolvConf && string(text) != prepended(block, rest):
		i.broken = "is not the first line"
	}
	return i, true
}

// elsewhere reports whether a file is that of processes in another network namespace, whose addresses are not those of this
// process: a process that entered a network namespace still sees the files of the whole node. What cannot be told counts as
// elsewhere.
func (n *NodeNames) elsewhere(path string) bool {
	if n.Root != "" {
		return false
	}
	// These files are of the network namespace, and can be looked at without the privilege to trace the first process.
	var own, first unix.Stat_t
	if unix.Stat("/proc/thread-self/net/dev", &own) == nil && unix.Stat("/proc/1/net/dev", &first) == nil && own.Ino == first.Ino {
		return false
	}
	here, err := fileOf("/proc/thread-self/mountinfo", path)
	there, err2 := fileOf("/proc/1/mountinfo", path)
	return err != nil || err2 != nil || here == there
}

// fileOf returns the file system that a path without symlinks leads to, and the path in it, by a list of mounts
// (proc_pid_mountinfo(5)).
func fileOf(mounts, path string) (string, error) {
	text, err := os.ReadFile(mounts)
	if err != nil {
		return "", err
	}
	file, longest := "", -1
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		root, at := unescapeMount.Replace(fields[3]), unescapeMount.Replace(fields[4])
		below, ok := strings.CutPrefix(path, strings.TrimSuffix(at, "/"))
		if ok && (below == "" || below[0] == '/') && len(at) >= longest {
			file, longest = fields[2]+" "+filepath.Join(root, below), len(at)
		}
	}
	if longest < 0 {
		return "", fmt.Errorf("%s has no mount for %s", mounts, path)
	}
	return file, nil
}

var unescapeMount = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
