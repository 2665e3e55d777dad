package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"weir/backends/dataplane"
	"weir/reconcile/tell/names"
	"weir/spec"
)

// podNamespaces are the namespaces of the pods of a Snapshot, by their addresses. It is read when it is first asked for, since
// most never are. It is safe for concurrent use, and a nil one knows no pod.
type podNamespaces struct {
	found []spec.Pods

	once   sync.Once
	byAddr map[netip.Addr]string
}

// of returns the namespace of the pod that has an address, or else of a Service that has it as an endpoint.
func (p *podNamespaces) of(addr netip.Addr, zone *names.Zone) (namespace string, ok bool) {
	if p != nil {
		p.once.Do(p.read)
		if namespace, ok = p.byAddr[addr]; ok {
			return namespace, true
		}
	}
	for _, name := range zone.Pointers(addr) {
		if n := zone.Names(name); n != nil && !slices.Contains(n.ClusterIPs, addr) {
			return name.Namespace, true
		}
	}
	return "", false
}

// runs reports whether a pod that runs has the address.
func (p *podNamespaces) runs(addr netip.Addr) bool {
	if p == nil {
		return false
	}
	p.once.Do(p.read)
	_, ok := p.byAddr[addr]
	return ok
}

func (p *podNamespaces) read() {
	p.byAddr = map[netip.Addr]string{}
	for _, pods := range p.found {
		for pod := range pods.All() {
			if pod.Spec.HostNetwork {
				continue
			}
			for _, ip := range pod.Status.PodIPs {
				if addr, err := netip.ParseAddr(ip.IP); err == nil {
					p.byAddr[addr] = pod.Namespace
				}
			}
		}
	}
}

// has reports whether there is a pod of that name. known is false if there are no pods at all.
func (p *podNamespaces) has(name dataplane.ServiceName) (has, known bool) {
	if p == nil {
		return false, false
	}
	for _, pods := range p.found {
		known = known || pods.Len() > 0
		has = has || pods.Get(name) != nil
	}
	return has, known
}

// namespaceOf returns the namespace of the pod that --from names. If no pods are known, as of files, a name is believed.
func (p *podNamespaces) namespaceOf(from string, zone *names.Zone) (string, error) {
	if addr, err := netip.ParseAddr(from); err == nil {
		namespace, ok := p.of(addr.Unmap(), zone)
		if !ok {
			return "", fmt.Errorf("no pod and no endpoint of a Service has the address %s", from)
		}
		return namespace, nil
	}
	name := dataplane.ServiceName{Namespace: "default", Name: from}
	if namespace, pod, ok := strings.Cut(from, "/"); ok {
		name = dataplane.ServiceName{Namespace: cmp.Or(namespace, "default"), Name: pod}
	}
	if has, known := p.has(name); known && !has {
		return "", fmt.Errorf("there is no pod %s", name)
	}
	return name.Namespace, nil
}

// ndots is the number of dots from which a pod asks for a name as it is first, as the kubelet sets it.
const ndots = 5

// search returns the domains that a pod of a namespace searches.
func search(namespace, domain string) []string {
	return []string{namespace + ".svc." + domain, "svc." + domain, domain}
}

// askedFor returns the full names that a pod asks for, in their order.
func askedFor(name string, search []string) (all []string) {
	full := strings.TrimSuffix(name, ".") + "."
	if strings.HasSuffix(name, ".") {
		return []string{full}
	}
	for _, domain := range search {
		all = append(all, full+domain)
	}
	if strings.Count(name, ".") >= ndots {
		return append([]string{full}, all...)
	}
	return append(all, full)
}
