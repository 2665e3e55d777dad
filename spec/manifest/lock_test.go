package manifest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"weir/backends/dataplane"
	"weir/spec"
)

func lockOf(services ...string) File {
	text := "apiVersion: weir/v1alpha1\nkind: AllocationLock\nservices:\n"
	for _, s := range services {
		text += "- " + s + "\n"
	}
	return File{Path: "weir.lock.yaml", Data: []byte(text)}
}

func everyNotice(snap *spec.Snapshot) string {
	var all []string
	for _, n := range snap.Notices {
		all = append(all, n.ID().Short()+" "+n.Error())
	}
	for svc := range snap.Services.All() {
		for _, n := range svc.Notices {
			if n.ID() != spec.NoReadyEndpoint {
				all = append(all, n.ID().Short()+" "+n.Error())
			}
		}
	}
	return strings.Join(all, "\n")
}

func TestLock(t *testing.T) {
	nodePort := "  type: NodePort\n"
	for _, tt := range []struct {
		name     string
		service  string // of a
		lock     string
		want     string
		notices  string // their codes
		problems string
	}{
		{"plain", "", "{name: a, clusterIPs: [10.96.7.7]}", "ClusterIP [IPv4] [10.96.7.7] 80/TCP>80:0", "", ""},
		{"outside the range", "", "{name: a, clusterIPs: [192.168.7.7]}", "ClusterIP [IPv4] [192.168.7.7] 80/TCP>80:0", "", ""},
		{"node port", nodePort, "{name: a, clusterIPs: [10.96.7.7], nodePorts: [{port: 80, nodePort: 30007}]}", "NodePort [IPv4] [10.96.7.7] 80/TCP>80:30007", "", ""},
		{"in part", nodePort, "{name: a, nodePorts: [{port: 80, nodePort: 30007}]}", "NodePort [IPv4] [10.97.216.149] 80/TCP>80:30007", "W009", ""},
		{"health", "  type: LoadBalancer\n  loadBalancerIP: 192.0.2.1\n  externalTrafficPolicy: Local\n", "{name: a, clusterIPs: [10.96.7.7], nodePorts: [{port: 80, nodePort: 30007}], healthCheckNodePort: 30008}",
			"LoadBalancer [IPv4] [10.96.7.7] 80/TCP>80:30007 health 30008", "", ""},
		{"set by hand", "  clusterIP: 10.96.1.1\n", "{name: a, clusterIPs: [10.96.7.7]}", "ClusterIP [IPv4] [10.96.1.1] 80/TCP>80:0", "W012", ""},
		{"both families", "  ipFamilyPolicy: PreferDualStack\n", "{name: a, clusterIPs: ['fd00:10:96::7', 10.96.7.7]}", "ClusterIP [IPv4 IPv6] [10.96.7.7 fd00:10:96::7] 80/TCP>80:0", "", ""},
		{"one family too many", "", "{name: a, clusterIPs: ['fd00:10:96::7', 10.96.7.7]}", "ClusterIP [IPv4] [10.96.7.7] 80/TCP>80:0", "W012", ""},
		{"headless", "  clusterIP: None\n", "{name: a, clusterIPs: [10.96.7.7]}", "ClusterIP [IPv4] [None] 80/TCP>80:0", "W012", ""},
		{"Service is gone", "  clusterIP: 10.96.1.1\n", "{name: b, clusterIPs: [10.96.7.7]}", "ClusterIP [IPv4] [10.96.1.1] 80/TCP>80:0", "W012", ""},
		{"nothing pinned", "", "{name: b}", "ClusterIP [IPv4] [10.97.216.149] 80/TCP>80:0", "W012 W009", ""},
		{"node port is out of the range", nodePort, "{name: a, nodePorts: [{port: 80, nodePort: 40000}]}", "", "", "weir.lock.yaml:4: lock of Service default/a: node port 40000 is not in the node port range"},
		{"typo", "", "{name: a, clusterIP: 10.96.7.7}", "", "", "weir.lock.yaml:4: lock of Service default/a: clusterIP: unknown field; did you mean clusterIPs?"},
		{"no name", "", "{clusterIPs: [10.96.7.7]}", "", "", "name: is missing"},
		{"twice", "", "{name: a, clusterIPs: [10.96.7.7]}\n- {name: a}", "", "", "weir.lock.yaml:5: lock of Service default/a: name: is declared already at weir.lock.yaml:4"},
		{"no address", "", "{name: a, clusterIPs: [x]}", "", "", "clusterIPs[0]"},
		{"two of a family", "", "{name: a, clusterIPs: [10.96.7.7, 10.96.7.8]}", "", "", "10.96.7.8 is the second of its family"},
		{"one port for two", "", "{name: a, nodePorts: [{port: 80, nodePort: 30007}, {port: 81, nodePort: 30007}]}", "", "", "30007 is given twice"},
		{"one address for two", "", "{name: a, clusterIPs: [10.96.7.7]}\n- {name: other, clusterIPs: [10.96.7.7]}", "", "", "weir.lock.yaml:5: lock of Service default/other: 10.96.7.7 is the ClusterIP of Service default/a already (weir.lock.yaml:4)"},
		{"not an object", "", "a", "", "", "services[0]: is not an object"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := NewSet(Options{})
			files := []File{{Path: "a.yaml", Data: []byte(yamlService("a", tt.service))}, lockOf(tt.lock)}
			if strings.Contains(tt.lock, "other") {
				files = append(files, File{Path: "other.yaml", Data: []byte(yamlService("other", ""))})
			}
			snap, _, err := s.Update(t.Context(), spec.Revision{}, files)
			if tt.problems != "" {
				if err == nil || !strings.Contains(err.Error(), tt.problems) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := show(snap.Services.Get(name("a"))); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			var codes []string
			for line := range strings.Lines(everyNotice(snap)) {
				code, _, _ := strings.Cut(line, " ")
				codes = append(codes, code)
			}
			if strings.Join(codes, " ") != tt.notices {
				t.Errorf("notices:\n%s", everyNotice(snap))
			}
		})
	}
}

// TestPinnedNeverMoves sets by hand the address that another Service has pinned: what is new is at fault. Without the lock
// it would displace the other one.
func TestPinnedNeverMoves(t *testing.T) {
	s := NewSet(Options{})
	snap, _ := mustUpdate(t, s, File{Path: "z.yaml", Data: []byte(yamlService("z", ""))})
	ip := snap.Services.Get(name("z")).Object.Spec.ClusterIP
	text, err := WriteLock(snap)
	if err != nil || !OnlyLock(text) {
		t.Fatalf("%v\n%s", err, text)
	}
	mustUpdate(t, s, File{Path: "weir.lock.yaml", Data: text})
	_, _, err = s.Update(t.Context(), spec.Revision{}, []File{{Path: "a.yaml", Data: []byte(yamlService("a", "  clusterIP: "+ip+"\n"))}})
	if want := "a.yaml:8: Service default/a: spec.clusterIP: " + ip + " is the ClusterIP of Service default/z already (weir.lock.yaml:6)"; err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// TestLockChangesNothing pins what random Services were allocated, and finds every value where it was and nothing left to
// pin; then adds Services at random, and nobody moves.
func TestLockChangesNothing(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 3))
		s := NewSet(Options{})
		snap, _, err := s.Update(context.Background(), spec.Revision{}, randomServices(r, "s", 40))
		if err != nil {
			continue // two set the same value
		}
		before := map[dataplane.ServiceName]string{}
		for svc := range snap.Services.All() {
			before[svc.Name] = show(svc)
		}
		text, err := WriteLock(snap)
		if err != nil {
			t.Fatal(err)
		}
		snap, _ = mustUpdate(t, s, File{Path: "weir.lock.yaml", Data: text})
		if again, _ := WriteLock(snap); string(again) != string(text) {
			t.Fatalf("seed %d: the lock of what is locked differs:\n%s\n%s", seed, text, again)
		}
		if n := everyNotice(snap); n != "" {
			t.Errorf("seed %d: %s", seed, n)
		}
		more, _, err := s.Update(context.Background(), spec.Revision{}, randomServices(r, "t", 80))
		if err == nil {
			snap = more
		} // else a newcomer sets what is pinned
		for n, was := range before {
			if got := show(snap.Services.Get(n)); got != was {
				t.Errorf("seed %d: %s moved from %s to %s", seed, n, was, got)
			}
		}
	}
}

func randomServices(r *rand.Rand, prefix string, n int) []File {
	var files []File
	for i := range n {
		name := fmt.Sprintf("%s%d", prefix, i)
		text := yamlService(name, []string{"", "", "  type: NodePort\n", "  type: LoadBalancer\n  loadBalancerIP: 192.0.2.1\n  externalTrafficPolicy: Local\n", "  ipFamilyPolicy: PreferDualStack\n", "  clusterIP: None\n",
			fmt.Sprintf("  clusterIP: 10.%d.%d.%d\n", 96+r.IntN(16), r.IntN(256), r.IntN(250)+1)}[r.IntN(7)])
		if r.IntN(3) == 0 {
			text = strings.Replace(text, "- port: 80\n", "- {name: u, port: 53, protocol: UDP}\n  - {name: t, port: 53}\n  - {name: h, port: 80}\n", 1)
		}
		files = append(files, File{Path: name + ".yaml", Data: []byte(text)})
	}
	return files
}
