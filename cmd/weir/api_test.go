package main_test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weir/backends/netlab"
	"weir/spec/apisource/apitest"
)

// TestAPI has packets follow what is written to a real API server, and a node that starts without it serve what it said.
func TestAPI(t *testing.T) {
	lab := netlab.New(t, netlab.Topology{})
	for _, pod := range []string{"pod1", "pod2"} {
		lab.Host(pod).Serve(t, netlab.TCP, 80)
	}
	node := lab.Node()
	s := apitest.Start(t, apitest.Options{Port: 16443, Dial: node.DialContext, Start: func(c *exec.Cmd) error { return node.Start(c) }})
	kubeconfig := s.Kubeconfig(filepath.Join(t.TempDir(), "kubeconfig"), apitest.AdminToken, s.Address)
	d := newDaemon(t, lab, modes[0], "--kubeconfig", kubeconfig, "--allow-empty")
	d.write(map[string]string{"config.yaml": painConfig})
	d.start()

	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.10", Ports: []corev1.ServicePort{{Port: 80}}}}
	if _, err := s.Client.CoreV1().Services("default").Create(t.Context(), svc, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	slice := func(pod int) *discoveryv1.EndpointSlice {
		port := int32(80)
		return &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
			AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: &port}},
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{netlab.PodIPv4(pod).String()}}},
		}
	}
	slices := s.Client.DiscoveryV1().EndpointSlices("default")
	if _, err := slices.Create(t.Context(), slice(1), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	d.await("pod1", func() error { return d.answers("pod1") })
	if _, err := slices.Update(t.Context(), slice(2), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	d.await("pod2", func() error { return d.answers("pod2") })

	s.Kill()
	d.await("the log to say so", func() error {
		if !strings.Contains(d.logs(), "the Kubernetes API does not answer") {
			return fmt.Errorf("it does not")
		}
		return nil
	})
	if err := d.answers("pod2"); err != nil {
		t.Errorf("without the API: %v", err)
	}
	d.terminate()
	if _, err := d.cleanup(); err != nil { // as a reboot would
		t.Fatal(err)
	}
	d.start()
	d.await("pod2, by what was kept", func() error { return d.answers("pod2") })
	s.Run()
	if _, err := slices.Update(t.Context(), slice(1), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	d.await("pod1, by the API", func() error { return d.answers("pod1") })
	if err := s.Client.CoreV1().Services("default").Delete(t.Context(), "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	d.await("no answer", func() error {
		if d.answers("pod1") == nil {
			return fmt.Errorf("pod1 still answers")
		}
		return nil
	})
}
