package hostnet

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"weir/backends/doctor"
)

// TestResolversDoctor describes nodes by their files, and says what is found and what mends it.
func TestResolversDoctor(t *testing.T) {
	const plain, stub = "search lan\nnameserver 192.0.2.53\n", "nameserver 127.0.0.53\n"
	for _, tt := range []struct {
		what  string
		files map[string]string
		// answering are the resolvers that answer for cluster.local.
		answering string
		weir      string
		state     doctor.State
		detail    string
		mend      string
		upstream  string
	}{
		{"weir does not answer", map[string]string{resolvConf: plain}, "", "127.0.0.1:53", doctor.OK, "not asked for", "", "192.0.2.53"},
		{"all is well", map[string]string{resolvConf: "nameserver 127.0.0.1\nnameserver 192.0.2.53\n"}, "127.0.0.1:53", "127.0.0.1:53", doctor.OK, "127.0.0.1 of", "", "127.0.0.1 192.0.2.53"},
		{"plain resolv.conf", map[string]string{resolvConf: plain}, "127.0.0.1:53", "127.0.0.1:53", doctor.Advice, "192.0.2.53, which does not", "nameserver 127.0.0.1", "192.0.2.53"},
		{"another port", map[string]string{resolvConf: plain}, "127.0.0.1:5353", "127.0.0.1:5353", doctor.Advice, "", "--dns-listen 127.0.0.1:53", "192.0.2.53"},
		{"no resolver", map[string]string{resolvConf: "search lan\n"}, "127.0.0.1:53", "127.0.0.1:53", doctor.Advice, "names no resolver", "nameserver", ""},
		{"systemd-resolved", map[string]string{resolvConf: stub, resolvedConf: plain}, "127.0.0.1:53", "127.0.0.1:53", doctor.Advice, "", "Domains=~cluster.local", "192.0.2.53"},
		{"systemd-resolved that asks weir", map[string]string{resolvConf: stub, resolvedConf: "nameserver 127.0.0.1\nnameserver 192.0.2.53\n"}, "127.0.0.1:53 127.0.0.53:53", "127.0.0.1:53", doctor.OK, "127.0.0.53 of", "", "127.0.0.1 192.0.2.53"},
		{"dnsmasq", map[string]string{resolvConf: "nameserver 127.0.0.1\n", dnsmasqDir + "/README": ""}, "127.0.0.1:5353", "127.0.0.1:5353", doctor.Advice, "", "server=/cluster.local/127.0.0.1#5353 > /etc/dnsmasq.d/weir.conf", "127.0.0.1"},
		{"NetworkManager", map[string]string{resolvConf: "nameserver 127.0.0.1\n", managerDir + "/README": ""}, "127.0.0.1:5353", "127.0.0.1:5353", doctor.Advice, "", "nmcli", "127.0.0.1"},
		{"no resolv.conf", nil, "127.0.0.1:53", "127.0.0.1:53", doctor.Advice, "cannot be read", "", ""},
	} {
		r := Resolvers{t.TempDir()}
		writeTree(t, r.Root, tt.files)
		answers := func(at netip.AddrPort) bool { return slices.Contains(strings.Fields(tt.answering), at.String()) }
		c := r.Doctor(netip.MustParseAddrPort(tt.weir), "cluster.local", answers)[0]
		if c.State != tt.state || !strings.Contains(c.Detail, tt.detail) || !strings.Contains(c.Mend, tt.mend) || tt.mend == "" && c.Mend != "" {
			t.Errorf("%s: %+v", tt.what, c)
		}
		upstream, _ := r.Upstream()
		var texts []string
		for _, a := range upstream {
			texts = append(texts, a.String())
		}
		if got := strings.Join(texts, " "); got != tt.upstream {
			t.Errorf("%s: upstream %s", tt.what, got)
		}
	}
}

// TestResolversDoctorPods has kubelets that point pods at weir, at another server, and nowhere.
func TestResolversDoctorPods(t *testing.T) {
	for text, want := range map[string]doctor.State{
		"kind: KubeletConfiguration\nclusterDNS:\n- 10.96.0.10\n": doctor.OK,
		"clusterDNS: [\"10.96.0.10\"]\n":                          doctor.OK,
		"clusterDNS:\n- 10.96.0.53\n":                             doctor.Advice,
		"kind: KubeletConfiguration\n":                            doctor.Advice,
	} {
		r := Resolvers{t.TempDir()}
		writeTree(t, r.Root, map[string]string{resolvConf: "nameserver 127.0.0.1\n", kubeletConf: text, podmanConf + "/x": ""})
		checks := r.Doctor(netip.MustParseAddrPort("127.0.0.1:53"), "cluster.local", func(at netip.AddrPort) bool {
			return at.Addr().IsLoopback() || at.Addr() == netip.MustParseAddr("10.96.0.10")
		})
		if len(checks) != 3 || checks[1].State != want || (checks[1].Mend == "") != (want == doctor.OK) || !strings.Contains(checks[2].Detail, "--dns-search") {
			t.Errorf("%q: %+v", text, checks)
		}
	}
}

func writeTree(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
