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

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/document"
)

const (
	// maxProblems limits the problems that one Update reports.
	maxProblems = 1000
)

// update is one running Update of a Set.
type update struct {
	*Set
	undo
	problems []spec.Problem

	dirty map[dataplane.ServiceName]bool // Services to complete again
	// subnetNotices are about ClusterConfigurations that differ.
	subnetNotices []spec.Notice
	// kubeletNotices are about KubeletConfigurations that differ.
	kubeletNotices []spec.Notice
	nodes          bool // some Node changed
	// twice holds the objects that were declared more than once.
	twice map[objectID][]*placed
	// contestedIPs and contestedPorts hold the Services that set the same value.
	contestedIPs   map[netip.Addr][]dataplane.ServiceName
	contestedPorts map[uint16][]dataplane.ServiceName

	changed []dataplane.ServiceName // Services that changed
	// dirtyPods and dirtyTemplates are those of documents that came or went, and changedPods and changedTemplates those of them
	// that changed.
	dirtyPods, dirtyTemplates     map[dataplane.ServiceName]bool
	changedPods, changedTemplates []dataplane.ServiceName
	// unread are the files that cannot be read.
	unread map[string]bool
	// sameConfigs are the notices of configurations that are there twice.
	sameConfigs []spec.Notice
	// skips is the change of skipped.
	skips map[string]int
	valid *spec.Snapshot // the configuration, if there is one and it is valid
}

func newUpdate(s *Set) *update {
	return &update{
		Set: s, dirty: map[dataplane.ServiceName]bool{}, twice: map[objectID][]*placed{},
		dirtyPods: map[dataplane.ServiceName]bool{}, dirtyTemplates: map[dataplane.ServiceName]bool{},
		skips: map[string]int{}, unread: map[string]bool{},
		contestedIPs: map[netip.Addr][]dataplane.ServiceName{}, contestedPorts: map[uint16][]dataplane.ServiceName{},
	}
}

// replace edits the indexes of objects.
func (u *update) replace(files []File, parsed []*file) {
	assign(&u.undo, &u.leftFiles, u.leftFiles)
	var removed, added []docAt
	var damaged []damagedFile
	wasAside := maps.Clone(u.asides)
	flipped := u.countAside(parsed)
	for i, f := range parsed {
		if files[i].Fault != nil {
			u.problems, u.unread[f.path] = append(u.problems, *files[i].Fault), true
			continue
		}
		aside := isAside(u.asides, f.path)
		delete(flipped, f.key)
		if f.broken != nil && !aside {
			u.problems = append(u.problems, *f.broken)
			continue
		}
		old := u.files[f.key]
		if !aside {
			faults := slices.Concat(f.problems(), f.brokenSince(old))
			u.problems = append(u.problems, faults...)
			if at, ok := f.damage(); ok && old != nil && len(faults) == 0 {
				damaged = append(damaged, damagedFile{at, old})
			}
		}
		u.countFile(old, -1)
		u.countFile(f, 1)
		r, a := differ(old.counted(isAside(wasAside, f.path)), f.counted(aside))
		removed, added = append(removed, r...), append(added, a...)
		if files[i].Data == nil && files[i].Skipped == nil {
			remove(&u.undo, u.files, f.key)
		} else {
			put(&u.undo, u.files, f.key, f)
		}
	}
	for path := range flipped { // files that became patches, or are none any more
		f := u.files[path]
		if f == nil {
			continue
		}
		if !isAside(u.asides, path) {
			if f.broken != nil {
				u.problems = append(u.problems, *f.broken)
			}
			u.problems = append(u.problems, f.problems()...)
		}
		r, a := differ(f.counted(isAside(wasAside, path)), f.counted(isAside(u.asides, path)))
		removed, added = append(removed, r...), append(added, a...)
	}
	for _, d := range removed { // all removals first, because an object may have moved to another file
		u.removeDoc(d)
	}
	for _, d := range added {
		u.addDoc(d)
	}
	for _, f := range damaged {
		u.held(f)
	}
}

// problems returns the problems of each document by itself. For an unrendered template it returns only that problem.
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

// differ returns the documents that only the old file has at their place, and those that only the new file has.
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
		u.removeObject(o)
	}
	u.countUnchosen(d, -1)
	u.tellPods(d, false)
	if d.config != nil {
		remove(&u.undo, u.configs, d.content)
	}
	if len(d.notices) > 0 {
		remove(&u.undo, u.noticed, d.content)
	}
	if d.lock {
		remove(&u.undo, u.locks, d.content)
	}
	if d.chart {
		remove(&u.undo, u.charts, d.content)
	}
	if d.kustomization != nil {
		remove(&u.undo, u.kustomizations, d.content)
	}
}

func (u *update) addDoc(d docAt) {
	for _, o := range d.objects {
		p := &placed{o, d}
		if other, ok := u.objects[o.id]; ok {
			if len(u.twice[o.id]) == 0 {
				u.twice[o.id] = append([]*placed{other}, u.spares[o.id]...)
			}
			u.twice[o.id] = append(u.twice[o.id], p)
			continue
		}
		put(&u.undo, u.objects, o.id, p)
		u.link(nil, o, p)
	}
	u.countUnchosen(d, 1)
	u.tellPods(d, true)
	if d.config != nil {
		put(&u.undo, u.configs, d.content, d)
	}
	if len(d.notices) > 0 {
		put(&u.undo, u.noticed, d.content, d)
	}
	if d.lock {
		put(&u.undo, u.locks, d.content, d)
	}
	if d.chart {
		put(&u.undo, u.charts, d.content, d)
	}
	if d.kustomization != nil {
		put(&u.undo, u.kustomizations, d.content, d)
	}
}

func compareOrigins(a, b spec.Origin) int {
	return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line))
}

// link replaces an object in the entry of its Service; nil means no object.
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
	case kindGKEPolicy, kindAzurePolicy:
		if o.policy.service == (dataplane.ServiceName{}) {
			return
		}
		u.edit(o.policy.service, func(e *entry) {
			e.policies = slices.DeleteFunc(slices.Clone(e.policies), func(p *placed) bool { return p == old })
			if new != nil {
				e.policies = append(e.policies, new)
				slices.SortFunc(e.policies, comparePolicies)
			}
		})
	case kindSlice:
		if o.sliceOf == "" {
			return
		}
		u.edit(dataplane.ServiceName{Namespace: o.id.name.Namespace, Name: o.sliceOf}, func(e *entry) {
			e.slices = slices.DeleteFunc(slices.Clone(e.slices), func(p *placed) bool { return p == old })
			if new != nil {
				e.slices = append(e.slices, new)
				slices.SortFunc(e.slices, func(a, b *placed) int { return strings.Compare(a.id.name.Name, b.id.name.Name) })
			}
		})
	}
}

func (u *update) edit(name dataplane.ServiceName, change func(*entry)) {
	u.dirty[name] = true
	var e entry
	if old := u.entries[name]; old != nil {
		e = *old
	}
	change(&e)
	if e.service == nil && e.endpoints == nil && len(e.slices)+len(e.policies) == 0 && e.pin == nil {
		remove(&u.undo, u.entries, name)
		return
	}
	put(&u.undo, u.entries, name, &e)
}

// problem reports a problem of an object together with others.
func (u *update) problem(p *placed, field, detail string) {
	o := p.origin()
	// Finding the line of a field means parsing the document again. This is worth it only for problems that are shown.
	if t := p.at.text; len(u.problems) < maxProblems && t.Data != nil && len(p.at.objects) == 1 && field != "" {
		t.Line = p.at.line
		o.Line = document.Parse(t).Line(field)
	}
	u.problems = append(u.problems, spec.Problem{Origin: o, Object: p.id.String(), Field: field, Detail: detail})
}

// settings returns the configuration in force, and reports contradictions.
func (u *update) settings() (snap spec.Snapshot) {
	snap.Config, snap.Weir = defaultConfig, spec.DefaultWeirConfiguration()
	all := slices.SortedFunc(maps.Values(u.configs), func(a, b docAt) int {
		return compareOrigins(spec.Origin{File: a.path, Line: a.line}, spec.Origin{File: b.path, Line: b.line})
	})
	var proxy, weir *docAt
	for i := range all {
		d := &all[i]
		if d.config.subnets != nil || d.config.kubelet != nil {
			continue
		}
		first, kind := &proxy, "KubeProxyConfiguration"
		if d.config.weir != nil {
			first, kind = &weir, "WeirConfiguration"
		}
		if *first != nil && (*first).body == d.body {
			u.sameConfigs = append(u.sameConfigs, sameDocument(d.origin(), kind, (*first).origin()))
			continue
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
			snap.Weir, snap.WeirOrigin = *d.config.weir, d.origin()
		case d.config.proxy != nil:
			snap.Config, snap.ConfigOrigin = d.config.proxy.KubeProxyConfiguration, d.origin()
			snap.UDPIdleTimeout, snap.MinSyncPeriodGiven = d.config.proxy.UDPIdleTimeout, d.config.proxy.MinSyncPeriodGiven
		}
	}
	if u.opts.ConfigFile != "" && proxy == nil && !u.unread[u.opts.ConfigFile] {
		u.problems = append(u.problems, spec.Problem{Origin: spec.Origin{File: u.opts.ConfigFile}, Detail: "is named with --config and has no KubeProxyConfiguration"})
	}
	u.checkLock()
	if subnets := u.serviceSubnets(); subnets != nil && !snap.Weir.ServiceCIDRsGiven {
		snap.Weir.ServiceCIDRs, snap.Weir.ServiceCIDRsGiven = subnets, true
	}
	if k := u.kubeletNames(); k != nil {
		snap.Weir.DNS.ClusterIPs = k.addrs
		if k.domain != "" && snap.Weir.DNS.ClusterDomain == spec.DefaultWeirConfiguration().DNS.ClusterDomain {
			snap.Weir.DNS.ClusterDomain = k.domain
		}
	}
	snap.Weir = u.opts.Overrides.Apply(snap.Weir)
	if demanded := snap.Weir.AllowedSigners; u.signers != nil && demanded != "" && demanded != *u.signers {
		u.problems = append(u.problems, spec.Problem{Origin: snap.WeirOrigin, Object: "WeirConfiguration", Field: "allowedSigners",
			Detail: "cannot be followed from here, such as from a kustomization or standard input; have the WeirConfiguration in a file of its own outside of what it is to check, and give that with -f or --config"})
	}
	if snap.Weir.ServiceCIDRsGiven {
		u.subnetNotices = slices.DeleteFunc(u.subnetNotices, func(spec.Notice) bool { return true }) // it does not matter
	}
	if w := &snap.Weir; w.NodePortMin == 0 || w.NodePortMin > w.NodePortMax {
		u.problems = append(u.problems, spec.Problem{Object: "WeirConfiguration", Field: "nodePortRange", Detail: fmt.Sprintf("%d-%d is not a port range", w.NodePortMin, w.NodePortMax)})
		w.NodePortMin, w.NodePortMax = 30000, 32767
	}
	return snap
}

// configured reports whether there is a configuration, and each document of it is valid by itself.
func (u *update) configured() bool {
	for _, d := range u.configs {
		if len(d.problems) > 0 {
			return false
		}
	}
	return len(u.configs) > 0
}

func (d *docAt) origin() spec.Origin {
	line := d.line
	if d.config != nil {
		line += d.config.line - 1
	}
	return spec.Origin{File: d.path, Line: line}
}

// finish completes the Services and returns the Snapshot, which is valid only if there are no problems.
func (u *update) finish(rev spec.Revision) *spec.Snapshot {
	before := len(u.problems)
	snap := u.settings()
	if len(u.problems) == before && u.configured() {
		u.valid = &spec.Snapshot{Config: snap.Config, ConfigOrigin: snap.ConfigOrigin, Weir: snap.Weir, WeirOrigin: snap.WeirOrigin}
	}
	snap.Revision = rev
	if u.last == nil || !slices.Equal(u.last.Weir.ServiceCIDRs, snap.Weir.ServiceCIDRs) || u.last.Weir.ServiceCIDRsGiven != snap.Weir.ServiceCIDRsGiven || u.pools.min != snap.Weir.NodePortMin || u.pools.max != snap.Weir.NodePortMax {
		assign(&u.undo, &u.pools, newPools(&snap.Weir))
		assign(&u.undo, &u.needs, map[dataplane.ServiceName]needs{})
		for name := range u.entries {
			u.dirty[name] = true
		}
	}
	if u.last != nil && u.locked() != (len(u.last.Locks) > 0) {
		for name := range u.entries {
			u.dirty[name] = true // because their notices may change
		}
	}
	u.allocate()
	if len(u.problems) == 0 && !snap.Weir.AllowEmpty && !u.anyService() {
		u.problems = append(u.problems, spec.Problem{Detail: "there is no Service in the input" + u.skippedSummary() + "; if nothing is what should be programmed, say so with --allow-empty"})
		u.problems = append(u.problems, u.setAside()...)
	}
	if len(u.problems) > 0 {
		return nil
	}
	services, loose := u.build()
	assign(&u.undo, &u.services, services)
	assign(&u.undo, &u.slices, loose)
	assign(&u.undo, &u.runningPods, u.runningPods)
	assign(&u.undo, &u.podTemplates, u.podTemplates)
	u.runningPods, u.changedPods = retold(u.runningPods, u.podsTold, u.dirtyPods, func(p *corev1.Pod, _ int) *corev1.Pod { return p })
	u.podTemplates, u.changedTemplates = retold(u.podTemplates, u.templatesTold, u.dirtyTemplates, relocated)
	snap.Pods, snap.Templates = u.runningPods, u.podTemplates
	snap.Services, snap.Slices = services, loose
	snap.Notices = u.notices()
	snap.Skipped, snap.SkippedDocuments, snap.SkippedFiles = maps.Clone(u.skipped), u.left, u.leftFiles
	snap.Nodes = u.nodeMap()
	snap.Locks = u.lockOrigins()
	snap.Silenced = u.silenced()
	return &snap
}

func (u *update) anyService() bool {
	for name := range u.dirty {
		if e := u.entries[name]; e != nil && e.service != nil {
			return true
		}
	}
	for _, e := range u.entries { // stops at the first one that is not new
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
	var parts, kinds []string
	for _, k := range slices.Sorted(maps.Keys(u.skipped)) {
		if k == spec.SkippedUnchosen {
			parts = append(parts, fmt.Sprintf("not chosen: %d", u.skipped[k]))
		} else if kinds = append(kinds, fmt.Sprintf("%d %s", u.skipped[k], k)); len(kinds) == 10 {
			break
		}
	}
	if len(kinds) > 0 {
		parts = append(parts, "of other kinds: "+strings.Join(kinds, ", "))
	}
	return " (" + strings.Join(parts, "; ") + ")"
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

// notices collects the notices that belong to no Service.
func (u *update) notices() []spec.Notice {
	out := slices.Concat(u.subnetNotices, u.kubeletNotices, u.kustomizationNotices(), u.chartNotices(), u.notReadNotices())
	for _, d := range u.noticed {
		for _, n := range d.notices {
			out = append(out, relocate(n, d.line))
		}
	}
	out = append(out, u.sameConfigs...)
	for _, faults := range u.badHeads {
		out = append(out, faults...)
	}
	for id, spares := range u.spares {
		for _, p := range spares {
			out = append(out, sameDocument(p.origin(), id.String(), u.objects[id].origin()))
		}
	}
	for name := range u.unusedPins {
		e := u.entries[name]
		if e == nil || e.pin == nil { // this Update is refused, so that nothing was built
			continue
		}
		pin := e.pin
		out = append(out, spec.StaleLock.Notice(pin.origin(), pin.id.String(), "",
			"pins values for a Service that is not in the input: weir allocate --write drops it"))
	}
	for name := range u.strayPolicies {
		if e := u.entries[name]; e != nil {
			for _, p := range e.policies {
				out = append(out, spec.ProbeNotUsed.Notice(p.origin(), p.id.String(), "spec.targetRef",
					fmt.Sprintf("is for Service %s, which is not in the input", name)))
			}
		}
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

// hintAtKustomize adds advice to problems in files that are parts of a kustomization. Patches are incomplete objects,
// and overlays declare an object several times.
func (u *update) hintAtKustomize() {
	if len(u.problems) == 0 {
		return // a change is not to cost a look at all files
	}
	built := map[string]bool{} // directories given with -k
	for key := range u.files {
		if _, dir, rendered := strings.Cut(key, "\x00"); rendered {
			built[filepath.Clean(dir)] = true
		}
	}
	for i := range u.problems {
		p := &u.problems[i]
		dir := filepath.Dir(p.Origin.File)
		if built[dir] {
			continue
		}
		for _, name := range kustomizationNames {
			beside := filepath.Join(dir, name)
			if _, ok := u.files[beside]; ok && p.Origin.File != "" && p.Origin.File != beside {
				p.Detail += fmt.Sprintf(" (%s is beside it: build it with -k %s)", name, dir)
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
		Services: u.changed, Pods: u.changedPods, Templates: u.changedTemplates,
		Config: !sameSettings(u.last, snap),
		Nodes:  u.nodes && !sameNodes(u.last.Nodes, snap.Nodes),
	}
}
