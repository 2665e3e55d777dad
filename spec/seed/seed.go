// Package seed gives random tests the number they begin with, so that a failure can be seen again and a run that nothing has
// changed for does not fail.
package seed

import (
	"hash/fnv"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
)

// variable holds the seed of a run: 1 if it is not set. make fuzz sets it to the time.
const variable = "WEIR_TEST_SEED"

// Rand returns what a test draws from. It differs from test to test, and for one of them it depends on nothing but the seed
// of the run, which is printed if the test fails.
func Rand(t testing.TB) *rand.Rand {
	t.Helper()
	seed := uint64(1)
	if text := os.Getenv(variable); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("%s: %v", variable, err)
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("to see this again: %s=%d", variable, seed)
		}
	})
	h := fnv.New64a()
	h.Write([]byte(t.Name()))
	return rand.New(rand.NewPCG(seed, h.Sum64()))
}

// Steps returns how many of n random steps a test takes that has one goroutine: a quarter of them under the race detector,
// which makes each take ten times as long and finds nothing there. make fuzz takes all.
func Steps(n int) int {
	if Race {
		return max(n/4, 1)
	}
	return n
}
