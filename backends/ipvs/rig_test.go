package ipvs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	mobyipvs "github.com/moby/ipvs"

	"weir/backends"
	"weir/backends/backendtest"
	"weir/backends/hostnet"
	"weir/backends/netlab"
)

func TestMain(m *testing.M) { netlab.Main(m) }

// rig is a kernel to test on, real or a model.
type rig struct {
	kernel Kernel
	tables Tables
	sysctl hostnet.Sysctl
	// in runs something where the kernel is.
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
	return &rig{kernel: NewFake(), tables: newFakeTables(), sysctl: hostnet.Sysctl{Root: dir}, in: func(f func()) { f() }}
}

// realRig opens the kernel in a host's namespace, or skips the test where there is no IPVS.
func realRig(t testing.TB, host *netlab.Host) *rig {
	r := &rig{host: host, tables: execTables{host}}
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

// mustHold fails the test unless the virtual server is there, without weir's mark.
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

func testConfig() backends.Config {
	return backends.Config{
		Families:       []backends.Family{backends.IPv4, backends.IPv6},
		MasqueradeMark: 1 << 14,
		LocalDetector:  backends.LocalDetector{PodCIDRs: []netip.Prefix{netlab.PodCIDR4, netlab.PodCIDR6}},
		NodeAddresses:  []netip.Addr{netlab.NodeIPv4, netlab.NodeIPv6},
	}
}

func testSettings() Settings {
	return Settings{Kernel: [2]int{6, 1}, DrainLimit: DrainLimit, TCPTimeout: 800e9}
}

// backend returns a backend on the rig, all of whose work is done where the kernel is.
func (r *rig) backend(set Settings) *inside { return r.with(testConfig(), set) }

func (r *rig) with(cfg backends.Config, set Settings) *inside {
	b := New(cfg, set, r.tables, r.kernel)
	b.sysctl = r.sysctl
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

// converge makes the kernel hold what the entries need, and says what was changed.
func (b *inside) converge(t testing.TB, entries ...*backends.Entry) backends.Plan {
	t.Helper()
	plan := b.plan(t, entries...)
	if r := b.Apply(t.Context(), plan); r.Err != nil || len(r.Refused) > 0 {
		t.Fatalf("apply: %v, refused %v", r.Err, r.Refused)
	}
	return plan
}

// plan returns what would have to be changed for the entries.
func (b *inside) plan(t testing.TB, entries ...*backends.Entry) backends.Plan {
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

func (b *inside) desired(t testing.TB, entries ...*backends.Entry) map[backends.ID]backends.Item {
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

// execTables runs iptables-nft in a host's namespace.
type execTables struct{ host *netlab.Host }

func (x execTables) program(f backends.Family, verb string) string {
	if f == backends.IPv6 {
		return "ip6tables-nft-" + verb
	}
	return "iptables-nft-" + verb
}

func (x execTables) Save(ctx context.Context, f backends.Family, table string) (io.ReadCloser, error) {
	var args []string
	if table != "" {
		args = []string{"-t", table}
	}
	out, err := x.host.Exec(ctx, x.program(f, "save"), args...)
	return io.NopCloser(strings.NewReader(out)), err
}

func (x execTables) Restore(ctx context.Context, f backends.Family, input []byte) error {
	_, err := x.host.ExecInput(ctx, string(input), x.program(f, "restore"), "--noflush")
	return err
}

// fakeTables keeps rules as they are written.
type fakeTables map[string]map[string][]string

func newFakeTables() fakeTables { return fakeTables{} }

func (m fakeTables) table(f backends.Family, name string) map[string][]string {
	key := tag(f) + " " + name
	if m[key] == nil {
		m[key] = map[string][]string{"PREROUTING": nil, "INPUT": nil, "FORWARD": nil, "OUTPUT": nil, "POSTROUTING": nil}
	}
	return m[key]
}

func (m fakeTables) Save(_ context.Context, f backends.Family, table string) (io.ReadCloser, error) {
	var out bytes.Buffer
	names := tables
	if table != "" {
		names = []string{table}
	}
	for _, name := range names {
		t := m.table(f, name)
		out.WriteString("*" + name + "\n")
		for _, c := range slices.Sorted(maps.Keys(t)) {
			out.WriteString(":" + c + " - [0:0]\n")
		}
		for _, c := range slices.Sorted(maps.Keys(t)) {
			for _, r := range t[c] {
				out.WriteString("-A " + c + " " + r + "\n")
			}
		}
	}
	return io.NopCloser(&out), nil
}

func (m fakeTables) Restore(_ context.Context, f backends.Family, input []byte) error {
	var t map[string][]string
	for line := range strings.Lines(string(input)) {
		line = strings.TrimSuffix(line, "\n")
		verb, rest, _ := strings.Cut(line, " ")
		chain, rule, _ := strings.Cut(rest, " ")
		switch {
		case line[0] == '*':
			t = m.table(f, line[1:])
		case line[0] == ':':
			name, _, _ := strings.Cut(line[1:], " ")
			t[name] = nil
		case verb == "-A":
			t[chain] = append(t[chain], rule)
		case verb == "-I":
			t[chain] = slices.Insert(t[chain], 0, strings.TrimPrefix(rule, "1 "))
		case verb == "-D":
			i := slices.Index(t[chain], rule)
			if i < 0 {
				return errors.New("no such rule: " + line)
			}
			t[chain] = slices.Delete(t[chain], i, i+1)
		case verb == "-F" && chain != "":
			t[chain] = nil
		case verb == "-F":
			for c := range t {
				t[c] = nil
			}
		case verb == "-X":
			delete(t, chain)
		}
	}
	return nil
}
