package endpoints

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"weir/spec"
	"weir/spec/document"
)

const (
	// maxCandidates bounds the pods, and the templates, that are compared with one selector.
	maxCandidates = 128
	// maxMisses bounds the labels that are told.
	maxMisses = 3
)

// Nearest returns which of the pods and templates of a namespace is nearest to a selector that selects none of them, label by
// label: "pod default/web-0 has app=wep, wanted app=web". Pods that have ended count only if nothing else is near. It returns ""
// if none has any of the labels.
func Nearest(selector map[string]string, pods iter.Seq[*corev1.Pod], templates iter.Seq[*spec.Template]) string {
	n := nearest{selector: selector, keys: slices.Sorted(maps.Keys(selector)), least: 2 * len(selector)}
	among := func(dead bool) {
		if pods == nil {
			return
		}
		bounded(pods, func(p *corev1.Pod) {
			if ended(p) == dead {
				n.consider(p.Labels, func() string { return "pod " + p.Namespace + "/" + p.Name })
			}
		})
	}
	among(false)
	if templates != nil {
		bounded(templates, func(t *spec.Template) { n.consider(t.Labels, t.String) })
	}
	if n.text == "" {
		if among(true); n.text != "" {
			n.text += ", and is not running"
		}
	}
	return n.text
}

func bounded[V any](all iter.Seq[V], do func(V)) {
	left := maxCandidates
	for v := range all {
		if left--; left < 0 {
			return
		}
		do(v)
	}
}

type nearest struct {
	selector map[string]string
	keys     []string
	least    int // the distance of the nearest
	typos    int // how far its values are from those that are wanted, as texts
	text     string
}

// consider compares labels with the selector. A label of another value is nearer than none.
func (n *nearest) consider(labels map[string]string, what func() string) {
	distance, typos := 0, 0
	for _, k := range n.keys {
		switch v, has := labels[k]; {
		case !has:
			distance += 2
		case v != n.selector[k]:
			distance++
		}
	}
	if distance > n.least || distance >= 2*len(n.keys) || distance == 0 {
		return
	}
	for _, k := range n.keys {
		if v, has := labels[k]; has {
			typos += document.Distance(v, n.selector[k], 4)
		}
	}
	if distance == n.least && typos >= n.typos {
		return
	}
	n.least, n.typos = distance, typos
	var misses []string
	for _, k := range n.keys {
		switch v, has := labels[k]; {
		case !has:
			misses = append(misses, fmt.Sprintf("lacks %s=%s", k, n.selector[k]))
		case v != n.selector[k]:
			misses = append(misses, fmt.Sprintf("has %s=%s, wanted %s=%s", k, v, k, n.selector[k]))
		}
	}
	if more := len(misses) - maxMisses; more > 0 {
		misses = append(misses[:maxMisses], fmt.Sprintf("differs in %d more", more))
	}
	n.text = what() + " " + strings.Join(misses, ", and ")
}
