package lastgood

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"

	"weir/backends/dataplane"
	"weir/spec"
)

// lost returns a problem for each file that declared something in the state that an earlier run kept, and of which the
// first Snapshot of this run has nothing but what cannot be read, or is empty, as after a crash of the node. The kept state is read
// only if the Snapshot has any such file.
func (w *watch) lost(snap *spec.Snapshot) spec.Problems {
	broken := map[string]spec.Skipped{}
	for s := range snap.SkippedDocuments.All() {
		if _, known := broken[s.Origin.File]; !known && s.Broken() {
			broken[s.Origin.File] = s
		}
	}
	if len(broken) == 0 {
		return nil
	}
	kept := w.before(snap)
	if kept == nil {
		return nil
	}
	var out spec.Problems
	told := map[string]bool{} // files
	report := func(at spec.Origin, object, verb string) {
		if s, ok := brokenAt(broken, at.File); ok && object != "" {
			told[at.File] = true
			if s.Kind == spec.SkippedEmpty || s.Kind == spec.SkippedNoKind && s.Reason == "" {
				out = append(out, spec.Problem{Origin: s.Origin, Detail: s.HeldDetail(object)})
				return
			}
			out = append(out, spec.Problem{Origin: s.Origin, Object: object,
				Detail: verb + " here when the input was last good, and what is here now cannot be read" + because(s.Reason) + "; restore the file, or remove it"})
		}
	}
	reportSlices := func(name dataplane.ServiceName, list []*discoveryv1.EndpointSlice, file func(int) string) {
		for _, f := range lostSlices(snap, name, list, file) {
			if !told[f] {
				report(spec.Origin{File: f}, "endpoints of "+spec.ServiceObject(name), "were")
			}
		}
	}
	for svc := range kept.Services.All() {
		if snap.Services.Get(svc.Name) == nil {
			report(svc.Origin, spec.ServiceObject(svc.Name), "was")
		}
	}
	for svc := range kept.Services.All() {
		reportSlices(svc.Name, svc.Slices, svc.SliceFile)
	}
	for name := range kept.Slices.Names() {
		s := kept.Slices.Get(name)
		reportSlices(name, s.List, s.File)
	}
	if kept.ConfigOrigin.File != "" && snap.ConfigOrigin.File == "" {
		report(kept.ConfigOrigin, "KubeProxyConfiguration", "was")
	}
	if kept.Weir.AllowedSigners != "" && snap.Weir.AllowedSigners == "" {
		report(kept.WeirOrigin, "WeirConfiguration", "was")
	}
	if more := len(out) - maxLost; more > 0 {
		out = append(slices.Clip(out[:maxLost]), spec.Problem{Detail: fmt.Sprintf("and %d more like these", more)})
	}
	return out
}

// brokenAt returns what is broken at a file, or at a directory above it, which may have become a symlink to elsewhere.
func brokenAt(broken map[string]spec.Skipped, file string) (spec.Skipped, bool) {
	for name := file; ; name = filepath.Dir(name) {
		if s, ok := broken[name]; ok {
			return s, true
		}
		if name == filepath.Dir(name) {
			return spec.Skipped{}, false
		}
	}
}

// lostSlices returns the files of those of a Service's slices that the Snapshot does not have.
func lostSlices(snap *spec.Snapshot, name dataplane.ServiceName, kept []*discoveryv1.EndpointSlice, file func(int) string) (files []string) {
	there := snap.Slices.Get(name).List
	if svc := snap.Services.Get(name); svc != nil {
		there = svc.Slices
	}
	for i, slice := range kept {
		same := func(t *discoveryv1.EndpointSlice) bool { return t.Name == slice.Name }
		if f := file(i); f != "" && !slices.Contains(files, f) && !slices.ContainsFunc(there, same) {
			files = append(files, f)
		}
	}
	return files
}

// maxLost limits the problems that lost returns.
const maxLost = 100

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return " (" + reason + ")"
}

// before returns the state that an earlier run kept, or nil. It is read once, for the first of several Snapshots that lost
// refuses.
func (w *watch) before(snap *spec.Snapshot) *spec.Snapshot {
	if !w.compared {
		var err error
		w.compared = true
		file := w.o.File(snap)
		w.earlier, _, err = load(w.ctx, file, header{Cluster: w.o.Cluster(), Node: w.o.Node})
		if err != nil {
			w.earlier = nil
			if !errors.Is(err, fs.ErrNotExist) && w.ctx.Err() == nil {
				w.o.Log.Warn("the kept state of "+w.o.Input+" cannot be compared with what is there now", "file", file, "error", err)
			}
		}
	}
	return w.earlier
}
