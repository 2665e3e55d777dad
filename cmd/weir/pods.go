package main

import (
	"cmp"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"weir/backends/hostnet"
	"weir/spec"
	"weir/spec/config"
	"weir/spec/join"
	"weir/spec/lastgood"
	"weir/spec/podsource"
)

// podFlags name the container runtimes that are asked for pods.
type podFlags struct {
	sources []string

	mu    sync.Mutex
	found *[]spec.PodSource // those that are there, once that was looked after
	// mute are sockets, by what identifies their files, of runtimes that said that they cannot be asked.
	mute map[unix.Stat_t]bool
}

func (f *podFlags) add(fs *pflag.FlagSet) {
	fs.StringArrayVar(&f.sources, "pod-source", nil, "container runtime to ask for the pods that Services select, such as podman=unix:///run/podman/podman.sock, docker=..., kubelet=..., cri=unix:///run/containerd/containerd.sock, or none; may be repeated (default: podman, docker, the kubelet, containerd and CRI-O at their usual sockets, if they are there)")
}

// fields adds the sources that the flags name.
func (f *podFlags) fields(in *config.WeirFields) {
	if len(f.sources) > 0 {
		in.PodSources = f.sources
	}
}

// inForce returns the sources of a configuration, which are those of the flags if they name any, or those that are there. The
// kubelet comes first, because of a pod that several tell of the first one counts.
func (f *podFlags) inForce(ctx context.Context, weir spec.WeirConfiguration) []spec.PodSource {
	all := weir.PodSources
	if all == nil {
		all = f.here(ctx, weir.StateDir)
	}
	return slices.SortedStableFunc(slices.Values(all), func(a, b spec.PodSource) int { return cmp.Compare(rank(a), rank(b)) })
}

func rank(s spec.PodSource) int {
	if s.Kind == "kubelet" {
		return 0
	}
	return 1
}

// askLimit is how long a runtime may take to say whether it can be asked for pods.
const askLimit = time.Second

// lookEvery is how often weir looks for runtimes that start after it.
const lookEvery = 5 * time.Second

// here returns the runtimes that are there, or were when weir looked first, and those that came since.
func (f *podFlags) here(ctx context.Context, stateDir string) []spec.PodSource {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.found == nil {
		found := f.look(ctx, spec.UsualPodSources, nil)
		for _, r := range spec.UsualPodSources { // one that told of pods and is away keeps its last word
			if !slices.Contains(found, r) && writtenSinceBoot(podsFile(stateDir, r)) {
				found = append(found, r)
			}
		}
		f.found = &found
	}
	return slices.Clone(*f.found)
}

// lookAgain reports whether there is a runtime now that was not there before. None goes, since what it said last stands.
func (f *podFlags) lookAgain(ctx context.Context) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.found == nil {
		return false
	}
	before := len(*f.found)
	*f.found = append(*f.found, f.look(ctx, spec.UsualPodSources, *f.found)...)
	return len(*f.found) > before
}

// look returns those whose socket is there and may be used, besides those that are known. Several links to one socket count once.
// A containerd that serves docker alone is none, and beside a kubelet, which tells more of the same pods, no runtime with CRI is.
func (f *podFlags) look(ctx context.Context, usual, known []spec.PodSource) (found []spec.PodSource) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	isKubelet := func(s spec.PodSource) bool { return s.Kind == "kubelet" }
	sockets := map[string]bool{}
	for _, r := range known {
		if real, err := filepath.EvalSymlinks(r.Socket); err == nil {
			sockets[real] = true
		}
	}
	for _, r := range usual {
		real, err := filepath.EvalSymlinks(r.Socket)
		if err != nil || sockets[real] || slices.Contains(known, r) {
			continue
		}
		var is unix.Stat_t
		if unix.Stat(real, &is) != nil || is.Mode&unix.S_IFMT != unix.S_IFSOCK || unix.Access(real, unix.W_OK) != nil {
			continue
		}
		sockets[real] = true
		if r.Kind == "cri" {
			same := unix.Stat_t{Dev: is.Dev, Ino: is.Ino, Ctim: is.Ctim}
			if f.mute[same] || slices.ContainsFunc(found, isKubelet) || slices.ContainsFunc(known, isKubelet) {
				continue
			}
			if !(&podsource.CRI{Socket: real}).Speaks(ctx) {
				if f.mute == nil {
					f.mute = map[unix.Stat_t]bool{}
				}
				f.mute[same] = true
				continue
			}
		}
		found = append(found, r)
	}
	return found
}

// writtenSinceBoot reports whether a file was written since the machine started.
func writtenSinceBoot(file string) bool {
	info, err := os.Stat(file)
	var up unix.Sysinfo_t
	return err == nil && unix.Sysinfo(&up) == nil && time.Since(info.ModTime()) < time.Duration(up.Uptime)*time.Second
}

// layers returns layers for as many sources as there may be, or none if the flags say that none is asked. What the
// configuration names is followed while weir runs.
func (f *podFlags) layers(ctx context.Context, node *nodeFlags, log hclog.Logger) []join.Layer {
	if slices.Equal(f.sources, []string{"none"}) {
		return nil
	}
	p := &podLayers{sources: map[spec.PodSource]func(*spec.Snapshot) (spec.Source, error){}, follow: func(s spec.PodSource) func(*spec.Snapshot) (spec.Source, error) {
		return followPods(s, node, log.Named("pods"))
	}}
	var layers []join.Layer
	for i := range p.slots {
		layers = append(layers, join.Layer{GivesPods: true, Source: func(files *spec.Snapshot) (spec.Source, error) {
			p.assign(f.inForce(ctx, files.Weir))
			return p.source(i, files)
		}})
	}
	layers[0].Watch = f.follow
	return layers
}

// follow calls changed when a runtime has come.
func (f *podFlags) follow(ctx context.Context, changed func()) {
	if len(f.sources) > 0 {
		return
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if f.lookAgain(ctx) {
				changed()
			}
		case <-ctx.Done():
			return
		}
	}
}

// podLayers gives each source a layer, and leaves it there as long as the source is asked, so that a change of the others does
// not touch its pods.
type podLayers struct {
	// slots are the sources by layer. The first one is for a kubelet, because of a pod that several tell of it counts.
	slots   [1 + spec.MaxPodSources]spec.PodSource
	sources map[spec.PodSource]func(*spec.Snapshot) (spec.Source, error)
	follow  func(spec.PodSource) func(*spec.Snapshot) (spec.Source, error)
}

func (p *podLayers) assign(all []spec.PodSource) {
	for i, s := range p.slots {
		if !slices.Contains(all, s) {
			p.slots[i] = spec.PodSource{}
			delete(p.sources, s)
		}
	}
	for _, s := range all {
		if slices.Contains(p.slots[:], s) {
			continue
		}
		first := 1
		if s.Kind == "kubelet" {
			first = 0
		}
		i := first + slices.Index(p.slots[first:], spec.PodSource{})
		p.slots[i], p.sources[s] = s, p.follow(s)
	}
}

func (p *podLayers) source(i int, files *spec.Snapshot) (spec.Source, error) {
	if follow := p.sources[p.slots[i]]; follow != nil {
		return follow(files)
	}
	return nil, nil
}

// namedPods is a source of pods with the name of its runtime.
type namedPods struct {
	spec.Source
	name string
}

func (n *namedPods) Name() string { return n.name }

// followPods returns a function that makes the runtime's source for a configuration. It returns the same source while the name
// of the node and the state directory are the same.
func followPods(s spec.PodSource, node *nodeFlags, log hclog.Logger) func(*spec.Snapshot) (spec.Source, error) {
	type target struct{ node, stateDir string }
	var current target
	var source *namedPods
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
		pods := podsource.New(podsource.Options{Name: s.String(), Log: log, Reader: podReader(s, name)})
		file := podsFile(t.stateDir, s)
		source = &namedPods{name: s.String(), Source: lastgood.New(lastgood.Options{
			Source: pods, Input: "the pods of " + s.String(), Node: name, Log: log,
			Interval: 100 * time.Millisecond, // what a crash forgets would be taken from the kernel if the runtime were away then
			File:     func(*spec.Snapshot) string { return file }, Cluster: func() string { return s.String() },
		})}
		return source, nil
	}
}

// podsFile is where the last word of a runtime is kept.
func podsFile(stateDir string, s spec.PodSource) string {
	return filepath.Join(stateDir, "pods-"+strings.Trim(strings.ReplaceAll(s.Socket, "/", "-"), "-"))
}

func podReader(s spec.PodSource, node string) podsource.Reader {
	switch s.Kind {
	case "kubelet":
		return &podsource.Kubelet{Socket: s.Socket, Node: node, HostAddresses: hostAddresses}
	case "cri":
		return &podsource.CRI{Socket: s.Socket, Node: node, HostAddresses: hostAddresses}
	}
	return &podsource.Containers{Socket: s.Socket, Node: node, HostAddresses: hostAddresses}
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
