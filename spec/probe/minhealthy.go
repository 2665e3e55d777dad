package probe

import (
	"fmt"
	"strconv"
	"strings"
)

// MinHealthy is how many endpoints of a Service must work for Probes to take any out. The zero value is the default, 1.
type MinHealthy struct {
	given   bool
	n       int
	percent bool
}

// ParseMinHealthy returns the MinHealthy of a text such as "1", "50%" or "0".
func ParseMinHealthy(text string) (MinHealthy, error) {
	number, percent := strings.CutSuffix(text, "%")
	n, err := strconv.ParseUint(number, 10, 31)
	if err != nil || percent && n > 100 || number[0] == '+' {
		return MinHealthy{}, fmt.Errorf("%q is neither a number of endpoints such as 1 nor a share of them such as 50%%", text)
	}
	return MinHealthy{true, int(n), percent}, nil
}

// Of returns the number for so many endpoints. A share is rounded up.
func (m MinHealthy) Of(endpoints int) int {
	switch {
	case !m.given:
		return 1
	case m.percent:
		return (m.n*endpoints + 99) / 100
	}
	return m.n
}

// String returns what ParseMinHealthy takes.
func (m MinHealthy) String() string {
	switch {
	case !m.given:
		return "1"
	case m.percent:
		return strconv.Itoa(m.n) + "%"
	}
	return strconv.Itoa(m.n)
}

// MarshalText implements encoding.TextMarshaler.
func (m MinHealthy) MarshalText() ([]byte, error) {
	if !m.given {
		return nil, nil
	}
	return []byte(m.String()), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *MinHealthy) UnmarshalText(text []byte) (err error) {
	if len(text) == 0 {
		*m = MinHealthy{}
		return nil
	}
	*m, err = ParseMinHealthy(string(text))
	return err
}
