package hostnet

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"weir/backends/netlab"
)

// resolverNode is a node with files, and processes of weir on it.
type resolverNode struct {
	t           *testing.T
	root, state string
	log         bytes.Buffer
	names       *NodeNames
	hosts       []HostNames
}

func newResolverNode(t *testing.T, files map[string]string) *resolverNode {
	n := &resolverNode{t: t, root: t.TempDir(), state: t.TempDir(), hosts: []HostNames{
		{"api.default.svc.cluster.local", []netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd00::1")}},
		{"web.default.svc.cluster.local", []netip.Addr{netip.MustParseAddr("10.96.0.2")}},
	}}
	writeTree(t, n.root, files)
	n.restart()
	return n
}

// restart ends the process as a power cut would, and starts another.
func (n *resolverNode) restart() {
	n.log.Reset()
	n.names = NewNodeNames(hclog.New(&hclog.LoggerOptions{Output: &n.log}), n.state)
	n.names.Root = n.root
}

func (n *resolverNode) want(way Way, at string) {
	n.names.Want(&NamesWanted{Way: way, At: netip.MustParseAddrPort(at), Domain: "cluster.local", Hosts: func() []HostNames { return n.hosts }})
}

// ensure makes the node as wanted, and checks how much that changed.
func (n *resolverNode) ensure(when string, want int) {
	n.t.Helper()
	plan := n.names.Plan(n.t.Context())
	changed, err := n.names.Ensure(n.t.Context())
	if err != nil || len(changed) != want || len(plan.Changes) != want {
		n.t.Errorf("%s: changed %v, planned %v, %v; want %d", when, changed, plan.Changes, err, want)
	}
	if again := n.names.Plan(n.t.Context()); !again.Empty() {
		n.t.Errorf("%s: still differs: %v", when, again.Changes)
	}
}

func (n *resolverNode) read(name string) string {
	n.t.Helper()
	data, err := os.ReadFile(filepath.Join(n.root, name))
	if err != nil {
		n.t.Error(err)
	}
	return string(data)
}

func (n *resolverNode) expect(when, name, want string) {
	n.t.Helper()
	if got := n.read(name); got != want {
		n.t.Errorf("%s: %s is\n%s\nwant\n%s", when, name, got, want)
	}
}

const plainResolv, plainHosts = "# by hand\nsearch lan\nnameserver 192.0.2.53", "127.0.0.1 localhost\n10.0.0.1 lan"

// TestNodeNames has weir added to the files of a node, and taken back, byte for byte.
func TestNodeNames(t *testing.T) {
	const block = blockBegin + "nameserver 127.0.0.1\n" + blockEnd
	for _, tt := range []struct {
		what      string
		way       Way
		at        string
		files     map[string]string
		file, now string
	}{
		{"plain", WayAuto, "127.0.0.1:53", map[string]string{resolvConf: plainResolv, "etc/hosts": plainHosts}, resolvConf, block + plainResolv},
		{"asked for", WayResolvConf, "[::1]:53", map[string]string{resolvConf: plainResolv}, resolvConf, strings.ReplaceAll(block, "127.0.0.1", "::1") + plainResolv},
		{"no resolv.conf", WayAuto, "127.0.0.1:53", map[string]string{"etc/x": ""}, resolvConf, block},
		{"empty", WayAuto, "127.0.0.1:53", map[string]string{resolvConf: ""}, resolvConf, block},
		{"another port", WayAuto, "127.0.0.1:5353", map[string]string{resolvConf: plainResolv, "etc/hosts": plainHosts}, "etc/hosts", plainHosts + "\n" + blockBeginOpen +
			"10.96.0.1\tapi.default.svc.cluster.local\nfd00::1\tapi.default.svc.cluster.local\n10.96.0.2\tweb.default.svc.cluster.local\n" + blockEnd},
		{"hosts", WayHosts, "127.0.0.1:53", map[string]string{"etc/hosts": plainHosts + "\n"}, "etc/hosts", plainHosts + "\n" + blockBegin +
			"10.96.0.1\tapi.default.svc.cluster.local\nfd00::1\tapi.default.svc.cluster.local\n10.96.0.2\tweb.default.svc.cluster.local\n" + blockEnd},
		{"dnsmasq", WayAuto, "127.0.0.1:5353", map[string]string{resolvConf: "nameserver 127.0.0.1\n", dnsmasqDir + "/README": ""}, dnsmasqDir + "/weir.conf",
			blockBegin + "server=/cluster.local/127.0.0.1#5353\n" + blockEnd},
		{"NetworkManager", WayAuto, "127.0.0.1:5353", map[string]string{resolvConf: "nameserver 127.0.0.1\n", dnsmasqDir + "/README": "", managerDir + "/x": ""}, managerDir + "/weir.conf",
			blockBegin + "server=/cluster.local/127.0.0.1#5353\n" + blockEnd},
		{"a file of the same name", WayDnsmasq, "127.0.0.1:53", map[string]string{dnsmasqDir + "/weir.conf": "port=54\n"}, dnsmasqDir + "/weir.conf",
			blockBegin + "server=/cluster.local/127.0.0.1#53\n" + blockEnd + "port=54\n"},
	} {
		t.Run(tt.what, func(t *testing.T) {
			n := newResolverNode(t, tt.files)
			_, had := tt.files[tt.file]
			restored := func(when string) {
				t.Helper()
				if had {
					n.expect(when, tt.file, tt.files[tt.file])
				} else if n.names.exists(tt.file) {
					t.Errorf("%s: %s is still there", when, tt.file)
				}
				if data, err := os.ReadFile(filepath.Join(n.state, namesRecordFile)); err == nil && strings.Contains(string(data), "etc/") {
					t.Errorf("%s: the record is %s", when, data)
				}
			}
			for _, end := range []string{"end", "kill"} {
				n.want(tt.way, tt.at)
				n.ensure("set", 1)
				n.expect("set", tt.file, tt.now)
				n.ensure("again", 0)
				n.want(tt.way, tt.at)
				n.ensure("a new configuration", 0)
				if end == "kill" {
					n.restart()
					n.want(tt.way, tt.at)
					n.ensure("another process", 0)
					n.restart()
				}
				n.names.Want(nil)
				n.ensure(end, 1)
				restored(end)
			}
		})
	}
}

// TestNodeNamesDrift has other processes change the files meanwhile: what is theirs stays.
func TestNodeNamesDrift(t *testing.T) {
	n := newResolverNode(t, map[string]string{resolvConf: plainResolv, "etc/hosts": plainHosts})
	n.want(WayAuto, "127.0.0.1:53")
	n.ensure("set", 1)
	const block = blockBegin + "nameserver 127.0.0.1\n" + blockEnd
	for what, text := range map[string]string{
		"replaced":          "nameserver 192.0.2.1\n",
		"first":             "nameserver 192.0.2.1\n" + block + plainResolv,
		"without its end":   blockBegin + "nameserver 127.0.0.1\nnameserver 192.0.2.1\n",
		"without its begin": "nameserver 192.0.2.1\n" + blockEnd,
		"twice":             block + block + "nameserver 192.0.2.1\n",
		"another address":   strings.Replace(block, "127.0.0.1", "127.0.0.2", 1) + "nameserver 192.0.2.1\n",
	} {
		writeTree(t, n.root, map[string]string{resolvConf: text})
		rest, _, _ := cutBlock(text, oursIn(WayResolvConf))
		n.ensure(what, 1)
		n.expect(what, resolvConf, block+rest)
		if !strings.Contains(rest, "nameserver 192.0.2.1") || strings.Contains(rest, "127.0.0") {
			t.Errorf("%s: the rest is %q", what, rest)
		}
	}
	before := n.names.Modified()
	writeTree(t, n.root, map[string]string{resolvConf: "nameserver 192.0.2.1\n# longer\n"})
	if n.names.Modified() == before {
		t.Error("a change was not noticed")
	}
}

// TestNodeNamesSymlink keeps the symlink that /etc/resolv.conf is, and finds its block when the symlink has moved.
func TestNodeNamesSymlink(t *testing.T) {
	n := newResolverNode(t, map[string]string{"run/NetworkManager/resolv.conf": plainResolv, "run/other": "nameserver 192.0.2.9\n", "etc/x": ""})
	link := filepath.Join(n.root, resolvConf)
	if err := os.Symlink("../run/NetworkManager/resolv.conf", link); err != nil {
		t.Fatal(err)
	}
	n.want(WayAuto, "127.0.0.1:53")
	n.ensure("set", 1)
	if to, err := os.Readlink(link); err != nil || to != "../run/NetworkManager/resolv.conf" {
		t.Errorf("the symlink is %q, %v", to, err)
	}
	os.Remove(link)
	if err := os.Symlink("../run/other", link); err != nil {
		t.Fatal(err)
	}
	n.restart()
	n.want(WayAuto, "127.0.0.1:53")
	n.ensure("moved", 2)
	n.expect("moved", "run/NetworkManager/resolv.conf", plainResolv)
	n.names.Want(nil)
	n.ensure("end", 1)
	n.expect("end", "run/other", "nameserver 192.0.2.9\n")
}

// TestNodeNamesAttributes keeps mode, owner and attributes of a file.
func TestNodeNamesAttributes(t *testing.T) {
	n := newResolverNode(t, map[string]string{resolvConf: plainResolv})
	file := filepath.Join(n.root, resolvConf)
	if os.Geteuid() == 0 {
		if err := os.Chown(file, 12, 34); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(file, 0o640); err != nil {
		t.Fatal(err)
	}
	labelled := unix.Setxattr(file, "user.test", []byte("label"), 0) == nil
	stat := func() string {
		var st unix.Stat_t
		if err := unix.Stat(file, &st); err != nil {
			t.Fatal(err)
		}
		value := make([]byte, 16)
		size, _ := unix.Getxattr(file, "user.test", value)
		return fmt.Sprint(st.Mode, st.Uid, st.Gid, labelled && string(value[:size]) == "label")
	}
	before := stat()
	n.want(WayAuto, "127.0.0.1:53")
	n.ensure("set", 1)
	if now := stat(); now != before {
		t.Errorf("was %s, is %s", before, now)
	}
	n.names.Want(nil)
	n.ensure("end", 1)
	if now := stat(); now != before {
		t.Errorf("was %s, is %s at the end", before, now)
	}
	left, _ := filepath.Glob(filepath.Join(n.root, "etc", ".*"))
	if len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestNodeNamesMounted writes files in place that are mounted, as in a container, and goes on to the next way where it may not.
func TestNodeNamesMounted(t *testing.T) {
	netlab.Require(t)
	n := newResolverNode(t, map[string]string{resolvConf: plainResolv, "etc/hosts": plainHosts, "own": plainResolv})
	file := filepath.Join(n.root, resolvConf)
	if err := unix.Mount(filepath.Join(n.root, "own"), file, "", unix.MS_BIND, ""); err != nil {
		t.Fatal("bind mount: ", err)
	}
	defer unix.Unmount(file, unix.MNT_DETACH)
	n.want(WayAuto, "127.0.0.1:53")
	n.ensure("set", 1)
	if !strings.HasPrefix(n.read("own"), blockBegin) {
		t.Errorf("the mounted file is %q", n.read("own"))
	}
	n.names.Want(nil)
	n.ensure("end", 1)
	n.expect("end", "own", plainResolv)

	if err := unix.Mount("", file, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	n.want(WayAuto, "127.0.0.1:53")
	if changed, err := n.names.Ensure(t.Context()); err != nil || len(changed) != 1 || !strings.Contains(n.read("etc/hosts"), "web.default") {
		t.Errorf("read-only: %v, %v", changed, err)
	}
	n.want(WayResolvConf, "127.0.0.1:53")
	if _, err := n.names.Ensure(t.Context()); err == nil {
		t.Error("a read-only resolv.conf is no error")
	}
	n.expect("the only way failed", "etc/hosts", plainHosts)
}

// TestNodeNamesRefused keeps bad names and addresses out of /etc/hosts, and other ports out of resolv.conf.
func TestNodeNamesRefused(t *testing.T) {
	n := newResolverNode(t, map[string]string{"etc/hosts": plainHosts, resolvConf: plainResolv})
	a := netip.MustParseAddr("10.96.0.1")
	n.hosts = []HostNames{{"a b.default.svc.cluster.local", []netip.Addr{a}}, {"a.svc\n1.1.1.1 bank.example", []netip.Addr{a}}, {"", []netip.Addr{a}},
		{strings.Repeat("a", 64) + ".default.svc.cluster.local", []netip.Addr{a}}, {"lo.default.svc.cluster.local", []netip.Addr{netip.MustParseAddr("127.0.0.1")}}}
	n.want(WayHosts, "127.0.0.1:53")
	n.ensure("nothing is valid", 0)
	n.hosts = nil
	for i := range maxHostNames + 10 {
		n.hosts = append(n.hosts, HostNames{fmt.Sprintf("s%05d.default.svc.cluster.local", i), []netip.Addr{a}})
	}
	n.ensure("too many", 1)
	if got := strings.Count(n.read("etc/hosts"), "10.96.0.1"); got != maxHostNames || strings.Count(n.log.String(), "WARN") != 1 {
		t.Errorf("%d names; the log:\n%s", got, n.log.String())
	}
	n.want(WayResolvConf, "127.0.0.1:5353")
	if _, err := n.names.Ensure(t.Context()); err == nil || !strings.Contains(err.Error(), "--dns-listen 127.0.0.1:53") {
		t.Errorf("another port: %v", err)
	}
	n.expect("another way", "etc/hosts", plainHosts)
}

// TestCutBlock cuts what was added out of random texts, whole or damaged, and finds every other line.
func TestCutBlock(t *testing.T) {
	lines := []string{"a\n", "b", "\n", "nameserver 1.1.1.1\n", "x\n", ""}
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		text := ""
		for range r.IntN(5) {
			text += lines[r.IntN(len(lines))]
		}
		for _, now := range []string{prepended("nameserver 127.0.0.1\n", text), appended(text, "1.2.3.4 a.b.svc.c\n5.6.7.8 d.e.svc.c\n")} {
			if rest, _, clean := cutBlock(now, oursIn(WayResolvConf)); rest != text || !clean {
				t.Fatalf("%q: %q, %v", now, rest, clean)
			}
		}
		damaged := strings.Replace(prepended("nameserver 127.0.0.1\n", text), blockEnd, "", 1)
		if rest, _, clean := cutBlock(damaged, oursIn(WayResolvConf)); rest != text || clean {
			t.Fatalf("%q: %q, %v", damaged, rest, clean)
		}
	}
}

// TestNodeNamesDoctor says what is there, and what to do if its weir is gone.
func TestNodeNamesDoctor(t *testing.T) {
	n := newResolverNode(t, map[string]string{resolvConf: plainResolv})
	if checks := n.names.Doctor(false); checks != nil {
		t.Errorf("%+v", checks)
	}
	n.want(WayAuto, "127.0.0.1:53")
	n.ensure("set", 1)
	n.restart()
	if c := n.names.Doctor(true); len(c) != 1 || c[0].Mend != "" || !strings.Contains(c[0].Detail, "nameserver 127.0.0.1") {
		t.Errorf("%+v", c)
	}
	if c := n.names.Doctor(false); len(c) != 1 || c[0].Mend != "weir cleanup" {
		t.Errorf("%+v", c)
	}
}

// TestNodeNamesElsewhere tells files of the whole node, of which this test sees those of the machine from a network namespace of
// its own, from those that only processes beside this one see.
func TestNodeNamesElsewhere(t *testing.T) {
	netlab.Require(t)
	n := NewNodeNames(hclog.NewNullLogger(), "")
	for path, want := range map[string]bool{"/etc/resolv.conf": true, "/etc/not-there": true, "/run/resolv.conf": false} {
		if got := n.elsewhere(path); got != want {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "own"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(filepath.Join(dir, "own"), "/etc/hosts", "", unix.MS_BIND, ""); err != nil {
		t.Fatal("bind mount: ", err)
	}
	defer unix.Unmount("/etc/hosts", unix.MNT_DETACH)
	if n.elsewhere("/etc/hosts") {
		t.Error("a mounted /etc/hosts is taken for that of the machine")
	}
	if err := n.add(t.Context(), nodeName{way: WayResolvConf, path: "/etc/resolv.conf", text: "nameserver 127.0.0.1\n"}); err == nil {
		t.Fatal("the machine's /etc/resolv.conf was written")
	}
}

// TestReverseZones covers ranges by zones of names of addresses.
func TestReverseZones(t *testing.T) {
	for text, want := range map[string]string{
		"10.96.0.0/16": "96.10.in-addr.arpa", "10.96.0.0/15": "96.10.in-addr.arpa 97.10.in-addr.arpa", "10.0.0.0/8": "10.in-addr.arpa",
		"10.96.1.2/32": "2.1.96.10.in-addr.arpa", "0.0.0.0/0": "", "10.96.0.0/17": "", "fd00:10:96::/46": "4.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa 5.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa 6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa 7.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa",
	} {
		if got := strings.Join(ReverseZones(netip.MustParsePrefix(text)), " "); got != want {
			t.Errorf("%s: %s", text, got)
		}
	}
	if got := ReverseZones(netip.MustParsePrefix("10.96.0.0/12")); len(got) != 16 || got[15] != "111.10.in-addr.arpa" {
		t.Errorf("%v", got)
	}
}
