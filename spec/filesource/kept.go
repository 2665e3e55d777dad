package filesource

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/document"
	"weir/spec/manifest"
)

// Kept tells the Watch the Snapshot that an earlier process kept, and that is in force now. It stands in for what hangs since
// the start. It is called at most once.
func (s *Source) Kept(snap *spec.Snapshot) { s.kept <- snap }

// passByKept is passBy for a session that has accepted nothing: what an earlier process kept stands in for what hangs. It is
// not ok if it cannot be told which part of the kept state that is.
func (s *session) passByKept(ctx context.Context, h hung, rev spec.Revision, faults spec.Problems) (updates []spec.Update, ok bool, err error) {
	if len(h.builts) > 0 { // objects do not tell which kustomization rendered them
		return nil, false, nil
	}
	files := s.tree.changes(h)
	first, both := s.newSet(s.objects), s.newSet(s.objects)
	both.Expect("") // the caller has looked
	fresh, _, err := first.Update(ctx, rev, files)
	if err != nil || !sameConfig(fresh, s.kept) {
		return nil, false, ctx.Err()
	}
	standIns := missing(fresh, s.kept, h)
	snap, delta, err := both.Update(ctx, rev, slices.Concat(files, standIns))
	if err != nil || !stays(snap, s.kept, h) {
		return nil, false, ctx.Err()
	}
	for _, f := range standIns {
		s.tree.accepted[f.Path] = digest{}
		s.standIns = append(s.standIns, f.Path)
	}
	s.set = both
	return s.accept(snap, delta, h, faults), true, nil
}

// dropStandIns removes what stands in for files that do not hang any more.
func (s *session) dropStandIns(h hung) {
	s.standIns = slices.DeleteFunc(s.standIns, func(name string) bool {
		if h.covers(name) {
			return false
		}
		s.tree.setContent(name, content{})
		return true
	})
}

// standInPath returns the name of what stands in for a file.
func standInPath(file string) string { return manifest.RenderedPath(file, "") }

// missing returns what the kept Snapshot has and the fresh one lacks because reads hang: Services and slices of files that
// hang, and all Nodes, since they may come from any file.
func missing(fresh, kept *spec.Snapshot, h hung) []manifest.File {
	docs := map[string][]document.Text{}
	add := func(origin spec.Origin, o any) {
		data, _ := json.Marshal(o) // objects of the API can always be written
		file := origin.File
		if !h.covers(file) {
			file = slices.Min(slices.Collect(maps.Keys(h.names)))
		}
		docs[standInPath(file)] = append(docs[standInPath(file)], document.Text{Line: max(origin.Line, 1), OneLine: true, Data: data})
	}
	addSlices := func(name dataplane.ServiceName, list []*discoveryv1.EndpointSlice, file func(int) string) {
		there := fresh.Slices.Get(name).List
		if svc := fresh.Services.Get(name); svc != nil {
			there = svc.Slices
		}
		for i, slice := range list {
			if h.covers(file(i)) && !slices.ContainsFunc(there, func(t *discoveryv1.EndpointSlice) bool { return t.Name == slice.Name }) {
				written := *slice
				written.TypeMeta = metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"}
				written.Labels = map[string]string{discoveryv1.LabelServiceName: name.Name}
				add(spec.Origin{File: file(i)}, &written)
			}
		}
	}
	for svc := range kept.Services.All() {
		if fresh.Services.Get(svc.Name) == nil && h.covers(svc.Origin.File) {
			written := *svc.Object
			written.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}
			add(svc.Origin, &written)
		}
		addSlices(svc.Name, svc.Slices, svc.SliceFile)
	}
	for name := range kept.Slices.Names() {
		s := kept.Slices.Get(name)
		addSlices(name, s.List, s.File)
	}
	for name, n := range kept.Nodes {
		if fresh.Nodes[name] == nil {
			written := *n
			written.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}
			add(spec.Origin{}, &written)
		}
	}
	var files []manifest.File
	for _, path := range slices.Sorted(maps.Keys(docs)) {
		files = append(files, manifest.File{Path: path, Data: manifest.RenderedData(docs[path])})
	}
	return files
}

// sameConfig reports whether two Snapshots are configured alike, so that no file that hangs configures anything.
func sameConfig(a, b *spec.Snapshot) bool {
	text := func(s *spec.Snapshot) string {
		data, _ := json.Marshal([]any{s.Config, s.UDPIdleTimeout, s.Weir}) // a nil list is an empty one
		return string(data)
	}
	return text(a) == text(b)
}

// stays reports whether the Snapshot has every Service that hangs, as one that a selector chose may not be chosen by what was
// kept of it, and whether no Service has an address or a port allocated that it had not before.
func stays(snap, kept *spec.Snapshot, h hung) bool {
	for was := range kept.Services.All() {
		svc := snap.Services.Get(was.Name)
		if svc == nil && h.covers(was.Origin.File) || svc != nil && len(svc.Allocated) > 0 && addresses(svc.Object) != addresses(was.Object) {
			return false
		}
	}
	return true
}

func addresses(svc *corev1.Service) string {
	all := slices.Clone(svc.Spec.ClusterIPs)
	for _, p := range svc.Spec.Ports {
		all = append(all, fmt.Sprintf("%s %d", p.Name, p.NodePort))
	}
	return strings.Join(all, "\n")
}
