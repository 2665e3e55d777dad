package probe

import (
	"context"
	"fmt"
)

// exec runs the command in the container. Success is the exit code 0. Anything but an exit code says nothing about the
// endpoint, unless it is that the command did not end in time.
func (p *Probe) exec(ctx context.Context, to *Target) Result {
	if to.Exec == nil {
		return unknown("no runtime is there to run the command")
	}
	exit, output, err := to.Exec(ctx, p.Origin.Container, p.Command)
	switch {
	case ctx.Err() != nil:
		return failure("the command did not end within " + p.Timeout.String())
	case err != nil:
		return unknown(err.Error())
	case exit != 0:
		return failure(fmt.Sprintf("the command ended with %d: %s", exit, output[:min(len(output), maxBody)]))
	}
	return success(string(output[:min(len(output), maxBody)]))
}
