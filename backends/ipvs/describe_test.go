package ipvs

import (
	"testing"

	"weir/backends"
	"weir/backends/backendtest"
)

// knowing is a Backend that knows the name of the suite's Service, which the kernel is not told.
type knowing struct{ *Backend }

func (b knowing) Describe(items []backends.Item) []backends.Front {
	fronts := b.Backend.Describe(items)
	for i := range fronts {
		fronts[i].Service = "default/web:http"
	}
	return fronts
}

func TestDescribe(t *testing.T) {
	backendtest.Describe(t, knowing{New(testConfig(), testSettings(), nil, nil)})
}
