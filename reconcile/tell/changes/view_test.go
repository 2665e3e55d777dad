package changes

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/spec"
)

func entry(name string, change ...func(*dataplane.ServicePort)) *dataplane.ServicePort {
	e := &dataplane.ServicePort{
		Key:       dataplane.ServicePortName{Service: dataplane.ServiceName{Namespace: "default", Name: name}, Port: "http", Protocol: dataplane.TCP, Family: dataplane.IPv4},
		Origin:    "services/" + name + ".yaml:1",
		ClusterIP: netip.MustParseAddr("10.96.0.7"), Port: 80, HasEndpoints: true,
		Endpoints: []dataplane.Endpoint{
			{Addr: netip.MustParseAddrPort("10.0.0.9:8080"), Cluster: true, Local: true, Weight: 1},
			{Addr: netip.MustParseAddrPort("10.0.0.10:8080"), Cluster: true, Remote: true, Weight: 1},
		},
	}
	for _, c := range change {
		c(e)
	}
	return e
}

// TestFactsAreComplete changes every field of a ServicePort and demands that the facts differ, so that a field which is added
// to ServicePort is not forgotten here.
func TestFactsAreComplete(t *testing.T) {
	changes := map[string]func(*dataplane.ServicePort){
		"ClusterIP": func(e *dataplane.ServicePort) { e.ClusterIP = netip.MustParseAddr("10.96.0.8") },
		"Port":      func(e *dataplane.ServicePort) { e.Port = 81 },
		"NodePort":  func(e *dataplane.ServicePort) { e.NodePort = 30080 },
		"NodePortExcept": func(e *dataplane.ServicePort) {
			e.NodePort, e.NodePortExcept = 30080, []netip.Addr{netip.MustParseAddr("192.0.2.1")}
		},
		"ExternalIPs":         func(e *dataplane.ServicePort) { e.ExternalIPs = []netip.Addr{netip.MustParseAddr("192.0.2.1")} },
		"LoadBalancerIPs":     func(e *dataplane.ServicePort) { e.LoadBalancerIPs = []netip.Addr{netip.MustParseAddr("192.0.2.1")} },
		"SourceRanges":        func(e *dataplane.ServicePort) { e.SourceRanges = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} },
		"InternalLocal":       func(e *dataplane.ServicePort) { e.InternalLocal = true },
		"ExternalLocal":       func(e *dataplane.ServicePort) { e.ExternalLocal = true },
		"Affinity":            func(e *dataplane.ServicePort) { e.Affinity = time.Hour },
		"Endpoints":           func(e *dataplane.ServicePort) { e.Endpoints = e.Endpoints[:1] },
		"HealthCheckNodePort": func(e *dataplane.ServicePort) { e.HealthCheckNodePort = 31000 },
		"ProxyProtocol":       func(e *dataplane.ServicePort) { e.ProxyProtocol = true },
		"Probe":               func(e *dataplane.ServicePort) { e.Probe = "tcpSocket" },
		"Answered":            func(e *dataplane.ServicePort) { e.Answered = true },
		"Reset":               func(e *dataplane.ServicePort) { e.Reset = true },
		"Scheduler":           func(e *dataplane.ServicePort) { e.Scheduler = "sh" },
		"Endpoint.Addr":       func(e *dataplane.ServicePort) { e.Endpoints[0].Addr = netip.MustParseAddrPort("10.0.0.9:8081") },
		"Endpoint.Cluster":    func(e *dataplane.ServicePort) { e.Endpoints[0].Cluster = false },
		"Endpoint.Local":      func(e *dataplane.ServicePort) { e.Endpoints[0].Local = false },
		"Endpoint.Remote":     func(e *dataplane.ServicePort) { e.Endpoints[1].Remote = false },
		"Endpoint.Weight":     func(e *dataplane.ServicePort) { e.Endpoints[0].Weight = 0 },
	}
	// Key and Origin are not facts; Serving is for connection tracking; HasEndpoints says something only without Endpoints.
	notFacts := []string{"Key", "Origin", "Serving", "ServingLocal", "HasEndpoints"}
	for field := range reflect.TypeFor[dataplane.ServicePort]().Fields() {
		if changes[field.Name] == nil && !slices.Contains(notFacts, field.Name) {
			t.Errorf("Entry.%s: no fact shows that it changed", field.Name)
		}
	}
	for field := range reflect.TypeFor[dataplane.Endpoint]().Fields() {
		if changes["Endpoint."+field.Name] == nil {
			t.Errorf("Endpoint.%s: no fact shows that it changed", field.Name)
		}
	}
	for name, change := range changes {
		old, new := entry("web"), entry("web", change)
		if c := diffFacts(factsOf(old), factsOf(new)); len(c) == 0 {
			t.Errorf("%s: the change does not show", name)
		}
		if c := diffFacts(factsOf(new), factsOf(new)); len(c) != 0 {
			t.Errorf("%s: a change from itself: %v", name, c)
		}
	}
	none := func(e *dataplane.ServicePort) { e.Endpoints = nil }
	if c := diffFacts(factsOf(entry("web", none)), factsOf(entry("web", none, func(e *dataplane.ServicePort) { e.HasEndpoints = false }))); len(c) != 1 {
		t.Errorf("HasEndpoints without Endpoints: %v", c)
	}
}

// TestFleet plans for nodes of which all but those that an endpoint moves between agree.
func TestFleet(t *testing.T) {
	var groups []Group
	on := func(n int) *dataplane.ServicePort {
		return entry("web", func(e *dataplane.ServicePort) { e.Endpoints[0].Local, e.Endpoints[0].Remote = n == 1, n != 1 })
	}
	more := func(e *dataplane.ServicePort) *dataplane.ServicePort {
		clone := *e
		clone.Endpoints = append(slices.Clone(e.Endpoints), dataplane.Endpoint{Addr: netip.MustParseAddrPort("10.0.0.11:8080"), Cluster: true, Weight: 1})
		return &clone
	}
	for n := range 100 {
		groups = append(groups, Between("node", State{ServicePorts: []*dataplane.ServicePort{on(n)}}, State{ServicePorts: []*dataplane.ServicePort{more(on(n))}}))
	}
	p := New(Input{Kind: "empty"}, Input{}, 1, nil, groups, nil)
	if len(p.Groups) != 1 || len(p.Groups[0].Nodes) != 100 || p.Summary.Changed != 1 || p.Summary.Nodes != 100 {
		t.Errorf("%d groups, summary %+v", len(p.Groups), p.Summary)
	}
	groups = append(groups, Between("mover", State{ServicePorts: []*dataplane.ServicePort{on(1)}}, State{ServicePorts: []*dataplane.ServicePort{on(2)}}))
	if p := New(Input{}, Input{}, 1, nil, groups, nil); len(p.Groups) != 2 {
		t.Errorf("%d groups", len(p.Groups))
	}
}

func TestWarnings(t *testing.T) {
	with := func(change ...func(*dataplane.ServicePort)) State {
		return State{ServicePorts: []*dataplane.ServicePort{entry("web", change...)}}
	}
	lb := func(ranges ...string) func(*dataplane.ServicePort) {
		return func(e *dataplane.ServicePort) {
			e.LoadBalancerIPs = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
			for _, r := range ranges {
				e.SourceRanges = append(e.SourceRanges, netip.MustParsePrefix(r))
			}
		}
	}
	none := func(e *dataplane.ServicePort) { e.Endpoints, e.HasEndpoints = nil, false }
	nodePort := func(n uint16) func(*dataplane.ServicePort) { return func(e *dataplane.ServicePort) { e.NodePort = n } }
	sticky := func(e *dataplane.ServicePort) { e.Affinity = time.Hour }
	for name, tt := range map[string]struct {
		old, new State
		want     []spec.NoticeID
	}{
		"nothing":           {with(), with(), nil},
		"endpoints gone":    {with(), with(none), []spec.NoticeID{spec.NoReadyEndpoint}},
		"new without any":   {State{}, with(none), []spec.NoticeID{spec.NoReadyEndpoint}},
		"as before":         {with(none), with(none), nil},
		"weights of zero":   {with(), with(func(e *dataplane.ServicePort) { e.Endpoints[0].Weight, e.Endpoints[1].Weight = 0, 0 }), []spec.NoticeID{spec.NoReadyEndpoint}},
		"others have some":  {with(), with(func(e *dataplane.ServicePort) { e.Endpoints = nil }), []spec.NoticeID{spec.LocalWithoutEndpoints}},
		"node port moved":   {with(nodePort(30000)), with(nodePort(30001)), []spec.NoticeID{spec.NodePortMoved}},
		"node port comes":   {with(), with(nodePort(30001)), nil},
		"node port goes":    {with(nodePort(30000)), with(), []spec.NoticeID{spec.NodePortMoved}},
		"ClusterIP changed": {with(), with(func(e *dataplane.ServicePort) { e.ClusterIP = netip.MustParseAddr("10.96.0.9") }), []spec.NoticeID{spec.ClusterIPChanged}},
		"port changed":      {with(), with(func(e *dataplane.ServicePort) { e.Port = 81 }), []spec.NoticeID{spec.ServicePortChanged}},
		"port renamed":      {with(), with(func(e *dataplane.ServicePort) { e.Key.Port = "other" }), nil},
		"port removed": {State{ServicePorts: []*dataplane.ServicePort{entry("web", nodePort(30000)), entry("web", func(e *dataplane.ServicePort) { e.Key.Port, e.Port = "other", 81 })}},
			with(func(e *dataplane.ServicePort) { e.Key.Port, e.Port = "other", 81 }), []spec.NoticeID{spec.NodePortMoved, spec.ServicePortChanged}},
		"Service removed": {with(nodePort(30000)), State{}, nil},
		"affinity lost":   {with(sticky), with(), []spec.NoticeID{spec.AffinityLost}},
		"affinity comes":  {with(), with(sticky), nil},
		"nobody may come": {State{}, with(lb("127.0.0.0/8", "0.0.0.0/32")), []spec.NoticeID{spec.SourcesExcludeAll}},
		"some may come":   {State{}, with(lb("127.0.0.0/8", "10.0.0.0/8")), nil},
		"mode":            {State{Mode: "iptables", Traits: backends.Traits{HandsOver: true}}, State{Mode: "nftables", Traits: backends.Traits{HandsOver: true}}, []spec.NoticeID{spec.ModeChanged}},
		"mode not known":  {State{}, State{Mode: "nftables"}, nil},
	} {
		var got []spec.NoticeID
		all := Warnings([]string{"n"}, [][]spec.Notice{Warn(tt.old, tt.new)}, nil)
		for _, w := range all {
			got = append(got, w.ID())
			if w.Severity() == spec.SeverityError || w.Detail == "" || w.ID() != spec.ModeChanged && (w.Origin.Line == 0 || w.Object == "") {
				t.Errorf("%s: %+v", name, w)
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %v, want %v", name, got, tt.want)
		}
		for _, list := range []string{"W001,W002, W003 ,W004,W006,W007,W011,W025", "W001-no-ready-endpoint,W002-node-port-moved,W003-cluster-ip-changed,W004-session-affinity-lost,W006-shared-address,W007-source-ranges-exclude-everybody,W011-local-policy-without-endpoints,W025-service-port-changed"} {
			for _, w := range all {
				if w.ID() != spec.ModeChanged && !Silenced(w.Notice, nil, silencing(w.Service(), list)) {
					t.Errorf("%s: %s is not silenced", name, w.ID())
				}
			}
		}
		for _, w := range all {
			if Silenced(w.Notice, silencing(w.Service(), "W0, W0011")) {
				t.Errorf("%s: silenced by a name that is none", name)
			}
		}
	}
}

// TestSilencedBeyondServices silences notices for a file and for all of the input.
func TestSilencedBeyondServices(t *testing.T) {
	of := func(id spec.NoticeID, file string) spec.Notice {
		return id.Notice(spec.Origin{File: file, Line: 7}, "EndpointSlice default/x", "", "detail")
	}
	snap := &spec.Snapshot{Silenced: map[string]string{"a.yaml": "W005, W017-endpoints-skipped"}, Weir: spec.WeirConfiguration{Silence: []string{"W013"}}}
	for _, tt := range []struct {
		n    spec.Notice
		want bool
	}{
		{of(spec.UnusedEndpoints, "a.yaml"), true},
		{of(spec.EndpointsSkipped, "a.yaml"), true},
		{of(spec.UnusedEndpoints, "b.yaml"), false},
		{of(spec.NotRendered, "b.yaml"), true},
		{spec.NotRendered.Notice(spec.Origin{}, "", "", "no place"), true},
		{spec.UnusedEndpoints.Notice(spec.Origin{}, "", "", "no place"), false},
	} {
		if got := Silenced(tt.n, nil, snap, &spec.Snapshot{Weir: spec.WeirConfiguration{Silence: []string{"W005"}}}); got != tt.want {
			t.Errorf("%v [%s]: silenced %v", tt.n, tt.n.ID(), got)
		}
	}
}

// silencing returns a Snapshot with one Service, whose annotation weir/silence is the list.
func silencing(name dataplane.ServiceName, list string) *spec.Snapshot {
	svc := &spec.Service{Name: name, Object: &corev1.Service{}}
	svc.Object.Annotations = map[string]string{spec.AnnotationSilence: list}
	services := spec.Services{}.Edit()
	services.Put(name, svc)
	return &spec.Snapshot{Services: services.Commit()}
}

// TestSchemaHasAllFields: a plan in JSON may have a fact of any field.
func TestSchemaHasAllFields(t *testing.T) {
	schema, err := os.ReadFile("../../../testdata/plans/plan.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	for f := range fields {
		if !strings.Contains(string(schema), `"`+string(f)+`"`) {
			t.Errorf("the schema of plans has no field %s", f)
		}
	}
}

func TestRecordRoundTrip(t *testing.T) {
	full := entry("web", func(e *dataplane.ServicePort) {
		e.NodePort, e.HealthCheckNodePort, e.Scheduler, e.ProxyProtocol, e.Affinity = 30080, 31000, "sh", true, time.Hour
		e.NodePortExcept = []netip.Addr{netip.MustParseAddr("192.0.2.7")}
		e.ExternalIPs, e.LoadBalancerIPs = []netip.Addr{netip.MustParseAddr("192.0.2.1")}, []netip.Addr{netip.MustParseAddr("192.0.2.2")}
		e.SourceRanges, e.InternalLocal, e.ExternalLocal = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, true, true
		e.Serving = []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:53")}
		e.ServingLocal, e.Reset, e.Answered, e.Probe = e.Serving, true, true, "tcpSocket every 10s"
	})
	v := reflect.ValueOf(*full)
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			t.Errorf("Entry.%s is not tested", v.Type().Field(i).Name)
		}
	}
	r := &Record{Node: "n", Zone: "z", Families: []dataplane.Family{dataplane.IPv4}, Revision: "r", State: State{Mode: "iptables", ServicePorts: []*dataplane.ServicePort{full}}}
	var b strings.Builder
	if err := r.Write(&b); err != nil {
		t.Fatal(err)
	}
	got, err := ReadRecord(strings.NewReader(b.String()))
	if err != nil || !reflect.DeepEqual(got, r) {
		t.Errorf("%v: got %+v, want %+v", err, got, r)
	}
	for _, bad := range []string{"", "{}", "[]", "null", `{"kind":"Plan"}`, b.String()[:len(b.String())/2],
		strings.Replace(b.String(), `"10.96.0.7"`, `"::1"`, 1), strings.Replace(b.String(), `"10.96.0.7"`, `""`, 1),
		strings.Replace(b.String(), `"TCP"`, `"ICMP"`, 1), strings.Replace(b.String(), `"portNumber"`, `"nonesuch"`, 1)} {
		if _, err := ReadRecord(strings.NewReader(bad)); err == nil {
			t.Errorf("accepted: %.80s", bad)
		}
	}
}

// TestHostileNames shows text of others to a terminal and to a comment.
func TestHostileNames(t *testing.T) {
	e := entry("web", func(e *dataplane.ServicePort) {
		e.Origin = "a\x1b[31m\n```\n@everyone<script>|.yaml:1"
		e.Endpoints, e.HasEndpoints = nil, false
	})
	new := State{ServicePorts: []*dataplane.ServicePort{e}}
	p := New(Input{Kind: "git", Name: "x\x1b]0;y\a"}, Input{Name: "`c`"}, 1, nil, []Group{Between("n", State{}, new)}, Warnings([]string{"n"}, [][]spec.Notice{Warn(State{}, new)}, nil))
	var text, md strings.Builder
	if err := p.WriteText(&text, Style{}); err != nil || strings.ContainsAny(text.String(), "\x1b\a") {
		t.Errorf("%v: %q", err, text.String())
	}
	if err := p.WriteMarkdown(&md); err != nil || !strings.Contains(md.String(), "\n````diff\n") {
		t.Errorf("%v: what is fenced in can get out:\n%s", err, md.String())
	}
	table, _, _ := strings.Cut(md.String(), "<details>")
	if strings.ContainsAny(table, "\x1b@`") || strings.Contains(table, "<script") {
		t.Errorf("%s", table)
	}
}

func TestMarkdownIsBounded(t *testing.T) {
	var new State
	for i := range 5000 {
		new.ServicePorts = append(new.ServicePorts, entry("s"+strings.Repeat("x", i%40)+number(uint16(i)), func(e *dataplane.ServicePort) { e.Endpoints, e.HasEndpoints = nil, false }))
	}
	p := New(Input{Kind: "empty"}, Input{}, 5000, nil, []Group{Between("n", State{}, new)}, Warnings([]string{"n"}, [][]spec.Notice{Warn(State{}, new)}, nil))
	var md strings.Builder
	if err := p.WriteMarkdown(&md); err != nil || md.Len() > 65536 || !strings.Contains(md.String(), "cut: see") || strings.Count(md.String(), "</details>") != 1 {
		t.Errorf("%v: %d bytes", err, md.Len())
	}
}

// TestRecordOfTheVersionBefore reads a document as it was written before ServicePort carried its own JSON.
func TestRecordOfTheVersionBefore(t *testing.T) {
	const text = `{"apiVersion":"weir/v1alpha1","kind":"NodeSnapshot","node":"n","zone":"z","families":["IPv4"],"mode":"iptables","revision":"r","entries":[
{"namespace":"default","name":"web","port":"http","protocol":"TCP","family":"IPv4","source":"web.yaml:1","clusterIP":"10.96.0.7","portNumber":80,"nodePort":30080,"externalIPs":["192.0.2.1"],"loadBalancerIPs":["192.0.2.2"],"sourceRanges":["10.0.0.0/8"],"internalLocal":true,"externalLocal":true,"affinitySeconds":3600,"endpoints":[{"address":"10.0.0.9:8080","cluster":true,"local":true,"weight":1},{"address":"10.0.0.10:8080","cluster":true,"remote":true,"weight":0}],"serving":["10.0.0.1:53"],"hasEndpoints":true,"healthCheckNodePort":31000,"proxyProtocol":true,"scheduler":"sh"}
]}
`
	r, err := ReadRecord(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	e := r.ServicePorts[0]
	if e.Key.String() != "default/web:http/TCP/IPv4" || e.Affinity != time.Hour || e.Origin != "web.yaml:1" || len(e.Endpoints) != 2 || !e.Endpoints[1].Remote || e.Scheduler != "sh" || e.NodePort != 30080 {
		t.Errorf("%+v", e)
	}
	var b strings.Builder
	if err := r.Write(&b); err != nil {
		t.Fatal(err)
	}
	var before, after any
	if err := errors.Join(json.Unmarshal([]byte(text), &before), json.Unmarshal([]byte(b.String()), &after)); err != nil || !reflect.DeepEqual(before, after) {
		t.Errorf("%v: written as %s", err, b.String())
	}
}
