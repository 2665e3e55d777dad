package spec

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"weir/spec/seed"
)

// TestSkippedDocuments changes files at random and compares each version with a map, also after later ones were made.
func TestSkippedDocuments(t *testing.T) {
	rnd := seed.Rand(t)
	type version struct {
		docs SkippedDocuments
		want map[string][]Skipped
	}
	versions := []version{{want: map[string][]Skipped{}}}
	for range 200 {
		last := versions[len(versions)-1]
		changed, want := map[string][]Skipped{}, maps.Clone(last.want)
		for range rnd.IntN(5) {
			file := fmt.Sprintf("%s%d.yaml", []string{"", "a/", "a/b/", "a-b/", "/a/"}[rnd.IntN(5)], rnd.IntN(4))
			changed[file] = nil
			for line := range rnd.IntN(3) {
				changed[file] = append(changed[file], Skipped{Origin: Origin{File: file, Line: line + 1}, Kind: fmt.Sprint(rnd.IntN(9))})
			}
			if want[file] = changed[file]; changed[file] == nil {
				delete(want, file)
			}
		}
		versions = append(versions, version{last.docs.With(maps.All(changed)), want})
	}
	for i, v := range versions {
		var want []Skipped
		for _, file := range slices.Sorted(maps.Keys(v.want)) {
			want = append(want, v.want[file]...)
			if got := v.docs.Of(file); !slices.Equal(got, v.want[file]) {
				t.Errorf("version %d: %s has %v, want %v", i, file, got, v.want[file])
			}
		}
		if got := slices.Collect(v.docs.All()); !slices.Equal(got, want) {
			t.Errorf("version %d: got %v, want %v", i, got, want)
		}
		if got := v.docs.Of("a/none.yaml"); got != nil {
			t.Errorf("version %d: %v", i, got)
		}
	}
}
