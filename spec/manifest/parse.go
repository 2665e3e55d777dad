package manifest

import (
	"context"
	"hash/maphash"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"weir/spec"
	"weir/spec/document"
)

// file is one file, split and decoded.
type file struct {
	key      string // the Path of its File
	path     string
	rendered bool // by a kustomization
	docs     []doc
	// broken is the reason why the file could not be split into documents; docs is then empty. aside is the same of a
	// file that cannot hold anything that a Set reads.
	broken, aside *spec.Problem
	// skipped are the documents that are not in docs, because they need not be parsed.
	skipped []spec.Skipped
}

// doc is a content and its place in a file.
type doc struct {
	line int // the first line of the document, counted from 1
	*content
}

// contentID identifies the bytes of a document. The hash is keyed, so that nobody can forge a collision.
type contentID struct {
	size int
	hash uint64
}

// job is a document that is yet to be decoded, and the place for what it holds.
type job struct {
	to   *doc
	path string
	text document.Text
	hash uint64
}

// parse decodes files on all cores. It reuses the contents that known returns for documents with the same bytes.
// Documents that are surely of no kind that a Set reads are not decoded, unless holds returns true for their file.
func (d *decoder) parse(ctx context.Context, files []File, known func(path string) []doc, holds func(path string) bool) ([]*file, error) {
	parsed := make([]*file, len(files))
	jobs := make([][]job, len(files))
	check := make([][]checked, len(files))
	err := parallel(ctx, len(files), func(i int) {
		f := &file{key: files[i].Path}
		f.path, _, f.rendered = strings.Cut(f.key, "\x00")
		parsed[i] = f
		if f.skipped = skippedWhole(f, &files[i]); f.skipped == nil {
			jobs[i], check[i] = d.documents(f, files[i].Data, known(f.key), holds(f.key))
		}
	})
	if err != nil {
		return nil, err
	}
	all := slices.Concat(jobs...)
	err = parallel(ctx, len(all), func(i int) { all[i].to.content = d.decode(all[i].path, all[i].text, all[i].hash) })
	if err != nil {
		return nil, err
	}
	for i, all := range check {
		if len(all) > 0 {
			parsed[i].forgetUnused(all)
		}
	}
	return parsed, nil
}

// skippedWhole returns a file as skipped if it is not even split: it was not read, is empty, or is to be ignored.
func skippedWhole(f *file, from *File) []spec.Skipped {
	switch {
	case from.Skipped != nil:
		return from.Skipped
	case from.Data != nil && isEmpty(from.Data) && !f.rendered:
		return []spec.Skipped{{Origin: spec.Origin{File: f.path, Line: 1}, Kind: spec.SkippedEmpty, Reason: "it is empty"}}
	}
	return ignored(f.path, from.Data)
}

// checked is the line of a document that is surely of no kind that a Set refuses, and is decoded all the same: because the file
// held one of weir's kinds, so that a broken document may be what is left of it, or because the document may tell of pods.
type checked struct {
	line int
	held bool
}

// documents splits a file into its documents. It returns those that are not among known and so are yet to be decoded, and
// those of them that may turn out to be of no use.
func (d *decoder) documents(f *file, data []byte, known []doc, held bool) (jobs []job, check []checked) {
	texts, broken := d.split(f, data)
	if broken {
		return nil, nil
	}
	cache := map[contentID][]*content{}
	for _, old := range known {
		id := contentID{old.size, old.hash}
		cache[id] = append(cache[id], old.content)
	}
	f.docs = make([]doc, 0, len(texts)) // never grows, because jobs point into it
	for _, t := range texts {
		if kind, ok := d.foreign(f.path, t.Data); ok && !d.strict {
			if !held && !mayPromise(kind, t.Data) {
				f.skipped = append(f.skipped, spec.Skipped{Origin: spec.Origin{File: f.path, Line: t.Start()}, Kind: kind})
				continue
			}
			check = append(check, checked{t.Line, held})
		}
		hash := maphash.Bytes(d.seed, t.Data)
		f.docs = append(f.docs, doc{line: t.Line})
		at := &f.docs[len(f.docs)-1]
		if id := (contentID{len(t.Data), hash}); len(cache[id]) > 0 {
			at.content = cache[id][0]
			at.text = t
			cache[id] = cache[id][1:]
			continue
		}
		jobs = append(jobs, job{at, f.path, t, hash})
	}
	return jobs, check
}

// forgetUnused leaves only the skipped kind of the documents at these lines that tell nothing, and are not broken where that
// matters.
func (f *file) forgetUnused(all []checked) {
	f.docs = slices.DeleteFunc(f.docs, func(d doc) bool {
		i := slices.IndexFunc(all, func(c checked) bool { return c.line == d.line })
		if i < 0 || d.declares() || d.tells() || len(d.aside) > 0 && all[i].held {
			return false
		}
		skipped := relocateSkipped(f.path, d)
		if len(d.aside) > 0 {
			for i := range skipped {
				skipped[i].Reason = ""
			}
		}
		f.skipped = append(f.skipped, skipped...)
		return true
	})
}

// foreign is foreign with an interned kind.
func (d *decoder) foreign(path string, data []byte) (kind string, ok bool) {
	kind, ok = foreign(path, data)
	return d.intern.string(kind), ok
}

// split cuts a file into documents, or records why it cannot.
func (d *decoder) split(f *file, data []byte) (texts []document.Text, broken bool) {
	if f.rendered {
		return renderedTexts(data), false
	}
	texts, fault := document.Split(f.path, data)
	if fault == nil {
		return texts, false
	}
	p := &spec.Problem{Origin: spec.Origin{File: f.path, Line: fault.Line}, Detail: fault.Detail}
	if d.strict || d.named(f.path) || mayBeOurs(data, false) {
		f.broken = p
		return nil, true
	}
	f.aside = p
	f.skipped = []spec.Skipped{{Origin: p.Origin, Kind: noKind, Reason: p.Detail}}
	return nil, true
}

// parallel calls do for 0 to n-1 on all cores. A single call starts no goroutine, because that costs more than it
// saves.
func parallel(ctx context.Context, n int, do func(int)) error {
	if n == 1 {
		if err := ctx.Err(); err != nil {
			return err
		}
		do(0)
		return nil
	}
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range min(runtime.GOMAXPROCS(0), n) {
		g.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return nil
				}
				if err := ctx.Err(); err != nil {
					return err
				}
				do(i)
			}
		})
	}
	return g.Wait()
}
