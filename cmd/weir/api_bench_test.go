package main_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"weir/backends/netlab"
)

// BenchmarkAPI measures a node that follows a real API server on the same machine, by mode and by Services, each with five
// endpoints. The metrics:
//
//	start-s        from exec of "weir run" until the kernel holds everything
//	write-ms       the API write alone, which all below include
//	watch-p50-ms   from before the write until a bare watch has it, and its 99th percentile: a floor
//	change-p50-ms  from before the write of one EndpointSlice until the kernel has it, and its 99th percentile
//	change-cpu-ms  CPU time of weir for one change, without that of iptables
//	idle-%         of one core
//	rss-MB         resident afterwards, and peak-MB the most it was
func BenchmarkAPI(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			lab := netlab.New(b, netlab.Topology{Pods: 1})
			api := newAPIBench(b, lab, n)
			for _, m := range modes {
				if m.name != "iptables-nft" && m.name != "nftables" {
					continue // the moment at which the kernel changes cannot be seen
				}
				b.Run(m.name, func(b *testing.B) {
					for b.Loop() {
						api.measure(b, m)
					}
					b.ReportMetric(0, "ns/op") // says nothing here
				})
			}
		})
	}
}

// apiBench is an API server on the node of a lab, with Services.
type apiBench struct {
	*nodeAPI
	n       int
	version int
}

func newAPIBench(b *testing.B, lab *netlab.Lab, n int) *apiBench {
	b.Helper()
	a := &apiBench{nodeAPI: newNodeAPI(b, lab), n: n}
	g, ctx := errgroup.WithContext(b.Context())
	g.SetLimit(16)
	for i := range n {
		g.Go(func() error {
			svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: benchName(i)}, Spec: corev1.ServiceSpec{
				ClusterIP: benchIP(i).String(), Selector: map[string]string{"app": benchName(i)}, Ports: []corev1.ServicePort{{Name: "http", Port: 80}}}}
			_, err := a.Client.CoreV1().Services("default").Create(ctx, svc, metav1.CreateOptions{})
			_, err2 := a.Client.DiscoveryV1().EndpointSlices("default").Create(ctx, a.slice(i), metav1.CreateOptions{})
			return errors.Join(err, err2)
		})
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	return a
}

func benchName(i int) string { return fmt.Sprintf("svc-%05d", i) }

// slice is what the controller of EndpointSlices writes, all of it: what weir has no use for has to be read too.
func (a *apiBench) slice(i int) *discoveryv1.EndpointSlice {
	port, name, yes := int32(80), "http", true
	s := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}}}
	s.Name, s.GenerateName = benchName(i)+"-x", benchName(i)+"-"
	s.Labels = map[string]string{discoveryv1.LabelServiceName: benchName(i), discoveryv1.LabelManagedBy: "endpointslice-controller.k8s.io", "app": benchName(i)}
	s.Annotations = map[string]string{corev1.EndpointsLastChangeTriggerTime: time.Now().UTC().Format(time.RFC3339)}
	for e := range endpointsPerService {
		k := i*endpointsPerService + e
		node := fmt.Sprintf("node-%d", k%50)
		address := fmt.Sprintf("10.160.%d.%d", k>>8, k&255)
		if e == 0 {
			address = fmt.Sprintf("10.%d.%d.%d", 161+a.version>>8, a.version&255, i&255)
		}
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{address}, NodeName: &node,
			Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes},
			TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: fmt.Sprintf("%s-%x", benchName(i), k), UID: "0b0f1e0a-4a6e-4c55-8f0e-2f3b6e1f0c11"},
		})
	}
	return s
}

func (a *apiBench) measure(b *testing.B, m mode) {
	b.Helper()
	d := &daemon{lab: a.lab, mode: m, dir: b.TempDir(), state: b.TempDir()}
	bn := &benchNode{b: b, d: d, n: a.n}
	bn.write("config.yaml", `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clusterCIDR: 10.244.0.0/16
iptables: {minSyncPeriod: 1ms}
nftables: {minSyncPeriod: 1ms}
`)
	start := time.Now()
	pid, _, stop := bn.start("--kubeconfig", a.kubeconfig(a.Address), "--allow-empty")
	defer func() {
		stop()
		if _, err := a.lab.Node().Exec(context.Background(), os.Getenv(binaryEnv), "cleanup"); err != nil {
			b.Error(err)
		}
	}()
	bn.awaitServing()
	b.ReportMetric(time.Since(start).Seconds(), "start-s")
	a.changes(b, pid)
	atRest(b, pid)
}

// changes takes single changes, each of which waits for the one before.
func (a *apiBench) changes(b *testing.B, pid int) {
	b.Helper()
	const changes = 300
	var writes, watched, kernel []time.Duration
	arrived, generation := a.watch(b), generations(b, a.lab)
	before := cpuTime(b, pid)
	for range changes {
		time.Sleep(20 * time.Millisecond)
		a.version++
		slice, unchanged := a.slice(0), generation()
		start := time.Now()
		if _, err := a.Client.DiscoveryV1().EndpointSlices("default").Update(b.Context(), slice, metav1.UpdateOptions{}); err != nil {
			b.Fatal(err)
		}
		writes = append(writes, time.Since(start))
		for generation() == unchanged {
			if time.Since(start) > patience {
				b.Fatalf("a change did not reach the kernel within %v", patience)
			}
			time.Sleep(200 * time.Microsecond)
		}
		kernel = append(kernel, time.Since(start))
		watched = append(watched, (<-arrived).Sub(start))
	}
	b.ReportMetric((cpuTime(b, pid)-before).Seconds()*1e3/changes, "change-cpu-ms")
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }
	b.ReportMetric(ms(median(writes)), "write-ms")
	b.ReportMetric(ms(median(watched)), "watch-p50-ms")
	b.ReportMetric(ms(watched[changes*99/100]), "watch-p99-ms") // median has sorted them
	b.ReportMetric(ms(median(kernel)), "change-p50-ms")
	b.ReportMetric(ms(kernel[changes*99/100]), "change-p99-ms")
}

// watch returns when each change of the first slice arrives at a client that does nothing else.
func (a *apiBench) watch(b *testing.B) <-chan time.Time {
	b.Helper()
	w, err := a.Client.DiscoveryV1().EndpointSlices("default").Watch(b.Context(), metav1.ListOptions{FieldSelector: "metadata.name=" + a.slice(0).Name})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(w.Stop)
	arrived := make(chan time.Time, 1)
	go func() {
		for e := range w.ResultChan() {
			if e.Type == watch.Modified {
				arrived <- time.Now()
			}
		}
	}()
	return arrived
}

// generations opens a socket on the node and returns what asks the kernel for its count of what anybody has committed to
// nf_tables there. To enter the namespace for each question would take milliseconds.
func generations(b *testing.B, lab *netlab.Lab) func() string {
	b.Helper()
	socket := &nl.SocketHandle{}
	err := lab.Node().Do(func() (err error) {
		socket.Socket, err = nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_NETFILTER)
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(socket.Close)
	return func() string {
		req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0)
		req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: socket}
		req.AddRawData([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0})
		messages, err := req.Execute(unix.NETLINK_NETFILTER, 0)
		if err != nil {
			b.Fatal(err)
		}
		return string(messages[0][:12]) // a header, and then the attribute
	}
}
