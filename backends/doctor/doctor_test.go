package doctor

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "write the golden report instead of comparing with it")

// sample returns the report of a node that can run some of the modes.
func sample(asked string) Report {
	node := []Check{
		{"kernel", OK, "6.1.0", ""},
		{"net.ipv6.conf.all.forwarding", Advice, "0: IPv6 packets are not forwarded", "sysctl -w net.ipv6.conf.all.forwarding=1"},
	}
	return NewReport(node, []Section{
		{Name: "iptables", Checks: []Check{{"iptables", Missing, "iptables-nft-save was not found", "apt-get install iptables"}}},
		{Name: "nftables", Checks: []Check{{"nf_tables", OK, "the kernel answers", "modprobe nf_tables"}, {"iptables", Advice, "is not there to remove old rules", "apt-get install iptables"},
			{"conntrack", Advice, "cannot be read", "apt-get install iptables"}}},
		{Name: "ipvs", Checks: []Check{{"IPVS", OK, "module ip_vs is loaded", ""}}, NeedsOneOf: []string{"iptables"}},
		{Name: "userspace", NeedsOneOf: []string{"iptables", "nftables"}},
	}, asked, "iptables", "nftables")
}

func TestVerdict(t *testing.T) {
	for _, tc := range []struct {
		asked, mode string
		usable      bool
	}{
		{"", "nftables", true},
		{"nftables", "nftables", true},
		{"iptables", "iptables", false},
		{"ipvs", "ipvs", false}, // for want of iptables
		{"userspace", "userspace", true},
	} {
		if r := sample(tc.asked); r.Mode != tc.mode || r.Usable != tc.usable {
			t.Errorf("asked about %q: mode %q, usable %v; want %q, %v", tc.asked, r.Mode, r.Usable, tc.mode, tc.usable)
		}
	}
	for asked, want := range map[string]string{"": "\nweir can run here in mode nftables, and in mode userspace.\n", "nftables": "\nweir can run here in mode nftables.\n"} {
		var text strings.Builder
		if err := sample(asked).WriteText(&text, nil); err != nil || !strings.HasSuffix(text.String(), want) {
			t.Errorf("asked about %q: %v, %s", asked, err, text.String())
		}
	}
	if r := NewReport(nil, []Section{{Name: "iptables", Checks: []Check{{State: Missing}}}}, "", "iptables"); r.Mode != "" || r.Usable {
		t.Errorf("with no usable mode: mode %q, usable %v", r.Mode, r.Usable)
	}
}

func TestWriteText(t *testing.T) {
	var got strings.Builder
	if err := sample("ipvs").WriteText(&got, nil); err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/report.txt"
	if *update {
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(golden, []byte(got.String()), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("-golden +got, -update accepts it:\n%s", diff)
	}
}

// modulesOf returns the Modules of a kernel that lists its modules in files; nil leaves the file out.
func modulesOf(t *testing.T, files map[string]string) Modules {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		file := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return Modules{Root: root, Release: "6.1"}
}

var debian = map[string]string{
	"proc/modules":                      "ip_vs_rr 16384 0 - Live 0x0\nip_vs 200704 2 ip_vs_rr, Live 0x0\n",
	"lib/modules/6.1/modules.dep":       "kernel/net/netfilter/ipvs/ip_vs.ko.xz:\nkernel/net/netfilter/ipvs/ip_vs_wrr.ko: kernel/net/netfilter/ipvs/ip_vs.ko\nkernel/net/nf-tables.ko:\n",
	"lib/modules/6.1/modules.builtin":   "kernel/net/ipv4/netfilter/nf_conntrack.ko\n",
	"sys/module/dummy/parameters/numif": "1\n",
}

func TestModulesFind(t *testing.T) {
	m := modulesOf(t, debian)
	for name, want := range map[string]Module{
		"ip_vs": Loaded, "ip_vs_wrr": Loadable, "ip_vs_mh": Absent, "nf_conntrack": BuiltIn, "nf_tables": Loadable, "dummy": BuiltIn,
	} {
		if got := m.Find(name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	if got := modulesOf(t, nil).Find("ip_vs"); got != Unknown {
		t.Errorf("without any list, ip_vs is %s", got)
	}
}

func TestModulesCheck(t *testing.T) {
	m := modulesOf(t, debian)
	loadable := OK
	if !Capable(unix.CAP_SYS_MODULE) {
		loadable = Missing
	}
	old := modulesOf(t, map[string]string{"lib/modules/6.1/modules.dep": "kernel/net/netfilter/nf_conntrack.ko:\nkernel/net/ipv4/netfilter/nf_conntrack_ipv4.ko: kernel/net/netfilter/nf_conntrack.ko\n"})
	for _, tc := range []struct {
		name   string
		check  Check
		state  State
		detail string
		mend   string
	}{
		{"there", m.Check("x", "ip_vs"), OK, "ip_vs loaded", "modprobe -a ip_vs"},
		{"loadable", m.Check("x", "ip_vs", "ip_vs_wrr"), loadable, "ip_vs_wrr not loaded", "modprobe -a ip_vs ip_vs_wrr"},
		{"absent", m.Check("x", "ip_vs", "ip_vs_mh"), Missing, "install a kernel that has it", ""},
		{"of an old kernel", old.Check("x", "nf_conntrack"), loadable, "nf_conntrack_ipv4 not loaded", "modprobe -a nf_conntrack_ipv4"},
		{"of a new kernel", m.Check("x", "nf_conntrack"), OK, "nf_conntrack built in", ""},
		{"no list", modulesOf(t, nil).Check("x", "ip_vs"), Advice, "there is no /lib/modules/6.1 here", ""},
		{"works", modulesOf(t, nil).CheckWork("x", "ip_vs", nil), OK, "it works", ""},
		{"does not work, no list", modulesOf(t, nil).CheckWork("x", "ip_vs", unix.ENOENT), Missing, "to load ip_vs from", ""},
		{"does not work, loadable", m.CheckWork("x", "ip_vs_wrr", unix.ENOENT), loadable, "not loaded", "modprobe -a ip_vs_wrr"},
		{"not allowed", m.CheckWork("x", "ip_vs", unix.EPERM), Missing, "CAP_NET_ADMIN", ""},
		{"loaded in vain", m.CheckWork("x", "ip_vs", unix.EINVAL), Missing, "and yet: invalid argument", ""},
	} {
		if c := tc.check; c.State != tc.state || !strings.Contains(c.Detail, tc.detail) || c.State != OK && c.Mend != tc.mend {
			t.Errorf("%s: %+v; want %s, %q, %q", tc.name, c, tc.state, tc.detail, tc.mend)
		}
	}
}
