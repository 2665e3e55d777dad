// Command corednspeer says what CoreDNS's own kubernetes plugin answers to questions about Services. Each line of its input is
// a World in JSON, and each line of its output the Answer to it. With an address as its argument, it answers there instead.
//
// It is a module of its own, so that weir does not depend on CoreDNS.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/plugin/kubernetes"
	"github.com/coredns/coredns/plugin/pkg/dnstest"
	"github.com/coredns/coredns/plugin/test"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// World is a set of objects, and questions about them.
type World struct {
	// Options are lines of the plugin's block in a Corefile.
	Options []string `json:"options,omitempty"`
	// Zones are those that the plugin answers for.
	Zones    []string                     `json:"zones"`
	Services []*corev1.Service            `json:"services"`
	Slices   []*discoveryv1.EndpointSlice `json:"slices"`
	Pods     []*corev1.Pod                `json:"pods,omitempty"`
	// Unsynced means that the objects have not all been read yet.
	Unsynced bool `json:"unsynced,omitempty"`
	// Questions are messages as they are sent.
	Questions [][]byte `json:"questions"`
	// Transfer asks for the whole first zone as well.
	Transfer bool `json:"transfer,omitempty"`
}

// Answer has a message for each question, and the records of the zone.
type Answer struct {
	Replies [][]byte `json:"replies"`
	Zone    []string `json:"zone,omitempty"`
}

// External is the address of every name outside of the zones.
const (
	externalIPv4 = "192.0.2.80"
	externalTTL  = 300
)

func main() {
	if len(os.Args) == 2 {
		fmt.Fprintln(os.Stderr, "corednspeer:", serve(os.Args[1], json.NewDecoder(os.Stdin)))
		os.Exit(1)
	}
	if err := answer(json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)); err != nil {
		fmt.Fprintln(os.Stderr, "corednspeer:", err)
		os.Exit(1)
	}
}

func answer(in *json.Decoder, out *json.Encoder) error {
	for {
		var w World
		if err := in.Decode(&w); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		a, err := w.answer()
		if err != nil {
			return err
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
}

// serve answers at an address over UDP for the first World of the input, with the library that CoreDNS answers with, and
// without the rest of its server.
func serve(address string, in *json.Decoder) error {
	var w World
	if err := in.Decode(&w); err != nil {
		return err
	}
	k, err := w.plugin()
	if err != nil {
		return err
	}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { _, _ = k.ServeDNS(context.Background(), w, q) })
	return (&dns.Server{Addr: address, Net: "udp", Handler: handler}).ListenAndServe()
}

func (w *World) answer() (Answer, error) {
	var a Answer
	k, err := w.plugin()
	if err != nil {
		return a, err
	}
	for _, question := range w.Questions {
		reply, err := ask(k, question)
		if err != nil {
			return a, err
		}
		a.Replies = append(a.Replies, reply)
	}
	if !w.Transfer {
		return a, nil
	}
	records, err := k.Transfer(w.Zones[0], 0)
	if err != nil {
		return a, err
	}
	for batch := range records {
		for _, record := range batch {
			a.Zone = append(a.Zone, record.String())
		}
	}
	return a, nil
}

// plugin returns CoreDNS's plugin with the objects in place of its caches.
func (w *World) plugin() (*kubernetes.Kubernetes, error) {
	corefile := "kubernetes"
	for _, zone := range w.Zones {
		corefile += " " + zone
	}
	corefile += " {\n"
	for _, line := range w.Options {
		corefile += line + "\n"
	}
	c := caddy.NewTestController("dns", corefile+"}\n")
	c.Next()
	k, err := kubernetes.ParseStanza(c)
	if err != nil {
		return nil, err
	}
	k.APIConn, err = newObjects(w)
	k.Upstream, k.Next = elsewhere{}, elsewhere{}
	return k, err
}

// ask returns the reply to a question, as CoreDNS sends it over TCP.
func ask(k *kubernetes.Kubernetes, question []byte) ([]byte, error) {
	var q dns.Msg
	if err := q.Unpack(question); err != nil {
		return nil, err
	}
	w := dnstest.NewRecorder(&test.ResponseWriter{})
	rcode, err := k.ServeDNS(context.Background(), w, q.Copy())
	if err != nil {
		return nil, err
	}
	m := w.Msg
	if m == nil { // CoreDNS's server says it with the code alone
		m = new(dns.Msg)
		m.SetRcode(&q, rcode)
	}
	m.Compress = true
	reply, err := m.Pack()
	if err != nil {
		return nil, fmt.Errorf("pack %s: %w", m, err)
	}
	return reply, nil
}

// elsewhere answers for names outside of the zones. There are none of addresses.
type elsewhere struct{}

func (elsewhere) Name() string { return "elsewhere" }

func (elsewhere) ServeDNS(_ context.Context, w dns.ResponseWriter, q *dns.Msg) (int, error) {
	m := new(dns.Msg)
	m.SetRcode(q, dns.RcodeNameError)
	m.RecursionAvailable = true
	return dns.RcodeNameError, w.WriteMsg(m)
}

func (elsewhere) Lookup(_ context.Context, state request.Request, name string, kind uint16) (*dns.Msg, error) {
	m := new(dns.Msg)
	m.SetQuestion(name, kind)
	m.Response = true
	if kind == dns.TypeA {
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: externalTTL}, A: net.ParseIP(externalIPv4)}}
	}
	return m, nil
}
