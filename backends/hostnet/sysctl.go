package hostnet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// maxValue bounds how much of a kernel parameter is read.
const maxValue = 4096

// Sysctl reads and writes kernel parameters. Those below "net" belong to the network namespace of the calling thread.
// The zero value uses /proc/sys.
type Sysctl struct {
	// Root replaces /proc/sys.
	Root string
}

// path accepts names as sysctl(8) does: "net.ipv4.ip_forward", or with slashes if a part has a dot in it, as in
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

// Get returns a value, with its fields separated by one space each. The error is fs.ErrNotExist if the kernel has no
// such parameter, perhaps because a module is not loaded.
func (s Sysctl) Get(name string) (string, error) {
	path, err := s.path(name)
	if err != nil {
		return "", err
	}
	data, err := readAtOnce(path)
	if err != nil {
		return "", fmt.Errorf("sysctl %s: %w", name, cause(err))
	}
	return normal(string(data)), nil
}

// readAtOnce reads a small file of /proc/sys. Every full sync reads each parameter, and an os.File takes three times as
// many system calls.
func readAtOnce(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var buf [maxValue]byte
	n, err := unix.Read(fd, buf[:])
	if err != nil {
		return nil, err
	}
	return buf[:n], nil
}

// Ensure writes the value unless the parameter has it already, and reports whether it wrote.
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

// writable reports whether the kernel lets anyone write the parameter here. Some belong to the host's network namespace, and
// in a container the file system may be read-only.
func (s Sysctl) writable(name string) bool {
	path, err := s.path(name)
	if err != nil {
		return false
	}
	info, err := os.Stat(path)
	return err == nil && info.Mode()&0o222 != 0 && !errors.Is(unix.Access(path, unix.W_OK), unix.EROFS)
}

func normal(value string) string { return strings.Join(strings.Fields(value), " ") }

// cause drops the path from an error, because the name of the parameter says the same.
func cause(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// Forwarding says which traffic the node forwards.
type Forwarding struct {
	IPv4, IPv6 bool
	// Localhost reports whether 127.0.0.0/8 serves node ports. Then the kernel must let such packets leave the loopback
	// interface.
	Localhost bool
}

// Check returns an error with one line for each parameter that has a value with which some traffic is not forwarded, and
// that weir does not set, because that has further effects. Forwarding of IPv6 makes the kernel ignore router
// advertisements. The error is a warning, since the traffic of the node itself works without.
func (f Forwarding) Check(s Sysctl) error {
	var errs []error
	if f.IPv6 {
		errs = append(errs, s.check("net.ipv6.conf.all.forwarding", "IPv6 packets are not forwarded to endpoints outside of the node's own processes", keepRouterAdvertisements))
	}
	return errors.Join(errs...)
}

// keepRouterAdvertisements is what else to do where IPv6 is forwarded.
const keepRouterAdvertisements = "; a node that takes its address or routes from router advertisements needs accept_ra=2 on that interface first (net.ipv6.conf.IFACE.accept_ra), or it loses them"

// check returns an error if the kernel has the parameter and it is 0.
func (s Sysctl) check(name, effect, before string) error {
	value, err := s.Get(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && value == "0" {
		err = fmt.Errorf("sysctl %s is 0: %s; set it to 1 if that matters%s", name, effect, before)
	}
	return err
}
