package podsource

import (
	"fmt"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"weir/spec"
)

// TestFaultsOfPodsAreTold has pods with namespaces that are none. Each counts as one of the default namespace, and is told once.
func TestFaultsOfPodsAreTold(t *testing.T) {
	l := newLiar(t)
	for i, ns := range []string{"shop", "Shop", "a\x1b[31m b", strings.Repeat("x", 5000), ""} {
		l.put(fmt.Sprint("id", i), running(fmt.Sprint("id", i), "10.0.0.1", map[string]string{"app": "web", labelNamespace: ns}))
	}
	source := New(Options{Name: "podman at " + l.socket, Reader: &Containers{Socket: l.socket}})
	snap, err := source.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var namespaces []string
	for pod := range snap.Pods.All() {
		namespaces = append(namespaces, pod.Namespace)
	}
	if got := fmt.Sprint(namespaces); got != "[default default default default shop]" {
		t.Errorf("the namespaces are %s", got)
	}
	if len(snap.Notices) != 3 {
		t.Fatalf("the notices are %v", snap.Notices)
	}
	for _, n := range snap.Notices {
		text := n.Error()
		if n.ID() != spec.PodLabelIgnored || !strings.Contains(text, labelNamespace+": \"") || strings.ContainsRune(text, '\x1b') || len(text) > 600 {
			t.Errorf("a notice is %q, %d bytes", text, len(text))
		}
	}
	if !strings.Contains(fmt.Sprint(snap.Notices), `"Shop" is not the name of a namespace; the pod counts as one of default`) {
		t.Errorf("the notices are %v", snap.Notices)
	}

	v := follow(t, source)
	next := func() spec.Update { return <-v.updates }
	u := next()
	first := u.Snapshot.Notices
	l.put("id9", running("id9", "10.0.0.9", map[string]string{"app": "web"}))
	l.events <- `{"Type":"container","Action":"start","Actor":{"ID":"id9"}}`
	for u = next(); u.Snapshot.Pods.Len() != 6; u = next() {
	}
	if got := u.Snapshot.Notices; len(got) != 3 || &got[0] != &first[0] {
		t.Errorf("with another pod, which has none, the notices are new ones: %v", got)
	}
	l.put("id1", "")
	l.events <- `{"Type":"container","Action":"remove","Actor":{"ID":"id1"}}`
	for u = next(); u.Snapshot.Pods.Len() != 5; u = next() {
	}
	if len(u.Snapshot.Notices) != 2 {
		t.Errorf("without the pod, the notices are %v", u.Snapshot.Notices)
	}
}

// TestManyFaults has a flood of pods with faults, of which a few are named.
func TestManyFaults(t *testing.T) {
	l := newLiar(t)
	for i := range 3 * maxFaults {
		id := fmt.Sprintf("id%03d", i)
		l.put(id, running(id, "10.0.0.1", map[string]string{labelNamespace: "No " + id}))
	}
	snap, err := New(Options{Name: "x", Reader: &Containers{Socket: l.socket}}).Load(t.Context())
	if err != nil || len(snap.Notices) != maxFaults+1 {
		t.Errorf("%d notices, %v", len(snap.Notices), err)
	}
}

func TestFaultsOfCRI(t *testing.T) {
	for _, test := range []struct {
		metadata, label, namespace, fault string
	}{
		{"shop", "No", "shop", ""},
		{"", "", "default", ""},
		{"", "No", "default", "label " + labelNamespace + `: "No"`},
		{"No", "", "default", `namespace: "No"`},
		{"No", "shop", "shop", ""},
	} {
		labels := map[string]string{}
		if test.label != "" {
			labels[labelNamespace] = test.label
		}
		s := newSandbox(&cri.PodSandbox{Id: "s", Metadata: &cri.PodSandboxMetadata{Name: "p", Namespace: test.metadata}, Labels: labels})
		if s.pod.Namespace != test.namespace || !strings.HasPrefix(s.fault, test.fault) || test.fault == "" && s.fault != "" {
			t.Errorf("%+v: %s, %q", test, s.pod.Namespace, s.fault)
		}
	}
	for text, want := range map[string]int{"": 0, `[{"containerPort": 80}]`: 0, "[": 1, `[{"containerPort": 0}]`: 1} {
		if _, fault := portsIn(text); (fault != "") != (want > 0) {
			t.Errorf("%q: %q", text, fault)
		}
	}
}
