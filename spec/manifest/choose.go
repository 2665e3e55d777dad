package manifest

import (
	"bytes"
	"cmp"
	"encoding/json"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/config"
	"weir/spec/document"
)

// WeirOf returns the WeirConfiguration in a file, and the line of its allowedSigners, before the file is used.
func WeirOf(name string, data []byte) (w spec.WeirConfiguration, line int, ok bool) {
	texts, _ := document.Split(name, data)
	for _, text := range texts {
		if !bytes.Contains(text.Data, []byte(config.WeirKind)) {
			continue
		}
		doc := document.Parse(text)
		if doc.JSON() == nil || doc.String("kind") != config.WeirKind {
			continue
		}
		if w, problems := config.DecodeWeir(config.Doc{File: name, Document: doc}); len(problems) == 0 {
			return w, doc.Line("allowedSigners"), true
		}
	}
	return w, 0, false
}

// leaveOut skips an object that is not chosen, and reports whether it did.
func (d *decoding) leaveOut(kind string, metadata json.RawMessage, line int) bool {
	if d.namespace == "" && d.selector == nil || metadata == nil || strings.HasSuffix(kind, "List") {
		return false
	}
	var m struct {
		Name, Namespace string
		Labels          map[string]string
	}
	if json.Unmarshal(metadata, &m) != nil {
		return false // what is wrong with it is told
	}
	reason := ""
	switch {
	case d.namespace != "" && m.Namespace != "" && m.Namespace != d.namespace:
		reason = "is in another namespace"
	case d.selector != nil && kind == "Service" && !d.selector.Matches(labels.Set(m.Labels)):
		reason = "is not selected"
	default:
		return false
	}
	d.skip(kind, line)
	left := &d.out.skipped[len(d.out.skipped)-1]
	left.Reason, left.Unchosen = reason, true
	if kind == "Service" {
		namespace := cmp.Or(m.Namespace, d.namespace, metav1.NamespaceDefault)
		d.out.unchosen = append(d.out.unchosen, dataplane.ServiceName{Namespace: d.intern.string(namespace), Name: d.intern.string(m.Name)})
	}
	return true
}

// countUnchosen adds the Services that a document leaves out to the index, or removes them.
func (u *update) countUnchosen(d docAt, by int) {
	for _, name := range d.unchosen {
		u.dirty[name] = true
		if n := u.unchosen[name] + by; n > 0 {
			put(&u.undo, u.unchosen, name, n)
		} else {
			remove(&u.undo, u.unchosen, name)
		}
	}
}

// leftOut reports whether the Choice leaves out a Service of that name, so that nothing is said about what belongs to it.
func (u *update) leftOut(name dataplane.ServiceName) bool {
	return u.unchosen[name] > 0 || u.decoder.namespace != "" && name.Namespace != u.decoder.namespace
}
