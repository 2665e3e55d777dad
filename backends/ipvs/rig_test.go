package ipvs

import (
	"context"
	"errors"
	"io"
	"iter"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	mobyipvs "github.com/moby/ipvs"

	"weir/backends"
	"weir/backends/backendtest"
	"weir/backends/dataplane"
	"weir/backends/hostnet"
	"weir/backends/netlab"
	"weir/backends/xtables"
)

func TestMain(m *testing.M) { netlab.Main(m) }

// rig is a kernel to test on, real or a model.
type rig struct {
	kernel Kernel
	tables xtables.Kernel
	sysctl hostnet.Sysctl
	// in runs a function in the namespace of the kernel.
	in func(func())
	// host is nil for a model.
	host *netlab.Host
}

// eachKernel runs a test on the model and, where there is IPVS, on the kernel.
func eachKernel(t *testing.T, test func(t *testing.T, r *rig)) {
	t.Run("fake", func(t *testing.T) { test(t, fakeRig(t)) })
	t.Run("kernel", func(t *testing.T) { test(t, realRig(t, netlab.New(t, netlab.Topology{}).Node())) })
}

func fakeRig(t testing.TB) *rig {
	dir := t.TempDir()
	for _, name := range []string{"vs/conntrack", "vs/conn_reuse_mode", "vs/expire_nodest_conn", "vs/expire_quiescent_template", "conf/all/arp_ignore", "conf/all/arp_announce"} {
		file := filepath.Join(dir, "net/ipv4", name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte("0\n"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return &rig{kernel: NewFake(), tables: xtables.NewFake(), sysctl: hostnet.Sysctl{Root: dir}, in: func(f func()) { f() }}
}

// realRig opens the kernel in a host's namespace, or skips the test if there is no IPVS.
func realRig(t testing.TB, host *netlab.Host) *rig {
	r := &rig{host: host, tables: execTables{host: host}}
	r.in = func(f func()) {
		if err := host.Do(func() error { f(); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	r.in(func() {
		netlab.RequireIPVS(t, Probe(t.Context()))
		k, err := Open()
		if err != nil {
			t.Fatal(err)
		}
		r.kernel = k
		t.Cleanup(k.Close)
	})
	return r
}

// edit changes a virtual server as ipvsadm -E does: it loses weir's mark.
func (r *rig) edit(t *testing.T, s Server) {
	t.Helper()
	switch k := r.kernel.(type) {
	case *Fake:
		delete(k.servers, s.ServerKey)
		k.Foreign[s.ServerKey] = s.Scheduler
	case *Linux:
		svc := service(s)
		svc.Flags = 0
		if err := k.ipvs.UpdateService(svc); err != nil {
			t.Fatal(err)
		}
	}
}

// mustHold fails the test unless the virtual server exists without weir's mark.
func (r *rig) mustHold(t *testing.T, s Server) {
	t.Helper()
	switch k := r.kernel.(type) {
	case *Fake:
		if k.Foreign[s.ServerKey] != s.Scheduler {
			t.Errorf("%s is gone", s)
		}
	case *Linux:
		if there, err := k.ipvs.GetService(service(s)); err != nil || owned(there) || there.SchedName != s.Scheduler {
			t.Errorf("instead of %s there is %+v, %v", s, there, err)
		}
	}
}

// alter changes a destination as ipvsadm -e can.
func (r *rig) alter(t *testing.T, d Destination, change func(d *mobyipvs.Destination)) {
	t.Helper()
	switch k := r.kernel.(type) {
	case *Fake:
		d.Altered = true
		k.destinations[d.Server][d.ID()] = d
	case *Linux:
		dest := destination(d)
		change(dest)
		if err := k.ipvs.UpdateDestination(service(Server{ServerKey: d.Server}), dest); err != nil {
			t.Fatal(err)
		}
	}
}

func testConfig() dataplane.Config {
	return dataplane.Config{
		Families:       []dataplane.Family{dataplane.IPv4, dataplane.IPv6},
		MasqueradeMark: 1 << 14,
		LocalDetector:  dataplane.LocalDetector{PodCIDRs: []netip.Prefix{netlab.PodCIDR4, netlab.PodCIDR6}},
		NodeAddresses:  []netip.Addr{netlab.NodeIPv4, netlab.NodeIPv6},
	}
}

func testSettings() Settings {
	return Settings{Kernel: [2]int{6, 1}, DrainLimit: DrainLimit, TCPTimeout: 800e9}
}

// backend returns a backend on the rig that works in the rig's namespace.
func (r *rig) backend(set Settings) *inside { return r.with(testConfig(), set) }

func (r *rig) with(cfg dataplane.Config, set Settings) *inside {
	b := New(cfg, set, r.tables, r.kernel)
	r.in(func() {
		for _, p := range set.Parameters() {
			_, _ = r.sysctl.Ensure(p.Name, p.Value) // without IPVS there are none, and the test is skipped
		}
	})
	return &inside{b, r}
}

// inside is a Backend that works in the namespace of its rig.
type inside struct {
	*Backend
	rig *rig
}

func (b *inside) Observe(ctx context.Context) iter.Seq2[backends.Item, error] {
	return func(yield func(backends.Item, error) bool) {
		var items []backends.Item
		var err error
		b.rig.in(func() { items, err = b.read(ctx) })
		if err != nil {
			yield(nil, err)
			return
		}
		for _, i := range items {
			if !yield(i, nil) {
				return
			}
		}
	}
}

func (b *inside) Apply(ctx context.Context, p backends.Plan) (result backends.Result) {
	b.rig.in(func() { result = b.Backend.Apply(ctx, p) })
	return result
}

// converge makes the kernel hold the Items of the entries, and returns the changes.
func (b *inside) converge(t testing.TB, entries ...*dataplane.ServicePort) backends.Plan {
	t.Helper()
	plan := b.plan(t, entries...)
	if r := b.Apply(t.Context(), plan); r.Err != nil || len(r.Refused) > 0 {
		t.Fatalf("apply: %v, refused %v", r.Err, r.Refused)
	}
	return plan
}

// plan returns the changes that the entries require.
func (b *inside) plan(t testing.TB, entries ...*dataplane.ServicePort) backends.Plan {
	t.Helper()
	want := b.desired(t, entries...)
	have := map[backends.ID]backends.Item{}
	for i, err := range b.Observe(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		have[i.ID()] = i
	}
	return backendtest.Diff(have, want)
}

func (b *inside) desired(t testing.TB, entries ...*dataplane.ServicePort) map[backends.ID]backends.Item {
	t.Helper()
	want := map[backends.ID]backends.Item{}
	for _, i := range b.Base() {
		want[i.ID()] = i
	}
	for _, e := range entries {
		items, err := b.Render(e)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range items {
			want[i.ID()] = i
		}
	}
	return want
}

// execTables runs iptables-nft in a host's namespace. It has no generation and no counters.
type execTables struct {
	xtables.Kernel
	host *netlab.Host
}

func (x execTables) Generation(context.Context) (uint64, error) { return 0, errors.New("unknown") }

func (x execTables) program(f dataplane.Family, verb string) string {
	if f == dataplane.IPv6 {
		return "ip6tables-nft-" + verb
	}
	return "iptables-nft-" + verb
}

func (x execTables) Save(ctx context.Context, f dataplane.Family, table string) (io.ReadCloser, error) {
	var args []string
	if table != "" {
		args = []string{"-t", table}
	}
	out, err := x.host.Exec(ctx, x.program(f, "save"), args...)
	return io.NopCloser(strings.NewReader(out)), err
}

func (x execTables) Restore(ctx context.Context, f dataplane.Family, input []byte) error {
	_, err := x.host.ExecInput(ctx, string(input), x.program(f, "restore"), "--noflush")
	return err
}
