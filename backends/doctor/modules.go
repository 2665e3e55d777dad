package doctor

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Module is where the kernel has a module.
type Module string

// The places.
const (
	Loaded   Module = "loaded"
	BuiltIn  Module = "built in"
	Loadable Module = "not loaded"
	Absent   Module = "absent"
	Unknown  Module = "unknown" // the kernel's modules are not listed here, as in a container
)

// Modules finds the modules of the running kernel. The zero value reads the system.
type Modules struct {
	// Root replaces /.
	Root string
	// Release replaces the output of uname -r.
	Release string
}

// formerNames are the modules that did the work of others in older kernels, and load those: before Linux 4.19 nf_conntrack alone
// tracked no connection.
var formerNames = map[string]string{"nf_conntrack": "nf_conntrack_ipv4"}

// named returns the name that the running kernel has for a module.
func (m Modules) named(module string) string {
	if former, ok := formerNames[module]; ok {
		if at := m.Find(former); at != Absent && at != Unknown {
			return former
		}
	}
	return module
}

// Find returns where the kernel has a module.
func (m Modules) Find(name string) Module {
	if m.mentions("/proc/modules", func(line string) bool { return firstWord(line) == name }) {
		return Loaded
	}
	dir := filepath.Join("/lib/modules", m.release())
	isFile := func(line string) bool {
		file, _, _ := strings.Cut(line, ":")
		base, _, _ := strings.Cut(filepath.Base(strings.TrimSpace(file)), ".ko")
		return strings.ReplaceAll(base, "-", "_") == name
	}
	_, err := os.Stat(filepath.Join(m.Root, dir, "modules.dep"))
	switch {
	case m.mentions(filepath.Join(dir, "modules.builtin"), isFile):
		return BuiltIn
	case m.mentions(filepath.Join(dir, "modules.dep"), isFile):
		return Loadable
	case m.exists(filepath.Join("/sys/module", name)):
		return BuiltIn // those that have parameters are there, too
	case errors.Is(err, fs.ErrNotExist):
		return Unknown
	}
	return Absent
}

// CheckWork makes the Check of a module whose work was tried, with the given result. If the work failed, the Check
// proposes to load the module.
func (m Modules) CheckWork(name, module string, result error) Check {
	c := m.Check(name, module)
	switch {
	case result == nil:
		c.State, c.Detail = OK, "it works"
		if at := m.Find(module); at == Loaded || at == BuiltIn {
			c.Detail = fmt.Sprintf("module %s is %s", module, at)
		}
	case errors.Is(result, unix.EPERM):
		c.State, c.Mend = Missing, ""
		c.Detail = "this process may not use it: it takes CAP_NET_ADMIN outside of any user namespace"
	case m.Find(module) == Loaded || m.Find(module) == BuiltIn:
		c.State, c.Mend = Missing, ""
		c.Detail = fmt.Sprintf("module %s is %s, and yet: %v", module, m.Find(module), result)
	case c.State == Advice:
		c.State = Missing
		c.Detail = fmt.Sprintf("this kernel does not have it (%v), and there is no /lib/modules/%s here to load %s from", result, m.release(), module)
	}
	return c
}

// Check makes the Check of modules all of which are needed. A module that can be loaded counts as present if this
// process may load it.
func (m Modules) Check(name string, modules ...string) Check {
	where := map[Module][]string{}
	modules = slices.Clone(modules)
	for i, module := range modules {
		module = m.named(module)
		modules[i] = module
		at := m.Find(module)
		where[at] = append(where[at], module)
	}
	c := Check{Name: name, State: OK, Mend: "modprobe -a " + strings.Join(modules, " ")}
	var told []string
	for _, at := range []Module{Loaded, BuiltIn, Loadable, Absent, Unknown} {
		if list := where[at]; len(list) > 0 {
			told = append(told, strings.Join(list, ", ")+" "+string(at))
		}
	}
	c.Detail = strings.Join(told, "; ")
	switch {
	case len(where[Absent]) > 0:
		c.State, c.Mend = Missing, ""
		c.Detail += fmt.Sprintf(": install a kernel that has it; %s has not", m.release())
	case len(where[Unknown]) > 0:
		c.State, c.Mend = Advice, ""
		c.Detail += fmt.Sprintf(": there is no /lib/modules/%s here", m.release())
	case len(where[Loadable]) > 0 && !Capable(unix.CAP_SYS_MODULE):
		c.State = Missing
		c.Detail += ", and this process may not load modules"
	case len(where[Loadable]) > 0:
		c.Detail += ": loaded when needed"
	}
	return c
}

func (m Modules) release() string {
	if m.Release != "" {
		return m.Release
	}
	return KernelRelease()
}

// KernelRelease returns the release of the running kernel, as uname -r prints it.
func KernelRelease() string {
	var u unix.Utsname
	_ = unix.Uname(&u)
	return unix.ByteSliceToString(u.Release[:])
}

func (m Modules) exists(name string) bool {
	_, err := os.Stat(filepath.Join(m.Root, name))
	return err == nil
}

func (m Modules) mentions(file string, matches func(line string) bool) bool {
	f, err := os.Open(filepath.Join(m.Root, file))
	if err != nil {
		return false
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if matches(lines.Text()) {
			return true
		}
	}
	return false
}

func firstWord(line string) string {
	word, _, _ := strings.Cut(line, " ")
	return word
}
