package spec

import (
	"iter"
	"strings"

	iradix "github.com/hashicorp/go-immutable-radix/v2"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"weir/backends/dataplane"
)

// Services is a map of Services by name.
type Services = ByName[*Service]

// Pods is a map of pods by namespace and name.
type Pods = ByName[*corev1.Pod]

// Slices are EndpointSlices of one source for a Service that this source does not declare. They are immutable.
type Slices struct {
	List []*discoveryv1.EndpointSlice // sorted by name
	// Origin is the place where the first one was written, and Object is its kind and name. Notices need both.
	Origin Origin
	Object string
	// Files are the files of the List, as SliceFiles of a Service are. Nil means that of Origin.
	Files []string
}

// SliceFile returns the file of a slice of the Service, "" if the source reads no files.
func (s *Service) SliceFile(i int) string { return fileOf(s.SliceFiles, i, s.Origin) }

// File returns the file of a slice.
func (s Slices) File(i int) string { return fileOf(s.Files, i, s.Origin) }

func fileOf(files []string, i int, own Origin) string {
	if len(files) == 0 {
		return own.File
	}
	return files[min(i, len(files)-1)]
}

// ByName is an immutable map by namespace and name, mostly those of Services. The zero value is empty. A changed copy shares
// everything with the original except the path to the change, so that one change costs O(log N) in time and memory.
type ByName[V any] struct{ tree *iradix.Tree[V] }

// Get returns the value of that name, or the zero value.
func (m ByName[V]) Get(n dataplane.ServiceName) (v V) {
	if m.tree != nil {
		v, _ = m.tree.Get(keyOf(n))
	}
	return v
}

// Len returns the number of values.
func (m ByName[V]) Len() int {
	if m.tree == nil {
		return 0
	}
	return m.tree.Len()
}

// All yields the values, ordered by namespace/name.
func (m ByName[V]) All() iter.Seq[V] {
	return func(yield func(V) bool) {
		if m.tree != nil {
			m.tree.Root().Walk(func(_ []byte, v V) bool { return !yield(v) })
		}
	}
}

// In yields the values of a namespace, ordered by name.
func (m ByName[V]) In(namespace string) iter.Seq[V] {
	return func(yield func(V) bool) {
		if m.tree != nil {
			m.tree.Root().WalkPrefix([]byte(namespace+"/"), func(_ []byte, v V) bool { return !yield(v) })
		}
	}
}

// Names yields the names, in the order of All.
func (m ByName[V]) Names() iter.Seq[dataplane.ServiceName] {
	return func(yield func(dataplane.ServiceName) bool) {
		if m.tree != nil {
			m.tree.Root().Walk(func(key []byte, _ V) bool { return !yield(nameOf(key)) })
		}
	}
}

// Edit returns a Builder that starts with the contents of m.
func (m ByName[V]) Edit() *Builder[V] {
	if m.tree == nil {
		m.tree = iradix.New[V]()
	}
	return &Builder[V]{m.tree.Txn()}
}

// Builder makes a changed copy of a map. One goroutine may use it, until Commit.
type Builder[V any] struct{ txn *iradix.Txn[V] }

// Get returns the value of that name, or the zero value. It sees earlier changes.
func (b *Builder[V]) Get(n dataplane.ServiceName) V {
	v, _ := b.txn.Get(keyOf(n))
	return v
}

// Put adds or replaces a value.
func (b *Builder[V]) Put(n dataplane.ServiceName, v V) { b.txn.Insert(keyOf(n), v) }

// Delete removes a value. A missing name is no error.
func (b *Builder[V]) Delete(n dataplane.ServiceName) { b.txn.Delete(keyOf(n)) }

// Commit returns the copy.
func (b *Builder[V]) Commit() ByName[V] { return ByName[V]{b.txn.Commit()} }

// ServicesOf returns a map of the given Services.
func ServicesOf(all ...*Service) Services {
	b := Services{}.Edit()
	for _, svc := range all {
		b.Put(svc.Name, svc)
	}
	return b.Commit()
}

func keyOf(n dataplane.ServiceName) []byte { return []byte(n.Namespace + "/" + n.Name) }

func nameOf(key []byte) dataplane.ServiceName {
	namespace, name, _ := strings.Cut(string(key), "/")
	return dataplane.ServiceName{Namespace: namespace, Name: name}
}
