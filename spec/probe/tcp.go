package probe

import (
	"io"
	"strings"
)

// tcp connects, unless a socket does so already. Success is a connection, and the answer that the Probe expects if it expects one.
func (p *Probe) tcp(c *connection, connecting *socket) Result {
	var conn io.ReadWriter
	var err error
	if connecting != nil {
		conn, err = c.streamOf(connecting, false)
	} else {
		conn, err = c.stream(c.at.Port())
	}
	if err != nil {
		return failure(p.fault(c.ctx, err))
	}
	if p.Send == "" && p.Expect == "" {
		return success("")
	}
	if _, err := io.WriteString(conn, p.Send); err != nil {
		return failure(p.fault(c.ctx, err))
	}
	answer := make([]byte, max(1, len(p.Expect)))
	n, err := io.ReadFull(conn, answer)
	switch said := string(answer[:n]); {
	case n == 0:
		return failure(p.fault(c.ctx, err))
	case p.Expect == "" || said == p.Expect:
		return success(said)
	case !strings.HasPrefix(p.Expect, said):
		return failure("answered " + said)
	default:
		return failure("answered no more than " + said + ": " + p.fault(c.ctx, err))
	}
}
