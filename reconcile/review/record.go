package review

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"weir/backends"
)

// RecordKind is the kind of the document that "weir snapshot" writes.
const RecordKind = "NodeSnapshot"

// maxRecord bounds the documents that are read, in bytes.
const maxRecord = 1 << 30

// Record is what a node was last brought to: the document that "weir snapshot" prints and "--against" reads.
type Record struct {
	Node     string
	Zone     string
	Families []backends.Family
	Revision string
	State
}

// The JSON form keeps the field's names and nothing that is at its default.
type recordDoc struct {
	APIVersion string     `json:"apiVersion"`
	Kind       string     `json:"kind"`
	Node       string     `json:"node"`
	Zone       string     `json:"zone,omitempty"`
	Families   []string   `json:"families"`
	Mode       string     `json:"mode"`
	Revision   string     `json:"revision,omitempty"`
	Entries    []entryDoc `json:"entries"` // the last, for Write
}

type entryDoc struct {
	Namespace           string           `json:"namespace"`
	Name                string           `json:"name"`
	Port                string           `json:"port,omitempty"`
	Protocol            string           `json:"protocol"`
	Family              string           `json:"family"`
	Source              string           `json:"source,omitempty"`
	ClusterIP           netip.Addr       `json:"clusterIP"`
	PortNumber          uint16           `json:"portNumber"`
	NodePort            uint16           `json:"nodePort,omitempty"`
	ExternalIPs         []netip.Addr     `json:"externalIPs,omitempty"`
	LoadBalancerIPs     []netip.Addr     `json:"loadBalancerIPs,omitempty"`
	SourceRanges        []netip.Prefix   `json:"sourceRanges,omitempty"`
	InternalLocal       bool             `json:"internalLocal,omitempty"`
	ExternalLocal       bool             `json:"externalLocal,omitempty"`
	AffinitySeconds     int64            `json:"affinitySeconds,omitempty"`
	Endpoints           []endpointDoc    `json:"endpoints,omitempty"`
	Serving             []netip.AddrPort `json:"serving,omitempty"`
	HasEndpoints        bool             `json:"hasEndpoints,omitempty"`
	HealthCheckNodePort uint16           `json:"healthCheckNodePort,omitempty"`
	ProxyProtocol       bool             `json:"proxyProtocol,omitempty"`
	Scheduler           string           `json:"scheduler,omitempty"`
}

type endpointDoc struct {
	Address netip.AddrPort `json:"address"`
	Cluster bool           `json:"cluster,omitempty"`
	Local   bool           `json:"local,omitempty"`
	Remote  bool           `json:"remote,omitempty"`
	Weight  uint16         `json:"weight"`
}

// Write writes the Record as JSON, one Entry on a line.
func (r *Record) Write(w io.Writer) error {
	doc := recordDoc{APIVersion: APIVersion, Kind: RecordKind, Node: r.Node, Zone: r.Zone, Mode: r.Mode, Revision: r.Revision, Families: []string{}, Entries: []entryDoc{}}
	for _, f := range r.Families {
		doc.Families = append(doc.Families, f.String())
	}
	head, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	// One Entry at a time, since the text of all of them may be larger than the rest of the process.
	if _, err := fmt.Fprintf(w, "%s\n", bytes.TrimSuffix(head, []byte("]}"))); err != nil {
		return err
	}
	enc := json.NewEncoder(w)
	for i, e := range r.Entries {
		if i > 0 {
			if _, err := io.WriteString(w, ","); err != nil {
				return err
			}
		}
		if err := enc.Encode(docOf(e)); err != nil {
			return err
		}
	}
	_, err = io.WriteString(w, "]}\n")
	return err
}

func docOf(e *backends.Entry) entryDoc {
	d := entryDoc{
		Namespace: e.Key.Service.Namespace, Name: e.Key.Service.Name, Port: e.Key.Port, Protocol: e.Key.Protocol.String(), Family: e.Key.Family.String(),
		Source: e.Origin, ClusterIP: e.ClusterIP, PortNumber: e.Port, NodePort: e.NodePort, ExternalIPs: e.ExternalIPs, LoadBalancerIPs: e.LoadBalancerIPs,
		SourceRanges: e.SourceRanges, InternalLocal: e.InternalLocal, ExternalLocal: e.ExternalLocal, AffinitySeconds: int64(e.Affinity / time.Second),
		Serving: e.Serving, HasEndpoints: e.HasEndpoints, HealthCheckNodePort: e.HealthCheckNodePort, ProxyProtocol: e.ProxyProtocol, Scheduler: e.Scheduler,
	}
	d.Endpoints = make([]endpointDoc, 0, len(e.Endpoints))
	for _, ep := range e.Endpoints {
		d.Endpoints = append(d.Endpoints, endpointDoc{ep.Addr, ep.Cluster, ep.Local, ep.Remote, ep.Weight})
	}
	return d
}

// ReadRecord reads what Write wrote. Anything else is an error, whatever it is.
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
	rec := &Record{Node: doc.Node, Zone: doc.Zone, Revision: doc.Revision, State: State{Mode: doc.Mode}}
	for _, name := range doc.Families {
		f, err := familyOf(name)
		if err != nil {
			return nil, err
		}
		rec.Families = append(rec.Families, f)
	}
	seen := make(map[backends.PortKey]bool, len(doc.Entries))
	for i := range doc.Entries {
		e, err := doc.Entries[i].entry()
		if err == nil && seen[e.Key] {
			err = errors.New("is there twice")
		}
		if err != nil {
			return nil, fmt.Errorf("entries[%d] (%s/%s): %w", i, doc.Entries[i].Namespace, doc.Entries[i].Name, err)
		}
		seen[e.Key] = true
		rec.Entries = append(rec.Entries, e)
	}
	return rec, nil
}

func familyOf(name string) (backends.Family, error) {
	for _, f := range []backends.Family{backends.IPv4, backends.IPv6} {
		if f.String() == name {
			return f, nil
		}
	}
	return 0, fmt.Errorf("family %q: must be IPv4 or IPv6", name)
}

func protocolOf(name string) (backends.Protocol, error) {
	for _, p := range []backends.Protocol{backends.TCP, backends.UDP, backends.SCTP} {
		if p.String() == name {
			return p, nil
		}
	}
	return 0, fmt.Errorf("protocol %q: must be TCP, UDP or SCTP", name)
}

func (d *entryDoc) entry() (*backends.Entry, error) {
	f, err := familyOf(d.Family)
	if err != nil {
		return nil, err
	}
	p, err := protocolOf(d.Protocol)
	if err != nil {
		return nil, err
	}
	e := &backends.Entry{
		Key:    backends.PortKey{Service: backends.ServiceName{Namespace: d.Namespace, Name: d.Name}, Port: d.Port, Protocol: p, Family: f},
		Origin: d.Source, ClusterIP: d.ClusterIP, Port: d.PortNumber, NodePort: d.NodePort, ExternalIPs: d.ExternalIPs, LoadBalancerIPs: d.LoadBalancerIPs,
		SourceRanges: d.SourceRanges, InternalLocal: d.InternalLocal, ExternalLocal: d.ExternalLocal, Affinity: time.Duration(d.AffinitySeconds) * time.Second,
		Serving: d.Serving, HasEndpoints: d.HasEndpoints, HealthCheckNodePort: d.HealthCheckNodePort, ProxyProtocol: d.ProxyProtocol, Scheduler: d.Scheduler,
	}
	addrs := []netip.Addr{d.ClusterIP}
	addrs = append(append(addrs, d.ExternalIPs...), d.LoadBalancerIPs...)
	for _, r := range d.SourceRanges {
		addrs = append(addrs, r.Addr())
	}
	for _, ep := range d.Endpoints {
		addrs = append(addrs, ep.Address.Addr())
		e.Endpoints = append(e.Endpoints, backends.Endpoint{Addr: ep.Address, Cluster: ep.Cluster, Local: ep.Local, Remote: ep.Remote, Weight: ep.Weight})
	}
	for _, a := range addrs {
		if !a.IsValid() || a.Zone() != "" || a.Is4In6() || backends.FamilyOf(a) != f {
			return nil, fmt.Errorf("%q is not an %s address", a, f)
		}
	}
	return e, nil
}
