package config

// proxyFields is what the schema says of fields of kube-proxy's, where its own comment is about kube-proxy alone or has names of
// its code, and an example where there is no default.
var proxyFields = map[string]about{
	"featureGates": {example: map[string]any{"SomeGate": true}},

	"clientConnection":                    {says: "clientConnection says how weir reaches a Kubernetes API, if it reads one."},
	"clientConnection.kubeconfig":         {"kubeconfig is the path of a kubeconfig file, which names the API server and the credentials. Default: the credentials of the pod that weir runs in.", "/var/lib/kube-proxy/kubeconfig.conf"},
	"clientConnection.acceptContentTypes": {"acceptContentTypes is the header Accept of requests to the API. Default: protobuf, else JSON.", "application/json"},
	"clientConnection.contentType":        {says: "contentType is the media type of what is sent to the API."},
	"clientConnection.qps":                {says: "qps is how many requests per second may be sent to the API on average."},
	"clientConnection.burst":              {says: "burst is how many requests may be sent to the API at once, beyond qps."},

	"logging":                {says: "logging says what weir logs, and in which form."},
	"logging.format":         {says: "format is the form of the lines of the log."},
	"logging.flushFrequency": {says: "flushFrequency is the longest time between two flushes of the log: a duration, or a number of nanoseconds. It has no effect in weir."},
	"logging.verbosity":      {says: "verbosity says how much is logged: 0 to 1 is info, 2 to 4 debug, 5 and above trace."},
	"logging.vmodule":        {"vmodule sets the verbosity of single source files.", []any{map[string]any{"filePattern": "proxier*", "verbosity": 5}}},
	"logging.options":        {says: "options has settings for each format."},
	"logging.options.text":   {says: "text has the settings for format text."},
	"logging.options.json":   {says: "json has the settings for format json."},
	"logging.options.text.splitStream": {
		"splitStream sends errors to standard error, and all else to standard output.", true},
	"logging.options.json.splitStream": {
		"splitStream sends errors to standard error, and all else to standard output.", true},
	"logging.options.text.infoBufferSize": {says: "infoBufferSize is the size of the buffer of standard output with splitStream, in bytes, such as 64Ki."},
	"logging.options.json.infoBufferSize": {says: "infoBufferSize is the size of the buffer of standard output with splitStream, in bytes, such as 64Ki."},

	"hostnameOverride":            {"hostnameOverride is the name of this node, as endpoints give it in nodeName. Default: the host name.", "edge-7"},
	"bindAddressHardFail":         {says: "bindAddressHardFail ends weir at its start if it cannot listen at healthzBindAddress or metricsBindAddress. Otherwise it tries again."},
	"enableProfiling":             {says: "enableProfiling serves /debug/pprof at metricsBindAddress."},
	"showHiddenMetricsForVersion": {example: "1.36"},

	"oomScoreAdj": {says: "oomScoreAdj says how likely the kernel is to kill weir when memory runs out, from -1000 (never) to 1000."},

	"mode":     {"mode is how connections to Services reach their endpoints. In mode iptables, ipvs or nftables the kernel forwards them; in mode userspace, which kube-proxy no longer has, weir carries the bytes itself. Default: iptables if the node has it, else nftables.", "nftables"},
	"iptables": {says: "iptables has the settings of iptables mode. userspace mode uses them too, and ipvs mode uses all of them but its periods."},
	"iptables.minSyncPeriod": {says: "minSyncPeriod is the least time between two rounds in which rules are changed (e.g. '5s', '1m', '2h22m'). It is not greater than syncPeriod. 0 stands for " +
		"the default."},
	"iptables.localhostNodePorts": {says: "localhostNodePorts, if false, keeps node ports from the loopback addresses, 127.0.0.0/8 and ::1, in iptables and userspace mode. nftables mode serves " +
		"them there only if nodePortAddresses names any, and ipvs mode never."},
	"nftables":               {says: "nftables has the settings of nftables mode. They are checked only in this mode."},
	"nftables.masqueradeBit": {says: "masqueradeBit is the bit of the packet mark that marks packets to be masqueraded, from 0 to 31."},
	"nftables.minSyncPeriod": {says: "minSyncPeriod is the least time between two rounds in which rules are changed (e.g. '5s', '1m', '2h22m'). It is not greater than syncPeriod. 0 stands for " +
		"the default."},
	"ipvs":              {says: "ipvs has the settings of ipvs mode. They are checked only in this mode."},
	"ipvs.scheduler":    {"scheduler chooses the endpoint of a connection, for all Services without the annotation weir/ipvs-scheduler. Default: rr, each in turn.", "mh"},
	"ipvs.excludeCIDRs": {"excludeCIDRs are ranges of addresses that kube-proxy leaves alone when it cleans up. It has no effect in weir, which removes only what it made.", []any{"192.0.2.0/24"}},
	"ipvs.strictARP":    {says: "strictARP sets arp_ignore to 1 and arp_announce to 2, so that the node answers ARP requests for its own addresses only, and not for those of Services."},

	"winkernel.networkName":         {example: "cbr0"},
	"winkernel.sourceVip":           {example: "192.0.2.7"},
	"winkernel.rootHnsEndpointName": {example: "cbr0"},
	"windowsRunAsService":           {example: true},

	"detectLocalMode": {says: "detectLocalMode says how the traffic of this node's pods is recognised: by the range in clusterCIDR, by the podCIDRs of the Node object, or by the interface in detectLocal. " +
		"Traffic to a ClusterIP that comes from elsewhere is masqueraded."},
	"detectLocal":                     {says: "detectLocal has the names of interfaces for detectLocalMode."},
	"detectLocal.bridgeInterface":     {"bridgeInterface is the name of the bridge that the traffic of this node's pods comes from, if detectLocalMode is BridgeInterface.", "cni0"},
	"detectLocal.interfaceNamePrefix": {"interfaceNamePrefix is how the names of the interfaces begin that the traffic of this node's pods comes from, if detectLocalMode is InterfaceNamePrefix.", "veth"},
	"clusterCIDR":                     {"clusterCIDR is the range of the pods of the cluster, or a pair of an IPv4 and an IPv6 range with a comma between them. Its traffic is not masqueraded if detectLocalMode is ClusterCIDR. Default: none, so that no traffic is masqueraded because it comes from elsewhere.", "10.244.0.0/16,fd00:10:244::/56"},
	"nodePortAddresses": {"nodePortAddresses are the addresses of the node that serve node ports: CIDRs, or the words primary (the node's primary addresses), localhost (127.0.0.0/8 and ::1) and all. " +
		"Loopback addresses serve them in iptables and userspace mode unless localhostNodePorts is false, in nftables mode only if nodePortAddresses names any, and in ipvs mode never. Default: all in iptables, ipvs and userspace mode, primary in nftables mode.", []any{"primary", "192.0.2.0/24"}},
	"portRange": {"portRange is the range of ports at which weir itself listens in userspace mode. Other modes do not use it. Default: a range without node ports and the ports of clients.", "20000-21000"},
}
