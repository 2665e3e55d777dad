package changes

import (
	"fmt"
	"slices"
	"strings"

	"weir/spec"
)

const (
	// maxPlaces is how many places of a group of notices are named.
	maxPlaces = 3
	// maxDetails is how many groups the notices of one kind are divided into, by their detail.
	maxDetails = 3
)

// NoticeGroup holds notices of one kind that are told on one line.
type NoticeGroup struct {
	ID      spec.NoticeID
	Notices []spec.Notice // at least one
}

// GroupNotices divides notices into groups, in the order in which their kinds first occur. The notices of a kind with at
// most three different details make a group for each detail, so that each detail is read once. More details make one
// group. With verbose, each notice is a group of its own.
func GroupNotices(notices []spec.Notice, verbose bool) []NoticeGroup {
	var kinds []spec.NoticeID
	byKind := map[spec.NoticeID][]spec.Notice{}
	for _, n := range notices {
		if byKind[n.ID()] == nil {
			kinds = append(kinds, n.ID())
		}
		byKind[n.ID()] = append(byKind[n.ID()], n)
	}
	var groups []NoticeGroup
	for _, id := range kinds {
		groups = append(groups, groupKind(id, byKind[id], verbose)...)
	}
	return groups
}

func groupKind(id spec.NoticeID, notices []spec.Notice, verbose bool) []NoticeGroup {
	at := map[string]int{}
	var groups []NoticeGroup
	for i, n := range notices {
		key := n.Detail
		if verbose {
			key = fmt.Sprint(i)
		}
		j, seen := at[key]
		if !seen {
			j = len(groups)
			at[key] = j
			groups = append(groups, NoticeGroup{ID: id})
			if len(groups) > maxDetails && !verbose {
				return []NoticeGroup{{id, notices}}
			}
		}
		groups[j].Notices = append(groups[j].Notices, n)
	}
	return groups
}

// String returns the group on one line: a single notice as it is, others with their count and the first places.
func (g NoticeGroup) String() string {
	if len(g.Notices) == 1 {
		return spec.Clean(g.Notices[0].Error())
	}
	return fmt.Sprintf("%d times: %s: %s", len(g.Notices), g.Detail(), g.Places())
}

// Detail returns what holds for all notices of the group: their field and detail if they agree, else the meaning of their
// kind.
func (g NoticeGroup) Detail() string {
	first := g.Notices[0]
	agree := func(part func(spec.Notice) string) bool {
		return !slices.ContainsFunc(g.Notices, func(n spec.Notice) bool { return part(n) != part(first) })
	}
	switch {
	case !agree(func(n spec.Notice) string { return n.Detail }):
		return strings.TrimSuffix(g.ID.Meaning(), ".")
	case first.Field != "" && agree(func(n spec.Notice) string { return n.Field }):
		return spec.Clean(first.Field + ": " + first.Detail)
	}
	return spec.Clean(first.Detail)
}

// Places returns the first places of the group, and how many more there are.
func (g NoticeGroup) Places() string {
	var places []string
	for _, n := range g.Notices[:min(maxPlaces, len(g.Notices))] {
		place := n.Origin.String()
		switch {
		case place == "":
			place = n.Object
		case n.Object != "":
			place += " (" + n.Object + ")"
		}
		if !slices.Contains(places, spec.Clean(place)) {
			places = append(places, spec.Clean(place))
		}
	}
	text := strings.Join(places, ", ")
	if more := len(g.Notices) - maxPlaces; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// Folded reports whether any group leaves out what --verbose would tell.
func Folded(groups []NoticeGroup) bool {
	return slices.ContainsFunc(groups, func(g NoticeGroup) bool { return len(g.Notices) > 1 })
}
