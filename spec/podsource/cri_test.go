package podsource

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/endpoints"
	"weir/spec/seed"
)

const (
	withEvents    = "v2.1.0"
	withoutEvents = "1.6.20~ds1"
)

// reader returns a Reader of the runtime that lists often, so that a test need not wait.
func (f *fakeCRI) reader() *CRI {
	return &CRI{Socket: f.socket, Node: "n", HostAddresses: func() []string { return []string{"192.0.2.1"} }, every: 20 * time.Millisecond, seldom: 50 * time.Millisecond}
}

func (f *fakeCRI) follow(t *testing.T) *seen {
	return follow(t, New(Options{Name: "cri", Reader: f.reader(), Retry: time.Millisecond, settles: 1}))
}

var web = map[string]string{"app": "web"}

func podNamed(namespace, name string) dataplane.ServiceName {
	return dataplane.ServiceName{Namespace: namespace, Name: name}
}

func TestCRI(t *testing.T) {
	for _, version := range []string{withEvents, withoutEvents} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			f := newFakeCRI(t, version)
			f.do("", func() { f.run("a", "shop", "web-0", "10.0.0.1", web) })
			v := f.follow(t)
			v.until(t, "shop/web-0 app=web Running ready addressed")
			pod := v.pods.Get(podNamed("shop", "web-0"))
			if pod.Spec.NodeName != "n" || pod.Status.PodIP != "10.0.0.1" || pod.UID != "u-web-0" {
				t.Errorf("the pod is %+v", pod)
			}

			// A sandbox that waits for its address and for its containers.
			f.do("b", func() { f.run("b", "shop", "web-1", "", web); f.exit("b-c", 0) })
			v.until(t, "shop/web-0 app=web Running ready addressed\nshop/web-1 app=web Succeeded")
			f.do("b-d", func() {
				f.sandboxes["b"].Network = &cri.PodSandboxNetworkStatus{Ip: "10.0.0.2", AdditionalIps: []*cri.PodIP{{Ip: "fd00::2"}, {Ip: "nonsense"}}}
				f.contain("b", "b-d", "main", 0, cri.ContainerState_CONTAINER_CREATED)
				f.ports["b-d"] = `[{"name":"http","containerPort":8080,"protocol":"TCP"},{"name":"Bad Name","containerPort":1},{"containerPort":99999}]`
			})
			v.until(t, "shop/web-0 app=web Running ready addressed\nshop/web-1 app=web Pending addressed")
			f.do("b-d", func() { f.containers["b-d"].State = cri.ContainerState_CONTAINER_RUNNING })
			v.until(t, "shop/web-0 app=web Running ready addressed\nshop/web-1 app=web Running ready addressed")
			pod = v.pods.Get(podNamed("shop", "web-1"))
			if len(pod.Status.PodIPs) != 2 || pod.Status.PodIPs[1].IP != "fd00::2" {
				t.Errorf("the addresses are %v", pod.Status.PodIPs)
			}
			if c := pod.Spec.Containers; len(c) != 1 || len(c[0].Ports) != 1 || c[0].Ports[0].Name != "http" || c[0].Ports[0].ContainerPort != 8080 {
				t.Errorf("the containers are %+v", c)
			}

			// One container of two fails; it is started again, as another one.
			f.do("a-c", func() { f.exit("a-c", 1) })
			v.until(t, "shop/web-0 app=web Failed addressed\nshop/web-1 app=web Running ready addressed")
			f.do("a-d", func() { f.contain("a", "a-d", "server", 1, cri.ContainerState_CONTAINER_RUNNING) })
			v.until(t, "shop/web-0 app=web Running ready addressed\nshop/web-1 app=web Running ready addressed")

			// A pod gets another sandbox. That of the old one stays for a while.
			f.do("a", func() { f.sandboxes["a"].State = cri.PodSandboxState_SANDBOX_NOTREADY; f.exit("a-d", 137) })
			v.until(t, "shop/web-0 app=web Failed addressed\nshop/web-1 app=web Running ready addressed")
			f.do("a2", func() { f.run("a2", "shop", "web-0", "10.0.0.9", web) })
			v.untilPods(t, func(p spec.Pods) bool { return p.Get(podNamed("shop", "web-0")).Status.PodIP == "10.0.0.9" })
			f.do("a", func() { f.remove("a") })

			// One in the node's network.
			f.do("h", func() {
				f.run("h", "", "host", "", nil)
				f.sandboxes["h"].Linux = &cri.LinuxPodSandboxStatus{Namespaces: &cri.Namespace{Options: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE}}}
			})
			v.untilPods(t, func(p spec.Pods) bool {
				host := p.Get(podNamed("default", "host"))
				return host != nil && host.Spec.HostNetwork && host.Status.PodIP == "192.0.2.1"
			})
			for _, id := range []string{"a2", "b", "h"} {
				f.do(id, func() { f.remove(id) })
			}
			v.until(t, "")
			f.mu.Lock()
			defer f.mu.Unlock()
			if events := f.asked["GetContainerEvents"] > 0; events != (version == withEvents) {
				t.Errorf("asked for events: %v", events)
			}
		})
	}
}

// TestCRIRestartLoop has a container that fails again and again. It is not ready each time that it begins.
func TestCRIRestartLoop(t *testing.T) {
	t.Parallel()
	f := newFakeCRI(t, withoutEvents)
	f.do("", func() { f.run("a", "x", "web", "10.0.0.1", web) })
	reader := f.reader()
	v := follow(t, New(Options{Name: "cri", Retry: 10 * time.Millisecond, Reader: reader, settles: time.Minute}))
	const ready, failed, held = "x/web app=web Running ready addressed", "x/web app=web Failed addressed", "x/web app=web Running addressed"
	v.until(t, ready)
	last := "a-c"
	for i, want := range []string{ready, held, held} {
		f.do("", func() { f.exit(last, 1) })
		v.until(t, failed)
		last = fmt.Sprint("a-", i)
		f.do("", func() { f.contain("a", last, "server", uint32(i+1), cri.ContainerState_CONTAINER_RUNNING) })
		v.until(t, want)
	}
	for pod := range v.pods.All() {
		if got := pod.Status.Conditions[0].Reason; got != endpoints.ReasonUnsettled {
			t.Errorf("the reason is %s", got)
		}
	}
}

// TestCRIFaults has a runtime that fails in every way. No pod goes, and all that happened is seen afterwards.
func TestCRIFaults(t *testing.T) {
	unavailable := status.Error(codes.Unavailable, "the runtime starts")
	only := func(method string, err error) func(context.Context, string) error {
		return func(_ context.Context, m string) error {
			if m == method {
				return err
			}
			return nil
		}
	}
	for name, fault := range map[string]func(f *fakeCRI) (mend func()){
		"gone": func(f *fakeCRI) func() { f.stop(); return f.start },
		"restarted": func(f *fakeCRI) func() {
			f.stop()
			f.failing(only("ListPodSandbox", unavailable))
			f.start()
			return func() { f.failing(nil) }
		},
		"half": func(f *fakeCRI) func() {
			f.failing(only("ListContainers", errors.New("\x1b[31mno\n"+strings.Repeat("x", 1<<12))))
			return func() { f.failing(nil) }
		},
		"without the interface": func(f *fakeCRI) func() {
			f.failing(func(context.Context, string) error { return status.Error(codes.Unimplemented, "unknown service") })
			return func() { f.failing(nil) }
		},
		"too much": func(f *fakeCRI) func() {
			f.do("", func() {
				for i := range maxSandboxes {
					f.sandboxes[fmt.Sprint("s", i)] = &cri.PodSandboxStatus{Id: fmt.Sprint("s", i), Metadata: &cri.PodSandboxMetadata{Name: "n", Namespace: "n"}}
				}
			})
			return func() {
				f.do("", func() {
					maps.DeleteFunc(f.sandboxes, func(id string, _ *cri.PodSandboxStatus) bool { return strings.HasPrefix(id, "s") })
				})
			}
		},
		"too large": func(f *fakeCRI) func() {
			f.do("", func() {
				f.sandboxes["s"] = &cri.PodSandboxStatus{Id: "s", Metadata: &cri.PodSandboxMetadata{Name: strings.Repeat("n", maxAnswer), Namespace: "n"}}
			})
			return func() { f.do("", func() { delete(f.sandboxes, "s") }) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFakeCRI(t, withEvents)
			f.do("", func() { f.run("a", "x", "a", "10.0.0.1", web); f.run("b", "x", "b", "10.0.0.2", web) })
			v := f.follow(t)
			v.until(t, "x/a app=web Running ready addressed\nx/b app=web Running ready addressed")
			mend := fault(f)
			v.until(t, "x/a app=web Running ready addressed\nx/b app=web Running ready addressed\nstale")
			if text := v.err.Error(); len(text) > 2*maxText || strings.ContainsAny(text, "\x1b\n") {
				t.Errorf("the error is %q", text)
			}
			f.do("", func() { f.remove("a"); f.run("c", "x", "c", "10.0.0.3", web) })
			mend()
			v.until(t, "x/b app=web Running ready addressed\nx/c app=web Running ready addressed")
		})
	}
}

// TestCRIHangs has a runtime that accepts calls and does not answer.
func TestCRIHangs(t *testing.T) {
	t.Parallel()
	f := newFakeCRI(t, withoutEvents)
	f.do("", func() { f.run("a", "x", "a", "10.0.0.1", web) })
	v := f.follow(t)
	v.until(t, "x/a app=web Running ready addressed")
	f.failing(func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() })
	v.until(t, "x/a app=web Running ready addressed\nstale")
	if !strings.Contains(v.err.Error(), "no answer within") {
		t.Errorf("the error is %v", v.err)
	}
	f.do("", func() { f.remove("a"); f.run("b", "x", "b", "10.0.0.2", web) })
	f.failing(nil)
	v.until(t, "x/b app=web Running ready addressed")
}

// TestCRIOneIsBroken has a sandbox that the runtime cannot describe. The others are seen.
func TestCRIOneIsBroken(t *testing.T) {
	t.Parallel()
	f := newFakeCRI(t, withoutEvents)
	f.do("", func() { f.run("a", "x", "a", "10.0.0.1", web); f.run("b", "x", "b", "10.0.0.2", web) })
	broken := true
	f.failing(func(_ context.Context, method string) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if broken && method == "PodSandboxStatus" && f.asked[method]%2 == 0 {
			return status.Error(codes.Unknown, "no result of CNI")
		}
		return nil
	})
	v := f.follow(t)
	v.until(t, "x/a app=web Running ready addressed\nx/b app=web Running ready addressed")
}

// TestCRIRandom has random things happen, with events that are told, lost and made up. After each few, the pods are those
// of a model.
func TestCRIRandom(t *testing.T) {
	for _, version := range []string{withEvents, withoutEvents} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			r := seed.Rand(t)
			f := newFakeCRI(t, version)
			v := f.follow(t)
			model := map[int]string{} // the state of the pod, by its number
			next := 0
			for range 60 {
				for range 1 + r.IntN(5) {
					event := func(id string) string { // or none, or a wrong one
						switch r.IntN(4) {
						case 0:
							return ""
						case 1:
							return "nobody"
						}
						return id
					}
					i := r.IntN(6)
					s := fmt.Sprintf("s%d-%d", i, next)
					switch next++; {
					case model[i] == "":
						f.do(event(s), func() { f.run(s, "x", fmt.Sprint("p", i), fmt.Sprint("10.0.0.", 1+i), web) })
						model[i] = "Running ready addressed"
					case r.IntN(2) == 0:
						f.do(event(f.of(i)), func() { f.remove(f.of(i)) })
						delete(model, i)
					case model[i] == "Failed addressed":
						f.do(event(s), func() {
							f.contain(f.of(i), s, "server", uint32(next), cri.ContainerState_CONTAINER_RUNNING)
							f.containers[s].CreatedAt = 0
						})
						model[i] = "Running ready addressed"
					default:
						f.do(event(f.of(i)), func() {
							for id, in := range f.inside {
								if in == f.of(i) {
									f.exit(id, 1)
								}
							}
						})
						model[i] = "Failed addressed"
					}
				}
				if r.IntN(10) == 0 {
					f.stop()
					f.start()
				}
				var want []string
				for _, i := range slices.Sorted(maps.Keys(model)) {
					want = append(want, fmt.Sprintf("x/p%d app=web %s", i, model[i]))
				}
				v.until(t, strings.Join(want, "\n"))
			}
		})
	}
}

// of returns the sandbox of a pod of TestCRIRandom.
func (f *fakeCRI) of(pod int) string {
	for id := range f.sandboxes {
		if strings.HasPrefix(id, fmt.Sprintf("s%d-", pod)) {
			return id
		}
	}
	return ""
}

// TestCRIFlood sends events as fast as the socket takes them. What is asked of the runtime stays bounded.
func TestCRIFlood(t *testing.T) {
	t.Parallel()
	f := newFakeCRI(t, withEvents)
	f.do("", func() { f.run("a", "x", "a", "10.0.0.1", web) })
	v := f.follow(t)
	v.until(t, "x/a app=web Running ready addressed")
	begun := time.Now()
	for i := range 50_000 {
		f.do(fmt.Sprint("nobody", i), func() {})
	}
	f.do("", func() { f.run("b", "x", "b", "10.0.0.2", web) })
	v.until(t, "x/a app=web Running ready addressed\nx/b app=web Running ready addressed")
	f.mu.Lock()
	defer f.mu.Unlock()
	if most := 20 + (lookAtAll+1)*int(time.Since(begun)/lookGap); f.asked["ListPodSandbox"] > most {
		t.Errorf("%d lists in %v", f.asked["ListPodSandbox"], time.Since(begun))
	}
}

// TestCRIHostile expects that nothing that the author of a pod writes reaches what Kubernetes forbids.
func TestCRIHostile(t *testing.T) {
	many := map[string]string{"app": "web\nx", "a b": "c", labelNamespace: "../etc", "long": strings.Repeat("x", 64)}
	for i := range 1000 {
		many[fmt.Sprint("l", i)] = "v"
	}
	for _, text := range []string{"", "web\x1b[31m", "../web", strings.Repeat("w", 300), "a\nb", "-", "\xff", "Web"} {
		s := newSandbox(&cri.PodSandbox{Id: "0123456789abcdef" + text, Metadata: &cri.PodSandboxMetadata{Name: text, Namespace: text, Uid: text}, Labels: many})
		if s.pod.Namespace != "default" || s.pod.Name != "pod-0123456789ab" || len(s.labels) > maxLabels || !utf8.ValidString(string(s.uid)) || strings.ContainsAny(string(s.uid), "\x1b\n/") || len(s.uid) > 253 {
			t.Errorf("%q: pod %s, UID %q, %d labels", text, s.pod, s.uid, len(s.labels))
		}
	}
	for _, text := range []string{"", "{}", "[{}]", "null", `[{"containerPort":0}]`, `[{"containerPort":1,"protocol":"X"}]`, "[" + strings.Repeat(`{"containerPort":1},`, 300) + `{"containerPort":1}]`, strings.Repeat("[", 1<<20)} {
		if ports, _ := portsIn(text); len(ports) > 0 {
			t.Errorf("%.40s: ports %v", text, ports)
		}
	}
}

func TestSharesEvents(t *testing.T) {
	for what, want := range map[string]bool{
		"containerd 1.6.20~ds1": false, "containerd v1.7.30": false, "containerd v2.0.0": true, "containerd 2.4.2": true, "containerd ": false,
		"cri-o 1.29.1": false, "cri-o 1.35.0": true, "other 9.0.0": false,
	} {
		name, version, _ := strings.Cut(what, " ")
		if got := sharesEvents(&cri.VersionResponse{RuntimeName: name, RuntimeVersion: version}); got != want {
			t.Errorf("%s: %v", what, got)
		}
	}
}

func TestCRISpeaks(t *testing.T) {
	t.Parallel()
	f := newFakeCRI(t, withEvents)
	if !f.reader().Speaks(t.Context()) {
		t.Error("a runtime with the interface does not speak it")
	}
	f.failing(func(context.Context, string) error { return status.Error(codes.Unimplemented, "unknown service") })
	if f.reader().Speaks(t.Context()) {
		t.Error("a runtime without the interface speaks it")
	}
	f.stop()
	if !f.reader().Speaks(t.Context()) {
		t.Error("one that is away may speak it")
	}
}
