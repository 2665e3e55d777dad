package manifest

import (
	"bytes"
	"cmp"
	"slices"

	"weir/spec"
	"weir/spec/config"
)

// brokenSince returns the problems of documents that were set aside, if one of them may be a document that the file had:
// it is new, and something that the file declared is gone.
func (f *file) brokenSince(old *file) []spec.Problem {
	if old == nil {
		return nil
	}
	var out []spec.Problem
	if f.aside != nil {
		out = append(out, *f.aside)
	}
	for _, d := range f.docs {
		if len(d.aside) > 0 && !slices.ContainsFunc(old.docs, func(o doc) bool { return o.content == d.content }) {
			out = append(out, relocate(d.aside[0], d.line))
		}
	}
	if len(out) == 0 || !old.lost(f) {
		return nil
	}
	return out
}

// isEmpty reports whether a file has no content, or only the zeros that a file system may leave behind after a power loss.
func isEmpty(data []byte) bool { return len(bytes.Trim(data, "\x00 \t\r\n")) == 0 }

// damagedFile is a file that may be damaged, where, and what it was before.
type damagedFile struct {
	spec.Skipped
	before *file
}

// damage returns a document by which the file may be damaged: the file is empty, or the document is nothing in particular. An
// object of another kind is meant, and so are comments.
func (f *file) damage() (at spec.Skipped, ok bool) {
	all := f.allSkipped()
	i := slices.IndexFunc(all, func(s spec.Skipped) bool { return s.Kind == spec.SkippedEmpty || s.Kind == noKind })
	if i < 0 {
		return spec.Skipped{}, false
	}
	return all[i], true
}

// held reports each object that a damaged file held and that no file has now. Nothing is deleted because of it.
func (u *update) held(f damagedFile) {
	report := func(object string) {
		u.problems = append(u.problems, spec.Problem{Origin: f.Origin, Detail: f.HeldDetail(object)})
	}
	old := f.before
	for _, d := range old.docs {
		for _, o := range d.objects {
			if _, elsewhere := u.objects[o.id]; !elsewhere {
				report(o.id.String())
			}
		}
		if c := d.config; c != nil && c.proxy != nil && !u.configuredBy(func(o *configuration) bool { return o.proxy != nil }) {
			report(config.KubeProxyKind)
		} else if c != nil && c.weir != nil && !u.configuredBy(func(o *configuration) bool { return o.weir != nil }) {
			report(config.WeirKind)
		}
	}
}

// configuredBy reports whether there is a configuration of some sort.
func (u *update) configuredBy(is func(*configuration) bool) bool {
	for _, d := range u.configs {
		if is(d.config) {
			return true
		}
	}
	return false
}

// lost reports whether the file declares something that the new version of it does not.
func (f *file) lost(new *file) bool {
	left := map[objectID]bool{}
	configs, locks := 0, 0
	for _, d := range new.docs {
		for _, o := range d.objects {
			left[o.id] = true
		}
		configs, locks = configs+count(d.config != nil), locks+count(d.lock)
	}
	for _, d := range f.docs {
		if slices.ContainsFunc(d.objects, func(o *object) bool { return !left[o.id] }) {
			return true
		}
		configs, locks = configs-count(d.config != nil), locks-count(d.lock)
	}
	return configs < 0 || locks < 0
}

func count(is bool) int {
	if is {
		return 1
	}
	return 0
}

// skip edits the indexes of what is skipped.
func (u *update) skip(parsed []*file) {
	changed := func(yield func(string, []spec.Skipped) bool) {
		for _, f := range parsed {
			old, new := u.left.Of(f.key), f.allSkipped()
			for by, all := range map[int][]spec.Skipped{-1: old, 1: new} {
				for _, s := range all {
					if s.Kind != spec.SkippedEmpty {
						u.skips[s.Counted()] += by
					}
				}
			}
			if len(old)+len(new) > 0 && !yield(f.key, new) {
				return
			}
		}
	}
	left := u.left.With(changed)
	assign(&u.undo, &u.left, left)
	for kind, n := range u.skips {
		if n += u.skipped[kind]; n > 0 {
			put(&u.undo, u.skipped, kind, n)
		} else {
			remove(&u.undo, u.skipped, kind)
		}
	}
}

// notReadNotices tells of each file that is not read.
func (u *update) notReadNotices() []spec.Notice {
	var out []spec.Notice
	for _, s := range u.notRead {
		out = append(out, spec.FileNotRead.Notice(s.Origin, "", "", "is skipped: "+s.Reason))
	}
	return out
}

// countFile adds a file to the count of files of which nothing is used, or removes it.
func (u *update) countFile(f *file, by int) {
	if f == nil {
		return
	}
	skipped := f.allSkipped()
	if len(skipped) == 0 || skipped[0].Kind == spec.SkippedEmpty || slices.ContainsFunc(f.docs, func(d doc) bool { return d.declares() }) {
		return
	}
	if skipped[0].Kind == spec.SkippedUnread || skipped[0].Kind == spec.SkippedOutside {
		if by > 0 {
			put(&u.undo, u.notRead, f.key, skipped[0])
		} else {
			remove(&u.undo, u.notRead, f.key)
		}
	}
	n := &u.leftFiles // replace has it restored
	is := func(kind string) bool {
		return slices.ContainsFunc(skipped, func(s spec.Skipped) bool { return s.Kind == kind })
	}
	switch {
	case is(spec.SkippedChart):
		n.Charts += by
	case is(spec.SkippedKustomization):
		n.Kustomizations += by
	default:
		n.Others += by
	}
}

// allSkipped returns the documents of the file that are skipped, in the order of lines.
func (f *file) allSkipped() []spec.Skipped {
	all := slices.Clip(f.skipped)
	for _, d := range f.docs {
		all = append(all, relocateSkipped(f.path, d)...)
	}
	if len(f.docs) > 0 && len(f.skipped) > 0 {
		slices.SortStableFunc(all, func(a, b spec.Skipped) int { return cmp.Compare(a.Origin.Line, b.Origin.Line) })
	}
	return all
}

// relocateSkipped returns the skipped objects of a document with their places in the file.
func relocateSkipped(path string, d doc) []spec.Skipped {
	all := slices.Clone(d.skipped)
	for i := range all {
		all[i].Origin = spec.Origin{File: path, Line: all[i].Origin.Line + d.line - 1}
	}
	return all
}

// maxAside limits the documents that setAside returns.
const maxAside = 10

// setAside returns why documents cannot be read that are skipped because of it. Where no Service is left, one of them is
// probably what the user means.
func (u *update) setAside() []spec.Problem {
	var all []spec.Problem
	for _, f := range u.files {
		if f.aside != nil {
			all = append(all, *f.aside)
		}
		for _, d := range f.docs {
			if len(d.aside) > 0 {
				all = append(all, relocate(d.aside[0], d.line))
			}
		}
	}
	sortProblems(all)
	return all[:min(len(all), maxAside)]
}
