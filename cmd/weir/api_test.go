package main_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"weir/backends/doctor"
	"weir/backends/netlab"
	"weir/spec/apisource/apitest"
)

// nodeAPI is a real API server that listens on the node of a lab.
type nodeAPI struct {
	*apitest.Server
	t   testing.TB
	lab *netlab.Lab
}

func newNodeAPI(t testing.TB, lab *netlab.Lab, args ...string) *nodeAPI {
	t.Helper()
	node := lab.Node()
	s := apitest.Start(t, apitest.Options{Port: 16443, Dial: node.DialContext, Start: func(c *exec.Cmd) error { return node.Start(c) }, Args: args})
	return &nodeAPI{s, t, lab}
}

// proxy returns a Proxy in front of the server, on the node.
func (s *nodeAPI) proxy() *apitest.Proxy {
	s.t.Helper()
	var ln net.Listener
	err := s.lab.Node().Do(func() (err error) {
		ln, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return apitest.NewProxyOn(s.t, ln, func() (net.Conn, error) { return s.lab.Node().DialContext(context.Background(), "tcp", s.Address) })
}

// kubeconfig writes one for the administrator.
func (s *nodeAPI) kubeconfig(address string) string {
	s.t.Helper()
	return s.Kubeconfig(filepath.Join(s.t.TempDir(), "kubeconfig"), apitest.AdminToken, address)
}

func (s *nodeAPI) createService(svc *corev1.Service) {
	s.t.Helper()
	if _, err := s.Client.CoreV1().Services("default").Create(s.t.Context(), svc, metav1.CreateOptions{}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *nodeAPI) deleteService(name string) {
	s.t.Helper()
	if err := s.Client.CoreV1().Services("default").Delete(s.t.Context(), name, metav1.DeleteOptions{}); err != nil {
		s.t.Fatal(err)
	}
}

// setSlice creates or updates a slice.
func (s *nodeAPI) setSlice(slice *discoveryv1.EndpointSlice) {
	s.t.Helper()
	if err := s.trySetSlice(slice); err != nil {
		s.t.Fatal(err)
	}
}

func (s *nodeAPI) trySetSlice(slice *discoveryv1.EndpointSlice) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	slices := s.Client.DiscoveryV1().EndpointSlices("default")
	_, err := slices.Update(ctx, slice, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		_, err = slices.Create(ctx, slice, metav1.CreateOptions{})
	}
	return err
}

func newService(name, ip string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{ClusterIP: ip, Ports: []corev1.ServicePort{{Port: 80}}}}
}

// webService10 is the Service that daemon.answers asks.
func webService10() *corev1.Service { return newService("web", "10.96.0.10") }

// podSlice returns an IPv4 slice with pods of the lab.
func podSlice(name, service string, pods ...int) *discoveryv1.EndpointSlice {
	port := int32(80)
	s := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: &port}}}
	s.Name, s.Labels = name, map[string]string{discoveryv1.LabelServiceName: service}
	for _, pod := range pods {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{netlab.PodIPv4(pod).String()}})
	}
	return s
}

// answersOn returns an error unless exactly this pod answers at an address.
func (d *daemon) answersOn(addr, pod string) error {
	if r := d.lab.Host(netlab.Client).Probe(netlab.TCP, netip.MustParseAddrPort(addr), time.Second); r.Server != pod {
		return fmt.Errorf("%s: got %v, want %s", addr, r, pod)
	}
	return nil
}

func modeNamed(t *testing.T, name string) mode {
	t.Helper()
	i := slices.IndexFunc(modes, func(m mode) bool { return m.name == name })
	if i < 0 {
		t.Fatalf("there is no mode %q", name)
	}
	return modes[i]
}

// newAPIDaemon prepares a daemon on a node whose API server is there too.
func newAPIDaemon(t *testing.T, m mode, pods int) (*daemon, *nodeAPI) {
	t.Helper()
	lab := netlab.New(t, netlab.Topology{Pods: pods})
	for i := range pods {
		lab.Host(fmt.Sprintf("pod%d", i+1)).Serve(t, netlab.TCP, 80)
	}
	s := newNodeAPI(t, lab)
	d := newDaemon(t, lab, m, "--allow-empty", "--kubeconfig", s.kubeconfig(s.Address))
	d.write(map[string]string{"config.yaml": painConfig})
	return d, s
}

// TestAPI has packets follow what is written to a real API server.
func TestAPI(t *testing.T) {
	t.Parallel()
	d, s := newAPIDaemon(t, iptablesMode("nft"), 3)
	d.start()
	s.createService(webService10())
	s.setSlice(podSlice("web-1", "web", 1))
	d.awaitAnswer("pod1")
	s.setSlice(podSlice("web-1", "web", 2))
	d.awaitAnswer("pod2")
	d.awaitSync() // "weir reconcile --dry-run" reads the API as well

	t.Run("a selectorless Service whose Endpoints are mirrored by hand", func(t *testing.T) {
		s.createService(newService("hand", "10.96.0.20"))
		mirror := podSlice("hand-abc", "hand", 3)
		mirror.Labels[discoveryv1.LabelManagedBy] = "endpointslicemirroring-controller.k8s.io"
		//lint:ignore SA1019 what is deprecated is what people still mirror
		endpoints := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Name: "hand"}, Subsets: []corev1.EndpointSubset{{Addresses: []corev1.EndpointAddress{{IP: netlab.PodIPv4(3).String()}}, Ports: []corev1.EndpointPort{{Port: 80}}}}}
		if _, err := s.Client.CoreV1().Endpoints("default").Create(t.Context(), endpoints, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		s.setSlice(mirror)
		d.await("pod3", func() error { return d.answersOn("10.96.0.20:80", "pod3") })
	})
	t.Run("dual stack", func(t *testing.T) {
		both := newService("both", "10.96.0.30")
		require := corev1.IPFamilyPolicyRequireDualStack
		both.Spec.IPFamilyPolicy, both.Spec.ClusterIPs = &require, []string{"10.96.0.30", "fd00:10:96::30"}
		s.createService(both)
		s.setSlice(podSlice("both-4", "both", 1))
		six := podSlice("both-6", "both")
		six.AddressType, six.Endpoints = discoveryv1.AddressTypeIPv6, []discoveryv1.Endpoint{{Addresses: []string{netlab.PodIPv6(2).String()}}}
		s.setSlice(six)
		d.await("pod1 over IPv4", func() error { return d.answersOn("10.96.0.30:80", "pod1") })
		d.await("pod2 over IPv6", func() error { return d.answersOn("[fd00:10:96::30]:80", "pod2") })
	})
	t.Run("a slice of 1,000 endpoints", func(t *testing.T) {
		// All of the block are addresses of pod1's.
		d.podExec("pod1", "ip", "route", "add", "local", "10.244.64.0/22", "dev", "lo")
		d.nodeExec("ip", "route", "add", "10.244.64.0/22", "via", netlab.PodIPv4(1).String())
		s.createService(newService("large", "10.96.0.40"))
		slice := podSlice("large-1", "large")
		for i := range 1000 {
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.244.%d.%d", 64+i/250, i%250+1)}})
		}
		s.setSlice(slice)
		if doctor.InFirstUserNamespace() {
			for range 5 {
				d.await("pod1", func() error { return d.answersOn("10.96.0.40:80", "pod1") })
			}
		} else { // an ordinary user cannot send that much at once: it is said, and the others are served
			d.awaitLog("default/large.*do not fit into one message")
			s.setSlice(podSlice("web-1", "web", 1))
			d.awaitAnswer("pod1")
			s.setSlice(podSlice("web-1", "web", 2))
			d.awaitAnswer("pod2")
		}
		slice.Endpoints = podSlice("", "", 3).Endpoints
		s.setSlice(slice)
		d.await("pod3", func() error { return d.answersOn("10.96.0.40:80", "pod3") })
		d.awaitSync()
	})
	t.Run("the same Service from files", func(t *testing.T) {
		d.write(map[string]string{"web.yaml": painService, "slice.yaml": painSlice(3)})
		d.awaitLog("Service default/web.*is in the Kubernetes API too, and that one is used")
		if err := d.answers("pod2"); err != nil {
			t.Errorf("the API's is not the one that counts: %v", err)
		}
		s.deleteService("web")
		d.awaitAnswer("pod3")
		s.createService(webService10())
		d.awaitAnswer("pod2")
		d.write(map[string]string{"web.yaml": "", "slice.yaml": ""})
		d.awaitSync()
		if err := d.answers("pod2"); err != nil {
			t.Error(err)
		}
	})
	t.Run("weir reconcile", func(t *testing.T) {
		d.terminate()
		s.setSlice(podSlice("web-1", "web", 1))
		plan, err := d.run("reconcile", "--dry-run")
		if err != nil || !strings.Contains(plan, "default/web") {
			t.Errorf("the plan is %s, %v", plan, err)
		}
		if err := d.answers("pod2"); err != nil {
			t.Errorf("after a dry run: %v", err)
		}
		if _, err := d.run("reconcile"); err != nil {
			t.Error(err)
		}
		if err := d.answers("pod1"); err != nil {
			t.Error(err)
		}
		if _, err := d.run("reconcile", "--master", "https://127.0.0.1:1"); err == nil || !strings.Contains(err.Error(), "does not answer") {
			t.Errorf("without an API: %v", err)
		}
		if err := d.answers("pod1"); err != nil {
			t.Errorf("without an API: %v", err)
		}
		d.start()
	})
	s.deleteService("web")
	d.await("no answer", func() error {
		if d.answers("pod1") == nil {
			return fmt.Errorf("pod1 still answers")
		}
		return nil
	})
}

// podExec runs a program in the namespace of a pod.
func (d *daemon) podExec(pod, name string, args ...string) {
	d.t.Helper()
	if _, err := d.lab.Host(pod).Exec(context.Background(), name, args...); err != nil {
		d.t.Fatal(err)
	}
}

// TestAPINode has /healthz and /livez follow what becomes of the Node.
func TestAPINode(t *testing.T) {
	t.Parallel()
	d, s := newAPIDaemon(t, modeNamed(t, "nftables"), 1)
	d.write(map[string]string{"config.yaml": painConfig + "detectLocalMode: NodeCIDR\n"})
	s.createService(webService10())
	s.setSlice(podSlice("web-1", "web", 1))
	d.start()
	d.awaitLog("detectLocalMode is NodeCIDR, and Node node has no podCIDRs yet")
	if d.answers("pod1") == nil {
		t.Error("Services are programmed before it is known which pods are local")
	}
	nodes := s.Client.CoreV1().Nodes()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node", Finalizers: []string{"example.com/hold"}, Labels: map[string]string{corev1.LabelTopologyZone: "a"}},
		Spec: corev1.NodeSpec{PodCIDR: "10.244.1.0/24", PodCIDRs: []string{"10.244.1.0/24"}}}
	if _, err := nodes.Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	d.awaitAnswer("pod1")
	d.expectHTTP("http://127.0.0.1:10256/healthz", 200, `"nodeEligible":true`)

	gone := func(when string) {
		t.Helper()
		d.expectHTTP("http://127.0.0.1:10256/healthz", 503, `"nodeEligible":false`)
		d.expectHTTP("http://127.0.0.1:10256/livez", 200, "")
		if err := d.answers("pod1"); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	if err := nodes.Delete(t.Context(), "node", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	gone("while the Node is being deleted")
	if _, err := nodes.Patch(t.Context(), "node", types.MergePatchType, []byte(`{"metadata": {"finalizers": null}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	d.await("the Node to be gone", func() error {
		if _, err := nodes.Get(t.Context(), "node", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("it is there: %v", err)
		}
		return nil
	})
	gone("after the Node was deleted")
	node.ResourceVersion, node.Finalizers = "", nil
	if _, err := nodes.Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	d.expectHTTP("http://127.0.0.1:10256/healthz", 200, `"nodeEligible":true`)
}

// TestAPIAway has a node outlive its API server: running, and started anew.
func TestAPIAway(t *testing.T) {
	t.Parallel()
	d, s := newAPIDaemon(t, iptablesMode("nft"), 3)
	d.start()
	s.createService(webService10())
	s.setSlice(podSlice("web-1", "web", 2))
	d.awaitAnswer("pod2")
	d.expectHTTP("http://127.0.0.1:10249/metrics", 200, "weir_api_connected 1\n")

	s.Kill()
	d.awaitLog("the Kubernetes API does not answer")
	d.expectHTTP("http://127.0.0.1:10249/metrics", 200, "weir_api_connected 0\n")
	d.expectHTTP("http://127.0.0.1:10256/healthz", 200, "does not answer")
	d.await("staleness to be counted", func() error {
		_, metrics, err := httpGet(d, "http://127.0.0.1:10249/metrics")
		if err == nil && (!strings.Contains(metrics, "\nweir_api_stale_seconds ") || strings.Contains(metrics, "\nweir_api_stale_seconds 0\n")) {
			err = fmt.Errorf("there is none")
		}
		return err
	})
	if err := d.answers("pod2"); err != nil {
		t.Errorf("without the API: %v", err)
	}
	d.terminate()
	if _, err := d.cleanup(); err != nil { // as a reboot would
		t.Fatal(err)
	}
	d.start()
	d.awaitAnswer("pod2") // by what was kept
	d.await("a status that says so", func() error {
		out, err := d.lab.Node().Exec(t.Context(), d.cmd.Path, "status", "--state-dir", d.state)
		if err == nil && !strings.Contains(out, "-stale") {
			err = fmt.Errorf("it says:\n%s", out)
		}
		return err
	})
	s.Run()
	s.setSlice(podSlice("web-1", "web", 1))
	d.awaitAnswer("pod1") // by the API
	d.expectHTTP("http://127.0.0.1:10249/metrics", 200, "weir_api_stale_seconds 0\n")
	d.awaitSync()
}

// TestAPICredentials has the client certificate of a running weir expire, and come back: no restart, and nobody notices.
func TestAPICredentials(t *testing.T) {
	t.Parallel()
	d, s := newAPIDaemon(t, modeNamed(t, "nftables"), 2)
	s.Create("../../examples/daemonset/rbac.yaml")
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	write := func(validity time.Duration) {
		c, k := s.ClientCertificate(apitest.User, validity)
		apitest.Replace(t, cert, c)
		apitest.Replace(t, key, k)
	}
	write(time.Hour)
	user := fmt.Sprintf("{client-certificate: %q, client-key: %q}", cert, key)
	d.flags = []string{"--allow-empty", "--kubeconfig", s.KubeconfigFor(filepath.Join(dir, "kubeconfig"), user, s.Address)}
	d.start()
	s.createService(webService10())
	s.setSlice(podSlice("web-1", "web", 1))
	d.awaitAnswer("pod1")
	write(-time.Minute)
	d.awaitLog("the Kubernetes API refuses [a-z]+: Unauthorized")
	if err := d.answers("pod1"); err != nil {
		t.Errorf("with a certificate that has expired: %v", err)
	}
	s.setSlice(podSlice("web-1", "web", 2))
	write(time.Hour)
	d.awaitAnswer("pod2")
	d.expectHTTP("http://127.0.0.1:10249/metrics", 200, "weir_api_connected 1\n")
}

// TestAPIStalls leaves it to the program and its defaults to notice that the network has gone silent.
func TestAPIStalls(t *testing.T) {
	t.Parallel()
	d, s := newAPIDaemon(t, modeNamed(t, "nftables"), 2)
	proxy := s.proxy()
	d.flags = []string{"--allow-empty", "--kubeconfig", s.kubeconfig(proxy.Address())}
	d.start()
	s.createService(webService10())
	s.setSlice(podSlice("web-1", "web", 1))
	d.awaitAnswer("pod1")
	proxy.Stall(true)
	s.setSlice(podSlice("web-1", "web", 2))
	d.expectHTTPSoon("http://127.0.0.1:10249/metrics", "weir_api_connected 0\n", 2*patience)
	if err := d.answers("pod1"); err != nil {
		t.Errorf("while it stalls: %v", err)
	}
	proxy.Stall(false)
	d.expectHTTPSoon("http://127.0.0.1:10249/metrics", "weir_api_connected 1\n", 2*patience)
	d.awaitAnswer("pod2")
}

// expectHTTPSoon is expectHTTP with another limit.
func (d *daemon) expectHTTPSoon(url, part string, limit time.Duration) {
	d.t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		_, body, err := httpGet(d, url)
		switch {
		case err == nil && strings.Contains(body, part):
			return
		case time.Now().After(deadline):
			d.t.Fatalf("%s does not say %q within %v: %v", url, part, limit, err)
		}
	}
}

// TestAPIChurn kills the API server and its etcd while Services come and go, over a slow network. A Service that is not
// touched never misses a connection, and in the end the node holds what the API does.
func TestAPIChurn(t *testing.T) {
	t.Parallel()
	d, s := newAPIDaemon(t, iptablesMode("nft"), 3)
	proxy := s.proxy()
	proxy.Slow(20 * time.Millisecond)
	slow := d.flags
	d.flags = []string{"--allow-empty", "--kubeconfig", s.kubeconfig(proxy.Address())}
	d.start()
	s.createService(webService10())
	s.setSlice(podSlice("web-1", "web", 1))
	d.awaitAnswer("pod1")

	var wg sync.WaitGroup
	stop := make(chan struct{})
	var asked, missed atomic.Int64
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
			asked.Add(1)
			if err := d.answers("pod1"); err != nil {
				missed.Add(1)
				t.Errorf("a Service that nobody touched: %v", err)
			}
		}
	})
	wg.Go(func() { s.churn(stop) })
	end := sync.OnceFunc(func() {
		close(stop)
		wg.Wait()
	})
	defer end()
	more := func(what string, n int64) {
		d.await(what, func() error {
			if now := asked.Load(); now < n {
				return fmt.Errorf("%d of %d connections were tried", now, n)
			}
			return nil
		})
	}
	for i := range 4 {
		more("churn", asked.Load()+50)
		if i%2 == 0 {
			s.KillAPI()
		} else {
			s.Kill()
		}
		more("connections without the API", asked.Load()+25)
		s.Run()
	}
	s.Compact()
	end()
	if asked.Load() < 100 || missed.Load() > 0 {
		t.Errorf("%d of %d connections were missed", missed.Load(), asked.Load())
	}
	s.createService(newService("last", "10.96.0.99"))
	s.setSlice(podSlice("last-1", "last", 3))
	d.await("the last Service", func() error { return d.answersOn("10.96.0.99:80", "pod3") })
	d.flags = slow // the dry run asks the server itself
	d.awaitSync()
}

// churn writes for as long as it may; what the server does not take does not matter.
func (s *nodeAPI) churn(stop <-chan struct{}) {
	ctx := context.Background()
	pace := time.NewTicker(10 * time.Millisecond)
	defer pace.Stop()
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		case <-pace.C:
		}
		k := i % 20
		name := fmt.Sprintf("churn-%d", k)
		services := s.Client.CoreV1().Services("default")
		short, cancel := context.WithTimeout(ctx, 2*time.Second)
		if i%3 == 2 {
			_ = services.Delete(short, name, metav1.DeleteOptions{})
		} else {
			_, _ = services.Create(short, newService(name, fmt.Sprintf("10.96.1.%d", k+1)), metav1.CreateOptions{})
			_ = s.trySetSlice(podSlice(name+"-1", name, 2+i%2))
		}
		cancel()
	}
}

// TestAPINames answers for the names of Services of an API, headless ones too, also while it is away and after a start without it.
func TestAPINames(t *testing.T) {
	t.Parallel()
	d, s := newAPIDaemon(t, modeNamed(t, "nftables"), 2)
	const web, db, first = "web.default.svc.cluster.local.", "db.default.svc.cluster.local.", "db-0.db.default.svc.cluster.local."
	s.createService(newService("web", "10.96.0.80"))
	s.createService(newService("db", corev1.ClusterIPNone))
	slice := podSlice("db-1", "db", 1, 2)
	slice.Labels[corev1.IsHeadlessService] = ""
	slice.Endpoints[0].Hostname = new("db-0")
	s.setSlice(slice)
	both := netlab.PodIPv4(1).String() + " " + netlab.PodIPv4(2).String()
	d.start()
	d.awaitRunning()
	known := func() {
		t.Helper()
		d.awaitName(web, "10.96.0.80")
		d.awaitName(first, netlab.PodIPv4(1).String())
		d.await("the endpoints of "+db, func() error {
			_, addrs, err := d.lookup("udp", db)
			if slices.Sort(addrs); err != nil || strings.Join(addrs, " ") != both {
				return fmt.Errorf("%v %v", addrs, err)
			}
			return nil
		})
	}
	// Names are wanted of a running weir, which has left out the headless Services so far.
	d.write(map[string]string{"weir.yaml": "apiVersion: weir/v1alpha1\nkind: WeirConfiguration\ndns: {upstreams: [\"127.0.0.1:9\"]}\n"})
	wrong := make(chan string, 1)
	d.await("an answer", func() error {
		rcode, addrs, err := d.lookup("udp", first)
		if err == nil && rcode == dnsmessage.RCodeNameError {
			select {
			case wrong <- rcode.String():
			default:
			}
		}
		if len(addrs) == 0 {
			return fmt.Errorf("%v %v", rcode, err)
		}
		return nil
	})
	if len(wrong) > 0 {
		t.Error("the name of a headless Service was denied while it was not known")
	}
	known()
	for args, want := range map[string]string{
		"zone": first + "\t5\tIN\tA\t" + netlab.PodIPv4(1).String(), "lookup web": "10.96.0.80", "lookup db-0.db": netlab.PodIPv4(1).String(),
	} {
		out, err := d.lab.Node().Exec(t.Context(), os.Getenv(binaryEnv), append(append([]string{"dns"}, strings.Fields(args)...), "--kubeconfig", s.kubeconfig(s.Address))...)
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("weir dns %s: %v\n%s", args, err, out)
		}
	}
	s.deleteService("web")
	d.awaitName(web, "RCodeNameError")
	s.createService(newService("web", "10.96.0.80"))
	known()

	s.Kill()
	d.awaitLog("the Kubernetes API does not answer")
	known()
	d.terminate() // keeps what it knows
	d.start()
	known()
}
