package ipvs

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/moby/ipvs"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weir/backends/doctor"
)

// Modules are the kernel modules that ipvs mode needs, besides the scheduler.
var Modules = []string{"ip_vs", "nf_conntrack", "dummy", "ip_set", "xt_set"}

// Probe returns an error if this node has no IPVS or weir may not use it. It first asks for the modules to be loaded,
// if need be. The error names the reason and the remedy.
func Probe(ctx context.Context) error {
	missing, err := lacking()
	if err != nil || len(missing) == 0 {
		return err
	}
	// In a container there may be no modprobe, or no modules.
	said, loadErr := modprobe(ctx, Modules...)
	if missing, err = lacking(); err != nil || len(missing) == 0 {
		return err
	}
	reason := "modprobe succeeded, and it is not there"
	if loadErr != nil {
		reason = loadErr.Error()
		if said != "" {
			reason = strconv.Quote(said)
		}
	}
	return fmt.Errorf("the kernel lacks %s (%s); run `modprobe -a %s` on the node, or install a kernel that has it",
		strings.Join(missing, ", "), reason, strings.Join(Modules, " "))
}

// Present reports whether the kernel has everything that the mode needs now. It runs no program.
func Present() bool {
	missing, err := lacking()
	return err == nil && len(missing) == 0
}

// parts are the parts of the kernel that the mode needs.
var parts = []struct {
	module string
	does   string
	probe  func() error
}{
	{"ip_vs", "IPVS", probeIPVS},
	{"dummy", "dummy interfaces", probeDummy},
	{"ip_set", "ipset", probeIPSet},
	{"xt_set", "rules that match sets", probeSetMatch},
}

// lacking returns the modules whose work the kernel cannot do. It tries the work itself, because a module may be built
// in, and a container may see neither /proc/modules nor the files of modules. The kernel loads by itself the modules
// that it can.
func lacking() (modules []string, err error) {
	for _, part := range parts {
		switch err := part.probe(); {
		case errors.Is(err, unix.EPERM):
			return nil, fmt.Errorf("the kernel does not let this process use IPVS: %w; weir needs CAP_NET_ADMIN outside of any user namespace", err)
		case err != nil:
			modules = append(modules, part.module)
		}
	}
	return modules, nil
}

// genericHeader has the command and the version of a request. nl.Genlmsg, which netlink.GenlFamilyGet sends, has two bytes of the
// four, and takes the others from whatever lies beside it in memory, where the race detector finds the writes of others.
type genericHeader [4]byte

func (h genericHeader) Len() int          { return len(h) }
func (h genericHeader) Serialize() []byte { return h[:] }

func probeIPVS() error {
	req := nl.NewNetlinkRequest(nl.GENL_ID_CTRL, 0)
	req.AddData(genericHeader{nl.GENL_CTRL_CMD_GETFAMILY, nl.GENL_CTRL_VERSION})
	req.AddData(nl.NewRtAttr(nl.GENL_CTRL_ATTR_FAMILY_NAME, nl.ZeroTerminated("IPVS")))
	if _, err := req.Execute(unix.NETLINK_GENERIC, 0); err != nil {
		return err
	}
	h, err := ipvs.New("")
	if err != nil {
		return err
	}
	defer h.Close()
	_, err = h.GetConfig()
	return err
}

// probeDummy asks for an impossible interface: its hardware address has one byte. If the kernel has dummy interfaces,
// it complains about the address.
func probeDummy() error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(LinkName)))
	req.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, []byte{2}))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("dummy"))
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

func probeIPSet() error {
	s, err := openIPSets()
	if err != nil {
		return err
	}
	defer s.close()
	return s.probe()
}

// What iptables-nft asks the kernel for a match by (linux/netfilter/nf_tables_compat.h).
const (
	compatGet         = 0
	compatName        = 1
	compatRevision    = 2
	compatType        = 3
	compatTypeOfMatch = 0
	setMatchRevision  = 4
)

// probeSetMatch returns an error if rules cannot match by sets. It does not ask a kernel without nf_tables, because
// iptables itself will report the error.
func probeSetMatch() error {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFT_COMPAT<<8|compatGet, unix.NLM_F_ACK)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_INET, Version: nl.NFNETLINK_V0})
	req.AddData(nl.NewRtAttr(compatName, nl.ZeroTerminated("set")))
	req.AddData(nl.NewRtAttr(compatRevision, nl.BEUint32Attr(setMatchRevision)))
	req.AddData(nl.NewRtAttr(compatType, nl.BEUint32Attr(compatTypeOfMatch)))
	_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

// modprobeTimeout bounds how long loading modules may take.
const modprobeTimeout = 10 * time.Second

func modprobe(ctx context.Context, modules ...string) (said string, err error) {
	ctx, cancel := context.WithTimeout(ctx, modprobeTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, "modprobe", append([]string{"-a"}, modules...)...).CombinedOutput()
	said, _, _ = strings.Cut(strings.TrimSpace(string(out)), "\n")
	return said, err
}

// CanMatchTranslated reports whether rules can match what IPVS translated.
func CanMatchTranslated() bool {
	switch (doctor.Modules{}).Find("xt_ipvs") {
	case doctor.Loaded, doctor.BuiltIn, doctor.Loadable:
		return true
	}
	return false
}
