package main_test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/backends/dataplane"
	"weir/backends/netlab"
)

// BenchmarkLiveness measures the whole program with probes, in nftables mode, in about a minute:
//
//	tcp-%, http-%     of one core for 10,000 endpoints of 2,000 Services that are asked every 10 s, by the CPU time of its threads;
//	                  that has the kernel's part of each connection, on both sides
//	floor-%           the same for a loop that connects to as many of them in as many turns, and does nothing else
//	rest-%            the same without probes
//	tcp-MB, http-MB   of memory, more than the same Services take without probes
//	out-ms            from the answer that makes an endpoint of one of 10,000 Services unhealthy until the kernel has no such
//	                  endpoint, median of 20, and worst-ms; round-ms is the part of it that is a round of the reconciler
//	new-ms            the same median while no other Service has as many endpoints as are left: the chain for that many is new
//	                  then, and the kernel checks all jumps between chains
func BenchmarkLiveness(b *testing.B) {
	for b.Loop() {
		none, tcp, http := startAsked(b, ""), startAsked(b, "tcpSocket: {port: 80}"), startAsked(b, "httpGet: {port: 8080}")
		time.Sleep(12 * time.Second) // every endpoint has been asked, and has its place within the period
		const during = 10
		all := []*asked{none, tcp, http}
		for _, a := range all {
			a.cpu = cpuTime(b, a.pid)
		}
		time.Sleep(during * time.Second)
		for i, a := range all {
			a.cpu = cpuTime(b, a.pid) - a.cpu
			b.ReportMetric(a.cpu.Seconds()*100/during, []string{"rest-%", "tcp-%", "http-%"}[i])
		}
		b.ReportMetric(tcp.floor().Seconds()*100, "floor-%")
		b.ReportMetric(tcp.memory()-none.memory(), "tcp-MB")
		b.ReportMetric(http.memory()-none.memory(), "http-MB")
		for _, a := range all {
			a.stop()
		}
		verdictToKernel(b)
	}
	b.ReportMetric(0, "ns/op")
}

// askedServices is how many Services an asked has.
const askedServices = 2000

// asked is a weir that asks 10,000 endpoints every 10 s.
type asked struct {
	*benchNode
	probe string
	pid   int
	stop  func()
	cpu   time.Duration
}

// startAsked starts a weir whose Services have the probe, or none if it is "".
func startAsked(b *testing.B, probe string) *asked {
	bn := newBenchNode(b, modes[2], 1)
	pod := bn.d.lab.Host("pod1")
	serveHTTP(b, pod, func(http.ResponseWriter) {})
	if _, err := bn.d.lab.Node().Exec(b.Context(), "ip", "route", "add", "10.160.0.0/12", "via", netlab.PodIPv4(1).String(), "dev", "vethpod1", "onlink"); err != nil {
		b.Fatal(err)
	}
	if _, err := pod.Exec(b.Context(), "ip", "route", "add", "local", "10.160.0.0/12", "dev", "lo"); err != nil {
		b.Fatal(err)
	}
	bn.n = askedServices + 1 // none of those that are written is the last one
	for i := range askedServices {
		service := bn.service(i)
		if probe != "" {
			service = strings.Replace(service, "}}\nspec:", fmt.Sprintf("}, annotations: {weir/probe: %q}}\nspec:", probe), 1)
		}
		bn.write(fmt.Sprintf("%02d/svc-%05d.yaml", i%100, i), service+bn.slice(i, 0))
	}
	a := &asked{benchNode: bn, probe: probe}
	a.pid, _, a.stop = bn.start()
	bn.awaitServing()
	return a
}

// memory returns the resident memory in MB, and fails unless every endpoint is known to work.
func (a *asked) memory() float64 {
	rss := memory(a.b, a.pid, "VmRSS:") // before the metrics are asked for, which takes memory too
	if a.probe != "" {
		out, err := a.d.lab.Node().Exec(a.b.Context(), "curl", "-sf", "http://127.0.0.1:10249/metrics")
		if n := strings.Count(out, `state="healthy"} 5`); err != nil || n < askedServices {
			a.b.Fatalf("not every endpoint is healthy: %v, %d Services", err, n)
		}
	}
	return rss
}

// floor returns the CPU time of a second in which a thread of the node connects to 1,000 endpoints, in 50 turns, and resets each
// connection.
func (a *asked) floor() (took time.Duration) {
	a.b.Helper()
	const seconds, turns, inTurn = 5, 50, 20
	err := a.d.lab.Node().Do(func() error {
		var before, after unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_THREAD, &before); err != nil {
			return err
		}
		to := &unix.SockaddrInet4{Port: 80}
		for k := range seconds * turns * inTurn {
			if k%inTurn == 0 {
				time.Sleep(time.Second / turns)
			}
			to.Addr = [4]byte{10, byte(160 + k>>16), byte(k >> 8), byte(k)}
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, dataplane.ProbeMark)
			if err := unix.Connect(fd, to); err != nil && err != unix.EINPROGRESS {
				return err
			}
			if err := unix.Connect(fd, to); err != nil {
				return err
			}
			unix.Close(fd)
		}
		if err := unix.Getrusage(unix.RUSAGE_THREAD, &after); err != nil {
			return err
		}
		took = time.Duration(after.Utime.Nano()+after.Stime.Nano()-before.Utime.Nano()-before.Stime.Nano()) / seconds
		return nil
	})
	if err != nil {
		a.b.Fatal(err)
	}
	return took
}

// serveHTTP answers every request on port 8080 of a host.
func serveHTTP(b *testing.B, h *netlab.Host, answer func(http.ResponseWriter)) {
	b.Helper()
	var ln net.Listener
	if err := h.Do(func() (err error) { ln, err = net.Listen("tcp", ":8080"); return err }); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { ln.Close() })
	go func() {
		_ = http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer(w) }))
	}()
}

func verdictToKernel(b *testing.B) {
	bn := newBenchNode(b, modes[2], 10_000)
	bn.write("policy.yaml", fmt.Sprintf(`apiVersion: alb.networking.azure.io/v1
kind: HealthCheckPolicy
metadata: {name: last, namespace: bench}
spec:
  targetRef: {group: "", kind: Service, name: svc-%05d}
  default: {interval: 100ms, timeout: 1s, unhealthyThreshold: 1, port: 8080, http: {path: /}}
`, bn.n-1))
	var broken atomic.Bool
	answered := make(chan time.Time, 1)
	for i := 1; i <= endpointsPerService; i++ {
		serveHTTP(b, bn.d.lab.Host(fmt.Sprint("pod", i)), func(w http.ResponseWriter) {
			if i == 1 && broken.Load() {
				w.WriteHeader(http.StatusInternalServerError)
				select {
				case answered <- time.Now():
				default:
				}
			}
		})
	}
	_, log, stop := bn.start("--log-format", "json")
	defer stop()
	bn.awaitServing()
	generation := generations(b, bn.d.lab.Node())
	await := func(unchanged string, since time.Time) time.Duration {
		for generation() == unchanged {
			if time.Since(since) > patience {
				b.Fatal("a verdict did not reach the kernel")
			}
			time.Sleep(100 * time.Microsecond)
		}
		return time.Since(since)
	}
	time.Sleep(3 * time.Second)
	measure := func() (took []time.Duration) {
		for range 20 {
			unchanged := generation()
			broken.Store(true)
			took = append(took, await(unchanged, <-answered))
			unchanged = generation()
			broken.Store(false)
			await(unchanged, time.Now())
			select {
			case <-answered:
			default:
			}
		}
		return took
	}
	b.ReportMetric(float64(median(measure()).Microseconds())/1e3, "new-ms")
	unchanged := generation()
	fewer := bn.slice(0, 0)
	bn.write("00/svc-00000.yaml", bn.service(0)+fewer[:strings.LastIndex(fewer, "- {")])
	await(unchanged, time.Now())
	time.Sleep(time.Second)
	lines := syncLines(b, log)
	took := measure()
	b.ReportMetric(float64(median(rounds(b, log)[lines:]).Microseconds())/1e3, "round-ms")
	b.ReportMetric(float64(median(took).Microseconds())/1e3, "out-ms")
	b.ReportMetric(float64(slices.Max(took).Microseconds())/1e3, "worst-ms")
}

// rounds returns how long each round took that was logged.
func rounds(b *testing.B, log string) (all []time.Duration) {
	text, err := os.ReadFile(log)
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var said struct {
			Message string `json:"@message"`
			Total   string `json:"total"`
		}
		if json.Unmarshal([]byte(line), &said) != nil || said.Message != "synced" {
			continue
		}
		took, err := time.ParseDuration(said.Total)
		if err != nil {
			b.Fatal(err)
		}
		all = append(all, took)
	}
	return all
}
