package iptables

import (
	"context"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"weir/backends"
	"weir/backends/backendtest"
	"weir/backends/dataplane"
	"weir/backends/xtables"
)

// foreign holds rules of other programs, such as Docker's and firewalld's.
var foreign = map[string]string{
	"nat": `:DOCKER - [0:0]
:MY_WEIR-LIKE - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
-A MY_WEIR-LIKE -m comment --comment "mentions -j WEIR-SERVICES" -j RETURN
`,
	"filter": `:DOCKER-USER - [0:0]
:INPUT_direct - [0:0]
-A INPUT -j INPUT_direct
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -j DOCKER-USER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A DOCKER-USER -j RETURN
-A INPUT_direct -m comment --comment "a \"quoted\" -j DROP" -j RETURN
`,
}

func restore(t testing.TB, k xtables.Kernel, table, lines string) {
	t.Helper()
	if err := k.Restore(t.Context(), dataplane.IPv4, []byte("*"+table+"\n"+lines+"COMMIT\n")); err != nil {
		t.Fatal(err)
	}
}

// saved returns the text of a table without comments; with others set, without weir's rules too.
func saved(t testing.TB, k xtables.Kernel, table string, others bool) string {
	t.Helper()
	r, err := k.Save(t.Context(), dataplane.IPv4, table)
	if err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	var kept []string
	for line := range strings.Lines(string(all)) {
		words := strings.Fields(line)
		own := strings.HasPrefix(line, ":WEIR-") || strings.HasPrefix(line, "-A WEIR-") ||
			len(words) > 2 && strings.HasPrefix(words[len(words)-1], "WEIR-") && slices.Contains([]string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}, words[1])
		if !strings.HasPrefix(line, "#") && !(own && others) {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}

func driftServices() []*dataplane.ServicePort {
	a := service("a", dataplane.IPv4, dataplane.TCP, 1, 3)
	external(a, 1)
	return []*dataplane.ServicePort{a, service("b", dataplane.IPv4, dataplane.UDP, 2, 1), service("c", dataplane.IPv4, dataplane.TCP, 3, 0)}
}

// TestDrift damages the applied state in every way. It demands that one Plan repairs the damage, names only the damaged
// Items, and leaves foreign rules unchanged.
func TestDrift(t *testing.T) {
	svc := "WEIR-SVC-" + hash("SVC", driftServices()[0].Key.String())
	leaf := "WEIR-IP-02"
	direct := leaf + " -d 10.96.0.2/32 -p udp -m udp --dport 80 -m comment --comment \"" + driftServices()[1].Key.Service.String() + ":" + driftServices()[1].Key.Port + "\" -j WEIR-SVC-" + hash("SVC", driftServices()[1].Key.String()) + "\n"
	kinds := []struct {
		name, table, break_ string
		changes             int
	}{
		{"nothing", "nat", "", 0},
		{"a rule of a shared chain is gone", "nat", "-D " + direct, 1},
		{"a rule of a shared chain is there twice", "nat", "-A " + direct, 1},
		{"a rule of a shared chain was changed", "nat", "-D " + direct + "-A " + strings.Replace(direct, "--dport 80 ", "--dport 81 ", 1), 2},
		{"a foreign rule is in a shared chain", "nat", "-I " + leaf + " 1 -m comment --comment \"a b (2)\" -j RETURN\n", 1},
		{"a foreign rule is there twice", "nat", "-A " + leaf + " -j RETURN\n-A " + leaf + " -j RETURN\n", 2},
		{"a chain was flushed", "nat", ":" + svc + " - [0:0]\n", 1},
		{"a rule of a Service was added", "nat", "-I " + svc + " 1 -j RETURN\n", 1},
		{"a rule of a Service is gone", "nat", "-D " + svc + " -p tcp -j DNAT --to-destination 10.244.1.5:8080\n", 1},
		{"rules of a Service changed places", "nat", "-D " + svc + " -p tcp -j DNAT --to-destination 10.244.1.5:8080\n" +
			"-I " + svc + " 1 -p tcp -j DNAT --to-destination 10.244.1.5:8080\n", 1},
		{"a chain that is nobody's", "nat", ":WEIR-SVC-OLD - [0:0]\n-A WEIR-SVC-OLD -j RETURN\n-A WEIR-SERVICES -j WEIR-SVC-OLD\n", 2},
		{"chains that refer to each other", "nat", ":WEIR-A - [0:0]\n:WEIR-B - [0:0]\n-A WEIR-A -j WEIR-B\n", 2},
		{"a hook is gone", "nat", "-D PREROUTING -j WEIR-SERVICES\n", 1},
		{"a hook is there twice", "nat", "-A PREROUTING -j WEIR-SERVICES\n", 1},
		{"a hook is behind a rule that accepts", "filter", "-I FORWARD 1 -p tcp -j ACCEPT\n", 1},
		{"a hook is behind a jump of others", "filter", "-I FORWARD 1 -j DOCKER-USER\n", 0},
		{"a hook that is nobody's", "nat", "-A POSTROUTING -p tcp -j WEIR-POSTROUTING\n", 1},
		{"a built-in chain was flushed", "filter", "-F INPUT\n", 1},
		{"constant chain changed", "nat", "-D WEIR-SERVICES -j WEIR-IP\n", 1},
	}
	eachKernel(t, func(t *testing.T, k xtables.Kernel) {
		b := New(testConfig(), k)
		want := desired(t, b, driftServices())
		for _, kind := range kinds {
			restore(t, k, "nat", foreign["nat"])
			restore(t, k, "filter", foreign["filter"])
			converge(t, b, want)
			if kind.break_ != "" {
				restore(t, k, kind.table, kind.break_)
			}
			others := saved(t, k, "nat", true) + saved(t, k, "filter", true)
			p := backendtest.Diff(observed(t, b), want)
			if len(p.Changes) != kind.changes {
				t.Errorf("%s: want %d changes:\n%s", kind.name, kind.changes, p)
			}
			converge(t, b, want)
			if now := saved(t, k, "nat", true) + saved(t, k, "filter", true); now != others {
				t.Errorf("%s: the rules of others were\n%sand are now\n%s", kind.name, others, now)
			}
			converge(t, b, nil)
			if now := saved(t, k, "nat", false) + saved(t, k, "filter", false); now != others {
				t.Errorf("%s: cleanup leaves\n%sand not\n%s", kind.name, now, others)
			}
			wipe(t, k)
		}
	})
}

// TestForeignJump has a chain of another program lead to chains of weir. They are deleted as far as the kernel allows:
// what is left is empty, nothing of weir leads to it, and the rest of the Plan is in force. With the jump, the rest goes.
func TestForeignJump(t *testing.T) {
	eachKernel(t, func(t *testing.T, k xtables.Kernel) {
		b := New(testConfig(), k)
		services := driftServices()
		want, rest := desired(t, b, services), desired(t, b, services[1:])
		svc := "WEIR-SVC-" + hash("SVC", services[0].Key.String())
		for _, jump := range []string{svc, "WEIR-IP-01", "WEIR-POSTROUTING"} {
			converge(t, b, want)
			rule := "-A FOREIGN -p tcp -j " + jump + "\n"
			restore(t, k, "nat", ":FOREIGN - [0:0]\n"+rule)
			converge(t, b, rest)
			if now := saved(t, k, "nat", false); strings.Contains(now, "-A "+jump+" ") != (jump == "WEIR-POSTROUTING") || strings.Contains(now, "-A WEIR-IP-01 ") || !strings.Contains(now, rule) {
				t.Errorf("%s, after a Service was deleted:\n%s", jump, now)
			}
			converge(t, b, nil)
			if now := saved(t, k, "nat", false); strings.Count(now, "WEIR-") != 2 || !strings.Contains(now, ":"+jump+" ") || !strings.Contains(now, rule) {
				t.Errorf("%s, after cleanup:\n%s", jump, now)
			}
			converge(t, b, want)
			converge(t, b, nil)
			restore(t, k, "nat", "-F\n-X FOREIGN\n")
			if left := texts(observed(t, b)); len(left) != 1 {
				t.Errorf("%s, without the jump: %v, want the chain, to be deleted", jump, left)
			}
			converge(t, b, nil)
			if now := saved(t, k, "nat", false); strings.Contains(now, "WEIR-") {
				t.Errorf("%s, without the jump:\n%s", jump, now)
			}
		}
	})
}

// wipe empties both tables.
func wipe(t testing.TB, k xtables.Kernel) {
	t.Helper()
	restore(t, k, "nat", "-F\n-X DOCKER\n-X MY_WEIR-LIKE\n")
	restore(t, k, "filter", "-F\n-X DOCKER-USER\n-X INPUT_direct\n")
}

// TestPain01_FlushedTable flushes everything, as a firewalld restart or iptables -F does.
func TestPain01_FlushedTable(t *testing.T) {
	eachKernel(t, func(t *testing.T, k xtables.Kernel) {
		b := New(testConfig(), k)
		want := desired(t, b, driftServices())
		converge(t, b, want)
		flush := func(table string, alsoChains bool) {
			lines := "-F\n"
			for id := range observed(t, b) {
				p, _ := xtables.Parse(id)
				if alsoChains && b.names.owned(p.Chain) && p.Rule == "" && p.Family == dataplane.IPv4 && p.Table == table {
					lines += "-X " + p.Chain + "\n"
				}
			}
			restore(t, k, table, lines)
		}
		for _, alsoChains := range []bool{false, true} {
			for _, table := range tables {
				flush(table, alsoChains)
				converge(t, b, want)
			}
		}
	})
}

// TestStalePlan applies Plans whose Changes the kernel already has.
func TestStalePlan(t *testing.T) {
	eachKernel(t, func(t *testing.T, k xtables.Kernel) {
		b := New(testConfig(), k)
		want := desired(t, b, driftServices())
		up, down := backendtest.Diff(nil, want), backendtest.Diff(want, nil)
		for i, p := range []backends.Plan{up, up, down, down, up} {
			if r := b.Apply(t.Context(), p); r.Err != nil {
				t.Fatalf("step %d: %v", i, r.Err)
			}
		}
		restore(t, k, "nat", "-D PREROUTING -j WEIR-SERVICES\n") // behind its back
		if r := b.Apply(t.Context(), down); r.Err != nil {
			t.Fatal(r.Err)
		}
		if got := observed(t, b); len(got) != 0 {
			t.Errorf("left: %v", texts(got))
		}
	})
}

// TestPain14_RefusedChange applies one rule that the kernel refuses: the Result names it, and all other rules are
// applied.
func TestPain14_RefusedChange(t *testing.T) {
	eachKernel(t, func(t *testing.T, k xtables.Kernel) {
		b := New(testConfig(), k)
		want := desired(t, b, driftServices())
		bad := xtables.Item("ip4 nat WEIR-SVC-BAD\n-A WEIR-SVC-BAD -p tcp -j DNAT --to-destination 10.0.0.1:1\n-A WEIR-SVC-BAD -m nonesuch -j RETURN")
		if f, ok := k.(*xtables.Fake); ok {
			f.Unsupported = []string{"nonesuch"}
		}
		p := backendtest.Diff(nil, want)
		p.Changes = append(p.Changes, backends.Change{Op: backends.Create, ID: bad.ID(), New: bad})
		r := b.Apply(t.Context(), p)
		if r.Err == nil || len(r.Refused) != 1 || r.Refused[bad.ID()] == nil {
			t.Fatalf("the bad rule is not named: %+v", r)
		}
		if got := observed(t, b); len(got) != 0 {
			t.Errorf("a part was applied: %v", texts(got))
		}
		p.Changes = p.Changes[:len(p.Changes)-1]
		if r := b.Apply(t.Context(), p); r.Err != nil {
			t.Fatal(r.Err)
		}
		converge(t, b, want)
	})
}

// TestPain14_RefusedAtCommit applies rules among many that only the kernel refuses, together with the whole table. The
// Result names their Services, and all other Services are programmed.
func TestPain14_RefusedAtCommit(t *testing.T) {
	// The programs accept the bytecode, and every kernel refuses it.
	const bad = ` -m bpf --bytecode "1,255 0 0 0" -j RETURN`
	for name, kernel := range map[string]func(*testing.T) xtables.Kernel{
		"legacy": func(t *testing.T) xtables.Kernel { return realKernel(t, xtables.Legacy) },
		"nft":    func(t *testing.T) xtables.Kernel { return realKernel(t, xtables.NFT) },
		"fake": func(*testing.T) xtables.Kernel {
			k := xtables.NewFake()
			k.AtCommit, k.Unsupported = true, []string{"1,255 0 0 0"}
			return k
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := New(benchConfig(), kernel(t))
			entries := many(300, true)
			want := desired(t, b, entries)
			guilty := map[dataplane.ServicePortName]bool{entries[17].Key: true, entries[200].Key: true}
			for key := range guilty {
				chain := "WEIR-SVC-" + hash("SVC", key.String())
				id := backends.ID("ip4 nat " + chain)
				want[id] = xtables.Item(want[id].String() + "\n-A " + chain + bad)
			}
			p := backendtest.Diff(nil, want)
			owners := setOwners(t, b, entries, p)
			r := b.Apply(t.Context(), p)
			for ; r.Err != nil && len(r.Refused) > 0; r = b.Apply(t.Context(), p) { // as with the nf_tables mechanism, which names one
				p.Changes = slices.DeleteFunc(p.Changes, func(c backends.Change) bool { return r.Refused[c.ID] != nil })
			}
			if r.Err != nil {
				t.Fatal(r.Err)
			}
			got := observed(t, b)
			for id, i := range want {
				inForce := got[id] != nil && got[id].String() == i.String()
				blamed := len(owners[id]) > 0 && guilty[owners[id][0]]
				if bad := strings.Contains(i.String(), bad); !inForce && !blamed || inForce && bad {
					t.Errorf("in force %v: %s", inForce, i)
				}
			}
		})
	}
}

// narrow is a Kernel that accepts messages up to a size, as the kernel does from an ordinary user.
type narrow struct {
	xtables.Kernel
	size int
}

func (k narrow) Restore(ctx context.Context, f dataplane.Family, input []byte) error {
	if len(input) > k.size {
		return &xtables.RestoreError{TooLong: true, Message: "Message too long"}
	}
	return k.Kernel.Restore(ctx, f, input)
}

// TestTooLong applies many Services, one of which alone is larger than a message may be. The Result names that one, and
// all others are programmed. Its previous state stays.
func TestTooLong(t *testing.T) {
	b := New(benchConfig(), narrow{xtables.NewFake(), 32 << 10})
	entries := many(300, true)
	first := desired(t, b, entries)
	p := backendtest.Diff(nil, first)
	setOwners(t, b, entries, p)
	convergeBy(t, b, p, first)

	large := service("large", dataplane.IPv4, dataplane.TCP, 1, 1000)
	large.Key, large.ClusterIP = entries[7].Key, entries[7].ClusterIP
	changed := slices.Clone(entries)
	changed[7] = large
	for i := range changed[100:] {
		e := *changed[100+i]
		e.Endpoints = e.Endpoints[1:]
		changed[100+i] = &e
	}
	want := desired(t, b, changed)
	p = backendtest.Diff(observed(t, b), want)
	owners := setOwners(t, b, slices.Concat(entries, changed), p)
	r := b.Apply(t.Context(), p)
	if r.Err != nil || len(r.Refused) == 0 {
		t.Fatalf("%+v", r)
	}
	for id, err := range r.Refused {
		if slices.Contains(owners[id], large.Key) && strings.Contains(err.Error(), "do not fit into one message") {
			want[id] = first[id]
		} else {
			t.Errorf("%s is refused: %v", id, err)
		}
	}
	if d := cmp.Diff(texts(want), texts(observed(t, b))); d != "" {
		t.Errorf("what was wanted (-) is not what is there (+):\n%s", d)
	}
}

// TestRefusedAfterACommit has a bad rule in the second of two transactions. The first one is in force, so the Result
// must claim nothing. The next round has only the second, and names the rule.
func TestRefusedAfterACommit(t *testing.T) {
	eachKernel(t, func(t *testing.T, k xtables.Kernel) {
		b := New(testConfig(), k)
		want := desired(t, b, driftServices())
		bad := xtables.Item("ip4 filter WEIR-BAD\n-A WEIR-BAD -m nonesuch -j RETURN")
		if f, ok := k.(*xtables.Fake); ok {
			f.Unsupported = []string{"nonesuch"}
		}
		want[bad.ID()] = bad
		// Programs that read all of their input before they commit refuse it as a whole, and name the rule at once.
		first := b.Apply(t.Context(), backendtest.Diff(observed(t, b), want))
		if first.Err == nil || len(first.Refused) > 0 && len(observed(t, b)) > 0 {
			t.Fatalf("first round: %+v", first)
		}
		if r := b.Apply(t.Context(), backendtest.Diff(observed(t, b), want)); r.Err == nil || r.Refused[bad.ID()] == nil {
			t.Fatalf("second round: %+v", r)
		}
		delete(want, bad.ID())
		converge(t, b, want)
	})
}
