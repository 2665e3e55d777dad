package spec

import (
	"iter"
	"path"
	"slices"
	"strings"

	iradix "github.com/hashicorp/go-immutable-radix/v2"
)

// Skipped is a document that a source left out of a Snapshot: it is of no kind that weir reads, or it was not chosen.
type Skipped struct {
	Origin Origin
	// Kind is what the document is: "Deployment", "Helm chart", or "(no kind)".
	Kind string
	// Reason is what is wrong with a document that cannot be read, or why it was not chosen. It is "" for a document
	// that is fine and of another kind.
	Reason string
	// Unchosen reports whether the document is of a kind that weir reads, and left out by a namespace or a selector.
	Unchosen bool
}

// Counted returns what a Snapshot counts the document as: its Kind, or SkippedUnchosen.
func (s Skipped) Counted() string {
	if s.Unchosen {
		return SkippedUnchosen
	}
	return s.Kind
}

// SkippedUnchosen is what documents that were not chosen are counted as, whatever their kinds.
const SkippedUnchosen = "not chosen"

// SkippedNoKind is the Kind of what is no Kubernetes object.
const SkippedNoKind = "(no kind)"

// Broken reports whether the document is nothing in particular, as that of a damaged file, or cannot be read.
func (s Skipped) Broken() bool {
	return s.Kind == SkippedEmpty || s.Kind == SkippedNoKind || s.Kind == SkippedSymlink || s.Kind == SkippedUnread || s.Kind == SkippedOutside ||
		s.Reason != "" && s.Kind != SkippedFile && !s.Unchosen
}

// HeldDetail returns the problem of a document that is nothing in particular where a file held an object.
func (s Skipped) HeldDetail(object string) string {
	what := "is no complete object of Kubernetes"
	if s.Kind == SkippedEmpty {
		what = "is empty"
	}
	return what + ", and held " + object + "; delete the file if that is meant"
}

// The Kinds of what describes how manifests are generated.
const (
	SkippedChart         = "Helm chart"
	SkippedKustomization = "Kustomization"
)

// The Kinds of files that are not read.
const (
	// SkippedSymlink is a symlink that leads nowhere.
	SkippedSymlink = "symlink"
	// SkippedOutside is a symlink to a directory that is not in the input, and is not looked into.
	SkippedOutside = "symlink out of the tree"
	// SkippedUnread is a FIFO, a socket, a device, or a file that is too large.
	SkippedUnread = "file that is not read"
	// SkippedEmpty is a file without content. It is not counted.
	SkippedEmpty = "empty file"
	// SkippedFile is a file whose head says that it shall not be read.
	SkippedFile = "file"
)

// SkippedFiles counts the files of which nothing was used.
type SkippedFiles struct {
	// Charts and Kustomizations count the files that describe one.
	Charts, Kustomizations int
	// Others counts all other files.
	Others int
	// Excluded and ExcludedDirs count the files and directories that patterns leave out, so that they were not read at all.
	Excluded, ExcludedDirs int
}

// SkippedDocuments are the documents that a Snapshot leaves out, by file. The zero value is empty. It is immutable: a
// changed copy shares with the original all directories without a change. A node of the tree for each file would take
// more memory than all the rest of a tree with many foreign files.
type SkippedDocuments struct{ tree *iradix.Tree[[]skippedFile] }

// skippedFile holds the documents of one file. The files of a directory are sorted.
type skippedFile struct {
	file string
	of   []Skipped
}

func (f skippedFile) compare(file string) int { return strings.Compare(f.file, file) }

// All yields the documents, ordered by file and line.
func (s SkippedDocuments) All() iter.Seq[Skipped] {
	var files []skippedFile
	if s.tree != nil {
		s.tree.Root().Walk(func(_ []byte, in []skippedFile) (stop bool) {
			files = append(files, in...)
			return false
		})
	}
	slices.SortFunc(files, func(a, b skippedFile) int { return a.compare(b.file) })
	return func(yield func(Skipped) bool) {
		for _, f := range files {
			for _, doc := range f.of {
				if !yield(doc) {
					return
				}
			}
		}
	}
}

// Of returns the documents of one file.
func (s SkippedDocuments) Of(file string) []Skipped {
	in := s.in([]byte(path.Dir(file)))
	if i, ok := slices.BinarySearchFunc(in, file, skippedFile.compare); ok {
		return in[i].of
	}
	return nil
}

// in returns the files of a directory.
func (s SkippedDocuments) in(dir []byte) []skippedFile {
	if s.tree == nil {
		return nil
	}
	in, _ := s.tree.Get(dir)
	return in
}

// Equal reports whether both have the same documents. It is for tests.
func (s SkippedDocuments) Equal(o SkippedDocuments) bool {
	return slices.Equal(slices.Collect(s.All()), slices.Collect(o.All()))
}

// With returns a copy in which the given files have these documents; a file that has none is left out. Its time is in
// proportion to the files of the directories that change.
func (s SkippedDocuments) With(changed iter.Seq2[string, []Skipped]) SkippedDocuments {
	if s.tree == nil {
		s.tree = iradix.New[[]skippedFile]()
	}
	dirs := map[string][]skippedFile{}
	for file, of := range changed {
		dir := path.Dir(file)
		dirs[dir] = append(dirs[dir], skippedFile{file, of})
	}
	txn := s.tree.Txn()
	for dir, files := range dirs {
		slices.SortStableFunc(files, func(a, b skippedFile) int { return a.compare(b.file) })
		if in := merged(s.in([]byte(dir)), files); len(in) > 0 {
			txn.Insert([]byte(dir), in)
		} else {
			txn.Delete([]byte(dir))
		}
	}
	return SkippedDocuments{txn.Commit()}
}

// merged returns the files of a directory with those that changed, both of which are sorted.
func merged(before, changed []skippedFile) []skippedFile {
	out := make([]skippedFile, 0, len(before)+len(changed))
	for _, f := range changed {
		i, known := slices.BinarySearchFunc(before, f.file, skippedFile.compare)
		out = append(out, before[:i]...)
		if before = before[i:]; known {
			before = before[1:]
		}
		if len(f.of) > 0 {
			out = append(out, f)
		}
	}
	return slices.Clip(append(out, before...))
}
