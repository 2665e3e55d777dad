// Package lastgood keeps on disk what a Kubernetes API said last, so that a node that starts while the API is away has
// something to go by.
package lastgood

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"time"

	iradix "github.com/hashicorp/go-immutable-radix/v2"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"weir/spec"
	"weir/spec/config"
)

const (
	// magic begins every file. The number changes with the format.
	magic = "weir last good snapshot 1\n"
	// maxSize bounds a file, in bytes: about 500,000 endpoints.
	maxSize = 256 << 20
	// maxRecord bounds one object, in bytes; an API server refuses larger ones.
	maxRecord = 4 << 20
)

// The kinds of records.
const (
	recordHeader byte = iota + 1
	recordService
	recordSlice // belongs to the Service before it
	recordNode
	recordEnd // holds the SHA-256 of all before it
)

// header says what a file is for.
type header struct {
	Cluster  string    `json:"cluster"`
	Node     string    `json:"node"`
	Revision string    `json:"revision"`
	Saved    time.Time `json:"saved"`
}

// errForeign says that a file was kept for another node or cluster.
var errForeign = errors.New("was kept for another cluster or node")

// save writes the Snapshot atomically, readable to its owner alone.
func save(file string, h header, snap *spec.Snapshot) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+"-*") // 0600
	if err != nil {
		return err
	}
	defer func() {
		tmp.Close()
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	w := &writer{sum: sha256.New()}
	w.out = bufio.NewWriterSize(io.MultiWriter(tmp, w.sum), 64<<10)
	w.all(h, snap)
	if w.err == nil && w.size > maxSize {
		w.err = fmt.Errorf("the snapshot is larger than %d bytes", maxSize)
	}
	if w.err != nil {
		return w.err
	}
	if err := tmp.Sync(); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), file); err != nil {
		return err
	}
	return syncDir(filepath.Dir(file))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// writer writes records. The first error sticks.
type writer struct {
	out  *bufio.Writer
	sum  hash.Hash
	size int64
	err  error
}

func (w *writer) all(h header, snap *spec.Snapshot) {
	w.write([]byte(magic))
	text, err := json.Marshal(h)
	w.record(recordHeader, text, err)
	for _, n := range snap.Nodes {
		data, err := n.Marshal()
		w.record(recordNode, data, err)
	}
	for svc := range snap.Services() {
		object := *svc.Object
		object.ResourceVersion = svc.Origin.ResourceVersion
		data, err := object.Marshal()
		w.record(recordService, data, err)
		for _, s := range svc.Slices {
			data, err := s.Marshal()
			w.record(recordSlice, data, err)
		}
	}
	w.flush()
	w.record(recordEnd, w.sum.Sum(nil), nil)
	w.flush()
}

func (w *writer) flush() {
	if w.err == nil {
		w.err = w.out.Flush()
	}
}

func (w *writer) write(b []byte) {
	if w.err == nil {
		_, w.err = w.out.Write(b)
		w.size += int64(len(b))
	}
}

func (w *writer) record(kind byte, data []byte, err error) {
	if w.err == nil {
		w.err = err
	}
	w.write(binary.AppendUvarint([]byte{kind}, uint64(len(data))))
	w.write(data)
}

// load reads a file that save wrote. Anything else is an error.
func load(file string, want header) (*spec.Snapshot, header, error) {
	fi, err := os.Lstat(file)
	switch {
	case err != nil:
		return nil, header{}, err
	case !fi.Mode().IsRegular():
		return nil, header{}, errors.New("is not a regular file")
	case fi.Size() > maxSize+maxRecord:
		return nil, header{}, fmt.Errorf("is larger than %d bytes", maxSize)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, header{}, err
	}
	r := reader{rest: data, whole: data}
	snap, h, err := r.all()
	if err == nil && (h.Cluster != want.Cluster || h.Node != want.Node) {
		err = errForeign
	}
	return snap, h, err
}

type reader struct{ rest, whole []byte }

var errDamaged = errors.New("is damaged")

// next returns a record.
func (r *reader) next() (kind byte, data []byte, err error) {
	if len(r.rest) == 0 {
		return 0, nil, errDamaged
	}
	size, n := binary.Uvarint(r.rest[1:])
	if n <= 0 || size > maxRecord || size > uint64(len(r.rest)-1-n) {
		return 0, nil, errDamaged
	}
	kind, data = r.rest[0], r.rest[1+n:1+n+int(size)]
	r.rest = r.rest[1+n+int(size):]
	return kind, data, nil
}

// checked says whether the checksum at the end is right. It comes first: what is damaged is not decoded.
func (r *reader) checked() bool {
	const tail = 2 + sha256.Size
	if len(r.whole) < len(magic)+tail || !bytes.HasPrefix(r.whole, []byte(magic)) {
		return false
	}
	end := len(r.whole) - tail
	sum := sha256.Sum256(r.whole[:end])
	return r.whole[end] == recordEnd && r.whole[end+1] == sha256.Size && bytes.Equal(sum[:], r.whole[end+2:])
}

func (r *reader) all() (*spec.Snapshot, header, error) {
	var h header
	if !r.checked() {
		return nil, h, errDamaged
	}
	r.rest = r.whole[len(magic):]
	snap := spec.Snapshot{Config: config.Default().KubeProxyConfiguration, Weir: spec.DefaultWeirConfiguration(), Nodes: map[string]*corev1.Node{}}
	txn := iradix.New[*spec.Service]().Txn()
	var svc *spec.Service
	for {
		kind, data, err := r.next()
		if err != nil {
			return nil, h, err
		}
		switch kind {
		case recordHeader:
			err = json.Unmarshal(data, &h)
		case recordNode:
			n := &corev1.Node{}
			err = n.Unmarshal(data)
			snap.Nodes[n.Name] = n
		case recordService:
			svc = &spec.Service{Object: &corev1.Service{}}
			err = svc.Object.Unmarshal(data)
			svc.Name = spec.Name{Namespace: svc.Object.Namespace, Name: svc.Object.Name}
			svc.Origin.ResourceVersion, svc.Object.ResourceVersion = svc.Object.ResourceVersion, ""
			txn.Insert(spec.ServiceKey(svc.Name), svc)
		case recordSlice:
			s := &discoveryv1.EndpointSlice{}
			if err = s.Unmarshal(data); svc == nil {
				err = errDamaged
			} else {
				svc.Slices = append(svc.Slices, s)
			}
		case recordEnd:
			snap.Revision = spec.Revision{ID: h.Revision, Stale: true}
			return snap.WithServices(txn.Commit()), h, nil
		default:
			err = errDamaged
		}
		if err != nil {
			return nil, h, err
		}
	}
}
