package ipvs

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weir/backends"
	"weir/backends/netlab"
)

// TestPain22_Schedulers expects that each Service has its own scheduler and weights. It tells every scheduler from rr,
// which alternates, by the order of the answers.
func TestPain22_Schedulers(t *testing.T) {
	n := newNode(t, testSettings())
	for _, s := range []struct {
		name    string
		weights []int
		check   func(t *testing.T, s *scheduled)
	}{
		{"rr", []int{3, 1}, func(t *testing.T, s *scheduled) {
			who := s.open(8)
			for i := range who[2:] {
				if who[i] != who[i+2] || who[i] == who[i+1] {
					t.Errorf("does not alternate: %v", who)
				}
			}
		}},
		{"wrr", []int{3, 1}, func(t *testing.T, s *scheduled) {
			s.expect(s.open(8), 6, 2)
			s.close("pod1")
			s.expect(s.open(8), 6, 2) // it looks at weights, not at load
		}},
		{"lc", []int{3, 1}, func(t *testing.T, s *scheduled) {
			s.expect(s.open(8), 4, 4) // it looks at load, not at weights
			s.close("pod1")
			s.expect(s.open(4), 4, 0)
		}},
		{"wlc", []int{3, 1}, func(t *testing.T, s *scheduled) {
			s.expect(s.open(8), 6, 2)
			s.close("pod1")
			s.expect(s.open(5), 5, 0)
		}},
		{"sed", []int{5, 1}, func(t *testing.T, s *scheduled) {
			s.expect(s.open(4), 4, 0) // the shortest expected delay is always the strong one's
		}},
		{"nq", []int{5, 1}, func(t *testing.T, s *scheduled) {
			s.expect(s.open(2), 1, 1) // an idle endpoint gets the next connection
			s.expect(s.open(3), 3, 0)
		}},
		{"fo", []int{1, 2}, func(t *testing.T, s *scheduled) {
			s.expect(s.open(4), 0, 4)
			s.weights(1, 0)
			s.expect(s.open(4), 4, 0)
		}},
		{"ovf", []int{3, 2}, func(t *testing.T, s *scheduled) {
			s.expect(s.open(4), 4, 0) // full with one more than the weight
			s.expect(s.open(3), 0, 3)
		}},
		{"dh", []int{1, 1, 1}, func(t *testing.T, s *scheduled) {
			if who := s.ofClients(netlab.Client, netlab.Outside, netlab.Remote, "pod1", "pod2", "pod3"); len(who) != 1 {
				t.Errorf("one address is served by %v", who)
			}
		}},
		{"sh", []int{1, 1, 1}, func(_ *testing.T, s *scheduled) { s.clientsStick() }},
		{"mh", []int{1, 1, 1}, func(t *testing.T, s *scheduled) {
			s.clientsStick()
			before := s.byClient()
			s.weights(1, 1, 0)
			for client, who := range s.byClient() {
				if before[client] != "pod3" && before[client] != who {
					t.Errorf("%s was moved from %s to %s, although only pod3 went", client, before[client], who)
				}
			}
		}},
		{"lblc", []int{9, 9}, func(_ *testing.T, s *scheduled) { s.addressSticks() }},
		{"lblcr", []int{9, 9}, func(_ *testing.T, s *scheduled) { s.addressSticks() }},
	} {
		t.Run(s.name, func(t *testing.T) {
			on := &scheduled{node: n, name: s.name}
			on.node.t = t
			defer n.converge(t)
			on.weights(s.weights...)
			s.check(t, on)
		})
	}
}

// scheduled is a Service with a scheduler, and the open flows to it.
type scheduled struct {
	*node
	name  string
	flows map[string][]*netlab.Flow
}

// weights makes the pods the endpoints of the Service. Each test has its own address, because some schedulers remember
// clients.
func (s *scheduled) weights(weights ...int) {
	s.t.Helper()
	e := web(weights...)
	e.ClusterIP, e.Scheduler = s.addr().Addr(), s.name
	s.converge(s.t, e)
}

func (s *scheduled) addr() netip.AddrPort {
	sum := byte(0)
	for _, c := range []byte(s.name) {
		sum = sum*31 + c
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, 1, sum}), webAddr.Port())
}

// open opens k connections, leaves them open, and returns who answered.
func (s *scheduled) open(k int) []string {
	s.t.Helper()
	if s.flows == nil {
		s.flows = map[string][]*netlab.Flow{}
	}
	var who []string
	for range k {
		f, name := s.node.open(netlab.Client, s.addr())
		s.flows[name], who = append(s.flows[name], f), append(who, name)
	}
	return who
}

// close ends the connections of a pod, and waits until the kernel counts them as closed.
func (s *scheduled) close(pod string) {
	s.t.Helper()
	for _, f := range s.flows[pod] {
		f.Close()
	}
	delete(s.flows, pod)
	key := webKey
	key.Addr = s.addr()
	await(s.t, "connections to be over", func() error {
		for _, d := range must(s.kernel.(*Linux).ipvs.GetDestinations(service(Server{ServerKey: key}))) {
			if d.Address.String() == s.lab.Host(pod).IPv4.String() && d.ActiveConnections > 0 {
				return unix.EBUSY
			}
		}
		return nil
	})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// expect compares how often pod1 and pod2 answered with how often they should have.
func (s *scheduled) expect(who []string, pod1, pod2 int) {
	s.t.Helper()
	if c := count(who); c["pod1"] != pod1 || c["pod2"] != pod2 {
		s.t.Errorf("%s sent connections to %v, want %d to pod1 and %d to pod2", s.name, who, pod1, pod2)
	}
}

var clients = []string{netlab.Client, netlab.Outside, netlab.Remote}

// ofClients returns who answered two connections of each client.
func (s *scheduled) ofClients(from ...string) (who []string) {
	s.t.Helper()
	for _, c := range from {
		who = append(who, s.openMany(c, s.addr(), 2)...)
	}
	slices.Sort(who)
	return slices.Compact(who)
}

func (s *scheduled) byClient() map[string]string {
	s.t.Helper()
	m := map[string]string{}
	for _, c := range clients {
		_, m[c] = s.node.open(c, s.addr())
	}
	return m
}

// clientsStick expects that each client always meets the same pod, and that the clients do not all meet one pod.
func (s *scheduled) clientsStick() {
	s.t.Helper()
	for _, c := range clients {
		if who := s.ofClients(c, c); len(who) != 1 {
			s.t.Errorf("%s is served by %v", c, who)
		}
	}
	if who := s.ofClients(clients...); len(who) < 2 {
		s.t.Errorf("all clients are served by %v", who)
	}
}

// addressSticks expects that an address keeps its pod as long as the pod is not overloaded.
func (s *scheduled) addressSticks() {
	s.t.Helper()
	if who := count(s.open(6)); len(who) != 1 {
		s.t.Errorf("one address is served by %v", who)
	}
}

// TestMissingScheduler expects the error to name the module to load, and the Service.
func TestMissingScheduler(t *testing.T) {
	eachKernel(t, func(t *testing.T, r *rig) {
		if k, ok := r.kernel.(*Fake); ok {
			k.Schedulers = []string{"rr"}
		}
		b := r.backend(testSettings())
		bad, good := web(1), web(1)
		bad.Scheduler = "nonesuch"
		good.Key.Service.Name, good.ClusterIP = "good", netip.MustParseAddr("10.96.0.82")
		result := b.Apply(t.Context(), b.plan(t, bad, good))
		err := result.Refused[backends.ID(webKey.String())]
		if result.Err != nil || err == nil || !strings.Contains(err.Error(), "modprobe ip_vs_nonesuch") {
			t.Errorf("weir says %v, refused %v", result.Err, result.Refused)
		}
		if p := b.plan(t, good); strings.Contains(p.String(), "10.96.0.82") {
			t.Errorf("the good Service was not programmed:\n%s", p)
		}
	})
}
