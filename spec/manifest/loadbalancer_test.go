package manifest

import (
	"fmt"
	"strings"
	"testing"

	"weir/spec"
)

// TestLoadBalancerAddresses takes the addresses of load balancers from where people write them.
func TestLoadBalancerAddresses(t *testing.T) {
	t.Parallel()
	const ask = "spec.type: is LoadBalancer, and nothing here gives it an address"
	for _, tt := range []struct {
		name, annotations, spec, status, want, notice string
	}{
		{"the field", "", "type: LoadBalancer, loadBalancerIP: 192.0.2.1", "", "192.0.2.1", ""},
		{"MetalLB", "metallb.io/loadBalancerIPs: '192.0.2.2, 192.0.2.1'", "type: LoadBalancer", "", "192.0.2.1 192.0.2.2", ""},
		{"older MetalLB, both families", "metallb.universe.tf/loadBalancerIPs: '2001:db8::1,192.0.2.1'", "type: LoadBalancer", "", "192.0.2.1 2001:db8::1", ""},
		{"Cilium", "lbipam.cilium.io/ips: 192.0.2.1", "type: LoadBalancer", "", "192.0.2.1", ""},
		{"kube-vip", "kube-vip.io/loadbalancerIPs: 192.0.2.1", "type: LoadBalancer", "", "192.0.2.1", ""},
		{"the same twice", "metallb.io/loadBalancerIPs: 192.0.2.1, metallb.universe.tf/loadBalancerIPs: 192.0.2.1", "type: LoadBalancer, loadBalancerIP: 192.0.2.1", "", "192.0.2.1", ""},
		{"they differ", "metallb.io/loadBalancerIPs: 192.0.2.2", "type: LoadBalancer, loadBalancerIP: 192.0.2.1", "", "192.0.2.1", "W021 metadata.annotations[metallb.io/loadBalancerIPs]: is ignored, since spec.loadBalancerIP asks for 192.0.2.1"},
		{"a status", "metallb.io/loadBalancerIPs: 192.0.2.2", "type: LoadBalancer, loadBalancerIP: 192.0.2.3", "192.0.2.1", "192.0.2.1", ""},
		{"a status with a name", "metallb.io/loadBalancerIPs: 192.0.2.2", "type: LoadBalancer", "lb.example.com", "192.0.2.2", ""},
		{"a status with a name, the field", "", "type: LoadBalancer, loadBalancerIP: 192.0.2.3", "lb.example.com", "192.0.2.3", ""},
		{"a status with a name, nothing asked", "", "type: LoadBalancer", "lb.example.com", "", ""},
		{"DHCP", "kube-vip.io/loadbalancerIPs: 0.0.0.0", "type: LoadBalancer", "", "", "W021 metadata.annotations[kube-vip.io/loadbalancerIPs]: is ignored: 0.0.0.0 is the unspecified address; W030 " + ask},
		{"a range", "lbipam.cilium.io/ips: 192.0.2.0/24", "type: LoadBalancer", "", "", `W021 metadata.annotations[lbipam.cilium.io/ips]: is ignored: "192.0.2.0/24" is not an IP address; leave out the prefix length; W030 ` + ask},
		{"a name", "", "type: LoadBalancer, loadBalancerIP: lb.example.com", "", "", `W022 spec.loadBalancerIP: is ignored: "lb.example.com" is not an IP address, such as 10.9.8.7 or 2001:db8::ffff; W030 ` + ask},
		{"nothing", "", "type: LoadBalancer", "", "", "W030 " + ask},
		{"nothing without node ports", "", "type: LoadBalancer, allocateLoadBalancerNodePorts: false", "", "", "W030 " + ask + ", so that it is reached at its ClusterIP only"},
		{"external IPs", "", "type: LoadBalancer, externalIPs: [192.0.2.1]", "", "", "W046 spec.externalIPs: is deprecated"},
		{"no load balancer", "metallb.io/loadBalancerIPs: 192.0.2.2", "type: NodePort, loadBalancerIP: 192.0.2.3", "", "", ""},
		{"a status of no load balancer", "", "type: ClusterIP", "192.0.2.1", "", "W022 status.loadBalancer.ingress: is dropped"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: a, annotations: {%s}}\nspec: {%s, ports: [{port: 80}]}\n", tt.annotations, tt.spec)
			if tt.status != "" {
				field := "ip"
				if strings.Contains(tt.status, "example") {
					field = "hostname"
				}
				text += fmt.Sprintf("status: {loadBalancer: {ingress: [{%s: %s}]}}\n", field, tt.status)
			}
			snap, _ := mustUpdate(t, NewSet(Options{}), File{Path: "a.yaml", Data: []byte(text)})
			var got, notices []string
			for _, in := range snap.Services.Get(name("a")).Object.Status.LoadBalancer.Ingress {
				if in.IP != "" {
					got = append(got, in.IP)
				}
			}
			for _, n := range snap.Notices {
				notices = append(notices, n.ID().Short()+" "+n.Field+": "+n.Detail)
			}
			if strings.Join(got, " ") != tt.want {
				t.Errorf("addresses %v, want %s", got, tt.want)
			}
			if all := strings.Join(notices, "; "); !strings.HasPrefix(all, tt.notice) || tt.notice == "" && all != "" {
				t.Errorf("notices %s\nwant %s", all, tt.notice)
			}
		})
	}
}

// TestServiceSubnet takes the range of ClusterIPs from kubeadm's configuration, and refuses what lies outside of a range
// that is given.
func TestServiceSubnet(t *testing.T) {
	t.Parallel()
	const kubeadm = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nkubernetesVersion: v1.37.0\nnetworking: {serviceSubnet: '172.20.0.0/16'}\n"
	const configMap = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: kubeadm-config, namespace: kube-system}\ndata:\n  ClusterConfiguration: |\n    networking:\n      serviceSubnet: 172.20.0.0/16\n    kind: ClusterConfiguration\n    apiVersion: kubeadm.k8s.io/v1beta3\n"
	const weir = "apiVersion: weir/v1alpha1\nkind: WeirConfiguration\nserviceCIDRs: [172.30.0.0/16]\n"
	for _, tt := range []struct {
		name, service string
		files         []string
		want          string // the beginning of the ClusterIP, or the problem
	}{
		{"the default", "", nil, "10."},
		{"a file of kubeadm", "", []string{kubeadm}, "172.20."},
		{"the ConfigMap of kubeadm", "", []string{configMap}, "172.20."},
		{"both", "", []string{kubeadm, configMap}, "172.20."},
		{"weir's own wins", "", []string{kubeadm, weir}, "172.30."},
		{"two clusters that differ", "", []string{kubeadm, strings.Replace(kubeadm, "172.20", "172.21", 1)}, "10."},
		{"no subnet", "", []string{"apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\n"}, "10."},
		{"an invalid one", "", []string{strings.Replace(kubeadm, "/16", "", 1)}, `f0.yaml:4: ClusterConfiguration: networking.serviceSubnet: "172.20.0.0" is not a CIDR`},
		{"outside of the default", "  clusterIP: 172.20.0.7\n", nil, "172.20.0.7"},
		{"outside of kubeadm's", "  clusterIP: 10.96.0.7\n", []string{kubeadm}, "a.yaml:8: Service default/a: spec.clusterIP: 10.96.0.7 is not in the service CIDR, 172.20.0.0/16"},
		{"inside", "  clusterIP: 172.30.0.7\n", []string{weir}, "172.30.0.7"},
		{"outside of weir's, IPv6", "  clusterIP: fd00::7\n", []string{weir}, "a.yaml:8: Service default/a: spec.clusterIP: fd00::7 is not in the service CIDR, 172.30.0.0/16"},
		{"pinned outside", "", []string{weir, "apiVersion: weir/v1alpha1\nkind: AllocationLock\nservices: [{namespace: default, name: a, clusterIPs: [10.96.0.9]}]\n"}, "f1.yaml:3: lock of Service default/a: 10.96.0.9 is not in the service CIDR, 172.30.0.0/16; remove it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			snap, err := updated(t, tt.service, tt.files)
			got := ""
			if err != nil {
				got = err.Error()
			} else {
				got = snap.Services.Get(name("a")).Object.Spec.ClusterIP
			}
			if !strings.HasPrefix(got, tt.want) {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			if differ := len(tt.files) == 2 && tt.want == "10."; err == nil && differ != strings.Contains(everyNotice(snap), "W022") {
				t.Errorf("notices: %s", everyNotice(snap))
			}
		})
	}
}

// updated makes a Set of a Service default/a, with more fields of its spec, and of further files.
func updated(t *testing.T, service string, more []string) (*spec.Snapshot, error) {
	t.Helper()
	files := []File{{Path: "a.yaml", Data: []byte(yamlService("a", service))}}
	for i, f := range more {
		files = append(files, File{Path: fmt.Sprintf("f%d.yaml", i), Data: []byte(f)})
	}
	snap, _, err := NewSet(Options{}).Update(t.Context(), spec.Revision{}, files)
	return snap, err
}

// TestKubeletConfiguration takes the address of kube-dns and the domain of names from a kubelet's configuration.
func TestKubeletConfiguration(t *testing.T) {
	t.Parallel()
	const kubelet = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nclusterDNS: [10.96.0.53, \"fd00::53\"]\nclusterDomain: Edge.Example.\nstaticPodPath: /etc/kubernetes/manifests\n"
	const weir = "apiVersion: weir/v1alpha1\nkind: WeirConfiguration\ndns: {clusterDomain: corp.example}\n"
	for _, tt := range []struct {
		name  string
		files []string
		want  string // the addresses and the domain, or the problem
	}{
		{"none", nil, "[] cluster.local"},
		{"one", []string{kubelet}, "[10.96.0.53 fd00::53] edge.example"},
		{"the same twice", []string{kubelet, kubelet + "# again\n"}, "[10.96.0.53 fd00::53] edge.example"},
		{"two that differ", []string{kubelet, strings.Replace(kubelet, ".53,", ".54,", 1)}, "[] cluster.local"},
		{"weir's own domain wins", []string{kubelet, weir}, "[10.96.0.53 fd00::53] corp.example"},
		{"without both", []string{"apiVersion: kubelet.config.k8s.io/v1\nkind: KubeletConfiguration\n"}, "[] cluster.local"},
		{"no address", []string{strings.Replace(kubelet, "10.96.0.53", "dns.example", 1)}, `f0.yaml:3: KubeletConfiguration: clusterDNS[0]: "dns.example" is not an IP address`},
		{"no list", []string{strings.Replace(kubelet, `[10.96.0.53, "fd00::53"]`, "10.96.0.53", 1)}, "f0.yaml:3: KubeletConfiguration: clusterDNS: cannot be read"},
		{"no domain", []string{strings.Replace(kubelet, "Edge.Example.", "a..b", 1)}, `f0.yaml:4: KubeletConfiguration: clusterDomain: "a..b" is not a domain`},
		{"a domain too long", []string{strings.Replace(kubelet, "Edge.Example.", strings.Repeat("a23456789.", 10)+"b", 1)}, `f0.yaml:4: KubeletConfiguration: clusterDomain: "a23456789.`},
		{"a domain of addresses", []string{strings.Replace(kubelet, "Edge.Example.", "in-addr.arpa", 1)}, `f0.yaml:4: KubeletConfiguration: clusterDomain: "in-addr.arpa" is of the names of addresses`},
		{"two: nobody's address and one", []string{strings.Replace(kubelet, "10.96.0.53", "0.0.0.0", 1)}, "[fd00::53] edge.example"},
		{"two: an address of many and one", []string{strings.Replace(kubelet, "10.96.0.53", "224.0.0.1", 1)}, "[fd00::53] edge.example"},
		{"two: the pod itself and one", []string{strings.Replace(kubelet, "10.96.0.53", "127.0.0.1", 1)}, "[fd00::53] edge.example"},
		{"two: the cloud's metadata and one", []string{strings.Replace(kubelet, "10.96.0.53", "169.254.169.254", 1)}, "[fd00::53] edge.example"},
		{"a NodeLocal DNSCache", []string{strings.Replace(kubelet, "10.96.0.53", "169.254.20.10", 1)}, "[169.254.20.10 fd00::53] edge.example"},
		{"of another group", []string{strings.Replace(kubelet, "kubelet.config.k8s.io", "example.com", 1)}, "[] cluster.local"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			snap, err := updated(t, "", tt.files)
			got := ""
			if err != nil {
				got = err.Error()
			} else {
				got = fmt.Sprint(snap.Weir.DNS.ClusterIPs, " ", snap.Weir.DNS.ClusterDomain)
			}
			if !strings.HasPrefix(got, tt.want) {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			if differ := strings.HasPrefix(tt.name, "two"); err == nil && differ != strings.Contains(everyNotice(snap), "W022") {
				t.Errorf("notices: %s", everyNotice(snap))
			}
		})
	}
}
