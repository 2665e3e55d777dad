package main_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/net/ipv4"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weir/spec/apisource/apitest"
)

// BenchmarkNames asks weir, and CoreDNS's kubernetes plugin in a bare server of the library that CoreDNS has, for the addresses
// of 10,000 and 50,000 Services, over UDP, with client and server on the same cores:
//
//	answers/s  answers per second, with at most 256 questions open
//	cpu-µs     CPU time of the server for one answer
//	p99-µs     time from a question to its answer at 2,000 questions per second, one open at a time
//	rss-MB     resident afterwards
func BenchmarkNames(b *testing.B) {
	for _, services := range []int{10000, 50000} {
		world := namesWorld(services)
		input, err := json.Marshal(world)
		if err != nil {
			b.Fatal(err)
		}
		manifests := filepath.Join(b.TempDir(), "all.yaml")
		var all bytes.Buffer
		for _, svc := range world.Services {
			document, err := json.Marshal(svc)
			if err != nil {
				b.Fatal(err)
			}
			fmt.Fprintf(&all, "---\n%s\n", document)
		}
		if err := os.WriteFile(manifests, all.Bytes(), 0o644); err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprint("weir/", services), func(b *testing.B) {
			at := freeUDP(b)
			benchmarkServer(b, services, at, exec.CommandContext(b.Context(), os.Getenv(binaryEnv), "run", "-f", manifests, "--hostname-override", "node",
				"--dns-only", "--dns-listen", at, "--dns-upstream", "127.0.0.1:9", "--state-dir", b.TempDir(), "--lock", filepath.Join(b.TempDir(), "lock")))
		})
		b.Run(fmt.Sprint("coredns/", services), func(b *testing.B) {
			at := freeUDP(b)
			cmd := exec.CommandContext(b.Context(), apitest.Binary(b, "corednspeer"), at)
			cmd.Stdin = strings.NewReader(string(input))
			benchmarkServer(b, services, at, cmd)
		})
	}
}

// namesWorld returns as many Services with a ClusterIP each.
func namesWorld(services int) *peerWorld {
	world := &peerWorld{Zones: []string{"cluster.local."}}
	for i := range services {
		s := &corev1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("svc-%d", i)}}
		s.Spec.ClusterIP = fmt.Sprintf("10.96.%d.%d", 1+i/250, 1+i%250)
		s.Spec.ClusterIPs = []string{s.Spec.ClusterIP}
		s.Spec.Type = corev1.ServiceTypeClusterIP
		s.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}
		world.Services = append(world.Services, s)
	}
	return world
}

// freeUDP returns an address at which nobody listens.
func freeUDP(b *testing.B) string {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	return conn.LocalAddr().String()
}

func benchmarkServer(b *testing.B, services int, at string, cmd *exec.Cmd) {
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	conn, err := net.Dial("udp", at)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	var questions [][]byte
	for i := range services {
		m := dnsmessage.Message{Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(fmt.Sprintf("svc-%d.default.svc.cluster.local.", i)), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
		msg, err := m.Pack()
		if err != nil {
			b.Fatal(err)
		}
		questions = append(questions, msg)
	}
	awaitAnswers(b, conn, questions[0])
	for b.Loop() {
		before, start := serverTime(b, cmd.Process.Pid), time.Now()
		answered := askAll(b, conn.(*net.UDPConn), questions, 3*time.Second)
		took := time.Since(start)
		b.ReportMetric(float64(answered)/took.Seconds(), "answers/s")
		b.ReportMetric(float64((serverTime(b, cmd.Process.Pid)-before).Microseconds())/float64(answered), "cpu-µs")
		b.ReportMetric(float64(latency(b, conn, questions).Nanoseconds())/1e3, "p99-µs")
	}
	b.ReportMetric(residentMB(b, cmd.Process.Pid), "rss-MB")
	b.ReportMetric(0, "ns/op")
}

func awaitAnswers(b *testing.B, conn net.Conn, question []byte) {
	buf := make([]byte, 1232)
	for deadline := time.Now().Add(time.Minute); ; {
		conn.Write(question)
		conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if n, err := conn.Read(buf); err == nil && n > len(question) && buf[3]&0xf == 0 {
			return
		}
		if time.Now().After(deadline) {
			b.Fatal("no answer")
		}
	}
}

// askAll keeps at most 256 questions open and returns how many were answered. Those lost are given up after 100 ms.
func askAll(b *testing.B, conn *net.UDPConn, questions [][]byte, duration time.Duration) (answered int) {
	const open, batch = 256, 64
	socket := ipv4.NewPacketConn(conn)
	in, out := make([]ipv4.Message, batch), make([]ipv4.Message, batch)
	for i := range in {
		in[i].Buffers = [][]byte{make([]byte, 1232)}
	}
	next, waiting := 0, 0
	for end := time.Now().Add(duration); time.Now().Before(end); {
		for waiting+batch <= open {
			for i := range out {
				out[i].Buffers = [][]byte{questions[next%len(questions)]}
				next++
			}
			n, err := socket.WriteBatch(out, 0)
			if err != nil {
				b.Fatal(err)
			}
			waiting += n
		}
		conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		n, err := socket.ReadBatch(in, 0)
		if err != nil {
			waiting = 0
			continue
		}
		answered, waiting = answered+n, max(0, waiting-n)
	}
	return answered
}

// latency asks 2,000 questions per second for three seconds, and returns the time within which 99 of 100 were answered.
func latency(b *testing.B, conn net.Conn, questions [][]byte) time.Duration {
	const rate, count = 2000, 6000
	buf, took := make([]byte, 1232), make([]time.Duration, count)
	conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	for _, err := conn.Read(buf); err == nil; _, err = conn.Read(buf) { // what is still on its way from before
	}
	start := time.Now()
	for i := range took {
		time.Sleep(time.Until(start.Add(time.Duration(i) * time.Second / rate)))
		asked := time.Now()
		if _, err := conn.Write(questions[i*7919%len(questions)]); err != nil {
			b.Fatal(err)
		}
		conn.SetReadDeadline(asked.Add(time.Second))
		if _, err := conn.Read(buf); err != nil {
			b.Fatalf("question %d: %v", i, err)
		}
		took[i] = time.Since(asked)
	}
	slices.Sort(took)
	return took[count*99/100]
}

func serverTime(b *testing.B, pid int) time.Duration {
	fields := statFields(b, pid)
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// statFields returns the fields of /proc/PID/stat after the name of the process.
func statFields(b *testing.B, pid int) []string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	return slices.Clip(strings.Fields(rest))
}

func residentMB(b *testing.B, pid int) float64 {
	pages, _ := strconv.Atoi(statFields(b, pid)[21])
	return float64(pages*os.Getpagesize()) / 1e6
}
