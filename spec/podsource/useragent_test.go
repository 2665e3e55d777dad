package podsource

import (
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// TestUserAgent has every Reader name itself to its runtime, in every kind of request.
func TestUserAgent(t *testing.T) {
	const agent = "weir/v1 (linux/amd64)"
	listen := func() (net.Listener, string) {
		socket := filepath.Join(t.TempDir(), "s")
		listener, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		return listener, socket
	}
	seen := make(chan string, 100)

	listener, socket := listen()
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen <- r.Method + " " + r.UserAgent()
		w.Header().Set("Libpod-API-Version", "4.3.1")
		http.NotFound(w, r)
	})}
	go func() { _ = web.Serve(listener) }()
	defer web.Close()
	containers := &Containers{Socket: socket, UserAgent: agent}
	if _, err := containers.List(t.Context()); err == nil {
		t.Error("a runtime that has nothing is believed")
	}
	if err := newEngine(socket, agent).post(t.Context(), "/exec", nil, nil); !errors.Is(err, ErrNoContainer) {
		t.Error(err)
	}
	for _, method := range []string{"GET", "POST"} {
		if got := <-seen; got != method+" "+agent {
			t.Errorf("the runtime sees %q", got)
		}
	}

	listener, socket = listen()
	server := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		md, _ := metadata.FromIncomingContext(s.Context())
		seen <- md.Get("user-agent")[0]
		return context.Canceled
	}))
	go func() { _ = server.Serve(listener) }()
	defer server.Stop()
	for _, reader := range []Reader{&CRI{Socket: socket, UserAgent: agent}, &Kubelet{Socket: socket, UserAgent: agent}} {
		if _, err := reader.List(t.Context()); err == nil {
			t.Errorf("%T: a runtime that has nothing is believed", reader)
		}
		if got := <-seen; got != agent+" grpc-go/"+grpc.Version {
			t.Errorf("%T: the runtime sees %q", reader, got)
		}
	}
}
