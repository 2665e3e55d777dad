package podsource

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	// callLimit is how long a request may take.
	callLimit = 10 * time.Second
	// maxList, maxInspect and maxEvent bound answers, in bytes: about 20,000 containers, and one.
	maxList, maxInspect, maxEvent = 64 << 20, 4 << 20, 1 << 20
)

// errGone means that the runtime does not have the object any more.
var errGone = errors.New("is gone")

// engine asks podman or docker over its socket. It reads only.
type engine struct {
	http      *http.Client
	userAgent string
	// libpod reports whether the runtime is podman, whose own API knows pods.
	libpod bool
}

func newEngine(socket, userAgent string) *engine {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: callLimit}).DialContext(ctx, "unix", socket)
	}
	return &engine{userAgent: userAgent, http: &http.Client{
		Transport:     &http.Transport{DialContext: dial, MaxIdleConnsPerHost: inspections},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// introduce has a request name the client.
func (e *engine) introduce(req *http.Request) {
	if e.userAgent != "" {
		req.Header.Set("User-Agent", e.userAgent)
	}
}

// open begins a request. The caller closes the body.
func (e *engine) open(ctx context.Context, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://runtime"+path, nil)
	if err != nil {
		return nil, err
	}
	e.introduce(req)
	resp, err := e.http.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) { // without the address, which means nothing
			err = u.Err
		}
		return nil, err
	}
	switch {
	case resp.StatusCode == http.StatusNotFound:
		err = errGone
	case resp.StatusCode != http.StatusOK:
		err = fmt.Errorf("%s: the runtime answers %s", strings.SplitN(path, "?", 2)[0], resp.Status)
	default:
		return resp, nil
	}
	resp.Body.Close()
	return nil, err
}

// get decodes the answer to a request, of at most limit bytes.
func (e *engine) get(ctx context.Context, path string, limit int64, into any) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	resp, err := e.open(ctx, path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	switch {
	case err != nil:
		return err
	case int64(len(body)) > limit:
		return fmt.Errorf("%s: the answer is larger than %d bytes", strings.SplitN(path, "?", 2)[0], limit)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("%s: the answer is not the JSON that was expected", strings.SplitN(path, "?", 2)[0])
	}
	return nil
}

// ping asks whether the runtime is there, and which one it is.
func (e *engine) ping(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, pingLimit)
	defer cancel()
	resp, err := e.open(limited, "/_ping")
	if err != nil && ctx.Err() == nil && limited.Err() != nil {
		err = fmt.Errorf("no answer within %v", pingLimit)
	}
	if err != nil {
		return err
	}
	e.libpod = resp.Header.Get("Libpod-API-Version") != ""
	return resp.Body.Close()
}

// list returns the IDs of all containers, running or not.
func (e *engine) list(ctx context.Context) ([]string, error) {
	path := "/containers/json?all=true"
	if e.libpod { // whose other list has no container that is about to be removed
		path = "/v4.0.0/libpod/containers/json?all=true"
	}
	var all []struct{ ID string }
	if err := e.get(ctx, path, maxList, &all); err != nil {
		return nil, err
	}
	ids := make([]string, len(all))
	for i, c := range all {
		ids[i] = c.ID
	}
	return ids, nil
}

// container is a container as podman and docker describe it, as far as a pod has to do with it.
type container struct {
	ID    string
	Name  string
	Pod   string // the ID of the pod; podman only
	State struct {
		Status   string
		ExitCode int
		// Health is that of docker and of podman, Healthcheck that of earlier podmans. The status is empty without a check.
		Health, Healthcheck *struct{ Status string }
	}
	IsInfra bool
	Config  struct {
		Labels      map[string]string
		Healthcheck *struct{ Interval time.Duration }
	}
	HostConfig      struct{ NetworkMode string }
	NetworkSettings struct {
		Networks map[string]struct{ IPAddress, GlobalIPv6Address string }
	}

	looked    time.Time // when it was asked for
	namespace string    // that of its label, valid or not
}

// checked reports whether the container has a health check that runs.
func (c *container) checked() bool {
	return c.State.Status == "running" && c.Config.Healthcheck != nil
}

// inspect describes a container. The error is errGone if there is none of that ID.
func (e *engine) inspect(ctx context.Context, id string) (*container, error) {
	path := "/containers/" + url.PathEscape(id) + "/json"
	if e.libpod {
		path = "/v4.0.0/libpod" + path
	}
	var c container
	if err := e.get(ctx, path, maxInspect, &c); err != nil {
		return nil, err
	}
	c.bound()
	return &c, nil
}

// maxWord bounds each text that is kept of a container, and maxNetworks how many networks are.
const maxWord, maxNetworks = 256, 32

// bound drops what no pod can have, because everything is kept for as long as the container is there.
func (c *container) bound() {
	c.namespace = short(c.Config.Labels[labelNamespace])
	c.Config.Labels = allowed(c.Config.Labels)
	for _, text := range []*string{&c.Name, &c.Pod, &c.State.Status, &c.HostConfig.NetworkMode} {
		*text = short(*text)
	}
	for _, h := range []*struct{ Status string }{c.State.Health, c.State.Healthcheck} {
		if h != nil {
			h.Status = short(h.Status)
		}
	}
	networks := c.NetworkSettings.Networks
	for i, name := range slices.Sorted(maps.Keys(networks)) {
		if n := networks[name]; i >= maxNetworks || len(name)+len(n.IPAddress)+len(n.GlobalIPv6Address) > maxWord {
			delete(networks, name)
		}
	}
}

// short returns a text of at most maxWord bytes. A longer one is a name of nothing.
func short(text string) string { return strings.Clone(text[:min(maxWord, len(text))]) }

// pod is a pod of podman.
type pod struct {
	ID     string
	Name   string
	Labels map[string]string

	namespace string // that of its label, valid or not
}

func (e *engine) inspectPod(ctx context.Context, id string) (*pod, error) {
	var p pod
	if err := e.get(ctx, "/v4.0.0/libpod/pods/"+url.PathEscape(id)+"/json", maxInspect, &p); err != nil {
		return nil, err
	}
	p.namespace = short(p.Labels[labelNamespace])
	p.Name, p.Labels = short(p.Name), allowed(p.Labels)
	return &p, nil
}

// event is a message about a container, a pod or a network.
type event struct {
	Type, Action string
	Actor        struct {
		ID         string
		Attributes map[string]string
	}
}

// events calls sink for every event from now on, until the connection ends. It calls ready when the runtime has begun to
// send.
func (e *engine) events(ctx context.Context, ready func(), sink func(event)) error {
	resp, err := e.open(ctx, "/events")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	ready()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(make([]byte, 0, 64<<10), maxEvent)
	for lines.Scan() {
		var ev event
		if err := json.Unmarshal(lines.Bytes(), &ev); err != nil {
			return errors.New("/events: the answer is not the JSON that was expected")
		}
		sink(ev)
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return errors.New("the runtime ended its events")
}
