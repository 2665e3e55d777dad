package changes

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"weir/backends/dataplane"
	"weir/spec"
)

// RecordKind is the kind of the document that "weir snapshot" writes.
const RecordKind = "NodeSnapshot"

// maxRecord limits the documents that are read, in bytes.
const maxRecord = 1 << 30

// Record is the state that a node was last brought to: the document that "weir snapshot" prints and "--against" reads.
type Record struct {
	Node     string
	Zone     string
	Families []dataplane.Family
	Revision string
	// Pods are those that runtimes told of, for plans that are made elsewhere.
	Pods []*corev1.Pod
	State
}

// PodsOf returns the pods of all layers of a Snapshot.
func PodsOf(found []spec.Pods) (all []*corev1.Pod) {
	for _, pods := range found {
		for pod := range pods.All() {
			all = append(all, pod)
		}
	}
	return all
}

// The JSON form keeps the field's names and leaves out defaults.
type recordDoc struct {
	APIVersion   string                   `json:"apiVersion"`
	Kind         string                   `json:"kind"`
	Node         string                   `json:"node"`
	Zone         string                   `json:"zone,omitempty"`
	Families     []string                 `json:"families"`
	Mode         string                   `json:"mode"`
	Revision     string                   `json:"revision,omitempty"`
	Pods         []*corev1.Pod            `json:"pods,omitempty"`
	ServicePorts []*dataplane.ServicePort `json:"entries"` // the last field, for Write
}

// Write writes the Record as JSON, one ServicePort on a line.
func (r *Record) Write(w io.Writer) error {
	doc := recordDoc{APIVersion: APIVersion, Kind: RecordKind, Node: r.Node, Zone: r.Zone, Mode: r.Mode, Revision: r.Revision, Pods: r.Pods, Families: []string{}, ServicePorts: []*dataplane.ServicePort{}}
	for _, f := range r.Families {
		doc.Families = append(doc.Families, f.String())
	}
	head, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	// Write one ServicePort at a time, because the text of all may need more memory than the rest of the process.
	if _, err := fmt.Fprintf(w, "%s\n", bytes.TrimSuffix(head, []byte("]}"))); err != nil {
		return err
	}
	enc := json.NewEncoder(w)
	for i, e := range r.ServicePorts {
		if i > 0 {
			if _, err := io.WriteString(w, ","); err != nil {
				return err
			}
		}
		if err := enc.Encode(e); err != nil {
			return err
		}
	}
	_, err = io.WriteString(w, "]}\n")
	return err
}

// RecordChange is what a Record gains and loses later.
type RecordChange struct {
	Revision     string
	ServicePorts []*dataplane.ServicePort
	Gone         []dataplane.ServicePortName
}

// changeDoc is its JSON form. What is gone is there by its printed name.
type changeDoc struct {
	Kind         string                   `json:"kind"`
	Revision     string                   `json:"revision,omitempty"`
	ServicePorts []*dataplane.ServicePort `json:"entries,omitempty"`
	Gone         []string                 `json:"gone,omitempty"`
}

const changeKind = "NodeSnapshotChange"

// Write writes the change as a line of JSON, to be appended to the Record.
func (c *RecordChange) Write(w io.Writer) error {
	doc := changeDoc{Kind: changeKind, Revision: c.Revision, ServicePorts: c.ServicePorts}
	for _, key := range c.Gone {
		doc.Gone = append(doc.Gone, key.String())
	}
	return json.NewEncoder(w).Encode(doc)
}

// readChanges applies the changes that follow a Record, up to one that was not written to its end.
func (r *Record) readChanges(dec *json.Decoder) {
	var now map[string]*dataplane.ServicePort // of all, once there is a change
	for {
		var doc changeDoc
		if err := dec.Decode(&doc); err != nil || doc.Kind != changeKind || slices.Contains(doc.ServicePorts, nil) {
			break
		}
		if now == nil {
			now = make(map[string]*dataplane.ServicePort, len(r.ServicePorts))
			for _, p := range r.ServicePorts {
				now[p.Key.String()] = p
			}
		}
		r.Revision = doc.Revision
		for _, name := range doc.Gone {
			delete(now, name)
		}
		for _, p := range doc.ServicePorts {
			now[p.Key.String()] = p
		}
	}
	if now != nil {
		r.ServicePorts = slices.SortedFunc(maps.Values(now), func(a, b *dataplane.ServicePort) int { return a.Key.Compare(b.Key) })
	}
}

// ReadRecord reads what Write wrote, with the changes that were appended. It returns an error for anything else, but ends at a
// change that was not written to its end.
func ReadRecord(r io.Reader) (*Record, error) {
	in := &io.LimitedReader{R: r, N: maxRecord}
	dec := json.NewDecoder(in)
	dec.DisallowUnknownFields()
	var doc recordDoc
	if err := dec.Decode(&doc); err != nil {
		if in.N == 0 {
			err = fmt.Errorf("larger than %d bytes", maxRecord)
		}
		return nil, fmt.Errorf("not what weir snapshot writes: %w", err)
	}
	if doc.Kind != RecordKind || doc.APIVersion != APIVersion {
		return nil, fmt.Errorf("apiVersion %q, kind %q: must be %s, kind %s, as weir snapshot writes it", doc.APIVersion, doc.Kind, APIVersion, RecordKind)
	}
	rec := &Record{Node: doc.Node, Zone: doc.Zone, Revision: doc.Revision, Pods: doc.Pods, State: State{Mode: doc.Mode}}
	for _, name := range doc.Families {
		f, err := dataplane.ParseFamily(name)
		if err != nil {
			return nil, err
		}
		rec.Families = append(rec.Families, f)
	}
	for i, pod := range doc.Pods {
		if pod == nil || pod.Namespace == "" || pod.Name == "" {
			return nil, fmt.Errorf("pods[%d]: has no name", i)
		}
	}
	seen := make(map[dataplane.ServicePortName]bool, len(doc.ServicePorts))
	for i, e := range doc.ServicePorts {
		if e == nil || seen[e.Key] {
			return nil, fmt.Errorf("entries[%d]: is null or there twice", i)
		}
		seen[e.Key] = true
		rec.ServicePorts = append(rec.ServicePorts, e)
	}
	rec.readChanges(dec)
	return rec, nil
}
