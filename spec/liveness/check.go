package liveness

import (
	"net/netip"
	"time"

	"weir/backends/dataplane"
	"weir/spec/probe"
)

// verdict is what is known of an endpoint.
type verdict uint8

const (
	unjudged verdict = iota
	healthy
	unhealthy
)

// check asks one endpoint one Probe, again and again, for every Service that needs it.
type check struct {
	probe *probe.Probe
	to    probe.Target
	pod   dataplane.ServiceName // that the endpoint is, if it is one
	key   netip.AddrPort
	users []*service

	judge   judge
	verdict verdict
	since   time.Time     // when the verdict came
	lasted  time.Duration // how long the one before stood
	// awaited reports whether the endpoint came and has not succeeded yet. Without a verdict, any other endpoint is as its slice
	// says.
	awaited bool
	// told is the verdict that the log has.
	told verdict

	began    time.Time // when the first probe was, or is planned
	tries    int       // without success since the endpoint came
	asked    time.Time // when it was asked last
	result   probe.Result
	next     time.Time
	phased   bool // the check has its place within the period
	ended    bool
	at       int   // the index in the queue, -1 while it runs
	print    print // of the Probe
	noted    bool  // the file of verdicts has a line for it
	restored bool  // an earlier process noted it
}

// stands has a check go on from a verdict.
func (c *check) stands(v verdict) {
	c.verdict = v
	switch v {
	case healthy:
		c.judge = judge{probe.Success, c.probe.SuccessThreshold}
	case unhealthy:
		c.judge = judge{probe.Failure, c.probe.FailureThreshold}
	}
}

// follow has a new check know what is known by another one, which asks the same at other times or with other thresholds.
func (c *check) follow(o *check) {
	c.stands(o.verdict)
	c.told, c.since, c.lasted = o.told, o.since, o.lasted
	c.began, c.asked, c.result = o.began, o.asked, o.result
}

// queue is a heap of checks, the next one first. It implements heap.Interface.
type queue []*check

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].next.Before(q[j].next) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].at, q[j].at = i, j
}

// Push implements heap.Interface.
func (q *queue) Push(x any) {
	c := x.(*check)
	c.at = len(*q)
	*q = append(*q, c)
}

// Pop implements heap.Interface.
func (q *queue) Pop() any {
	last := len(*q) - 1
	c := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	c.at = -1
	return c
}
