package manifest

import "weir/spec/strict"

// fieldProblem is something wrong with one field of an object.
type fieldProblem struct{ field, detail string }

func decodeStrict(data []byte, out any) []fieldProblem {
	var problems []fieldProblem
	for _, p := range strict.Decode(data, out) {
		problems = append(problems, fieldProblem{p.Field, p.Detail})
	}
	return problems
}

func quote(s string) string { return strict.Quote(s) }

func printable(s string) string { return strict.Printable(s) }
