package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/net/dns/dnsmessage"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weir/backends/dataplane"
	"weir/backends/dns"
	"weir/reconcile"
	"weir/reconcile/tell/names"
	"weir/spec"
	"weir/spec/apisource/apitest"
	"weir/spec/manifest"
	"weir/spec/seed"
)

// peerWorld is a set of manifests and questions, in the form of the command corednspeer.
type peerWorld struct {
	Options  []string                     `json:"options,omitempty"`
	Zones    []string                     `json:"zones"`
	Services []*corev1.Service            `json:"services"`
	Slices   []*discoveryv1.EndpointSlice `json:"slices"`
	// Questions has two for each of asked.
	Questions [][]byte `json:"questions"`
	Transfer  bool     `json:"transfer"`

	asked []dnsmessage.Question
	pods  dns.PodNames
}

type peerReplies struct {
	Replies [][]byte
	Zone    []string
}

// TestNamesPeer asks CoreDNS's own kubernetes plugin and weir the same questions about the same random manifests. The replies
// must agree in the response code, the flags, the records of every section with their TTLs, and the case of all names.
func TestNamesPeer(t *testing.T) {
	t.Parallel()
	const worlds, perWorld = 1000, 10
	peer := apitest.Binary(t, "corednspeer")
	r := seed.Rand(t)
	asked := make([]*peerWorld, worlds)
	servers := make([]*dns.Server, worlds)
	for i := range asked {
		asked[i], servers[i] = randomWorld(t, r, perWorld)
	}
	applied := make([]int, len(wantedDifferences))
	answered, different, records := 0, 0, 0
	for i, answer := range askCoreDNS(t, peer, asked) {
		w := asked[i]
		records += len(answer.Zone)
		if diff := cmp.Diff(comparable(answer.Zone), w.zone(servers[i].Resolver)); diff != "" {
			t.Errorf("the whole zone (-CoreDNS +weir):\n%sof\n%s", diff, w)
		}
		for j, q := range w.asked {
			c := &comparison{peerWorld: w, question: q, name: strings.ToLower(q.Name.String()), theirs: unpackReply(t, answer.Replies[2*j])}
			c.exists = c.doesExist(unpackReply(t, answer.Replies[2*j+1]))
			if len(c.theirs.Answers) > 0 {
				answered++
			}
			for k, d := range wantedDifferences {
				before := canonical(c.theirs)
				if d.adapt(c); canonical(c.theirs) != before {
					applied[k]++
				}
			}
			want, got := canonical(c.theirs), canonical(unpackReply(t, servers[i].Reply(t.Context(), w.Questions[2*j])))
			if want != got {
				if different++; different <= 10 {
					t.Errorf("%s %s\nCoreDNS:\n%sweir:\n%sof\n%s", q.Name, q.Type, want, got, w)
				}
			}
		}
	}
	if different > 10 {
		t.Errorf("%d replies differ", different)
	}
	if answered < worlds*perWorld/5 || records < 10*worlds {
		t.Errorf("only %d questions have an answer, and the zones %d records: they say too little", answered, records)
	}
	for i, n := range applied {
		if n == 0 {
			t.Errorf("the difference %q did not occur", wantedDifferences[i].sentence)
		}
	}
}

// zone returns the records of every Service.
func (w *peerWorld) zone(r *dns.Resolver) []string {
	var all []string
	for _, s := range w.Services {
		for _, record := range r.List(r.Zone.Names(dataplane.ServiceName{Namespace: s.Namespace, Name: s.Name})) {
			all = append(all, record.String())
		}
	}
	return comparable(all)
}

// comparable returns the records of a zone, each once. CoreDNS transfers no names of addresses and the same SOA record twice; it
// has SRV records of the names of Services, whose weights are not those that it answers with.
func comparable(records []string) []string {
	set := []string{}
	for _, record := range records {
		fields := strings.Split(record, "\t")
		switch kind := fields[3]; {
		case kind == "PTR" || kind == "SOA" || kind == "SRV" && !strings.HasPrefix(record, "_"):
			continue
		case kind == "SRV":
			data := strings.Fields(fields[4])
			fields[4] = strings.Join([]string{data[0], data[2], data[3]}, " ")
		}
		set = append(set, strings.Join(fields, "\t"))
	}
	slices.Sort(set)
	return slices.Compact(set)
}

func askCoreDNS(t *testing.T, peer string, worlds []*peerWorld) []peerReplies {
	t.Helper()
	var in bytes.Buffer
	for _, w := range worlds {
		if err := json.NewEncoder(&in).Encode(w); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), peer)
	cmd.Stdin = &in
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err, stderr.String())
	}
	replies := make([]peerReplies, len(worlds))
	d := json.NewDecoder(bytes.NewReader(out))
	for i := range replies {
		if err := d.Decode(&replies[i]); err != nil {
			t.Fatalf("world %d of %d: %v", i, len(worlds), err)
		}
	}
	return replies
}

func unpackReply(t *testing.T, reply []byte) *dnsmessage.Message {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(reply); err != nil {
		t.Fatalf("%v: %x", err, reply)
	}
	return &m
}

// canonical returns what a reply says, each section as a set. The serial of a SOA record is left out: it is a time.
func canonical(m *dnsmessage.Message) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%+v\n", m.Header)
	for _, q := range m.Questions {
		fmt.Fprintf(&b, "question %s %s\n", q.Name, q.Type)
	}
	for _, section := range []struct {
		name    string
		records []dnsmessage.Resource
	}{{"answer", m.Answers}, {"authority", m.Authorities}, {"additional", m.Additionals}} {
		var set []string
		for _, r := range section.records {
			if soa, ok := r.Body.(*dnsmessage.SOAResource); ok {
				soa.Serial = 0
			}
			set = append(set, fmt.Sprintf("%s %s %s %d %+v\n", section.name, r.Header.Name, r.Header.Type, r.Header.TTL, r.Body))
		}
		slices.Sort(set)
		b.WriteString(strings.Join(slices.Compact(set), ""))
	}
	return b.String()
}

// String returns the manifests, for a failure.
func (w *peerWorld) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", strings.Join(w.Options, "\n"))
	for _, s := range w.Services {
		text, _ := json.Marshal(s.Spec)
		fmt.Fprintf(&b, "Service %s.%s: %s\n", s.Name, s.Namespace, text)
	}
	for _, s := range w.Slices {
		text, _ := json.Marshal(s)
		fmt.Fprintf(&b, "%s\n", text)
	}
	return b.String()
}

// elsewhere answers for names outside of the zones as corednspeer does.
type elsewhere struct{}

// Forward implements dns.Forwarder.
func (elsewhere) Forward(_ context.Context, msg []byte, q dnsmessage.Question) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(msg); err != nil {
		return nil, err
	}
	m.Response, m.RecursionAvailable = true, true
	if isArpa(q.Name) {
		m.RCode = dnsmessage.RCodeNameError
	} else if q.Type == dnsmessage.TypeA {
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 300},
			Body:   &dnsmessage.AResource{A: [4]byte{192, 0, 2, 80}},
		}}
	}
	return m.Pack()
}

// randomWorld returns manifests as weir has them after it has read them, questions about them, and a server with them.
func randomWorld(t *testing.T, r *rand.Rand, questions int) (*peerWorld, *dns.Server) {
	t.Helper()
	w := &peerWorld{Transfer: true, Zones: []string{"cluster.local.", "in-addr.arpa.", "ip6.arpa."}, pods: pick(r, dns.PodsInsecure, dns.PodsInsecure, dns.PodsDisabled)}
	w.Options = []string{"pods " + string(w.pods), "fallthrough in-addr.arpa ip6.arpa"} // as in the Corefile of kubeadm
	snap, _, err := manifest.NewSet(manifest.Options{}).Update(t.Context(), spec.Revision{}, []manifest.File{{Path: "all.yaml", Data: randomManifests(t, r)}})
	if err != nil {
		t.Fatal(err)
	}
	for svc := range snap.Services.All() {
		w.Services = append(w.Services, svc.Object)
		for _, slice := range svc.Slices {
			labelled := slice.DeepCopy() // weir keeps no labels
			labelled.Namespace, labelled.Labels = svc.Name.Namespace, map[string]string{discoveryv1.LabelServiceName: svc.Name.Name}
			w.Slices = append(w.Slices, labelled)
		}
	}
	zone := names.NewZone()
	zone.Updated(spec.Update{Snapshot: snap, Delta: spec.Delta{All: true}})
	zone.Applied(reconcile.Report{})
	for i := range questions {
		q := dnsmessage.Question{Name: randomName(t, r, w), Class: dnsmessage.ClassINET}
		q.Type = likelyType(r, q.Name.String())
		w.ask(t, dnsmessage.Header{ID: uint16(i), RecursionDesired: r.IntN(4) > 0}, q)
	}
	return w, &dns.Server{
		Resolver:  &dns.Resolver{Zone: zone, Domain: "cluster.local.", Pods: w.pods},
		Forwarder: elsewhere{}, Log: hclog.NewNullLogger(),
	}
}

// ask adds a question, and one of a type that shows whether the name exists.
func (w *peerWorld) ask(t *testing.T, h dnsmessage.Header, q dnsmessage.Question) {
	t.Helper()
	w.asked = append(w.asked, q)
	existence := q
	existence.Type = dnsmessage.TypeHINFO
	if isArpa(q.Name) {
		existence.Type = dnsmessage.TypePTR
	}
	for _, question := range []dnsmessage.Question{q, existence} {
		m := dnsmessage.Message{Header: h, Questions: []dnsmessage.Question{question}}
		msg, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		w.Questions = append(w.Questions, msg)
	}
}

// likelyType returns a type that people ask for with such a name, or any.
func likelyType(r *rand.Rand, name string) dnsmessage.Type {
	switch {
	case r.IntN(4) == 0:
		return pick(r, questionTypes...)
	case strings.HasSuffix(strings.ToLower(name), "arpa."):
		return dnsmessage.TypePTR
	case strings.HasPrefix(name, "_"):
		return dnsmessage.TypeSRV
	}
	return pick(r, dnsmessage.TypeA, dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypeSRV)
}

var questionTypes = []dnsmessage.Type{
	dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypeSRV, dnsmessage.TypePTR, dnsmessage.TypeCNAME, dnsmessage.TypeTXT, dnsmessage.TypeMX, dnsmessage.TypeNS,
	dnsmessage.TypeSOA, dnsmessage.TypeHINFO, 64, 65, dnsmessage.TypeALL, dnsmessage.TypeAXFR, // 64 and 65 are SVCB and HTTPS
}

func pick[T any](r *rand.Rand, values ...T) T { return values[r.IntN(len(values))] }

var (
	peerNamespaces = []string{"default", "kube-system", "svc", "pod"}
	peerNames      = []string{"web", "db", "svc", "dns", "ns"}
)

// randomManifests returns a list of Services and EndpointSlices.
func randomManifests(t *testing.T, r *rand.Rand) []byte {
	t.Helper()
	list := map[string]any{"apiVersion": "v1", "kind": "List"}
	var items []any
	used := map[[2]string]bool{}
	for i := range 1 + r.IntN(6) {
		id := [2]string{pick(r, peerNamespaces...), pick(r, peerNames...)}
		if used[id] {
			continue
		}
		used[id] = true
		svc := randomService(r, i)
		svc.Namespace, svc.Name = id[0], id[1]
		items = append(items, svc)
		if svc.Spec.Type == corev1.ServiceTypeExternalName && r.IntN(4) > 0 {
			continue
		}
		for n := range r.IntN(4) {
			items = append(items, randomSlice(r, svc, n))
		}
	}
	list["items"] = items
	text, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func randomService(r *rand.Rand, i int) *corev1.Service {
	svc := &corev1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}}
	s := &svc.Spec
	v4, v6 := fmt.Sprintf("10.96.0.%d", i+1), fmt.Sprintf("fd00:96::%x", i*16)
	switch r.IntN(6) {
	case 0, 1:
		s.ClusterIPs = []string{corev1.ClusterIPNone}
		if r.IntN(3) == 0 {
			s.PublishNotReadyAddresses = true
		}
	case 2:
		s.Type = corev1.ServiceTypeExternalName
		s.ExternalName = pick(r, "www.example.com", "www.example.com.", "web.default.svc.cluster.local", "db.default.svc.cluster.local.",
			"web.svc.svc.cluster.local", "192.0.2.1", "nowhere.cluster.local", "cluster.local")
		return svc
	default:
		s.Type = pick(r, corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer)
		s.ClusterIPs = pick(r, []string{v4}, []string{v6}, []string{v4, v6}, []string{v6, v4})
	}
	s.ClusterIP = s.ClusterIPs[0]
	if len(s.ClusterIPs) == 2 {
		dual := corev1.IPFamilyPolicyRequireDualStack
		s.IPFamilyPolicy = &dual
	}
	ports := r.IntN(4)
	if s.ClusterIP != corev1.ClusterIPNone {
		ports = max(ports, 1)
	}
	for n := range ports {
		p := corev1.ServicePort{Port: int32(80 + n), Protocol: pick(r, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)}
		if ports > 1 || r.IntN(2) == 0 {
			p.Name = peerPortNames[n]
		}
		s.Ports = append(s.Ports, p)
	}
	return svc
}

var peerPortNames = []string{"http", "dns", "metrics"}

func randomSlice(r *rand.Rand, svc *corev1.Service, n int) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{Namespace: svc.Namespace, Name: fmt.Sprintf("%s-%d", svc.Name, n),
			Labels: map[string]string{discoveryv1.LabelServiceName: svc.Name}},
		AddressType: pick(r, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6),
	}
	count := r.IntN(4)
	for i := range count {
		p := discoveryv1.EndpointPort{Port: new(int32(8080 + r.IntN(2))), Protocol: new(pick(r, corev1.ProtocolTCP, corev1.ProtocolUDP))}
		if count > 1 || r.IntN(2) == 0 {
			p.Name = new(peerPortNames[i])
		}
		s.Ports = append(s.Ports, p)
	}
	for range r.IntN(5) {
		e := discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.244.%d.%d", r.IntN(2), 1+r.IntN(6))}}
		if s.AddressType == discoveryv1.AddressTypeIPv6 {
			e.Addresses = []string{pick(r, "fd00:244::", "fd00:244::1", "fd00:244:0:1::2", "fd00:244::1:0")}
		}
		switch r.IntN(4) {
		case 0:
			e.Conditions.Ready = new(false)
		case 1:
			e.Conditions.Ready = new(true)
		}
		if r.IntN(3) == 0 {
			e.Hostname = new(pick(r, "db-0", "db-1", "10-244-0-1"))
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

// randomName returns a name that the manifests give, or one like it.
func randomName(t *testing.T, r *rand.Rand, w *peerWorld) dnsmessage.Name {
	t.Helper()
	name := plainName(r, w)
	if r.IntN(10) == 0 { // one label less or more
		if _, rest, _ := strings.Cut(name, "."); inAny(w.Zones, rest) && r.IntN(2) == 0 {
			name = rest
		} else {
			name = pick(r, "a.", "_tcp.", "_http._tcp.", "dns.", "10-244-0-1.") + name
		}
	}
	if r.IntN(4) == 0 {
		mixed := []byte(name)
		for i, c := range mixed {
			if c >= 'a' && c <= 'z' && r.IntN(2) == 0 {
				mixed[i] = c - 'a' + 'A'
			}
		}
		name = string(mixed)
	}
	full, err := dnsmessage.NewName(name)
	if err != nil {
		t.Fatal(err)
	}
	return full
}

func isArpa(name dnsmessage.Name) bool {
	return strings.HasSuffix(strings.ToLower(name.String()), ".arpa.")
}

func inAny(zones []string, name string) bool {
	return slices.ContainsFunc(zones, func(z string) bool { return name == z || strings.HasSuffix(name, "."+z) })
}

func plainName(r *rand.Rand, w *peerWorld) string {
	svc := pick(r, w.Services...)
	own := svc.Name + "." + svc.Namespace + ".svc.cluster.local."
	if r.IntN(8) == 0 {
		own = pick(r, peerNames...) + "." + pick(r, append(peerNamespaces, "nowhere")...) + pick(r, ".svc", ".svc", ".pod", ".dns") + ".cluster.local."
	}
	switch r.IntN(12) {
	case 0, 1, 2, 3:
		return own
	case 4, 5:
		return "_" + pick(r, append(peerPortNames, "")...) + "._" + pick(r, "tcp", "udp", "sctp") + "." + own
	case 6, 7:
		if addr, host := randomEndpoint(r, w); addr != "" {
			a := netip.MustParseAddr(addr)
			if host == "" || r.IntN(3) == 0 {
				host = strings.NewReplacer(".", "-", ":", "-").Replace(addr)
				if strings.HasSuffix(host, "-") && r.IntN(4) > 0 {
					host += "0"
				}
			}
			return pick(r, host+"."+own, host+"."+svc.Namespace+".pod.cluster.local.", dns.ReverseName(a))
		}
		return "db-0." + own
	case 8:
		if a, err := netip.ParseAddr(svc.Spec.ClusterIP); err == nil {
			return dns.ReverseName(a)
		}
		return dns.ReverseName(netip.MustParseAddr(pick(r, "10.96.0.1", "10.244.0.1", "192.0.2.1", "fd00::")))
	case 9:
		return pick(r, "1-2-3-4", "fd00--1", "1-2-3", "--1", "fd00-1-2-3-4-5-6-7", "a", "0-0-0-0-") + "." + svc.Namespace + ".pod.cluster.local."
	case 10:
		return pick(r, "cluster.local.", "svc.cluster.local.", "pod.cluster.local.", "dns.cluster.local.", "dns-version.cluster.local.", "in-addr.arpa.", "ip6.arpa.",
			"10.in-addr.arpa.", "0.96.10.in-addr.arpa.", "1.2.3.4.5.in-addr.arpa.", "x.in-addr.arpa.", "d.f.ip6.arpa.")
	}
	return pick(r, svc.Namespace+".svc.cluster.local.", svc.Namespace+".pod.cluster.local.", "nowhere.svc.cluster.local.", "else.cluster.local.", "apex.dns.cluster.local.")
}

func randomEndpoint(r *rand.Rand, w *peerWorld) (addr, host string) {
	if len(w.Slices) == 0 {
		return "", ""
	}
	slice := pick(r, w.Slices...)
	if len(slice.Endpoints) == 0 {
		return "", ""
	}
	e := pick(r, slice.Endpoints...)
	if e.Hostname != nil {
		host = *e.Hostname
	}
	return e.Addresses[0], host
}
