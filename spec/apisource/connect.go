package apisource

import (
	"cmp"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
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

	"weir/spec/document"
)

// maxCredentials limits the size of each credentials file, in bytes.
const maxCredentials = 1 << 20

const (
	protobuf         = runtime.ContentTypeProtobuf
	protobufElseJSON = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
)

// codecs know only the two API groups that weir uses. client-go's own scheme knows all, which costs memory.
var codecs = func() serializer.CodecFactory {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, discoveryv1.AddToScheme} {
		if err := add(scheme); err != nil {
			panic(err) // cannot fail: the types are part of this program
		}
	}
	return serializer.NewCodecFactory(scheme)
}()

// credentials say how to reach an API server. They were read from files at one moment.
type credentials struct {
	config *rest.Config
	// cluster identifies the cluster.
	cluster string
	// sum is a hash of every file that was read, except the token's.
	sum [sha256.Size]byte
	// token is a hash of the token's file. client-go reads that file again by itself every minute.
	token [sha256.Size]byte
}

// readCredentials reads the kubeconfig and the files that it names. Each file is hashed before it is used: if it changes
// in between, the hash is the old one, so that the next look finds the change.
func readCredentials(o Connection) (*credentials, error) {
	kubeconfig, err := fingerprint(o.Kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("credentials for the Kubernetes API: %w", err)
	}
	cfg, err := restConfig(o)
	if err != nil {
		return nil, err
	}
	c := &credentials{config: cfg, cluster: clusterOf(cfg)}
	if c.sum, err = fingerprint(cfg.CAFile, cfg.CertFile, cfg.KeyFile); err == nil {
		c.sum = sha256.Sum256(append(c.sum[:], kubeconfig[:]...))
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

// close ends all connections, including those to a silent peer.
func (c *client) close() { c.dialer.CloseAll() }

// connect returns a client, without talking to the server yet. client-go never releases the transport of a client, so a
// new client is made only when the credentials differ.
func connect(cr *credentials) (*client, error) {
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}
	c := &client{dialer: connrotation.NewDialer(dialer.DialContext), credentials: cr}
	cfg := rest.CopyConfig(cr.config)
	cfg.Dial = c.dialer.DialContext
	server, _, err := rest.DefaultServerUrlFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("clientConnection: %w", err)
	}
	cfg.Wrap(func(rt http.RoundTripper) http.RoundTripper { return overseen{rt, server} })
	if cfg.QPS > 0 { // otherwise each API group would have its own limit
		cfg.RateLimiter = flowcontrol.NewTokenBucketRateLimiter(cfg.QPS, max(1, cfg.Burst))
	}
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
		if err := checkKubeconfig(o.Kubeconfig); err != nil {
			return nil, err
		}
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

// checkKubeconfig returns an error, without parts of the file, if a file is no kubeconfig, or if client-go must not open a
// file that it names: it would wait for a FIFO without end. A configuration may name any file.
func checkKubeconfig(file string) error {
	if file == "" {
		return nil
	}
	data, err := readFile(file)
	if err != nil {
		return fmt.Errorf("credentials for the Kubernetes API: %w", err)
	}
	cfg, err := clientcmd.Load(data)
	if err != nil {
		return fmt.Errorf("credentials for the Kubernetes API: %s is not a kubeconfig: %s", file, document.WithoutScalars(err.Error()))
	}
	for _, named := range namedFiles(cfg, file) {
		if _, err := readFile(named); err != nil && !errors.Is(err, os.ErrNotExist) { // client-go says where that one is named
			return fmt.Errorf("credentials for the Kubernetes API: %s names a file that cannot be used: %w", file, err)
		}
	}
	return nil
}

// namedFiles returns the files that a kubeconfig names for its current context.
func namedFiles(cfg *clientcmdapi.Config, file string) []string {
	var files []string
	add := func(names ...string) {
		for _, n := range names {
			if n != "" && !filepath.IsAbs(n) {
				n = filepath.Join(filepath.Dir(file), n)
			}
			if n != "" {
				files = append(files, n)
			}
		}
	}
	current := cfg.Contexts[cfg.CurrentContext]
	if current == nil {
		return nil
	}
	if c := cfg.Clusters[current.Cluster]; c != nil {
		add(c.CertificateAuthority)
	}
	if u := cfg.AuthInfos[current.AuthInfo]; u != nil {
		add(u.TokenFile, u.ClientCertificate, u.ClientKey)
	}
	return files
}

func groupClient(cfg *rest.Config, path string, gv schema.GroupVersion) (*rest.RESTClient, error) {
	c := rest.CopyConfig(cfg)
	c.APIPath, c.GroupVersion, c.NegotiatedSerializer = path, &gv, boundedSerializer{codecs.WithoutConversion()}
	return rest.RESTClientFor(c)
}

// clusterOf identifies a cluster by the CA of its servers, because addresses may change; without a CA, by the address.
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

// fingerprint returns a hash of files. It skips the name "".
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

// checkCertificate returns an error if the client certificate does not match its key, as halfway through a rotation.
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

// readFile reads a regular file, up to a limit. It opens nothing else for longer than to see what it is.
func readFile(file string) ([]byte, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", file)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxCredentials+1))
	if err == nil && len(data) > maxCredentials {
		err = fmt.Errorf("%s is larger than %d bytes", file, maxCredentials)
	}
	return data, err
}
