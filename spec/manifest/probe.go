package manifest

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"

	"weir/spec"
	"weir/spec/document"
	"weir/spec/probe"
)

const (
	// AnnotationProbe is the annotation of a Service that holds a readinessProbe for its endpoints, in YAML.
	AnnotationProbe = "weir/probe"
	// AnnotationMinHealthy is the annotation of a Service that says how many endpoints must work for probes to take any out.
	AnnotationMinHealthy = "weir/min-healthy"

	// maxProbes bounds the probes of one pod.
	maxProbes = 64
	// maxProbeText bounds each text of a probe, and maxProbeTexts the headers and the words of a command.
	maxProbeText, maxProbeTexts = 4096, 256
)

// probe returns the Probe that a readinessProbe stands for, with the kubelet's defaults. Fields are those of the readinessProbe.
func (v *validator) probe(in *corev1.Probe) *probe.Probe {
	p := &probe.Probe{
		Period: v.seconds(in.PeriodSeconds, 10, "periodSeconds"), Timeout: v.seconds(in.TimeoutSeconds, 1, "timeoutSeconds"),
		InitialDelay:     v.seconds(in.InitialDelaySeconds, 0, "initialDelaySeconds"),
		SuccessThreshold: v.threshold(in.SuccessThreshold, 1, "successThreshold"), FailureThreshold: v.threshold(in.FailureThreshold, 3, "failureThreshold"),
	}
	if in.TerminationGracePeriodSeconds != nil {
		v.add("must not be set for a readinessProbe", "terminationGracePeriodSeconds")
	}
	var kinds []string
	first := func(kind string, is bool) bool { // as the API server, which looks at no other
		if is {
			kinds = append(kinds, kind)
		}
		return is && len(kinds) == 1
	}
	if c := in.Exec; first("exec", c != nil) {
		v.exec(p, c)
	}
	if g := in.HTTPGet; first("httpGet", g != nil) {
		v.httpGet(p, g)
	}
	if t := in.TCPSocket; first("tcpSocket", t != nil) {
		p.Kind, p.Port, p.Host = probe.TCP, v.probePort(t.Port, "tcpSocket.port"), t.Host
		v.length(t.Host, "tcpSocket.host")
	}
	if g := in.GRPC; first("grpc", g != nil) {
		p.Kind, p.Port = probe.GRPC, v.probePort(intstr.FromInt32(g.Port), "grpc.port")
		if g.Service != nil {
			p.Service = *g.Service
			v.length(p.Service, "grpc.service")
		}
		if g.Mode != nil {
			v.oneOf(string(*g.Mode), []string{string(corev1.GRPCProbeModePlaintext), string(corev1.GRPCProbeModeTLS)}, "grpc.mode")
			p.TLS = *g.Mode == corev1.GRPCProbeModeTLS
		}
	}
	switch {
	case len(kinds) == 0:
		v.add("says not what to ask: it must have one of exec, grpc, httpGet, tcpSocket", "")
	case len(kinds) > 1:
		for _, kind := range kinds[1:] {
			v.add(fmt.Sprintf("must not be set, since %s is", kinds[0]), "%s", kind)
		}
	}
	return p
}

func (v *validator) exec(p *probe.Probe, c *corev1.ExecAction) {
	p.Kind, p.Command = probe.Exec, c.Command
	if len(c.Command) == 0 {
		v.add("is missing", "exec.command")
	}
	if len(c.Command) > maxProbeTexts {
		v.add(fmt.Sprintf("has %d words, more than %d", len(c.Command), maxProbeTexts), "exec.command")
		return
	}
	for i, word := range c.Command {
		v.length(word, fmt.Sprintf("exec.command[%d]", i))
	}
}

func (v *validator) httpGet(p *probe.Probe, g *corev1.HTTPGetAction) {
	p.Kind, p.Port, p.Host, p.Path = probe.HTTP, v.probePort(g.Port, "httpGet.port"), g.Host, g.Path
	if p.Path == "" {
		p.Path = "/"
	}
	v.length(p.Path, "httpGet.path")
	v.length(p.Host, "httpGet.host")
	scheme := g.Scheme
	if scheme == "" {
		scheme = corev1.URISchemeHTTP
	}
	v.oneOf(string(scheme), []string{string(corev1.URISchemeHTTP), string(corev1.URISchemeHTTPS)}, "httpGet.scheme")
	p.TLS = scheme == corev1.URISchemeHTTPS
	if len(g.HTTPHeaders) > maxProbeTexts {
		v.add(fmt.Sprintf("has %d headers, more than %d", len(g.HTTPHeaders), maxProbeTexts), "httpGet.httpHeaders")
		return
	}
	for i, h := range g.HTTPHeaders {
		v.addAll(utilvalidation.IsHTTPHeaderName(h.Name), h.Name, "httpGet.httpHeaders[%d].name", i)
		v.length(h.Value, fmt.Sprintf("httpGet.httpHeaders[%d].value", i))
		p.Headers = append(p.Headers, probe.Header{Name: h.Name, Value: h.Value})
	}
	if g.Protocol == nil {
		return
	}
	v.oneOf(string(*g.Protocol), []string{string(corev1.HTTPProtocolHTTP1), string(corev1.HTTPProtocolHTTP2)}, "httpGet.protocol")
	if p.HTTP2 = *g.Protocol == corev1.HTTPProtocolHTTP2; p.HTTP2 && scheme != corev1.URISchemeHTTP {
		v.add("must not be HTTP2 unless the scheme is HTTP: with HTTPS, the server chooses it", "httpGet.protocol")
	} else if p.HTTP2 && p.Host != "" {
		v.add("must be empty with protocol HTTP2", "httpGet.host")
	}
}

// seconds returns a number of seconds, or the default for 0.
func (v *validator) seconds(n, fallback int32, field string) time.Duration {
	if n < 0 {
		v.add(fmt.Sprintf("%d is less than 0", n), "%s", field)
	}
	if n == 0 {
		n = fallback
	}
	return time.Duration(n) * time.Second
}

func (v *validator) threshold(n, fallback int32, field string) int {
	if n < 0 {
		v.add(fmt.Sprintf("%d is less than 0", n), "%s", field)
	}
	if n == 0 {
		n = fallback
	}
	return int(n)
}

// probePort returns the port of a readinessProbe.
func (v *validator) probePort(p intstr.IntOrString, field string) probe.Port {
	if p.Type == intstr.String {
		v.addAll(utilvalidation.IsValidPortName(p.StrVal), p.StrVal, "%s", field)
		return probe.Port{Name: p.StrVal}
	}
	v.port(p.IntVal, "%s", field)
	return probe.Port{Number: uint16(p.IntVal)}
}

func (v *validator) length(text, field string) {
	if len(text) > maxProbeText {
		v.add(fmt.Sprintf("has %d bytes, more than %d", len(text), maxProbeText), "%s", field)
	}
}

// probes takes the readinessProbes of the containers of a template, whose spec is at the path. Unlike anything else of a
// template, one that is wrong refuses the input: connections would go to pods that do not work.
func (d *decoding) probes(t *spec.Template, from *podSpec, path string, at *document.Document) {
	take := func(c *podContainer, list string, i int) {
		if len(c.ReadinessProbe) == 0 || string(c.ReadinessProbe) == "null" {
			return
		}
		t.Probed = true
		within := fmt.Sprintf("%s.%s[%d].readinessProbe", path, list, i)
		if len(t.Probes) == maxProbes {
			d.probeProblem(t, at, fieldProblem{within, fmt.Sprintf("is one of more than %d", maxProbes)})
			return
		}
		var in corev1.Probe
		shape := at.DecodeField(within, c.ReadinessProbe, &in)
		for _, p := range shape {
			d.probeProblem(t, at, fieldProblem{p.Field, p.Detail})
		}
		v := &validator{}
		p := v.probe(&in)
		for _, problem := range v.problems {
			problem.field = strings.TrimSuffix(within+"."+problem.field, ".")
			if !follows(problem, shape) {
				d.probeProblem(t, at, problem)
			}
		}
		if p.Port.Name != "" {
			if j := slices.IndexFunc(c.Ports, func(port podPort) bool { return port.Name == p.Port.Name }); j >= 0 && c.Ports[j].ContainerPort > 0 && c.Ports[j].ContainerPort < 1<<16 {
				p.Port = probe.Port{Number: uint16(c.Ports[j].ContainerPort)}
			}
		}
		p.Origin = probe.Origin{Form: probe.ReadinessProbe, Object: t.String(), Container: document.Printable(c.Name), File: d.path, Line: at.Line(within)}
		t.Probes = append(t.Probes, p)
	}
	for i := range from.Containers {
		take(&from.Containers[i], "containers", i)
	}
	for i := range from.InitContainers {
		if c := &from.InitContainers[i]; c.RestartPolicy == string(corev1.ContainerRestartPolicyAlways) {
			take(c, "initContainers", i)
		}
	}
}

func (d *decoding) probeProblem(t *spec.Template, at *document.Document, p fieldProblem) {
	d.ours, d.known = true, true
	d.problemAt(at.Line(p.field), t.String(), p.field, p.detail)
}

// relocated returns the template for a document that begins at a line of its file.
func relocated(t *spec.Template, line int) *spec.Template {
	if t == nil || line == 1 || len(t.Probes) == 0 {
		return t
	}
	moved := *t
	moved.Probes = make([]*probe.Probe, len(t.Probes))
	for i, p := range t.Probes {
		at := *p
		at.Origin.Line += line - 1
		moved.Probes[i] = &at
	}
	return &moved
}

// annotated is what the annotations of a Service say about probes. Lines count from the beginning of the document.
type annotated struct {
	probe      *probe.Probe // nil if there is none
	minHealthy probe.MinHealthy
}

// annotatedProbes reads the annotations of a Service about probes; nil if it has none.
func (v *validator) annotatedProbes(svc *corev1.Service, at *document.Document) *annotated {
	text, hasProbe := svc.Annotations[AnnotationProbe]
	least, hasLeast := svc.Annotations[AnnotationMinHealthy]
	if !hasProbe && !hasLeast {
		return nil
	}
	a := &annotated{}
	if hasLeast {
		m, err := probe.ParseMinHealthy(least)
		if err != nil {
			v.add(err.Error(), "metadata.annotations[%s]", AnnotationMinHealthy)
		}
		a.minHealthy = m
	}
	if hasProbe {
		a.probe = v.annotatedProbe(svc, text, at)
	}
	return a
}

// annotatedProbe reads a readinessProbe in the annotation. Its port may be left out, and then is that of the endpoint.
func (v *validator) annotatedProbe(svc *corev1.Service, text string, at *document.Document) *probe.Probe {
	const path = "metadata.annotations[" + AnnotationProbe + "]"
	where := document.Text{Line: 1, Data: []byte(text), OneLine: true}
	if at != nil {
		where.Line = at.Line(path)
		if inner, ok := at.Embedded(path); ok {
			where = inner
		}
	}
	doc := document.Parse(where)
	fault := func(line int, field, detail string) {
		v.at(line, detail, "%s", strings.TrimSuffix(path+"."+field, "."))
	}
	for _, p := range doc.Problems() {
		fault(p.Line, p.Field, p.Detail)
	}
	if data := doc.JSON(); data == nil || data[0] != '{' {
		if data != nil {
			fault(doc.Start(), "", "must be a readinessProbe in YAML, such as {tcpSocket: {port: 5432}}")
		}
		return nil
	}
	var in corev1.Probe
	shape := doc.Decode(&in)
	for _, p := range shape {
		fault(p.Line, p.Field, p.Detail)
	}
	inner := &validator{}
	own := freePort(&in)
	p := inner.probe(&in)
	if own {
		p.Port = probe.Port{}
	}
	if p.Kind == probe.Exec {
		inner.add("needs a container; write it as the readinessProbe of one in a template of pods", "exec")
	}
	if name := p.Port.Name; name != "" && len(inner.problems) == 0 && !slices.ContainsFunc(svc.Spec.Ports, func(q corev1.ServicePort) bool { return q.Name == name }) {
		inner.add(fmt.Sprintf("%s is the name of no port of the Service", document.Quote(name)), "%s.port", p.Kind)
	}
	for _, problem := range inner.problems {
		if !follows(problem, shape) {
			fault(doc.Line(problem.field), problem.field, problem.detail)
		}
	}
	p.Origin = probe.Origin{Form: probe.Annotation, Object: "Service " + svc.Namespace + "/" + svc.Name, Line: where.Start()}
	return p
}

// freePort gives a probe without a port one that is valid, and reports whether it had none.
func freePort(in *corev1.Probe) bool {
	none := intstr.IntOrString{}
	switch {
	case in.HTTPGet != nil && in.HTTPGet.Port == none:
		in.HTTPGet.Port.IntVal = 1
	case in.TCPSocket != nil && in.TCPSocket.Port == none:
		in.TCPSocket.Port.IntVal = 1
	case in.GRPC != nil && in.GRPC.Port == 0:
		in.GRPC.Port = 1
	default:
		return false
	}
	return true
}
