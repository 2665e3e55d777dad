package manifest

// undo reverts changes, so that a refused Update leaves no trace.
type undo struct{ steps []func() }

// rollback restores the state before the first change.
func (u *undo) rollback() {
	for i := len(u.steps) - 1; i >= 0; i-- {
		u.steps[i]()
	}
	u.steps = nil
}

func put[K comparable, V any](u *undo, m map[K]V, k K, v V) {
	restore(u, m, k)
	m[k] = v
}

func remove[K comparable, V any](u *undo, m map[K]V, k K) {
	restore(u, m, k)
	delete(m, k)
}

func restore[K comparable, V any](u *undo, m map[K]V, k K) {
	old, had := m[k]
	if !had { // as for each file of a first Update, so this closure is small
		u.steps = append(u.steps, func() { delete(m, k) })
		return
	}
	u.steps = append(u.steps, func() { m[k] = old })
}

// assign changes a variable.
func assign[V any](u *undo, p *V, v V) {
	old := *p
	u.steps = append(u.steps, func() { *p = old })
	*p = v
}
