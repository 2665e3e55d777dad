package health

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	kubeproxyconfig "k8s.io/kube-proxy/config/v1alpha1"
)

// bindRetry is the delay before a failed bind is retried; it is kube-proxy's.
const bindRetry = 5 * time.Second

// Config holds the settings of the servers, from the KubeProxyConfiguration.
type Config struct {
	HealthzBindAddress  string // "" means none
	MetricsBindAddress  string // "" means none
	BindAddressHardFail bool
	EnableProfiling     bool
	// Mode is the proxy mode in use, never "".
	Mode string
	// Fallback is why Mode is in use although another one was asked for, or "".
	Fallback string
	// InForce is the configuration that /configz shows.
	InForce *kubeproxyconfig.KubeProxyConfiguration
}

// Server serves the addresses of Config. Configure may be called at any time, from one goroutine.
type Server struct {
	log     hclog.Logger
	cfg     atomic.Pointer[Config]
	healthz binding
	metrics binding
}

// NewServer returns a Server that serves nothing until Configure is called.
func NewServer(p *Proxy, m *Metrics, log hclog.Logger) *Server {
	s, total := &Server{log: log}, newTotalLimit()
	s.cfg.Store(&Config{})
	livez, healthz := p.serveLivez(m.livez), p.serveHealthz(m.healthz)

	mux := http.NewServeMux()
	mux.Handle("/healthz", healthz)
	mux.Handle("/livez", livez)
	s.healthz = binding{name: "healthz", handler: mux, total: total, log: log, listen: net.Listen}

	mux = http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { plain(w, "ok") })
	mux.HandleFunc("/proxyMode", func(w http.ResponseWriter, _ *http.Request) { plain(w, s.cfg.Load().Mode) })
	mux.HandleFunc("/configz", func(w http.ResponseWriter, _ *http.Request) { configz(w, s.cfg.Load().InForce) })
	mux.Handle("/metrics", m.Handler())
	mux.Handle("/debug/pprof/", s.profiling(pprof.Index))
	mux.Handle("/debug/pprof/cmdline", s.profiling(pprof.Cmdline))
	mux.Handle("/debug/pprof/profile", s.profiling(pprof.Profile))
	mux.Handle("/debug/pprof/symbol", s.profiling(pprof.Symbol))
	mux.Handle("/debug/pprof/trace", s.profiling(pprof.Trace))
	s.metrics = binding{name: "metrics", handler: mux, total: total, log: log, listen: net.Listen}
	return s
}

// Configure applies cfg. An unchanged address stays open; a new one is bound before the old one is closed. A bind that
// fails is retried every few seconds. With BindAddressHardFail the error is returned instead, and the former addresses
// stay.
func (s *Server) Configure(cfg Config) error {
	s.cfg.Store(&cfg)
	return errors.Join(
		s.healthz.set(cfg.HealthzBindAddress, cfg.BindAddressHardFail),
		s.metrics.set(cfg.MetricsBindAddress, cfg.BindAddressHardFail),
	)
}

// Close stops serving at once.
func (s *Server) Close() {
	// An empty address binds nothing, so there is no error.
	_ = s.Configure(Config{Mode: s.cfg.Load().Mode})
}

// Leave is Close, but for the clients that have connected: they get their answers. Others find the process that has the same
// sockets.
func (s *Server) Leave() {
	for _, b := range []*binding{&s.healthz, &s.metrics} {
		b.mu.Lock()
		if b.ln != nil {
			b.ln.Close()
		}
		b.mu.Unlock()
	}
	s.healthz.total.awaitNone()
	s.Close()
}

// HealthzAddr and MetricsAddr return where the servers listen; nil if they do not.
func (s *Server) HealthzAddr() net.Addr { return s.healthz.listening() }

// MetricsAddr returns where metrics are served; nil if they are not.
func (s *Server) MetricsAddr() net.Addr { return s.metrics.listening() }

func (s *Server) profiling(h http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.cfg.Load().EnableProfiling {
			http.NotFound(w, r)
			return
		}
		h(w, r)
	})
}

// configz shows the configuration under the name that kube-proxy gives it.
func configz(w http.ResponseWriter, c *kubeproxyconfig.KubeProxyConfiguration) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	// The only error is that the client is gone.
	_ = json.NewEncoder(w).Encode(map[string]any{kubeproxyconfig.GroupName: c})
}

func plain(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	fmt.Fprint(w, text)
}

// binding is one handler at one address that may change.
type binding struct {
	name    string
	handler http.Handler
	total   *connLimit
	log     hclog.Logger
	listen  func(network, address string) (net.Listener, error)

	mu     sync.Mutex
	addr   string // the requested address
	bound  string // the address for which ln was opened
	ln     net.Listener
	srv    *http.Server
	cancel context.CancelFunc // ends the retries; nil if there are none
}

func (b *binding) listening() net.Addr {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ln == nil {
		return nil
	}
	return b.ln.Addr()
}

func (b *binding) set(addr string, hardFail bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if addr == b.addr && b.addr == b.bound {
		return nil
	}
	if b.cancel != nil {
		b.cancel()
		b.cancel = nil
	}
	b.addr = addr
	if addr == "" {
		b.close()
		return nil
	}
	err := b.rebind()
	if err == nil {
		return nil
	}
	err = fmt.Errorf("cannot serve %s on %s: %w", b.name, addr, err)
	if hardFail {
		return err
	}
	b.log.Warn("address cannot be bound; trying again", "server", b.name, "address", addr, "every", bindRetry.String(), "error", err)
	ctx, cancel := context.WithCancel(context.Background())
	b.cancel = cancel
	go b.retry(ctx)
	return nil
}

func (b *binding) retry(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(bindRetry):
		}
		b.mu.Lock()
		done := ctx.Err() != nil || b.rebind() == nil
		b.mu.Unlock()
		if done {
			return
		}
	}
}

// rebind opens b.addr and then closes the former listener. b.mu is held.
func (b *binding) rebind() error {
	ln, err := b.listen("tcp", b.addr)
	if errors.Is(err, syscall.EADDRINUSE) && b.ln != nil && samePort(b.bound, b.addr) {
		// It is our own listener that is in the way: 0.0.0.0:10256 and 127.0.0.1:10256 cannot both be open.
		ln, err = b.swap()
	}
	if err != nil {
		return err
	}
	old := b.srv
	b.serve(ln, b.addr)
	if old != nil {
		old.Close()
	}
	return nil
}

// swap closes the listener before it opens the new one, and opens the old one again if that fails.
func (b *binding) swap() (net.Listener, error) {
	old := b.bound
	b.close()
	ln, err := b.listen("tcp", b.addr)
	if err == nil {
		return ln, nil
	}
	if again, e := b.listen("tcp", old); e == nil {
		b.serve(again, old)
	}
	return nil, err
}

func (b *binding) serve(ln net.Listener, addr string) {
	srv := newHTTPServer(b.handler, b.log)
	b.ln, b.srv, b.bound = ln, srv, addr
	go serve(srv, ln, b.total, b.log)
	b.log.Debug("serving", "server", b.name, "address", ln.Addr().String())
}

func (b *binding) close() {
	if b.srv != nil {
		b.srv.Close()
		b.ln.Close()
	}
	b.ln, b.srv, b.bound = nil, nil, ""
}

// newHTTPServer returns a server that waits for no client for long. Profiles take longer, and extend their own deadline.
func newHTTPServer(h http.Handler, log hclog.Logger) *http.Server {
	return &http.Server{Handler: h, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: log.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Warn})}
}

func serve(srv *http.Server, ln net.Listener, total *connLimit, log hclog.Logger) {
	if err := srv.Serve(limit(ln, total)); err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		log.Error("a server stopped", "address", ln.Addr().String(), "error", err)
	}
}

func samePort(a, b string) bool {
	_, pa, errA := net.SplitHostPort(a)
	_, pb, errB := net.SplitHostPort(b)
	return errA == nil && errB == nil && pa == pb
}
