package netlab

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Host is one network namespace of a Lab. Its methods may be called from any goroutine.
type Host struct {
	Name string
	// IPv4 and IPv6 are the host's main addresses.
	IPv4, IPv6 netip.Addr

	lab   *Lab
	ns    netns.NsHandle
	nl    *netlink.Handle
	addrs []netip.Addr
}

// newHost makes an empty namespace whose loopback interface is up. The end of the test deletes it.
func newHost(t testing.TB, l *Lab, name string) *Host {
	t.Helper()
	h := &Host{Name: name, lab: l}
	err := onOwnThread(func() (err error) {
		h.ns, err = netns.New()
		return err
	})
	if err != nil {
		t.Fatalf("make network namespace %s: %v", name, err)
	}
	t.Cleanup(func() { h.ns.Close() })
	if h.nl, err = netlink.NewHandleAt(h.ns, syscall.NETLINK_ROUTE); err != nil {
		t.Fatalf("open netlink in %s: %v", name, err)
	}
	t.Cleanup(h.nl.Close)
	for _, s := range hostSysctls {
		h.sysctl(t, s.name, s.value)
	}
	lo, err := h.nl.LinkByName("lo")
	if err == nil {
		err = h.nl.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatalf("bring up loopback in %s: %v", name, err)
	}
	return h
}

// Do runs f with the calling thread in the host's namespace. Sockets that f opens and processes that it starts stay
// there. f must not start goroutines that depend on the namespace.
func (h *Host) Do(f func() error) error {
	return onOwnThread(func() error {
		if err := netns.Set(h.ns); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", h.Name, err)
		}
		return f()
	})
}

// onOwnThread runs f on a locked thread and returns the thread to its previous namespace.
func onOwnThread(f func() error) error {
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer func() {
		// A thread that cannot return stays locked, and ends with its goroutine.
		if netns.Set(home) == nil {
			runtime.UnlockOSThread()
		}
		home.Close()
	}()
	return f()
}

// Handle returns the netlink handle of the host's namespace.
func (h *Host) Handle() *netlink.Handle { return h.nl }

// Owns reports whether the Lab gave the host that address.
func (h *Host) Owns(a netip.Addr) bool { return slices.Contains(h.addrs, a) }

// AddAddress gives the host another address, on its loopback interface.
func (h *Host) AddAddress(t testing.TB, a netip.Addr) {
	t.Helper()
	lo, err := h.nl.LinkByName("lo")
	if err == nil {
		err = h.nl.AddrAdd(lo, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, a.BitLen())), Scope: int(netlink.SCOPE_HOST), Flags: ifaNoDAD})
	}
	if err != nil {
		t.Fatalf("%s: add address %s: %v", h.Name, a, err)
	}
	h.addrs = append(h.addrs, a)
}

// Addr returns the host's main address, of IPv6 or of IPv4.
func (h *Host) Addr(v6 bool) netip.Addr {
	if v6 {
		return h.IPv6
	}
	return h.IPv4
}

// Command prepares a process that Start will run in the host's namespace. The process dies with the test binary, and
// uses the Lab's xtables lock.
func (h *Host) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "XTABLES_LOCKFILE="+h.lab.XtablesLock())
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// Start starts a process in the host's namespace. The caller waits for it.
func (h *Host) Start(cmd *exec.Cmd) error { return h.Do(cmd.Start) }

// Exec runs a program in the host's namespace and returns its standard output. The error holds its standard error.
func (h *Host) Exec(ctx context.Context, name string, args ...string) (string, error) {
	cmd := h.Command(ctx, name, args...)
	return h.run(cmd)
}

// ExecInput runs a program like Exec, with standard input.
func (h *Host) ExecInput(ctx context.Context, input, name string, args ...string) (string, error) {
	cmd := h.Command(ctx, name, args...)
	cmd.Stdin = strings.NewReader(input)
	return h.run(cmd)
}

func (h *Host) run(cmd *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := h.Start(cmd); err != nil {
		return "", fmt.Errorf("%s: start %s: %w", h.Name, cmd.Path, err)
	}
	if err := cmd.Wait(); err != nil {
		return stdout.String(), fmt.Errorf("%s: %s: %w\n%s", h.Name, strings.Join(cmd.Args, " "), err, stderr.String())
	}
	return stdout.String(), nil
}

// sysctl writes a value below /proc/sys. It ignores a name that this kernel does not have.
func (h *Host) sysctl(t testing.TB, name, value string) {
	t.Helper()
	err := h.Do(func() error {
		return os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0)
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatalf("%s: set sysctl %s: %v", h.Name, name, err)
	}
}

// hostSysctls make a namespace answer at once and every time. They turn off the rate limit on ICMP errors, duplicate
// address detection, and waiting for routers.
var hostSysctls = []struct{ name, value string }{
	{"net/ipv4/icmp_ratelimit", "0"},
	{"net/ipv4/icmp_ratemask", "0"},
	{"net/ipv6/icmp/ratelimit", "0"},
	{"net/ipv4/conf/all/rp_filter", "0"},
	{"net/ipv4/conf/default/rp_filter", "0"},
	{"net/ipv4/conf/all/send_redirects", "0"},
	{"net/ipv4/conf/default/send_redirects", "0"},
	{"net/ipv6/conf/all/disable_ipv6", "0"},
	{"net/ipv6/conf/default/disable_ipv6", "0"},
	{"net/ipv6/conf/default/accept_dad", "0"},
	{"net/ipv6/conf/default/dad_transmits", "0"},
	{"net/ipv6/conf/default/accept_ra", "0"},
	{"net/ipv6/conf/default/router_solicitations", "0"},
}
