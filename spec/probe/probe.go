// Package probe asks an endpoint whether it works, and says so as the kubelet would. Probe is what to ask, from whichever of
// the three Forms it was written in; Run asks once and returns a Result, and Start does so without waiting where that is
// possible. When to ask, and what follows from Results, is up to the caller, and so is reading the Forms.
//
// A Probe is written by the authors of manifests, and answered by servers that may be hostile. So Run ends when the Timeout
// does, reads at most 10 KiB, and connects to the address of its Target only: to other hosts only if the Policy allows them.
//
// The verdicts are those of k8s.io/kubernetes/pkg/probe, which the tests ask too. The differences are bounds: 256 KiB before an
// answer instead of 10 MB, and of one gRPC message 10 KiB.
//
// TCP and HTTP/1 use a socket that connects without blocking, so that a probe of this node is over within its system calls. Requests
// and answers are those of net/http, without the goroutines of its connections. TLS, HTTP/2 and gRPC use package net.
//
// Package spec and all packages below it may import this one, which imports nothing of weir.
package probe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Kind is the way in which a Probe asks.
type Kind uint8

// The kinds.
const (
	HTTP Kind = iota + 1
	TCP
	GRPC
	Exec
)

// String returns the name of the Kind as a readinessProbe has it.
func (k Kind) String() string {
	switch k {
	case HTTP:
		return "httpGet"
	case TCP:
		return "tcpSocket"
	case GRPC:
		return "grpc"
	case Exec:
		return "exec"
	}
	return "none"
}

// Form is what a Probe was written as.
type Form uint8

// The forms.
const (
	// ReadinessProbe is the readinessProbe of a container in a template of pods.
	ReadinessProbe Form = iota + 1
	// HealthCheckPolicy is a HealthCheckPolicy of networking.gke.io or alb.networking.azure.io.
	HealthCheckPolicy
	// Annotation is the annotation weir/probe of a Service.
	Annotation
)

// String returns the name of the Form.
func (f Form) String() string {
	switch f {
	case ReadinessProbe:
		return "readinessProbe"
	case HealthCheckPolicy:
		return "HealthCheckPolicy"
	case Annotation:
		return "annotation"
	}
	return ""
}

// Port is the port that a Probe asks: that of the endpoint if it is zero, one by its number, or that of the endpoint's ports
// that has the name.
type Port struct {
	Number uint16
	Name   string
}

// IsZero reports whether the Port is that of the endpoint.
func (p Port) IsZero() bool { return p == Port{} }

// String returns the name or the number, or "".
func (p Port) String() string {
	switch {
	case p.Name != "":
		return p.Name
	case p.Number != 0:
		return strconv.Itoa(int(p.Number))
	}
	return ""
}

// Statuses are the HTTP statuses from Min to Max, both inclusive.
type Statuses struct{ Min, Max int }

// Header is one field of the header of an HTTP request.
type Header struct{ Name, Value string }

// Origin is the place where a Probe was written.
type Origin struct {
	Form Form
	// Object is what has the Probe, such as "Deployment default/web".
	Object string
	// Container is the container of the object that has the Probe, if it is one.
	Container string
	// File and Line are those of the object, or of the Probe if that is known.
	File string
	Line int
}

// String returns "readinessProbe of Deployment default/web", or "HealthCheckPolicy default/db".
func (o Origin) String() string {
	if o.Object == "" || strings.HasPrefix(o.Object, o.Form.String()) {
		return cmp.Or(o.Object, o.Form.String())
	}
	return o.Form.String() + " of " + o.Object
}

// Probe is what an endpoint is asked, how often, and how many answers count. It is immutable, and has its defaults set.
type Probe struct {
	Kind Kind
	Port Port
	// Period, Timeout and InitialDelay are as in a readinessProbe. The first two are more than 0.
	Period, Timeout, InitialDelay time.Duration
	// SuccessThreshold and FailureThreshold are at least 1.
	SuccessThreshold, FailureThreshold int

	// TLS reports whether to speak TLS, of which no certificate is verified.
	TLS bool
	// Host is what HTTP and TCP connect to instead of the endpoint's address; only if the Policy allows it. For a Host header
	// there are the Headers.
	Host string
	// ProxyHeader reports whether a connection begins with a header of the PROXY protocol, version 1.
	ProxyHeader bool

	// Path and Headers are those of the HTTP request.
	Path    string
	Headers []Header
	// HTTP2 reports whether to speak HTTP/2 only.
	HTTP2 bool
	// Statuses are those that mean success, and then no redirect is followed. Nil means that of the kubelet: 200 to 399, and
	// redirects to the same host are followed.
	Statuses []Statuses
	// Expect is a text that the answer begins with over TCP, and has in it over HTTP, in its first ExpectWithin bytes if that is
	// more than 0. "" means any.
	Expect       string
	ExpectWithin int

	// Send is sent over TCP, and then some answer must come.
	Send string

	// Service and Authority are the name of the service and the authority of the gRPC request.
	Service, Authority string

	// Command is what Exec runs, without a shell.
	Command []string

	Origin Origin
}

// Equal reports whether both ask the same in the same way, wherever they were written.
func (p *Probe) Equal(o *Probe) bool {
	if p == nil || o == nil {
		return p == o
	}
	return p.Kind == o.Kind && p.Port == o.Port && p.Period == o.Period && p.Timeout == o.Timeout && p.InitialDelay == o.InitialDelay &&
		p.SuccessThreshold == o.SuccessThreshold && p.FailureThreshold == o.FailureThreshold && p.TLS == o.TLS && p.Host == o.Host &&
		p.ProxyHeader == o.ProxyHeader && p.Path == o.Path && p.HTTP2 == o.HTTP2 && p.Expect == o.Expect && p.ExpectWithin == o.ExpectWithin && p.Send == o.Send &&
		p.Service == o.Service && p.Authority == o.Authority && p.Origin.Container == o.Origin.Container &&
		slices.Equal(p.Headers, o.Headers) && slices.Equal(p.Statuses, o.Statuses) && slices.Equal(p.Command, o.Command)
}

// String returns what the Probe asks and when: "httpGet :8080/ready every 10s, timeout 1s, 3 failures, 1 success".
func (p *Probe) String() string {
	var b strings.Builder
	b.WriteString(p.Kind.String())
	if port := p.Port.String(); port != "" || p.Host != "" {
		b.WriteString(" " + p.Host)
		if port != "" {
			b.WriteString(":" + port)
		}
	}
	switch p.Kind {
	case HTTP:
		if p.Port.IsZero() && p.Host == "" {
			b.WriteByte(' ')
		}
		b.WriteString(p.Path)
	case GRPC:
		if p.Service != "" {
			b.WriteString(" " + p.Service)
		}
	case Exec:
		b.WriteString(" " + strings.Join(p.Command, " "))
	}
	if p.TLS {
		b.WriteString(" with TLS")
	}
	fmt.Fprintf(&b, " every %s, timeout %s, %s, %s", p.Period, p.Timeout, count(p.FailureThreshold, "failure"), count(p.SuccessThreshold, "success"))
	return printable(b.String(), maxMessage)
}

func count(n int, of string) string {
	if n == 1 {
		return "1 " + of
	}
	if of == "success" {
		of = "successe"
	}
	return fmt.Sprintf("%d %ss", n, of)
}

// Verdict is what a Result says.
type Verdict uint8

// The verdicts.
const (
	// Unknown says nothing about the endpoint, as when an answer is cut in the middle or no runtime can run a command: neither
	// threshold is nearer.
	Unknown Verdict = iota
	Success
	Failure
)

// String returns the name of the Verdict.
func (v Verdict) String() string {
	switch v {
	case Success:
		return "success"
	case Failure:
		return "failure"
	}
	return "unknown"
}

// Result is what came of a Probe.
type Result struct {
	Verdict Verdict
	// Message says in a few printable words what the server said or why there is no answer. It may be "".
	Message string
	// Body is the beginning of the answer to an HTTP request, in printable words, if the Target asks for it.
	Body string
	// Took is how long it took.
	Took time.Duration
}

// NamedPort is a port of an endpoint.
type NamedPort struct {
	Name   string
	Number uint16
}

// Target is an endpoint that is asked.
type Target struct {
	// Address is that of the endpoint, with the port that it is served at.
	Address netip.AddrPort
	// Ports are the endpoint's ports, among which a Probe finds the one that it names.
	Ports []NamedPort
	// Mark is set on the sockets that connect to the Address, unless it is 0 or the process may not.
	Mark uint32
	// Body reports whether the Result is to have the Body.
	Body bool
	// Policy says which other hosts may be connected to. Nil means none.
	Policy *Policy
	// Exec runs the command of a Probe in the endpoint's container. Nil means that it is not possible.
	Exec func(ctx context.Context, container string, command []string) (exit int, output []byte, err error)
}

// resolve returns the address that the Probe asks, without regard to its Host.
func (p *Probe) resolve(to *Target) (netip.AddrPort, error) {
	port := to.Address.Port()
	switch {
	case p.unnamed():
		return netip.AddrPort{}, errors.New(p.Refused(nil))
	case p.Port.Name != "":
		i := slices.IndexFunc(to.Ports, func(n NamedPort) bool { return n.Name == p.Port.Name })
		if i < 0 {
			return netip.AddrPort{}, fmt.Errorf("the endpoint has no port %q", p.Port.Name)
		}
		port = to.Ports[i].Number
	case p.Port.Number != 0:
		port = p.Port.Number
	}
	return netip.AddrPortFrom(to.Address.Addr().Unmap(), port), nil
}

// Address returns the address that the Probe asks at the Target, without regard to its Host; or the zero AddrPort if the
// endpoint has no such port. Probes that are Equal and have the same Address need to be asked once only.
func (p *Probe) Address(to Target) netip.AddrPort {
	a, _ := p.resolve(&to)
	return a
}
