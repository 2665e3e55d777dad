package probe

import (
	"reflect"
	"testing"
	"time"
)

// Each field of a Probe but its origin makes two Probes differ, so that a change of it is seen.
func TestEqual(t *testing.T) {
	full := func() *Probe {
		return &Probe{Kind: HTTP, Port: Port{Number: 80}, Period: time.Second, Timeout: time.Second, InitialDelay: time.Second,
			SuccessThreshold: 1, FailureThreshold: 3, Path: "/", Headers: []Header{{"A", "b"}}, Statuses: []Statuses{{200, 299}}, Command: []string{"true"}}
	}
	if !full().Equal(full()) {
		t.Fatal("two Probes with the same fields differ")
	}
	for i := range reflect.TypeFor[Probe]().NumField() {
		name := reflect.TypeFor[Probe]().Field(i).Name
		o := full()
		switch f := reflect.ValueOf(o).Elem().Field(i); f.Kind() {
		case reflect.Bool:
			f.SetBool(!f.Bool())
		case reflect.Uint8:
			f.SetUint(f.Uint() + 1)
		case reflect.Int, reflect.Int64:
			f.SetInt(f.Int() + 1)
		case reflect.String:
			f.SetString(f.String() + "x")
		case reflect.Slice:
			f.Set(reflect.MakeSlice(f.Type(), f.Len(), f.Len()))
		case reflect.Struct:
			f.Set(reflect.Zero(f.Type()))
			if name == "Origin" {
				o.Origin.File, o.Origin.Line = "a.yaml", 3
			}
		default:
			t.Fatalf("%s is of a kind that this test does not know", name)
		}
		if equal := full().Equal(o); equal != (name == "Origin") {
			t.Errorf("with another %s, Equal returns %v", name, equal)
		}
	}
}

func TestString(t *testing.T) {
	for want, p := range map[string]Probe{
		"httpGet :8080/ready every 10s, timeout 1s, 3 failures, 1 success": {Kind: HTTP, Port: Port{Number: 8080}, Path: "/ready", Period: 10 * time.Second, Timeout: time.Second, SuccessThreshold: 1, FailureThreshold: 3},
		"httpGet / with TLS every 10s, timeout 1s, 3 failures, 1 success":  {Kind: HTTP, Path: "/", TLS: true, Period: 10 * time.Second, Timeout: time.Second, SuccessThreshold: 1, FailureThreshold: 3},
		"tcpSocket :db every 500ms, timeout 1s, 1 failure, 2 successes":    {Kind: TCP, Port: Port{Name: "db"}, Period: time.Second / 2, Timeout: time.Second, SuccessThreshold: 2, FailureThreshold: 1},
		"exec rm -rf every 1s, timeout 1s, 1 failure, 1 success":           {Kind: Exec, Command: []string{"rm", "\x1b-rf"}, Period: time.Second, Timeout: time.Second, SuccessThreshold: 1, FailureThreshold: 1},
	} {
		if got := p.String(); got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
}

func TestMinHealthy(t *testing.T) {
	for text, want := range map[string][3]int{"0": {0, 0, 0}, "1": {1, 1, 1}, "3": {3, 3, 3}, "50%": {0, 1, 5}, "0%": {0, 0, 0}, "100%": {0, 1, 10}} {
		m, err := ParseMinHealthy(text)
		if err != nil || m.String() != text {
			t.Errorf("%s: %v, %v", text, m, err)
		}
		if got := [3]int{m.Of(0), m.Of(1), m.Of(10)}; got != want {
			t.Errorf("%s of 0, 1 and 10: got %v, want %v", text, got, want)
		}
	}
	for _, text := range []string{"", "%", "-1", "+1", "101%", "1.5", "half", " 1", "1 ", "99999999999", "0x1"} {
		if m, err := ParseMinHealthy(text); err == nil {
			t.Errorf("%q is taken for %v", text, m)
		}
	}
	if (MinHealthy{}).Of(10) != 1 {
		t.Error("the default is not 1")
	}
}

func TestPolicy(t *testing.T) {
	p, err := ParsePolicy([]string{"192.0.2.1", "10.0.0.0/8", "2001:db8::/32", "Example.COM."})
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]bool{
		"192.0.2.1": true, "192.0.2.2": false, "10.1.2.3": true, "::ffff:10.1.2.3": true, "2001:db8::1": true, "fe80::1%eth0": false,
		"example.com": true, "EXAMPLE.com.": true, "www.example.com": false, "": false, "127.0.0.1": false, "localhost": false, "0x0a.1": false,
	} {
		if got := p.Allows(host); got != want {
			t.Errorf("%q: got %v, want %v", host, got, want)
		}
	}
	for _, bad := range []string{"", "a b", "1.2.3", "1.2.3.4/33", "-a", "a..b", "http://x", "fe80::1%eth0", "*", "*.example.com"} {
		if _, err := ParsePolicy([]string{bad}); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	if (*Policy)(nil).Allows("example.com") || !(*Policy)(nil).Equal(&Policy{}) || p.Equal(nil) {
		t.Error("no policy allows a host, or differs from an empty one")
	}
}
