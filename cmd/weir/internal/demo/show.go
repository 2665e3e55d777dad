package main

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"weir/backends/netlab"
	"weir/backends/netlab/podmantest"
)

const (
	manifest = "web.yaml"
	// follow is how soon traffic must follow an edit, and limit how soon everything else must happen.
	follow = time.Second
	limit  = 20 * time.Second
)

var (
	clusterIP = netip.MustParseAddrPort("10.96.0.80:80")
	nodePort  = netip.AddrPortFrom(netlab.NodeIPv4, 30080)
	// nodeDNS is where weir answers pods, which ask at kubeDNS.
	nodeDNS = netip.AddrPortFrom(netlab.NodeIPv4, 53)
	kubeDNS = netip.MustParseAddrPort("10.96.0.10:53")
	ownDNS  = netip.MustParseAddrPort("127.0.0.1:53")
)

// show is the demo, step by step. A step that fails ends it.
type show struct {
	*stage
	lab    *netlab.Lab
	input  string
	log    syncBuffer
	colour bool
	acts   int
	podman bool // reports whether podman can run pods here
	// runtime is podman, with its service at the usual place.
	runtime *podmantest.Podman
}

func newShow(st *stage) *show {
	info, err := os.Stdout.Stat()
	s := &show{stage: st, podman: podmanHere(), colour: err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("NO_COLOR") == ""}
	s.lab = netlab.New(st, netlab.Topology{})
	for _, pod := range []string{"pod1", "pod2", "pod3"} {
		s.lab.Host(pod).Serve(st, netlab.TCP, 8080)
	}
	s.input = filepath.Join(st.dir, "quickstart")
	if err := os.CopyFS(s.input, os.DirFS("examples/quickstart")); err != nil {
		s.Fatalf("copy examples/quickstart (run the demo from the root of the repository): %v", err)
	}
	return s
}

func (s *show) play() {
	if s.podman {
		s.preparePodman()
	}
	fmt.Println("A node, three pods, a client pod and a host outside, each in a network namespace of its own.")
	s.start()
	s.spread()
	s.edit()
	s.breakIt()
	s.drift()
	if s.podman {
		s.pods()
	} else {
		fmt.Println("\nPods of podman are not shown: that takes root, and podman.")
	}
	fmt.Println()
	fmt.Println(s.paint("32", "All of this was observed."))
}

// start runs weir on the node and waits until the ClusterIP answers.
func (s *show) start() {
	s.act("Start weir on the node, with a directory of YAML")
	s.shell("weir run -f quickstart --dns --dns-listen " + ownDNS.String() + " --dns-listen " + nodeDNS.String())
	node := s.lab.Node()
	cmd := node.Command(s.ctx, os.Getenv(binaryEnv), "run", "-f", filepath.Base(s.input), "--hostname-override", "node", "--state-dir", s.TempDir(),
		"--dns", "--dns-listen", ownDNS.String(), "--dns-listen", nodeDNS.String())
	cmd.Dir = s.dir
	cmd.Stdout, cmd.Stderr = &s.log, &s.log
	if err := node.Start(cmd); err != nil {
		s.Fatalf("start weir: %v", err)
	}
	s.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	took := s.until("the ClusterIP answers", limit, func() error {
		if r := s.lab.Host(netlab.Client).Probe(netlab.TCP, clusterIP, time.Second); r.Outcome != netlab.Answered {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	s.observed("the ClusterIP answers after %s", took)
	const name = "web.default.svc.cluster.local."
	for _, asker := range []struct {
		host, what string
		at         netip.AddrPort
	}{{netlab.Client, "a pod", kubeDNS}, {netlab.Node, "the node", ownDNS}} {
		var found netip.Addr
		s.until(asker.what+" finds "+name, limit, func() (err error) {
			if found, err = s.lookUp(asker.host, asker.at, name); err == nil && found != clusterIP.Addr() {
				err = fmt.Errorf("it is %s", found)
			}
			return err
		})
		r := s.lab.Host(asker.host).Probe(netlab.TCP, netip.AddrPortFrom(found, clusterIP.Port()), 5*time.Second)
		if r.Outcome != netlab.Answered {
			s.Fatalf("%s by its name, from %s: %v", name, asker.what, r)
		}
		s.observed("%-8s asks %-13s for %s: %s, and %s answers there", asker.what, asker.at, strings.TrimSuffix(name, "."), found, r.Server)
	}
}

// lookUp asks a name server for the IPv4 address of a name.
func (s *show) lookUp(host string, at netip.AddrPort, name string) (found netip.Addr, err error) {
	ask := dnsmessage.Message{Header: dnsmessage.Header{RecursionDesired: true}, Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	msg, err := ask.Pack()
	if err != nil {
		return found, err
	}
	err = s.lab.Host(host).Do(func() error {
		conn, err := net.Dial("udp", at.String())
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(time.Second))
		if _, err := conn.Write(msg); err != nil {
			return err
		}
		buf := make([]byte, 1232)
		n, err := conn.Read(buf)
		if err != nil {
			return err
		}
		var m dnsmessage.Message
		if err := m.Unpack(buf[:n]); err != nil {
			return err
		}
		for _, r := range m.Answers {
			if a, ok := r.Body.(*dnsmessage.AResource); ok {
				found = netip.AddrFrom4(a.A)
				return nil
			}
		}
		return fmt.Errorf("no address: %s", m.RCode)
	})
	return found, err
}

func (s *show) spread() {
	s.act("Requests spread over the three pods")
	s.ask("pod1", "pod2", "pod3")
}

// edit removes one endpoint from the manifest.
func (s *show) edit() {
	s.act("Edit " + manifest + ": the third endpoint goes")
	s.rewrite(func(text string) string {
		lines := strings.SplitAfter(text, "\n")
		return strings.Join(slices.DeleteFunc(lines, func(l string) bool { return strings.Contains(l, "10.244.1.3") }), "")
	})
	fmt.Println(s.paint("31", "   - - addresses: [10.244.1.3]"))
	took := s.until("no request meets pod3", follow, func() error { return s.met("pod1", "pod2") })
	s.observed("the traffic followed after %s", took)
	s.ask("pod1", "pod2")
}

// breakIt adds a typo, checks that the traffic continues, and corrects it.
func (s *show) breakIt() {
	s.act("Break " + manifest + ": a typo in the Service")
	good := s.rewrite(func(text string) string { return strings.Replace(text, "port: 80\n", "prot: 80\n", 1) })
	fmt.Println(s.paint("31", "   -   port: 80"))
	fmt.Println(s.paint("32", "   +   prot: 80"))
	message := regexp.MustCompile(`\S*` + regexp.QuoteMeta(manifest) + `:\d+: [^\n]*prot[^\n"]*`)
	var said string
	s.until("weir says what is wrong", limit, func() error {
		if said = message.FindString(s.log.String()); said == "" {
			return fmt.Errorf("no message with file and line in the log")
		}
		return nil
	})
	s.observed("weir says: %s", said)
	s.observed("and the traffic is unharmed")
	s.ask("pod1", "pod2")
	s.rewrite(func(string) string { return good })
}

// drift deletes a rule behind weir's back.
func (s *show) drift() {
	s.act("Delete a rule behind weir's back")
	before := s.rules()
	chain := s.dnatChain(before)
	s.shell("iptables -t nat -D " + chain + " 1")
	if _, err := s.lab.Node().Exec(s.ctx, "iptables", "-t", "nat", "-D", chain, "1"); err != nil {
		s.Fatalf("%v", err)
	}
	took := s.until("the rule is back", limit, func() error {
		if s.rules() != before {
			return fmt.Errorf("the nat table is not yet as it was")
		}
		return nil
	})
	s.observed("repaired after %s", took)
	s.ask("pod1", "pod2")
}

// ask sends requests to the ClusterIP and the NodePort, prints which pods answered, and requires the given pods.
func (s *show) ask(pods ...string) {
	for _, route := range []struct {
		from, what string
		to         netip.AddrPort
	}{{netlab.Client, "ClusterIP", clusterIP}, {netlab.Outside, "NodePort", nodePort}} {
		counts := s.count(route.from, route.to, 60)
		var line strings.Builder
		for _, pod := range []string{"pod1", "pod2", "pod3"} {
			fmt.Fprintf(&line, "  %s %2d", pod, counts[pod])
		}
		fmt.Printf("   %-7s -> %-9s %-18s %s\n", route.from, route.what, route.to, line.String())
		s.insist(counts, pods)
	}
}

func (s *show) insist(counts map[string]int, pods []string) {
	if err := exactly(counts, pods); err != nil {
		s.Fatalf("%v", err)
	}
}

// met sends some requests and returns an error unless only the given pods answered.
func (s *show) met(pods ...string) error {
	counts := s.count(netlab.Client, clusterIP, 30)
	for _, p := range pods {
		counts[p] = max(counts[p], 1) // thirty requests need not reach every pod
	}
	return exactly(counts, pods)
}

func exactly(counts map[string]int, pods []string) error {
	for name, n := range counts {
		if !slices.Contains(pods, name) {
			return fmt.Errorf("%d requests met %q", n, name)
		}
	}
	for _, p := range pods {
		if counts[p] == 0 {
			return fmt.Errorf("no request met %s", p)
		}
	}
	return nil
}

// count sends n requests and counts the answers by pod; a failed request counts by its error.
func (s *show) count(from string, to netip.AddrPort, n int) map[string]int {
	counts := map[string]int{}
	for range n {
		r := s.lab.Host(from).Probe(netlab.TCP, to, 5*time.Second)
		if r.Outcome == netlab.Answered {
			counts[r.Server]++
		} else {
			counts[string(r.Outcome)]++
		}
	}
	return counts
}

// rewrite changes the manifest as an editor does, and returns its former content.
func (s *show) rewrite(edit func(string) string) (was string) {
	file := filepath.Join(s.input, manifest)
	text, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file+"~", []byte(edit(string(text))), 0o644)
	}
	if err == nil {
		err = os.Rename(file+"~", file)
	}
	if err != nil {
		s.Fatalf("edit %s: %v", manifest, err)
	}
	return string(text)
}

// rules returns the nat table without its counters.
func (s *show) rules() string {
	out, err := s.lab.Node().Exec(s.ctx, "iptables-save", "-t", "nat")
	if err != nil {
		s.Fatalf("%v", err)
	}
	var b strings.Builder
	for line := range strings.Lines(out) {
		if line[0] != '#' {
			line, _, _ = strings.Cut(strings.TrimSpace(line), " [")
			b.WriteString(line + "\n")
		}
	}
	return b.String()
}

// dnatChain returns the chain of the first rule that sends traffic to a pod.
func (s *show) dnatChain(rules string) string {
	for line := range strings.Lines(rules) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "-A" && strings.Contains(line, "--to-destination") {
			return f[1]
		}
	}
	s.Fatalf("no DNAT rule in:\n%s", rules)
	return ""
}

// until polls check, and returns how long it took to succeed.
func (s *show) until(what string, within time.Duration, check func() error) time.Duration {
	start := time.Now()
	for {
		err := check()
		took := time.Since(start).Round(10 * time.Millisecond)
		if err == nil && took <= within {
			return took
		}
		if took > within {
			s.Fatalf("within %s should have happened: %s: %v\n%s", within, what, err, s.log.String())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (s *show) act(title string) {
	s.acts++
	fmt.Printf("\n%s\n", s.paint("1", fmt.Sprintf("%d. %s", s.acts, title)))
}

func (s *show) shell(line string) { fmt.Println(s.paint("2", "   $ "+line)) }

func (s *show) observed(format string, args ...any) { fmt.Printf("   "+format+"\n", args...) }

func (s *show) paint(code, text string) string {
	if !s.colour {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// syncBuffer collects the log while it is being read.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
