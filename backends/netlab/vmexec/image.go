package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// tools are the programs of this machine that the guest gets, as far as they are installed.
var tools = []string{
	"iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore",
	"iptables-nft", "iptables-nft-save", "iptables-nft-restore", "ip6tables-nft", "ip6tables-nft-save", "ip6tables-nft-restore",
	"iptables-legacy", "iptables-legacy-save", "iptables-legacy-restore", "ip6tables-legacy", "ip6tables-legacy-save", "ip6tables-legacy-restore",
	"nft", "ipset", "ipvsadm", "conntrack", "ip", "ss", "sysctl",
}

// prepare returns the kernel and the base of the root file system, making what is not cached.
func prepare(cache string) (kernel, base string, err error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", "", err
	}
	unlock, err := lockFile(filepath.Join(cache, "lock"))
	if err != nil {
		return "", "", err
	}
	defer unlock()
	tree := filepath.Join(cache, "kernel")
	if kernels, _ := filepath.Glob(tree + "/boot/vmlinuz-*"); len(kernels) == 0 {
		if err := fetchKernel(cache, tree); err != nil {
			return "", "", err
		}
	}
	kernels, _ := filepath.Glob(tree + "/boot/vmlinuz-*")
	if len(kernels) == 0 {
		return "", "", fmt.Errorf("%s/boot holds no kernel; remove %s and run again", tree, cache)
	}
	base = filepath.Join(cache, "base.cpio")
	if _, err := os.Stat(base); err != nil {
		if err := makeBase(base, tree); err != nil {
			return "", "", fmt.Errorf("making the guest's root file system: %w", err)
		}
	}
	return kernels[0], base, nil
}

// fetchKernel downloads the package that linux-image-cloud-amd64 stands for and unpacks it.
func fetchKernel(cache, tree string) error {
	out, err := exec.Command("apt-cache", "depends", "linux-image-cloud-amd64").Output()
	if err != nil {
		return fmt.Errorf("apt-cache depends linux-image-cloud-amd64: %w; run apt-get update", err)
	}
	name := regexp.MustCompile(`Depends: (linux-image-\S+)`).FindSubmatch(out)
	if name == nil {
		return fmt.Errorf("apt knows no linux-image-cloud-amd64; run apt-get update")
	}
	fmt.Fprintf(os.Stderr, "vmexec: downloading %s\n", name[1])
	download := exec.Command("apt-get", "-q", "download", string(name[1]))
	download.Dir, download.Stderr = cache, os.Stderr
	if err := download.Run(); err != nil {
		return fmt.Errorf("apt-get download %s: %w", name[1], err)
	}
	debs, _ := filepath.Glob(filepath.Join(cache, "linux-image-*.deb"))
	if len(debs) == 0 {
		return fmt.Errorf("apt-get download left no package in %s", cache)
	}
	partial := tree + ".partial"
	if err := os.RemoveAll(partial); err != nil {
		return err
	}
	if out, err := exec.Command("dpkg-deb", "-x", debs[0], partial).CombinedOutput(); err != nil {
		return fmt.Errorf("dpkg-deb -x %s: %w: %s", debs[0], err, out)
	}
	versions, _ := filepath.Glob(partial + "/lib/modules/*")
	if len(versions) != 1 {
		return fmt.Errorf("%s holds %d kernel versions, want 1", debs[0], len(versions))
	}
	depmod := exec.Command("depmod", "-b", partial, filepath.Base(versions[0]))
	depmod.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/sbin:/usr/sbin")
	if out, err := depmod.CombinedOutput(); err != nil {
		return fmt.Errorf("depmod: %w: %s", err, out)
	}
	return os.Rename(partial, tree)
}

// makeBase writes the part of the root file system that is the same for all tests.
func makeBase(base, tree string) error {
	f, err := os.Create(base + ".partial")
	if err != nil {
		return err
	}
	defer f.Close()
	a := newArchive(f)
	for _, dir := range []string{"/proc", "/sys", "/dev", "/tmp", "/run", "/root", "/var/lib", "/etc"} {
		a.dir(dir)
	}
	a.text("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
	a.text("/etc/protocols", "ip 0 IP\nicmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\nipv6-icmp 58 IPv6-ICMP\nsctp 132 SCTP\n")
	if err := addModules(a, tree); err != nil {
		return err
	}
	if err := addTools(a); err != nil {
		return err
	}
	if err := a.close(); err != nil {
		return err
	}
	return os.Rename(base+".partial", base)
}

// addModules takes what networking needs and leaves the drivers.
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

func addTools(a *archive) error {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("%w; install busybox-static", err)
	}
	if err := a.file("/bin/busybox", busybox); err != nil {
		return err
	}
	for _, applet := range []string{"/bin/sh", "/sbin/modprobe"} {
		a.symlink(applet, "/bin/busybox")
	}
	have := map[string]bool{}
	for _, tool := range tools {
		found := lookTool(tool)
		if found == "" {
			continue
		}
		// The iptables programs are one binary that goes by the name it is called with.
		real, err := filepath.EvalSymlinks(found)
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
	extensions, _ := filepath.Glob("/usr/lib/*/xtables/*.so")
	for _, so := range extensions {
		if err := addBinary(a, so, have); err != nil {
			return err
		}
	}
	return a.err
}

func lookTool(name string) string {
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/bin", "/bin"} {
		if p := filepath.Join(dir, name); exists(p) {
			return p
		}
	}
	return ""
}

func exists(p string) bool {
	_, err := os.Stat(p)
	return err == nil
}

var sharedObject = regexp.MustCompile(`(/\S+) \(0x`)

// addBinary copies a program or shared object with everything that it is linked to.
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
