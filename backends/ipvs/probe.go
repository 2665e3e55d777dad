package ipvs

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Modules are what the ipvs mode needs of the kernel, besides the scheduler.
var Modules = []string{"ip_vs", "nf_conntrack", "dummy", "ip_set", "xt_set"}

// Probe says whether this node has IPVS and weir may use it, having asked for its modules to be loaded if need be. The error
// names the reason and the remedy.
func Probe(ctx context.Context) error {
	err := available()
	if !errors.Is(err, unix.ENOENT) {
		return err
	}
	// In a container there may be no modprobe, or no modules.
	said, loadErr := modprobe(ctx, Modules...)
	if err = available(); errors.Is(err, unix.ENOENT) {
		reason := "it was loaded and there is still none"
		if loadErr != nil {
			reason = loadErr.Error()
			if said != "" {
				reason = said
			}
		}
		return fmt.Errorf("the kernel has no IPVS (module ip_vs: %s); run `modprobe -a %s` on the node, or install a kernel that has it",
			reason, strings.Join(Modules, " "))
	}
	return err
}

// Present says whether the kernel has IPVS now, without loading anything.
func Present() bool { return available() == nil }

// available asks the kernel for IPVS itself: it may be built in, and /proc shows another namespace's in some containers.
func available() error {
	if _, err := netlink.GenlFamilyGet("IPVS"); err != nil {
		return fmt.Errorf("ask for IPVS: %w", err)
	}
	return nil
}

// modprobeTimeout bounds how long modules may take to load.
const modprobeTimeout = 10 * time.Second

func modprobe(ctx context.Context, modules ...string) (said string, err error) {
	ctx, cancel := context.WithTimeout(ctx, modprobeTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, "modprobe", append([]string{"-a"}, modules...)...).CombinedOutput()
	said, _, _ = strings.Cut(strings.TrimSpace(string(out)), "\n")
	return said, err
}
