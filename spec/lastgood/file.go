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
	recordEnd // holds the SHA-256 of everything before it, up to the one before, of which it has the checksum alone
	recordSettings
	recordPlace // of the following Service
	recordLoose // the following slices belong to a Service that is not declared
	recordPod
	recordTemplate
	recordGone // of what was kept before
)

// header names the cluster and node that a file belongs to.
type header struct {
	Cluster  string `json:"cluster"`
	Node     string `json:"node"`
	Revision string `json:"revision"`
	Dirty    bool   `json:"dirty,omitempty"`
	Signer   string `json:"signer,omitempty"`
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
	WeirOrigin         spec.Origin `json:",omitzero"`
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

// gone names what a change took from what was kept before. Nodes are those before the change, all of them.
type gone struct {
	Services []dataplane.ServiceName `json:",omitempty"`
	Slices   []dataplane.ServiceName `json:",omitempty"`
	Nodes    bool                    `json:",omitempty"`
}

// change says what differs between two Snapshots. What else may differ is written with everything.
type change struct {
	all, nodes bool
	services   map[dataplane.ServiceName]struct{}
}

// add adds the Delta of a later Snapshot.
func (c *change) add(d spec.Delta) {
	c.all = c.all || d.All || d.Config || len(d.Pods)+len(d.Templates) > 0
	c.nodes = c.nodes || d.Nodes
	if c.services == nil {
		c.services = make(map[dataplane.ServiceName]struct{}, len(d.Services))
	}
	for _, name := range d.Services {
		c.services[name] = struct{}{}
	}
}

// kept is a file as it was written last. After a change that is small beside all, only the change is written.
type kept struct {
	log   statefile.Log
	owner header
	size  int64
	// sum is what the last record holds.
	sum []byte
}

// save writes the Snapshot atomically, with a mode that only its owner can read.
func (k *kept) save(file string, h header, snap *spec.Snapshot) error {
	w := &writer{sum: sha256.New()}
	err := k.log.Write(file, func(out io.Writer) error {
		w.out = bufio.NewWriterSize(io.MultiWriter(out, w.sum), 64<<10)
		w.all(h, snap)
		if w.err == nil && w.size > maxSize {
			w.err = fmt.Errorf("the snapshot is larger than %d bytes", maxSize)
		}
		return w.err
	})
	k.owner, k.size, k.sum = h, w.size, w.last
	return err
}

// update writes what has changed since the last save or update.
func (k *kept) update(file string, h header, snap *spec.Snapshot, c change) error {
	if c.all || k.sum == nil || h.Cluster != k.owner.Cluster || h.Node != k.owner.Node {
		return k.save(file, h, snap)
	}
	var buffer bytes.Buffer
	w := &writer{sum: sha256.New()}
	w.sum.Write(k.sum) // so that a change is good only where it was written
	w.out = bufio.NewWriter(io.MultiWriter(&buffer, w.sum))
	w.change(h, snap, c)
	if w.err == nil {
		w.err = k.log.Append(file, buffer.Bytes())
	}
	if w.err != nil || k.size+w.size > maxSize { // such as for a file that another process has replaced
		return k.save(file, h, snap)
	}
	k.size, k.sum = k.size+w.size, w.last
	return nil
}

// writer writes records. It keeps its first error and writes nothing after it.
type writer struct {
	out  *bufio.Writer
	sum  hash.Hash
	last []byte // the checksum of all
	size int64
	err  error
}

// change writes what differs.
func (w *writer) change(h header, snap *spec.Snapshot, c change) {
	w.json(recordHeader, h)
	g := gone{Nodes: c.nodes}
	for name := range c.services {
		if snap.Services.Get(name) == nil {
			g.Services = append(g.Services, name)
		}
		if len(snap.Slices.Get(name).List) == 0 {
			g.Slices = append(g.Slices, name)
		}
	}
	w.json(recordGone, g)
	if c.nodes {
		w.nodes(snap)
	}
	for name := range c.services {
		if svc := snap.Services.Get(name); svc != nil {
			w.service(svc)
		}
		if s := snap.Slices.Get(name); len(s.List) > 0 {
			w.loose(name, s)
		}
	}
	w.end()
}

func (w *writer) all(h header, snap *spec.Snapshot) {
	w.write([]byte(magic))
	w.json(recordHeader, h)
	if snap.Config != nil {
		w.json(recordSettings, settings{snap.Config, snap.ConfigOrigin, snap.UDPIdleTimeout, snap.MinSyncPeriodGiven, snap.Weir, snap.WeirOrigin})
	}
	w.nodes(snap)
	for svc := range snap.Services.All() {
		w.service(svc)
	}
	for name := range snap.Slices.Names() {
		w.loose(name, snap.Slices.Get(name))
	}
	for pod := range snap.Pods.All() {
		data, err := pod.Marshal()
		w.record(recordPod, data, err)
	}
	for t := range snap.Templates.All() {
		w.json(recordTemplate, t)
	}
	w.end()
}

func (w *writer) nodes(snap *spec.Snapshot) {
	for _, n := range snap.Nodes {
		data, err := n.Marshal()
		w.record(recordNode, data, err)
	}
}

func (w *writer) service(svc *spec.Service) {
	if svc.Origin.File != "" {
		w.json(recordPlace, place{Origin: svc.Origin, Allocated: svc.Allocated, Files: svc.SliceFiles, Probes: svc.Probes})
	}
	object := *svc.Object
	object.ResourceVersion = svc.Origin.ResourceVersion
	data, err := object.Marshal()
	w.record(recordService, data, err)
	w.slices(svc.Slices)
}

func (w *writer) loose(name dataplane.ServiceName, s spec.Slices) {
	w.json(recordLoose, place{Origin: s.Origin, Service: name, Object: s.Object, Files: s.Files})
	w.slices(s.List)
}

func (w *writer) end() {
	w.flush()
	sum := w.sum.Sum(nil)
	w.record(recordEnd, sum, nil)
	w.flush()
	if w.err == nil {
		w.last = sum
	}
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

// intact returns how much of the data is right: the first checksum, and those of changes after it, up to one that was not
// written to its end. load asks it first, so that damaged data is never decoded.
func (r *reader) intact() (size int) {
	if !bytes.HasPrefix(r.whole, []byte(magic)) {
		return 0
	}
	begin := len(magic) // of a record
	sum := sha256.New()
	sum.Write(r.whole[:begin])
	for rest := (&reader{rest: r.whole[begin:]}); ; {
		kind, data, err := rest.next()
		if err != nil {
			return size
		}
		end := len(r.whole) - len(rest.rest)
		if kind != recordEnd {
			sum.Write(r.whole[begin:end])
			begin = end
			continue
		}
		if !bytes.Equal(sum.Sum(nil), data) {
			return size
		}
		size, begin = end, end
		sum = sha256.New()
		sum.Write(data)
	}
}

func (r *reader) all() (*spec.Snapshot, header, error) {
	size := r.intact()
	if size == 0 {
		return nil, header{}, errDamaged
	}
	r.rest = r.whole[len(magic):size]
	c := collector{services: spec.Services{}.Edit(), loose: spec.ByName[spec.Slices]{}.Edit(), pods: spec.Pods{}.Edit(), templates: spec.Templates{}.Edit()}
	c.snap = spec.Snapshot{Config: config.Default().KubeProxyConfiguration, Weir: spec.DefaultWeirConfiguration(), Nodes: map[string]*corev1.Node{}}
	for len(r.rest) > 0 {
		kind, data, err := r.next()
		if err == nil {
			err = c.add(kind, data)
		}
		if err != nil {
			return nil, c.header, err
		}
	}
	return c.finish(), c.header, nil
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
		c.header = header{}
		return json.Unmarshal(data, &c.header)
	case recordEnd:
		c.slice = nil
		return nil
	case recordGone:
		return c.remove(data)
	case recordSettings:
		var s settings
		err := json.Unmarshal(data, &s)
		c.snap.Config, c.snap.ConfigOrigin, c.snap.UDPIdleTimeout, c.snap.Weir, c.snap.WeirOrigin = s.Config, s.Origin, s.UDPIdleTimeout, s.Weir, s.WeirOrigin
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

// remove takes away what a change took from what was kept before.
func (c *collector) remove(data []byte) error {
	var g gone
	err := json.Unmarshal(data, &g)
	for _, name := range g.Services {
		c.services.Delete(name)
	}
	for _, name := range g.Slices {
		c.loose.Delete(name)
	}
	if g.Nodes {
		clear(c.snap.Nodes)
	}
	return err
}

func (c *collector) finish() *spec.Snapshot {
	c.snap.Revision = spec.Revision{ID: c.header.Revision, Dirty: c.header.Dirty, Signer: c.header.Signer, ProxyOnly: c.header.ProxyOnly, Stale: true}
	c.snap.Kept = c.header.Saved
	c.snap.Services, c.snap.Slices = c.services.Commit(), c.loose.Commit()
	c.snap.Pods, c.snap.Templates = c.pods.Commit(), c.templates.Commit()
	return &c.snap
}
