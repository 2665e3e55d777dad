package manifest

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"weir/backends/dataplane"
	"weir/spec"
)

// show writes a Service down as far as completing is about it.
func show(svc *spec.Service) string {
	s := &svc.Object.Spec
	var b strings.Builder
	fmt.Fprintf(&b, "%s %v %v", s.Type, s.IPFamilies, s.ClusterIPs)
	for _, p := range s.Ports {
		fmt.Fprintf(&b, " %d/%s>%s:%d", p.Port, p.Protocol, p.TargetPort.String(), p.NodePort)
	}
	if s.HealthCheckNodePort != 0 {
		fmt.Fprintf(&b, " health %d", s.HealthCheckNodePort)
	}
	return b.String()
}

// TestComplete has the allocated values written out: they must never change, since a change moves the addresses of
// everybody who upgrades.
func TestComplete(t *testing.T) {
	tests := []struct{ name, spec, want string }{
		{"plain", "", "ClusterIP [IPv4] [10.111.47.51] 80/TCP>80:0"},
		{"set", "  clusterIP: 10.96.0.10\n", "ClusterIP [IPv4] [10.96.0.10] 80/TCP>80:0"},
		{"set-v6", "  clusterIP: fd00:10:96:0::00ab\n", "ClusterIP [IPv6] [fd00:10:96::ab] 80/TCP>80:0"},
		{"set-elsewhere", "  clusterIP: 192.168.7.7\n", "ClusterIP [IPv4] [192.168.7.7] 80/TCP>80:0"},
		{"v6", "  ipFamilies: [IPv6]\n", "ClusterIP [IPv6] [fd00:10:96::e063] 80/TCP>80:0"},
		{"dual", "  ipFamilyPolicy: PreferDualStack\n", "ClusterIP [IPv4 IPv6] [10.107.47.165 fd00:10:96::794c] 80/TCP>80:0"},
		{"dual-half-set", "  ipFamilyPolicy: RequireDualStack\n  clusterIP: fd00:10:96::77\n", "ClusterIP [IPv6 IPv4] [fd00:10:96::77 10.100.97.38] 80/TCP>80:0"},
		{"headless", "  clusterIP: None\n", "ClusterIP [IPv4] [None] 80/TCP>80:0"},
		{"external-name", "  type: ExternalName\n  externalName: example.com\n", "ExternalName [] [] 80/TCP>80:0"},
		{"node-port", "  type: NodePort\n", "NodePort [IPv4] [10.106.38.59] 80/TCP>80:30474"},
		{"local", "  type: LoadBalancer\n  externalTrafficPolicy: Local\n", "LoadBalancer [IPv4] [10.100.72.89] 80/TCP>80:30854 health 30316"},
		{"no-node-ports", "  type: LoadBalancer\n  allocateLoadBalancerNodePorts: false\n", "LoadBalancer [IPv4] [10.111.228.67] 80/TCP>80:0"},
	}
	s := NewSet(Options{})
	var files []File
	for _, tt := range tests {
		files = append(files, File{Path: tt.name, Data: []byte(yamlService(tt.name, tt.spec))})
	}
	files = append(files, File{Path: "dns", Data: []byte(strings.Replace(yamlService("dns", "  type: NodePort\n"), "  - port: 80\n", "  - {name: u, port: 53, protocol: UDP}\n  - {name: t, port: 53, nodePort: 30053}\n", 1))})
	snap, _ := mustUpdate(t, s, files...)
	for _, tt := range tests {
		if got := show(snap.Services.Get(name(tt.name))); got != tt.want {
			t.Errorf("%s:\ngot  %s\nwant %s", tt.name, got, tt.want)
		}
	}
	if got := show(snap.Services.Get(name("dns"))); !strings.HasSuffix(got, " 53/UDP>53:30053 53/TCP>53:30053") {
		t.Errorf("one port of two protocols: %s", got)
	}
}

// TestNobodyMoves adds and removes a thousand Services around one.
func TestNobodyMoves(t *testing.T) {
	s := NewSet(Options{})
	snap, _ := mustUpdate(t, s, File{Path: "one", Data: []byte(yamlService("one", "  type: NodePort\n"))})
	want := show(snap.Services.Get(name("one")))
	var others []File
	for i := range 1000 {
		others = append(others, File{Path: fmt.Sprint(i), Data: []byte(yamlService(fmt.Sprintf("other-%d", i), ""))})
	}
	snap, delta := mustUpdate(t, s, others...)
	if got := show(snap.Services.Get(name("one"))); got != want || len(delta.Services) != 1000 {
		t.Errorf("moved from %s to %s; %d changed", want, got, len(delta.Services))
	}
	taken := map[string]dataplane.ServiceName{}
	for svc := range snap.Services.All() {
		ip := svc.Object.Spec.ClusterIP
		if other, ok := taken[ip]; ok {
			t.Errorf("%s and %s both have %s", svc.Name, other, ip)
		}
		taken[ip] = svc.Name
		if a := netip.MustParseAddr(ip); !netip.MustParsePrefix("10.96.0.0/12").Contains(a) || a.Less(netip.MustParseAddr("10.96.1.0")) {
			t.Errorf("%s has %s", svc.Name, ip)
		}
	}
	for i := range others {
		others[i].Data = nil
	}
	if _, delta = mustUpdate(t, s, others...); len(delta.Services) != 1000 {
		t.Errorf("removing 1000 changed %d", len(delta.Services))
	}
}

// TestSetValueWins sets by hand the address that another Service was allocated.
func TestSetValueWins(t *testing.T) {
	s := NewSet(Options{})
	snap, _ := mustUpdate(t, s, File{Path: "a", Data: []byte(yamlService("a", ""))})
	first := snap.Services.Get(name("a")).Object.Spec.ClusterIP
	snap, delta := mustUpdate(t, s, File{Path: "b", Data: []byte(yamlService("b", "  clusterIP: "+first+"\n"))})
	if moved := snap.Services.Get(name("a")).Object.Spec.ClusterIP; moved == first || len(delta.Services) != 2 {
		t.Errorf("a has %s, as it was set for b; changed %v", moved, delta.Services)
	}
	snap, _ = mustUpdate(t, s, File{Path: "b"})
	if back := snap.Services.Get(name("a")).Object.Spec.ClusterIP; back != first {
		t.Errorf("a has %s after b is gone, had %s", back, first)
	}
}

func TestServiceCIDRChanges(t *testing.T) {
	s := NewSet(Options{})
	mustUpdate(t, s, File{Path: "a", Data: []byte(yamlService("a", ""))})
	snap, delta := mustUpdate(t, s, File{Path: "w", Data: []byte("apiVersion: weir/v1alpha1\nkind: WeirConfiguration\nserviceCIDRs: [fd00:1::/108, 172.20.0.0/16]\n")})
	if got := snap.Services.Get(name("a")).Object.Spec.ClusterIP; !strings.HasPrefix(got, "fd00:1::") || !delta.Config || len(delta.Services) != 1 {
		t.Errorf("%s, delta %v", got, delta)
	}
}

const endpointsYAML = `apiVersion: v1
kind: Endpoints
metadata: {name: a}
subsets:
- addresses: [{ip: 10.1.0.1, nodeName: n1}, {ip: "fd00::1"}]
  notReadyAddresses: [{ip: 10.1.0.2}]
  ports: [{port: 8080}]
`

const sliceYAML = `apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: a-1
  labels: {kubernetes.io/service-name: a}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.2.0.1]}]
`

// TestManyEndpointsForNames has headless Services with as many endpoints as an answer for their name has room for, and with more.
func TestManyEndpointsForNames(t *testing.T) {
	for name, tc := range map[string]struct {
		family, address string
		most            int
	}{"IPv4": {"IPv4", "10.0.%d.%d", 4092}, "IPv6": {"IPv6", `"fd00::%d:%d"`, 2338}} {
		for _, n := range []int{tc.most, tc.most + 1} {
			text := yamlService("a", "  clusterIP: None\n  ipFamilies: ["+tc.family+"]\n")
			for i := range n {
				if i%1000 == 0 {
					text += fmt.Sprintf("---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a-%d, labels: {kubernetes.io/service-name: a}}\naddressType: %s\nports: [{port: 80}]\nendpoints:\n", i, tc.family)
				}
				text += fmt.Sprintf("- {addresses: ["+tc.address+"]}\n", i/250, i%250+1)
			}
			snap, _ := mustUpdate(t, NewSet(Options{}), File{Path: "a.yaml", Data: []byte(text)})
			notices := snap.NoticesOf(dataplane.ServiceName{Namespace: "default", Name: "a"})
			if told := len(notices) == 1 && notices[0].ID() == spec.EndpointsSkipped && strings.Contains(notices[0].Detail, fmt.Sprint("room for about ", tc.most)); told != (n > tc.most) || len(notices) > 1 {
				t.Errorf("%s, %d endpoints: %v", name, n, notices)
			}
		}
	}
}

// TestWhoMadeEndpoints has slices and Endpoints of a control plane and of others. The former are known as such, and addresses keep
// their host names.
func TestWhoMadeEndpoints(t *testing.T) {
	slice := func(labels string) string {
		return "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a, labels: {kubernetes.io/service-name: a" + labels + "}}\naddressType: IPv4\nports: [{port: 80}]\nendpoints: [{addresses: [10.0.0.1], hostname: h}]\n"
	}
	endpoints := func(meta string) string {
		return "apiVersion: v1\nkind: Endpoints\nmetadata: {name: a" + meta + "}\nsubsets: [{addresses: [{ip: 10.0.0.1, hostname: h}], ports: [{port: 80}]}]\n"
	}
	for name, tc := range map[string]struct {
		text string
		want bool
	}{
		"slice by hand":                    {slice(""), false},
		"slice of the controller":          {slice(", endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io"), true},
		"slice of the mirror":              {slice(", endpointslice.kubernetes.io/managed-by: endpointslicemirroring-controller.k8s.io"), false},
		"headless slice of the controller": {slice(", service.kubernetes.io/headless: '', endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io"), true},
		"Endpoints by hand":                {endpoints(""), false},
		"Endpoints with a label":           {endpoints(", labels: {app: a}"), false},
		"Endpoints of the controller":      {endpoints(", labels: {endpoints.kubernetes.io/managed-by: endpoint-controller}"), true},
		"Endpoints of an older one":        {endpoints(", annotations: {endpoints.kubernetes.io/last-change-trigger-time: '2026-01-02T03:04:05Z'}"), true},
	} {
		snap, _ := mustUpdate(t, NewSet(Options{}), File{Path: "a.yaml", Data: []byte(yamlService("a", "") + "---\n" + tc.text)})
		s := snap.Services.Get(dataplane.ServiceName{Namespace: "default", Name: "a"}).Slices[0]
		if got := spec.OfControlPlane(s); got != tc.want {
			t.Errorf("%s: of a control plane: %v, want %v", name, got, tc.want)
		}
		if h := s.Endpoints[0].Hostname; h == nil || *h != "h" {
			t.Errorf("%s: the host name is lost", name)
		}
	}
	if len(ofControlPlane) != 1 {
		t.Errorf("shared labels were written to: %v", ofControlPlane)
	}
}

func TestEndpoints(t *testing.T) {
	s := NewSet(Options{})
	a := File{Path: "a", Data: []byte(yamlService("a", ""))}
	snap, _ := mustUpdate(t, s, a, File{Path: "e", Data: []byte(endpointsYAML)})
	var got []string
	for _, sl := range snap.Services.Get(name("a")).Slices {
		for _, e := range sl.Endpoints {
			got = append(got, fmt.Sprintf("%s %v ready=%v port=%d", sl.AddressType, e.Addresses, *e.Conditions.Ready, *sl.Ports[0].Port))
		}
	}
	want := []string{"IPv4 [10.1.0.1] ready=true port=8080", "IPv4 [10.1.0.2] ready=false port=8080", "IPv6 [fd00::1] ready=true port=8080"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %q", got)
	}
	snap, delta := mustUpdate(t, s, File{Path: "s", Data: []byte(sliceYAML)})
	if all := snap.Services.Get(name("a")).Slices; len(all) != 1 || all[0].Name != "a-1" || len(delta.Services) != 1 {
		t.Errorf("slices besides Endpoints: %d, delta %v", len(all), delta)
	}
	snap, _ = mustUpdate(t, s, File{Path: "s"}, File{Path: "e", Data: []byte(strings.Replace(endpointsYAML, "{name: a}", `{name: a, labels: {endpointslice.kubernetes.io/skip-mirror: "true"}}`, 1))})
	if all := snap.Services.Get(name("a")).Slices; len(all) != 0 {
		t.Errorf("Endpoints that are not to be mirrored were: %v", all)
	}
}

func TestNotices(t *testing.T) {
	tests := []struct {
		name string
		docs []string
		want string // the Service's notices and the Snapshot's, "|" between them
	}{
		{"complete", []string{yamlService("a", ""), sliceYAML}, ""},
		{"selector", []string{yamlService("a", "  selector: {app: a}\n")}, "f.yaml:1: Service default/a: spec.selector: selects nothing, since no controller is here to look for pods"},
		{"no selector", []string{yamlService("a", "")}, "f.yaml:1: Service default/a: has no endpoints: add an EndpointSlice"},
		{"headless", []string{yamlService("a", "  clusterIP: None\n  selector: {app: a}\n")}, ""},
		{"port name", []string{strings.Replace(yamlService("a", ""), "- port", "- name: http\n    port", 1), sliceYAML}, `f.yaml:1: Service default/a: spec.ports[0].name: no endpoints have a port with the name "http" and protocol TCP; they have "" (TCP)`},
		{"other target port", []string{strings.Replace(yamlService("a", ""), "- port: 80\n", "- {port: 80, targetPort: 9090}\n", 1), sliceYAML}, "f.yaml:1: Service default/a: spec.ports[0].targetPort: is 9090, and the endpoints have port 8080"},
		{"same target port", []string{strings.Replace(yamlService("a", ""), "- port: 80\n", "- {port: 80, targetPort: 8080}\n", 1), sliceYAML}, ""},
		{"named target port", []string{strings.Replace(yamlService("a", ""), "- port: 80\n", "- {port: 80, targetPort: http}\n", 1), sliceYAML}, ""},
		{"family", []string{yamlService("a", "  ipFamilies: [IPv6]\n"), sliceYAML}, "f.yaml:1: Service default/a: spec.ipFamilies: EndpointSlice a-1 is not used"},
		{"annotation", []string{strings.Replace(yamlService("a", "  clusterIP: None\n"), "  name: a\n", "  name: a\n  annotations:\n    weir/Probes: '{}'\n", 1)}, "f.yaml:6: Service default/a: metadata.annotations[weir/Probes]: is no annotation of weir, and is ignored; did you mean weir/probe?"},
		{"annotation like none", []string{strings.Replace(yamlService("a", "  clusterIP: None\n"), "  name: a\n", "  name: a\n  annotations: {weir/frobnicate: x}\n", 1)}, "f.yaml:5: Service default/a: metadata.annotations[weir/frobnicate]: is no annotation of weir, and is ignored"},
		{"orphan", []string{yamlService("b", "  clusterIP: None\n"), sliceYAML}, "f.yaml:10: EndpointSlice default/a-1: belongs to Service default/a, which is not in the input"},
		{"no label", []string{yamlService("b", "  clusterIP: None\n"), strings.Replace(sliceYAML, "  labels: {kubernetes.io/service-name: a}\n", "", 1)}, "metadata.labels[kubernetes.io/service-name]: is missing"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := NewSet(Options{})
			snap, _ := mustUpdate(t, s, File{Path: "f.yaml", Data: []byte(strings.Join(tt.docs, "---\n"))})
			var all []string
			for svc := range snap.Services.All() {
				for _, n := range svc.AllNotices() {
					all = append(all, n.Error())
				}
			}
			for _, n := range snap.AllNotices() {
				all = append(all, n.Error())
			}
			got := strings.Join(all, "|")
			if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
				t.Errorf("got %s", got)
			}
		})
	}
}

func TestNodes(t *testing.T) {
	s := NewSet(Options{})
	node := "apiVersion: v1\nkind: Node\nmetadata:\n  name: n1\n  labels: {topology.kubernetes.io/zone: z1, other: x}\nspec: {podCIDR: 10.244.1.0/24}\nstatus: {addresses: [{type: InternalIP, address: 192.168.0.1}]}\n"
	snap, _ := mustUpdate(t, s, File{Path: "a", Data: []byte(yamlService("a", ""))}, File{Path: "n", Data: []byte(node)})
	n := snap.Nodes["n1"]
	if n == nil || n.Labels[corev1.LabelTopologyZone] != "z1" || len(n.Labels) != 1 || fmt.Sprint(n.Spec.PodCIDRs) != "[10.244.1.0/24]" {
		t.Errorf("%+v", n)
	}
	if _, delta := mustUpdate(t, s, File{Path: "n", Data: []byte(strings.Replace(node, "other: x", "other: z", 1))}); !delta.Empty() {
		t.Errorf("a label that means nothing changed %v", delta)
	}
	if _, delta := mustUpdate(t, s, File{Path: "n"}); !delta.Nodes {
		t.Errorf("removing the Node changed %v", delta)
	}
}
