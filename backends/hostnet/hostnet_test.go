package hostnet

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weir/backends/netlab"
)

func TestMain(m *testing.M) { netlab.Main(m) }

// inNamespace moves the test into a new network namespace with the interfaces lo and eth0, both up.
func inNamespace(t *testing.T) {
	t.Helper()
	netlab.InNamespace(t)
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "peer0"}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"eth0", "peer0"} {
		if err := netlink.LinkSetUp(link(t, name)); err != nil {
			t.Fatal(err)
		}
	}
}

func link(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func addAddr(t *testing.T, iface, cidr string) {
	t.Helper()
	a, err := netlink.ParseAddr(cidr)
	if err != nil {
		t.Fatal(err)
	}
	a.Flags = unix.IFA_F_NODAD
	if err := netlink.AddrAdd(link(t, iface), a); err != nil {
		t.Fatalf("%s: %v", cidr, err)
	}
}

func addDefault(t *testing.T, gateway string) {
	t.Helper()
	gw := netip.MustParseAddr(gateway)
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link(t, "eth0").Attrs().Index, Gw: gw.AsSlice()}); err != nil {
		t.Fatal(err)
	}
}

func addrs(list ...string) []netip.Addr {
	out := []netip.Addr{}
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

var compareAddrs = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func TestAddresses(t *testing.T) {
	inNamespace(t)
	ipvs := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "weir-ipvs0"}, PeerName: "p1"}
	if err := netlink.LinkAdd(ipvs); err != nil {
		t.Fatal(err)
	}
	addAddr(t, "weir-ipvs0", "10.96.0.1/32")
	addAddr(t, "eth0", "192.0.2.7/24")
	addAddr(t, "eth0", "192.0.2.5/24")
	addAddr(t, "peer0", "192.0.2.5/32")
	addAddr(t, "eth0", "2001:db8:1::7/64")
	addAddr(t, "eth0", "fe80::7/64")
	addAddr(t, "lo", "127.0.0.2/32")

	got, err := Addresses()
	if err != nil {
		t.Fatal(err)
	}
	want := addrs("127.0.0.1", "127.0.0.2", "192.0.2.5", "192.0.2.7", "::1", "2001:db8:1::7")
	if diff := cmp.Diff(want, got, compareAddrs); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestPrimary(t *testing.T) {
	inNamespace(t)
	addAddr(t, "eth0", "198.51.100.9/24")
	addAddr(t, "peer0", "10.0.0.1/24")
	addAddr(t, "peer0", "2001:db8:1::1/64")
	addAddr(t, "eth0", "2001:db8:2::9/64")
	check := func(state string, want ...string) {
		t.Helper()
		list, err := Addresses()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(addrs(want...), Primary(list), compareAddrs); diff != "" {
			t.Errorf("%s (-want +got):\n%s", state, diff)
		}
	}
	check("no default route", "10.0.0.1", "2001:db8:1::1")
	addDefault(t, "198.51.100.1")
	addDefault(t, "2001:db8:2::1")
	check("default route", "198.51.100.9", "2001:db8:2::9")
	if got := Primary(addrs("127.0.0.1")); got != nil {
		t.Errorf("only loopback: %v", got)
	}
}

// sawAddr waits until the addresses found after some report include the wanted one.
func sawAddr(t *testing.T, seen <-chan []netip.Addr, want string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		select {
		case list := <-seen:
			if slices.ContainsFunc(list, func(a netip.Addr) bool { return a.String() == want }) {
				return
			}
		case <-deadline:
			t.Fatalf("%s was not reported", want)
		}
	}
}

func TestWatch(t *testing.T) {
	inNamespace(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen := make(chan []netip.Addr, 64)
	done := make(chan error, 1)
	inThisNamespace(t, func() {
		done <- Watch(ctx, func() {
			list, err := Addresses()
			if err != nil {
				t.Error(err)
			}
			seen <- list
		})
	})
	sawAddr(t, seen, "127.0.0.1")
	addAddr(t, "eth0", "192.0.2.7/24")
	sawAddr(t, seen, "192.0.2.7")
	addAddr(t, "eth0", "2001:db8:1::7/64")
	sawAddr(t, seen, "2001:db8:1::7")
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
}

// TestWatchSurvivesLostNotifications lets the socket overflow while the receiver is busy.
func TestWatchSurvivesLostNotifications(t *testing.T) {
	inNamespace(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen := make(chan []netip.Addr, 64)
	entered, leave := make(chan bool), make(chan bool)
	done := make(chan bool)
	inThisNamespace(t, func() {
		defer close(done)
		follow(ctx, 1, addressGroups, func() {
			entered <- true
			<-leave
			list, err := Addresses()
			if err != nil {
				t.Error(err)
			}
			seen <- list
		})
	})
	<-entered
	const many = 200
	for i := range many {
		addAddr(t, "eth0", netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}).String()+"/32")
	}
	leave <- true
	<-seen
	reports := make(chan int, 1)
	go func() {
		for n := 0; ; n++ {
			select {
			case <-entered:
				leave <- true
			case <-done:
				reports <- n
				return
			}
		}
	}()
	// The overflow is reported as a change, and later changes are seen.
	sawAddr(t, seen, "10.0.0.200")
	addAddr(t, "eth0", "10.0.1.1/32")
	sawAddr(t, seen, "10.0.1.1")
	cancel()
	<-done
	if n := <-reports; n >= many {
		t.Errorf("%d reports: nothing was lost, so that the test proves nothing", n)
	}
}

// inThisNamespace runs f in a goroutine that is in the test's namespace, and returns at once.
func inThisNamespace(t *testing.T, f func()) {
	t.Helper()
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		runtime.LockOSThread()
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		f()
	}()
}

func TestSysctl(t *testing.T) {
	root := t.TempDir()
	write := func(name, value string, mode fs.FileMode) {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(value), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("net/ipv4/ip_forward", "0\n", 0o644)
	write("net/ipv4/range", "1\t2\n", 0o444)
	write("net/conf/eth0.1/x", "1\n", 0o644)
	s := Sysctl{Root: root}
	tests := []struct {
		name, value string
		changed     bool
		err         string
	}{
		{"net.ipv4.ip_forward", "1", true, ""},
		{"net.ipv4.ip_forward", "1", false, ""},
		{"net.ipv4.range", "1 2", false, ""},
		{"net/conf/eth0.1/x", "2", true, ""},
		{"net.absent", "1", false, "no such file"},
		{"../../etc/passwd", "1", false, "not a name"},
		{"/etc/passwd", "1", false, "not a name"},
		{"", "1", false, "not a name"},
		{"net.ipv4", "1", false, "sysctl net.ipv4"},
	}
	for _, tt := range tests {
		changed, err := s.Ensure(tt.name, tt.value)
		if changed != tt.changed || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("Ensure(%q, %q): %v, %v", tt.name, tt.value, changed, err)
		}
	}
	if v, err := s.Get("net.ipv4.ip_forward"); v != "1" || err != nil {
		t.Errorf("got %q, %v", v, err)
	}
}

// TestForwarding checks parameters that weir does not set.
func TestForwarding(t *testing.T) {
	inNamespace(t)
	s := Sysctl{}
	if _, err := s.Ensure("net.ipv6.conf.all.forwarding", "0"); err != nil {
		t.Fatal(err)
	}
	err := Forwarding{IPv4: true, IPv6: true, Localhost: true}.Check(s)
	if err == nil || !strings.Contains(err.Error(), "net.ipv6.conf.all.forwarding is 0") || !strings.Contains(err.Error(), "accept_ra=2") {
		t.Errorf("error %v", err)
	}
	if err := (Forwarding{}).Check(s); err != nil {
		t.Errorf("nothing to check: %v", err)
	}
}

// readOnly remounts a directory read-only, even for root, in a new mount namespace.
func readOnly(t *testing.T, dir string) {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		t.Fatal(err)
	}
	for _, m := range []struct {
		source, target string
		flags          uintptr
	}{
		{"", "/", unix.MS_REC | unix.MS_PRIVATE},
		{dir, dir, unix.MS_BIND},
		{"", dir, unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY},
	} {
		if err := unix.Mount(m.source, m.target, "", m.flags, ""); err != nil {
			t.Fatalf("mount %s: %v", m.target, err)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}
