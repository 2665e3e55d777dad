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

// updater turns changed files into Snapshots, as *manifest.Set does. An error leaves it as it was.
type updater interface {
	Update(ctx context.Context, rev spec.Revision, files []manifest.File) (*spec.Snapshot, spec.Delta, error)
}

// session turns what the tree finds into Updates. The last accepted state stands until a whole pass is without fault and
// the updater accepts it; what was refused stays pending in the tree and is tried again together with what changes next.
type session struct {
	tree *tree
	revs *revisions
	set  updater
	// good is the last Snapshot accepted, nil before the first.
	good *spec.Snapshot
	// refusal is why the last state was refused, "" if it was accepted; faulty says that the files were at fault, not
	// what they say.
	refusal string
	faulty  bool
	rev     spec.Revision // of the last Update
}

func newSession(t *tree, set updater) *session {
	return &session{tree: t, revs: &revisions{tree: t}, set: set}
}

// pass reads what is marked and returns the news, or nil if there is none or files changed while they were read; those
// are still marked then. The error is ctx's.
func (s *session) pass(ctx context.Context) (*spec.Update, error) {
	if err := s.tree.refresh(ctx); err != nil {
		return nil, err
	}
	if len(s.tree.marked) > 0 {
		return nil, nil
	}
	changed := len(s.tree.touched) > 0
	rev := s.revs.now()
	if p := s.tree.problems(s.allowEmpty()); len(p) > 0 {
		s.faulty = true
		return s.refuse(p, rev), nil
	}
	if !changed && !s.faulty && rev == s.rev && (s.good != nil || s.refusal != "") {
		return nil, nil
	}
	s.faulty = false
	snap, delta, err := s.set.Update(ctx, rev, s.tree.changes())
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return s.refuse(err, rev), nil
	}
	s.tree.accept()
	same := s.refusal == "" && s.good != nil && delta.Empty() && rev == s.rev
	s.good, s.refusal, s.rev = snap, "", rev
	if same {
		return nil, nil
	}
	return &spec.Update{Snapshot: snap, Delta: delta, Revision: rev}, nil
}

// refuse returns the Update that says why a state cannot be used, or nil if the last one said the same.
func (s *session) refuse(err error, rev spec.Revision) *spec.Update {
	if s.refusal == err.Error() && s.rev == rev {
		return nil
	}
	s.refusal, s.rev = err.Error(), rev
	return &spec.Update{Err: err, Revision: rev}
}

// weir returns the settings in force.
func (s *session) weir() spec.WeirConfiguration {
	if s.good != nil {
		return s.good.Weir
	}
	w := spec.DefaultWeirConfiguration()
	if s.tree.opts.Weir != nil {
		s.tree.opts.Weir(&w)
	}
	return w
}

func (s *session) allowEmpty() bool { return s.weir().AllowEmpty }

// changes returns what is pending, ordered by name.
func (t *tree) changes() []manifest.File {
	files := make([]manifest.File, 0, len(t.pending))
	for _, name := range slices.Sorted(maps.Keys(t.pending)) {
		files = append(files, manifest.File{Path: name, Data: t.pending[name].data})
	}
	return files
}

// maxProblems bounds how many faults one Update lists.
const maxProblems = 100

// problems returns why what was found cannot be used, ordered by name.
func (t *tree) problems(allowEmpty bool) spec.Problems {
	var all spec.Problems
	if t.over != nil {
		all = append(all, *t.over)
	}
	for _, name := range slices.Sorted(maps.Keys(t.faults)) {
		if len(all) == maxProblems {
			all = append(all, spec.Problem{Detail: fmt.Sprintf("and %d more files like these", len(t.faults)-maxProblems)})
			return all
		}
		all = append(all, t.faults[name])
	}
	if len(all) > 0 || allowEmpty || t.files == 0 {
		return all
	}
	// One empty directory among several is an unmounted one, not an instruction to delete what it declared. Whether all
	// of them may be empty is decided by what they declare.
	for _, r := range t.roots {
		if n := t.nodes[r.name]; r.files == 0 && n != nil && n.kind == isDir && !t.covered(r.name) {
			all = append(all, spec.Problem{Origin: spec.Origin{File: r.name},
				Detail: "the directory holds no .yaml, .yml or .json file; restore its content, or run with --allow-empty if that is meant"})
		}
	}
	return all
}

// covered says that the files below a root count for another root, which it is below.
func (t *tree) covered(name string) bool {
	return slices.ContainsFunc(t.roots, func(r root) bool { return r.name != name && below(name, r.name) })
}

// load passes until nothing changes underneath.
func (s *session) load(ctx context.Context, wait func(context.Context) error) (*spec.Snapshot, error) {
	for {
		u, err := s.pass(ctx)
		if err != nil {
			return nil, err
		}
		if u != nil && u.Err != nil {
			return nil, u.Err
		}
		if u != nil {
			return u.Snapshot, nil
		}
		if len(s.tree.marked) == 0 {
			return nil, errors.New("nothing was read")
		}
		if err := wait(ctx); err != nil {
			return nil, err
		}
	}
}
