package config

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	kubeproxyconfig "k8s.io/kube-proxy/config/v1alpha1"
	"sigs.k8s.io/yaml"

	"weir/spec"
	"weir/spec/apisource/apitest"
	"weir/spec/seed"
)

// peerValues are what TestPeer puts into the fields of a configuration, by path.
var peerValues = map[string][]any{
	"bindAddress":                     {"", "0.0.0.0", "::", "2001:db8::1", "localhost", "1.2.3"},
	"healthzBindAddress":              {"", "1.2.3.4", "1.2.3.4:5", "[::1]:5", "::1", "[::1]", ":5", "1.2.3.4:0", "1.2.3.4:65536", "host:5"},
	"metricsBindAddress":              {"", "1.2.3.4", "1.2.3.4:5", "[::1]:5", "::1", "0.0.0.0:http"},
	"hostnameOverride":                {"", "node-1"},
	"enableProfiling":                 {true, false},
	"bindAddressHardFail":             {true},
	"showHiddenMetricsForVersion":     {"", "x", "v1", "1.2.3"},
	"mode":                            {"", "iptables", "ipvs", "nftables", "kernelspace", "IPTables"},
	"clusterCIDR":                     {"", "10.244.0.0/16", "10.244.0.0/16,fd00::/56", "fd00::/56", "10.0.0.0", "10.0.0.0/8,10.1.0.0/16", "10.0.0.0/8,fd00::/56,fd01::/56"},
	"detectLocalMode":                 {"", "ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix", "clusterCIDR"},
	"detectLocal.bridgeInterface":     {"", "cni0"},
	"detectLocal.interfaceNamePrefix": {"", "veth"},
	"nodePortAddresses":               {[]any{}, []any{"primary"}, []any{"all"}, []any{"localhost"}, []any{"10.0.0.0/8", "fd00::/8"}, []any{"primary", "10.0.0.0/8"}, []any{"primary", "primary"}, []any{"10.0.0.1"}, []any{"10.0.0.0/8", "10.0.0.0/8"}, []any{"all", "localhost"}},
	"oomScoreAdj":                     {-1000, -1001, 0, 1000, 1001},
	"configSyncPeriod":                {"0s", "1m", "-1s"},
	"portRange":                       {"", "30000-32767", "30000"},
	"iptables.masqueradeBit":          {0, 31, 32, -1},
	"iptables.masqueradeAll":          {true, false},
	"iptables.localhostNodePorts":     {true, false},
	"iptables.syncPeriod":             {"0s", "10s", "-1s"},
	"iptables.minSyncPeriod":          {"0s", "10s", "1m", "-1s"},
	"nftables.masqueradeBit":          {0, 31, 32, -1},
	"nftables.masqueradeAll":          {true, false},
	"nftables.syncPeriod":             {"0s", "10s", "-1s"},
	"nftables.minSyncPeriod":          {"0s", "10s", "1m", "-1s"},
	"ipvs.scheduler":                  {"", "rr", "sh"},
	"ipvs.strictARP":                  {true, false},
	"ipvs.excludeCIDRs":               {[]any{}, []any{"10.0.0.0/8"}, []any{"10.0.0.1"}, []any{"x"}},
	"ipvs.tcpTimeout":                 {"0s", "10s", "-1s"},
	"ipvs.tcpFinTimeout":              {"0s", "10s", "-1s"},
	"ipvs.udpTimeout":                 {"0s", "10s", "-1s"},
	"ipvs.syncPeriod":                 {"0s", "10s", "-1s"},
	"ipvs.minSyncPeriod":              {"0s", "10s", "1m", "-1s"},
	"conntrack.maxPerCore":            {0, 1, -1},
	"conntrack.min":                   {0, 1, -1},
	"conntrack.tcpEstablishedTimeout": {"0s", "10s", "-1s"},
	"conntrack.tcpCloseWaitTimeout":   {"0s", "10s", "-1s"},
	"conntrack.tcpBeLiberal":          {true},
	"conntrack.udpTimeout":            {"0s", "10s", "-1s"},
	"conntrack.udpStreamTimeout":      {"0s", "10s", "-1s"},
	"clientConnection.qps":            {0, 1.5, -1},
	"clientConnection.burst":          {0, 1, -1},
	"clientConnection.contentType":    {"", "application/json"},
	"clientConnection.kubeconfig":     {"", "/etc/kubeconfig"},
	"logging.format":                  {"", "text", "json", "xml"},
	"logging.verbosity":               {0, 10, -1},
	"logging.flushFrequency":          {"1s", 1000000000, "0s"},
	"winkernel.networkName":           {"", "x"},
	"noSuchField":                     {1},
	"iptables.noSuchField":            {1},
	"mode.noSuchField":                {1},
	"conntrack":                       {map[string]any{}, "x", nil},
	"windowsRunAsService":             {true, false},
	"featureGates":                    {map[string]any{}, map[string]any{"KubeProxyIPVS": true}},
	"apiVersion":                      {KubeProxyAPIVersion},
	"kind":                            {KubeProxyKind},
}

// stricter are the fields in which weir refuses what kube-proxy accepts at first, and why.
var stricter = map[string]string{
	"clusterCIDR":                     "kube-proxy looks at it with detectLocalMode ClusterCIDR only; a typo is one in any mode",
	"detectLocal.bridgeInterface":     "kube-proxy takes any text for the name of an interface",
	"detectLocal.interfaceNamePrefix": "kube-proxy takes any text for the name of an interface",
	"iptables.syncPeriod":             "kube-proxy looks at the periods of the mode in force only",
	"iptables.minSyncPeriod":          "kube-proxy looks at the periods of the mode in force only",
	"showHiddenMetricsForVersion":     "kube-proxy takes what the metrics library takes",
	"portRange":                       "a field that kube-proxy ignores, and mode userspace does not",
}

// TestPeer gives random configurations to weir and to kube-proxy's own defaults and validation: what kube-proxy refuses,
// weir refuses; what weir refuses and kube-proxy does not is in the list above; and what both take has the same defaults.
func TestPeer(t *testing.T) {
	random := seed.Rand(t)
	paths := make([]string, 0, len(peerValues))
	for p := range peerValues {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	var docs []peerQuestion
	add := func(fields map[string]any) {
		tree := map[string]any{"apiVersion": KubeProxyAPIVersion, "kind": KubeProxyKind}
		for p, v := range fields {
			setPath(tree, p, v)
		}
		text, err := yaml.Marshal(tree)
		if err != nil {
			t.Fatal(err)
		}
		docs = append(docs, peerQuestion{string(text)})
	}
	for _, p := range paths {
		for _, v := range peerValues[p] {
			add(map[string]any{p: v})
		}
	}
	for range seed.Steps(3000) {
		fields := map[string]any{}
		for range 2 + random.IntN(4) {
			p := paths[random.IntN(len(paths))]
			fields[p] = peerValues[p][random.IntN(len(peerValues[p]))]
		}
		add(fields)
	}
	answers := apitest.AskKubeProxy[peerQuestion, peerAnswer](t, docs)
	accepted := 0
	for i, doc := range docs {
		if problem := compareWithPeer(doc.Document, answers[i]); problem != "" {
			t.Errorf("%s\n%s", problem, doc.Document)
		}
		if answers[i].Config != nil {
			accepted++
		}
	}
	if accepted == 0 || accepted == len(docs) {
		t.Errorf("kube-proxy accepted %d of %d configurations", accepted, len(docs))
	}
}

type peerQuestion struct {
	Document string `json:"document"`
}

type peerAnswer struct {
	Refused []string
	Config  *kubeproxyconfig.KubeProxyConfiguration
}

// compareWithPeer says what is wrong with what weir makes of a document, or "".
func compareWithPeer(doc string, peer peerAnswer) string {
	got, _, problems := Decode(docOf("config.yaml", 1, []byte(doc)))
	switch {
	case len(peer.Refused) > 0 && len(problems) == 0:
		return "weir accepts what kube-proxy refuses: " + strings.Join(peer.Refused, "; ")
	case len(peer.Refused) > 0:
		return ""
	case len(problems) > 0:
		for _, p := range problems {
			if stricter[p.Field] == "" {
				return "weir refuses what kube-proxy accepts: " + spec.Problems(problems).Error()
			}
		}
		return ""
	}
	if peer.Config.DetectLocalMode == "" {
		peer.Config.DetectLocalMode = LocalModeClusterCIDR // which is what kube-proxy takes "" for, later
	}
	return cmp.Diff(peer.Config, got.KubeProxyConfiguration, cmpopts.EquateEmpty())
}

func setPath(tree map[string]any, path string, v any) {
	head, rest, nested := strings.Cut(path, ".")
	if !nested {
		tree[head] = v
		return
	}
	child, ok := tree[head].(map[string]any)
	if !ok {
		child = map[string]any{}
		tree[head] = child
	}
	setPath(child, rest, v)
}
