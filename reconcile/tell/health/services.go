package health

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"weir/backends/dataplane"
	"weir/spec"
)

// ServiceServers answers on the healthCheckNodePort of each Service that has one, so that a load balancer can find the
// nodes with endpoints. Its methods are called from one goroutine at a time.
type ServiceServers struct {
	proxy  *Proxy
	total  *connLimit
	log    hclog.Logger
	listen func(network, address string) (net.Listener, error)

	node    string
	addrs   []netip.Addr // nil for all
	servers map[dataplane.ServiceName]*serviceServer
	wanted  map[dataplane.ServiceName]serviceHealth
}

type serviceHealth struct {
	port  uint16
	local localEndpoints
}

// localEndpoints counts a Service's ready endpoints on the node by family. A load balancer that asks over IPv4 sends IPv4
// traffic, so as in kube-proxy the endpoints of the other family do not count for it.
type localEndpoints struct{ ipv4, ipv6 int64 }

func (n localEndpoints) of(a netip.Addr) int64 {
	if a.Unmap().Is4() {
		return n.ipv4
	}
	return n.ipv6
}

// NewServiceServers returns ServiceServers that listen on nothing yet.
func NewServiceServers(p *Proxy, log hclog.Logger) *ServiceServers {
	return &ServiceServers{proxy: p, total: newTotalLimit(), log: log, listen: net.Listen, servers: map[dataplane.ServiceName]*serviceServer{}, wanted: map[dataplane.ServiceName]serviceHealth{}}
}

// SetNode sets the node's name, and the addresses to listen on: the nodePortAddresses, nil for all. It takes effect
// with the next Sync with Delta.All.
func (s *ServiceServers) SetNode(node string, addrs []netip.Addr) {
	if !slices.Equal(addrs, s.addrs) || (addrs == nil) != (s.addrs == nil) {
		for name, srv := range s.servers {
			srv.close()
			delete(s.servers, name)
		}
	}
	s.node, s.addrs = node, addrs
}

// Sync opens, closes and updates the servers of the Services that the Delta names. A port that cannot be opened is logged
// and tried again at the next Sync.
func (s *ServiceServers) Sync(snap *spec.Snapshot, d spec.Delta) {
	if d.All {
		clear(s.wanted)
		for svc := range snap.Services.All() {
			s.want(svc.Name, svc)
		}
	}
	for _, name := range d.Services {
		s.want(name, snap.Services.Get(name))
	}
	s.reconcile()
}

// Close closes every server.
func (s *ServiceServers) Close() {
	clear(s.wanted)
	s.reconcile()
}

// Leave is Close, but for the clients that have connected, as in Server.
func (s *ServiceServers) Leave() {
	for _, srv := range s.servers {
		srv.mu.Lock()
		for _, ln := range srv.listeners {
			ln.Close()
		}
		srv.mu.Unlock()
	}
	if len(s.servers) > 0 {
		s.total.awaitNone()
	}
	s.Close()
}

func (s *ServiceServers) want(name dataplane.ServiceName, svc *spec.Service) {
	delete(s.wanted, name)
	if svc == nil || svc.Object.Spec.HealthCheckNodePort == 0 ||
		svc.Object.Spec.Type != corev1.ServiceTypeLoadBalancer ||
		svc.Object.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal {
		return
	}
	s.wanted[name] = serviceHealth{uint16(svc.Object.Spec.HealthCheckNodePort), localReadyEndpoints(svc, s.node)}
}

// localReadyEndpoints counts the addresses of ready endpoints on the node. As in kube-proxy, an endpoint that still
// serves while it terminates does not count, because load balancers should stop using it.
func localReadyEndpoints(svc *spec.Service, node string) (n localEndpoints) {
	seen := map[string]struct{}{}
	for _, slice := range svc.Slices {
		if spec.Headless(slice) {
			continue
		}
		for _, ep := range slice.Endpoints {
			ready := ep.Conditions.Ready == nil || *ep.Conditions.Ready || svc.Object.Spec.PublishNotReadyAddresses
			if !ready || ep.NodeName == nil || *ep.NodeName != node {
				continue
			}
			for _, a := range ep.Addresses {
				if _, twice := seen[a]; twice {
					continue
				}
				seen[a] = struct{}{}
				switch slice.AddressType {
				case discoveryv1.AddressTypeIPv4:
					n.ipv4++
				case discoveryv1.AddressTypeIPv6:
					n.ipv6++
				}
			}
		}
	}
	return n
}

// reconcile closes ports first, so that a port can move from one Service to another.
func (s *ServiceServers) reconcile() {
	for name, srv := range s.servers {
		if want, ok := s.wanted[name]; !ok || want.port != srv.port {
			srv.close()
			delete(s.servers, name)
		}
	}
	for name, want := range s.wanted {
		srv := s.servers[name]
		if srv == nil {
			var err error
			if srv, err = s.open(name, want.port); err != nil {
				s.log.Warn("health check node port cannot be served; trying again at the next sync",
					"service", name.String(), "port", want.port, "error", err)
				continue
			}
			s.servers[name] = srv
		}
		srv.local.Store(&want.local)
	}
}

func (s *ServiceServers) open(name dataplane.ServiceName, port uint16) (*serviceServer, error) {
	srv := &serviceServer{name: name, port: port, proxy: s.proxy}
	hosts := []string{""}
	if s.addrs != nil {
		hosts = hosts[:0]
		for _, a := range s.addrs {
			hosts = append(hosts, a.String())
		}
	}
	for _, host := range hosts {
		ln, err := s.listen("tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
		if err != nil {
			srv.close()
			return nil, fmt.Errorf("listen: %w", err)
		}
		h := newHTTPServer(srv, s.log)
		srv.mu.Lock()
		srv.http, srv.listeners = append(srv.http, h), append(srv.listeners, ln)
		srv.mu.Unlock()
		go serve(h, ln, s.total, s.log)
	}
	return srv, nil
}

// serviceServer answers for one Service, on as many addresses as the node serves node ports on.
type serviceServer struct {
	name  dataplane.ServiceName
	port  uint16
	proxy *Proxy
	local atomic.Pointer[localEndpoints] // nil before the first Sync

	mu        sync.Mutex
	http      []*http.Server
	listeners []net.Listener
}

func (s *serviceServer) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, h := range s.http {
		h.Close()
		// The server does not know the listener yet if its goroutine has not run.
		s.listeners[i].Close()
	}
}

type serviceBody struct {
	Service struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	} `json:"service"`
	LocalEndpoints      int64 `json:"localEndpoints"`
	ServiceProxyHealthy bool  `json:"serviceProxyHealthy"`
}

// ServeHTTP answers 200 if the node has endpoints of the Service, of the family it is asked over, and a working data path,
// else 503. A header tells load balancers the weight of the node.
func (s *serviceServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var local int64
	if n := s.local.Load(); n != nil {
		if at, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr); ok {
			local = n.of(at.AddrPort().Addr())
		}
	}
	healthy := s.proxy.State(time.Now()).Healthy
	body := serviceBody{LocalEndpoints: local, ServiceProxyHealthy: healthy}
	body.Service.Namespace, body.Service.Name = s.name.Namespace, s.name.Name
	w.Header().Set("X-Load-Balancing-Endpoint-Weight", strconv.FormatInt(local, 10))
	writeHealth(w, local > 0 && healthy, body, nil)
}
