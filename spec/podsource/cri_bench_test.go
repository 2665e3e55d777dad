package podsource

import (
	"context"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"weir/spec"
)

// BenchmarkCRI measures how long after a container ended a Source tells it, at 110 pods, by events and by poll.
func BenchmarkCRI(b *testing.B) {
	for _, version := range []string{withEvents, withoutEvents} {
		b.Run(map[string]string{withEvents: "events", withoutEvents: "poll"}[version], func(b *testing.B) {
			f := newFakeCRI(b, version)
			f.do("", func() {
				for i := range 110 {
					id := fmt.Sprint("s", i)
					f.run(id, "x", fmt.Sprint("p", i), fmt.Sprint("10.0.0.", 1+i), web)
				}
			})
			reader := f.reader()
			reader.every, reader.seldom = 0, 0 // as they are in use
			told := make(chan spec.Update, 1000)
			ctx, cancel := context.WithCancel(b.Context())
			done := make(chan struct{})
			go func() {
				defer close(done)
				_ = New(Options{Name: "cri", Reader: reader}).Watch(ctx, func(u spec.Update) { told <- u })
			}()
			defer func() { cancel(); <-done }()
			<-told
			time.Sleep(100 * time.Millisecond) // for the events to be asked for
			var all []time.Duration
			for i := 0; b.Loop(); i++ {
				id := fmt.Sprint("s", i%110)
				state := cri.ContainerState_CONTAINER_EXITED
				if i/110%2 == 1 {
					state = cri.ContainerState_CONTAINER_RUNNING
				}
				begun := time.Now()
				f.do(id+"-c", func() { f.containers[id+"-c"].State = state })
				<-told
				all = append(all, time.Since(begun))
				time.Sleep(time.Duration(i%10) * 10 * time.Millisecond) // at any moment between two looks
			}
			slices.Sort(all)
			b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, "ms-median")
			b.ReportMetric(float64(all[len(all)-1].Microseconds())/1000, "ms-worst")
		})
	}
}

// BenchmarkCRIIdle measures the processor time of a list of 110 pods that have not changed, of which there is one a second. That
// of the runtime, which runs in the same process here, is in it.
func BenchmarkCRIIdle(b *testing.B) {
	f := newFakeCRI(b, withoutEvents)
	f.do("", func() {
		for i := range 110 {
			f.run(fmt.Sprint("s", i), "x", fmt.Sprint("p", i), fmt.Sprint("10.0.0.", 1+i), web)
		}
	})
	v, err := f.reader().view()
	if err != nil {
		b.Fatal(err)
	}
	defer v.conn.Close()
	if _, err := v.look(b.Context(), nil); err != nil {
		b.Fatal(err)
	}
	var before, after syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &before)
	n := 0
	for ; b.Loop(); n++ {
		if c, err := v.look(b.Context(), nil); err != nil || len(c.Pods) > 0 {
			b.Fatal(err, len(c.Pods))
		}
	}
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &after)
	cpu := func(u syscall.Rusage) float64 { return float64(u.Utime.Nano() + u.Stime.Nano()) }
	b.ReportMetric((cpu(after)-cpu(before))/float64(n), "cpu-ns/op")
}
