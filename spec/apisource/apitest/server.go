// Package apitest runs a real etcd and a real kube-apiserver for tests. Start returns a Server, which a test can kill,
// run again, and give other credentials. Only tests import the package.
package apitest

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

// patience limits every wait. It is generous, because machines differ in speed.
const patience = 2 * time.Minute

// Tokens of the users that the server knows: an administrator, and two tokens of "weir", which has no rights until a
// role is bound to it.
const (
	AdminToken = "admin-token"
	Token      = "first-token"
	NextToken  = "second-token"
)

// User is the user of the two weir tokens and of client certificates: the ServiceAccount of the examples.
const User = "system:serviceaccount:kube-system:weir"

// Options configure a Server.
type Options struct {
	// Start starts a command; nil means cmd.Start. A test with a network namespace for the server sets its own.
	Start func(*exec.Cmd) error
	// Dial dials the server; nil means net.Dialer's.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Port is the server's port on 127.0.0.1; etcd takes the two ports above it. 0 means free ports.
	Port int
	// Args are further arguments of kube-apiserver.
	Args []string
}

// Server is a kube-apiserver with its etcd.
type Server struct {
	// Client has all rights.
	Client kubernetes.Interface
	// Address is host:port.
	Address string

	t         testing.TB
	o         Options
	dir       string
	etcdURL   string
	etcdPeer  string
	etcd, api *process
	toEtcd    *http.Client
	ca        *authority // signs client certificates
}

// Start runs a server until the test ends. Without the binaries it skips the test, unless WEIR_TEST_REQUIRE is set.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	etcd, api := Binary(t, "etcd"), Binary(t, "kube-apiserver")
	if o.Start == nil {
		o.Start = func(c *exec.Cmd) error { return c.Start() }
	}
	ports := []int{o.Port, o.Port + 1, o.Port + 2}
	if o.Port == 0 {
		ports = freePorts(t, 3)
	}
	s := &Server{t: t, o: o, dir: t.TempDir(), Address: fmt.Sprintf("127.0.0.1:%d", ports[0]),
		etcdURL: fmt.Sprintf("http://127.0.0.1:%d", ports[1]), etcdPeer: fmt.Sprintf("http://127.0.0.1:%d", ports[2])}
	s.toEtcd = &http.Client{Timeout: patience, Transport: &http.Transport{DialContext: o.Dial, MaxIdleConnsPerHost: 16}}
	t.Cleanup(s.toEtcd.CloseIdleConnections)
	s.files()
	s.etcd = &process{s: s, path: etcd, args: []string{"--data-dir", filepath.Join(s.dir, "etcd"), "--name", "t", "--unsafe-no-fsync",
		"--listen-client-urls", s.etcdURL, "--advertise-client-urls", s.etcdURL, "--listen-peer-urls", s.etcdPeer,
		"--initial-advertise-peer-urls", s.etcdPeer, "--initial-cluster", "t=" + s.etcdPeer, "--log-level", "error"}}
	s.api = &process{s: s, path: api, args: []string{"--etcd-servers", s.etcdURL, "--cert-dir", filepath.Join(s.dir, "certs"),
		"--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1", "--secure-port", fmt.Sprint(ports[0]), "--endpoint-reconciler-type", "none",
		"--token-auth-file", filepath.Join(s.dir, "tokens"), "--authorization-mode", "RBAC", "--disable-admission-plugins", "ServiceAccount",
		"--service-account-key-file", filepath.Join(s.dir, "sa.key"), "--service-account-signing-key-file", filepath.Join(s.dir, "sa.key"),
		"--service-account-issuer", "https://test.invalid", "--service-cluster-ip-range", "10.96.0.0/12,fd00:10:96::/112", "--watch-cache=true",
		"--client-ca-file", filepath.Join(s.dir, "client-ca.crt")}}
	s.api.args = append(s.api.args, o.Args...)
	cfg := &rest.Config{Host: "https://" + s.Address, BearerToken: AdminToken, TLSClientConfig: rest.TLSClientConfig{Insecure: true}, QPS: -1, Dial: o.Dial}
	cfg.ContentType = "application/vnd.kubernetes.protobuf"
	var err error
	if s.Client, err = kubernetes.NewForConfig(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.api.kill(); s.etcd.kill() })
	s.Run()
	return s
}

// Run starts the processes that do not run, and waits until the server answers.
func (s *Server) Run() {
	s.t.Helper()
	s.etcd.start()
	s.api.start()
	deadline := time.Now().Add(patience)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		_, err := s.Client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		cancel()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("the API server is not ready: %v\n%s", err, s.api.tail())
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// KillAPI ends the API server as a crash would.
func (s *Server) KillAPI() { s.api.kill() }

// Kill ends the API server and etcd as a crash would.
func (s *Server) Kill() { s.api.kill(); s.etcd.kill() }

// Kubeconfig writes a kubeconfig for a token and an address, and returns its name. The file is replaced atomically.
func (s *Server) Kubeconfig(file, token, address string) string {
	s.t.Helper()
	return s.KubeconfigFor(file, "{token: "+token+"}", address)
}

// KubeconfigFor is Kubeconfig for any kind of credentials: user is the "user" entry of the kubeconfig.
func (s *Server) KubeconfigFor(file, user, address string) string {
	s.t.Helper()
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://%s", insecure-skip-tls-verify: true}}]
users: [{name: u, user: %s}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`, address, user)
	Replace(s.t, file, []byte(text))
	return file
}

// Replace writes a file atomically, with a mode that only its owner can read.
func Replace(t testing.TB, file string, data []byte) {
	t.Helper()
	err := os.WriteFile(file+".tmp", data, 0o600)
	if err == nil {
		err = os.Rename(file+".tmp", file)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// SetTokens restarts the API server with these valid tokens and the administrator's.
func (s *Server) SetTokens(tokens ...string) {
	s.t.Helper()
	s.writeTokens(tokens...)
	s.api.kill()
	s.Run()
}

func (s *Server) writeTokens(tokens ...string) {
	text := AdminToken + ",admin,admin,system:masters\n"
	for _, token := range tokens {
		text += token + "," + User + ",weir,\n"
	}
	if err := os.WriteFile(filepath.Join(s.dir, "tokens"), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *Server) files() {
	s.t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		s.t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	if err := os.WriteFile(filepath.Join(s.dir, "sa.key"), text, 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.writeTokens(Token, NextToken)
	s.ca = newAuthority(s.t, filepath.Join(s.dir, "client-ca.crt"))
}

// process is one program that a test may kill and start again.
type process struct {
	s    *Server
	path string
	args []string
	cmd  *exec.Cmd
}

func (p *process) start() {
	p.s.t.Helper()
	if p.cmd != nil {
		return
	}
	log, err := os.OpenFile(p.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.s.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(p.path, p.args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.s.o.Start(cmd); err != nil {
		p.s.t.Fatal(err)
	}
	p.cmd = cmd
}

func (p *process) log() string { return filepath.Join(p.s.dir, filepath.Base(p.path)+".log") }

func (p *process) tail() string {
	b, _ := os.ReadFile(p.log())
	return string(b[max(0, len(b)-4<<10):])
}

func (p *process) kill() {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
	p.cmd = nil
}

// Binary returns the path of a program from KUBEBUILDER_ASSETS, from PATH, or from where "make testserver" puts it.
func Binary(t testing.TB, name string) string {
	t.Helper()
	if testing.Short() {
		t.Skip("make test runs it; -short is set")
	}
	if dir := os.Getenv("KUBEBUILDER_ASSETS"); dir != "" {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	dir, err := os.Getwd()
	for ; err == nil && dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if path, err := exec.LookPath(filepath.Join(dir, ".cache", "testbin", name)); err == nil {
			return path
		}
	}
	const remedy = "there is no %s in KUBEBUILDER_ASSETS, PATH or .cache/testbin; make testserver builds it, and make bench kube-proxy"
	if os.Getenv("WEIR_TEST_REQUIRE") != "" {
		t.Fatalf(remedy, name)
	}
	t.Skipf(remedy, name)
	return ""
}

func freePorts(t testing.TB, n int) []int {
	t.Helper()
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

// Create creates every object of a YAML file.
func (s *Server) Create(file string) {
	s.t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		s.t.Fatal(err)
	}
	decoder := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	for doc := range bytes.SplitSeq(data, []byte("\n---\n")) {
		object, _, err := decoder.Decode(doc, nil, nil)
		if err == nil {
			err = s.create(object)
		}
		if err != nil {
			s.t.Fatalf("%s: %v", file, err)
		}
	}
}

func (s *Server) create(object runtime.Object) (err error) {
	ctx, o := s.t.Context(), metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}
	switch x := object.(type) {
	case *corev1.ServiceAccount:
		_, err = s.Client.CoreV1().ServiceAccounts(x.Namespace).Create(ctx, x, o)
	case *corev1.ConfigMap:
		_, err = s.Client.CoreV1().ConfigMaps(x.Namespace).Create(ctx, x, o)
	case *rbacv1.ClusterRole:
		_, err = s.Client.RbacV1().ClusterRoles().Create(ctx, x, o)
	case *rbacv1.ClusterRoleBinding:
		_, err = s.Client.RbacV1().ClusterRoleBindings().Create(ctx, x, o)
	case *appsv1.DaemonSet:
		_, err = s.Client.AppsV1().DaemonSets(x.Namespace).Create(ctx, x, o)
	default:
		err = fmt.Errorf("a %T cannot be created here", object)
	}
	return err
}

// ServiceAccountToken returns a token like those that the kubelet gives to pods.
func (s *Server) ServiceAccountToken(namespace, name string) string {
	s.t.Helper()
	return s.token(namespace, name, authenticationv1.TokenRequestSpec{})
}

func (s *Server) token(namespace, name string, spec authenticationv1.TokenRequestSpec) string {
	s.t.Helper()
	t, err := s.Client.CoreV1().ServiceAccounts(namespace).CreateToken(s.t.Context(), name, &authenticationv1.TokenRequest{Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	return t.Status.Token
}

// RevocableToken returns such a token and a function that revokes it. The server refuses it at most ten seconds later.
func (s *Server) RevocableToken(namespace, name string) (token string, revoke func()) {
	s.t.Helper()
	secrets := s.Client.CoreV1().Secrets(namespace)
	secret, err := secrets.Create(s.t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{GenerateName: "token-"}}, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	token = s.token(namespace, name, authenticationv1.TokenRequestSpec{
		BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Secret", Name: secret.Name, UID: secret.UID}})
	return token, func() {
		s.t.Helper()
		if err := secrets.Delete(s.t.Context(), secret.Name, metav1.DeleteOptions{}); err != nil {
			s.t.Fatal(err)
		}
	}
}

// ClientCertificate returns a client certificate of that validity, and its key, in PEM.
func (s *Server) ClientCertificate(user string, validity time.Duration) (cert, key []byte) {
	s.t.Helper()
	return s.ca.issue(s.t, user, validity)
}

// CA returns the file of the certificate that signs the server's certificate: itself.
func (s *Server) CA() string { return filepath.Join(s.dir, "certs", "apiserver.crt") }

// Compact makes etcd discard its history, so that watches that lag behind are answered with 410 Gone.
func (s *Server) Compact() {
	s.t.Helper()
	answer, err := s.askEtcd("/v3/maintenance/status", struct{}{})
	var status struct {
		Header struct {
			Revision string `json:"revision"`
		} `json:"header"`
	}
	if err == nil {
		err = json.Unmarshal(answer, &status)
	}
	if err == nil {
		_, err = s.askEtcd("/v3/kv/compaction", map[string]any{"revision": status.Header.Revision, "physical": true})
	}
	if err != nil {
		s.t.Fatalf("compact: %v", err)
	}
}

// Store writes an object into etcd as the server would, under a key below /registry. The server neither checks it nor sets
// defaults: for each Service that it accepts, it goes through the addresses of all.
func (s *Server) Store(key string, o Object) error {
	kinds, _, err := scheme.Scheme.ObjectKinds(o)
	if err != nil {
		return err
	}
	o.GetObjectKind().SetGroupVersionKind(kinds[0])
	o.SetUID(uuid.NewUUID())
	o.SetCreationTimestamp(metav1.Now())
	var value bytes.Buffer
	if err := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(o, &value); err != nil {
		return err
	}
	_, err = s.askEtcd("/v3/kv/put", map[string][]byte{"key": []byte("/registry/" + key), "value": value.Bytes()})
	return err
}

// askEtcd returns the answer of etcd's gateway to a request in JSON.
func (s *Server) askEtcd(path string, request any) ([]byte, error) {
	body, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	res, err := s.toEtcd.Post(s.etcdURL+path, "application/json", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, answer)
	}
	return answer, err
}
