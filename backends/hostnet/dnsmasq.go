package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// WayDnsmasq and WayNetworkManager have a dnsmasq ask weir for the names of the cluster, and others for all other names: one that
// the node runs, and one that NetworkManager runs. Names of addresses are not asked of weir, which would ask dnsmasq in turn for
// those of no Service.
const (
	WayDnsmasq        Way = "dnsmasq"
	WayNetworkManager Way = "networkmanager"
)

const (
	// restartTime limits how long the restart of a dnsmasq may take.
	restartTime = 20 * time.Second
	// heedTime is how long a dnsmasq that was restarted has for its first answer.
	heedTime = 3 * time.Second
)

// restarts returns the commands that restart the dnsmasq of a way, of which the first that the node has is used.
func restarts(way Way) (list [][]string) {
	if way == WayNetworkManager {
		return [][]string{{"nmcli", "general", "reload", "dns-full"}}
	}
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		list = append(list, []string{"systemctl", "try-restart", "dnsmasq.service"})
	}
	return append(list, []string{"rc-service", "dnsmasq", "restart"}, []string{"/etc/init.d/dnsmasq", "restart"})
}

// restart has the dnsmasq of a way read its configuration. A restart that has begun goes to its end, or the node could be without
// one: the end of ctx does not end it.
func (n *NodeNames) restart(ctx context.Context, way Way) error {
	if n.Root != "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), restartTime)
	defer cancel()
	for _, command := range restarts(way) {
		cmd := exec.CommandContext(ctx, command[0], command[1:]...)
		// A file, because the server that is started may keep it open.
		out, err := os.CreateTemp("", "weir-restart-*")
		if err != nil {
			return err
		}
		defer out.Close()
		_ = os.Remove(out.Name())
		cmd.Stderr = out
		switch err := cmd.Run(); {
		case err == nil:
			return nil
		case !errors.Is(err, exec.ErrNotFound) && !errors.Is(err, os.ErrNotExist):
			text := make([]byte, 1024)
			length, _ := out.ReadAt(text, 0)
			return fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, strings.TrimSpace(string(text[:length])))
		}
	}
	return errors.New("no program restarts dnsmasq here")
}

// heeded waits until the resolver of the node answers for the cluster.
func (n *NodeNames) heeded(ctx context.Context) error {
	asked := n.askedWithout()
	if n.wanted.Answers == nil || len(asked) == 0 {
		return nil
	}
	at := netip.AddrPortFrom(asked[0], 53)
	for deadline := time.Now().Add(heedTime); !n.wanted.Answers(at); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("%s does not answer for %s, although dnsmasq was restarted", at, n.wanted.Domain)
		}
	}
	return nil
}

// onNode reports whether an address is one of this node.
func onNode(a netip.Addr) bool {
	if a.IsLoopback() {
		return true
	}
	own, _ := Addresses()
	return slices.Contains(own, a)
}
