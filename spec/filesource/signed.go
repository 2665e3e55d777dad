package filesource

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"weir/spec"
	"weir/spec/config"
	"weir/spec/gitrev"
	"weir/spec/gitsig"
	"weir/spec/statefile"
)

// signatures holds the input to what is demanded of its commit: a signature by an allowed signer, and no file that differs
// from it. Files of the owner of that demand need no signature: those of the directory that has the WeirConfiguration, and those
// that --config and --lock name.
//
// It looks at the allowed signers file in each pass. A commit is verified once for each content of that file.
type signatures struct {
	tree *tree
	revs *revisions
	want demand

	// unowned is why a WeirConfiguration cannot take its demand back.
	unowned error
	real    string   // the allowed signers file, without symlinks
	links   []string // the symlinks on the way to it
	sum     digest   // of its content
	signers *gitsig.Signers
	fault   spec.Problems // of that file

	checked verdict
}

// demand is an allowed signers file, and the place that demands it, which is zero for a flag. Without a file, nothing is
// demanded.
type demand struct {
	file string
	at   spec.Origin
}

// verdict is what came out for a commit.
type verdict struct {
	commit string
	sum    digest
	by     gitsig.Signature
	err    error
}

// demands returns what the configuration of the files demands.
func (t *tree) demands() demand {
	if t.opts.Unsigned {
		return demand{}
	}
	if file := t.opts.Overrides.AllowedSigners; file != "" {
		return demand{file: file}
	}
	name, w := firstWeir(t.currentWeirs(t.hung()), t.configName())
	if w.AllowedSigners == "" {
		return demand{}
	}
	return demand{w.AllowedSigners, spec.Origin{File: name, Line: w.line}}
}

// follow takes up what is demanded now, before the revision is found.
func (s *signatures) follow() {
	was := s.want
	s.want, s.unowned = s.tree.demands(), nil
	if s.want.file == "" && was.at.File != "" {
		if s.unowned = s.changeable(was.at.File); s.unowned != nil {
			s.want = was
		}
	}
	apart := s.apart()
	if !maps.Equal(apart, s.revs.apart) {
		s.revs.apart, s.revs.repo = apart, nil // has all compared again
	}
	s.revs.also = nil
	if s.want.file == "" {
		if was.file != "" {
			s.tree.opts.Log.Warn("the configuration demands no signature any more: commits are used whoever made them", "was", was.file)
		}
		s.signers, s.checked = nil, verdict{}
		return
	}
	s.read()
}

// apart returns the roots that need no signature.
func (s *signatures) apart() map[string]bool {
	if s.want.file == "" {
		return nil
	}
	apart := map[string]bool{}
	for _, name := range []string{s.tree.configName(), s.tree.lockName()} {
		if name != "" {
			apart[name] = true
		}
	}
	if n := s.tree.nodes[s.want.at.File]; n != nil {
		apart[s.tree.roots[n.root].name] = true
	}
	return apart
}

// maxSignersFile limits the size of an allowed signers file.
const maxSignersFile = 1 << 20

// read reads the allowed signers file, if it changed.
func (s *signatures) read() {
	var real string
	var links []string
	var data []byte
	var err error
	_, hangs := during(s.tree.oversight, s.want.file, manySteps, func() struct{} {
		real, links, data, err = readSigners(s.want.file)
		return struct{}{}
	})
	s.revs.also = []string{filepath.Dir(s.want.file)}
	if real != "" && real != s.want.file {
		s.revs.also = append(s.revs.also, filepath.Dir(real))
	}
	if err = errors.Join(err, hangs); err != nil {
		s.signers, s.fault = nil, spec.Problems{s.problem("%s", signersError(s.want.file, err))}
		return
	}
	if sum := sha256.Sum256(data); s.signers == nil || s.sum != sum || s.real != real {
		s.real, s.sum = real, sum
		s.signers, s.fault = gitsig.Parse(s.want.file, data)
	}
	s.links = links
}

// inside reports whether a real path is in a repository that is checked, or in another work tree of it. A path that hangs is.
func (s *signatures) inside(real string) bool {
	found, hangs := during(s.tree.oversight, real, manySteps, func() bool {
		other := gitrev.Find(filepath.Dir(real))
		return slices.ContainsFunc(s.revs.homes, func(h home) bool {
			return h.repo != nil && (h.repo.Holds(real) || other != nil && other.Same(h.repo))
		})
	})
	return found || hangs != nil
}

// readSigners returns the content of an allowed signers file, its path without symlinks, and those on the way to it.
func readSigners(path string) (real string, links []string, data []byte, err error) {
	if real, err = filepath.EvalSymlinks(path); err != nil {
		return "", nil, nil, err
	}
	if links, err = statefile.CheckWay(path); err != nil {
		return real, links, nil, err
	}
	f, err := os.OpenFile(real, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW|syscall.O_NOCTTY, 0)
	if err != nil {
		return real, links, nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return real, links, nil, err
	}
	if !fi.Mode().IsRegular() {
		return real, links, nil, errNotRegular
	}
	if err := statefile.Check(real, fi, 0o022); err != nil {
		return real, links, nil, err
	}
	data, err = io.ReadAll(io.LimitReader(f, maxSignersFile+1))
	if err == nil && len(data) > maxSignersFile {
		err = errTooLarge
	}
	return real, links, data, err
}

// signersError says why an allowed signers file cannot be used.
func signersError(path string, err error) string {
	var hangs stuckError
	switch {
	case errors.As(err, &hangs):
		return stuckDetail(path, hangs)
	case errors.Is(err, statefile.ErrUntrusted):
		return err.Error()
	case errors.Is(err, fs.ErrNotExist):
		return path + " does not exist; make it, with a line PRINCIPAL KEYTYPE KEY for each signer"
	case errors.Is(err, errNotRegular):
		return path + " is not a regular file"
	case errors.Is(err, errTooLarge):
		return fmt.Sprintf("%s is larger than the limit of %d bytes", path, maxSignersFile)
	case errors.Is(err, fs.ErrPermission):
		return path + ": permission denied; make it readable for the user that weir runs as"
	}
	return "cannot be read: " + err.Error()
}

// problem returns a Problem at the place that demands signatures.
func (s *signatures) problem(format string, args ...any) spec.Problem {
	detail := fmt.Sprintf(format, args...)
	if s.want.at.File == "" {
		return spec.Problem{Detail: "--allowed-signers: " + detail}
	}
	return spec.Problem{Origin: s.want.at, Object: config.WeirKind, Field: "allowedSigners", Detail: detail}
}

// check returns the principal that signed the commit of the input, or why the input cannot be used, after the revision was
// found. Nothing is wrong if nothing is demanded.
func (s *signatures) check() (signer string, problems spec.Problems) {
	if s.want.file == "" {
		return "", nil
	}
	if s.unowned != nil {
		return "", spec.Problems{s.problem("is demanded no more, and %v", s.unowned)}
	}
	if problems = s.misplaced(); len(problems) > 0 {
		return "", problems
	}
	if len(s.fault) > 0 {
		return "", s.fault
	}
	if s.inside(s.real) || slices.ContainsFunc(s.links, s.inside) {
		return "", spec.Problems{s.problem("%s is in the repository that it is to check: whoever changes that could add a key; have it elsewhere, such as in /etc/weir", s.want.file)}
	}
	r := s.revs
	if r.id == "" {
		return "", spec.Problems{{Origin: spec.Origin{File: r.homes[0].input}, Detail: fmt.Sprintf("the commit that is checked out cannot be told, so that no signature vouches for it: %v", r.headErr)}}
	}
	if s.checked.commit != r.id || s.checked.sum != s.sum {
		s.verify()
	}
	if s.checked.err != nil {
		return "", spec.Problems{{Origin: spec.Origin{File: r.homes[0].input}, Detail: fmt.Sprintf("commit %.12s %v", r.id, s.checked.err)}}
	}
	if r.failed != "" {
		return "", spec.Problems{{Origin: spec.Origin{File: r.homes[0].input}, Detail: fmt.Sprintf("the files cannot be compared with commit %.12s, so that its signature does not vouch for them: %s", r.id, r.failed)}}
	}
	if problems = s.different(); len(problems) > 0 {
		return "", problems
	}
	return s.checked.by.Principal, nil
}

// verify verifies the signature of the commit.
func (s *signatures) verify() {
	s.checked = verdict{commit: s.revs.id, sum: s.sum}
	var content []byte
	err, hangs := during(s.tree.oversight, s.revs.repo.WorkTree, manySteps, func() (err error) {
		content, err = s.revs.repo.Commit(s.revs.id)
		return err
	})
	if err = errors.Join(err, hangs); err != nil {
		s.checked.commit = "" // it is read again
		s.checked.err = fmt.Errorf("cannot be read, so that its signature is not known: %w", err)
		return
	}
	s.checked.by, s.checked.err = s.signers.Verify(content)
	if s.checked.err == nil {
		s.tree.opts.Log.Info("the signature of the commit is good", "revision", s.revs.id, "signer", s.checked.by.Principal, "key", s.checked.by.Key)
	}
}

// misplaced returns what is where no signature can vouch for it, or where the demand could be changed by those whom it is about.
func (s *signatures) misplaced() (problems spec.Problems) {
	homes := s.revs.homes
	if s.revs.lost != "" {
		return spec.Problems{{Origin: spec.Origin{File: s.revs.lost}, Detail: "cannot be found, so that no signature vouches for it; restore it, or do not name it"}}
	}
	if len(homes) == 0 && s.want.at.File == "" {
		return spec.Problems{s.problem("there is nothing to check; give the Git work tree with -f")}
	}
	if len(homes) == 0 {
		return spec.Problems{s.problem("there is nothing to check but the directory that has this document, and whoever changes that could remove it; have the document in a file elsewhere, such as in /etc/weir, and give that with -f or --config beside the repository")}
	}
	if n := s.tree.nodes[s.want.at.File]; n != nil && !s.direct(s.want.at.File, n) {
		return spec.Problems{s.problem("is reached by a symlink that leads out of its directory, so that it cannot be told who wrote it; name the file itself with -f or --config")}
	}
	if n := s.tree.nodes[s.want.at.File]; n != nil && s.leadsInside(n.place) {
		return spec.Problems{s.problem("is in the repository that it is to check: whoever changes that could remove it; have the WeirConfiguration in a file elsewhere, such as in /etc/weir, and give that with -f or --config")}
	}
	if n := s.tree.nodes[s.want.at.File]; n != nil {
		if err := s.trusted(n.place); err != nil {
			return spec.Problems{s.problem("%v", err)}
		}
	}
	var first *home
	for _, h := range homes {
		detail := ""
		switch {
		case h.repo == nil && h.input == stdinName:
			detail = "standard input has no signature; name the Git work tree with -f"
		case h.repo == nil && s.want.at.File == "":
			detail = "is in no Git work tree, so that no signature vouches for it; check it out with git; if it needs no signature, have a WeirConfiguration with allowedSigners in it instead of the flag, and give the Git work tree with -f beside it"
		case h.repo == nil:
			detail = fmt.Sprintf("is in no Git work tree, so that no signature vouches for it; check it out with git, or move it to the directory of %s, which needs none", s.want.at.File)
		case first == nil:
			first = &h
			continue
		case *h.repo != *first.repo:
			detail = fmt.Sprintf("is in another Git work tree than %s, and weir verifies one commit; have both in one repository", first.input)
		default:
			continue
		}
		problems = append(problems, spec.Problem{Origin: spec.Origin{File: h.input}, Detail: detail})
	}
	if len(problems) > 0 {
		return problems
	}
	for _, root := range slices.Sorted(maps.Keys(s.revs.apart)) {
		problems = s.checkouts(problems, root, s.tree.nodes[root])
		problems = s.owned(problems, root)
	}
	return problems
}

// owned adds the files that need no signature and that other users can change.
func (s *signatures) owned(problems spec.Problems, name string) spec.Problems {
	n := s.tree.nodes[name]
	if n == nil || n.place.real == "" || s.inside(n.place.real) {
		return problems // files in the repository are compared with the commit
	}
	if err := s.trusted(n.place); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return append(problems, spec.Problem{Origin: spec.Origin{File: name}, Detail: fmt.Sprintf("has no signature, and %v", err)})
	}
	for _, child := range slices.Sorted(maps.Keys(n.children)) {
		problems = s.owned(problems, child)
	}
	return problems
}

// changeable returns an error if other users can change a file that demanded signatures. One that is gone takes its demand back only
// by the directory that was given: whoever removes a file that was named could put another one there.
func (s *signatures) changeable(name string) error {
	for _, place := range []string{name, filepath.Dir(name)} {
		if n := s.tree.nodes[place]; n != nil && n.place.real != "" {
			return s.trusted(n.place)
		}
	}
	return errors.New("its file is gone; restore it")
}

// leadsInside reports whether a file, or a symlink on the way to it, is in a repository that is checked.
func (s *signatures) leadsInside(p place) bool {
	return s.inside(p.real) || slices.ContainsFunc(linkPaths(p.links), s.inside)
}

// trusted returns an error if other users can change a file that demands signatures, or have its path lead to another one.
func (s *signatures) trusted(p place) error {
	err, hangs := during(s.tree.oversight, p.real, manySteps, func() error {
		fi, err := os.Stat(p.real)
		if err != nil {
			return err
		}
		err = statefile.Check(p.real, fi, 0o022)
		for _, path := range append([]string{p.real}, linkPaths(p.links)...) {
			if err == nil {
				_, err = statefile.CheckWay(path)
			}
		}
		return err
	})
	return errors.Join(err, hangs)
}

// linkPaths returns where symlinks are.
func linkPaths(links []link) (paths []string) {
	for _, l := range links {
		paths = append(paths, l.path)
	}
	return paths
}

// direct reports whether a file is a root, or in the directory of its root. Else a symlink in the repository may lead to it, and
// all of the repository would need no signature.
func (s *signatures) direct(name string, n *node) bool {
	root := s.tree.roots[n.root].name
	if name == root {
		return true
	}
	dir := s.tree.nodes[root]
	return dir != nil && below(n.place.real, dir.place.real)
}

// checkouts adds the Git work trees in a directory that needs no signature.
func (s *signatures) checkouts(problems spec.Problems, name string, n *node) spec.Problems {
	if n == nil || n.kind != isDir {
		return problems
	}
	if !s.revs.apart[name] && n.place.real != s.revs.repo.WorkTree {
		if _, err := s.tree.lstat(filepath.Join(n.place.real, ".git")); err == nil {
			return append(problems, spec.Problem{Origin: spec.Origin{File: name}, Detail: fmt.Sprintf("is a Git work tree in the directory of %s, where nothing is verified; move it out, and give it with -f", s.want.at.File)})
		}
	}
	for _, child := range slices.Sorted(maps.Keys(n.children)) {
		problems = s.checkouts(problems, child, s.tree.nodes[child])
	}
	return problems
}

// maxDifferent limits how many files that differ are named.
const maxDifferent = 10

// different returns the files that are not those of the commit.
func (s *signatures) different() (problems spec.Problems) {
	r := s.revs
	for _, name := range slices.Sorted(maps.Keys(r.strays)) {
		if !s.exempt(name, r.strays[name]) {
			file := name
			if b := s.tree.builts[name]; b != nil {
				file = b.dir
			}
			problems = append(problems, spec.Problem{Origin: spec.Origin{File: file},
				Detail: fmt.Sprintf("leads to %s, out of the Git work tree, so that the signature of commit %.12s does not vouch for it; copy its target into the repository", r.strays[name], r.id)})
		}
	}
	for _, path := range slices.Sorted(maps.Keys(r.differs)) {
		problems = append(problems, spec.Problem{Origin: spec.Origin{File: s.nameOf(path)},
			Detail: fmt.Sprintf("differs from commit %.12s, so that its signature does not vouch for it (it was changed, added or removed in the work tree, or is that of a submodule, or a filter such as autocrlf or LFS changed it); see git status", r.id)})
	}
	if more := len(problems) - maxDifferent; more > 0 {
		problems = append(problems[:maxDifferent], spec.Problem{Detail: fmt.Sprintf("and %d more files like these", more)})
	}
	return problems
}

// exempt reports whether a file outside of the work tree needs no signature.
func (s *signatures) exempt(name, real string) bool {
	if n := s.tree.nodes[name]; n != nil && s.revs.apart[s.tree.roots[n.root].name] {
		return true
	}
	for root := range s.revs.apart {
		if n := s.tree.nodes[root]; n != nil && n.place.real != "" && below(real, n.place.real) {
			return true
		}
	}
	return false
}

// nameOf returns the name for the user of a path in the work tree.
func (s *signatures) nameOf(path string) string {
	for name, paths := range s.revs.paths {
		if s.tree.builts[name] == nil && slices.Contains(paths, path) {
			return name
		}
	}
	real := filepath.Join(s.revs.repo.WorkTree, path)
	for _, root := range s.tree.roots {
		if n := s.tree.nodes[root.name]; n != nil && n.kind == isDir && below(real, n.place.real) {
			return filepath.Join(root.name, relative(n.place.real, real))
		}
	}
	return real
}

// settings returns the part of the configuration of a refused input that needs no signature.
func (s *signatures) settings(snap *spec.Snapshot) *spec.Snapshot {
	if snap == nil {
		return nil
	}
	known := &spec.Snapshot{Config: config.Default().KubeProxyConfiguration, Weir: s.tree.opts.Overrides.Apply(spec.DefaultWeirConfiguration())}
	if s.of(snap.ConfigOrigin) {
		known.Config, known.ConfigOrigin = snap.Config, snap.ConfigOrigin
	}
	if s.of(snap.WeirOrigin) {
		known.Weir, known.WeirOrigin = snap.Weir, snap.WeirOrigin
	}
	return known
}

// of reports whether a place is in a file that needs no signature.
func (s *signatures) of(at spec.Origin) bool {
	n := s.tree.nodes[at.File]
	return n != nil && n.place.real != "" && !s.inside(n.place.real) && s.exempt(at.File, n.place.real)
}
