package main

import (
	"context"
	"errors"

	"github.com/coredns/coredns/plugin/kubernetes"
	"github.com/coredns/coredns/plugin/kubernetes/object"
	corev1 "k8s.io/api/core/v1"
)

// objects stands in for the caches that CoreDNS fills from an API server. It implements the interface of the plugin's
// APIConn.
type objects struct {
	services   []*object.Service
	byName     map[string][]*object.Service
	byIP       map[string][]*object.Service
	endpoints  []*object.Endpoints
	ofService  map[string][]*object.Endpoints
	ofIP       map[string][]*object.Endpoints
	pods       map[string][]*object.Pod
	namespaces map[string]bool
	synced     bool
}

func newObjects(w *World) (*objects, error) {
	o := &objects{
		byName: map[string][]*object.Service{}, byIP: map[string][]*object.Service{},
		ofService: map[string][]*object.Endpoints{}, ofIP: map[string][]*object.Endpoints{},
		pods: map[string][]*object.Pod{}, namespaces: map[string]bool{}, synced: !w.Unsynced,
	}
	for _, svc := range w.Services {
		o.namespaces[svc.Namespace] = true
		converted, err := object.ToService(svc)
		if err != nil {
			return nil, err
		}
		s := converted.(*object.Service)
		o.services = append(o.services, s)
		o.byName[s.Index] = append(o.byName[s.Index], s)
		for _, ip := range s.ClusterIPs {
			o.byIP[ip] = append(o.byIP[ip], s)
		}
	}
	for _, slice := range w.Slices {
		converted, err := object.EndpointSliceToEndpoints(slice)
		if err != nil {
			return nil, err
		}
		e := converted.(*object.Endpoints)
		o.endpoints = append(o.endpoints, e)
		o.ofService[e.Index] = append(o.ofService[e.Index], e)
		seen := map[string]bool{}
		for _, ip := range e.IndexIP {
			if !seen[ip] {
				seen[ip] = true
				o.ofIP[ip] = append(o.ofIP[ip], e)
			}
		}
	}
	for _, pod := range w.Pods {
		converted, err := object.ToPod(pod)
		if err != nil {
			return nil, err
		}
		p := converted.(*object.Pod)
		for _, ip := range p.PodIPs {
			o.pods[ip] = append(o.pods[ip], p)
		}
	}
	return o, nil
}

func (o *objects) ServiceList() []*object.Service                              { return o.services }
func (o *objects) EndpointsList() []*object.Endpoints                          { return o.endpoints }
func (o *objects) ServiceImportList() []*object.ServiceImport                  { return nil }
func (o *objects) SvcIndex(name string) []*object.Service                      { return o.byName[name] }
func (o *objects) SvcIndexReverse(ip string) []*object.Service                 { return o.byIP[ip] }
func (o *objects) SvcExtIndexReverse(string) []*object.Service                 { return nil }
func (o *objects) SvcImportIndex(string) []*object.ServiceImport               { return nil }
func (o *objects) PodIndex(ip string) []*object.Pod                            { return o.pods[ip] }
func (o *objects) EpIndex(name string) []*object.Endpoints                     { return o.ofService[name] }
func (o *objects) EpIndexReverse(ip string) []*object.Endpoints                { return o.ofIP[ip] }
func (o *objects) McEpIndex(string) []*object.MultiClusterEndpoints            { return nil }
func (o *objects) GetNodeByName(context.Context, string) (*corev1.Node, error) { return nil, errAbsent }
func (o *objects) Run()                                                        {}
func (o *objects) HasSynced() bool                                             { return o.synced }
func (o *objects) Stop() error                                                 { return nil }
func (o *objects) Modified(kubernetes.ModifiedMode) int64                      { return 1 }

func (o *objects) GetNamespaceByName(name string) (*object.Namespace, error) {
	if !o.namespaces[name] {
		return nil, errAbsent
	}
	return &object.Namespace{Name: name}, nil
}

var errAbsent = errors.New("not found")
