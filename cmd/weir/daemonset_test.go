package main_test

import (
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weir/backends/netlab"
)

// TestDaemonSet runs examples/daemonset as a node of a kubeadm cluster would: the manifests are created on a real API
// server, and what they say is what the container is given: the static program alone in its image, kubeadm's ConfigMap, a
// token of the ServiceAccount, a root that is read-only, and NET_ADMIN.
func TestDaemonSet(t *testing.T) {
	t.Parallel()
	lab := netlab.New(t, netlab.Topology{Pods: 2})
	lab.Host("pod1").Serve(t, netlab.TCP, 80)
	lab.Host("pod2").Serve(t, netlab.TCP, 80)
	s := newNodeAPI(t, lab)
	s.Create("../../examples/daemonset/rbac.yaml")
	s.Create("../../examples/daemonset/daemonset.yaml")
	s.Create("../../examples/daemonset/testdata/kubeadm.yaml")
	s.createService(webService10())
	s.setSlice(podSlice("web-1", "web", 1))

	ds, err := s.Client.AppsV1().DaemonSets("kube-system").Get(t.Context(), "weir", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod := &ds.Spec.Template.Spec
	c := newPod(t, s, pod)
	d := newDaemon(t, lab, modeNamed(t, "nftables"))
	d.startContainer(c)
	d.awaitAnswer("pod1")
	probe := pod.Containers[0].LivenessProbe.HTTPGet
	d.expectHTTP(fmt.Sprintf("http://%s:%s%s", probe.Host, probe.Port.String(), probe.Path), 200, "")
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	if err != nil || !strings.Contains(string(status), "CapEff:\t0000000000001000\n") || !strings.Contains(string(status), "NoNewPrivs:\t1\n") {
		t.Errorf("the container is not confined: %v\n%s", err, status)
	}
	d.terminate()

	// Without a kubeconfig the pod's own credentials are used.
	s.setSlice(podSlice("web-1", "web", 2))
	c.Args = []string{"/weir", "run", "--api", "--hostname-override=node", "--proxy-mode=nftables"}
	c.Env = append(c.Env, "KUBERNETES_SERVICE_HOST=127.0.0.1", "KUBERNETES_SERVICE_PORT=16443")
	d.startContainer(c)
	d.awaitAnswer("pod2")
	d.terminate()
}

// newPod makes what a kubelet would of the pod.
func newPod(t *testing.T, s *nodeAPI, pod *corev1.PodSpec) *container {
	t.Helper()
	spec := &pod.Containers[0]
	c := &container{Root: t.TempDir(), Capabilities: []int{unix.CAP_NET_ADMIN}, Args: []string{"/weir"}}
	static(t, filepath.Join(c.Root, "weir"))
	c.Mounts = []mount{{Source: "/proc", Target: "/proc"}, {Source: "/proc/sys", Target: "/proc/sys", ReadOnly: true}}
	for _, e := range spec.Env {
		if e.ValueFrom == nil || e.ValueFrom.FieldRef == nil || e.ValueFrom.FieldRef.FieldPath != "spec.nodeName" {
			t.Fatalf("env %+v is not known here", e)
		}
		c.Env = append(c.Env, e.Name+"=node")
	}
	for _, a := range spec.Args {
		c.Args = append(c.Args, strings.ReplaceAll(a, "$(NODE_NAME)", "node"))
	}
	for _, m := range spec.VolumeMounts {
		c.Mounts = append(c.Mounts, mount{Source: volume(t, s, pod, m.Name), Target: m.MountPath, ReadOnly: m.ReadOnly})
	}
	ca, err := os.ReadFile(s.CA())
	if err != nil {
		t.Fatal(err)
	}
	secrets := t.TempDir()
	projected(t, secrets, map[string]string{"token": s.ServiceAccountToken("kube-system", pod.ServiceAccountName), "ca.crt": string(ca), "namespace": "kube-system"})
	c.Mounts = append(c.Mounts, mount{Source: secrets, Target: "/var/run/secrets/kubernetes.io/serviceaccount", ReadOnly: true})
	return c
}

func volume(t *testing.T, s *nodeAPI, pod *corev1.PodSpec, name string) string {
	t.Helper()
	dir := t.TempDir()
	for _, v := range pod.Volumes {
		switch {
		case v.Name != name:
		case v.EmptyDir != nil, v.HostPath != nil:
			return dir
		case v.ConfigMap != nil:
			cm, err := s.Client.CoreV1().ConfigMaps("kube-system").Get(t.Context(), v.ConfigMap.Name, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			projected(t, dir, cm.Data)
			return dir
		}
	}
	t.Fatalf("there is no volume %q of a kind that is known here", name)
	return ""
}

// projected lays files out as a kubelet does, behind symlinks that it can swap.
func projected(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	const version = "..2026_01_02_03_04_05.1"
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(filepath.Join(dir, version), 0o755))
	must(os.Symlink(version, filepath.Join(dir, "..data")))
	for name, text := range files {
		must(os.WriteFile(filepath.Join(dir, version, name), []byte(text), 0o644))
		must(os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)))
	}
}

// static builds the program as the Dockerfile does, but for the paths in it.
func static(t *testing.T, file string) {
	t.Helper()
	dockerfile, err := os.ReadFile("../../examples/daemonset/Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	const build = `CGO_ENABLED=0 go build -trimpath -tags ` + buildTags + ` -ldflags "-s -w" -o /weir ./cmd/weir`
	if !strings.Contains(string(dockerfile), "RUN "+build+"\n") {
		t.Fatalf("the Dockerfile builds in another way than %s", build)
	}
	cmd := exec.Command("go", "build", "-tags", buildTags, "-ldflags", "-s -w", "-o", file, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	program, err := elf.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	for _, p := range program.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Fatalf("the program is not static: it has a %v", p.Type)
		}
	}
}
