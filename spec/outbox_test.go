package spec

import (
	"errors"
	"fmt"
	"testing"

	"weir/backends/dataplane"
)

func TestOutbox(t *testing.T) {
	good := func(names ...string) Update {
		u := Update{Snapshot: &Snapshot{}, Delta: Delta{Config: len(names) == 0}}
		for _, n := range names {
			u.Delta.Services = append(u.Delta.Services, dataplane.ServiceName{Name: n})
		}
		return u
	}
	o := NewOutbox()
	o.Put(Update{Err: errors.New("one")})
	o.Put(good("a", "b"))
	o.Put(Update{Err: errors.New("two")})
	o.Put(good("b", "c"))
	o.Put(good())
	o.Put(Update{Err: errors.New("three")})
	<-o.Ready()
	if u, ok := o.Take(); !ok || fmt.Sprint(u.Delta) != "{false [/a /b /c] [] [] false true false}" {
		t.Errorf("merged delta %v", u.Delta)
	}
	<-o.Ready()
	if u, ok := o.Take(); !ok || u.Err.Error() != "three" {
		t.Errorf("then %+v, want the last error", u)
	}
	if _, ok := o.Take(); ok || len(o.Ready()) > 0 {
		t.Error("something is left")
	}
}
