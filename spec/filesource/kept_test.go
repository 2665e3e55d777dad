package filesource

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"weir/spec"
	"weir/spec/manifest"
)

func serviceText(name, more string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: d}\nspec:\n  ports: [{port: 80}]\n%s", name, more)
}

func labelled(name, labels string) string {
	return strings.Replace(serviceText(name, ""), "namespace: d", "namespace: d, labels: {"+labels+"}", 1)
}

func sliceText(service, address string) string {
	return fmt.Sprintf(`apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %[1]s-1, namespace: d, labels: {kubernetes.io/service-name: %[1]s}}
addressType: IPv4
ports: [{port: 80}]
endpoints: [{addresses: [%[2]s]}]
`, service, address)
}

// declared says which Services a Snapshot has, each with the addresses of its endpoints.
func declared(snap *spec.Snapshot) string {
	var all []string
	for svc := range snap.Services.All() {
		text := svc.Name.Name
		for _, s := range svc.Slices {
			for _, e := range s.Endpoints {
				text += " " + e.Addresses[0]
			}
		}
		all = append(all, text)
	}
	return strings.Join(all, ", ")
}

// TestHungAtTheStart has a part of the input hang from the start, when an earlier run kept a state: what it holds of that part
// stands in for it, everything else is as the files say, and all is as the files say when the part answers.
func TestHungAtTheStart(t *testing.T) {
	const none = ""
	for name, c := range map[string]struct {
		in, mnt map[string]string // files that were read by the earlier run
		now     map[string]string // of in, at the start
		want    string            // while mnt hangs; none if nothing is sent
		healed  string
	}{
		"Services": {
			in:  map[string]string{"a": serviceText("a", ""), "gone": serviceText("gone", "")},
			mnt: map[string]string{"b": serviceText("b", "") + "---\n" + sliceText("b", "10.1.1.1")},
			now: map[string]string{"a": serviceText("a", ""), "c": serviceText("c", "")}, want: "a, b 10.1.1.1, c", healed: "a, b 10.1.1.1, c",
		},
		"slices": {
			in: map[string]string{"a": serviceText("a", "")}, mnt: map[string]string{"b": sliceText("a", "10.1.1.1")},
			now: map[string]string{"a": serviceText("a", ""), "c": serviceText("c", "")}, want: "a 10.1.1.1, c", healed: "a 10.1.1.1, c",
		},
		"slices of what hangs": {
			in: map[string]string{"a": sliceText("b", "10.1.1.1"), "c": serviceText("c", "")}, mnt: map[string]string{"b": serviceText("b", "")},
			now: map[string]string{"a": sliceText("b", "10.1.1.2"), "c": serviceText("c", "")}, want: "b 10.1.1.2, c", healed: "b 10.1.1.2, c",
		},
		"a Service that moved": {
			in: map[string]string{"a": serviceText("a", "")}, mnt: map[string]string{"b": serviceText("b", "  sessionAffinity: ClientIP\n")},
			now: map[string]string{"a": serviceText("a", "") + "---\n" + serviceText("b", "")}, want: "a, b", healed: none,
		},
		"chosen by labels": {
			in:  map[string]string{"a": labelled("a", "x: z") + "---\n" + "apiVersion: weir/v1alpha1\nkind: WeirConfiguration\nselector: x=z\n"},
			mnt: map[string]string{"b": labelled("b", "x: z")},
			now: map[string]string{"a": labelled("a", "x: z") + "---\n" + "apiVersion: weir/v1alpha1\nkind: WeirConfiguration\nselector: x=z\n"}, want: none, healed: "a, b",
		},
		"the configuration": {
			in:  map[string]string{"a": serviceText("a", "")},
			mnt: map[string]string{"b": "apiVersion: weir/v1alpha1\nkind: WeirConfiguration\nserviceCIDRs: [10.97.0.0/16]\n"},
			now: map[string]string{"a": serviceText("a", ""), "c": serviceText("c", "")}, want: none, healed: "a, c",
		},
		"pinned addresses": {
			in:  map[string]string{"a": serviceText("a", "")},
			mnt: map[string]string{"b": "apiVersion: weir/v1alpha1\nkind: AllocationLock\nservices:\n- {namespace: d, name: a, clusterIPs: [10.96.7.7]}\n"},
			now: map[string]string{"a": serviceText("a", ""), "c": serviceText("c", "")}, want: none, healed: "a, c",
		},
		"an invalid file beside": {
			in: map[string]string{"a": serviceText("a", "")}, mnt: map[string]string{"b": serviceText("b", "")},
			now: map[string]string{"a": serviceText("a", "  type: Nonsense\n")}, want: none, healed: none,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, err := filepath.EvalSymlinks(t.TempDir())
			must(t, err)
			in, mnt, earlier := d+"/in", d+"/mnt", d+"/earlier"
			put := func(dir string, files map[string]string) {
				for f, text := range files {
					write(t, filepath.Join(dir, f+".yaml"), text)
				}
			}
			put(in, c.now)
			put(mnt, c.mnt)
			put(earlier, c.in)
			o := Options{Paths: []string{earlier, mnt}, RescanInterval: 100 * time.Millisecond}
			kept, err := New(o).Load(t.Context())
			must(t, err)
			kept.Revision.Stale = true
			calls, change := patient(t)
			defer calls.answer()
			calls.hang(mnt, 0)
			o.Paths[0] = in
			h := start(t, o, change, func(s *Source) { s.newSet = New(o).newSet })
			next := func() spec.Update {
				u, ok := h.next(deadline)
				if !ok {
					t.Fatal("nothing comes")
				}
				return u
			}
			if u := next(); u.Err == nil || !strings.Contains(u.Err.Error(), mnt+": reading it has not come back") {
				t.Fatalf("at first: %+v", u)
			}
			h.src.Kept(kept)
			if c.want != none {
				u := next()
				if u.Snapshot == nil || declared(u.Snapshot) != c.want || !strings.HasSuffix(u.Revision.String(), "-stale") || !u.Delta.All {
					t.Fatalf("while it hangs: %s: %+v", declared(u.Snapshot), u)
				}
				for svc := range u.Snapshot.Services.All() {
					was := kept.Services.Get(svc.Name)
					if was != nil && !slices.Equal(was.Object.Spec.ClusterIPs, svc.Object.Spec.ClusterIPs) {
						t.Errorf("%s had %v and has %v", svc.Name, was.Object.Spec.ClusterIPs, svc.Object.Spec.ClusterIPs)
					}
					if svc.Name.Name == "b" && len(c.now) == 2 && (svc.Origin != spec.Origin{File: mnt + "/b.yaml", Line: 1}) {
						t.Errorf("b is at %s", svc.Origin)
					}
				}
				if u := next(); u.Err == nil {
					t.Fatalf("after it: %+v", u)
				}
			}
			calls.answer()
			u := next()
			switch {
			case c.healed == none && u.Err == nil, c.healed != none && u.Err != nil:
				t.Fatalf("when it answers: %+v", u)
			case c.healed != none && (declared(u.Snapshot) != c.healed || u.Revision.Outdated):
				t.Errorf("when it answers: %s, %s", declared(u.Snapshot), u.Revision)
			}
		})
	}
}

// TestHungServices has a file of Services hang: the Snapshots keep them, and their Deltas have only what changed beside.
func TestHungServices(t *testing.T) {
	d, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	write(t, d+"/in/a.yaml", serviceText("a", ""))
	write(t, d+"/mnt/b.yaml", serviceText("b", "")+"---\n"+sliceText("b", "10.1.1.1"))
	o := Options{Paths: []string{d + "/in", d + "/mnt"}, RescanInterval: 100 * time.Millisecond}
	calls, change := patient(t)
	h := start(t, o, change, func(s *Source) {
		s.newSet = func(c spec.ObjectChoice) updater { return manifest.NewSet(manifest.Options{Choice: c}) }
	})
	next := func() spec.Update {
		u, ok := h.next(deadline)
		if !ok {
			t.Fatal("nothing comes")
		}
		return u
	}
	if u := next(); u.Snapshot == nil {
		t.Fatal(u.Err)
	}
	calls.hang(d+"/mnt", 0)
	if u := next(); u.Snapshot == nil || !u.Delta.Empty() || !u.Revision.Outdated {
		t.Errorf("when it hangs: %+v", u)
	}
	if u := next(); u.Err == nil {
		t.Error("no error")
	}
	write(t, d+"/in/c.yaml", serviceText("c", ""))
	if u := next(); u.Snapshot == nil || declared(u.Snapshot) != "a, b 10.1.1.1, c" || fmt.Sprint(u.Delta.Services) != "[d/c]" {
		t.Errorf("with a change beside it: %+v", u)
	}
	next()
	calls.answer()
	if u := next(); u.Snapshot == nil || declared(u.Snapshot) != "a, b 10.1.1.1, c" || !u.Delta.Empty() || u.Revision.Outdated {
		t.Errorf("when it answers: %+v", u)
	}
}
