package manifest

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"weir/spec"
)

// serviceYAML is a Service as people write it, with a slice of as many endpoints.
func serviceYAML(i, endpoints int) string {
	var b strings.Builder
	fmt.Fprintf(&b, `apiVersion: v1
kind: Service
metadata:
  name: web-%[1]d
  namespace: shop
  labels: {app: web, team: blue}
  annotations:
    kubectl.kubernetes.io/last-applied-configuration: |
      {"apiVersion":"v1"}
spec:
  selector: {app: web}
  ports:
  - name: http
    port: 80
    targetPort: 8080
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-%[1]d-abc
  namespace: shop
  labels:
    kubernetes.io/service-name: web-%[1]d
addressType: IPv4
ports:
- name: http
  port: 8080
  protocol: TCP
endpoints:
`, i)
	for e := range endpoints {
		n := i*endpoints + e
		fmt.Fprintf(&b, "- addresses: [10.%d.%d.%d]\n  nodeName: node-%d\n  zone: zone-%d\n  conditions: {ready: true, serving: true, terminating: false}\n", n>>16&0x7f, n>>8&0xff, n&0xff, n%10, n%3)
	}
	return b.String()
}

func manyFiles(services int) []File {
	files := make([]File, services)
	for i := range files {
		files[i] = File{Path: fmt.Sprintf("apps/web-%05d.yaml", i), Data: []byte(serviceYAML(i, 5))}
	}
	return files
}

func BenchmarkUpdate(b *testing.B) {
	for _, n := range []int{1000, 10_000} {
		files := manyFiles(n)
		b.Run(fmt.Sprintf("cold/%d", n), func(b *testing.B) {
			before := cpuSeconds(b)
			for b.Loop() {
				mustUpdate(b, NewSet(Options{}), files...)
			}
			b.ReportMetric((cpuSeconds(b)-before)/float64(b.N), "cpu-s/op") // of all cores; unlike the time, it does not depend on what else runs
		})
		b.Run(fmt.Sprintf("one/%d", n), func(b *testing.B) {
			s := NewSet(Options{})
			mustUpdate(b, s, files...)
			other := File{Path: files[7].Path, Data: []byte(strings.Replace(string(files[7].Data), "ready: true", "ready: false", 1))}
			for i := 0; b.Loop(); i++ {
				_, delta := mustUpdate(b, s, []File{other, files[7]}[i%2])
				if len(delta.Services) != 1 {
					b.Fatalf("changed %v", delta.Services)
				}
			}
		})
		b.Run(fmt.Sprintf("memory/%d", n), func(b *testing.B) {
			var before, after runtime.MemStats
			for b.Loop() {
				runtime.GC()
				runtime.ReadMemStats(&before)
				s := NewSet(Options{})
				snap, _ := mustUpdate(b, s, files...)
				runtime.GC()
				runtime.ReadMemStats(&after)
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/1e6, "MB-live")
				runtime.KeepAlive(snap)
				runtime.KeepAlive(s)
			}
		})
	}
}

// cpuSeconds is the time that the process has spent on all cores.
func cpuSeconds(b *testing.B) float64 {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano()).Seconds()
}

func mustUpdate(t testing.TB, s *Set, files ...File) (*spec.Snapshot, spec.Delta) {
	t.Helper()
	snap, delta, err := s.Update(context.Background(), spec.Revision{ID: "test"}, files)
	if err != nil {
		t.Fatal(err)
	}
	return snap, delta
}
