package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// WayResolved has systemd-resolved ask weir for the names of the cluster, and others for all other names. systemd-resolved has
// such settings by link, keeps none for the loopback interface, and leaves those of other links to their managers. So weir
// makes a link of its own, which ends with its process.
const WayResolved Way = "resolved"

const (
	namesLink = "weir-names0"
	// systemBus is where resolvectl reaches systemd-resolved.
	systemBus = "/run/dbus/system_bus_socket"
	// resolvectlTime limits how long systemd-resolved may take for an answer.
	resolvectlTime = 3 * time.Second
	// maxReverseZones bounds how many zones of addresses are asked of weir.
	maxReverseZones = 64
)

// namesLinkAddr is the address of the link, because systemd-resolved does not use links without one: the IPv4 dummy address
// (RFC 7600), which is no node's and not routed.
var namesLinkAddr = netip.MustParsePrefix("192.0.0.8/32")

// resolvedText returns what systemd-resolved gets: the server, and the domains that it asks it for.
func (n *NodeNames) resolvedText() string {
	at := n.wanted.At.String()
	if n.wanted.At.Port() == 53 {
		at = n.wanted.At.Addr().String()
	}
	domains := []string{"~" + n.wanted.Domain}
	for _, r := range n.wanted.Ranges {
		zones := ReverseZones(r)
		if len(domains)+len(zones) > maxReverseZones {
			continue
		}
		for _, z := range zones {
			domains = append(domains, "~"+z)
		}
	}
	slices.Sort(domains)
	return at + " " + strings.Join(domains, " ") + "\n"
}

// ReverseZones returns the zones of names of addresses that cover a range, or nil if it would take more than maxReverseZones.
func ReverseZones(r netip.Prefix) (zones []string) {
	step, suffix := 8, "in-addr.arpa"
	if r.Addr().Is6() {
		step, suffix = 4, "ip6.arpa"
	}
	whole := (r.Bits() + step - 1) / step // labels
	spare := whole*step - r.Bits()
	if 1<<spare > maxReverseZones || whole == 0 {
		return nil
	}
	bytes := r.Masked().Addr().AsSlice()
	for i := range 1 << spare {
		name := suffix
		for l := range whole {
			var value int
			if step == 8 {
				value = int(bytes[l])
			} else {
				value = int(bytes[l/2]>>(4*(1-l%2))) & 15
			}
			if l == whole-1 {
				value |= i
			}
			if step == 8 {
				name = fmt.Sprintf("%d.%s", value, name)
			} else {
				name = fmt.Sprintf("%x.%s", value, name)
			}
		}
		zones = append(zones, name)
	}
	return zones
}

// lookResolved returns what systemd-resolved has for the link, if there is one.
func (n *NodeNames) lookResolved(ctx context.Context) (nodeName, bool) {
	i := nodeName{way: WayResolved, path: "systemd-resolved"}
	if n.Root != "" {
		return i, false
	}
	if _, err := net.InterfaceByName(namesLink); err != nil {
		return i, false
	}
	servers, err := resolvectl(ctx, "dns", namesLink)
	domains, err2 := resolvectl(ctx, "domain", namesLink)
	if err != nil || err2 != nil {
		i.broken = "cannot be read"
		return i, true
	}
	list := strings.Fields(afterColon(domains))
	slices.Sort(list)
	i.text = strings.Join(append(strings.Fields(afterColon(servers)), list...), " ") + "\n"
	return i, true
}

// afterColon returns what "Link 2 (weir-names0): 127.0.0.1" says.
func afterColon(text string) string {
	_, rest, _ := strings.Cut(text, "):")
	return rest
}

// setResolved makes the link, unless this process has it, and what systemd-resolved has for it.
func (n *NodeNames) setResolved(ctx context.Context, i nodeName) error {
	if bus, err := filepath.EvalSymlinks(systemBus); err != nil {
		return fmt.Errorf("systemd-resolved cannot be reached: %w", err)
	} else if n.elsewhere(bus) {
		return fmt.Errorf("systemd-resolved is that of processes in another network namespace")
	}
	fields := strings.Fields(i.text)
	if len(fields) < 2 {
		return errors.New("there is nothing to ask systemd-resolved for")
	}
	if err := n.openLink(); err != nil {
		return fmt.Errorf("the link %s, for what systemd-resolved asks weir, cannot be made: %w", namesLink, err)
	}
	for _, args := range [][]string{
		// First what keeps all other names away from weir, and what it does not do.
		{"default-route", namesLink, "no"}, {"llmnr", namesLink, "no"}, {"mdns", namesLink, "no"},
		{"dnsovertls", namesLink, "no"}, {"dnssec", namesLink, "no"},
		append([]string{"domain", namesLink}, fields[1:]...),
		{"dns", namesLink, fields[0]},
	} {
		if _, err := resolvectl(ctx, args...); err != nil {
			n.closeLink()
			return err
		}
	}
	return nil
}

// dropResolved removes the link, with what systemd-resolved has for it.
func (n *NodeNames) dropResolved() error {
	if n.link != nil {
		n.closeLink()
		return nil
	}
	l, err := netlink.LinkByName(namesLink)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	} else if err != nil {
		return err
	}
	return netlink.LinkDel(l)
}

// openLink makes the link if this process does not have it: one that exists without a packet ever leaving the node.
func (n *NodeNames) openLink() error {
	if _, err := net.InterfaceByName(namesLink); err == nil && n.link != nil {
		return nil
	}
	n.closeLink()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("/dev/net/tun: %w", err)
	}
	n.link = os.NewFile(uintptr(fd), "/dev/net/tun")
	req, err := unix.NewIfreq(namesLink)
	if err == nil {
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err == nil {
		err = setUpLink()
	}
	if err != nil {
		n.closeLink()
	}
	return err
}

func setUpLink() error {
	l, err := netlink.LinkByName(namesLink)
	if err != nil {
		return err
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: namesLinkAddr.Addr().AsSlice(), Mask: net.CIDRMask(32, 32)}, Scope: int(netlink.SCOPE_SITE)}
	if err := netlink.AddrReplace(l, addr); err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

func (n *NodeNames) closeLink() {
	if n.link != nil {
		n.link.Close()
		n.link = nil
	}
}

// resolvectl talks to systemd-resolved, and returns what it prints.
func resolvectl(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, resolvectlTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "resolvectl", args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0")
	cmd.WaitDelay = time.Second
	var out, errOut limitedBuffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("resolvectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errOut.String()))
	}
	return out.String(), nil
}

// limitedBuffer keeps the first 64 KiB of what is written.
type limitedBuffer struct{ strings.Builder }

// Write implements io.Writer.
func (b *limitedBuffer) Write(p []byte) (int, error) {
	b.Builder.Write(p[:min(len(p), max(0, 64<<10-b.Len()))])
	return len(p), nil
}

// resolvedModified returns a text that differs when what systemd-resolved has for the link may.
func resolvedModified() string {
	l, err := net.InterfaceByName(namesLink)
	if err != nil {
		return ""
	}
	text := fmt.Sprintln(namesLink, l.Index, l.Flags&net.FlagUp)
	if fi, err := os.Stat(fmt.Sprintf("/run/systemd/resolve/netif/%d", l.Index)); err == nil {
		text += fmt.Sprintln(fi.ModTime(), fi.Size())
	}
	return text
}
