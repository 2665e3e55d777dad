package main_test

import (
	"fmt"
	"math"
	"testing"
)

// falseAlarm bounds the chance that a correct backend fails one comparison of a share. Thousands are made in a run.
const falseAlarm = 1e-9

// shareBounds returns the smallest and the largest count that a share p of n independent choices has, but for a chance
// of falseAlarm on either side.
func shareBounds(n int, p float64) (lo, hi int) {
	if p >= 1 {
		return n, n
	}
	logChoose := func(k int) float64 {
		a, _ := math.Lgamma(float64(n + 1))
		b, _ := math.Lgamma(float64(k + 1))
		c, _ := math.Lgamma(float64(n - k + 1))
		return a - b - c
	}
	pmf := func(k int) float64 {
		return math.Exp(logChoose(k) + float64(k)*math.Log(p) + float64(n-k)*math.Log1p(-p))
	}
	for sum := pmf(0); sum < falseAlarm; sum += pmf(lo) {
		lo++
	}
	hi = n
	for sum := pmf(n); sum < falseAlarm; sum += pmf(hi) {
		hi--
	}
	return lo, hi
}

// checkShares compares how often each name was met with the weights. Everybody with a weight must have been met.
func checkShares(counts, weights map[string]int) error {
	n, total := 0, 0
	for name, c := range counts {
		if weights[name] == 0 {
			return fmt.Errorf("%s answered, which it should not: %v", name, counts)
		}
		n += c
	}
	for _, w := range weights {
		total += w
	}
	for name, w := range weights {
		lo, hi := shareBounds(n, float64(w)/float64(total))
		if c := counts[name]; c < max(lo, 1) || c > hi {
			return fmt.Errorf("%s answered %d of %d times, outside %d..%d for a share of %d/%d: %v", name, c, n, max(lo, 1), hi, w, total, counts)
		}
	}
	return nil
}

// enoughConnections returns how many connections meet every one of k equal answers, but for a chance of falseAlarm.
func enoughConnections(k int) int {
	if k == 1 {
		return 4
	}
	n := math.Log(falseAlarm/float64(k)) / math.Log1p(-1/float64(k))
	return max(int(math.Ceil(n)), 32*k)
}

func TestShareBounds(t *testing.T) {
	for _, tt := range []struct {
		n      int
		p      float64
		lo, hi int
	}{{100, 1, 100, 100}, {4, 0.5, 0, 4}} {
		if lo, hi := shareBounds(tt.n, tt.p); lo != tt.lo || hi != tt.hi {
			t.Errorf("shareBounds(%d, %v) = %d, %d; want %d, %d", tt.n, tt.p, lo, hi, tt.lo, tt.hi)
		}
	}
	lo, hi := shareBounds(1000, 0.5)
	if mean := 500.0; float64(lo) > mean-80 || float64(lo) < mean-110 || float64(hi) < mean+80 || float64(hi) > mean+110 {
		t.Errorf("shareBounds(1000, 0.5) = %d, %d: not six standard deviations around 500", lo, hi)
	}
	if err := checkShares(map[string]int{"a": 900, "b": 300}, map[string]int{"a": 3, "b": 1}); err != nil {
		t.Error(err)
	}
	for _, counts := range []map[string]int{{"a": 600, "b": 600}, {"a": 1200}, {"a": 899, "b": 300, "c": 1}} {
		if checkShares(counts, map[string]int{"a": 3, "b": 1}) == nil {
			t.Errorf("%v passes for shares of 3 to 1", counts)
		}
	}
}
