package main_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"weir/backends/doctor"
	"weir/backends/ipvs"
	"weir/backends/netlab"
)

// examine runs weir doctor on the node of a lab and returns its report and its exit code.
func examine(t *testing.T, node *netlab.Host, args ...string) (doctor.Report, int) {
	t.Helper()
	cmd := node.Command(t.Context(), os.Getenv(binaryEnv), append([]string{"doctor", "-o", "json", "--state-dir", t.TempDir()}, args...)...)
	return reportOf(t, node, cmd)
}

func reportOf(t *testing.T, node *netlab.Host, cmd *exec.Cmd) (r doctor.Report, code int) {
	t.Helper()
	var out, said strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := node.Start(cmd); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if err := json.Unmarshal([]byte(out.String()), &r); err != nil {
		t.Fatalf("%v: %q, %q", err, out.String(), said.String())
	}
	return r, cmd.ProcessState.ExitCode()
}

// find returns one line of a report.
func find(t *testing.T, r doctor.Report, mode, name string) doctor.Check {
	t.Helper()
	checks := r.Node
	for _, s := range r.Sections {
		if s.Name == mode {
			checks = s.Checks
		}
	}
	for _, c := range checks {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("%s: nothing about %s in %+v", mode, name, checks)
	return doctor.Check{}
}

// TestDoctor looks at a node that can run every mode that the kernel has, first as it is and then with what gets in the way.
func TestDoctor(t *testing.T) {
	t.Parallel()
	node := netlab.New(t, netlab.Topology{Pods: 1}).Node()
	before := kernelState(t, node)

	r, code := examine(t, node)
	if code != 0 || !r.Usable || r.Mode != "iptables" {
		t.Errorf("exit %d, usable %v, mode %q", code, r.Usable, r.Mode)
	}
	for _, s := range r.Sections {
		if want := s.Name != "ipvs" || ipvs.Present(); s.Usable != want {
			t.Errorf("mode %s usable: %v, want %v: %+v", s.Name, s.Usable, want, s.Checks)
		}
	}
	for _, mode := range []string{"iptables", "nftables", "ipvs", "userspace"} {
		want := 0
		if mode == "ipvs" && !ipvs.Present() {
			want = 1
		}
		if r, code := examine(t, node, "--mode", mode); code != want || r.Mode != mode {
			t.Errorf("asked about %s: exit %d, mode %q; want exit %d", mode, code, r.Mode, want)
		}
	}
	if diff := cmp.Diff(before, kernelState(t, node)); diff != "" {
		t.Errorf("the examination changed the kernel (-before +after):\n%s", diff)
	}

	disturb(t, node)
	r, _ = examine(t, node)
	for _, tc := range []struct{ mode, name, detail string }{
		{"", "net.ipv6.conf.all.forwarding", "0: IPv6 packets are not forwarded"},
		{"iptables", "kube-proxy", "KUBE-SERVICES (iptables-nft-save)"},
		{"iptables", "mechanisms", "a packet meets all of them"},
		{"nftables", "kube-proxy", "ip kube-proxy"},
		{"iptables", "firewall for forwarded packets", "weir accepts there masqueraded connections and answers"},
		{"ipvs", "firewall for forwarded packets", "weir accepts there answers"},
		{"nftables", "firewall for forwarded packets", "weir cannot open it"},
	} {
		if c := find(t, r, tc.mode, tc.name); c.State != doctor.Advice || !strings.Contains(c.Detail, tc.detail) || c.Mend == "" {
			t.Errorf("%s: %+v, want advice with %q", tc.name, c, tc.detail)
		}
	}
}

// disturb makes what an examination should find.
func disturb(t *testing.T, node *netlab.Host) {
	t.Helper()
	for _, cmd := range []string{
		"sysctl -qw net.ipv6.conf.all.forwarding=0",
		"iptables-nft -t nat -N KUBE-SERVICES",
		"iptables-legacy -t nat -N OTHER",
		"nft add table ip kube-proxy",
		"iptables-nft -A FORWARD -j DROP",
	} {
		words := strings.Fields(cmd)
		if _, err := node.Exec(t.Context(), words[0], words[1:]...); err != nil {
			t.Fatal(err)
		}
	}
}

// kernelState is what an examination must not change.
func kernelState(t *testing.T, node *netlab.Host) string {
	t.Helper()
	var all strings.Builder
	for _, cmd := range []string{"nft list ruleset", "ip -o -4 address", "ip -o -6 address show scope global", "cat /proc/net/ip_tables_names", "sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding"} {
		words := strings.Fields(cmd)
		out, err := node.Exec(context.Background(), words[0], words[1:]...)
		if err != nil && words[0] != "cat" {
			t.Fatal(err)
		}
		all.WriteString(out)
	}
	return strings.ReplaceAll(all.String(), " tentative", "") // an address of a new interface stops being so by itself, and a link-local one comes
}

// TestDoctorWithoutPrivileges is the same node seen by a user that may not program it.
func TestDoctorWithoutPrivileges(t *testing.T) {
	t.Parallel()
	node := netlab.New(t, netlab.Topology{Pods: 1}).Node()
	cmd := exec.CommandContext(t.Context(), os.Getenv(binaryEnv), "doctor", "-o", "json", "--state-dir", t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER} // whose root is nobody here
	r, code := reportOf(t, node, cmd)
	if code != 1 || r.Usable || r.Mode != "" {
		t.Errorf("exit %d, usable %v, mode %q", code, r.Usable, r.Mode)
	}
	for _, mode := range []string{"iptables", "nftables", "ipvs"} {
		if c := find(t, r, mode, "CAP_NET_ADMIN"); c.State != doctor.Missing {
			t.Errorf("%s: %+v", mode, c)
		}
	}
	if c := find(t, r, "", "kernel"); c.State != doctor.Advice || !strings.Contains(c.Detail, "in a user namespace") {
		t.Errorf("%+v", c)
	}
}

// TestDoctorText is the form for people.
func TestDoctorText(t *testing.T) {
	t.Parallel()
	node := netlab.New(t, netlab.Topology{Pods: 1}).Node()
	out, err := node.Exec(t.Context(), os.Getenv(binaryEnv), "doctor", "--proxy-mode", "nftables", "--state-dir", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	kernel := "ok    "
	if !doctor.InFirstUserNamespace() {
		kernel = "advice"
	}
	for _, want := range []string{"node\n  " + kernel + "   kernel ", "\nmode iptables: can run\n", "\nweir can run here in mode nftables.\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
}

// TestDoctorAsksTheWeirThatRuns examines a node on which weir runs with a range of ClusterIPs of its own: that range counts, unless
// another is given.
func TestDoctorAsksTheWeirThatRuns(t *testing.T) {
	d := painDaemon(t, modes[2], "--service-cidrs", "10.96.0.0/16")
	d.start()
	d.awaitAnswer("pod1")
	ranges := func(args ...string) (found []string) {
		cmd := d.lab.Host(netlab.Node).Command(t.Context(), os.Getenv(binaryEnv), append([]string{"doctor", "-o", "json", "--state-dir", d.state}, args...)...)
		r, _ := reportOf(t, d.lab.Host(netlab.Node), cmd)
		for _, c := range r.Node {
			if name, ok := strings.CutPrefix(c.Name, "ClusterIPs "); ok {
				found = append(found, name)
			}
		}
		return found
	}
	if got := ranges(); !slices.Equal(got, []string{"10.96.0.0/16"}) {
		t.Errorf("while weir runs: %v", got)
	}
	if got := ranges("--service-cidrs", "10.97.0.0/16"); !slices.Equal(got, []string{"10.97.0.0/16"}) {
		t.Errorf("with a range given: %v", got)
	}
	d.terminate()
	if got := ranges(); len(got) == 0 || got[0] != "10.96.0.0/12" {
		t.Errorf("after its end: %v", got)
	}
}
