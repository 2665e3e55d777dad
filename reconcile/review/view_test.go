package review

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"weir/backends"
)

func entry(name string, change ...func(*backends.Entry)) *backends.Entry {
	e := &backends.Entry{
		Key:       backends.PortKey{Service: backends.ServiceName{Namespace: "default", Name: name}, Port: "http", Protocol: backends.TCP, Family: backends.IPv4},
		Origin:    "services/" + name + ".yaml:1",
		ClusterIP: netip.MustParseAddr("10.96.0.7"), Port: 80, HasEndpoints: true,
		Endpoints: []backends.Endpoint{
			{Addr: netip.MustParseAddrPort("10.0.0.9:8080"), Cluster: true, Local: true, Weight: 1},
			{Addr: netip.MustParseAddrPort("10.0.0.10:8080"), Cluster: true, Remote: true, Weight: 1},
		},
	}
	for _, c := range change {
		c(e)
	}
	return e
}

// TestFactsAreComplete changes every field of an Entry and demands that the facts differ, so that a field which is added
// to Entry is not forgotten here.
func TestFactsAreComplete(t *testing.T) {
	changes := map[string]func(*backends.Entry){
		"ClusterIP":           func(e *backends.Entry) { e.ClusterIP = netip.MustParseAddr("10.96.0.8") },
		"Port":                func(e *backends.Entry) { e.Port = 81 },
		"NodePort":            func(e *backends.Entry) { e.NodePort = 30080 },
		"ExternalIPs":         func(e *backends.Entry) { e.ExternalIPs = []netip.Addr{netip.MustParseAddr("192.0.2.1")} },
		"LoadBalancerIPs":     func(e *backends.Entry) { e.LoadBalancerIPs = []netip.Addr{netip.MustParseAddr("192.0.2.1")} },
		"SourceRanges":        func(e *backends.Entry) { e.SourceRanges = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} },
		"InternalLocal":       func(e *backends.Entry) { e.InternalLocal = true },
		"ExternalLocal":       func(e *backends.Entry) { e.ExternalLocal = true },
		"Affinity":            func(e *backends.Entry) { e.Affinity = time.Hour },
		"Endpoints":           func(e *backends.Entry) { e.Endpoints = e.Endpoints[:1] },
		"HealthCheckNodePort": func(e *backends.Entry) { e.HealthCheckNodePort = 31000 },
		"ProxyProtocol":       func(e *backends.Entry) { e.ProxyProtocol = true },
		"Scheduler":           func(e *backends.Entry) { e.Scheduler = "sh" },
		"Endpoint.Addr":       func(e *backends.Entry) { e.Endpoints[0].Addr = netip.MustParseAddrPort("10.0.0.9:8081") },
		"Endpoint.Cluster":    func(e *backends.Entry) { e.Endpoints[0].Cluster = false },
		"Endpoint.Local":      func(e *backends.Entry) { e.Endpoints[0].Local = false },
		"Endpoint.Remote":     func(e *backends.Entry) { e.Endpoints[1].Remote = false },
		"Endpoint.Weight":     func(e *backends.Entry) { e.Endpoints[0].Weight = 0 },
	}
	// Key and Origin are not facts; Serving is for connection tracking; HasEndpoints says something only without Endpoints.
	notFacts := []string{"Key", "Origin", "Serving", "HasEndpoints"}
	for field := range reflect.TypeFor[backends.Entry]().Fields() {
		if changes[field.Name] == nil && !slices.Contains(notFacts, field.Name) {
			t.Errorf("Entry.%s: no fact shows that it changed", field.Name)
		}
	}
	for field := range reflect.TypeFor[backends.Endpoint]().Fields() {
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
	none := func(e *backends.Entry) { e.Endpoints = nil }
	if c := diffFacts(factsOf(entry("web", none)), factsOf(entry("web", none, func(e *backends.Entry) { e.HasEndpoints = false }))); len(c) != 1 {
		t.Errorf("HasEndpoints without Endpoints: %v", c)
	}
}

// TestFleet plans for nodes of which all but those that an endpoint moves between agree.
func TestFleet(t *testing.T) {
	var groups []Group
	on := func(n int) *backends.Entry {
		return entry("web", func(e *backends.Entry) { e.Endpoints[0].Local, e.Endpoints[0].Remote = n == 1, n != 1 })
	}
	more := func(e *backends.Entry) *backends.Entry {
		clone := *e
		clone.Endpoints = append(slices.Clone(e.Endpoints), backends.Endpoint{Addr: netip.MustParseAddrPort("10.0.0.11:8080"), Cluster: true, Weight: 1})
		return &clone
	}
	for n := range 100 {
		groups = append(groups, Compare("node", State{Entries: []*backends.Entry{on(n)}}, State{Entries: []*backends.Entry{more(on(n))}}))
	}
	p := New(Input{Kind: "empty"}, Input{}, 1, groups, nil)
	if len(p.Groups) != 1 || len(p.Groups[0].Nodes) != 100 || p.Summary.Changed != 1 || p.Summary.Nodes != 100 {
		t.Errorf("%d groups, summary %+v", len(p.Groups), p.Summary)
	}
	groups = append(groups, Compare("mover", State{Entries: []*backends.Entry{on(1)}}, State{Entries: []*backends.Entry{on(2)}}))
	if p := New(Input{}, Input{}, 1, groups, nil); len(p.Groups) != 2 {
		t.Errorf("%d groups", len(p.Groups))
	}
}

func TestWarnings(t *testing.T) {
	with := func(change ...func(*backends.Entry)) State {
		return State{Entries: []*backends.Entry{entry("web", change...)}}
	}
	lb := func(ranges ...string) func(*backends.Entry) {
		return func(e *backends.Entry) {
			e.LoadBalancerIPs = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
			for _, r := range ranges {
				e.SourceRanges = append(e.SourceRanges, netip.MustParsePrefix(r))
			}
		}
	}
	none := func(e *backends.Entry) { e.Endpoints, e.HasEndpoints = nil, false }
	nodePort := func(n uint16) func(*backends.Entry) { return func(e *backends.Entry) { e.NodePort = n } }
	sticky := func(e *backends.Entry) { e.Affinity = time.Hour }
	two := State{Entries: []*backends.Entry{entry("a", lb()), entry("b", lb())}}
	for name, tt := range map[string]struct {
		old, new State
		want     []ID
	}{
		"nothing":            {with(), with(), nil},
		"endpoints gone":     {with(), with(none), []ID{NoReadyEndpoint}},
		"new without any":    {State{}, with(none), []ID{NoReadyEndpoint}},
		"as before":          {with(none), with(none), nil},
		"weights of zero":    {with(), with(func(e *backends.Entry) { e.Endpoints[0].Weight, e.Endpoints[1].Weight = 0, 0 }), []ID{NoReadyEndpoint}},
		"others have some":   {with(), with(func(e *backends.Entry) { e.Endpoints = nil }), []ID{LocalWithoutMembers}},
		"node port moved":    {with(nodePort(30000)), with(nodePort(30001)), []ID{NodePortMoved}},
		"node port comes":    {with(), with(nodePort(30001)), nil},
		"node port goes":     {with(nodePort(30000)), with(), []ID{NodePortMoved}},
		"ClusterIP changed":  {with(), with(func(e *backends.Entry) { e.ClusterIP = netip.MustParseAddr("10.96.0.9") }), []ID{ClusterIPChanged}},
		"affinity lost":      {with(sticky), with(), []ID{AffinityLost}},
		"affinity comes":     {with(), with(sticky), nil},
		"two at one address": {State{}, two, []ID{SharedAddress, SharedAddress}},
		"two as before":      {two, two, nil},
		"nobody may come":    {State{}, with(lb("127.0.0.0/8", "0.0.0.0/32")), []ID{SourcesExcludeAll}},
		"some may come":      {State{}, with(lb("127.0.0.0/8", "10.0.0.0/8")), nil},
		"mode":               {State{Mode: "iptables"}, State{Mode: "nftables"}, []ID{ModeChanged}},
		"mode not known":     {State{}, State{Mode: "nftables"}, nil},
	} {
		var got []ID
		all := Warn(tt.old, tt.new)
		for _, w := range all {
			got = append(got, w.ID)
			if w.Severity == "" || w.Detail == "" || w.ID != ModeChanged && (w.Source == "" || w.Object == "") {
				t.Errorf("%s: %+v", name, w)
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %v, want %v", name, got, tt.want)
		}
		for _, list := range []string{"W001,W002, W003 ,W004,W006,W007,W011", "W001-no-ready-endpoint,W002-node-port-moved,W003-cluster-ip-changed,W004-session-affinity-lost,W006-shared-address,W007-source-ranges-exclude-everybody,W011-local-policy-without-endpoints"} {
			for _, w := range Silence(all, func(backends.ServiceName) string { return list }) {
				if w.ID != ModeChanged {
					t.Errorf("%s: %s is not silenced", name, w.ID)
				}
			}
		}
		if kept := Silence(all, func(backends.ServiceName) string { return "W0, W0011" }); len(kept) != len(all) {
			t.Errorf("%s: silenced by a name that is none", name)
		}
	}
}

func TestRecordRoundTrip(t *testing.T) {
	full := entry("web", func(e *backends.Entry) {
		e.NodePort, e.HealthCheckNodePort, e.Scheduler, e.ProxyProtocol, e.Affinity = 30080, 31000, "sh", true, time.Hour
		e.ExternalIPs, e.LoadBalancerIPs = []netip.Addr{netip.MustParseAddr("192.0.2.1")}, []netip.Addr{netip.MustParseAddr("192.0.2.2")}
		e.SourceRanges, e.InternalLocal, e.ExternalLocal = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, true, true
		e.Serving = []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:53")}
	})
	v := reflect.ValueOf(*full)
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			t.Errorf("Entry.%s is not tested", v.Type().Field(i).Name)
		}
	}
	r := &Record{Node: "n", Zone: "z", Families: []backends.Family{backends.IPv4}, Revision: "r", State: State{Mode: "iptables", Entries: []*backends.Entry{full}}}
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
	e := entry("web", func(e *backends.Entry) {
		e.Origin = "a\x1b[31m\n```\n@everyone<script>|.yaml:1"
		e.Endpoints, e.HasEndpoints = nil, false
	})
	new := State{Entries: []*backends.Entry{e}}
	p := New(Input{Kind: "git", Name: "x\x1b]0;y\a"}, Input{Name: "`c`"}, 1, []Group{Compare("n", State{}, new)}, Warn(State{}, new))
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
		new.Entries = append(new.Entries, entry("s"+strings.Repeat("x", i%40)+number(uint16(i)), func(e *backends.Entry) { e.Endpoints, e.HasEndpoints = nil, false }))
	}
	p := New(Input{Kind: "empty"}, Input{}, 5000, []Group{Compare("n", State{}, new)}, Warn(State{}, new))
	var md strings.Builder
	if err := p.WriteMarkdown(&md); err != nil || md.Len() > 65536 || !strings.Contains(md.String(), "cut: see") || strings.Count(md.String(), "</details>") != 1 {
		t.Errorf("%v: %d bytes", err, md.Len())
	}
}
