package main

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"weir/backends/dataplane"
	"weir/backends/hostnet"
	"weir/spec"
	"weir/spec/config"
	"weir/spec/join"
	"weir/spec/lastgood"
	"weir/spec/liveness"
	"weir/spec/podsource"
)

// podFlags name the container runtimes that are asked for pods.
type podFlags struct {
	sources []string

	mu    sync.Mutex
	found *[]spec.PodSource // those that are there, once that was looked after
	// mute are sockets, by what identifies their files, of runtimes that said that they cannot be asked.
	mute map[unix.Stat_t]bool
	executors
}

// executors are the runtimes that are followed and run commands in containers.
type executors struct {
	mu  sync.Mutex
	all []podsource.Executor
	of  []spec.PodSource
}

// exec returns what runs commands in a pod's containers, or nil if no runtime does.
func (x *executors) exec(pod dataplane.ServiceName) liveness.Exec {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.all) == 0 {
		return nil
	}
	return func(ctx context.Context, container string, command []string) (exit int, output []byte, err error) {
		x.mu.Lock()
		all := slices.Clone(x.all)
		x.mu.Unlock()
		for _, e := range all {
			if exit, output, err = e.Exec(ctx, pod, container, command); !errors.Is(err, podsource.ErrNoContainer) {
				break
			}
		}
		return exit, output, err
	}
}

// followed notes the reader of a source.
func (x *executors) followed(s spec.PodSource, r podsource.Reader) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if e, ok := r.(podsource.Executor); ok && !slices.Contains(x.of, s) {
		x.all, x.of = append(x.all, e), append(x.of, s)
	}
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
	p := &podLayers{sources: map[spec.PodSource]func(*spec.Snapshot) (*namedPods, error){}, follow: func(s spec.PodSource, former *namedPods) func(*spec.Snapshot) (*namedPods, error) {
		return followPods(s, former, node, log.Named("pods"), f.followed)
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
	made    [1 + spec.MaxPodSources]*namedPods // what the layers have now
	sources map[spec.PodSource]func(*spec.Snapshot) (*namedPods, error)
	follow  func(s spec.PodSource, former *namedPods) func(*spec.Snapshot) (*namedPods, error)
}

// assign gives layers to sources. One that comes while another of its kind goes takes its place: it may be the same runtime at
// another socket, and until it has answered, what the other one said last stands. The pods of any other source that goes, go.
func (p *podLayers) assign(all []spec.PodSource) {
	var free, before []int
	for i, s := range p.slots {
		switch {
		case slices.Contains(all, s):
		case s == (spec.PodSource{}):
			free = append(free, i)
		default:
			before = append(before, i)
		}
	}
	var added []spec.PodSource
	for _, s := range all {
		if slices.Contains(p.slots[:], s) {
			continue
		}
		at := slices.IndexFunc(before, func(i int) bool { return p.slots[i].Kind == s.Kind })
		if at < 0 {
			added = append(added, s)
			continue
		}
		i := before[at]
		before = slices.Delete(before, at, at+1)
		delete(p.sources, p.slots[i])
		p.slots[i], p.sources[s] = s, p.follow(s, p.made[i])
	}
	for _, i := range before {
		delete(p.sources, p.slots[i])
		p.slots[i] = spec.PodSource{}
		free = append(free, i)
	}
	slices.Sort(free)
	for _, s := range added {
		at := slices.IndexFunc(free, func(i int) bool { return i > 0 || s.Kind == "kubelet" })
		i := free[at]
		free = slices.Delete(free, at, at+1)
		p.slots[i], p.sources[s] = s, p.follow(s, nil)
	}
}

func (p *podLayers) source(i int, files *spec.Snapshot) (spec.Source, error) {
	follow := p.sources[p.slots[i]]
	if follow == nil {
		p.made[i] = nil
		return nil, nil
	}
	source, err := follow(files)
	if err != nil {
		return nil, err
	}
	p.made[i] = source
	return source, nil
}

// namedPods is a source of pods with the name of its runtime.
type namedPods struct {
	spec.Source
	name string
	// succeeds is the name of the source whose pods stand until this one answers, and said what is in force of either.
	succeeds string
	said     atomic.Pointer[spec.Snapshot]
	answered atomic.Bool
}

// Name implements join.Named.
func (n *namedPods) Name() string { return n.name }

// Succeeds implements join.Successor.
func (n *namedPods) Succeeds() string { return n.succeeds }

// Watch implements spec.Source.
func (n *namedPods) Watch(ctx context.Context, sink func(spec.Update)) error {
	return n.Source.Watch(ctx, func(u spec.Update) {
		if u.Err == nil {
			n.said.Store(u.Snapshot)
			n.answered.Store(true)
		}
		sink(u)
	})
}

// inherit takes over what a former source said last. It returns that, or nil.
func (n *namedPods) inherit(former *namedPods) *spec.Snapshot {
	if former == nil {
		return nil
	}
	n.succeeds = former.name
	if former.succeeds != "" && !former.answered.Load() {
		n.succeeds = former.succeeds
	}
	said := former.said.Load()
	n.said.Store(said)
	return said
}

// followPods returns a function that makes the runtime's source for a configuration, in the place of a former one or nil. It
// returns the same source while the name of the node and the state directory are the same.
func followPods(s spec.PodSource, former *namedPods, node *nodeFlags, log hclog.Logger, followed func(spec.PodSource, podsource.Reader)) func(*spec.Snapshot) (*namedPods, error) {
	type target struct{ node, stateDir string }
	var current target
	var source *namedPods
	return func(files *spec.Snapshot) (*namedPods, error) {
		name, err := nodeName(node.hostname, files.Config.HostnameOverride)
		if err != nil {
			return nil, err
		}
		t := target{name, files.Weir.StateDir}
		if source != nil && t == current {
			return source, nil
		}
		current = t
		reader := podReader(s, name)
		followed(s, reader)
		pods := podsource.New(podsource.Options{Name: s.String(), Log: log, Reader: reader, Backoff: s.Kind == "kubelet"})
		file := podsFile(t.stateDir, s)
		next := &namedPods{name: s.String()}
		next.Source = lastgood.New(lastgood.Options{
			Source: pods, Input: "the pods of " + s.String(), Node: name, Log: log, Former: next.inherit(cmp.Or(source, former)),
			// What a crash forgets would be taken from the kernel if the runtime were away then, so that even a slow disk hears soon.
			Interval: 100 * time.Millisecond, Share: 4,
			Grace: time.Second,
			File:  func(*spec.Snapshot) string { return file }, Cluster: func() string { return s.String() },
		})
		source = next
		return source, nil
	}
}

// podsFile is where the last word of a runtime is kept.
func podsFile(stateDir string, s spec.PodSource) string {
	return filepath.Join(stateDir, "pods-"+strings.Trim(strings.ReplaceAll(s.Socket, "/", "-"), "-"))
}

func podReader(s spec.PodSource, node string) podsource.Reader {
	agent := thisBuild().userAgent()
	switch s.Kind {
	case "kubelet":
		return &podsource.Kubelet{Socket: s.Socket, Node: node, HostAddresses: hostAddresses, UserAgent: agent}
	case "cri":
		return &podsource.CRI{Socket: s.Socket, Node: node, HostAddresses: hostAddresses, UserAgent: agent}
	}
	return &podsource.Containers{Socket: s.Socket, Node: node, HostAddresses: hostAddresses, UserAgent: agent}
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
