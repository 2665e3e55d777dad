package apisource

import (
	"cmp"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/util/connrotation"
	"k8s.io/client-go/util/flowcontrol"
)

// maxCredentials bounds each file that credentials are read from, in bytes.
const maxCredentials = 1 << 20

const (
	protobuf         = runtime.ContentTypeProtobuf
	protobufElseJSON = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
)

// codecs know the two API groups that are used. client-go's own scheme knows all, which costs memory.
var codecs = func() serializer.CodecFactory {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, discoveryv1.AddToScheme} {
		if err := add(scheme); err != nil {
			panic(err) // the types are part of this program
		}
	}
	return serializer.NewCodecFactory(scheme)
}()

// credentials say how to reach an API server, as read from files at one moment.
type credentials struct {
	config *rest.Config
	// cluster tells clusters apart.
	cluster string
	// sum is a hash of every file that was read, but for a token's.
	sum [sha256.Size]byte
	// token is a hash of the token's file. client-go reads that anew by itself, each minute.
	token [sha256.Size]byte
}

func readCredentials(o Connection) (*credentials, error) {
	cfg, err := restConfig(o)
	if err != nil {
		return nil, err
	}
	c := &credentials{config: cfg, cluster: clusterOf(cfg)}
	if c.sum, err = fingerprint(o.Kubeconfig, cfg.CAFile, cfg.CertFile, cfg.KeyFile); err == nil {
		c.token, err = fingerprint(cfg.BearerTokenFile)
	}
	if err == nil {
		err = checkCertificate(cfg)
	}
	if err != nil {
		return nil, fmt.Errorf("credentials for the Kubernetes API: %w", err)
	}
	return c, nil
}

// client is a connection to one API server with one set of credentials.
type client struct {
	core, discovery *rest.RESTClient
	dialer          *connrotation.Dialer
	credentials     *credentials
}

// close ends all connections, those that a silent peer keeps open too.
func (c *client) close() { c.dialer.CloseAll() }

// connect does not talk to the server yet. client-go never forgets the transport that a client is given, so that one is
// made only when the credentials differ.
func connect(cr *credentials) (*client, error) {
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}
	c := &client{dialer: connrotation.NewDialer(dialer.DialContext), credentials: cr}
	cfg := rest.CopyConfig(cr.config)
	cfg.Dial = c.dialer.DialContext
	cfg.Wrap(func(rt http.RoundTripper) http.RoundTripper { return overseen{rt} })
	if cfg.QPS > 0 { // else each group would have a limit of its own
		cfg.RateLimiter = flowcontrol.NewTokenBucketRateLimiter(cfg.QPS, max(1, cfg.Burst))
	}
	var err error
	if c.core, err = groupClient(cfg, "/api", corev1.SchemeGroupVersion); err != nil {
		return nil, fmt.Errorf("clientConnection: %w", err)
	}
	if c.discovery, err = groupClient(cfg, "/apis", discoveryv1.SchemeGroupVersion); err != nil {
		return nil, fmt.Errorf("clientConnection: %w", err)
	}
	return c, nil
}

func restConfig(o Connection) (*rest.Config, error) {
	var cfg *rest.Config
	var err error
	if o.Kubeconfig == "" && o.Server == "" {
		if cfg, err = rest.InClusterConfig(); errors.Is(err, rest.ErrNotInCluster) {
			return nil, errors.New("no kubeconfig is given, and this is not a pod with a service account: give --kubeconfig, or set clientConnection.kubeconfig")
		}
	} else {
		rules := &clientcmd.ClientConfigLoadingRules{ExplicitPath: o.Kubeconfig}
		overrides := &clientcmd.ConfigOverrides{ClusterInfo: clientcmdapi.Cluster{Server: o.Server}}
		cfg, err = clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides).ClientConfig()
	}
	if err != nil {
		return nil, fmt.Errorf("credentials for the Kubernetes API: %w", err)
	}
	cfg.ContentType, cfg.AcceptContentTypes = o.ContentType, o.AcceptContentTypes
	if cfg.ContentType == "" {
		cfg.ContentType = protobuf
	}
	if cfg.AcceptContentTypes == "" {
		cfg.AcceptContentTypes = protobufElseJSON
	}
	cfg.QPS, cfg.Burst, cfg.UserAgent = o.QPS, o.Burst, o.UserAgent
	return cfg, nil
}

func groupClient(cfg *rest.Config, path string, gv schema.GroupVersion) (*rest.RESTClient, error) {
	c := rest.CopyConfig(cfg)
	c.APIPath, c.GroupVersion, c.NegotiatedSerializer = path, &gv, codecs.WithoutConversion()
	return rest.RESTClientFor(c)
}

// clusterOf tells clusters apart by who signs for their servers, since addresses may change; else by the address.
func clusterOf(cfg *rest.Config) string {
	ca := cfg.CAData
	if len(ca) == 0 && cfg.CAFile != "" {
		ca, _ = readFile(cfg.CAFile)
	}
	if len(ca) == 0 {
		return cfg.Host
	}
	sum := sha256.Sum256(ca)
	return "ca:" + hex.EncodeToString(sum[:])
}

// fingerprint returns a hash of files, of which "" is none.
func fingerprint(files ...string) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	for _, file := range files {
		if file == "" {
			continue
		}
		data, err := readFile(file)
		if err != nil {
			return sum, err
		}
		one := sha256.Sum256(data)
		h.Write(one[:])
	}
	h.Sum(sum[:0])
	return sum, nil
}

// checkCertificate says whether there is a client certificate that cannot be used at all: halfway through a rotation its
// key is another's.
func checkCertificate(cfg *rest.Config) error {
	read := rest.CopyConfig(cfg)
	if err := rest.LoadTLSFiles(read); err != nil || len(read.CertData) == 0 {
		return err
	}
	if _, err := tls.X509KeyPair(read.CertData, read.KeyData); err != nil {
		return fmt.Errorf("client certificate %s: %w", cmp.Or(cfg.CertFile, "in the kubeconfig"), err)
	}
	return nil
}

func readFile(file string) ([]byte, error) {
	fi, err := os.Stat(file)
	switch {
	case err != nil:
		return nil, err
	case !fi.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", file)
	case fi.Size() > maxCredentials:
		return nil, fmt.Errorf("%s is larger than %d bytes", file, maxCredentials)
	}
	return os.ReadFile(file)
}
