package manifest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/probe"
)

// probesIn writes down the Probes of a Service and of the templates of a Snapshot, one on a line.
func probesIn(snap *spec.Snapshot) string {
	var lines []string
	write := func(what string, p *probe.Probe) {
		text := what + ": " + p.String()
		if p.InitialDelay > 0 {
			text += fmt.Sprint(" after ", p.InitialDelay)
		}
		for _, h := range p.Headers {
			text += fmt.Sprintf(" %s=%s", h.Name, h.Value)
		}
		for _, s := range p.Statuses {
			text += fmt.Sprintf(" %d-%d", s.Min, s.Max)
		}
		for _, said := range [][2]string{{"send", p.Send}, {"expect", p.Expect}, {"authority", p.Authority}} {
			if said[1] != "" {
				text += fmt.Sprintf(" %s=%q", said[0], said[1])
			}
		}
		if p.ExpectWithin > 0 && p.Expect != "" {
			text += fmt.Sprint(" within ", p.ExpectWithin)
		}
		if p.HTTP2 {
			text += " HTTP/2"
		}
		if p.ProxyHeader {
			text += " PROXY"
		}
		o := p.Origin
		lines = append(lines, fmt.Sprintf("%s (%s %s:%d)", text, strings.TrimSpace(o.String()+" "+o.Container), o.File, o.Line))
	}
	for svc := range snap.Services.All() {
		if svc.Probes == nil {
			continue
		}
		if least := svc.Probes.MinHealthy.String(); least != "1" {
			lines = append(lines, "min-healthy "+least)
		}
		for _, p := range svc.Probes.Ports {
			write(p.Port, p.Probe)
		}
	}
	for t := range snap.Templates.All() {
		for _, p := range t.Probes {
			write(t.Name, p)
		}
	}
	for _, n := range append(snap.AllNotices(), snap.NoticesOf(dataplane.ServiceName{Namespace: "default", Name: "web"})...) {
		if n.ID() != spec.NoReadyEndpoint {
			lines = append(lines, fmt.Sprintf("%s %s", n.ID().Short(), n.Error()))
		}
	}
	return strings.Join(lines, "\n")
}

// webService is a Service with an annotation.
func webService(annotations string) string {
	return "apiVersion: v1\nkind: Service\nmetadata: {name: web, annotations: {" + annotations + "}}\n" +
		"spec: {clusterIP: 10.96.0.1, ports: [{port: 80, name: http}, {port: 81, name: admin}, {port: 53, name: dns, protocol: UDP}]}\n"
}

func podWith(probe string) string {
	return "apiVersion: v1\nkind: Pod\nmetadata: {name: web, labels: {app: web}}\nspec: {containers: [{name: c, ports: [{name: http, containerPort: 8080}], readinessProbe: {" + probe + "}}]}\n"
}

func policyOf(group, name, fields string) string {
	return fmt.Sprintf("apiVersion: %s/v1\nkind: HealthCheckPolicy\nmetadata: {name: %s}\nspec: {%s}\n", group, name, fields)
}

const (
	forWeb   = `targetRef: {group: "", kind: Service, name: web}`
	defaults = " every 10s, timeout 1s, 3 failures, 1 success"
)

func TestReadinessProbe(t *testing.T) {
	for _, tt := range []struct{ probe, want string }{
		{"tcpSocket: {port: 5432}", "tcpSocket :5432" + defaults},
		{"httpGet: {port: 80}", "httpGet :80/" + defaults},
		{"httpGet: {port: http, path: 'ready?a=%2F', scheme: HTTPS}", "httpGet :8080ready?a=%2F with TLS" + defaults},
		{"httpGet: {port: 80, host: example.com, protocol: HTTP1, httpHeaders: [{name: Host, value: a}, {name: X, value: b}, {name: X, value: c}]}", "httpGet example.com:80/" + defaults + " Host=a X=b X=c"},
		{"httpGet: {port: 80, protocol: HTTP2}", "httpGet :80/" + defaults + " HTTP/2"},
		{"grpc: {port: 9000}", "grpc :9000" + defaults},
		{"grpc: {port: 9000, service: a.b, mode: TLS}", "grpc :9000 a.b with TLS" + defaults},
		{"exec: {command: [cat, /tmp/healthy]}", "exec cat /tmp/healthy" + defaults},
		{"tcpSocket: {port: '1'}, periodSeconds: 2, timeoutSeconds: 3, initialDelaySeconds: 4, successThreshold: 5, failureThreshold: 6", ""},
		{"tcpSocket: {port: 1}, periodSeconds: 2, timeoutSeconds: 3, initialDelaySeconds: 4, successThreshold: 5, failureThreshold: 6", "tcpSocket :1 every 2s, timeout 3s, 6 failures, 5 successes after 4s"},
		{"tcpSocket: {port: other}", "tcpSocket :other" + defaults}, // the container has no such port: there is no answer
	} {
		t.Run(tt.probe, func(t *testing.T) {
			s := NewSet(Options{})
			snap, _, err := s.Update(t.Context(), spec.Revision{}, []File{{Path: "a.yaml", Data: []byte(oneService + "---\n" + podWith(tt.probe))}})
			if tt.want == "" {
				if err == nil {
					t.Error("it is accepted")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got, want := probesIn(snap), "web: "+tt.want+" (readinessProbe of Pod default/web c a.yaml:9)"; got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

func TestHealthCheckPolicy(t *testing.T) {
	gke := func(fields string) string { return policyOf(gkeGroup, "hc", forWeb+", "+fields) }
	azure := func(fields string) string { return policyOf(azureGroup, "hc", forWeb+", "+fields) }
	const gkeTimes, azureTimes = " every 5s, timeout 5s, 2 failures, 2 successes", " every 5s, timeout 30s, 3 failures, 1 success"
	const at = " (HealthCheckPolicy default/hc b.yaml:1)"
	both := func(what string) string { return "admin: " + what + at + "\nhttp: " + what + at }
	all := func(what string) string {
		return "admin: " + what + at + "\ndns: " + what + at + "\nhttp: " + what + at
	}
	for _, tt := range []struct{ name, policy, want string }{
		{"nothing said", policyOf(gkeGroup, "hc", forWeb), both("httpGet /" + gkeTimes + " 200-200")},
		{"times", gke("default: {checkIntervalSec: 10, timeoutSec: 2, healthyThreshold: 1, unhealthyThreshold: 4}"), both("httpGet / every 10s, timeout 2s, 4 failures, 1 success 200-200")},
		{"HTTP", gke("default: {config: {type: HTTP, httpHealthCheck: {port: 8080, requestPath: /ready, host: example.com, response: ok, proxyHeader: PROXY_V1}}}"),
			all("httpGet :8080/ready" + gkeTimes + " Host=example.com 200-200 expect=\"ok\" within 1024 PROXY")},
		{"HTTPS at the port that is served", gke("default: {config: {type: HTTPS, httpsHealthCheck: {portSpecification: USE_SERVING_PORT, requestPath: '', host: '', response: ''}}}"), both("httpGet / with TLS" + gkeTimes + " 200-200")},
		{"HTTP2 at a named port", gke("default: {config: {type: HTTP2, http2HealthCheck: {portSpecification: USE_NAMED_PORT, portName: admin, proxyHeader: NONE}}}"), all("httpGet :admin/ with TLS" + gkeTimes + " 200-200 HTTP/2")},
		{"the number of the port comes before its name", gke("default: {config: {type: TCP, tcpHealthCheck: {port: 1, portName: admin}}}"), all("tcpSocket :1" + gkeTimes)},
		{"TCP", gke("default: {config: {type: TCP, tcpHealthCheck: {request: \"PING\\r\\n\", response: +PONG}}}"), both("tcpSocket" + gkeTimes + ` send="PING\r\n" expect="+PONG"`)},
		{"GRPC", gke("default: {config: {type: GRPC, grpcHealthCheck: {grpcServiceName: a.b}}}"), both("grpc a.b" + gkeTimes)},
		{"a log", gke("default: {logConfig: {enabled: true}}"), both("httpGet /"+gkeTimes+" 200-200") + "\nW022 b.yaml:4: HealthCheckPolicy default/hc: spec.default.logConfig: has no effect here: weir logs when an endpoint comes or goes"},
		{"a port that is not there", gke("default: {config: {type: TCP, tcpHealthCheck: {portName: other}}}"), all("tcpSocket :other"+gkeTimes) +
			"\nW042 b.yaml:1: HealthCheckPolicy default/hc: spec.default.config: asks port \"other\", and Service default/web has none of that name: no endpoint has an answer"},
		{"Azure, nothing said", policyOf(azureGroup, "hc", forWeb), both("httpGet /" + azureTimes + " Host=localhost 200-399")},
		{"Azure, all", azure("default: {interval: 500ms, timeout: 250ms, healthyThreshold: 2, unhealthyThreshold: 1, port: 8443, useTLS: true, http: {host: 'a.b:1', path: /x, match: {body: fine, statusCodes: [{start: 200, end: 204}, {start: 404, end: 404}]}}}"),
			all("httpGet :8443/x with TLS every 500ms, timeout 250ms, 1 failure, 2 successes Host=a.b:1 200-204 404-404 expect=\"fine\"")},
		{"Azure, gRPC", azure("default: {useTLS: false, grpc: {authority: a.b, service: c.d}}"), both("grpc c.d" + azureTimes + " authority=\"a.b\"")},
		{"Azure, one port", policyOf(azureGroup, "hc", `targetRef: {group: "", kind: Service, name: web, sectionNames: [http]}`), "http: httpGet /" + azureTimes + " Host=localhost 200-399" + at},
		{"Azure, ports that are not there", policyOf(azureGroup, "hc", `targetRef: {group: "", kind: Service, name: web, sectionNames: [http, https]}`), "http: httpGet /" + azureTimes + " Host=localhost 200-399" + at +
			"\nW042 b.yaml:1: HealthCheckPolicy default/hc: spec.targetRef.sectionNames[1]: \"https\" is the name of no port of Service default/web"},
		{"of another kind", policyOf(gkeGroup, "hc", `targetRef: {group: net.gke.io, kind: ServiceImport, name: web}`), "W042 b.yaml:4: HealthCheckPolicy default/hc: spec.targetRef.kind: is a ServiceImport, and weir serves Services only"},
		{"of another namespace", policyOf(gkeGroup, "hc", `targetRef: {group: "", kind: Service, name: web, namespace: shop}`), "W042 b.yaml:4: HealthCheckPolicy default/hc: spec.targetRef.namespace: is \"shop\": a policy is for Services of its own namespace, default"},
		{"of another Service", policyOf(gkeGroup, "hc", `targetRef: {group: "", kind: Service, name: db}`), "W042 b.yaml:1: HealthCheckPolicy default/hc: spec.targetRef: is for Service default/db, which is not in the input"},
		{"a status", policyOf(azureGroup, "hc", forWeb) + "status: {conditions: [{type: Accepted, status: Unknown}]}\n", both("httpGet /" + azureTimes + " Host=localhost 200-399")},
		{"of another project", policyOf("gateway.flomesh.io", "hc", "ports: []"), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := NewSet(Options{})
			snap, _ := mustUpdate(t, s, File{Path: "a.yaml", Data: []byte(webService(""))}, File{Path: "b.yaml", Data: []byte(tt.policy)})
			if got := probesIn(snap); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
			again, _ := mustUpdate(t, s, File{Path: "b.yaml"})
			if got := probesIn(again); got != "" {
				t.Errorf("without the policy there is\n%s", got)
			}
		})
	}
}

// TestHealthCheckPoliciesOfOneService has several for one Service: for each port one counts.
func TestHealthCheckPoliciesOfOneService(t *testing.T) {
	s := NewSet(Options{})
	tcp := func(group, name string, port int, sections string) File {
		fields := fmt.Sprintf(`targetRef: {group: "", kind: Service, name: web%s}, default: {config: {type: TCP, tcpHealthCheck: {port: %d}}}`, sections, port)
		if group == azureGroup {
			fields = fmt.Sprintf(`targetRef: {group: "", kind: Service, name: web%s}, default: {port: %d, grpc: {}}`, sections, port)
		}
		return File{Path: name + ".yaml", Data: []byte(policyOf(group, name, fields))}
	}
	is := func(what string, snap *spec.Snapshot, want string, notices ...string) {
		t.Helper()
		svc := snap.Services.Get(dataplane.ServiceName{Namespace: "default", Name: "web"})
		var got []string
		if svc.Probes != nil {
			for _, p := range svc.Probes.Ports {
				got = append(got, p.Port+":"+p.Probe.Port.String())
			}
		}
		if text := strings.Join(got, " "); text != want {
			t.Errorf("%s: got %s, want %s", what, text, want)
		}
		var told []string
		for _, n := range svc.Notices {
			if n.ID() == spec.ProbeNotUsed {
				told = append(told, n.Error())
			}
		}
		if len(told) != len(notices) || !slices.EqualFunc(told, notices, strings.Contains) {
			t.Errorf("%s: the notices are %q, want %q", what, told, notices)
		}
	}
	snap, _ := mustUpdate(t, s, File{Path: "a.yaml", Data: []byte(webService(`weir/probe: "tcpSocket: {port: 9}"`))})
	is("the annotation", snap, "admin:9 dns:9 http:9")
	snap, delta := mustUpdate(t, s, tcp(gkeGroup, "m", 1, ""))
	is("a policy", snap, "admin:1 dns:1 http:1", "a.yaml:3: Service default/web: metadata.annotations[weir/probe]: is not used, since HealthCheckPolicy default/m at m.yaml:1 is for this Service")
	if len(delta.Services) != 1 {
		t.Errorf("the change is %+v", delta)
	}
	snap, _ = mustUpdate(t, s, File{Path: "a.yaml", Data: []byte(webService(""))}, tcp(gkeGroup, "z", 2, ""))
	is("two", snap, "admin:1 dns:1 http:1", "z.yaml:1: HealthCheckPolicy default/z: is not used, since HealthCheckPolicy default/m at m.yaml:1 is for Service default/web too")
	snap, _ = mustUpdate(t, s, tcp(gkeGroup, "b", 3, ""))
	is("a third, which is the first by name", snap, "admin:3 dns:3 http:3", "m.yaml:1:", "z.yaml:1:")
	snap, _ = mustUpdate(t, s, tcp(azureGroup, "zz", 4, ", sectionNames: [http]"))
	is("one for a port", snap, "admin:3 dns:3 http:4", "m.yaml:1:", "z.yaml:1:")
	snap, _ = mustUpdate(t, s, tcp(azureGroup, "zzz", 5, ", sectionNames: [http]"))
	is("two for a port", snap, "admin:3 dns:3 http:4", "HealthCheckPolicy default/zzz: is not used", "m.yaml:1:", "z.yaml:1:")
	snap, _ = mustUpdate(t, s, File{Path: "b.yaml"}, File{Path: "zz.yaml"}, File{Path: "m.yaml"}, File{Path: "zzz.yaml"})
	is("one left", snap, "admin:2 dns:2 http:2")
	snap, delta = mustUpdate(t, s, File{Path: "z.yaml", Data: append([]byte("# moved\n\n"), tcp(gkeGroup, "z", 2, "").Data...)})
	if p := snap.Services.Get(dataplane.ServiceName{Namespace: "default", Name: "web"}).Probes.Ports[0].Probe; p.Origin.Line != 3 || len(delta.Services) != 0 {
		t.Errorf("a policy that moved is at line %d, and the change is %+v", p.Origin.Line, delta)
	}
	snap, _ = mustUpdate(t, s, File{Path: "z.yaml"})
	is("none left", snap, "")
}

func TestProbeAnnotation(t *testing.T) {
	const at = " (annotation of Service default/web a.yaml:3)"
	for _, tt := range []struct{ annotations, want string }{
		{`weir/probe: "tcpSocket: {}"`, "admin: tcpSocket" + defaults + at + "\nhttp: tcpSocket" + defaults + at},
		{`weir/probe: "{httpGet: {path: /x}}"`, "admin: httpGet /x" + defaults + at + "\nhttp: httpGet /x" + defaults + at},
		{`weir/probe: "grpc: {service: a}"`, "admin: grpc a" + defaults + at + "\nhttp: grpc a" + defaults + at},
		{`weir/probe: "tcpSocket: {port: admin}"`, "admin: tcpSocket :admin" + defaults + at + "\ndns: tcpSocket :admin" + defaults + at + "\nhttp: tcpSocket :admin" + defaults + at},
		{`weir/min-healthy: 50%`, "min-healthy 50%"},
		{`weir/min-healthy: "0"`, "min-healthy 0"},
		{`weir/probe: "tcpSocket: {port: admin, host: 169.254.169.254}"`, "admin: tcpSocket 169.254.169.254:admin" + defaults + at + "\ndns: tcpSocket 169.254.169.254:admin" + defaults + at + "\nhttp: tcpSocket 169.254.169.254:admin" + defaults + at +
			"\nW041 a.yaml:3: Service default/web: the annotation of Service default/web connects to host \"169.254.169.254\", and liveness.allowHosts does not have it: it is not asked, and no endpoint has an answer"},
	} {
		snap, _ := mustUpdate(t, NewSet(Options{}), File{Path: "a.yaml", Data: []byte(webService(tt.annotations))})
		if got := probesIn(snap); got != tt.want {
			t.Errorf("%s: got\n%s\nwant\n%s", tt.annotations, got, tt.want)
		}
	}
	allowed := File{Path: "weir.yaml", Data: []byte("apiVersion: weir/v1alpha1\nkind: WeirConfiguration\nliveness: {allowHosts: [192.0.2.0/24]}\n")}
	snap, _ := mustUpdate(t, NewSet(Options{}), allowed, File{Path: "a.yaml", Data: []byte(webService(`weir/probe: "tcpSocket: {host: 192.0.2.9}"`))})
	if got := probesIn(snap); strings.Contains(got, "W041") {
		t.Errorf("a host that is allowed: %s", got)
	}
}

// TestProbesAreSeen changes one probe after another among many Services: the Delta has that Service only.
func TestProbesAreSeen(t *testing.T) {
	var files []File
	for i := range 50 {
		files = append(files, File{Path: fmt.Sprintf("%d.yaml", i), Data: fmt.Appendf(nil, "apiVersion: v1\nkind: Service\nmetadata: {name: s%d}\nspec: {ports: [{port: 80}]}\n---\n%s", i,
			policyOf(gkeGroup, fmt.Sprintf("p%d", i), fmt.Sprintf(`targetRef: {group: "", kind: Service, name: s%d}`, i)))})
	}
	s := NewSet(Options{})
	mustUpdate(t, s, files...)
	for i := range files {
		f := files[i]
		f.Data = []byte(strings.Replace(string(f.Data), "spec: {targetRef", "spec: {default: {unhealthyThreshold: 9}, targetRef", 1))
		snap, delta := mustUpdate(t, s, f)
		name := dataplane.ServiceName{Namespace: "default", Name: fmt.Sprintf("s%d", i)}
		if !slices.Equal(delta.Services, []dataplane.ServiceName{name}) || snap.Services.Get(name).Probes.Ports[0].Probe.FailureThreshold != 9 {
			t.Fatalf("a change of %s: %+v", name, delta)
		}
	}
}

// FuzzProbes reads what may be any of the three forms. Whatever is accepted has bounds that a prober can rely on.
func FuzzProbes(f *testing.F) {
	f.Add(podWith("httpGet: {port: http, path: /x, scheme: HTTPS, httpHeaders: [{name: A, value: b}]}, periodSeconds: 2147483647"))
	f.Add(podWith("exec: {command: [a]}"))
	f.Add(policyOf(gkeGroup, "hc", forWeb+", default: {config: {type: TCP, tcpHealthCheck: {port: 1, request: a}}, checkIntervalSec: 300}"))
	f.Add(policyOf(azureGroup, "hc", forWeb+", default: {interval: 500ms, http: {match: {statusCodes: [{start: 200, end: 299}]}}}"))
	f.Add(webService(`weir/probe: "grpc: {port: admin, mode: TLS}", weir/min-healthy: "50%"`))
	f.Add("apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n  annotations:\n    weir/probe: |\n      tcpSocket: {port: 1}\n      &a timeoutSeconds: 2\nspec: {ports: [{port: 1}]}\n")
	f.Fuzz(func(t *testing.T, data string) {
		s := NewSet(Options{Overrides: spec.Overrides{AllowEmpty: new(true)}})
		first := File{Path: "web.yaml", Data: []byte(webService(""))}
		if strings.Contains(data, "Service") {
			first.Data = []byte(oneService)
		}
		snap, _, err := s.Update(context.Background(), spec.Revision{}, []File{first, {Path: "x.yaml", Data: []byte(data)}})
		if err != nil {
			for _, line := range strings.Split(err.Error(), "\n") {
				if strings.TrimSpace(line) == "" {
					t.Errorf("a problem says nothing: %q", err)
				}
			}
			return
		}
		check := func(p *probe.Probe) {
			if p.Kind < probe.HTTP || p.Kind > probe.Exec || p.Period < minInterval || p.Timeout < minInterval || p.InitialDelay < 0 || p.SuccessThreshold < 1 || p.FailureThreshold < 1 ||
				p.Origin.Line < 1 || p.Origin.File == "" || p.Origin.Object == "" || p.Kind == probe.Exec && len(p.Command) == 0 || p.Period > 100*365*24*time.Hour {
				t.Errorf("accepted: %+v", p)
			}
		}
		for svc := range snap.Services.All() {
			for p := range svc.Probes.All() {
				check(p)
			}
		}
		for tpl := range snap.Templates.All() {
			for _, p := range tpl.Probes {
				check(p)
			}
		}
		probesIn(snap)
	})
}

// TestProbesOfAPIServices has annotations of Services that nobody can refuse.
func TestProbesOfAPIServices(t *testing.T) {
	svc := func(annotations map[string]string) *corev1.Service {
		s := &corev1.Service{Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 53, Protocol: corev1.ProtocolUDP, Name: "dns"}, {Port: 80, Protocol: corev1.ProtocolTCP, Name: "http"}}}}
		s.Namespace, s.Name, s.Annotations = "default", "web", annotations
		return s
	}
	origin := spec.Origin{ResourceVersion: "7"}
	if probes, notices := ProbesOf(svc(map[string]string{"a": "b"}), origin); probes != nil || notices != nil {
		t.Errorf("without an annotation: %v, %v", probes, notices)
	}
	probes, notices := ProbesOf(svc(map[string]string{AnnotationProbe: "tcpSocket: {}", AnnotationMinHealthy: "2"}), origin)
	if len(notices) > 0 || len(probes.Ports) != 1 || probes.Ports[0].Port != "http" || probes.Ports[0].Probe.Kind != probe.TCP || probes.MinHealthy.String() != "2" {
		t.Errorf("a probe: %+v, %v", probes, notices)
	}
	probes, notices = ProbesOf(svc(map[string]string{AnnotationProbe: "tcpSocket: {port: 99999}"}), origin)
	if probes != nil || len(notices) != 1 || notices[0].ID() != spec.AnnotationIgnored ||
		notices[0].Error() != "resourceVersion=7: Service default/web: metadata.annotations[weir/probe].tcpSocket.port: is ignored: 99999: must be between 1 and 65535, inclusive" {
		t.Errorf("a wrong probe: %+v, %v", probes, notices)
	}
}
