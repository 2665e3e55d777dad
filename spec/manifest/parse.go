package manifest

import (
	"context"
	"hash/maphash"
	"runtime"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"weir/spec"
)

// file is one file taken apart and decoded.
type file struct {
	path string
	docs []doc
	// broken says why the file could not be taken apart; docs is then empty.
	broken *spec.Problem
}

// doc is where a content is.
type doc struct {
	line int // of its beginning, from 1
	*content
}

// contentID tells the bytes of documents apart. The hash is keyed, so that nobody can make two of the same.
type contentID struct {
	size int
	hash uint64
}

// parse decodes files on all cores. Documents that known has with the same bytes are taken from there.
func (d *decoder) parse(ctx context.Context, files []File, known func(path string) []doc) ([]*file, error) {
	type job struct {
		to   *doc
		path string
		text text
		hash uint64
	}
	parsed := make([]*file, len(files))
	jobs := make([][]job, len(files))
	err := parallel(ctx, len(files), func(i int) {
		f := &file{path: files[i].Path}
		parsed[i] = f
		texts, broken := split(f.path, files[i].Data)
		if broken != nil {
			f.broken = &spec.Problem{Origin: spec.Origin{File: f.path, Line: broken.line}, Detail: broken.detail}
			return
		}
		cache := map[contentID][]*content{}
		for _, old := range known(f.path) {
			id := contentID{old.size, old.hash}
			cache[id] = append(cache[id], old.content)
		}
		f.docs = make([]doc, len(texts))
		for j, t := range texts {
			hash := maphash.Bytes(d.seed, t.data)
			f.docs[j].line = t.line
			if id := (contentID{len(t.data), hash}); len(cache[id]) > 0 {
				f.docs[j].content = cache[id][0]
				f.docs[j].raw = t.data
				cache[id] = cache[id][1:]
				continue
			}
			jobs[i] = append(jobs[i], job{&f.docs[j], f.path, t, hash})
		}
	})
	if err != nil {
		return nil, err
	}
	var all []job
	for _, j := range jobs {
		all = append(all, j...)
	}
	err = parallel(ctx, len(all), func(i int) { all[i].to.content = d.decode(all[i].path, all[i].text, all[i].hash) })
	return parsed, err
}

// parallel calls do for 0 to n-1 on all cores. One alone is not worth waking another for.
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
