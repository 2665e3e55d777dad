package userspace

import (
	"fmt"

	"golang.org/x/sys/unix"

	"weir/backends/doctor"
)

// fewFiles is a limit of open files that a busy proxy would reach, because each connection takes two.
const fewFiles = 4096

// Doctor checks the requirements of the mode, except those of the redirection.
func Doctor() []doctor.Check {
	c := doctor.Check{Name: "open files", State: doctor.OK}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		c.State, c.Detail = doctor.Advice, err.Error()
		return []doctor.Check{c}
	}
	c.Detail = fmt.Sprintf("at most %d, two for each connection", limit.Max)
	if limit.Max < fewFiles {
		c.State = doctor.Advice
		c.Detail += ": too few for a busy node; give weir's service LimitNOFILE=1048576"
	}
	return []doctor.Check{c}
}
