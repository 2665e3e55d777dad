package manifest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weir/spec"
	"weir/spec/apisource/apitest"
	"weir/spec/seed"
)

// peerKind is one kind of object, and what TestPeer puts into its fields.
type peerKind struct {
	path   string // where the API server takes it
	base   string // a good one, as JSON
	values map[string][]string
	more   []map[string]string // fields that mean something together
}

var longName = strings.Repeat("n", 64)

var peerKinds = []peerKind{{
	path: "/api/v1/namespaces/default/services",
	base: `{"apiVersion":"v1","kind":"Service","metadata":{"name":"web"},"spec":{"ports":[{"port":80}]}}`,
	values: map[string][]string{
		"metadata.name":                      {`"web"`, `"Web"`, `"a.b"`, `"1web"`, `"-a"`, `"a-"`, `"` + longName + `"`},
		"metadata.labels":                    {`{"a":"b"}`, `{"a b":"c"}`, `{"a":"b c"}`, `{"` + longName + `":"b"}`, `{"x/y/z":"a"}`},
		"metadata.annotations":               {`{"a":"b c"}`, `{"a b":"c"}`},
		"spec.type":                          {`"ClusterIP"`, `"NodePort"`, `"LoadBalancer"`, `"ExternalName"`, `"x"`, `""`},
		"spec.clusterIP":                     {`""`, `"None"`, `"none"`, `"10.96.0.10"`, `"fd00:10:96::10"`, `"010.96.0.1"`, `"x"`, `"::ffff:10.96.0.10"`, `"FD00:10:96::10"`},
		"spec.clusterIPs":                    {`[]`, `["10.96.0.10"]`, `["10.96.0.10","fd00:10:96::10"]`, `["fd00:10:96::10","10.96.0.10"]`, `["10.96.0.10","10.96.0.11"]`, `["None"]`, `["None","10.96.0.10"]`, `["x"]`, `["10.96.0.10","fd00:10:96::10","10.96.0.11"]`},
		"spec.ipFamilies":                    {`[]`, `["IPv4"]`, `["IPv6"]`, `["IPv4","IPv6"]`, `["IPv6","IPv4"]`, `["IPv4","IPv4"]`, `["IPv5"]`},
		"spec.ipFamilyPolicy":                {`"SingleStack"`, `"PreferDualStack"`, `"RequireDualStack"`, `"x"`},
		"spec.ports":                         {`[]`, `[{"port":0}]`, `[{"port":65535}]`, `[{"port":65536}]`, `[{"port":-1}]`, `[{"port":1},{"port":2}]`, `[{"name":"a","port":1},{"name":"b","port":2}]`, `[{"name":"a","port":1},{"name":"a","port":2}]`, `[{"name":"a","port":1},{"name":"b","port":1}]`, `[{"name":"a","port":1,"protocol":"TCP"},{"name":"b","port":1,"protocol":"UDP"}]`},
		"spec.ports[0].name":                 {`"a"`, `"A"`, `"a_b"`, `"a.b"`, `"` + longName + `"`, `"` + longName[:63] + `"`, `""`},
		"spec.ports[0].protocol":             {`"TCP"`, `"UDP"`, `"SCTP"`, `"tcp"`, `"ICMP"`, `""`},
		"spec.ports[0].targetPort":           {`80`, `"80"`, `"http"`, `0`, `65536`, `-1`, `"HTTP"`, `"a-very-long-port-name"`, `"a--b"`, `""`, `"1234"`},
		"spec.ports[0].nodePort":             {`0`, `30000`, `32767`, `-1`, `65536`},
		"spec.ports[0].appProtocol":          {`"http"`, `"kubernetes.io/h2c"`, `"a b"`},
		"spec.externalIPs":                   {`[]`, `["1.2.3.4"]`, `["127.0.0.1"]`, `["x"]`, `["0.0.0.0"]`, `["169.254.1.1"]`, `["224.0.0.1"]`, `["fe80::1"]`, `["2001:db8::1"]`, `["01.2.3.4"]`, `["1.2.3.4","1.2.3.4"]`, `["::ffff:1.2.3.4"]`},
		"spec.loadBalancerIP":                {`""`, `"1.2.3.4"`},
		"spec.loadBalancerSourceRanges":      {`[]`, `["10.0.0.0/8"]`, `["10.0.0.1"]`, `["10.0.0.1/8"]`, `[" 10.0.0.0/8 "]`, `["fd00::/8"]`, `["010.0.0.0/8"]`, `["x"]`},
		"spec.loadBalancerClass":             {`"a/b"`, `"a b"`, `"internal"`},
		"spec.allocateLoadBalancerNodePorts": {`true`, `false`},
		"spec.sessionAffinity":               {`"None"`, `"ClientIP"`, `"x"`, `""`},
		"spec.sessionAffinityConfig":         {`{"clientIP":{"timeoutSeconds":10}}`, `{"clientIP":{"timeoutSeconds":0}}`, `{"clientIP":{"timeoutSeconds":86400}}`, `{"clientIP":{"timeoutSeconds":86401}}`, `{"clientIP":{}}`, `{}`},
		"spec.externalTrafficPolicy":         {`"Cluster"`, `"Local"`, `"x"`, `""`},
		"spec.internalTrafficPolicy":         {`"Cluster"`, `"Local"`, `"x"`},
		"spec.healthCheckNodePort":           {`0`, `30100`, `-1`, `65536`},
		"spec.publishNotReadyAddresses":      {`true`},
		"spec.externalName":                  {`""`, `"example.org"`, `"Example.org"`, `"a b"`, `"example.org."`, `"1.2.3.4"`},
		"spec.trafficDistribution":           {`"PreferClose"`, `"PreferSameZone"`, `"PreferSameNode"`, `"x"`, `""`},
		"spec.selector":                      {`{"a":"b"}`, `{"a b":"c"}`, `{"a":"b c"}`, `{}`},
		"spec.noSuchField":                   {`1`},
		"spec.ports[0].noSuchField":          {`1`},
		"spec.sessionAffinityX":              {`"x"`},
	},
	more: []map[string]string{
		{"spec.clusterIP": `"None"`, "spec.ipFamilies": `["IPv6","IPv4"]`},
		{"spec.clusterIP": `"None"`, "spec.ipFamilies": `["IPv6","IPv4"]`, "spec.selector": `{"a":"b"}`},
		{"spec.clusterIP": `"None"`, "spec.ipFamilies": `["IPv6","IPv4"]`, "spec.ipFamilyPolicy": `"SingleStack"`},
	},
}, {
	path: "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
	base: `{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{"name":"web-1","labels":{"kubernetes.io/service-name":"web"}},"addressType":"IPv4","endpoints":[{"addresses":["10.0.0.1"]}],"ports":[{"port":80}]}`,
	values: map[string][]string{
		"metadata.name":                   {`"a.b"`, `"A"`, `"a_b"`, `"1"`},
		"addressType":                     {`"IPv4"`, `"IPv6"`, `"FQDN"`, `"x"`, `""`},
		"endpoints":                       {`[]`, `[{"addresses":[]}]`, `[{"addresses":["10.0.0.1"]},{"addresses":["10.0.0.1"]}]`},
		"endpoints[0].addresses":          {`["10.0.0.1"]`, `["10.0.0.1","10.0.0.2"]`, `["fd00::1"]`, `["127.0.0.1"]`, `["0.0.0.0"]`, `["::"]`, `["::1"]`, `["169.254.0.1"]`, `["224.0.0.1"]`, `["x"]`, `["010.0.0.1"]`, `["::ffff:10.0.0.1"]`, `["fe80::1"]`, `["example.org"]`},
		"endpoints[0].hostname":           {`"a"`, `"A"`, `"a.b"`, `""`},
		"endpoints[0].nodeName":           {`"node"`, `"Node"`, `"n o"`, `""`, `"a.b"`},
		"endpoints[0].zone":               {`"z"`, `""`, `"a b"`},
		"endpoints[0].conditions":         {`{}`, `{"ready":true}`, `{"ready":false,"serving":true,"terminating":true}`, `{"ready":"x"}`},
		"endpoints[0].hints":              {`{}`, `{"forZones":[{"name":"z"}]}`, `{"forZones":[{"name":""}]}`, `{"forZones":[{"name":"z"},{"name":"z"}]}`, `{"forNodes":[{"name":"n"}]}`, `{"forNodes":[{"name":"N o"}]}`},
		"endpoints[0].targetRef":          {`{"kind":"Pod","name":"x"}`, `{}`},
		"endpoints[0].deprecatedTopology": {`{"a":"b"}`},
		"ports":                           {`[]`, `[{"port":1},{"port":2}]`, `[{"name":"a","port":1},{"name":"a","port":2}]`, `[{"name":"a","port":1},{"name":"b","port":1}]`, `[{"name":"a","port":1},{"name":"b","port":1,"protocol":"UDP"}]`, `null`},
		"ports[0].port":                   {`0`, `65535`, `65536`, `-1`, `null`},
		"ports[0].name":                   {`"a"`, `"A"`, `"a.b"`, `"` + longName + `"`},
		"ports[0].protocol":               {`"TCP"`, `"UDP"`, `"SCTP"`, `"tcp"`, `""`},
		"ports[0].appProtocol":            {`"http"`, `"a b"`},
		"noSuchField":                     {`1`},
		"endpoints[0].noSuchField":        {`1`},
	},
}, {
	path: "/api/v1/namespaces/default/endpoints",
	base: `{"apiVersion":"v1","kind":"Endpoints","metadata":{"name":"web"},"subsets":[{"addresses":[{"ip":"10.0.0.1"}],"ports":[{"port":80}]}]}`,
	values: map[string][]string{
		"metadata.name":                    {`"a.b"`, `"A"`},
		"subsets":                          {`[]`, `[{}]`, `[{"addresses":[{"ip":"10.0.0.1"}]}]`, `[{"ports":[{"port":80}]}]`},
		"subsets[0].addresses":             {`[]`, `[{"ip":"10.0.0.1"},{"ip":"10.0.0.1"}]`, `[{"ip":"fd00::1"}]`, `[{"ip":"127.0.0.1"}]`, `[{"ip":"0.0.0.0"}]`, `[{"ip":"169.254.0.1"}]`, `[{"ip":"224.0.0.1"}]`, `[{"ip":"x"}]`, `[{"ip":""}]`, `[{}]`, `[{"ip":"010.0.0.1"}]`},
		"subsets[0].notReadyAddresses":     {`[{"ip":"10.0.0.2"}]`, `[{"ip":"x"}]`},
		"subsets[0].addresses[0].hostname": {`"a"`, `"A"`, `"a.b"`},
		"subsets[0].addresses[0].nodeName": {`"node"`, `"n o"`, `""`},
		"subsets[0].ports":                 {`[]`, `[{"port":1},{"port":2}]`, `[{"name":"a","port":1},{"name":"b","port":2}]`, `[{"name":"a","port":1},{"name":"a","port":2}]`},
		"subsets[0].ports[0].port":         {`0`, `65535`, `65536`, `-1`},
		"subsets[0].ports[0].name":         {`"a"`, `"A"`, `""`, `"a.b"`},
		"subsets[0].ports[0].protocol":     {`"TCP"`, `"SCTP"`, `"tcp"`, `""`},
		"subsets[0].ports[0].appProtocol":  {`"http"`, `"a b"`},
		"subsets[0].noSuchField":           {`1`},
	},
}}

var allowEmpty = Options{Overrides: spec.Overrides{}.AllowingEmpty()}

// exception is a class of documents that weir and the API server judge differently on purpose.
type exception struct {
	problem *regexp.Regexp // matches weir's problem, or the API server's message
	why     string
}

// stricterThanServer are what weir refuses and an API server takes; laxerThanServer are the opposite.
var (
	stricterThanServer = []exception{
		{regexp.MustCompile(`sessionAffinityConfig: must not be set when`), "the API server drops what was written"},
		{regexp.MustCompile(`endpoints\[0\]\.(zone|hints\.forZones\[0\]\.name): `), "no node can be in a zone that is not a label"},
		{regexp.MustCompile(`EndpointSlice .* ports\[0\]\.port: .* must be between 1 and 65535`), "no packet can be sent to such a port"},
		{regexp.MustCompile(`spec.ports\[0\].nodePort: .* must be between`), "no packet can be sent to such a port"},
		{regexp.MustCompile(`Endpoints .* is also the name of the port at index 0`), "only one of the two could be meant"},
	}
	laxerThanServer = []exception{
		{regexp.MustCompile(`LoadBalancerSourceRanges.*must not have bits set`), "older API servers took it, and newer ones keep what they have"},
		{regexp.MustCompile(`should be a domain with at least two segments`), "addressType FQDN means nothing to a proxy"},
	}
)

// TestPeer gives random documents to weir and to a real API server, which is asked to create them without doing so. Both
// refuse the same ones, but for the exceptions above.
func TestPeer(t *testing.T) {
	server := apitest.Start(t, apitest.Options{})
	random := seed.Rand(t)
	for _, kind := range peerKinds {
		var docs []string
		paths := make([]string, 0, len(kind.values))
		for p := range kind.values {
			paths = append(paths, p)
		}
		slices.Sort(paths)
		for _, p := range paths {
			for _, v := range kind.values[p] {
				docs = append(docs, kind.with(t, map[string]string{p: v}))
			}
		}
		for _, fields := range kind.more {
			docs = append(docs, kind.with(t, fields))
		}
		for range seed.Steps(1500) {
			fields := map[string]string{}
			for range 2 + random.IntN(3) {
				p := paths[random.IntN(len(paths))]
				fields[p] = kind.values[p][random.IntN(len(kind.values[p]))]
			}
			docs = append(docs, kind.with(t, fields))
		}
		answers := askServer(t, server, kind.path, docs)
		for i, doc := range docs {
			if problem := compareWithServer(doc, answers[i]); problem != "" {
				t.Errorf("%s\n%s", problem, doc)
			}
		}
	}
}

// with returns the good document with some fields set, in the order of their names.
func (k peerKind) with(t *testing.T, fields map[string]string) string {
	t.Helper()
	var tree any
	if err := json.Unmarshal([]byte(k.base), &tree); err != nil {
		t.Fatal(err)
	}
	paths := make([]string, 0, len(fields))
	for p := range fields {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	for _, p := range paths {
		var v any
		if err := json.Unmarshal([]byte(fields[p]), &v); err != nil {
			t.Fatalf("%s: %v", fields[p], err)
		}
		tree = setField(tree, strings.Split(strings.ReplaceAll(p, "[0]", ".0"), "."), v)
	}
	text, err := json.Marshal(tree)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// setField sets a field of a tree, which has to exist down to the last step; else the tree stays as it is.
func setField(tree any, path []string, v any) any {
	if len(path) == 0 {
		return v
	}
	switch tree := tree.(type) {
	case map[string]any:
		if old := tree[path[0]]; old != nil || len(path) == 1 {
			tree[path[0]] = setField(old, path[1:], v)
		}
	case []any:
		if path[0] == "0" && len(tree) > 0 {
			tree[0] = setField(tree[0], path[1:], v)
		}
	}
	return tree
}

// askServer returns why the server refuses each document; nil if it does not.
func askServer(t *testing.T, server *apitest.Server, path string, docs []string) []error {
	t.Helper()
	answers := make([]error, len(docs))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	const workers = 8
	for w := range workers {
		wg.Go(func() {
			for i := w; i < len(docs); i += workers {
				answers[i] = server.Client.CoreV1().RESTClient().Post().AbsPath(path).
					Param("dryRun", metav1.DryRunAll).Param("fieldValidation", metav1.FieldValidationStrict).
					SetHeader("Content-Type", "application/json").Body([]byte(docs[i])).Do(ctx).Error()
			}
		})
	}
	wg.Wait()
	for i, err := range answers {
		if status := apierrors.APIStatus(nil); err != nil && !errors.As(err, &status) {
			t.Fatalf("no answer to %s: %v", docs[i], err)
		}
	}
	return answers
}

// compareWithServer says what is wrong with weir's judgement of a document, or "".
func compareWithServer(doc string, refused error) string {
	_, _, err := NewSet(allowEmpty).Update(context.Background(), spec.Revision{ID: "peer"}, []File{{Path: "doc.json", Data: []byte(doc)}})
	switch {
	case refused == nil && err != nil && !excepted(stricterThanServer, err):
		return fmt.Sprintf("weir refuses what the API server takes: %v", err)
	case refused != nil && err == nil && !excepted(laxerThanServer, refused):
		return fmt.Sprintf("weir takes what the API server refuses: %v", refused)
	}
	return ""
}

func excepted(list []exception, err error) bool {
	return slices.ContainsFunc(list, func(e exception) bool { return e.problem.MatchString(err.Error()) })
}
