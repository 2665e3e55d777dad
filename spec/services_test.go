package spec

import (
	"slices"
	"testing"

	"weir/backends/dataplane"
)

func TestServicesArePersistent(t *testing.T) {
	name := func(n string) dataplane.ServiceName { return dataplane.ServiceName{Namespace: "d", Name: n} }
	var none Services
	if none.Len() != 0 || none.Get(name("a")) != nil || len(slices.Collect(none.All())) != 0 || len(slices.Collect(none.Names())) != 0 {
		t.Error("the zero value is not empty")
	}
	a, b := &Service{Name: name("a")}, &Service{Name: name("b")}
	first := ServicesOf(b, a)
	edit := first.Edit()
	edit.Delete(a.Name)
	edit.Delete(name("nobody"))
	edit.Put(name("c"), &Service{Name: name("c")})
	if edit.Get(a.Name) != nil || edit.Get(b.Name) != b {
		t.Error("a Builder does not see its changes")
	}
	second := edit.Commit()
	if got := slices.Collect(first.All()); !slices.Equal(got, []*Service{a, b}) {
		t.Errorf("the original changed: %v", got)
	}
	if got := slices.Collect(second.Names()); !slices.Equal(got, []dataplane.ServiceName{b.Name, name("c")}) || second.Len() != 2 {
		t.Errorf("the copy holds %v", got)
	}
}
