package manifest

//lint:file-ignore SA1019 people still write the deprecated fields of kustomizations

import (
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"

	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/kustomize/api/types"

	"weir/spec"
	"weir/spec/document"
)

// A tree that is read as it is written may hold kustomizations. Nothing builds them here. But a file that one names as a
// patch, or as data, is no object; and a kustomization that changes objects that a Set reads is told.

// kustomizationGroup is the API group of kustomizations. Flux has a kind of the same name in another.
const kustomizationGroup = "kustomize.config.k8s.io"

var kustomizationNames = []string{"kustomization.yaml", "kustomization.yml", "Kustomization"}

// kustomization is what a Set needs to know of one.
type kustomization struct {
	line int // from the beginning of the document, counted from 1
	types.Kustomization
}

// kustomization takes a kustomization.
func (d *decoding) kustomization(at *document.Document) {
	d.skip(spec.SkippedKustomization, at.Start())
	k := &kustomization{line: at.Start()}
	if err := k.Unmarshal(at.JSON()); err == nil { // else it is one for kustomize to complain about
		k.FixKustomization()
		d.out.kustomization = k
	}
}

// isKustomization reports whether an object is a kustomization, by its file or its kind.
func (d *decoding) isKustomization(apiVersion, kind string) bool {
	if d.text.OneLine {
		return false // it is what one rendered
	}
	group, _, _ := strings.Cut(apiVersion, "/")
	named := slices.Contains(kustomizationNames, filepath.Base(d.path))
	return named && (group == "" || group == kustomizationGroup) && (kind == "" || kind == types.KustomizationKind || kind == types.ComponentKind) ||
		group == kustomizationGroup
}

// aside returns the files, relative to the kustomization, that it names as patches or as data.
func (k *kustomization) aside() []string {
	var all []string
	for _, p := range slices.Concat(k.Patches, k.PatchesJson6902) {
		all = append(all, p.Path)
	}
	for _, p := range k.PatchesStrategicMerge {
		all = append(all, string(p))
	}
	for _, r := range k.Replacements {
		all = append(all, r.Path)
	}
	var data []types.KvPairSources
	for _, g := range k.ConfigMapGenerator {
		data = append(data, g.KvPairSources)
	}
	for _, g := range k.SecretGenerator {
		data = append(data, g.KvPairSources)
	}
	for _, s := range data {
		for _, f := range s.FileSources {
			if _, value, ok := strings.Cut(f, "="); ok {
				f = value
			}
			all = append(all, f)
		}
	}
	return slices.DeleteFunc(all, func(p string) bool { return p == "" || strings.ContainsAny(p, "\n{") || path.IsAbs(p) })
}

// chartValues is the pattern of the values of a Helm chart, beside its Chart.yaml. They are no objects.
const chartValues = "values*"

// isAside reports whether a file is no object: it is counted by its path, or as the values of a chart.
func isAside(asides map[string]int, file string) bool {
	return asides[file] > 0 || isValues(file) && asides[filepath.Join(filepath.Dir(file), chartValues)] > 0
}

// isValues reports whether a file has the name of a chart's values.
func isValues(file string) bool { return strings.HasPrefix(filepath.Base(file), "values") }

// asideOf returns the paths of the files that the kustomizations of a file name as patches or as data, without those
// that they name as resources too, and the pattern of the values if it describes a chart.
func (f *file) asideOf() []string {
	if f == nil || f.rendered {
		return nil
	}
	var all []string
	for _, d := range f.docs {
		if d.chart {
			all = append(all, filepath.Join(filepath.Dir(f.path), chartValues))
		}
		if k := d.kustomization; k != nil {
			for _, p := range k.aside() {
				if !slices.Contains(k.Resources, p) {
					all = append(all, filepath.Join(filepath.Dir(f.path), p))
				}
			}
		}
	}
	return all
}

// countAside updates the files that are no objects, and returns those for which that changed.
func (u *update) countAside(parsed []*file) (flipped map[string]bool) {
	flipped = map[string]bool{}
	count := func(paths []string, by int) {
		for _, p := range paths {
			n := u.asides[p] + by
			if (n > 0) != (u.asides[p] > 0) {
				flipped[p] = !flipped[p]
			}
			if n > 0 {
				put(&u.undo, u.asides, p, n)
			} else {
				remove(&u.undo, u.asides, p)
			}
		}
	}
	for _, f := range parsed {
		count(u.files[f.key].asideOf(), -1)
		count(f.asideOf(), 1)
	}
	maps.DeleteFunc(flipped, func(_ string, is bool) bool { return !is })
	for pattern := range flipped {
		if dir, name := filepath.Split(pattern); name == chartValues {
			delete(flipped, pattern)
			for key, f := range u.files { // seldom, since charts seldom come or go
				if !f.rendered && isValues(key) && filepath.Dir(key) == filepath.Clean(dir) {
					flipped[key] = true
				}
			}
		}
	}
	return flipped
}

// counted returns the file with the documents that count: none for a patch.
func (f *file) counted(isAside bool) *file {
	if f == nil || !isAside || f.rendered {
		return f
	}
	return &file{key: f.key, path: f.path}
}

// changesOf returns the names of what a kustomization in a directory does to objects, without repetition.
func (u *update) changesOf(dir string, k *kustomization, objects []*object, seen map[string]bool) []string {
	anyOf := func(is func(*object) bool) bool { return slices.ContainsFunc(objects, is) }
	some := len(objects) > 0
	selectors := len(k.CommonLabels) > 0
	for _, l := range k.Labels {
		selectors = selectors || l.IncludeSelectors
	}
	var names []string
	add := func(name string, is bool) {
		if is && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	add("namespace", k.Namespace != "" && anyOf(func(o *object) bool { return o.id.kind != kindNode && o.id.name.Namespace != k.Namespace }))
	add("namePrefix", k.NamePrefix != "" && some)
	add("nameSuffix", k.NameSuffix != "" && some)
	labels, annotations := u.marks(k)
	add("labels", selectors && anyOf(func(o *object) bool { return o.service != nil }) || labels && some) // a selector is added where there is none
	add("annotations", annotations && some)
	for _, p := range slices.Concat(k.Patches, k.PatchesJson6902) {
		ofOurs := p.Target == nil && u.patchOfOurs(dir, p.Path, p.Patch) || p.Target != nil && kindSelected(p.Target.Kind, objects)
		add("patches", ofOurs && some)
	}
	for _, p := range k.PatchesStrategicMerge {
		add("patches", some && (u.patchOfOurs(dir, string(p), "") || u.patchOfOurs(dir, "", string(p))))
	}
	for _, r := range k.Replacements {
		for _, t := range r.Targets {
			add("replacements", t != nil && t.Select != nil && some && kindSelected(t.Select.Kind, objects))
		}
	}
	add("Helm charts", len(k.HelmCharts) > 0)
	add("plugins", len(k.Transformers) > 0 && some || len(k.Generators) > 0)
	for _, c := range k.Components {
		at := filepath.Join(dir, c)
		if file, component := u.kustomizationAt(at); component != nil && !seen[file] {
			seen[file] = true
			for _, name := range u.changesOf(at, component, objects, seen) {
				add(name, true)
			}
		}
	}
	return names
}

// marks reports whether a kustomization sets labels and annotations by which an object is read or resolved otherwise.
func (u *update) marks(k *kustomization) (labels, annotations bool) {
	matters := func(set map[string]string, kept map[string]bool, more ...string) bool {
		for key := range set {
			if kept[key] || strings.HasPrefix(key, ownPrefix) || slices.Contains(more, key) {
				return true
			}
		}
		return false
	}
	sets := []map[string]string{k.CommonLabels}
	for _, l := range k.Labels {
		sets = append(sets, l.Pairs)
	}
	for _, set := range sets {
		labels = labels || len(set) > 0 && u.decoder.selector != nil || matters(set, keptLabels, discoveryv1.LabelServiceName)
	}
	return labels, matters(k.CommonAnnotations, keptAnnotations, addressAnnotations[:]...)
}

// kindSelected reports whether a selector of kinds, which is a regular expression, may select one of the objects.
func kindSelected(kind string, objects []*object) bool {
	return kind == "" || strings.ContainsAny(kind, ".|*[(") || slices.ContainsFunc(objects, func(o *object) bool { return o.id.kind.String() == kind })
}

// patchOfOurs reports whether a patch, which is in a file or given as text, is for a kind that a Set reads.
func (u *update) patchOfOurs(dir, file, text string) bool {
	if file != "" && !strings.Contains(file, "\n") {
		f := u.files[filepath.Join(dir, file)]
		return f != nil && slices.ContainsFunc(f.docs, func(d doc) bool { return d.ours })
	}
	return text != "" && mayBeOurs([]byte(text), false)
}

// kustomizationAt returns the kustomization of a directory and the path of its file.
func (u *update) kustomizationAt(dir string) (string, *kustomization) {
	for _, name := range kustomizationNames {
		file := filepath.Join(dir, name)
		if f := u.files[file]; f != nil {
			for _, d := range f.docs {
				if d.kustomization != nil {
					return file, d.kustomization
				}
			}
		}
	}
	return "", nil
}

// reached returns the objects that a kustomization names, and those of the kustomizations that it names.
func (u *update) reached(dir string, k *kustomization, seen map[string]bool) []*object {
	var all []*object
	for _, r := range k.Resources {
		at := filepath.Join(dir, r)
		if seen[at] {
			continue
		}
		seen[at] = true
		if f := u.files[at]; f != nil {
			for _, d := range f.docs {
				for _, o := range d.objects {
					if o.id.kind != kindLocked {
						all = append(all, o)
					}
				}
			}
		} else if _, base := u.kustomizationAt(at); base != nil {
			all = append(all, u.reached(at, base, seen)...)
		}
	}
	return all
}

// kustomizationNotices tells of each kustomization that changes objects that are read as they are written. Its cost
// depends on the kustomizations of the input and what they name.
func (u *update) kustomizationNotices() []spec.Notice {
	var out []spec.Notice
	for _, d := range u.kustomizations {
		k, dir := d.kustomization, filepath.Dir(d.path)
		changes := u.changesOf(dir, k, u.reached(dir, k, map[string]bool{}), map[string]bool{})
		if len(changes) > 0 {
			out = append(out, spec.KustomizationNotBuilt.Notice(spec.Origin{File: d.path, Line: d.line + k.line - 1}, spec.SkippedKustomization, "",
				fmt.Sprintf("changes objects that are read here as they are written (%s): give its directory with -k %s instead of -f", strings.Join(changes, ", "), dir)))
		}
	}
	return out
}

// chartNotices tells of all Helm charts in one notice.
func (u *update) chartNotices() []spec.Notice {
	if len(u.charts) == 0 {
		return nil
	}
	all := slices.SortedFunc(maps.Values(u.charts), func(a, b docAt) int { return strings.Compare(a.path, b.path) })
	what, dir := "1 Helm chart is", filepath.Dir(all[0].path)
	if len(all) > 1 {
		what = fmt.Sprintf("%d Helm charts are", len(all))
	}
	return []spec.Notice{spec.NotRendered.Notice(spec.Origin{File: all[0].path, Line: all[0].line}, "", "",
		fmt.Sprintf("%s not rendered here, and the templates are not read: render into a directory for weir, as in helm template NAME %s --output-dir DIR", what, dir))}
}
