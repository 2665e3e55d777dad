package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"weir/backends/hostnet"
	"weir/spec"
	"weir/spec/join"
	"weir/spec/lastgood"
	"weir/spec/podsource"
)

// podFlags name the container runtimes that are asked for pods.
type podFlags struct{ sources []string }

func (f *podFlags) add(fs *pflag.FlagSet) {
	fs.StringArrayVar(&f.sources, "pod-source", nil, "container runtime to ask for the pods that Services select, such as podman=unix:///run/podman/podman.sock, docker=..., kubelet=..., cri=unix:///run/containerd/containerd.sock, or none; may be repeated (default: podman, docker, the kubelet, containerd and CRI-O at their usual sockets, if they are there)")
}

// podRuntime is a container runtime of this node.
type podRuntime struct{ kind, socket string }

func (r podRuntime) String() string { return r.kind + " at " + r.socket }

// rank is lower for a kubelet, because of a pod that several tell of the first one counts.
func (r podRuntime) rank() int {
	if r.kind == "kubelet" {
		return 0
	}
	return 1
}

// usualRuntimes are where runtimes listen for root.
var usualRuntimes = []podRuntime{
	{"podman", "/run/podman/podman.sock"}, {"docker", "/run/docker.sock"},
	{"kubelet", "/var/lib/kubelet/pods-api/pods-api.sock"},
	{"cri", "/run/containerd/containerd.sock"}, {"cri", "/run/crio/crio.sock"},
}

// usualSocket returns where a runtime of that kind listens for root, or "" if there is no such kind.
func usualSocket(kind string) string {
	for _, r := range usualRuntimes {
		if r.kind == kind {
			return r.socket
		}
	}
	return ""
}

// runtimes returns the runtimes that the flags name, or those that are there. Invalid flags are usage errors.
func (f *podFlags) runtimes(ctx context.Context) ([]podRuntime, error) {
	if len(f.sources) == 0 {
		return foundRuntimes(ctx, usualRuntimes), nil
	}
	var all []podRuntime
	for _, s := range f.sources {
		kind, address, given := strings.Cut(s, "=")
		switch {
		case s == "none" && len(f.sources) == 1:
			return nil, nil
		case s == "none":
			return nil, usageError{fmt.Errorf("--pod-source none: leave out the others, or none")}
		case usualSocket(kind) == "":
			return nil, usageError{fmt.Errorf("--pod-source %s: %q is not podman, docker, kubelet or cri", spec.Clean(s), kind)}
		case !given:
			return nil, usageError{fmt.Errorf("--pod-source %s: give the socket too, such as %s=unix://%s", kind, kind, usualSocket(kind))}
		}
		socket := strings.TrimPrefix(address, "unix://")
		if !filepath.IsAbs(socket) {
			return nil, usageError{fmt.Errorf("--pod-source %s: %q is not the path of a socket, such as unix://%s", spec.Clean(s), address, usualSocket(kind))}
		}
		all = append(all, podRuntime{kind, socket})
	}
	slices.SortStableFunc(all, func(a, b podRuntime) int { return cmp.Compare(a.rank(), b.rank()) })
	return all, nil
}

// askLimit is how long a runtime may take to say whether it can be asked for pods.
const askLimit = time.Second

// foundRuntimes returns those whose socket is there and may be used. Several links to one socket count once. A containerd that
// serves docker alone is none, and beside a kubelet, which tells more of the same pods, no runtime with CRI is.
func foundRuntimes(ctx context.Context, usual []podRuntime) (found []podRuntime) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	known, kubelet := map[string]bool{}, false
	for _, r := range usual {
		real, err := filepath.EvalSymlinks(r.socket)
		if err != nil || known[real] {
			continue
		}
		if info, err := os.Stat(real); err != nil || info.Mode()&os.ModeSocket == 0 || unix.Access(real, unix.W_OK) != nil {
			continue
		}
		known[real] = true
		kubelet = kubelet || r.kind == "kubelet"
		if r.kind == "cri" && (kubelet || !(&podsource.CRI{Socket: real}).Speaks(ctx)) {
			continue
		}
		found = append(found, r)
	}
	return found
}

// layers returns a layer for each runtime.
func (f *podFlags) layers(ctx context.Context, node *nodeFlags, log hclog.Logger) ([]join.Layer, error) {
	found, err := f.runtimes(ctx)
	if err != nil {
		return nil, err
	}
	var layers []join.Layer
	for _, r := range found {
		layers = append(layers, join.Layer{Name: r.String(), GivesPods: true, Source: r.follow(node, log.Named("pods"))})
	}
	return layers, nil
}

// follow returns a function that makes the runtime's source for a configuration. It returns the same source while the name
// of the node and the state directory are the same.
func (r podRuntime) follow(node *nodeFlags, log hclog.Logger) func(*spec.Snapshot) (spec.Source, error) {
	type target struct{ node, stateDir string }
	var current target
	var source spec.Source
	return func(files *spec.Snapshot) (spec.Source, error) {
		name, err := nodeName(node.hostname, files.Config.HostnameOverride)
		if err != nil {
			return nil, err
		}
		t := target{name, files.Weir.StateDir}
		if source != nil && t == current {
			return source, nil
		}
		current = t
		pods := podsource.New(podsource.Options{Name: r.String(), Log: log, Reader: r.reader(name)})
		file := filepath.Join(t.stateDir, "pods-"+strings.Trim(strings.ReplaceAll(r.socket, "/", "-"), "-"))
		source = lastgood.New(lastgood.Options{
			Source: pods, Input: "the pods of " + r.String(), Node: name, Log: log,
			Interval: 100 * time.Millisecond, // what a crash forgets would be taken from the kernel if the runtime were away then
			File:     func(*spec.Snapshot) string { return file }, Cluster: func() string { return r.String() },
		})
		return source, nil
	}
}

func (r podRuntime) reader(node string) podsource.Reader {
	switch r.kind {
	case "kubelet":
		return &podsource.Kubelet{Socket: r.socket, Node: node, HostAddresses: hostAddresses}
	case "cri":
		return &podsource.CRI{Socket: r.socket, Node: node, HostAddresses: hostAddresses}
	}
	return &podsource.Containers{Socket: r.socket, Node: node, HostAddresses: hostAddresses}
}

// hostAddresses returns the addresses that a pod in the node's own network has: the node's primary ones.
func hostAddresses() []string {
	addrs, err := hostnet.Addresses()
	if err != nil {
		return nil
	}
	var all []string
	for _, a := range hostnet.Primary(addrs) {
		all = append(all, a.String())
	}
	return all
}
