package main

import (
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// tools are the programs of this machine that the guest gets, by their Debian package.
var tools = map[string][]string{
	"busybox-static": {"busybox"},
	"bash":           {"bash"}, // busybox's shell would run its own ip and sysctl
	"iptables": {
		"iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore",
		"iptables-nft", "iptables-nft-save", "iptables-nft-restore", "ip6tables-nft", "ip6tables-nft-save", "ip6tables-nft-restore",
		"iptables-legacy", "iptables-legacy-save", "iptables-legacy-restore", "ip6tables-legacy", "ip6tables-legacy-save", "ip6tables-legacy-restore",
	},
	"nftables":  {"nft"},
	"ipset":     {"ipset"},
	"ipvsadm":   {"ipvsadm"},
	"conntrack": {"conntrack"},
	"iproute2":  {"ip", "ss"},
	"procps":    {"sysctl"},
}

// prepare returns the kernel and the base of the root file system. It makes the parts that are not cached.
func prepare(cache string) (kernel, base string, err error) {
	if runtime.GOARCH != "amd64" {
		return "", "", fmt.Errorf("the machine is an amd64 one, and this is %s", runtime.GOARCH)
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", "", err
	}
	unlock, err := lockFile(filepath.Join(cache, "lock"))
	if err != nil {
		return "", "", err
	}
	defer unlock()
	tree := filepath.Join(cache, "kernel")
	kernels, _ := filepath.Glob(tree + "/boot/vmlinuz-*")
	if len(kernels) == 0 {
		if err := fetchKernel(cache, tree); err != nil {
			return "", "", err
		}
		if kernels, _ = filepath.Glob(tree + "/boot/vmlinuz-*"); len(kernels) == 0 {
			return "", "", fmt.Errorf("%s/boot holds no kernel; remove %s and run again", tree, cache)
		}
	}
	found, err := findTools()
	if err != nil {
		return "", "", err
	}
	base = filepath.Join(cache, "base-"+fingerprint(kernels[0], found)+".cpio")
	if !exists(base) {
		if err := makeBase(base, tree, found); err != nil {
			return "", "", fmt.Errorf("making the guest's root file system: %w", err)
		}
	}
	return kernels[0], base, nil
}

// lockFile ensures that only one process at a time prepares the cache.
func lockFile(name string) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

// findTools returns the path of each tool, and an error that names the packages if any is missing.
func findTools() (map[string]string, error) {
	found, missing := map[string]string{}, []string{}
	for pkg, names := range tools {
		for _, name := range names {
			if found[name] = lookTool(name); found[name] == "" {
				missing = append(missing, pkg)
			}
		}
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		missing = append(missing, "qemu-system-x86")
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return nil, fmt.Errorf("missing for the virtual machine: apt-get install %s", strings.Join(slices.Compact(missing), " "))
	}
	return found, nil
}

func lookTool(name string) string {
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/bin", "/bin"} {
		if p := filepath.Join(dir, name); exists(p) {
			return p
		}
	}
	return ""
}

// fingerprint identifies a base. Another vmexec, kernel or tool needs a new base.
func fingerprint(kernel string, found map[string]string) string {
	files := slices.Sorted(maps.Values(found))
	if self, err := os.Executable(); err == nil {
		files = append(files, self)
	}
	h := fnv.New64a()
	for _, file := range append(files, kernel) {
		if info, err := os.Stat(file); err == nil {
			fmt.Fprintln(h, file, info.Size(), info.ModTime().UnixNano())
		}
	}
	return strconv.FormatUint(h.Sum64(), 36)
}

// kernelPackage is the kernel package for virtual machines in every Debian; it depends on the current version.
const kernelPackage = "linux-image-cloud-amd64"

// fetchKernel downloads the kernel's package and unpacks it.
func fetchKernel(cache, tree string) error {
	deb, err := download(cache)
	if err != nil && os.Geteuid() == 0 {
		// The package lists are missing, or so old that the packages in them no longer exist.
		if out, err := exec.Command("apt-get", "-q", "update").CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get update: %w: %s", err, out)
		}
		deb, err = download(cache)
	}
	if err != nil {
		return fmt.Errorf("%w; does apt-get update help?", err)
	}
	partial := tree + ".partial"
	if err := os.RemoveAll(partial); err != nil {
		return err
	}
	if out, err := exec.Command("dpkg-deb", "-x", deb, partial).CombinedOutput(); err != nil {
		return fmt.Errorf("dpkg-deb -x %s: %w: %s", deb, err, out)
	}
	versions, _ := filepath.Glob(partial + "/lib/modules/*")
	if len(versions) != 1 {
		return fmt.Errorf("%s holds %d kernel versions, want 1", deb, len(versions))
	}
	depmod := lookTool("depmod")
	if depmod == "" {
		return errors.New("missing for the virtual machine: apt-get install kmod")
	}
	if out, err := exec.Command(depmod, "-b", partial, filepath.Base(versions[0])).CombinedOutput(); err != nil {
		return fmt.Errorf("depmod: %w: %s", err, out)
	}
	return os.Rename(partial, tree)
}

var dependsOn = regexp.MustCompile(`Depends: (linux-image-\S+)`)

// download returns the file with the package that kernelPackage stands for.
func download(cache string) (deb string, err error) {
	out, err := exec.Command("apt-cache", "depends", kernelPackage).Output()
	name := dependsOn.FindSubmatch(out)
	if err != nil || name == nil {
		return "", fmt.Errorf("apt knows no %s", kernelPackage)
	}
	fmt.Fprintf(os.Stderr, "vmexec: downloading %s\n", name[1])
	cmd := exec.Command("apt-get", "-q", "download", string(name[1]))
	cmd.Dir = cache
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("apt-get download %s: %w: %s", name[1], err, out)
	}
	debs, _ := filepath.Glob(filepath.Join(cache, string(name[1])+"_*.deb"))
	if len(debs) == 0 {
		return "", fmt.Errorf("apt-get download left no package in %s", cache)
	}
	return debs[len(debs)-1], nil
}

// makeBase writes the part of the root file system that is the same for all tests.
func makeBase(base, tree string, found map[string]string) error {
	old, _ := filepath.Glob(filepath.Join(filepath.Dir(base), "base*.cpio"))
	for _, f := range old {
		os.Remove(f)
	}
	f, err := os.Create(base + ".partial")
	if err != nil {
		return err
	}
	defer f.Close()
	a := newArchive(f)
	for _, dir := range []string{"/proc", "/sys", "/dev", "/tmp", "/run", "/root", "/var/lib", "/etc", "/applets"} {
		a.dir(dir)
	}
	a.text("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
	a.text("/etc/protocols", "ip 0 IP\nicmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\nipv6-icmp 58 IPv6-ICMP\nsctp 132 SCTP\n")
	if err := addModules(a, tree); err != nil {
		return err
	}
	if err := addTools(a, found); err != nil {
		return err
	}
	if err := a.close(); err != nil {
		return err
	}
	return os.Rename(base+".partial", base)
}

// addModules adds the modules for networking, without the drivers.
func addModules(a *archive, tree string) error {
	return a.tree("/lib/modules", filepath.Join(tree, "lib", "modules"), func(p string) bool {
		if !strings.Contains(p, "/kernel/") {
			return strings.Contains(filepath.Base(p), "modules.")
		}
		for _, part := range []string{"/kernel/net/", "/kernel/lib/", "/kernel/crypto/", "/kernel/arch/x86/crypto/", "/drivers/net/dummy", "/drivers/net/veth"} {
			if strings.Contains(p, part) {
				return true
			}
		}
		return false
	})
}

func addTools(a *archive, found map[string]string) error {
	have := map[string]bool{}
	for _, tool := range slices.Sorted(maps.Keys(found)) {
		// The iptables programs are one binary, which acts according to the name by which it is called.
		real, err := filepath.EvalSymlinks(found[tool])
		if err != nil {
			return err
		}
		if err := addBinary(a, real, have); err != nil {
			return err
		}
		if path := "/usr/sbin/" + tool; path != real {
			a.symlink(path, real)
		}
	}
	a.symlink("/bin/sh", "/usr/sbin/bash")
	a.symlink("/sbin/modprobe", "/usr/sbin/busybox") // the kernel calls it by this name
	extensions, _ := filepath.Glob("/usr/lib/*/xtables/*.so")
	for _, so := range extensions {
		if err := addBinary(a, so, have); err != nil {
			return err
		}
	}
	return a.err
}

var sharedObject = regexp.MustCompile(`(/\S+) \(0x`)

// addBinary copies a program or shared object, with everything that it is linked to.
func addBinary(a *archive, file string, have map[string]bool) error {
	if have[file] {
		return nil
	}
	have[file] = true
	if err := a.file(file, file); err != nil {
		return err
	}
	out, err := exec.Command("ldd", file).Output()
	if err != nil {
		// Static, or a plug-in that is linked when it is loaded.
		return nil
	}
	for _, m := range sharedObject.FindAllSubmatch(out, -1) {
		if lib := string(m[1]); !have[lib] {
			have[lib] = true
			if err := a.file(lib, lib); err != nil {
				return err
			}
		}
	}
	return nil
}
