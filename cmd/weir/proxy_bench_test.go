package main_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/backends/netlab"
)

// contender is a proxy between the client pod and pod1. Its ports are those of the servers plus its offset.
type contender struct {
	name   string
	offset uint16
	needs  string // a program
	start  func(p *proxyBench, c contender) *exec.Cmd
	// Without these it takes no part.
	tcp, udp bool
}

// contenders has no proxy at all in the first place, which is the floor.
var contenders = []contender{
	{name: "direct", tcp: true, udp: true},
	{name: "weir", offset: 1000, start: startWeir, tcp: true, udp: true},
	{name: "haproxy", offset: 2000, needs: "haproxy", start: startHAProxy, tcp: true},
	{name: "haproxy-splice", offset: 3000, needs: "haproxy", start: startHAProxy, tcp: true},
	{name: "nginx", offset: 4000, needs: "nginx", start: startNginx, tcp: true, udp: true},
	{name: "socat", offset: 5000, needs: "socat", start: startSocat, udp: true},
}

// The time that each contender is measured for.
const (
	proxyWarmUp  = 300 * time.Millisecond
	proxyMeasure = 3 * time.Second
)

// BenchmarkProxy compares userspace mode with HAProxy, nginx and socat (Debian's packages), each with as many threads as
// there are cores, in the same namespaces in the same run; one iteration takes each once. All processes share the cores
// with the client and the server, so that what counts as well as the rate is the proxy's own CPU time:
//
//	GB/s        from the server to the client, by one and by 64 connections; cpu-s/GB of the proxy
//	conn/s      connections of one question each, by 32 clients; cpu-µs/conn of the proxy
//	p50-µs      of questions on 16 open connections, 2,000 in a second; p99-µs. Direct is the part that is not the proxy's
//	kB/conn     of 10,000 idle connections: memory of the process (PSS, without what the kernel holds for its sockets)
//	pps         datagrams answered, with 16 under way in each of 64 flows; cpu-µs/packet
//	lost-%      of 100,000 datagrams in a second, in 64 flows
func BenchmarkProxy(b *testing.B) {
	p := newProxyBench(b)
	for _, m := range []struct {
		name string
		run  func(b *testing.B, c contender)
		udp  bool
	}{
		{name: "throughput-1", run: func(b *testing.B, c contender) { p.throughput(b, c, 1) }},
		{name: "throughput-64", run: func(b *testing.B, c contender) { p.throughput(b, c, 64) }},
		{name: "connections", run: p.connections},
		{name: "latency", run: p.latency},
		{name: "idle", run: p.idle},
		{name: "udp-window", run: p.udpWindow, udp: true},
		{name: "udp-rate", run: p.udpRate, udp: true},
	} {
		for _, c := range contenders {
			if m.udp && !c.udp || !m.udp && !c.tcp || m.name == "idle" && (c.start == nil || c.name == "haproxy-splice") {
				continue // HAProxy holds two pipes for an idle connection that has spliced, and runs out of descriptors
			}
			b.Run(m.name+"/"+c.name, func(b *testing.B) {
				if c.start != nil && p.pids[c.name] == 0 {
					b.Skip(c.needs + " is not installed (make bench does it)")
				}
				for b.Loop() {
					m.run(b, c)
				}
				b.ReportMetric(0, "ns/op") // says nothing here
			})
		}
	}
}

// proxyBench is a lab with all contenders running.
type proxyBench struct {
	b    *testing.B
	lab  *netlab.Lab
	dir  string
	pids map[string]int
}

func newProxyBench(b *testing.B) *proxyBench {
	b.Helper()
	p := &proxyBench{b: b, lab: netlab.New(b, netlab.Topology{Pods: 1}), dir: b.TempDir(), pids: map[string]int{}}
	for _, h := range []string{netlab.Node, netlab.Client, "pod1"} {
		for _, setting := range []string{"net.ipv4.ip_local_port_range=12000 65000", "net.ipv4.tcp_tw_reuse=1", "net.core.somaxconn=4096"} {
			name, value, _ := strings.Cut(setting, "=")
			err := p.lab.Host(h).Do(func() error {
				return os.WriteFile("/proc/sys/"+strings.ReplaceAll(name, ".", "/"), []byte(value), 0)
			})
			if err != nil {
				b.Fatal(err)
			}
		}
	}
	pod := p.lab.Host("pod1")
	rawServe(b, pod, floodPort, serveFlood)
	rawServe(b, pod, shortPort, serveShort)
	echoes := newEchoes(b)
	rawServe(b, pod, echoPort, echoes.serve)
	rawServe(b, pod, idlePort, echoes.serve)
	serveUDP(b, pod, udpPort)
	for _, c := range contenders {
		p.start(c)
	}
	return p
}

// idleConnections is how many connections are kept open for the sake of what they cost: 10,000, or what the limit of
// descriptors allows, of which each connection takes two, in the proxy as in this process.
func idleConnections() int {
	const most, others = 10000, 1400
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 1000
	}
	return min(most, (int(min(l.Cur, 1<<20))-others)/2)
}

func (p *proxyBench) start(c contender) {
	p.b.Helper()
	if c.start == nil {
		return
	}
	if c.needs != "" {
		if _, err := exec.LookPath(c.needs); err != nil {
			return
		}
	}
	cmd := c.start(p, c)
	log, err := os.Create(filepath.Join(p.dir, c.name+".log"))
	if err != nil {
		p.b.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := p.lab.Node().Start(cmd); err != nil {
		p.b.Fatal(err)
	}
	p.b.Cleanup(func() {
		cmd.Process.Signal(unix.SIGTERM)
		time.AfterFunc(5*time.Second, func() { cmd.Process.Kill() })
		cmd.Wait()
		log.Close()
	})
	p.pids[c.name] = cmd.Process.Pid
	probe := func() error {
		if !c.tcp {
			return nil // socat; a datagram that is too early is sent again
		}
		conn, err := p.lab.Host(netlab.Client).DialContext(context.Background(), "tcp", p.front(c, echoPort).String())
		if err == nil {
			conn.Close()
		}
		return err
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		if err = probe(); err == nil {
			return
		}
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(log.Name())
			p.b.Fatalf("%s does not serve: %v\n%s", c.name, err, text)
		}
	}
}

// front is where the contender serves what the server has on that port.
func (p *proxyBench) front(c contender, port uint16) netip.AddrPort {
	if c.start == nil {
		return netip.AddrPortFrom(netlab.PodIPv4(1), port)
	}
	return netip.AddrPortFrom(netlab.NodeIPv4, port+c.offset)
}

// write writes a configuration file.
func (p *proxyBench) write(name, text string) string {
	p.b.Helper()
	file := filepath.Join(p.dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		p.b.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		p.b.Fatal(err)
	}
	return file
}

var tcpPorts = []uint16{floodPort, shortPort, echoPort, idlePort}

func startWeir(p *proxyBench, c contender) *exec.Cmd {
	var text strings.Builder
	text.WriteString("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nudpIdleTimeout: 10s\n---\n")
	text.WriteString("apiVersion: v1\nkind: Service\nmetadata: {name: bench}\nspec:\n  clusterIP: 10.96.0.10\n  ports:\n")
	var slice strings.Builder
	slice.WriteString("---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: bench-1, labels: {kubernetes.io/service-name: bench}}\n" +
		"addressType: IPv4\nendpoints: [{addresses: [10.244.1.1]}]\nports:\n")
	add := func(port uint16, protocol string) {
		fmt.Fprintf(&text, "  - {name: p%d, port: %d, targetPort: %d, protocol: %s}\n", port, port+c.offset, port, protocol)
		fmt.Fprintf(&slice, "- {name: p%d, port: %d, protocol: %s}\n", port, port, protocol)
	}
	for _, port := range tcpPorts {
		add(port, "TCP")
	}
	add(udpPort, "UDP")
	file := p.write("weir/bench.yaml", text.String()+slice.String())
	return p.lab.Node().Command(context.Background(), os.Getenv(binaryEnv), "run", "-f", file, "--rootless", "--bind-address", netlab.NodeIPv4.String(),
		"--hostname-override", "node", "--state-dir", p.b.TempDir())
}

func startHAProxy(p *proxyBench, c contender) *exec.Cmd {
	text := "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 10m\n  timeout server 10m\n"
	if c.name == "haproxy-splice" {
		text += "  option splice-request\n  option splice-response\n"
	}
	for _, port := range tcpPorts {
		text += fmt.Sprintf("listen p%d\n  bind %s backlog 4096\n  server pod1 10.244.1.1:%d\n", port, p.front(c, port), port)
	}
	return p.lab.Node().Command(context.Background(), c.needs, "-db", "-f", p.write(c.name+".cfg", text))
}

func startNginx(p *proxyBench, c contender) *exec.Cmd {
	text := "daemon off; user root; worker_processes auto; pid " + p.dir + "/nginx.pid; error_log stderr crit;\n"
	if module := "/usr/lib/nginx/modules/ngx_stream_module.so"; exists(module) {
		text += "load_module " + module + ";\n"
	}
	text += "events { worker_connections 40000; }\nstream {\n  access_log off; proxy_timeout 10m;\n"
	for _, port := range tcpPorts {
		text += fmt.Sprintf("  server { listen %s reuseport backlog=4096; proxy_pass 10.244.1.1:%d; }\n", p.front(c, port), port)
	}
	text += fmt.Sprintf("  server { listen %s udp reuseport; proxy_timeout 10s; proxy_pass 10.244.1.1:%d; }\n}\n", p.front(c, udpPort), udpPort)
	return p.lab.Node().Command(context.Background(), c.needs, "-c", p.write("nginx.conf", text))
}

func startSocat(p *proxyBench, c contender) *exec.Cmd {
	front := p.front(c, udpPort)
	return p.lab.Node().Command(context.Background(), c.needs, "-T", "10",
		fmt.Sprintf("UDP4-LISTEN:%d,bind=%s,reuseaddr,fork", front.Port(), front.Addr()), fmt.Sprintf("UDP4:10.244.1.1:%d", udpPort))
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// cpu is the CPU time that the contender's processes have used.
func (p *proxyBench) cpu(c contender) (total time.Duration) {
	for _, pid := range processTree(p.pids[c.name]) {
		total += cpuTime(p.b, pid)
	}
	return total
}

// processTree returns a process and its children.
func processTree(pid int) []int {
	if pid == 0 {
		return nil
	}
	pids := []int{pid}
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, file := range tasks {
		text, _ := os.ReadFile(file)
		for _, f := range strings.Fields(string(text)) {
			if child, err := strconv.Atoi(f); err == nil {
				pids = append(pids, processTree(child)...)
			}
		}
	}
	return pids
}

// pss is the memory of the contender's processes, in kB, what they share counted once.
func (p *proxyBench) pss(c contender) (kB int) {
	for _, pid := range processTree(p.pids[c.name]) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			p.b.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
				n, _ := strconv.Atoi(strings.Fields(rest)[0])
				kB += n
			}
		}
	}
	return kB
}

// during returns how much the counter grew while it was measured, and the contender's CPU time.
func (p *proxyBench) during(c contender, counter *atomic.Int64) (n float64, cpu time.Duration, took time.Duration) {
	time.Sleep(proxyWarmUp)
	start, before, cpuBefore := time.Now(), counter.Load(), p.cpu(c)
	time.Sleep(proxyMeasure)
	return float64(counter.Load() - before), p.cpu(c) - cpuBefore, time.Since(start)
}

func (p *proxyBench) throughput(b *testing.B, c contender, streams int) {
	var bytes atomic.Int64
	end := clients(b, p.lab.Host(netlab.Client), streams, func(_ int, over func() bool) error {
		return download(p.front(c, floodPort), over, &bytes)
	})
	n, cpu, took := p.during(c, &bytes)
	end()
	b.ReportMetric(n/1e9/took.Seconds(), "GB/s")
	b.ReportMetric(cpu.Seconds()/(n/1e9), "cpu-s/GB")
}

func (p *proxyBench) connections(b *testing.B, c contender) {
	var count atomic.Int64
	end := clients(b, p.lab.Host(netlab.Client), 32, func(_ int, over func() bool) error {
		return shortly(p.front(c, shortPort), over, &count)
	})
	n, cpu, took := p.during(c, &count)
	end()
	b.ReportMetric(n/took.Seconds(), "conn/s")
	b.ReportMetric(float64(cpu.Microseconds())/n, "cpu-µs/conn")
}

func (p *proxyBench) latency(b *testing.B, c contender) {
	const conns, rate = 16, 2000
	took := make([][]time.Duration, conns)
	end := clients(b, p.lab.Host(netlab.Client), conns, func(i int, over func() bool) error {
		time.Sleep(time.Duration(i) * time.Second / rate)
		return paced(p.front(c, echoPort), conns*time.Second/rate, over, &took[i])
	})
	time.Sleep(proxyWarmUp + proxyMeasure)
	end()
	all := slices.Concat(took...)
	slices.Sort(all)
	if len(all) == 0 {
		b.Fatal("nothing was answered")
	}
	at := func(percent int) float64 { return float64(all[len(all)*percent/100].Nanoseconds()) / 1e3 }
	b.ReportMetric(at(50), "p50-µs")
	b.ReportMetric(at(99), "p99-µs")
}

func (p *proxyBench) idle(b *testing.B, c contender) {
	n, before, buf := idleConnections(), p.pss(c), make([]byte, messageSize)
	var fds []int
	err := p.lab.Host(netlab.Client).Do(func() error {
		for len(fds) < n {
			// Two ports, since weir allows one no more than half of the connections.
			fd, err := rawDial(p.front(c, []uint16{echoPort, idlePort}[len(fds)%2]))
			if err != nil {
				return fmt.Errorf("connection %d: %w", len(fds), err)
			}
			fds = append(fds, fd)
			if err := rawAsk(fd, buf); err != nil {
				return fmt.Errorf("connection %d: %w", len(fds), err)
			}
		}
		return nil
	})
	time.Sleep(proxyWarmUp)
	b.ReportMetric(float64(len(fds)), "conns")
	b.ReportMetric(float64(p.pss(c))/1024, "MB")
	b.ReportMetric(float64(p.pss(c)-before)/float64(max(len(fds), 1)), "kB/conn")
	for _, fd := range fds {
		unix.Close(fd)
	}
	if err != nil {
		b.Fatal(err)
	}
}

// udpFlows runs work for each of 64 flows until the end is called.
func (p *proxyBench) udpFlows(b *testing.B, c contender, work func(f *udpFlow, over func() bool)) (end func()) {
	return clients(b, p.lab.Host(netlab.Node), 64, func(_ int, over func() bool) error {
		f, err := dialUDP(p.lab.Host(netlab.Client), p.front(c, udpPort))
		if err != nil {
			return err
		}
		defer f.conn.Close()
		work(f, over)
		return nil
	})
}

func (p *proxyBench) udpWindow(b *testing.B, c contender) {
	var answered, lost atomic.Int64
	end := p.udpFlows(b, c, func(f *udpFlow, over func() bool) { f.pingPong(over, &answered, &lost) })
	n, cpu, took := p.during(c, &answered)
	end()
	b.ReportMetric(n/took.Seconds(), "pps")
	b.ReportMetric(float64(cpu.Microseconds())/max(n, 1), "cpu-µs/packet")
}

func (p *proxyBench) udpRate(b *testing.B, c contender) {
	const rate, flows = 100000, 64
	var sent, answered atomic.Int64
	end := p.udpFlows(b, c, func(f *udpFlow, over func() bool) {
		f.stream(udpBatch*flows*time.Second/rate, over, &sent, &answered)
	})
	time.Sleep(proxyMeasure)
	end()
	b.ReportMetric(float64(sent.Load())/proxyMeasure.Seconds(), "sent/s")
	b.ReportMetric(100*(1-float64(answered.Load())/float64(max(sent.Load(), 1))), "lost-%")
}
