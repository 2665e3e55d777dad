package lastgood

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	kubeproxyconfig "k8s.io/kube-proxy/config/v1alpha1"

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/config"
	"weir/spec/stall"
	"weir/spec/statefile"
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
	recordSlice // belongs to the preceding Service
	recordNode
	recordEnd // holds the SHA-256 of everything before it
	recordSettings
	recordPlace // of the following Service
	recordLoose // the following slices belong to a Service that is not declared
	recordPod
	recordTemplate
)

// header names the cluster and node that a file belongs to.
type header struct {
	Cluster  string `json:"cluster"`
	Node     string `json:"node"`
	Revision string `json:"revision"`
	Dirty    bool   `json:"dirty,omitempty"`
	// ProxyOnly is that of the Revision.
	ProxyOnly bool      `json:"proxyOnly,omitempty"`
	Saved     time.Time `json:"saved"`
}

// settings are the configuration in a Snapshot.
type settings struct {
	Config         *kubeproxyconfig.KubeProxyConfiguration
	Origin         spec.Origin
	UDPIdleTimeout time.Duration
	// MinSyncPeriodGiven is that of the Snapshot.
	MinSyncPeriodGiven bool `json:",omitempty"`
	Weir               spec.WeirConfiguration
}

// place is what a Snapshot knows of an object besides the object.
type place struct {
	Origin    spec.Origin
	Allocated []spec.Allocation     `json:",omitempty"`
	Service   dataplane.ServiceName `json:",omitzero"`
	Object    string                `json:",omitempty"`
	Files     []string              `json:",omitempty"` // of the slices
	Probes    *spec.Probes          `json:",omitempty"`
}

// errForeign means that a file belongs to another node or cluster.
var errForeign = errors.New("was kept for another cluster or node")

// save writes the Snapshot atomically, with a mode that only its owner can read.
func save(file string, h header, snap *spec.Snapshot) error {
	return statefile.Write(file, func(out io.Writer) error {
		w := &writer{sum: sha256.New()}
		w.out = bufio.NewWriterSize(io.MultiWriter(out, w.sum), 64<<10)
		w.all(h, snap)
		if w.err == nil && w.size > maxSize {
			w.err = fmt.Errorf("the snapshot is larger than %d bytes", maxSize)
		}
		return w.err
	})
}

// writer writes records. It keeps its first error and writes nothing after it.
type writer struct {
	out  *bufio.Writer
	sum  hash.Hash
	size int64
	err  error
}

func (w *writer) all(h header, snap *spec.Snapshot) {
	w.write([]byte(magic))
	w.json(recordHeader, h)
	if snap.Config != nil {
		w.json(recordSettings, settings{snap.Config, snap.ConfigOrigin, snap.UDPIdleTimeout, snap.MinSyncPeriodGiven, snap.Weir})
	}
	for _, n := range snap.Nodes {
		data, err := n.Marshal()
		w.record(recordNode, data, err)
	}
	for svc := range snap.Services.All() {
		if svc.Origin.File != "" {
			w.json(recordPlace, place{Origin: svc.Origin, Allocated: svc.Allocated, Files: svc.SliceFiles, Probes: svc.Probes})
		}
		object := *svc.Object
		object.ResourceVersion = svc.Origin.ResourceVersion
		data, err := object.Marshal()
		w.record(recordService, data, err)
		w.slices(svc.Slices)
	}
	for name := range snap.Slices.Names() {
		s := snap.Slices.Get(name)
		w.json(recordLoose, place{Origin: s.Origin, Service: name, Object: s.Object, Files: s.Files})
		w.slices(s.List)
	}
	for pod := range snap.Pods.All() {
		data, err := pod.Marshal()
		w.record(recordPod, data, err)
	}
	for t := range snap.Templates.All() {
		w.json(recordTemplate, t)
	}
	w.flush()
	w.record(recordEnd, w.sum.Sum(nil), nil)
	w.flush()
}

func (w *writer) slices(list []*discoveryv1.EndpointSlice) {
	for _, s := range list {
		data, err := s.Marshal()
		w.record(recordSlice, data, err)
	}
}

func (w *writer) json(kind byte, v any) {
	text, err := json.Marshal(v)
	w.record(kind, text, err)
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

// load reads a file that save wrote. It returns an error for anything else, and for a file that another user may have
// written.
func load(ctx context.Context, file string, want header) (*spec.Snapshot, header, error) {
	f, err := stall.Do(ctx, stall.Limit, "opening "+file, func() (*os.File, error) { return statefile.Open(file) })
	if err != nil {
		return nil, header{}, err
	}
	defer f.Close()
	const limit = maxSize + maxRecord
	data, err := io.ReadAll(stall.Reader(ctx, "reading "+file, io.LimitReader(f, limit+1)))
	switch {
	case err != nil:
		return nil, header{}, err
	case len(data) > limit:
		return nil, header{}, fmt.Errorf("is larger than %d bytes", maxSize)
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

// next returns the next record.
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

// checked reports whether the checksum at the end is right. load checks it first, so that damaged data is never
// decoded.
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
	if !r.checked() {
		return nil, header{}, errDamaged
	}
	r.rest = r.whole[len(magic):]
	c := collector{services: spec.Services{}.Edit(), loose: spec.ByName[spec.Slices]{}.Edit(), pods: spec.Pods{}.Edit(), templates: spec.Templates{}.Edit()}
	c.snap = spec.Snapshot{Config: config.Default().KubeProxyConfiguration, Weir: spec.DefaultWeirConfiguration(), Nodes: map[string]*corev1.Node{}}
	for {
		kind, data, err := r.next()
		if err == nil && kind == recordEnd {
			return c.finish(), c.header, nil
		}
		if err == nil {
			err = c.add(kind, data)
		}
		if err != nil {
			return nil, c.header, err
		}
	}
}

// collector puts records together.
type collector struct {
	header    header
	snap      spec.Snapshot
	services  *spec.Builder[*spec.Service]
	loose     *spec.Builder[spec.Slices]
	pods      *spec.Builder[*corev1.Pod]
	templates *spec.Builder[*spec.Template]

	place place // of the next Service
	// slice takes the next slice. It belongs to the last Service, or to loose slices.
	slice func(*discoveryv1.EndpointSlice)
}

func (c *collector) add(kind byte, data []byte) error {
	switch kind {
	case recordHeader:
		return json.Unmarshal(data, &c.header)
	case recordSettings:
		var s settings
		err := json.Unmarshal(data, &s)
		c.snap.Config, c.snap.ConfigOrigin, c.snap.UDPIdleTimeout, c.snap.Weir = s.Config, s.Origin, s.UDPIdleTimeout, s.Weir
		c.snap.MinSyncPeriodGiven = s.MinSyncPeriodGiven
		return err
	case recordNode:
		n := &corev1.Node{}
		err := n.Unmarshal(data)
		c.snap.Nodes[n.Name] = n
		return err
	case recordPod:
		pod := &corev1.Pod{}
		err := pod.Unmarshal(data)
		c.pods.Put(dataplane.ServiceName{Namespace: pod.Namespace, Name: pod.Name}, pod)
		return err
	case recordTemplate:
		t := &spec.Template{}
		err := json.Unmarshal(data, t)
		c.templates.Put(dataplane.ServiceName{Namespace: t.Namespace, Name: t.Key()}, t)
		return err
	case recordPlace:
		return json.Unmarshal(data, &c.place)
	case recordService:
		svc := &spec.Service{Object: &corev1.Service{}, Origin: c.place.Origin, Allocated: c.place.Allocated, SliceFiles: c.place.Files, Probes: c.place.Probes}
		c.place = place{}
		err := svc.Object.Unmarshal(data)
		svc.Name = dataplane.ServiceName{Namespace: svc.Object.Namespace, Name: svc.Object.Name}
		svc.Origin.ResourceVersion, svc.Object.ResourceVersion = svc.Object.ResourceVersion, ""
		c.services.Put(svc.Name, svc)
		c.slice = func(s *discoveryv1.EndpointSlice) { svc.Slices = append(svc.Slices, s) }
		return err
	case recordLoose:
		var p place
		err := json.Unmarshal(data, &p)
		all := spec.Slices{Origin: p.Origin, Object: p.Object, Files: p.Files}
		c.slice = func(s *discoveryv1.EndpointSlice) {
			all.List = append(all.List, s)
			c.loose.Put(p.Service, all)
		}
		return err
	case recordSlice:
		if c.slice == nil {
			return errDamaged
		}
		s := &discoveryv1.EndpointSlice{}
		err := s.Unmarshal(data)
		c.slice(s)
		return err
	}
	return errDamaged
}

func (c *collector) finish() *spec.Snapshot {
	c.snap.Revision = spec.Revision{ID: c.header.Revision, Dirty: c.header.Dirty, ProxyOnly: c.header.ProxyOnly, Stale: true}
	c.snap.Kept = c.header.Saved
	c.snap.Services, c.snap.Slices = c.services.Commit(), c.loose.Commit()
	c.snap.Pods, c.snap.Templates = c.pods.Commit(), c.templates.Commit()
	return &c.snap
}
