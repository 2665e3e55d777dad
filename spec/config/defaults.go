package config

import (
	"net"
	"net/netip"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	logsapi "k8s.io/component-base/logs/api/v1"
	kubeproxyconfig "k8s.io/kube-proxy/config/v1alpha1"
)

// The proxy modes. kube-proxy removed userspace in 1.26; weir has it.
const (
	ModeIPTables  kubeproxyconfig.ProxyMode = "iptables"
	ModeIPVS      kubeproxyconfig.ProxyMode = "ipvs"
	ModeNFTables  kubeproxyconfig.ProxyMode = "nftables"
	ModeUserspace kubeproxyconfig.ProxyMode = "userspace"
)

// modes are the values of mode.
var modes = []kubeproxyconfig.ProxyMode{ModeIPTables, ModeIPVS, ModeNFTables, ModeUserspace}

// The ways to recognise the traffic of this node's pods.
const (
	LocalModeClusterCIDR         kubeproxyconfig.LocalMode = "ClusterCIDR"
	LocalModeNodeCIDR            kubeproxyconfig.LocalMode = "NodeCIDR"
	LocalModeBridgeInterface     kubeproxyconfig.LocalMode = "BridgeInterface"
	LocalModeInterfaceNamePrefix kubeproxyconfig.LocalMode = "InterfaceNamePrefix"
)

// localModes are the values of detectLocalMode.
var localModes = []kubeproxyconfig.LocalMode{LocalModeClusterCIDR, LocalModeNodeCIDR, LocalModeBridgeInterface, LocalModeInterfaceNamePrefix}

// The keywords that nodePortAddresses may hold besides prefixes.
const (
	NodePortsAll       = "all"
	NodePortsPrimary   = "primary"
	NodePortsLocalhost = "localhost"
)

var nodePortKeywords = []string{NodePortsAll, NodePortsPrimary, NodePortsLocalhost}

// logFormats are the values of logging.format.
var logFormats = []string{logsapi.DefaultLogFormat, logsapi.JSONLogFormat}

const (
	healthzPort           = "10256"
	metricsPort           = "10249"
	defaultUDPIdleTimeout = 250 * time.Millisecond
)

// Default returns the KubeProxyConfiguration that is used if none was written.
func Default() *KubeProxy {
	c := &kubeproxyconfig.KubeProxyConfiguration{
		TypeMeta: metav1.TypeMeta{APIVersion: KubeProxyAPIVersion, Kind: KubeProxyKind},
	}
	SetDefaults(c)
	return &KubeProxy{KubeProxyConfiguration: c, UDPIdleTimeout: defaultUDPIdleTimeout}
}

// SetDefaults sets the fields that are not set to kube-proxy's defaults. As in kube-proxy, a duration of 0 counts as
// not set. It may be called again after a flag changed a field. It does not change the mode, because the meaning of ""
// depends on the node.
func SetDefaults(c *kubeproxyconfig.KubeProxyConfiguration) {
	setString(&c.BindAddress, "0.0.0.0")
	healthz, metrics := "0.0.0.0", "127.0.0.1"
	if a, err := netip.ParseAddr(c.BindAddress); err == nil && a.Unmap().Is6() {
		healthz, metrics = "::", "::1"
	}
	c.HealthzBindAddress = withPort(c.HealthzBindAddress, healthz, healthzPort)
	c.MetricsBindAddress = withPort(c.MetricsBindAddress, metrics, metricsPort)
	if c.DetectLocalMode == "" {
		c.DetectLocalMode = LocalModeClusterCIDR
	}
	setPointer(&c.OOMScoreAdj, -999)
	setDuration(&c.ConfigSyncPeriod, 15*time.Minute)

	setPointer(&c.IPTables.MasqueradeBit, 14)
	setPointer(&c.IPTables.LocalhostNodePorts, true)
	setDuration(&c.IPTables.SyncPeriod, 30*time.Second)
	setDuration(&c.IPTables.MinSyncPeriod, time.Second)
	setDuration(&c.IPVS.SyncPeriod, 30*time.Second)
	setPointer(&c.NFTables.MasqueradeBit, 14)
	setDuration(&c.NFTables.SyncPeriod, 30*time.Second)
	setDuration(&c.NFTables.MinSyncPeriod, time.Second)

	setPointer(&c.Conntrack.MaxPerCore, 32*1024)
	setPointer(&c.Conntrack.Min, 128*1024)
	setPointer(&c.Conntrack.TCPEstablishedTimeout, metav1.Duration{Duration: 24 * time.Hour})
	setPointer(&c.Conntrack.TCPCloseWaitTimeout, metav1.Duration{Duration: time.Hour})

	setString(&c.ClientConnection.ContentType, "application/vnd.kubernetes.protobuf")
	if c.ClientConnection.QPS == 0 {
		c.ClientConnection.QPS = 5
	}
	if c.ClientConnection.Burst == 0 {
		c.ClientConnection.Burst = 10
	}
	if c.FeatureGates == nil {
		c.FeatureGates = map[string]bool{}
	}
	logsapi.SetRecommendedLoggingConfiguration(&c.Logging)
}

func setString(p *string, v string) {
	if *p == "" {
		*p = v
	}
}

func setDuration(p *metav1.Duration, v time.Duration) {
	if p.Duration == 0 {
		p.Duration = v
	}
}

func setPointer[T any](p **T, v T) {
	if *p == nil {
		*p = &v
	}
}

// withPort returns the address with the port appended if it has none. For an empty address it returns host and port.
func withPort(addr, host, port string) string {
	if addr == "" {
		return net.JoinHostPort(host, port)
	}
	if validAddr(addr) {
		return net.JoinHostPort(addr, port)
	}
	return addr
}

func validAddr(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}
