package conntrack

import (
	"fmt"
	"strconv"

	"weir/backends/doctor"
)

// Getter reads kernel parameters.
type Getter interface {
	Get(name string) (string, error)
}

// Doctor checks the kernel's table of flows, because a full one drops new connections.
func Doctor(s Getter) doctor.Check {
	c := doctor.Check{Name: "conntrack", State: doctor.OK}
	most, err := number(s, "net.netfilter.nf_conntrack_max")
	if err != nil {
		c.Detail = "not in use yet: " + err.Error()
		return c
	}
	now, err := number(s, "net.netfilter.nf_conntrack_count")
	if err != nil {
		c.State, c.Detail = doctor.Advice, err.Error()
		return c
	}
	c.Detail = fmt.Sprintf("%d flows of at most %d", now, most)
	if now > most/10*9 {
		c.State = doctor.Advice
		c.Detail += ": when the table is full, new connections are dropped; weir run sets what the configuration's conntrack section says"
		c.Mend = fmt.Sprintf("sysctl -w net.netfilter.nf_conntrack_max=%d", 2*most)
	}
	return c
}

func number(s Getter, name string) (int, error) {
	value, err := s.Get(name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(value)
}
