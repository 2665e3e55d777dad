package config

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	logsapi "k8s.io/component-base/logs/api/v1"
	kubeproxyconfig "k8s.io/kube-proxy/config/v1alpha1"
)

// validate reports what kube-proxy would refuse, and faults that kube-proxy would only find later.
func validate(r *reporter, c *KubeProxy) {
	validateServer(r, c)
	validateMode(r, c)
	validateLocalDetector(r, c.KubeProxyConfiguration)
	validateConntrack(r, &c.Conntrack)
	validateLogging(r, c.KubeProxyConfiguration)

	validateNodePortAddresses(r, c.NodePortAddresses)
}

func validateNodePortAddresses(r *reporter, list []string) {
	for i, a := range list {
		field := fmt.Sprintf("nodePortAddresses[%d]", i)
		keyword := slices.Contains(nodePortKeywords, a)
		switch {
		case keyword && slices.Contains(list[:i], a):
			r.add(field, "%q is there twice", a)
		case !keyword && !validPrefix(a):
			r.add(field, "%q is neither a CIDR nor one of %s", a, join(nodePortKeywords))
		}
	}
}

func validateServer(r *reporter, c *KubeProxy) {
	if !validAddr(c.BindAddress) {
		r.add("bindAddress", "%q is not an IP address", c.BindAddress)
	}
	validateHostPort(r, "healthzBindAddress", c.HealthzBindAddress)
	validateHostPort(r, "metricsBindAddress", c.MetricsBindAddress)
	inRange(r, "oomScoreAdj", *c.OOMScoreAdj, -1000, 1000)
	inRange(r, "clientConnection.burst", c.ClientConnection.Burst, 0, math.MaxInt32)
	if c.ConfigSyncPeriod.Duration <= 0 {
		r.add("configSyncPeriod", "%v is not greater than 0", c.ConfigSyncPeriod.Duration)
	}
	if c.UDPIdleTimeout <= 0 {
		r.add("udpIdleTimeout", "%v is not greater than 0", c.UDPIdleTimeout)
	}
	if _, err := utilnet.ParsePortRange(c.PortRange); err != nil {
		r.add("portRange", "%q is not a port range, such as 30000-32767", c.PortRange)
	}
	if v := c.ShowHiddenMetricsForVersion; v != "" && !minorVersion.MatchString(v) {
		r.add("showHiddenMetricsForVersion", "%q is not a minor version, such as 1.36", v)
	}
}

var minorVersion = regexp.MustCompile(`^\d+\.\d+$`)

func validateHostPort(r *reporter, field, value string) {
	host, port, err := net.SplitHostPort(value)
	if err != nil {
		r.add(field, "%q is not IP:port, such as 127.0.0.1:10249 or [::1]:10249", value)
		return
	}
	if !validAddr(host) {
		r.add(field, "%q: %q is not an IP address", value, host)
	}
	if p, err := strconv.ParseUint(port, 10, 16); err != nil || p == 0 {
		r.add(field, "%q: port %s is not between 1 and 65535", value, port)
	}
}

// ipvsSchedulers are the schedulers of the kernel, several of which are newer than kube-proxy's list.
var ipvsSchedulers = []string{"rr", "wrr", "lc", "wlc", "fo", "ovf", "lblc", "lblcr", "dh", "sh", "sed", "nq", "mh", "twos"}

// validateMode checks the section of the mode, and that of iptables. As with kube-proxy, the sections of other modes may
// hold anything.
func validateMode(r *reporter, c *KubeProxy) {
	inRange(r, "iptables.masqueradeBit", *c.IPTables.MasqueradeBit, 0, 31)
	validatePeriods(r, "iptables", c.IPTables.SyncPeriod.Duration, c.IPTables.MinSyncPeriod.Duration)
	switch c.Mode {
	case "", ModeIPTables, ModeUserspace:
	case ModeIPVS:
		validateIPVS(r, &c.IPVS)
	case ModeNFTables:
		inRange(r, "nftables.masqueradeBit", *c.NFTables.MasqueradeBit, 0, 31)
		validatePeriods(r, "nftables", c.NFTables.SyncPeriod.Duration, c.NFTables.MinSyncPeriod.Duration)
	case "kernelspace":
		r.add("mode", "kernelspace is for Windows; use iptables, ipvs, nftables or userspace")
	default:
		r.add("mode", "%q is not one of %s", c.Mode, join(modes))
	}
}

func validateIPVS(r *reporter, c *kubeproxyconfig.KubeProxyIPVSConfiguration) {
	validatePeriods(r, "ipvs", c.SyncPeriod.Duration, c.MinSyncPeriod.Duration)
	notNegative(r, "ipvs.tcpTimeout", c.TCPTimeout.Duration)
	notNegative(r, "ipvs.tcpFinTimeout", c.TCPFinTimeout.Duration)
	notNegative(r, "ipvs.udpTimeout", c.UDPTimeout.Duration)
	if s := c.Scheduler; s != "" && !slices.Contains(ipvsSchedulers, s) {
		r.add("ipvs.scheduler", "%q is not one of %s", s, strings.Join(ipvsSchedulers, ", "))
	}
	for i, p := range c.ExcludeCIDRs {
		if !validPrefix(p) {
			r.add(fmt.Sprintf("ipvs.excludeCIDRs[%d]", i), "%q is not a CIDR, such as 10.0.0.0/8", p)
		}
	}
}

func validatePeriods(r *reporter, section string, period, least time.Duration) {
	if period <= 0 {
		r.add(section+".syncPeriod", "%v is not greater than 0", period)
	}
	notNegative(r, section+".minSyncPeriod", least)
	if period > 0 && least > period {
		r.add(section+".minSyncPeriod", "%v is greater than %s.syncPeriod, %v", least, section, period)
	}
}

func validateLocalDetector(r *reporter, c *kubeproxyconfig.KubeProxyConfiguration) {
	switch c.DetectLocalMode {
	case LocalModeClusterCIDR, LocalModeNodeCIDR:
	case LocalModeBridgeInterface:
		validateInterface(r, "detectLocal.bridgeInterface", c.DetectLocal.BridgeInterface, c.DetectLocalMode)
	case LocalModeInterfaceNamePrefix:
		validateInterface(r, "detectLocal.interfaceNamePrefix", c.DetectLocal.InterfaceNamePrefix, c.DetectLocalMode)
	default:
		r.add("detectLocalMode", "%q is not one of %s", c.DetectLocalMode, join(localModes))
	}
	if c.ClusterCIDR == "" {
		return
	}
	families := map[bool]int{}
	for _, s := range strings.Split(c.ClusterCIDR, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(s))
		if err != nil {
			r.add("clusterCIDR", "%q is not a CIDR, such as 10.244.0.0/16, nor a pair, such as 10.244.0.0/16,fd00:10:244::/56", s)
			return
		}
		families[p.Addr().Is4()]++
	}
	if families[true] > 1 || families[false] > 1 {
		r.add("clusterCIDR", "%q has two CIDRs of the same family", c.ClusterCIDR)
	}
}

// validateInterface accepts the names that the kernel accepts for an interface, except those with "+" or "*". Packet
// filters treat these two as wildcards.
func validateInterface(r *reporter, field, name string, mode kubeproxyconfig.LocalMode) {
	const maxName = 15 // IFNAMSIZ minus the NUL
	switch {
	case name == "":
		r.add(field, "must be set if detectLocalMode is %s", mode)
	case len(name) > maxName:
		r.add(field, "%q is longer than the %d bytes that the name of an interface can have", name, maxName)
	case strings.ContainsAny(name, "/:+*\"'\\") || strings.ContainsFunc(name, func(c rune) bool { return c <= ' ' || c > '~' }):
		r.add(field, "%q is not the name of an interface", name)
	}
}

func validateConntrack(r *reporter, c *kubeproxyconfig.KubeProxyConntrackConfiguration) {
	inRange(r, "conntrack.maxPerCore", *c.MaxPerCore, 0, math.MaxInt32)
	inRange(r, "conntrack.min", *c.Min, 0, math.MaxInt32)
	notNegative(r, "conntrack.tcpEstablishedTimeout", c.TCPEstablishedTimeout.Duration)
	notNegative(r, "conntrack.tcpCloseWaitTimeout", c.TCPCloseWaitTimeout.Duration)
	notNegative(r, "conntrack.udpTimeout", c.UDPTimeout.Duration)
	notNegative(r, "conntrack.udpStreamTimeout", c.UDPStreamTimeout.Duration)
}

func validateLogging(r *reporter, c *kubeproxyconfig.KubeProxyConfiguration) {
	l := &c.Logging
	if !slices.Contains(logFormats, l.Format) {
		r.add("logging.format", "%q is not one of %s", l.Format, join(logFormats))
	}
	if l.FlushFrequency.Duration.Duration <= 0 {
		r.add("logging.flushFrequency", "%v is not greater than 0", l.FlushFrequency.Duration.Duration)
	}
	if l.Verbosity > math.MaxInt32 {
		r.add("logging.verbosity", "%d is not between 0 and %d", l.Verbosity, math.MaxInt32)
	}
	if len(l.VModule) > 0 && l.Format != "text" {
		r.add("logging.vmodule", "works with format text only")
	}
	for i, m := range l.VModule {
		if m.FilePattern == "" || strings.ContainsAny(m.FilePattern, "=,") {
			r.add(fmt.Sprintf("logging.vmodule[%d].filePattern", i), "%q is not the pattern of a file's name", m.FilePattern)
		}
	}
}

// join returns the words of a setting for a message.
func join[T ~string](words []T) string {
	var texts []string
	for _, w := range words {
		texts = append(texts, string(w))
	}
	return strings.Join(texts, ", ")
}

func inRange(r *reporter, field string, v, least, most int32) {
	switch {
	case v >= least && v <= most:
	case most == math.MaxInt32:
		r.add(field, "%d is less than %d", v, least)
	default:
		r.add(field, "%d is not between %d and %d", v, least, most)
	}
}

func notNegative(r *reporter, field string, d time.Duration) {
	if d < 0 {
		r.add(field, "%v is less than 0", d)
	}
}

func validPrefix(s string) bool {
	_, err := netip.ParsePrefix(s)
	return err == nil
}

// warn reports the fields that are set but have no effect. It ignores the zero values that a ConfigMap of kubeadm
// holds.
func warn(r *reporter, d *written) {
	const windows = "is for Windows and has no effect here"
	if d.WindowsRunAsService {
		r.add("windowsRunAsService", windows)
	}
	if d.Winkernel != (kubeproxyconfig.KubeProxyWinkernelConfiguration{}) {
		r.add("winkernel", windows)
	}
	if d.ResourceContainer != "" {
		r.add("resourceContainer", "has no effect; kube-proxy no longer has it either. Use the service manager's cgroups")
	}
	if d.Conntrack.Max != nil {
		r.add("conntrack.max", "has no effect; kube-proxy no longer has it either. Use conntrack.maxPerCore and conntrack.min")
	}
	if d.UDPTimeoutMilliseconds.Duration != 0 {
		r.add("udpTimeoutMilliseconds", "is an old name; use udpIdleTimeout")
	}
	if len(d.FeatureGates) > 0 {
		r.add("featureGates", "have no effect; weir has none")
	}
	if d.ShowHiddenMetricsForVersion != "" {
		r.add("showHiddenMetricsForVersion", "has no effect; weir hides no metrics")
	}
	if len(d.Logging.VModule) > 0 {
		r.add("logging.vmodule", "has no effect; use logging.verbosity")
	}
	warnRouting(r, "logging.options.text", d.Logging.Options.Text.OutputRoutingOptions)
	warnRouting(r, "logging.options.json", d.Logging.Options.JSON.OutputRoutingOptions)
}

func warnRouting(r *reporter, field string, o logsapi.OutputRoutingOptions) {
	if o.SplitStream || !o.InfoBufferSize.IsZero() {
		r.add(field, "has no effect; weir logs everything to one stream, unbuffered")
	}
}
