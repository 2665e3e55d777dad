package main

import (
	"slices"
	"testing"

	"weir/spec"
)

// TestPodLayersStay changes which runtimes are asked. One that goes on being asked keeps its layer, because all pods of a layer
// are replaced when its source is.
func TestPodLayersStay(t *testing.T) {
	made := map[spec.PodSource]int{}
	p := &podLayers{sources: map[spec.PodSource]func(*spec.Snapshot) (*namedPods, error){}, follow: func(s spec.PodSource, former *namedPods) func(*spec.Snapshot) (*namedPods, error) {
		made[s]++
		source := &namedPods{name: s.String()}
		source.inherit(former)
		return func(*spec.Snapshot) (*namedPods, error) { return source, nil }
	}}
	a, b, c, node := spec.PodSource{Kind: "podman", Socket: "/a"}, spec.PodSource{Kind: "cri", Socket: "/b"}, spec.PodSource{Kind: "docker", Socket: "/c"}, spec.PodSource{Kind: "kubelet", Socket: "/k"}
	a2, a3 := spec.PodSource{Kind: "podman", Socket: "/a2"}, spec.PodSource{Kind: "podman", Socket: "/a3"}
	at := func() (names []string) {
		for i := range p.slots {
			name := "-"
			if source, _ := p.source(i, nil); source != nil {
				name = source.(*namedPods).name
				if before := source.(*namedPods).succeeds; before != "" {
					name += " for " + before
				}
			}
			names = append(names, name)
		}
		return names[:4]
	}
	steps := []struct {
		all  []spec.PodSource
		want []string
	}{
		{[]spec.PodSource{a, b}, []string{"-", a.String(), b.String(), "-"}},
		{[]spec.PodSource{b}, []string{"-", "-", b.String(), "-"}},
		{[]spec.PodSource{b, node, c}, []string{node.String(), c.String(), b.String(), "-"}},
		{[]spec.PodSource{a, b, node, c}, []string{node.String(), c.String(), b.String(), a.String()}},
		{nil, []string{"-", "-", "-", "-"}},
		{[]spec.PodSource{b}, []string{"-", b.String(), "-", "-"}},
		// One of the same kind takes the place of another, any other kind does not.
		{[]spec.PodSource{b, a}, []string{"-", b.String(), a.String(), "-"}},
		{[]spec.PodSource{b, a2}, []string{"-", b.String(), a2.String() + " for " + a.String(), "-"}},
		{[]spec.PodSource{a2, c}, []string{"-", c.String(), a2.String() + " for " + a.String(), "-"}},
		{[]spec.PodSource{a3}, []string{"-", "-", a3.String() + " for " + a.String(), "-"}}, // the one between never answered
	}
	for _, step := range steps {
		p.assign(step.all)
		p.assign(step.all)
		if got := at(); !slices.Equal(got, step.want) {
			t.Errorf("of %v, the layers are %v", step.all, got)
		}
	}
	if made[b] != 2 || made[a2] != 1 || made[node] != 1 {
		t.Errorf("sources were made as often as %v", made)
	}
}
