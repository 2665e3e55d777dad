package manifest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/document"
	"weir/spec/probe"
)

// HealthCheckPolicies are kinds of Google's and Azure's load balancers. They say how endpoints are asked that are no pods. What
// they are here for is the form that people know; nothing of either cloud is needed.
const (
	gkeGroup, azureGroup = "networking.gke.io", "alb.networking.azure.io"
	policyKind           = "HealthCheckPolicy"
)

// policy is a valid HealthCheckPolicy. It is immutable.
type policy struct {
	// service is the Service that it is for, or zero if it is for something that weir does not serve.
	service dataplane.ServiceName
	// sections are the names of the ports that it is for; nil means all.
	sections []string
	// probe has an Origin whose line counts from the beginning of the document.
	probe *probe.Probe
}

// policyRef is the targetRef of a HealthCheckPolicy. Only Azure's has sections.
type policyRef struct {
	Group     *string `json:"group"`
	Kind      string  `json:"kind"`
	Name      string  `json:"name"`
	Namespace string  `json:"namespace"`
}

type gkePolicy struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        metav1.ObjectMeta `json:"metadata"`
	Spec            struct {
		TargetRef *policyRef `json:"targetRef"`
		Default   *struct {
			CheckIntervalSec   *int64 `json:"checkIntervalSec"`
			TimeoutSec         *int64 `json:"timeoutSec"`
			HealthyThreshold   *int64 `json:"healthyThreshold"`
			UnhealthyThreshold *int64 `json:"unhealthyThreshold"`
			LogConfig          *struct {
				Enabled *bool `json:"enabled"`
			} `json:"logConfig"`
			Config *gkeConfig `json:"config"`
		} `json:"default"`
	} `json:"spec"`
	Status json.RawMessage `json:"status"`
}

type gkeConfig struct {
	Type  string   `json:"type"`
	HTTP  *gkeHTTP `json:"httpHealthCheck"`
	HTTPS *gkeHTTP `json:"httpsHealthCheck"`
	HTTP2 *gkeHTTP `json:"http2HealthCheck"`
	TCP   *gkeTCP  `json:"tcpHealthCheck"`
	GRPC  *gkeGRPC `json:"grpcHealthCheck"`
}

type gkePort struct {
	Port              *int64  `json:"port"`
	PortName          *string `json:"portName"`
	PortSpecification *string `json:"portSpecification"`
}

type gkeHTTP struct {
	gkePort     `json:",inline"`
	Host        *string `json:"host"`
	ProxyHeader *string `json:"proxyHeader"`
	RequestPath *string `json:"requestPath"`
	Response    *string `json:"response"`
}

type gkeTCP struct {
	gkePort     `json:",inline"`
	ProxyHeader *string `json:"proxyHeader"`
	Request     *string `json:"request"`
	Response    *string `json:"response"`
}

type gkeGRPC struct {
	gkePort         `json:",inline"`
	GRPCServiceName *string `json:"grpcServiceName"`
}

var (
	gkeHost     = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
	gkePath     = regexp.MustCompile(`^/[A-Za-z0-9/\-._~%!?$&'()*+,;=:]*$`)
	gkePortName = regexp.MustCompile(`^[a-z]([-a-z0-9]*[a-z0-9])?$`)
)

// gkeDefault is the check interval and the timeout in seconds, and gkeThreshold each of the thresholds, unless they are set.
const gkeDefault, gkeThreshold = 5, 2

// gkePolicy takes a HealthCheckPolicy of networking.gke.io.
func (d *decoding) gkePolicy(at *document.Document) {
	var in gkePolicy
	shape := at.Decode(&in)
	v := &validator{namespace: d.namespace}
	v.meta(&in.Metadata, true, utilvalidation.IsDNS1123Subdomain)
	p := &probe.Probe{Kind: probe.HTTP, Path: "/", Statuses: []probe.Statuses{{Min: 200, Max: 200}}}
	interval, timeout, healthy, unhealthy := int64(gkeDefault), int64(gkeDefault), int64(gkeThreshold), int64(gkeThreshold)
	if c := in.Spec.Default; c != nil {
		interval = v.within(c.CheckIntervalSec, interval, 1, 300, "spec.default.checkIntervalSec")
		timeout = v.within(c.TimeoutSec, timeout, 1, 300, "spec.default.timeoutSec")
		healthy = v.within(c.HealthyThreshold, healthy, 1, 10, "spec.default.healthyThreshold")
		unhealthy = v.within(c.UnhealthyThreshold, unhealthy, 1, 10, "spec.default.unhealthyThreshold")
		switch {
		case timeout <= interval:
		case c.TimeoutSec != nil && c.CheckIntervalSec != nil:
			v.add(fmt.Sprintf("%d is more than checkIntervalSec, which is %d", timeout, interval), "spec.default.timeoutSec")
		case c.TimeoutSec != nil:
			v.add(fmt.Sprintf("%d is more than checkIntervalSec, which is %d unless it is set", timeout, interval), "spec.default.timeoutSec")
		default:
			v.add(fmt.Sprintf("%d is less than timeoutSec, which is %d unless it is set", interval, timeout), "spec.default.checkIntervalSec")
		}
		if c.LogConfig != nil {
			v.notice(spec.SettingIgnored, "has no effect here: weir logs when an endpoint comes or goes", "spec.default.logConfig")
		}
		if c.Config != nil {
			v.gkeConfig(p, c.Config)
		}
	}
	p.Period, p.Timeout = time.Duration(interval)*time.Second, time.Duration(timeout)*time.Second
	p.SuccessThreshold, p.FailureThreshold = int(healthy), int(unhealthy)
	d.policy(kindGKEPolicy, &in.Metadata, &policy{service: v.target(in.Spec.TargetRef, &in.Metadata), probe: p}, at, shape, v)
}

// within returns a number, or the default if it is not set.
func (v *validator) within(n *int64, fallback, least, most int64, field string) int64 {
	if n == nil {
		return fallback
	}
	if *n < least || *n > most {
		v.add(fmt.Sprintf("%d is not between %d and %d", *n, least, most), "%s", field)
		return fallback
	}
	return *n
}

// gkeConfig reads the one check that matches the type.
func (v *validator) gkeConfig(p *probe.Probe, c *gkeConfig) {
	const path = "spec.default.config"
	types := []string{"TCP", "HTTP", "HTTPS", "HTTP2", "GRPC"}
	fields := []string{"tcpHealthCheck", "httpHealthCheck", "httpsHealthCheck", "http2HealthCheck", "grpcHealthCheck"}
	set := []bool{c.TCP != nil, c.HTTP != nil, c.HTTPS != nil, c.HTTP2 != nil, c.GRPC != nil}
	if c.Type == "" {
		v.add("is missing", path+".type")
	} else {
		v.oneOf(c.Type, types, path+".type")
	}
	matching := slices.Index(types, c.Type)
	for i, field := range fields {
		switch {
		case set[i] && i != matching && matching >= 0:
			v.add("must not be set for type "+c.Type, "%s.%s", path, field)
		case !set[i] && i == matching:
			v.add("is missing for type "+c.Type, "%s.%s", path, field)
		}
	}
	if matching < 0 || !set[matching] {
		return
	}
	within := path + "." + fields[matching]
	switch c.Type {
	case "TCP":
		*p = probe.Probe{Kind: probe.TCP, Port: v.gkePort(&c.TCP.gkePort, within)}
		p.ProxyHeader = v.gkeProxy(c.TCP.ProxyHeader, within)
		p.Send, p.Expect = v.gkeText(c.TCP.Request, within+".request"), v.gkeText(c.TCP.Response, within+".response")
	case "GRPC":
		*p = probe.Probe{Kind: probe.GRPC, Port: v.gkePort(&c.GRPC.gkePort, within), Service: v.gkeText(c.GRPC.GRPCServiceName, within+".grpcServiceName")}
	default:
		h := [...]*gkeHTTP{c.HTTP, c.HTTPS, c.HTTP2}[matching-1]
		p.TLS, p.HTTP2 = c.Type != "HTTP", c.Type == "HTTP2"
		p.Port, p.ProxyHeader = v.gkePort(&h.gkePort, within), v.gkeProxy(h.ProxyHeader, within)
		if path := h.RequestPath; path != nil && *path != "" {
			v.form(*path, gkePath, 2048, "a path such as /healthz", within+".requestPath")
			p.Path = *path
		}
		if host := h.Host; host != nil && *host != "" {
			v.form(*host, gkeHost, 2048, "a host name such as example.com", within+".host")
			p.Headers = []probe.Header{{Name: "Host", Value: *host}}
		}
		p.Expect, p.ExpectWithin = v.gkeText(h.Response, within+".response"), gkeResponse
	}
}

// gkeResponse is how many bytes of an answer are searched.
const gkeResponse = 1024

// form checks the form of a text.
func (v *validator) form(text string, form *regexp.Regexp, most int, want, field string) {
	if len(text) > most {
		v.add(fmt.Sprintf("has %d bytes, more than %d", len(text), most), "%s", field)
	} else if !form.MatchString(text) {
		v.add(document.Quote(text)+" is not "+want, "%s", field)
	}
}

func (v *validator) gkePort(p *gkePort, within string) probe.Port {
	if p.Port != nil {
		v.within(p.Port, 1, 1, 65535, within+".port")
	}
	if p.PortName != nil {
		v.form(*p.PortName, gkePortName, 63, "the name of a port", within+".portName")
	}
	if s := p.PortSpecification; s != nil {
		v.oneOf(*s, []string{"USE_FIXED_PORT", "USE_NAMED_PORT", "USE_SERVING_PORT"}, "%s.portSpecification", within)
		for _, f := range []struct {
			name    string
			is, has bool
		}{{"port", p.Port != nil, *s == "USE_FIXED_PORT"}, {"portName", p.PortName != nil, *s == "USE_NAMED_PORT"}} {
			switch {
			case !slices.Contains([]string{"USE_FIXED_PORT", "USE_NAMED_PORT", "USE_SERVING_PORT"}, *s):
			case f.is && !f.has:
				v.add("must not be set with portSpecification "+*s, "%s.%s", within, f.name)
			case !f.is && f.has:
				v.add("must be set with portSpecification "+*s, "%s.%s", within, f.name)
			}
		}
	}
	switch {
	case p.Port != nil:
		return probe.Port{Number: uint16(*p.Port)}
	case p.PortName != nil:
		return probe.Port{Name: *p.PortName}
	}
	return probe.Port{}
}

func (v *validator) gkeProxy(header *string, within string) bool {
	if header == nil {
		return false
	}
	v.oneOf(*header, []string{"NONE", "PROXY_V1"}, "%s.proxyHeader", within)
	return *header == "PROXY_V1"
}

// gkeText returns a text of at most 1,024 characters that have one byte each.
func (v *validator) gkeText(text *string, field string) string {
	if text == nil {
		return ""
	}
	if n := len([]rune(*text)); n > 1024 {
		v.add(fmt.Sprintf("has %d characters, more than 1024", n), "%s", field)
	} else if strings.ContainsFunc(*text, func(r rune) bool { return r > 0x7f }) {
		v.add("has a character that is not ASCII", "%s", field)
	}
	return *text
}

type azurePolicy struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        metav1.ObjectMeta `json:"metadata"`
	Spec            struct {
		TargetRef *struct {
			policyRef    `json:",inline"`
			SectionNames []string `json:"sectionNames"`
		} `json:"targetRef"`
		Default  *azureConfig `json:"default"`
		Override *azureConfig `json:"override"`
	} `json:"spec"`
	Status json.RawMessage `json:"status"`
}

type azureConfig struct {
	Interval           *string `json:"interval"`
	Timeout            *string `json:"timeout"`
	HealthyThreshold   *int32  `json:"healthyThreshold"`
	UnhealthyThreshold *int32  `json:"unhealthyThreshold"`
	Port               *int32  `json:"port"`
	UseTLS             *bool   `json:"useTLS"`
	HTTP               *struct {
		Host  string `json:"host"`
		Path  string `json:"path"`
		Match *struct {
			Body        string `json:"body"`
			StatusCodes []struct {
				Start int32 `json:"start"`
				End   int32 `json:"end"`
			} `json:"statusCodes"`
		} `json:"match"`
	} `json:"http"`
	GRPC *struct {
		Authority string `json:"authority"`
		Service   string `json:"service"`
	} `json:"grpc"`
}

const (
	// minInterval and maxInterval bound the durations of Azure's policies.
	minInterval, maxInterval = 100 * time.Millisecond, time.Hour
	// azureInterval and azureTimeout are used where a policy sets none.
	azureInterval, azureTimeout = 5 * time.Second, 30 * time.Second
	// maxSections bounds the sectionNames and the ranges of statusCodes.
	maxSections = 256
)

// azurePolicy takes a HealthCheckPolicy of alb.networking.azure.io.
func (d *decoding) azurePolicy(at *document.Document) {
	var in azurePolicy
	shape := at.Decode(&in)
	v := &validator{namespace: d.namespace}
	v.meta(&in.Metadata, true, utilvalidation.IsDNS1123Subdomain)
	p := &probe.Probe{
		Kind: probe.HTTP, Path: "/", Statuses: []probe.Statuses{{Min: 200, Max: 399}}, Headers: []probe.Header{{Name: "Host", Value: "localhost"}},
		Period: azureInterval, Timeout: azureTimeout, SuccessThreshold: 1, FailureThreshold: 3,
	}
	if in.Spec.Override != nil {
		v.add("is not supported; write it as spec.default", "spec.override")
	}
	if c := in.Spec.Default; c != nil {
		v.azureConfig(p, c)
	}
	var ref *policyRef
	out := &policy{probe: p}
	if t := in.Spec.TargetRef; t != nil {
		ref, out.sections = &t.policyRef, t.SectionNames
		if len(t.SectionNames) > maxSections {
			v.add(fmt.Sprintf("has %d names, more than %d", len(t.SectionNames), maxSections), "spec.targetRef.sectionNames")
		}
	}
	out.service = v.target(ref, &in.Metadata)
	d.policy(kindAzurePolicy, &in.Metadata, out, at, shape, v)
}

func (v *validator) azureConfig(p *probe.Probe, c *azureConfig) {
	const path = "spec.default"
	p.Period, p.Timeout = v.interval(c.Interval, p.Period, path+".interval"), v.interval(c.Timeout, p.Timeout, path+".timeout")
	threshold := func(n *int32, fallback int, field string) int {
		if n == nil {
			return fallback
		}
		if *n < 1 {
			v.add(fmt.Sprintf("%d is less than 1", *n), "%s", field)
		}
		return int(*n)
	}
	p.SuccessThreshold = threshold(c.HealthyThreshold, p.SuccessThreshold, path+".healthyThreshold")
	p.FailureThreshold = threshold(c.UnhealthyThreshold, p.FailureThreshold, path+".unhealthyThreshold")
	if c.Port != nil {
		v.port(*c.Port, path+".port")
		p.Port = probe.Port{Number: uint16(*c.Port)}
	}
	p.TLS = c.UseTLS != nil && *c.UseTLS
	switch {
	case c.HTTP != nil && c.GRPC != nil:
		v.add("must not be set together with http", path+".grpc")
	case c.GRPC != nil:
		p.Kind, p.Path, p.Headers, p.Statuses = probe.GRPC, "", nil, nil
		p.Authority, p.Service = c.GRPC.Authority, c.GRPC.Service
		v.length(p.Authority, path+".grpc.authority")
		v.length(p.Service, path+".grpc.service")
		if strings.ContainsFunc(p.Authority, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
			v.add(document.Quote(p.Authority)+" is not the authority of a request", path+".grpc.authority")
		}
	case c.HTTP != nil:
		if h := c.HTTP; h.Host != "" {
			v.form(h.Host, azureHost, 2048, "the value of a Host header", path+".http.host")
			p.Headers[0].Value = h.Host
		}
		if h := c.HTTP; h.Path != "" {
			v.form(h.Path, azurePath, maxProbeText, "a path such as /healthz", path+".http.path")
			p.Path = h.Path
		}
		m := c.HTTP.Match
		if m == nil {
			return
		}
		p.Expect = m.Body
		v.length(m.Body, path+".http.match.body")
		if len(m.StatusCodes) > maxSections {
			v.add(fmt.Sprintf("has %d ranges, more than %d", len(m.StatusCodes), maxSections), path+".http.match.statusCodes")
			return
		}
		for i, s := range m.StatusCodes {
			if i == 0 {
				p.Statuses = nil
			}
			if s.Start < 100 || s.End > 599 || s.Start > s.End {
				v.add(fmt.Sprintf("%d to %d is not a range of statuses between 100 and 599", s.Start, s.End), path+".http.match.statusCodes[%d]", i)
			}
			p.Statuses = append(p.Statuses, probe.Statuses{Min: int(s.Start), Max: int(s.End)})
		}
	}
}

var (
	azureHost = regexp.MustCompile(`^[A-Za-z0-9_.:\[\]-]+$`)
	azurePath = regexp.MustCompile(`^/[\x21-\x7e]*$`)
)

// interval returns a duration, or the default if it is not set.
func (v *validator) interval(text *string, fallback time.Duration, field string) time.Duration {
	if text == nil {
		return fallback
	}
	dur, err := time.ParseDuration(*text)
	switch {
	case err != nil:
		v.add(document.Quote(*text)+` is not a duration such as "5s" or "500ms"`, "%s", field)
	case dur < minInterval || dur > maxInterval:
		v.add(fmt.Sprintf("%s is not between %s and %s", dur, minInterval, maxInterval), "%s", field)
	}
	return dur
}

// target returns the Service that a policy is for, or the zero ServiceName, with a notice, if it is for anything else.
func (v *validator) target(ref *policyRef, meta *metav1.ObjectMeta) dataplane.ServiceName {
	const path = "spec.targetRef"
	if ref == nil {
		v.add("is missing", path)
		return dataplane.ServiceName{}
	}
	if ref.Group == nil {
		v.add(`is missing; write "" for a Service`, path+".group")
	}
	if ref.Kind == "" {
		v.add("is missing", path+".kind")
	}
	if ref.Name == "" {
		v.add("is missing", path+".name")
	}
	if ref.Group == nil || ref.Kind == "" || ref.Name == "" {
		return dataplane.ServiceName{}
	}
	switch {
	case *ref.Group != "" || ref.Kind != "Service":
		if *ref.Group == "core" || *ref.Group == "v1" {
			v.add(document.Quote(*ref.Group)+` is no group with a Service; write ""`, path+".group")
			return dataplane.ServiceName{}
		}
		v.notice(spec.ProbeNotUsed, fmt.Sprintf("is a %s, and weir serves Services only", document.Printable(ref.Kind)), path+".kind")
	case ref.Namespace != "" && ref.Namespace != meta.Namespace:
		v.notice(spec.ProbeNotUsed, fmt.Sprintf("is %s: a policy is for Services of its own namespace, %s", document.Quote(ref.Namespace), document.Printable(meta.Namespace)), path+".namespace")
	default:
		v.addAll(utilvalidation.IsDNS1123Label(ref.Name), ref.Name, path+".name")
		return dataplane.ServiceName{Namespace: meta.Namespace, Name: ref.Name}
	}
	return dataplane.ServiceName{}
}

// policy ends the decoding of a policy.
func (d *decoding) policy(k kind, meta *metav1.ObjectMeta, p *policy, at *document.Document, shape []document.Problem, v *validator) {
	id := objectID{k, dataplane.ServiceName{Namespace: d.intern.string(meta.Namespace), Name: d.intern.string(meta.Name)}}
	if !d.accept(id, at, shape, v) {
		return
	}
	p.service = dataplane.ServiceName{Namespace: d.intern.string(p.service.Namespace), Name: d.intern.string(p.service.Name)}
	p.probe.Origin = probe.Origin{Form: probe.HealthCheckPolicy, Object: id.String(), Line: at.Start()}
	d.out.objects = append(d.out.objects, &object{id: id, line: at.Start(), policy: p})
}

// comparePolicies sorts policies of one Service: those with sectionNames first, because they are about less, and then by name.
func comparePolicies(a, b *placed) int {
	all := func(p *placed) int { return 1 - min(len(p.policy.sections), 1) }
	return cmp.Or(cmp.Compare(all(a), all(b)), strings.Compare(a.id.name.Name, b.id.name.Name), cmp.Compare(a.id.kind, b.id.kind))
}

// probes sets the Probes of a Service that its policies and annotations have for its ports, and tells which are not used.
func (u *update) probes(svc *spec.Service, e *entry) {
	own := e.service.service
	if own.annotated == nil && len(e.policies) == 0 {
		return
	}
	probes := &spec.Probes{}
	if own.annotated != nil {
		probes.MinHealthy = own.annotated.minHealthy
	}
	ports := svc.Object.Spec.Ports
	counts := map[string]*placed{} // the policy that counts, by the name of the port
	for _, p := range e.policies {
		u.policyNotices(svc, p, counts)
		made := *p.policy.probe
		made.Origin.File, made.Origin.Line = p.at.path, p.at.line+p.policy.probe.Origin.Line-1
		for i := range ports {
			if q := &ports[i]; counts[q.Name] == nil && p.policy.covers(q.Name) && asks(&made, q) {
				counts[q.Name] = p
				probes.Ports = append(probes.Ports, spec.PortProbe{Port: q.Name, Probe: &made})
			}
		}
	}
	if own.annotated != nil && own.annotated.probe != nil {
		made := *own.annotated.probe
		made.Origin.File, made.Origin.Line = svc.Origin.File, e.service.at.line+made.Origin.Line-1
		taken := len(probes.Ports)
		addAnnotated(probes, &made, svc.Object)
		if len(probes.Ports) == taken && taken > 0 {
			p := slices.MinFunc(e.policies, comparePolicies)
			svc.Notices = append(svc.Notices, spec.ProbeNotUsed.Notice(spec.Origin{File: svc.Origin.File, Line: made.Origin.Line}, e.service.id.String(),
				"metadata.annotations["+AnnotationProbe+"]", fmt.Sprintf("is not used, since %s at %s is for this Service; remove one of the two", p.id, p.origin())))
		}
	}
	slices.SortFunc(probes.Ports, comparePortProbes)
	svc.Probes = probes
}

// addAnnotated adds the probe of an annotation for the ports that have none.
func addAnnotated(to *spec.Probes, p *probe.Probe, svc *corev1.Service) {
	has := func(port string) bool {
		return slices.ContainsFunc(to.Ports, func(q spec.PortProbe) bool { return q.Port == port })
	}
	for i := range svc.Spec.Ports {
		if q := &svc.Spec.Ports[i]; !has(q.Name) && asks(p, q) {
			to.Ports = append(to.Ports, spec.PortProbe{Port: q.Name, Probe: p})
		}
	}
}

// ProbesOf returns what the annotations of a Service of an API server say about probes, or nil. The API server has accepted
// them, so what is wrong is ignored with a notice.
func ProbesOf(svc *corev1.Service, origin spec.Origin) (*spec.Probes, []spec.Notice) {
	v := &validator{}
	a := v.annotatedProbes(svc, nil)
	if a == nil {
		return nil, nil
	}
	var notices []spec.Notice
	name := spec.ServiceObject(dataplane.ServiceName{Namespace: svc.Namespace, Name: svc.Name})
	for _, p := range v.problems {
		notices = append(notices, spec.AnnotationIgnored.Notice(origin, name, document.Printable(p.field), "is ignored: "+p.detail))
	}
	if len(notices) > 0 {
		return nil, notices
	}
	probes := &spec.Probes{MinHealthy: a.minHealthy}
	if a.probe != nil {
		a.probe.Origin.Line = 0
		addAnnotated(probes, a.probe, svc)
		slices.SortFunc(probes.Ports, comparePortProbes)
	}
	return probes, nil
}

func comparePortProbes(a, b spec.PortProbe) int { return strings.Compare(a.Port, b.Port) }

// covers reports whether the policy is for a port.
func (p *policy) covers(port string) bool {
	return p.sections == nil || slices.Contains(p.sections, port)
}

// asks reports whether a probe has an answer for a port. Over UDP and SCTP nothing can be asked; a port that the probe names
// itself stands for those.
func asks(p *probe.Probe, port *corev1.ServicePort) bool {
	return port.Protocol == tcp || port.Protocol == "" || !p.Port.IsZero()
}

// policyNotices returns notices of the parts of a policy that are not used. counts has the policies before it that count.
func (u *update) policyNotices(svc *spec.Service, p *placed, counts map[string]*placed) {
	notice := func(field, format string, args ...any) {
		svc.Notices = append(svc.Notices, spec.ProbeNotUsed.Notice(p.origin(), p.id.String(), field, fmt.Sprintf(format, args...)))
	}
	has := func(name string) bool {
		return slices.ContainsFunc(svc.Object.Spec.Ports, func(q corev1.ServicePort) bool { return q.Name == name })
	}
	for i, name := range p.policy.sections {
		if !has(name) {
			notice(fmt.Sprintf("spec.targetRef.sectionNames[%d]", i), "%s is the name of no port of Service %s", document.Quote(name), svc.Name)
		}
	}
	if name := p.policy.probe.Port.Name; name != "" && !has(name) {
		notice("spec.default.config", "asks port %s, and Service %s has none of that name: no endpoint has an answer", document.Quote(name), svc.Name)
	}
	used := false
	var first *placed
	for _, q := range svc.Object.Spec.Ports {
		if !p.policy.covers(q.Name) || !asks(p.policy.probe, &q) {
			continue
		}
		if other := counts[q.Name]; other == nil {
			used = true
		} else if first == nil {
			first = other
		}
	}
	if !used && first != nil {
		notice("", "is not used, since %s at %s is for Service %s too and comes first: one with sectionNames does, and then the first by name; remove one of the two", first.id, first.origin(), svc.Name)
	}
}
