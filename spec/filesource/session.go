package filesource

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"weir/spec"
	"weir/spec/manifest"
)

// updater turns changed files into Snapshots, as *manifest.Set does. An error leaves it unchanged; the Snapshot then has
// the configuration, if that is valid.
type updater interface {
	Update(ctx context.Context, rev spec.Revision, files []manifest.File) (*spec.Snapshot, spec.Delta, error)
	// Holds reports whether a file declares anything.
	Holds(path string) bool
	// Expect says which demand of signatures is known, before an Update.
	Expect(allowedSigners string)
}

// session turns the findings of the tree into Updates. The last accepted state stands until a whole pass has no fault
// and the updater accepts it. Refused content stays pending in the tree and is retried with the next change. What hangs is
// passed by: its last accepted state stands, while that of everything else changes.
type session struct {
	tree   *tree
	revs   *revisions
	signed *signatures
	// newSet returns an updater for a choice of objects, which is objects for set.
	newSet  func(spec.ObjectChoice) updater
	set     updater
	objects spec.ObjectChoice
	// accepted is the set of the last accepted state, or nil before the first.
	accepted updater
	// good is the last accepted Snapshot, or nil before the first.
	good *spec.Snapshot
	// kept is what an earlier process kept, if that is in force, and standIns are the names of its parts that stand in for files
	// that hang.
	kept     *spec.Snapshot
	standIns []string
	// refusal is why the last state was refused, or "". faulty reports whether the files could not be read, rather than
	// being invalid.
	refusal string
	faulty  bool
	rev     spec.Revision // of the last Update
}

func newSession(t *tree, newSet func(spec.ObjectChoice) updater) *session {
	s := &session{tree: t, revs: &revisions{tree: t}, newSet: newSet, objects: t.choice.Objects()}
	s.signed = &signatures{tree: t, revs: s.revs}
	s.set = newSet(s.objects)
	t.holds = func(name string) bool { return s.accepted != nil && s.accepted.Holds(name) }
	return s
}

// look reads the marked names. If the files change what is chosen, it reads again what that changes.
func (s *session) look(ctx context.Context) error {
	if err := s.tree.refresh(ctx); err != nil {
		return err
	}
	now := s.tree.chosen()
	if len(s.tree.marked) > 0 || now.Equal(s.tree.choice) {
		return nil
	}
	if now.Objects() != s.objects {
		s.objects = now.Objects()
		s.set = s.newSet(s.objects)
		s.tree.forget()
	}
	s.tree.choose(now)
	for _, r := range s.tree.roots {
		if n := s.tree.nodes[r.name]; n != nil && n.kind == isDir {
			s.tree.markBelow(n, "")
		}
	}
	if err := s.tree.refresh(ctx); err != nil {
		return err
	}
	if len(s.tree.marked) == 0 && !s.tree.chosen().Equal(now) {
		s.tree.over = &spec.Problem{Origin: spec.Origin{File: s.tree.roots[0].name}, Detail: "the WeirConfiguration leaves out its own directory; have its exclude name less, or its include more"}
	}
	return nil
}

// inherit makes s go on where before was given up. The tree of before belongs to a goroutine that may still come back, so
// only what no call to the file system changes is taken from it.
func (s *session) inherit(before *session) {
	s.set, s.good, s.refusal, s.faulty, s.rev = before.set, before.good, before.refusal, before.faulty, before.rev
	s.accepted, s.objects = before.accepted, before.objects
	s.kept, s.standIns = before.kept, slices.Clone(before.standIns)
	s.tree.choose(before.tree.choice)
	s.tree.accepted, s.tree.inherited, s.tree.goodWeirs = maps.Clone(before.tree.accepted), true, before.tree.goodWeirs
}

// compareInherited records that inherited files are gone, after the first refresh.
func (t *tree) compareInherited() {
	if !t.inherited {
		return
	}
	t.inherited = false
	rendered := map[string]bool{}
	for _, b := range t.builts {
		for file := range b.files {
			rendered[manifest.RenderedPath(file, b.dir)] = true
		}
	}
	for name := range t.accepted {
		if !t.nodes[name].isFile() && !rendered[name] {
			t.setContent(name, content{})
		}
	}
}

// pass reads the marked names and returns the Updates to send: none if there is nothing new, or if files changed while they
// were read; those stay marked. The error is ctx's.
func (s *session) pass(ctx context.Context) ([]spec.Update, error) {
	if err := s.look(ctx); err != nil {
		return nil, err
	}
	if len(s.tree.marked) > 0 {
		return nil, nil
	}
	s.tree.compareInherited()
	changed := len(s.tree.touched) > 0
	s.signed.follow()
	rev := s.revs.now()
	faults, hangs := s.tree.problems(s.allowEmpty())
	var unsigned spec.Problems
	if s.signed.want.file != "" {
		rev.Signer, unsigned = s.signed.check()
		hangs = false // what stands in for it is of another commit
	}
	if len(faults)+len(unsigned) == 0 && !changed && !s.faulty && rev == s.rev && (s.good != nil || s.refusal != "") {
		return nil, nil
	}
	s.faulty = len(faults)+len(unsigned) > 0
	if !s.tree.opts.Unsigned {
		s.set.Expect(s.signed.want.file)
	}
	h := s.tree.hung()
	s.dropStandIns(h)
	if hangs {
		if updates, ok, err := s.passBy(ctx, h, rev, faults); ok || err != nil {
			return updates, err
		}
	}
	snap, delta, err := s.set.Update(ctx, rev, withFaults(s.tree.changes(h), faults, unsigned))
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil && len(unsigned) > 0 {
		snap = s.signed.settings(snap)
	}
	if err != nil {
		return s.refuse(err, rev, snap), nil
	}
	return s.accept(snap, delta, hung{}, nil), nil
}

// passBy takes up the changes of all that does not hang, unless something is wrong with it. What hangs stays as it was last
// good. The error is ctx's.
func (s *session) passBy(ctx context.Context, h hung, rev spec.Revision, faults spec.Problems) (updates []spec.Update, ok bool, err error) {
	rev.Outdated = true
	switch {
	case s.accepted == nil && s.kept != nil:
		return s.passByKept(ctx, h, rev, faults)
	case s.accepted == nil, s.accepted != s.set: // another set does not know what hangs
		return nil, false, nil
	}
	snap, delta, err := s.set.Update(ctx, rev, s.tree.changes(h))
	if err != nil {
		return nil, false, ctx.Err()
	}
	return s.accept(snap, delta, h, faults), true, nil
}

// accept returns the Update with an accepted Snapshot, and after it one with the faults that remain. It returns nothing if
// all is as before.
func (s *session) accept(snap *spec.Snapshot, delta spec.Delta, h hung, faults spec.Problems) []spec.Update {
	snap.SkippedFiles.Excluded, snap.SkippedFiles.ExcludedDirs = s.tree.left.Excluded, s.tree.left.ExcludedDirs
	s.tell(snap)
	s.tree.accept(h)
	s.accepted, s.kept = s.set, nil
	refusal := ""
	if len(faults) > 0 {
		refusal = faults.Error()
	}
	rev := snap.Revision
	same := s.refusal == refusal && s.good != nil && delta.Empty() && rev == s.rev
	s.good, s.refusal, s.rev = snap, refusal, rev
	if same {
		return nil
	}
	updates := []spec.Update{{Snapshot: snap, Delta: delta, Revision: rev}}
	if len(faults) > 0 {
		updates = append(updates, spec.Update{Err: faults, Revision: rev, Settings: snap})
	}
	return updates
}

// refuse returns the Update with the reason for a refusal, or none if the last one had the same reason.
func (s *session) refuse(err error, rev spec.Revision, settings *spec.Snapshot) []spec.Update {
	if s.refusal == err.Error() && s.rev == rev {
		return nil
	}
	s.refusal, s.rev = err.Error(), rev
	return []spec.Update{{Err: err, Revision: rev, Settings: settings}}
}

// tell logs what is skipped of the changed files.
func (s *session) tell(snap *spec.Snapshot) {
	if !s.tree.opts.Log.IsDebug() {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(s.tree.pending)) {
		for _, skipped := range snap.SkippedDocuments.Of(name) {
			s.tree.opts.Log.Debug("document skipped", "place", skipped.Origin.String(), "kind", skipped.Kind, "reason", skipped.Reason)
		}
	}
}

// weir returns the current settings.
func (s *session) weir() spec.WeirConfiguration {
	if s.good != nil {
		return s.good.Weir
	}
	return s.tree.opts.Overrides.Apply(spec.DefaultWeirConfiguration())
}

func (s *session) allowEmpty() bool { return s.weir().AllowEmpty }

// changes returns the pending files that do not hang, ordered by name.
func (t *tree) changes(h hung) []manifest.File {
	files := make([]manifest.File, 0, len(t.pending))
	for _, name := range slices.Sorted(maps.Keys(t.pending)) {
		if h.covers(name) {
			continue
		}
		files = append(files, manifest.File{Path: name, Data: t.pending[name].data, Skipped: t.pending[name].skipped})
	}
	return files
}

// withFaults adds the names that cannot be read, and what else is wrong, for which there is no name. So an Update tells all of
// it.
func withFaults(files []manifest.File, faults, others spec.Problems) []manifest.File {
	files = slices.DeleteFunc(files, func(f manifest.File) bool {
		return slices.ContainsFunc(faults, func(p spec.Problem) bool { return p.Origin.File == f.Path })
	})
	for i := range faults {
		files = append(files, manifest.File{Path: faults[i].Origin.File, Fault: &faults[i]})
	}
	for i := range others {
		files = append(files, manifest.File{Path: manifest.RenderedPath("", fmt.Sprint(i)), Fault: &others[i]})
	}
	return files
}

// maxProblems limits how many faults one Update lists.
const maxProblems = 100

// problems returns why the state cannot be used, ordered by name, and whether reads that hang are all that is wrong.
func (t *tree) problems(allowEmpty bool) (all spec.Problems, hangs bool) {
	hangs = t.hangs()
	if t.over != nil {
		all = append(all, *t.over)
	}
	for _, name := range slices.Sorted(maps.Keys(t.faults)) {
		if len(all) == maxProblems {
			all = append(all, spec.Problem{Detail: fmt.Sprintf("and %d more files like these", len(t.faults)-maxProblems)})
			break
		}
		all = append(all, t.faults[name].Problem)
	}
	if len(all) > 0 && !hangs || allowEmpty || !hangs && t.files == 0 && len(t.builts) == 0 {
		return all, hangs
	}
	// One empty directory among several is probably not mounted. It must not delete what it declared. If all are empty,
	// their declarations decide.
	h := t.hung()
	for i, r := range t.roots {
		if n := t.nodes[r.name]; r.files == 0 && n != nil && n.kind == isDir && !t.covered(r.name) && !h.within(i) {
			hangs = false
			all = append(all, spec.Problem{Origin: spec.Origin{File: r.name},
				Detail: "the directory holds no .yaml, .yml or .json file; restore its content, or run with --allow-empty if that is meant"})
		}
	}
	return all, hangs
}

// covered reports whether the files below a root belong to another root above it.
func (t *tree) covered(name string) bool {
	return slices.ContainsFunc(t.roots, func(r root) bool { return r.name != name && below(name, r.name) })
}

// load makes passes until no file changes during one.
func (s *session) load(ctx context.Context, wait func(context.Context) error) (*spec.Snapshot, error) {
	for {
		u, err := s.pass(ctx)
		if err != nil {
			return nil, err
		}
		if len(u) > 0 {
			return u[0].Snapshot, u[0].Err
		}
		if len(s.tree.marked) == 0 {
			return nil, errors.New("nothing was read")
		}
		if err := wait(ctx); err != nil {
			return nil, err
		}
	}
}
