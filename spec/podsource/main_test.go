package podsource

import (
	"testing"

	"weir/backends/netlab"
)

func TestMain(m *testing.M) { netlab.Main(m) }
