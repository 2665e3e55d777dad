package iptables

import "weir/backends"

// Script implements backends.Scripter. Its input is exactly what Apply gives to iptables-restore, unless the kernel
// changes in between.
func (b *Backend) Script(p backends.Plan) ([]backends.Program, error) {
	changes, err := sortChanges(p)
	if err != nil {
		return nil, err
	}
	var runs []backends.Program
	for _, f := range b.cfg.Families {
		if in := b.compose(f, changes); in.tables > 0 {
			runs = append(runs, backends.Program{Args: b.restoreArgs(f), Input: string(in.text)})
		}
	}
	return runs, nil
}

// restoreArgs is how iptables-restore is called; a Kernel that calls no program gives it the name that it has everywhere.
func (b *Backend) restoreArgs(f backends.Family) []string {
	kernel := b.kernel
	if r, ok := kernel.(renamed); ok {
		kernel = r.Kernel
	}
	if k, ok := kernel.(*programs); ok {
		return k.restoreArgs(f)
	}
	if f == backends.IPv6 {
		return []string{"ip6tables-restore", "--noflush"}
	}
	return []string{"iptables-restore", "--noflush"}
}

// Script implements backends.Scripter.
func (l *Layer) Script(p backends.Plan) ([]backends.Program, error) {
	runs, err := l.b.Script(inwardPlan(p))
	for i := range runs {
		runs[i].Input = outwardText(runs[i].Input)
	}
	return runs, err
}
