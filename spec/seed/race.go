//go:build race

package seed

// Race reports whether the race detector is on.
const Race = true
