package backends

// Program is one run of a program: its arguments, the name among them, and its standard input.
type Program struct {
	Args  []string `json:"args"`
	Input string   `json:"input"`
}

// Scripter is implemented by a Backend that reaches the kernel through programs.
type Scripter interface {
	// Script returns the runs of programs, in order, that Apply makes of a Plan that was just worked out. It reads and
	// changes nothing.
	Script(p Plan) ([]Program, error)
}
