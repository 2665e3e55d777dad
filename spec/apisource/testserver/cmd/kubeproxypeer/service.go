package main

import (
	"net"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/kubernetes/pkg/proxy"
)

// Service is a Service as an API server has it, and the node that is to serve it.
type Service struct {
	Object *corev1.Service              `json:"object"`
	Slices []*discoveryv1.EndpointSlice `json:"slices"`
	Node   string                       `json:"node"`
	Zone   string                       `json:"zone"`
}

// Port is what kube-proxy knows of one port of a Service in one family.
type Port struct {
	Family              string   `json:"family"`
	Name                string   `json:"name"`
	Protocol            string   `json:"protocol"`
	ClusterIP           string   `json:"clusterIP"`
	Port                int      `json:"port"`
	NodePort            int      `json:"nodePort"`
	ExternalIPs         []string `json:"externalIPs"`
	LoadBalancerIPs     []string `json:"loadBalancerIPs"`
	SourceRanges        []string `json:"sourceRanges"`
	AffinitySeconds     int      `json:"affinitySeconds"`
	HealthCheckNodePort int      `json:"healthCheckNodePort"`
	InternalLocal       bool     `json:"internalLocal"`
	ExternalLocal       bool     `json:"externalLocal"`
	// Cluster and Local are the endpoints that the policies choose, nil for a policy that is not used.
	Cluster      []string `json:"cluster"`
	Local        []string `json:"local"`
	HasEndpoints bool     `json:"hasEndpoints"`
}

func (s *Service) ports() []Port {
	var ports []Port
	for _, family := range []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol} {
		services, endpoints := proxy.ServicePortMap{}, proxy.EndpointsMap{}
		serviceChanges := proxy.NewServiceChangeTracker(family, nil, nil)
		serviceChanges.Update(nil, s.Object)
		services.Update(serviceChanges)
		endpointChanges := proxy.NewEndpointsChangeTracker(family, s.Node, func(e *proxy.BaseEndpointInfo, _ *proxy.ServicePortName) proxy.Endpoint { return e }, nil)
		for _, slice := range s.Slices {
			endpointChanges.EndpointSliceUpdate(slice, false)
		}
		endpoints.Update(endpointChanges)
		for name, port := range services {
			labels := map[string]string{corev1.LabelHostname: s.Node}
			if s.Zone != "" {
				labels[corev1.LabelTopologyZone] = s.Zone
			}
			cluster, local, _, some := proxy.CategorizeEndpoints(endpoints[name], port, s.Node, labels)
			ports = append(ports, Port{
				Family: string(family), Name: name.Port, Protocol: string(name.Protocol),
				ClusterIP: port.ClusterIP().String(), Port: port.Port(), NodePort: port.NodePort(),
				ExternalIPs: texts(port.ExternalIPs()), LoadBalancerIPs: texts(port.LoadBalancerVIPs()), SourceRanges: texts(port.LoadBalancerSourceRanges()),
				AffinitySeconds: port.StickyMaxAgeSeconds(), HealthCheckNodePort: port.HealthCheckNodePort(),
				InternalLocal: port.InternalPolicyLocal(), ExternalLocal: port.ExternalPolicyLocal(),
				Cluster: addresses(cluster), Local: addresses(local), HasEndpoints: some,
			})
		}
	}
	return ports
}

func texts[T interface{ String() string }](values []T) []string {
	var all []string
	for _, v := range values {
		all = append(all, v.String())
	}
	return all
}

func addresses(endpoints []proxy.Endpoint) []string {
	var all []string
	for _, e := range endpoints {
		all = append(all, net.JoinHostPort(e.IP(), strconv.Itoa(e.Port())))
	}
	return all
}
