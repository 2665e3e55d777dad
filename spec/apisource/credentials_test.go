package apisource_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientauthv1 "k8s.io/client-go/pkg/apis/clientauthentication/v1"

	"weir/spec/apisource"
	"weir/spec/apisource/apitest"
)

// credential is one way to prove who one is: files in a directory of its own, which are replaced while they are in use.
type credential struct {
	name string
	// user returns what the kubeconfig says of it.
	user func(dir string) string
	// renew writes what the server takes from now on.
	renew func(t *testing.T, s *apitest.Server, dir string)
	// expire has what was written last taken no more.
	expire func(t *testing.T, s *apitest.Server, dir string)
	// refusal is what the error says then.
	refusal string
}

// TestCredentials has each kind of credential rotated in time, then expire in use, and come back too late, at a real server.
func TestCredentials(t *testing.T) {
	t.Parallel()
	s := apitest.Start(t, apitest.Options{})
	s.Create("../../examples/daemonset/rbac.yaml")
	for i, c := range credentials(t) {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir, proxy, service := t.TempDir(), apitest.NewProxy(t, s.Address), fmt.Sprintf("web-%d", i)
			createService(t, s, newService(service))
			c.renew(t, s, dir)
			o := apisource.Options{NodeName: "node", CheckCredentials: 50 * time.Millisecond}
			o.Connection.Kubeconfig = s.KubeconfigFor(filepath.Join(dir, "kubeconfig"), c.user(dir), proxy.Address())
			w := watch(t, o)
			follows := func(what string, n int) {
				t.Helper()
				setEndpoints(t, s, service, n)
				w.await(what, func() bool { return w.err == nil && w.endpoints(service) == n })
			}
			follows("a change", 1)
			c.renew(t, s, dir)
			proxy.Cut()
			follows("a change after a rotation in time", 2)

			c.expire(t, s, dir)
			w.await("a refusal", func() bool {
				if w.err == nil { // a watch outlives its credentials, and the server remembers a token for a while
					proxy.Cut()
					return false
				}
				return strings.Contains(w.err.Error(), c.refusal)
			})
			if w.endpoints(service) != 2 {
				t.Error("what was known is gone")
			}
			c.renew(t, s, dir)
			follows("a change after a rotation that came late", 3)
			if w.alls != 1 {
				t.Errorf("%d Updates said that everything changed; want the first only", w.alls)
			}
		})
	}
}

func credentials(t *testing.T) []credential {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	plugin := func(dir string) string {
		return fmt.Sprintf("{exec: {apiVersion: client.authentication.k8s.io/v1, interactiveMode: Never, command: %q, env: [{name: %s, value: %q}]}}",
			exe, pluginEnv, filepath.Join(dir, "answer"))
	}
	const refused = "nauthorized"
	tokens := tokenIssuer()
	return []credential{
		{"client certificate", func(dir string) string {
			return fmt.Sprintf("{client-certificate: %q, client-key: %q}", filepath.Join(dir, "cert"), filepath.Join(dir, "key"))
		}, writeCertificate(time.Hour), writeCertificate(-time.Minute), refused},
		{"token file", func(dir string) string { return fmt.Sprintf("{tokenFile: %q}", filepath.Join(dir, "token")) },
			func(t *testing.T, s *apitest.Server, dir string) {
				apitest.Replace(t, filepath.Join(dir, "token"), []byte(tokens.renew(s, dir)))
			}, tokens.expire, refused},
		{"plugin with a token", plugin, func(t *testing.T, s *apitest.Server, dir string) {
			answer(t, dir, &clientauthv1.ExecCredentialStatus{Token: tokens.renew(s, dir)})
		}, tokens.expire, refused},
		{"plugin with a client certificate", plugin, answerCertificate(time.Hour), answerCertificate(-time.Minute), refused},
		{"plugin that fails", plugin, func(t *testing.T, s *apitest.Server, dir string) {
			answer(t, dir, &clientauthv1.ExecCredentialStatus{Token: apitest.Token, ExpirationTimestamp: soon()})
		}, func(t *testing.T, _ *apitest.Server, dir string) {
			if err := os.Remove(filepath.Join(dir, "answer")); err != nil {
				t.Fatal(err)
			}
		}, "exit code 1"},
	}
}

// issuer keeps what makes the server refuse the tokens that were issued for each directory.
type issuer struct {
	mu     sync.Mutex
	revoke map[string][]func()
}

func tokenIssuer() *issuer { return &issuer{revoke: map[string][]func(){}} }

func (i *issuer) renew(s *apitest.Server, dir string) string {
	token, revoke := s.RevocableToken("kube-system", "weir")
	i.mu.Lock()
	defer i.mu.Unlock()
	i.revoke[dir] = append(i.revoke[dir], revoke)
	return token
}

func (i *issuer) expire(_ *testing.T, _ *apitest.Server, dir string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, revoke := range i.revoke[dir] {
		revoke()
	}
	delete(i.revoke, dir)
}

func writeCertificate(validity time.Duration) func(*testing.T, *apitest.Server, string) {
	return func(t *testing.T, s *apitest.Server, dir string) {
		cert, key := s.ClientCertificate(apitest.User, validity)
		apitest.Replace(t, filepath.Join(dir, "cert"), cert)
		apitest.Replace(t, filepath.Join(dir, "key"), key)
	}
}

func answerCertificate(validity time.Duration) func(*testing.T, *apitest.Server, string) {
	return func(t *testing.T, s *apitest.Server, dir string) {
		cert, key := s.ClientCertificate(apitest.User, validity)
		answer(t, dir, &clientauthv1.ExecCredentialStatus{ClientCertificateData: string(cert), ClientKeyData: string(key), ExpirationTimestamp: soon()})
	}
}

// soon is when an answer expires that the plugin is to be asked for again, though the server would still take it.
func soon() *metav1.Time { t := metav1.NewTime(time.Now().Add(time.Second)); return &t }

// answer is what the plugin says from now on.
func answer(t *testing.T, dir string, status *clientauthv1.ExecCredentialStatus) {
	t.Helper()
	text, err := json.Marshal(clientauthv1.ExecCredential{
		TypeMeta: metav1.TypeMeta{APIVersion: clientauthv1.SchemeGroupVersion.String(), Kind: "ExecCredential"}, Status: status})
	if err != nil {
		t.Fatal(err)
	}
	apitest.Replace(t, filepath.Join(dir, "answer"), text)
}

// TestHalfARotation replaces a certificate some time before its key.
func TestHalfARotation(t *testing.T) {
	t.Parallel()
	s := apitest.Start(t, apitest.Options{})
	s.Create("../../examples/daemonset/rbac.yaml")
	dir := t.TempDir()
	writeCertificate(time.Hour)(t, s, dir)
	log := &lockedBuffer{}
	o := apisource.Options{NodeName: "node", CheckCredentials: 10 * time.Millisecond, Log: hclog.New(&hclog.LoggerOptions{Output: log})}
	o.Connection.Kubeconfig = s.KubeconfigFor(filepath.Join(dir, "kubeconfig"), credentials(t)[0].user(dir), s.Address)
	w := watch(t, o)
	createService(t, s, newService("web"))
	w.await("a Service", func() bool { return w.endpoints("web") == 0 })

	cert, key := s.ClientCertificate(apitest.User, time.Hour)
	apitest.Replace(t, filepath.Join(dir, "cert"), cert)
	log.await(t, "those known stay in use")
	setEndpoints(t, s, "web", 1)
	unharmed := func() bool {
		if w.err != nil {
			t.Fatalf("half a rotation did harm: %v", w.err)
		}
		return w.endpoints("web") == 1
	}
	w.await("a change", unharmed)
	apitest.Replace(t, filepath.Join(dir, "key"), key)
	log.await(t, "have changed")
	setEndpoints(t, s, "web", 2)
	w.await("a change", func() bool { return w.endpoints("web") == 2 && w.err == nil })
}

// lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements io.Writer.
func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func (b *lockedBuffer) await(t *testing.T, part string) {
	t.Helper()
	for deadline := time.Now().Add(patience); !strings.Contains(b.String(), part); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the log does not say %q:\n%s", part, b)
		}
	}
}
