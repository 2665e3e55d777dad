package dataplane

import (
	"net/netip"
	"reflect"
	"testing"
	"time"
)

// TestEqualForgetsNoField sets one field at a time.
func TestEqualForgetsNoField(t *testing.T) {
	values := map[string]any{
		"Key": ServicePortName{Port: "x"}, "ClusterIP": netip.MustParseAddr("10.0.0.1"), "Port": uint16(1), "NodePort": uint16(1), "NodePortExcept": []netip.Addr{{}},
		"ExternalIPs": []netip.Addr{{}}, "LoadBalancerIPs": []netip.Addr{{}}, "SourceRanges": []netip.Prefix{{}},
		"InternalLocal": true, "ExternalLocal": true, "Affinity": time.Second, "Endpoints": []Endpoint{{}},
		"HasEndpoints": true, "HealthCheckNodePort": uint16(1), "Scheduler": "rr",
		"Serving": []netip.AddrPort{{}}, "ServingLocal": []netip.AddrPort{{}}, "ProxyProtocol": true, "Reset": true, "Probe": "tcpSocket",
		"Answered": true,
	}
	kind := reflect.TypeFor[ServicePort]()
	for i := range kind.NumField() {
		name := kind.Field(i).Name
		if name == "Origin" {
			continue
		}
		v, ok := values[name]
		if !ok {
			t.Errorf("no value for the field %s: add it here, and to Equal", name)
			continue
		}
		var a, b ServicePort
		reflect.ValueOf(&b).Elem().Field(i).Set(reflect.ValueOf(v))
		if a.Equal(&b) {
			t.Errorf("%s is not compared", name)
		}
	}
}
