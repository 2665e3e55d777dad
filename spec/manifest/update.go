package manifest

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"weir/spec"
	"weir/spec/yamlpos"
)

const (
	// maxProblems bounds the problems that are reported at once.
	maxProblems = 1000
	// maxLookups bounds the lines that are looked up for problems that show only when everything is put together.
	maxLookups = 200
)

// update is one Update of a Set in the making.
type update struct {
	*Set
	undo
	problems []spec.Problem
	lookups  int

	dirty map[spec.Name]bool // Services to complete anew
	nodes bool               // some Node changed
	// twice holds the objects that were declared more than once.
	twice map[objectID][]*placed
	// contested holds the Services that set the same value.
	contestedIPs   map[netip.Addr][]spec.Name
	contestedPorts map[uint16][]spec.Name

	changed []spec.Name // Services that differ from what they were
}

func newUpdate(s *Set) *update {
	return &update{
		Set: s, dirty: map[spec.Name]bool{}, twice: map[objectID][]*placed{},
		contestedIPs: map[netip.Addr][]spec.Name{}, contestedPorts: map[uint16][]spec.Name{},
	}
}

// replace edits the indexes of objects.
func (u *update) replace(files []File, parsed []*file) {
	var removed, added []docAt
	for i, f := range parsed {
		if f.broken != nil {
			u.problems = append(u.problems, *f.broken)
			continue
		}
		u.problems = append(u.problems, f.problems()...)
		r, a := differ(u.files[f.path], f)
		removed, added = append(removed, r...), append(added, a...)
		if files[i].Data == nil {
			remove(&u.undo, u.files, f.path)
		} else {
			put(&u.undo, u.files, f.path, f)
		}
	}
	for _, d := range removed { // all of them first, since an object may have moved to another file
		u.removeDoc(d)
	}
	for _, d := range added {
		u.addDoc(d)
	}
	u.settleTwice()
}

// problems returns what is wrong with each document alone. Of a template there is nothing more to say than that it is one.
func (f *file) problems() []spec.Problem {
	var out []spec.Problem
	for _, d := range f.docs {
		for _, p := range d.problems {
			if p = relocate(p, d.line); p.Detail == template {
				return []spec.Problem{p}
			}
			out = append(out, p)
		}
	}
	return out
}

func relocate(p spec.Problem, line int) spec.Problem {
	p.Origin.Line += line - 1
	return p
}

// differ returns the documents of the old file that the new one does not have in the same place, and the reverse.
func differ(old, new *file) (removed, added []docAt) {
	lines := map[*content]int{}
	if old != nil {
		for _, d := range old.docs {
			lines[d.content] = d.line
		}
	}
	for _, d := range new.docs {
		if line, ok := lines[d.content]; ok && line == d.line {
			delete(lines, d.content)
			continue
		}
		added = append(added, docAt{new.path, d.line, d.content})
	}
	if old != nil {
		for _, d := range old.docs {
			if _, ok := lines[d.content]; ok {
				removed = append(removed, docAt{old.path, d.line, d.content})
			}
		}
	}
	return removed, added
}

func (u *update) removeDoc(d docAt) {
	for _, o := range d.objects {
		u.link(u.objects[o.id], o, nil)
		remove(&u.undo, u.objects, o.id)
	}
	if d.config != nil {
		remove(&u.undo, u.configs, d.content)
	}
	if len(d.notices) > 0 {
		remove(&u.undo, u.noticed, d.content)
	}
	if d.lock {
		remove(&u.undo, u.locks, d.content)
	}
	for k, n := range d.skipped {
		if left := u.skipped[k] - n; left > 0 {
			put(&u.undo, u.skipped, k, left)
		} else {
			remove(&u.undo, u.skipped, k)
		}
	}
}

func (u *update) addDoc(d docAt) {
	for _, o := range d.objects {
		p := &placed{o, d}
		if other, ok := u.objects[o.id]; ok {
			if len(u.twice[o.id]) == 0 {
				u.twice[o.id] = []*placed{other}
			}
			u.twice[o.id] = append(u.twice[o.id], p)
			continue
		}
		put(&u.undo, u.objects, o.id, p)
		u.link(nil, o, p)
	}
	if d.config != nil {
		put(&u.undo, u.configs, d.content, d)
	}
	if len(d.notices) > 0 {
		put(&u.undo, u.noticed, d.content, d)
	}
	if d.lock {
		put(&u.undo, u.locks, d.content, d)
	}
	for k, n := range d.skipped {
		put(&u.undo, u.skipped, k, u.skipped[k]+n)
	}
}

// settleTwice reports objects that are declared more than once. The first, in the order of files and lines, counts.
func (u *update) settleTwice() {
	for id, all := range u.twice {
		slices.SortFunc(all, func(a, b *placed) int { return compareOrigins(a.origin(), b.origin()) })
		for _, p := range all[1:] {
			field := "metadata.name"
			if id.kind == kindLocked {
				field = "name"
			}
			u.problem(p, field, fmt.Sprintf("is declared already at %s", all[0].origin()))
		}
		if now := u.objects[id]; now != all[0] {
			u.link(now, now.object, nil)
			put(&u.undo, u.objects, id, all[0])
			u.link(nil, all[0].object, all[0])
		}
	}
}

func compareOrigins(a, b spec.Origin) int {
	return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line))
}

// link replaces an object in the entry of its Service; nil is for none.
func (u *update) link(old *placed, o *object, new *placed) {
	switch o.id.kind {
	case kindNode:
		u.nodes = true
	case kindService:
		u.edit(o.id.name, func(e *entry) { e.service = new })
	case kindEndpoints:
		u.edit(o.id.name, func(e *entry) { e.endpoints = new })
	case kindLocked:
		u.edit(o.id.name, func(e *entry) { e.pin = new })
	case kindSlice:
		if o.sliceOf == "" {
			return
		}
		u.edit(spec.Name{Namespace: o.id.name.Namespace, Name: o.sliceOf}, func(e *entry) {
			e.slices = slices.DeleteFunc(slices.Clone(e.slices), func(p *placed) bool { return p == old })
			if new != nil {
				e.slices = append(e.slices, new)
				slices.SortFunc(e.slices, func(a, b *placed) int { return strings.Compare(a.id.name.Name, b.id.name.Name) })
			}
		})
	}
}

func (u *update) edit(name spec.Name, change func(*entry)) {
	u.dirty[name] = true
	var e entry
	if old := u.entries[name]; old != nil {
		e = *old
	}
	change(&e)
	if e.service == nil && e.endpoints == nil && len(e.slices) == 0 && e.pin == nil {
		remove(&u.undo, u.entries, name)
		return
	}
	put(&u.undo, u.entries, name, &e)
}

// problem reports what is wrong with an object in its surroundings.
func (u *update) problem(p *placed, field, detail string) {
	o := p.origin()
	if u.lookups < maxLookups && p.at.raw != nil && len(p.at.objects) == 1 && field != "" {
		u.lookups++
		o.Line = yamlpos.Line(p.at.raw, p.at.line, field)
	}
	u.problems = append(u.problems, spec.Problem{Origin: o, Object: p.id.String(), Field: field, Detail: detail})
}

// settings returns the configuration that is in force, reporting what contradicts it.
func (u *update) settings() (snap spec.Snapshot) {
	snap.Config, snap.Weir = defaultConfig, spec.DefaultWeirConfiguration()
	all := slices.SortedFunc(maps.Values(u.configs), func(a, b docAt) int {
		return compareOrigins(spec.Origin{File: a.path, Line: a.line}, spec.Origin{File: b.path, Line: b.line})
	})
	var proxy, weir *docAt
	for i := range all {
		d := &all[i]
		first, kind := &proxy, "KubeProxyConfiguration"
		if d.config.weir != nil {
			first, kind = &weir, "WeirConfiguration"
		}
		if *first != nil {
			u.problems = append(u.problems, spec.Problem{
				Origin: d.origin(), Object: kind, Detail: fmt.Sprintf("is the second; the first is at %s. Keep one, or name the file of one with --config", (*first).origin()),
			})
			continue
		}
		*first = d
		switch {
		case d.config.weir != nil:
			snap.Weir = *d.config.weir
		case d.config.proxy != nil:
			snap.Config, snap.ConfigOrigin = d.config.proxy.KubeProxyConfiguration, d.origin()
			snap.UDPIdleTimeout = d.config.proxy.UDPIdleTimeout
		}
	}
	if u.opts.ConfigFile != "" && proxy == nil {
		u.problems = append(u.problems, spec.Problem{Origin: spec.Origin{File: u.opts.ConfigFile}, Detail: "is named with --config and has no KubeProxyConfiguration"})
	}
	if u.opts.Weir != nil {
		u.opts.Weir(&snap.Weir)
	}
	if w := &snap.Weir; w.NodePortMin == 0 || w.NodePortMin > w.NodePortMax {
		u.problems = append(u.problems, spec.Problem{Object: "WeirConfiguration", Field: "nodePortRange", Detail: fmt.Sprintf("%d-%d is not a port range", w.NodePortMin, w.NodePortMax)})
		w.NodePortMin, w.NodePortMax = 30000, 32767
	}
	return snap
}

func (d *docAt) origin() spec.Origin {
	line := d.line
	if d.config != nil {
		line += d.config.line - 1
	}
	return spec.Origin{File: d.path, Line: line}
}

// finish completes the Services and returns the Snapshot, which counts only if there are no problems.
func (u *update) finish(rev spec.Revision) *spec.Snapshot {
	snap := u.settings()
	snap.Revision = rev
	if u.last == nil || !slices.Equal(u.last.Weir.ServiceCIDRs, snap.Weir.ServiceCIDRs) || u.pools.min != snap.Weir.NodePortMin || u.pools.max != snap.Weir.NodePortMax {
		assign(&u.undo, &u.pools, newPools(&snap.Weir))
		assign(&u.undo, &u.needs, map[spec.Name]needs{})
		for name := range u.entries {
			u.dirty[name] = true
		}
	}
	if u.last != nil && u.locked() != (len(u.last.Locks) > 0) {
		for name := range u.entries {
			u.dirty[name] = true // for their notices
		}
	}
	u.allocate()
	if len(u.problems) == 0 && !snap.Weir.AllowEmpty && !u.anyService() {
		u.problems = append(u.problems, spec.Problem{Detail: "there is no Service in the input" + u.skippedSummary() + "; if nothing is what should be programmed, say so with --allow-empty"})
	}
	if len(u.problems) > 0 {
		return nil
	}
	u.registerVIPs()
	assign(&u.undo, &u.tree, u.build())
	snap.Notices = u.notices()
	snap.Skipped = maps.Clone(u.skipped)
	snap.Nodes = u.nodeMap()
	snap.Locks = u.lockOrigins()
	return snap.WithServices(u.tree)
}

func (u *update) anyService() bool {
	for name := range u.dirty {
		if e := u.entries[name]; e != nil && e.service != nil {
			return true
		}
	}
	for _, e := range u.entries { // the first one that is not new ends it
		if e.service != nil {
			return true
		}
	}
	return false
}

func (u *update) skippedSummary() string {
	if len(u.skipped) == 0 {
		return ""
	}
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(u.skipped)) {
		if parts = append(parts, fmt.Sprintf("%d %s", u.skipped[k], k)); len(parts) == 10 {
			break
		}
	}
	return " (of other kinds: " + strings.Join(parts, ", ") + ")"
}

func (u *update) nodeMap() map[string]*corev1.Node {
	if !u.nodes && u.last != nil {
		return u.last.Nodes
	}
	nodes := map[string]*corev1.Node{}
	for id, p := range u.objects {
		if id.kind == kindNode {
			nodes[id.name.Name] = p.node
		}
	}
	return nodes
}

// notices collects those that belong to no Service.
func (u *update) notices() []spec.Problem {
	var out []spec.Problem
	for _, d := range u.noticed {
		for _, n := range d.notices {
			out = append(out, relocate(n, d.line))
		}
	}
	for name := range u.orphan {
		e := u.entries[name]
		if e.pin != nil {
			out = append(out, spec.Problem{Origin: e.pin.origin(), Object: e.pin.id.String(), Code: spec.CodeStaleLock,
				Detail: "pins values for a Service that is not in the input: weir allocate --write drops it"})
		}
		p := e.endpoints
		if len(e.slices) > 0 {
			p = e.slices[0]
		}
		if p == nil {
			continue
		}
		out = append(out, spec.Problem{Origin: p.origin(), Object: p.id.String(), Detail: fmt.Sprintf("belongs to Service %s, which is not in the input", name), Code: spec.CodeOrphan})
	}
	sortProblems(out)
	return out
}

func sortProblems(problems []spec.Problem) {
	slices.SortFunc(problems, func(a, b spec.Problem) int {
		return cmp.Or(compareOrigins(a.Origin, b.Origin), strings.Compare(a.Object, b.Object), strings.Compare(a.Field, b.Field), strings.Compare(a.Detail, b.Detail))
	})
}

func (u *update) sortedProblems() spec.Problems {
	u.hintAtKustomize()
	sortProblems(u.problems)
	u.problems = slices.Compact(u.problems)
	if more := len(u.problems) - maxProblems; more > 0 {
		u.problems = append(u.problems[:maxProblems:maxProblems], spec.Problem{Detail: fmt.Sprintf("and %d more problems", more)})
	}
	return u.problems
}

// hintAtKustomize says what to do about problems with files that a kustomization is to put together: patches are parts of
// objects, and overlays declare one object several times.
func (u *update) hintAtKustomize() {
	for i := range u.problems {
		p := &u.problems[i]
		dir := filepath.Dir(p.Origin.File)
		for _, name := range []string{"kustomization.yaml", "kustomization.yml"} {
			beside := filepath.Join(dir, name)
			if _, ok := u.files[beside]; ok && p.Origin.File != "" && p.Origin.File != beside {
				p.Detail += fmt.Sprintf(" (%s is beside it: give weir what kustomize build makes of it)", name)
				break
			}
		}
	}
}

func (u *update) delta(snap *spec.Snapshot) spec.Delta {
	if u.last == nil {
		return spec.Delta{All: true}
	}
	return spec.Delta{
		Services: u.changed,
		Config:   !sameSettings(u.last, snap),
		Nodes:    u.nodes && !sameNodes(u.last.Nodes, snap.Nodes),
	}
}
