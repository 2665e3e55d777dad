package ipvs

import (
	"net/netip"
	"strings"
	"testing"

	mobyipvs "github.com/moby/ipvs"

	"weir/backends"
	"weir/backends/backendtest"
	"weir/backends/dataplane"
	"weir/backends/netlab"
)

// harness runs the suite of all backends on a rig.
type harness struct {
	*rig
	refused *string
}

func (h harness) Backend() backends.Backend {
	b := h.backend(testSettings())
	b.kernel = refusing{h.kernel, h.refused}
	return b
}

// refusing is a Kernel that refuses virtual servers at one address.
type refusing struct {
	Kernel
	addr *string
}

func (k refusing) Put(item backends.Item) error {
	if s, ok := item.(Server); ok && *k.addr != "" && s.Addr.Addr().String() == *k.addr {
		s.Scheduler = "nonesuch"
		if f, ok := k.Kernel.(*Fake); ok {
			f.Schedulers = []string{"rr", "wrr"}
		}
		item = s
	}
	return k.Kernel.Put(item)
}

func (h harness) Refuse(t *testing.T, key dataplane.ServicePortName) {
	for _, e := range backendtest.Sample() {
		if e.Key == key {
			*h.refused = e.ClusterIP.String()
		}
	}
}

var foreignServer = ServerKey{Family: dataplane.IPv4, Protocol: dataplane.TCP, Addr: netip.MustParseAddrPort("10.96.0.1:9999")}

// AddForeign makes a virtual server next to one of weir's on its address, and a rule.
func (h harness) AddForeign(t *testing.T) {
	const rules = "*nat\n:OTHER - [0:0]\n-A POSTROUTING -s 172.17.0.0/16 -j OTHER\n-A OTHER -j MASQUERADE\nCOMMIT\n"
	h.in(func() {
		if err := h.tables.Restore(t.Context(), dataplane.IPv4, []byte(rules)); err != nil {
			t.Fatal(err)
		}
	})
	switch k := h.kernel.(type) {
	case *Fake:
		k.Foreign[foreignServer] = "wlc"
	case *Linux:
		svc := service(Server{ServerKey: foreignServer, Scheduler: "wlc"})
		svc.Flags = 0
		if err := k.ipvs.NewService(svc); err != nil {
			t.Fatal(err)
		}
		if err := k.ipvs.NewDestination(svc, &mobyipvs.Destination{Address: []byte{192, 0, 2, 1}, Port: 9, Weight: 5}); err != nil {
			t.Fatal(err)
		}
	}
}

func (h harness) DumpForeign(t *testing.T) string {
	saved, err := h.tables.Save(t.Context(), dataplane.IPv4, "nat")
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	buf := make([]byte, 1<<20)
	n, _ := saved.Read(buf)
	for line := range strings.Lines(string(buf[:n])) {
		if !strings.Contains(line, prefix) && strings.Contains(line, "OTHER") {
			out.WriteString(line)
		}
	}
	switch k := h.kernel.(type) {
	case *Fake:
		out.WriteString(k.Foreign[foreignServer])
	case *Linux:
		svc := service(Server{ServerKey: foreignServer})
		there, err := k.ipvs.GetService(svc)
		if err != nil {
			t.Fatal(err)
		}
		list, err := k.ipvs.GetDestinations(svc)
		if err != nil || len(list) != 1 {
			t.Fatalf("destinations of the foreign server: %v, %v", list, err)
		}
		out.WriteString(there.SchedName + " " + list[0].Address.String())
	}
	return out.String()
}

func (h harness) Drifts() []backendtest.Drift {
	web := ServerKey{Family: dataplane.IPv4, Protocol: dataplane.TCP, Addr: netip.MustParseAddrPort("10.96.0.1:80")}
	dest := func(last string, weight uint16) Destination {
		return Destination{Server: web, Addr: netip.MustParseAddrPort("10.244.1." + last + ":8080"), Weight: weight}
	}
	del := func(name string, items ...backends.Item) backendtest.Drift {
		return backendtest.Drift{Name: name, Inject: func(t *testing.T) {
			for _, i := range items {
				if err := h.kernel.Delete(i); err != nil {
					t.Fatal(err)
				}
			}
		}}
	}
	put := func(name string, item backends.Item) backendtest.Drift {
		return backendtest.Drift{Name: name, Inject: func(t *testing.T) {
			if err := h.kernel.Put(item); err != nil {
				t.Fatal(err)
			}
		}}
	}
	alter := func(name string, change func(d *mobyipvs.Destination)) backendtest.Drift {
		return backendtest.Drift{Name: name, Inject: func(t *testing.T) { h.alter(t, dest("1", 1), change) }}
	}
	rules := func(name, table, lines string) backendtest.Drift {
		return backendtest.Drift{Name: name, Inject: func(t *testing.T) {
			h.in(func() {
				if err := h.tables.Restore(t.Context(), dataplane.IPv4, []byte("*"+table+"\n"+lines+"COMMIT\n")); err != nil {
					t.Fatal(err)
				}
			})
		}}
	}
	member := Member{Set: clusterSet + "4", Addr: web.Addr.Addr(), Protocol: dataplane.TCP, Port: 80}
	strange := member
	strange.Port = 81
	return []backendtest.Drift{
		del("ServerGone", Server{ServerKey: web}),
		del("DestinationGone", dest("1", 1)),
		del("AddressGone", Address{Addr: web.Addr.Addr()}),
		del("MemberGone", member),
		del("LinkGone", Link{}),
		put("WeightZero", dest("1", 0)), // row 4: a backend is left at weight 0
		put("WeightChanged", dest("2", 7)),
		put("SchedulerChanged", Server{ServerKey: web, Scheduler: "wrr"}),
		put("AffinityAdded", Server{ServerKey: web, Scheduler: "rr", Affinity: 60}),
		put("DestinationAdded", dest("99", 1)),
		alter("ForwardedOtherwise", func(d *mobyipvs.Destination) { d.ConnectionFlags = mobyipvs.ConnFwdDirectRoute }),
		alter("Bounded", func(d *mobyipvs.Destination) { d.UpperThreshold = 1 }),
		{Name: "Edited", Inject: func(t *testing.T) { h.edit(t, Server{ServerKey: web, Scheduler: "wlc"}) }},
		put("AddressAdded", Address{Addr: netip.MustParseAddr("192.0.2.99")}),
		put("MemberAdded", strange),
		put("TimeoutsChanged", Timeouts{TCP: 77e9}),
		rules("NATFlushed", "nat", "-F\n"),
		rules("HookGone", "filter", "-D INPUT -j WEIR-IPVS-INPUT\n"),
		rules("HookShadowed", "nat", "-I POSTROUTING 1 -j ACCEPT\n"),
		rules("RuleAdded", "filter", "-I WEIR-IPVS-FILTER 1 -j RETURN\n"),
		rules("ForeignChain", "mangle", ":WEIR-IPVS-OLD - [0:0]\n-A WEIR-IPVS-OLD -j RETURN\n"),
	}
}

// TestConformance runs the suite of all backends.
func TestConformance(t *testing.T) {
	eachKernel(t, func(t *testing.T, r *rig) {
		backendtest.Run(t, func(t *testing.T) backendtest.Harness {
			if r.host != nil {
				return harness{realRig(t, netlab.New(t, netlab.Topology{Pods: 1}).Node()), new(string)}
			}
			return harness{fakeRig(t), new(string)}
		})
	})
}
