package main_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"weir/spec/seed"
)

// treeFiles is the number of files of BenchmarkValidateTree, one in a hundred of which is of weir.
const treeFiles = 100_000

// BenchmarkValidateTree validates a tree such as people have in Git, beside a floor: find, and cat of all that it finds.
// A process counts the memory of the one that started it, so that of the floor is not told.
func BenchmarkValidateTree(b *testing.B) {
	dir := b.TempDir()
	bytes := writeTree(b, dir)
	b.Logf("%d files, %d MB", treeFiles, bytes>>20)
	commands := map[string][]string{
		"weir":  {os.Getenv(binaryEnv), "validate", "-f", dir},
		"floor": {"find", dir, "(", "-name", "*.yaml", "-o", "-name", "*.json", ")", "-exec", "cat", "{}", "+"},
	}
	for _, args := range commands { // so that both find the files in memory
		_, _, _ = measured(b, args)
	}
	for _, name := range []string{"weir", "floor"} {
		b.Run(name, func(b *testing.B) {
			var cpu, took time.Duration
			var peak int64
			for b.Loop() {
				c, t, p := measured(b, commands[name])
				cpu, took, peak = cpu+c, took+t, max(peak, p)
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(cpu.Seconds()/float64(b.N), "CPU-s/op")
			b.ReportMetric(took.Seconds()/float64(b.N), "s/op")
			if name == "weir" {
				if b.ReportMetric(float64(peak)/1e6, "peak-MB"); peak > 200e6 {
					b.Errorf("%d MB are more than 200", peak/1e6)
				}
			}
		})
	}
}

// measured runs a command and returns the CPU time and the time that it took, with its children, and the most memory.
func measured(b *testing.B, args []string) (cpu, took time.Duration, peak int64) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout = io.Discard
	var errs strings.Builder
	cmd.Stderr = &errs
	began := time.Now()
	if err := cmd.Run(); err != nil {
		b.Fatalf("%v: %v: %s", args, err, errs.String())
	}
	s := cmd.ProcessState
	return s.UserTime() + s.SystemTime(), time.Since(began), s.SysUsage().(*syscall.Rusage).Maxrss << 10
}

// writeTree writes a tree of treeFiles files, and returns their size.
func writeTree(b *testing.B, dir string) (size int) {
	rnd := seed.Rand(b)
	for i := range treeFiles {
		name, text := fmt.Sprintf("team%02d/app%03d/file%d.yaml", i/5000, i/50%100, i), ""
		switch n := rnd.IntN(10); {
		case i%100 == 0:
			n := i / 100
			text = fmt.Sprintf(webOfMany, n, n/200, n%200+1, n, n, n/200, n%200+1)
		case n < 5:
			text = fmt.Sprintf(foreignDeployment, i, i, strings.Repeat(fmt.Sprintf("        - {name: VARIABLE_%d, value: \"%d\"}\n", i, i), rnd.IntN(30)), i)
		case n < 8:
			text = fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c%d}\ndata:\n%s", i, fmt.Sprintf("  key%d: |\n    some text of a file, line %d\n", i, i)+strings.Repeat("    more of it: [{}] # and so on\n", rnd.IntN(40)))
		case n < 9:
			name = strings.TrimSuffix(name, ".yaml") + ".json"
			text = fmt.Sprintf(`{"title": "dashboard %d", "panels": [%s{}]}`, i, strings.Repeat(`{"type": "graph", "targets": [{"expr": "rate(x[5m])"}]}, `, rnd.IntN(30)))
		default:
			text = fmt.Sprintf("replicas: %d\nimage: {repository: registry.example.com/app%d, tag: v1}\nservice: {type: ClusterIP, port: 80}\n", i%5, i)
		}
		name = filepath.Join(dir, name)
		if i%50 == 0 {
			if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
				b.Fatal(err)
			}
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			b.Fatal(err)
		}
		size += len(text)
	}
	return size
}

const webOfMany = `apiVersion: v1
kind: Service
metadata: {name: web%d}
spec:
  clusterIP: 10.97.%d.%d
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web%d-1, labels: {kubernetes.io/service-name: web%d}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.%d.%d]}]
`

const foreignDeployment = `apiVersion: apps/v1
kind: Deployment
metadata:
  name: app%d
  labels: {app: app%d}
spec:
  replicas: 2
  template:
    spec:
      containers:
      - name: app
        image: registry.example.com/app:v1
        ports: [{containerPort: 8080}]
        env:
%s        - {name: LAST, value: "%d"}
`
