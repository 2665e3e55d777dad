package config

import (
	"errors"
	"fmt"

	"weir/spec"
	"weir/spec/probe"
)

// LivenessFields are the fields of the section liveness of a WeirConfiguration, as users write them.
type LivenessFields struct {
	// Disabled has no probe asked: an endpoint works if its EndpointSlice says so. Example: true.
	Disabled bool `json:"disabled"`
	// AllowHosts are addresses, ranges of addresses and host names that probes may connect to, besides the addresses of
	// endpoints. A probe with another host is not asked. Default: none. Example: [127.0.0.1, 192.0.2.0/24, health.example].
	AllowHosts []string `json:"allowHosts"`
}

// liveness returns the fields as settings. It reports invalid ones, in which case the result is not usable.
func (in *LivenessFields) liveness(report func(field, format string, args ...any)) spec.Liveness {
	if len(in.AllowHosts) == 0 {
		return spec.Liveness{Disabled: in.Disabled}
	}
	hosts, err := probe.ParsePolicy(in.AllowHosts)
	if bad := (*probe.HostError)(nil); errors.As(err, &bad) {
		report(fmt.Sprintf("liveness.allowHosts[%d]", bad.Index), "%v", err)
	}
	return spec.Liveness{Disabled: in.Disabled, Hosts: hosts}
}
