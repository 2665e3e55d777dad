package hostnet

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"weir/backends/doctor"
)

// Resolvers reads which resolvers a node has. Root is "" but in tests.
type Resolvers struct{ Root string }

// The files that are read, below Root.
const (
	resolvConf     = "etc/resolv.conf"
	resolvedConf   = "run/systemd/resolve/resolv.conf" // what systemd-resolved asks itself
	dnsmasqDir     = "etc/dnsmasq.d"
	managerDir     = "etc/NetworkManager/dnsmasq.d"
	kubeletConf    = "var/lib/kubelet/config.yaml"
	podmanConf     = "etc/containers"
	maxResolvConf  = 1 << 16
	resolvedDropIn = "/etc/systemd/resolved.conf.d/weir.conf"
)

// resolvedStubs are the addresses of systemd-resolved.
var resolvedStubs = map[netip.Addr]bool{netip.MustParseAddr("127.0.0.53"): true, netip.MustParseAddr("127.0.0.54"): true}

func (r Resolvers) path(name string) string { return filepath.Join("/", r.Root, name) }

func (r Resolvers) exists(name string) bool {
	_, err := os.Stat(r.path(name))
	return err == nil
}

func (r Resolvers) read(name string) ([]netip.Addr, error) {
	f, err := os.Open(r.path(name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxResolvConf))
	return nameservers(string(text)), err
}

// nameservers returns the resolvers that the text of a resolv.conf names.
func nameservers(text string) (servers []netip.Addr) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(fields[1]); err == nil {
			servers = append(servers, a)
		}
	}
	return servers
}

// Asked returns the resolvers that processes of the node ask.
func (r Resolvers) Asked() ([]netip.Addr, error) { return r.read(resolvConf) }

// Upstream returns the resolvers that can be asked in place of those of the node. Of systemd-resolved they are the ones that it
// asks itself, because it may ask weir in turn.
func (r Resolvers) Upstream() ([]netip.Addr, error) {
	servers, err := r.Asked()
	if err != nil || len(servers) == 0 || !resolvedStubs[servers[0]] {
		return servers, err
	}
	if behind, err := r.read(resolvedConf); err == nil {
		return behind, nil
	}
	return servers, nil
}

// Modified returns a text that differs when Upstream may.
func (r Resolvers) Modified() string {
	text := ""
	for _, name := range []string{resolvConf, resolvedConf} {
		if info, err := os.Stat(r.path(name)); err == nil {
			text += fmt.Sprintln(info.ModTime(), info.Size())
		}
	}
	return text
}

// NamesForProcesses is the name of the Check of how processes find names.
const NamesForProcesses = "names for processes"

// Doctor checks whether the processes and the pods of the node find the names of Services, if weir answers for them at an
// address. answers reports whether a resolver answers for the domain.
func (r Resolvers) Doctor(weir netip.AddrPort, domain string, answers func(netip.AddrPort) bool) []doctor.Check {
	host := doctor.Check{Name: NamesForProcesses, State: doctor.OK}
	if !answers(weir) {
		host.Detail = fmt.Sprintf("not asked for: nothing answers for %s at %s, as weir run --dns would", domain, weir)
		return []doctor.Check{host}
	}
	servers, err := r.Asked()
	switch {
	case err != nil:
		host.State, host.Detail = doctor.Advice, fmt.Sprintf("the resolvers of this node cannot be read: %v", err)
	case len(servers) == 0:
		host.State, host.Detail, host.Mend = doctor.Advice, "/etc/resolv.conf names no resolver", r.mend(weir, domain, nil)
	case answers(netip.AddrPortFrom(servers[0], 53)):
		host.Detail = fmt.Sprintf("%s of /etc/resolv.conf answers for %s", servers[0], domain)
	default:
		host.State, host.Mend = doctor.Advice, r.mend(weir, domain, servers)
		host.Detail = fmt.Sprintf("processes of this node find no names of Services: they ask %s, which does not answer for %s", servers[0], domain)
	}
	return append([]doctor.Check{host}, r.pods(domain, answers)...)
}

// mend returns the command that has the resolver of the node ask weir.
func (r Resolvers) mend(weir netip.AddrPort, domain string, servers []netip.Addr) string {
	at := weir.Addr().String()
	switch {
	case len(servers) > 0 && resolvedStubs[servers[0]]:
		if weir.Port() != 53 {
			at = weir.String()
		}
		return fmt.Sprintf(`mkdir -p %s; printf '[Resolve]\nDNS=%s\nDomains=~%s\n' > %s; systemctl restart systemd-resolved`,
			filepath.Dir(resolvedDropIn), at, domain, resolvedDropIn)
	case r.exists(managerDir):
		return fmt.Sprintf("echo server=/%s/%s#%d > /%s/weir.conf; nmcli general reload", domain, at, weir.Port(), managerDir)
	case r.exists(dnsmasqDir):
		return fmt.Sprintf("echo server=/%s/%s#%d > /%s/weir.conf; systemctl restart dnsmasq", domain, at, weir.Port(), dnsmasqDir)
	case weir.Port() != 53:
		return fmt.Sprintf("give weir run --dns-listen %s:53, since /etc/resolv.conf can name no other port", at)
	}
	return fmt.Sprintf(`printf 'nameserver %s\n' | cat - /etc/resolv.conf > /etc/resolv.conf.weir; cat /etc/resolv.conf.weir > /etc/resolv.conf`, at)
}

// pods checks where the kubelet of the node and podman have pods ask.
func (r Resolvers) pods(domain string, answers func(netip.AddrPort) bool) (checks []doctor.Check) {
	if text, err := os.ReadFile(r.path(kubeletConf)); err == nil {
		c := doctor.Check{Name: "names for pods", State: doctor.Advice, Detail: "the kubelet's configuration has no clusterDNS", Mend: "set clusterDNS: [10.96.0.10] in /" + kubeletConf}
		if a, ok := clusterDNS(string(text)); ok && answers(netip.AddrPortFrom(a, 53)) {
			c.State, c.Detail, c.Mend = doctor.OK, fmt.Sprintf("the kubelet's clusterDNS, %s, answers for %s", a, domain), ""
		} else if ok {
			c.Detail = fmt.Sprintf("the kubelet's clusterDNS, %s, does not answer for %s", a, domain)
			c.Mend = "give weir run --dns-listen with an address of this node, to which the Service kube-dns then leads"
		}
		checks = append(checks, c)
	}
	if r.exists(podmanConf) {
		checks = append(checks, doctor.Check{Name: "names for podman", State: doctor.OK,
			Detail: fmt.Sprintf("give podman run --dns and the address of weir or of kube-dns, and --dns-search default.svc.%s; podman play kube reads dnsConfig", domain)})
	}
	return checks
}

// clusterDNS returns the first address of a kubelet's clusterDNS.
func clusterDNS(text string) (netip.Addr, bool) {
	_, rest, ok := strings.Cut("\n"+text, "\nclusterDNS:")
	if !ok {
		return netip.Addr{}, false
	}
	for _, field := range strings.FieldsFunc(rest, func(c rune) bool { return strings.ContainsRune(" \t\n-[],\"'", c) }) {
		a, err := netip.ParseAddr(field)
		return a, err == nil
	}
	return netip.Addr{}, false
}
