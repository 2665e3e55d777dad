package manifest

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"weir/spec"
)

// TestFrontendsAreBounded gives one Service addresses, ports and source ranges up to the limits, and beyond.
func TestFrontendsAreBounded(t *testing.T) {
	list := func(n int, format string) string {
		var items []string
		for i := range n {
			items = append(items, fmt.Sprintf(format, i/250, i%250, 1000+i))
		}
		return "[" + strings.Join(items, ", ") + "]"
	}
	const header = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  clusterIP: 10.96.0.1\n"
	ports := func(n int) string { return "  ports: " + list(n, "{name: p%[3]d, port: %[3]d}") + "\n" }
	external := func(n int) string { return "  externalIPs: " + list(n, "198.18.%[1]d.%[2]d") + "\n" }
	balanced := func(n, ranges int) string {
		return "  type: LoadBalancer\n  allocateLoadBalancerNodePorts: false\n  loadBalancerSourceRanges: " + list(ranges, "10.%[1]d.%[2]d.0/24") +
			"\nstatus:\n  loadBalancer:\n    ingress: " + list(n, "{ip: 198.18.%[1]d.%[2]d}") + "\n"
	}
	for _, tc := range []struct{ name, spec, want string }{
		{"as many as there may be", ports(100) + external(99), ""},
		{"external IPs", ports(100) + external(100), "web.yaml:6: Service default/web: spec.ports: 100 ports at 101 addresses are more than 10000 frontends: split the Service"},
		{"a million", ports(1000) + external(1000), "1000 ports at 1001 addresses"},
		{"a load balancer", ports(100) + balanced(100, 0), "100 ports at 101 addresses"},
		{"an address that is asked for", ports(5001) + "  type: LoadBalancer\n  loadBalancerIP: 198.18.0.1\n", "5001 ports at 2 addresses"},
		{"source ranges", ports(10) + balanced(9, 1000), ""},
		{"too many source ranges", ports(10) + balanced(9, 1001), "web.yaml:9: Service default/web: spec.loadBalancerSourceRanges: 1001 ranges for 100 frontends are more than 100000"},
	} {
		_, _, err := NewSet(Options{}).Update(context.Background(), spec.Revision{}, []File{{Path: "web.yaml", Data: []byte(header + tc.spec)}})
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %.500v, want %q", tc.name, err, tc.want)
		}
	}
	svc := &corev1.Service{Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1", Ports: make([]corev1.ServicePort, maxFrontends+1)}}
	if fault := ServiceFault(svc); !strings.Contains(fault, "10001 ports at 1 addresses") {
		t.Errorf("of an API: %q", fault)
	}
}
