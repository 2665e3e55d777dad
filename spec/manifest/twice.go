package manifest

import (
	"fmt"
	"slices"
	"strings"

	"weir/spec"
)

// removeObject removes an object from the indexes. If the same document is elsewhere, the object of that one takes its
// place.
func (u *update) removeObject(o *object) {
	owner, spares := u.objects[o.id], u.spares[o.id]
	if owner.object != o {
		u.setSpares(o.id, slices.DeleteFunc(slices.Clone(spares), func(p *placed) bool { return p.object == o }))
		return
	}
	if len(spares) == 0 {
		u.link(owner, o, nil)
		remove(&u.undo, u.objects, o.id)
		return
	}
	u.replaceOwner(spares[0])
	u.setSpares(o.id, spares[1:])
}

// replaceOwner makes p the object of its name.
func (u *update) replaceOwner(p *placed) {
	owner := u.objects[p.id]
	u.link(owner, owner.object, nil)
	put(&u.undo, u.objects, p.id, p)
	u.link(nil, p.object, p)
}

func (u *update) setSpares(id objectID, spares []*placed) {
	if len(spares) == 0 {
		remove(&u.undo, u.spares, id)
		return
	}
	put(&u.undo, u.spares, id, spares)
}

// settleTwice decides about objects that are declared more than once. The first one, in the order of files and lines,
// wins. The others are spares if their documents are the same, and problems otherwise.
func (u *update) settleTwice() {
	for id, all := range u.twice {
		slices.SortFunc(all, func(a, b *placed) int { return compareOrigins(a.origin(), b.origin()) })
		first, spares := all[0], []*placed(nil)
		for _, p := range all[1:] {
			if p.at.body == first.at.body && p.at.content != first.at.content {
				spares = append(spares, p)
				continue
			}
			field := "metadata.name"
			if id.kind == kindLocked {
				field = "name"
			}
			ways := "keep one of the two, or leave one of the files out with --exclude or a .weirignore"
			if p.at.path == first.at.path {
				ways = "keep one of the two"
				if u.built(p.at.path) {
					ways = "a kustomization given with -k reads it too: leave its file out of -f, or leave out -k"
				}
			}
			u.problem(p, field, fmt.Sprintf("is declared already at %s; %s", first.origin(), ways))
		}
		if u.objects[id] != first {
			u.replaceOwner(first)
		}
		u.setSpares(id, spares)
	}
}

// built reports whether a kustomization renders objects of a file.
func (u *update) built(path string) bool {
	for key := range u.files { // seldom, for a problem
		if f, _, rendered := strings.Cut(key, "\x00"); rendered && f == path {
			return true
		}
	}
	return false
}

// sameDocument returns the notice about a document that is the same as that at first.
func sameDocument(at spec.Origin, object string, first spec.Origin) spec.Notice {
	return spec.DeclaredTwice.Notice(at, object, "", fmt.Sprintf("is the same as at %s: one of them is used; remove the other", first))
}
