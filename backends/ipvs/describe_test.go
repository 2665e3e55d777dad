package ipvs

import (
	"testing"

	"weir/backends"
	"weir/backends/backendtest"
)

// knowing is a Backend that knows the name of the suite's Service, which the kernel does not know.
type knowing struct{ *Backend }

func (b knowing) Describe(items []backends.Item) []backends.ProgrammedFrontend {
	fronts := b.Backend.Describe(items)
	for i := range fronts {
		fronts[i].Service = "default/web:http"
	}
	return fronts
}

func (b knowing) Optional() backends.Optional { return backends.Optional{Describer: b} }

func TestDescribe(t *testing.T) {
	backendtest.Describe(t, knowing{New(testConfig(), testSettings(), nil, nil)})
}
