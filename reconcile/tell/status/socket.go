package status

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"weir/backends/dataplane"
	"weir/reconcile/tell/changes"
	"weir/spec"
	"weir/spec/liveness"
	"weir/spec/probe"
)

// socketName is the socket in the state directory.
const socketName = "weir.sock"

// maxAnswer limits how much a client reads, in bytes.
const maxAnswer = 1 << 30

// ErrAbsent means that no weir run uses this state directory.
var ErrAbsent = errors.New("no weir run is listening")

// Server shows a Board. Listen may be called again with another directory, from one goroutine.
type Server struct {
	board *Board
	dir   string
	srv   *http.Server
	made  os.FileInfo // of the socket

	// Lookup, if set, answers a question for a name. It is set before Listen.
	Lookup func(NameQuestion) NameAnswer
	// Zone, if set, returns the names that are answered. It is set before Listen.
	Zone func() ZoneAnswer
	// Questions, if set, returns what is asked of the Services that match a name. It is set before Listen.
	Questions func(name string) QuestionAnswer
	// HandOver, if set, has the process replaced. It is set before Listen.
	HandOver func(HandoverRequest) HandoverAnswer
}

// HandoverRequest asks a weir to be replaced by the program that is installed now.
type HandoverRequest struct {
	// Drain is how long the replaced process may keep its connections.
	Drain time.Duration `json:"drain"`
	// Timeout is how long the new process may take to read its input.
	Timeout time.Duration `json:"timeout"`
	// OnlyIfNeeded has a weir refuse that carries no connections and answers for no names, because a restart interrupts neither.
	OnlyIfNeeded bool `json:"onlyIfNeeded,omitempty"`
}

// HandoverAnswer says what became of a handover.
type HandoverAnswer struct {
	// PID is the process that is in charge now.
	PID int `json:"pid,omitempty"`
	// Left is the process that was replaced, with its open connections.
	Left        int `json:"left,omitempty"`
	Connections int `json:"connections,omitempty"`
	// Unable is why this weir cannot be replaced, and Error why it was not. It goes on then.
	Unable string `json:"unable,omitempty"`
	Error  string `json:"error,omitempty"`
}

// QuestionAnswer is what is asked of Services, and which hosts besides endpoints may be connected to for that.
type QuestionAnswer struct {
	Questions []liveness.Question `json:"questions"`
	Hosts     *probe.Policy       `json:"hosts,omitempty"`
}

// ZoneAnswer has the names that a weir answers, each with its Service, without the names of addresses. Names is nil if it answers
// none. InForce are the settings in force, and Given are the same if a flag has it answer, whatever its configuration says.
type ZoneAnswer struct {
	Names   map[string]dataplane.ServiceName `json:"names,omitempty"`
	InForce *spec.DNS                        `json:"inForce,omitempty"`
	Given   *spec.DNS                        `json:"given,omitempty"`
}

// NameQuestion is a question for the records of a name, of each type.
type NameQuestion struct {
	Name  string
	Types []string
	// From is the pod that asks, by namespace and name or by address. Without it, the name is looked for in namespace default.
	From string
}

// NameStep is a full name that a pod asks for, and what becomes of it.
type NameStep struct {
	Name   string `json:"name"`
	Result string `json:"result"`
}

// NameAnswer is the answer to a question for a name.
type NameAnswer struct {
	// Search are the domains that a pod searches, and Steps what it asks for, one after the other.
	Search []string   `json:"search,omitempty"`
	Steps  []NameStep `json:"steps,omitempty"`

	Records []string `json:"records"`
	// Why says what the answer leaves out, and where else to ask.
	Why []string `json:"why,omitempty"`
	// Error says why there is no answer.
	Error string `json:"error,omitempty"`
}

// NewServer returns a Server that listens nowhere yet.
func NewServer(b *Board) *Server { return &Server{board: b} }

// Listen serves at a socket in the state directory, which only this process's user may use. It does nothing if it
// already listens there. It makes a removed socket again.
func (s *Server) Listen(stateDir string) error {
	if s.srv != nil && s.dir == stateDir && s.reachable() {
		return nil
	}
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return err
	}
	// The name appears after the mode is set, and replaces the leftover of a crash.
	path := filepath.Join(stateDir, socketName)
	fresh := filepath.Join(stateDir, fmt.Sprintf(".%s-%d", socketName, os.Getpid()))
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return fmt.Errorf("serve weir status: %w", err)
	}
	ln.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(fresh, 0o600), os.Rename(fresh, path)); err != nil {
		return errors.Join(err, ln.Close(), os.Remove(fresh))
	}
	s.Close()
	s.dir = stateDir
	s.made, _ = os.Lstat(path) // if it is gone again, the next Listen makes it
	s.srv = &http.Server{Handler: s.handler(), ReadHeaderTimeout: 5 * time.Second, WriteTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	go func(srv *http.Server) { _ = srv.Serve(ln) }(s.srv) // ends with Close
	return nil
}

// reachable reports whether clients find this Server's socket, or that of another weir that replaced it.
func (s *Server) reachable() bool {
	path := filepath.Join(s.dir, socketName)
	if fi, err := os.Lstat(path); err == nil && s.made != nil && os.SameFile(fi, s.made) {
		return true
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		status := s.board.Status(r.URL.Query().Get("service"))
		if r.URL.Query().Has("traffic") {
			if err := s.board.Measure(r.Context(), &status); err != nil {
				status.TrafficError = err.Error()
			}
		}
		_ = json.NewEncoder(w).Encode(status) // the client may be gone
	})
	mux.HandleFunc("GET /v1/completions", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(s.board.Complete(r.URL.Query().Get("prefix")))
	})
	mux.HandleFunc("GET /v1/names", func(w http.ResponseWriter, r *http.Request) {
		a := NameAnswer{Error: "this weir answers for no names"}
		if s.Lookup != nil {
			query := r.URL.Query()
			a = s.Lookup(NameQuestion{query.Get("name"), query["type"], query.Get("from")})
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(a)
	})
	mux.HandleFunc("GET /v1/zone", func(w http.ResponseWriter, _ *http.Request) {
		var a ZoneAnswer
		if s.Zone != nil {
			a = s.Zone()
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(a)
	})
	mux.HandleFunc("GET /v1/probes", func(w http.ResponseWriter, r *http.Request) {
		var a QuestionAnswer
		if s.Questions != nil {
			a = s.Questions(r.URL.Query().Get("service"))
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(a)
	})
	mux.HandleFunc("POST /v1/handover", func(w http.ResponseWriter, r *http.Request) {
		var request HandoverRequest
		a := HandoverAnswer{Unable: "this weir cannot be replaced while it runs"}
		if err := json.NewDecoder(io.LimitReader(r.Body, 1<<10)).Decode(&request); err != nil {
			a = HandoverAnswer{Error: "the question cannot be read: " + err.Error()}
		} else if s.HandOver != nil {
			_ = http.NewResponseController(w).SetWriteDeadline(time.Time{}) // it has deadlines of its own
			a = s.HandOver(request)
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(a)
	})
	mux.HandleFunc("GET /v1/snapshot", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = s.board.Record().Write(w)
	})
	return mux
}

// closePatience is how long Close waits for answers that are on their way.
const closePatience = time.Second

// Close stops serving and removes the socket, if it is still the one that was made.
func (s *Server) Close() {
	if s.srv == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closePatience)
	defer cancel()
	_ = s.srv.Shutdown(ctx) // the error is that a client took longer
	_ = s.srv.Close()
	if conn, err := net.Dial("unix", filepath.Join(s.dir, socketName)); err == nil {
		conn.Close() // another process replaced it
	} else if errors.Is(err, syscall.ECONNREFUSED) {
		_ = os.Remove(filepath.Join(s.dir, socketName))
	}
	s.srv = nil
}

// Get asks the weir run with this state directory for its Status, limited to the Services that match name. traffic adds
// their counters.
func Get(ctx context.Context, stateDir, name string, traffic bool) (*Status, error) {
	var s Status
	query := url.Values{"service": {name}}
	if traffic {
		query.Set("traffic", "")
	}
	err := ask(ctx, stateDir, "/v1/status?"+query.Encode(), func(body io.Reader) error {
		return json.NewDecoder(body).Decode(&s)
	})
	return &s, err
}

// Completed asks the weir run with this state directory how a name that has been begun may go on.
func Completed(ctx context.Context, stateDir, prefix string) (c Completions, err error) {
	err = ask(ctx, stateDir, "/v1/completions?"+url.Values{"prefix": {prefix}}.Encode(), func(body io.Reader) error {
		return json.NewDecoder(body).Decode(&c)
	})
	return c, err
}

// Lookup asks the weir run with this state directory for a name.
func Lookup(ctx context.Context, stateDir string, q NameQuestion) (a NameAnswer, err error) {
	err = ask(ctx, stateDir, "/v1/names?"+url.Values{"name": {q.Name}, "type": q.Types, "from": {q.From}}.Encode(), func(body io.Reader) error {
		return json.NewDecoder(body).Decode(&a)
	})
	return a, err
}

// Zone asks the weir run with this state directory for the names that it answers.
func Zone(ctx context.Context, stateDir string) (a ZoneAnswer, err error) {
	err = ask(ctx, stateDir, "/v1/zone", func(body io.Reader) error { return json.NewDecoder(body).Decode(&a) })
	return a, err
}

// Questions asks the weir run with this state directory what it asks of the Services that match name.
func Questions(ctx context.Context, stateDir, name string) (a QuestionAnswer, err error) {
	err = ask(ctx, stateDir, "/v1/probes?"+url.Values{"service": {name}}.Encode(), func(body io.Reader) error {
		return json.NewDecoder(body).Decode(&a)
	})
	return a, err
}

// Snapshot asks the weir run with this state directory for the state in force.
func Snapshot(ctx context.Context, stateDir string) (r *changes.Record, err error) {
	err = ask(ctx, stateDir, "/v1/snapshot", func(body io.Reader) (err error) {
		r, err = changes.ReadRecord(body)
		return err
	})
	return r, err
}

// HandOver asks the weir run with this state directory to be replaced. One of an earlier version cannot.
func HandOver(ctx context.Context, stateDir string, request HandoverRequest) (a HandoverAnswer, err error) {
	body, err := json.Marshal(request)
	if err != nil {
		return a, err
	}
	err = send(ctx, stateDir, http.MethodPost, "/v1/handover", bytes.NewReader(body), func(body io.Reader) error { return json.NewDecoder(body).Decode(&a) })
	switch {
	case errors.Is(err, errNotFound):
		a, err = HandoverAnswer{Unable: "it is of a version that cannot be replaced while it runs"}, nil
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		err = ErrEnded
	}
	return a, err
}

// ErrEnded is returned if the weir that was to be replaced ends meanwhile. Another one may be in charge.
var ErrEnded = errors.New("the running weir ended before it said what came of it; weir status tells what runs now")

// ErrForbidden is returned to another user.
var ErrForbidden = errors.New("may be read by the user that weir runs as only")

// errNotFound is returned if a weir does not know what it is asked.
var errNotFound = errors.New("the running weir does not know the question")

func ask(ctx context.Context, stateDir, path string, read func(io.Reader) error) error {
	return send(ctx, stateDir, http.MethodGet, path, nil, read)
}

func send(ctx context.Context, stateDir, method, path string, content io.Reader, read func(io.Reader) error) error {
	socket := filepath.Join(stateDir, socketName)
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	req, err := http.NewRequestWithContext(ctx, method, "http://weir"+path, content)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w at %s, which does not exist: start it, or name its --state-dir", ErrAbsent, socket)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w at %s any more, since the one that made it has ended: start it, or name its --state-dir", ErrAbsent, socket)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%s %w: run this as that user, or as root", socket, ErrForbidden)
	case err != nil:
		return fmt.Errorf("%s cannot be reached: %w", socket, err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return fmt.Errorf("%s: %w", socket, errNotFound)
	default:
		return fmt.Errorf("%s: %s", socket, resp.Status)
	}
	return read(io.LimitReader(resp.Body, maxAnswer))
}

// String returns "10.96.0.1:80 tcp → 3 endpoints" and the like, for people.
func (p Port) String() string {
	name := p.Protocol
	if p.Name != "" {
		name = p.Name + " " + p.Protocol
	}
	text := name + " " + strings.Join(p.Addresses, ", ")
	if p.Connections != nil {
		text += fmt.Sprintf("; connections: %d", *p.Connections)
	}
	return text
}
