package status

import (
	"slices"
	"strings"

	"weir/backends/dataplane"
)

// maxCompletions bounds the Services of Completions: a person does not choose from more.
const maxCompletions = 1000

// Completions are how a name that has been begun may go on.
type Completions struct {
	// Namespaces are those that begin like the name, sorted.
	Namespaces []string `json:"namespaces"`
	// Services are those whose name, or namespace/name, begins like the name, sorted, up to a limit.
	Services []dataplane.ServiceName `json:"services"`
}

// Complete returns how a name that begins with prefix may go on, by the input that was last accepted.
func (b *Board) Complete(prefix string) Completions {
	b.mu.Lock()
	services := b.services
	b.mu.Unlock()
	c := Completions{Namespaces: []string{}, Services: []dataplane.ServiceName{}}
	for n := range services.Names() {
		if strings.HasPrefix(n.Namespace, prefix) && !slices.Contains(c.Namespaces[max(0, len(c.Namespaces)-1):], n.Namespace) {
			c.Namespaces = append(c.Namespaces, n.Namespace)
		}
		if len(c.Services) < maxCompletions && (strings.HasPrefix(n.Name, prefix) || strings.HasPrefix(n.String(), prefix)) {
			c.Services = append(c.Services, n)
		}
	}
	return c
}
