package podsource

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"weir/backends/dataplane"
)

// Executor is a Reader of a runtime that runs commands in the containers of its pods.
type Executor interface {
	// Exec runs a command in a container of a pod, until ctx is done, and returns its exit code and the beginning of its output.
	// The error is ErrNoContainer if the runtime has no such container that runs.
	Exec(ctx context.Context, pod dataplane.ServiceName, container string, command []string) (exit int, output []byte, err error)
}

// ErrNoContainer means that a runtime has no container of a name that runs.
var ErrNoContainer = errors.New("no such container runs")

var (
	_ Executor = (*Containers)(nil)
	_ Executor = (*CRI)(nil)
)

// maxOutput is how much of a command's output is kept, and maxDiscarded how much more is read before it is given up.
const maxOutput, maxDiscarded = 10 << 10, 1 << 20

// Exec implements Executor. podman names the container of a pod after both; a container outside of a pod is the pod.
func (r *Containers) Exec(ctx context.Context, name dataplane.ServiceName, container string, command []string) (int, []byte, error) {
	e := newEngine(r.Socket, r.UserAgent)
	defer e.http.CloseIdleConnections()
	if err := e.ping(ctx); err != nil {
		return 0, nil, err
	}
	id, err := e.find(ctx, name.Name, container)
	if err != nil {
		return 0, nil, err
	}
	var made struct{ ID string }
	if err := e.post(ctx, "/containers/"+url.PathEscape(id)+"/exec", map[string]any{"AttachStdout": true, "AttachStderr": true, "Cmd": command}, func(body io.Reader) error {
		return json.NewDecoder(io.LimitReader(body, maxEvent)).Decode(&made)
	}); err != nil {
		return 0, nil, err
	}
	var output []byte
	path := "/exec/" + url.PathEscape(made.ID)
	if err := e.post(ctx, path+"/start", map[string]any{"Detach": false, "Tty": false}, func(body io.Reader) (err error) {
		output, err = demultiplex(body)
		return err
	}); err != nil {
		return 0, nil, err
	}
	for { // the output may end a moment before the command
		var state struct {
			Running  bool
			ExitCode int
		}
		if err := e.get(ctx, path+"/json", maxInspect, &state); err != nil {
			return 0, nil, err
		}
		if !state.Running {
			return state.ExitCode, output, nil
		}
		select {
		case <-ctx.Done():
			return 0, nil, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// find returns the ID of a container that runs. The runtime is asked for all only if its name for the container is not the pod's.
func (e *engine) find(ctx context.Context, pod, container string) (string, error) {
	for _, name := range []string{pod + "-" + container, pod} {
		if id, err := e.runs(ctx, name, pod); !errors.Is(err, ErrNoContainer) {
			return id, err
		}
	}
	path := "/containers/json"
	if e.libpod {
		path = "/v4.0.0/libpod" + path
	}
	var all []struct {
		ID    string
		Names []string
	}
	if err := e.get(ctx, path, maxList, &all); err != nil {
		return "", err
	}
	for _, c := range all {
		for _, name := range c.Names {
			if name = strings.TrimPrefix(name, "/"); podName(name) == pod+"-"+container || mayBeNamed(name, c.ID, pod) {
				if id, err := e.runs(ctx, c.ID, pod); !errors.Is(err, ErrNoContainer) {
					return id, err
				}
			}
		}
	}
	return "", ErrNoContainer
}

// runs returns the ID of a container, if it runs and belongs to the pod. The error is ErrNoContainer if not.
func (e *engine) runs(ctx context.Context, name, pod string) (string, error) {
	c, err := e.inspect(ctx, name)
	if errors.Is(err, errGone) || err == nil && (c.State.Status != "running" || c.IsInfra) {
		return "", ErrNoContainer
	}
	if err != nil {
		return "", err
	}
	of, id := strings.TrimPrefix(c.Name, "/"), c.ID
	if c.Pod != "" {
		p, err := e.inspectPod(ctx, c.Pod)
		if err != nil {
			return "", err
		}
		of, id = p.Name, c.Pod
	}
	if !mayBeNamed(of, id, pod) {
		return "", ErrNoContainer
	}
	return c.ID, nil
}

// mayBeNamed reports whether nameOf may return the name for a pod that the runtime knows by another name and an ID.
func mayBeNamed(theirs, id, name string) bool {
	id = id[:min(12, len(id))]
	return name == podName(theirs) || name == podName(theirs)+"-"+id || name == "pod-"+id
}

// post sends a request, and has the answer read.
func (e *engine) post(ctx context.Context, path string, body any, read func(io.Reader) error) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://runtime"+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	e.introduce(req)
	resp, err := e.http.Do(req)
	if err != nil {
		if u := (*url.Error)(nil); errors.As(err, &u) {
			err = u.Err
		}
		return err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK, http.StatusCreated:
		return read(resp.Body)
	case http.StatusNotFound, http.StatusConflict:
		return ErrNoContainer
	}
	return fmt.Errorf("%s: the runtime answers %s", path, resp.Status)
}

// demultiplex returns the beginning of the output in a stream in which each part has a header of eight bytes: which of the two
// outputs it is of, and its length.
func demultiplex(r io.Reader) ([]byte, error) {
	r = io.LimitReader(r, maxOutput+maxDiscarded)
	var output bytes.Buffer
	for {
		var header [8]byte
		if _, err := io.ReadFull(r, header[:]); err == io.EOF {
			return output.Bytes(), nil
		} else if err != nil {
			return nil, err
		}
		length := int64(binary.BigEndian.Uint32(header[4:]))
		kept := min(length, int64(maxOutput-output.Len()))
		if _, err := io.CopyN(&output, r, kept); err != nil {
			return nil, err
		}
		if _, err := io.CopyN(io.Discard, r, length-kept); err != nil {
			return nil, fmt.Errorf("more than %d bytes of output: %w", maxOutput+maxDiscarded, err)
		}
	}
}

// Exec implements Executor.
func (r *CRI) Exec(ctx context.Context, name dataplane.ServiceName, container string, command []string) (int, []byte, error) {
	v, err := r.view()
	if err != nil {
		return 0, nil, err
	}
	defer v.conn.Close()
	id, err := containerOf(ctx, v.runtime, name, container)
	if err != nil {
		return 0, nil, err
	}
	req := &cri.ExecSyncRequest{ContainerId: id, Cmd: command}
	if deadline, ok := ctx.Deadline(); ok { // the runtime ends the command then
		req.Timeout = max(1, int64((time.Until(deadline)+time.Second-1)/time.Second))
	}
	done, err := v.runtime.ExecSync(ctx, req)
	if err != nil {
		return 0, nil, refused("ExecSync", err)
	}
	output := append(done.GetStdout(), done.GetStderr()...)
	return int(done.GetExitCode()), output[:min(len(output), maxOutput)], nil
}

// containerOf returns the ID of a container that runs: by the labels that a kubelet gives it, or else by its pod.
func containerOf(ctx context.Context, runtime cri.RuntimeServiceClient, name dataplane.ServiceName, container string) (string, error) {
	const label = "io.kubernetes."
	running := &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING}
	find := func(filter *cri.ContainerFilter) (string, error) {
		filter.State = running
		found, err := call(ctx, runtime.ListContainers, &cri.ListContainersRequest{Filter: filter})
		if err != nil {
			return "", refused("ListContainers", err)
		}
		for _, c := range found.GetContainers() {
			if c.GetMetadata().GetName() == container {
				return c.GetId(), nil
			}
		}
		return "", ErrNoContainer
	}
	id, err := find(&cri.ContainerFilter{LabelSelector: map[string]string{label + "pod.namespace": name.Namespace, label + "pod.name": name.Name, label + "container.name": container}})
	if !errors.Is(err, ErrNoContainer) {
		return id, err
	}
	ready := &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY}
	pods, err := call(ctx, runtime.ListPodSandbox, &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{State: ready}})
	if err != nil {
		return "", refused("ListPodSandbox", err)
	}
	for _, pod := range pods.GetItems() {
		if m := pod.GetMetadata(); m.GetNamespace() == name.Namespace && m.GetName() == name.Name {
			if id, err := find(&cri.ContainerFilter{PodSandboxId: pod.GetId()}); !errors.Is(err, ErrNoContainer) {
				return id, err
			}
		}
	}
	return "", ErrNoContainer
}
