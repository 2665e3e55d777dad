package podsource

import (
	"maps"
	"slices"

	"weir/backends/dataplane"
	"weir/spec"
)

// maxFaults is how many pods of a source are named for what is wrong with them. Their authors decide how many there are.
const maxFaults = 20

// faults are the pods about which something is wrong, as the message of their status says.
type faults struct {
	of map[dataplane.ServiceName]string
	// shown are those that are named. It is nil if they changed.
	shown []spec.Notice
	named map[dataplane.ServiceName]bool
}

// note looks at the pods that changed.
func (f *faults) note(pods spec.Pods, delta spec.Delta) {
	if f.of == nil || delta.All {
		f.of, f.named, f.shown = map[dataplane.ServiceName]string{}, map[dataplane.ServiceName]bool{}, nil
		for name := range pods.Names() {
			delta.Pods = append(delta.Pods, name)
		}
	}
	for _, name := range delta.Pods {
		text := ""
		if pod := pods.Get(name); pod != nil {
			text = pod.Status.Message
		}
		before := f.of[name]
		switch {
		case text == before:
			continue
		case text == "":
			delete(f.of, name)
		default:
			f.of[name] = text
		}
		if f.named[name] || len(f.named) < maxFaults || len(f.of) == maxFaults+1 || len(f.of) == maxFaults {
			f.shown = nil
		}
	}
}

// notices returns a notice for each of the pods, up to a limit. It returns the same slice until they change.
func (f *faults) notices(source string) []spec.Notice {
	if f.shown != nil || len(f.of) == 0 {
		return f.shown
	}
	maps.DeleteFunc(f.named, func(name dataplane.ServiceName, _ bool) bool { return f.of[name] == "" })
	for name := range f.of {
		if len(f.named) >= maxFaults {
			break
		}
		f.named[name] = true
	}
	for _, name := range slices.SortedFunc(maps.Keys(f.named), dataplane.ServiceName.Compare) {
		f.shown = append(f.shown, spec.PodLabelIgnored.Notice(spec.Origin{}, "Pod "+name.String(), "", "of "+source+": "+f.of[name]))
	}
	if len(f.of) > maxFaults {
		f.shown = append(f.shown, spec.PodLabelIgnored.Notice(spec.Origin{}, "", "", "other pods of "+source+" have such faults too; weir discover tells each"))
	}
	return f.shown
}
