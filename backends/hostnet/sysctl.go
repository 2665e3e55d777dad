package hostnet

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// maxValue bounds what is read of a kernel parameter.
const maxValue = 4096

// Sysctl reads and writes kernel parameters. Those below "net" are of the network namespace of the calling thread. The zero
// value uses /proc/sys.
type Sysctl struct {
	// Root replaces /proc/sys.
	Root string
}

// path takes names as sysctl(8) does: "net.ipv4.ip_forward", or with slashes where a part has a dot in it, as in
// "net/ipv4/conf/eth0.100/route_localnet".
func (s Sysctl) path(name string) (string, error) {
	rel := name
	if !strings.Contains(name, "/") {
		rel = strings.ReplaceAll(name, ".", "/")
	}
	if !filepath.IsLocal(rel) {
		return "", fmt.Errorf("sysctl %q: not a name", name)
	}
	root := s.Root
	if root == "" {
		root = "/proc/sys"
	}
	return filepath.Join(root, rel), nil
}

// Get returns a value, with its fields separated by one space each. The error is fs.ErrNotExist if the kernel has no such
// parameter, perhaps because a module is not loaded.
func (s Sysctl) Get(name string) (string, error) {
	path, err := s.path(name)
	if err != nil {
		return "", err
	}
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("sysctl %s: %w", name, cause(err))
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxValue))
	if err != nil {
		return "", fmt.Errorf("sysctl %s: %w", name, cause(err))
	}
	return normal(string(data)), nil
}

// Ensure writes the value unless it is there already, and says whether it wrote.
func (s Sysctl) Ensure(name, value string) (changed bool, err error) {
	is, err := s.Get(name)
	if err != nil || is == normal(value) {
		return false, err
	}
	path, err := s.path(name)
	if err != nil {
		return false, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(value)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return false, fmt.Errorf("sysctl %s is %s and cannot be set to %s: %w", name, is, value, cause(err))
	}
	return true, nil
}

func normal(value string) string { return strings.Join(strings.Fields(value), " ") }

// cause drops the path from an error, since the name says the same.
func cause(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// Forwarding says what the node has to do with packets.
type Forwarding struct {
	IPv4, IPv6 bool
	// Localhost says that 127.0.0.0/8 serves node ports, so that the kernel must let such packets leave the loopback
	// interface.
	Localhost bool
}

// Ensure sets the parameters that forwarding depends on and returns the names of those it changed. Two it only checks,
// because they would do more than what is needed here: forwarding of IPv6 makes the kernel ignore router advertisements,
// and bridge-nf-call-iptables puts bridged traffic of everybody through the packet filter. The error holds one line for
// each that is not as it should be; it is a warning, since the traffic of the node itself works without.
func (f Forwarding) Ensure(s Sysctl) (changed []string, err error) {
	var errs []error
	set := func(name string) {
		wrote, err := s.Ensure(name, "1")
		if wrote {
			changed = append(changed, name)
		}
		errs = append(errs, err)
	}
	if f.IPv4 {
		set("net.ipv4.ip_forward")
		errs = append(errs, s.check("net.bridge.bridge-nf-call-iptables", "Services do not work between pods on one Linux bridge"))
	}
	if f.IPv6 {
		errs = append(errs,
			s.check("net.ipv6.conf.all.forwarding", "IPv6 packets are not forwarded to endpoints outside of the node's own processes"),
			s.check("net.bridge.bridge-nf-call-ip6tables", "IPv6 Services do not work between pods on one Linux bridge"))
	}
	if f.Localhost {
		set("net.ipv4.conf.all.route_localnet")
	}
	return changed, errors.Join(errs...)
}

// check returns an error if the kernel has the parameter and it is 0.
func (s Sysctl) check(name, effect string) error {
	value, err := s.Get(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && value == "0" {
		err = fmt.Errorf("sysctl %s is 0: %s; set it to 1 if that matters", name, effect)
	}
	return err
}
