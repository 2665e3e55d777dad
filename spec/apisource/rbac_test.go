package apisource_test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weir/spec/apisource"
	"weir/spec/apisource/apitest"
)

// TestLeastPrivilege has a ServiceAccount work with the rights of the example, and takes one verb of one resource after
// the other away. Nothing of the example can be spared: a server that streams lists needs no "list", and those that do not
// need it. Whatever is missing, what was known stays, and is complete.
func TestLeastPrivilege(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{"streamed lists": nil, "lists as of old": {"--feature-gates=WatchList=false"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			streams := args == nil
			s := apitest.Start(t, apitest.Options{Args: args})
			s.Create("../../examples/daemonset/rbac.yaml")
			for _, name := range []string{"a", "b", "c"} {
				createService(t, s, newService(name))
				setEndpoints(t, s, name, 2)
			}
			proxy := apitest.NewProxy(t, s.Address)
			o := apisource.Options{NodeName: "node"}
			o.Connection.Kubeconfig = s.Kubeconfig(filepath.Join(t.TempDir(), "kubeconfig"), s.ServiceAccountToken("kube-system", "weir"), proxy.Address())
			if _, err := apisource.New(o).Load(t.Context()); err != nil {
				t.Fatal(err)
			}
			whole := roleOf(t, s)
			for _, missing := range rights(whole) {
				if streams && missing.verb == "list" {
					continue
				}
				t.Run("no "+missing.verb+" of "+missing.resource, func(t *testing.T) {
					setRole(t, s, whole, missing, true)
					w := watch(t, o)
					complete := func() bool {
						for _, name := range []string{"a", "b", "c"} {
							if n := w.endpoints(name); w.snap != nil && n != 2 {
								t.Fatalf("%s has %d endpoints", name, n)
							}
						}
						return w.snap != nil && w.err == nil
					}
					w.await("everything", complete)
					setRole(t, s, without(whole, missing), missing, false)
					// A watch that was cut goes on where it was, without a list, unless it is cut within a second of its beginning.
					var cut time.Time
					w.await("a refusal that names it", func() bool {
						complete()
						if cut.IsZero() || missing.verb == "list" && time.Since(cut) > 700*time.Millisecond {
							proxy.Cut()
							cut = time.Now()
						}
						return w.err != nil && strings.Contains(w.err.Error(), "cannot "+missing.verb+` resource "`+missing.resource+`"`)
					})
				})
			}
		})
	}
}

type right struct{ verb, group, resource string }

// rights takes a role apart.
func rights(role *rbacv1.ClusterRole) []right {
	var all []right
	for _, rule := range role.Rules {
		for _, resource := range rule.Resources {
			for _, verb := range rule.Verbs {
				all = append(all, right{verb, rule.APIGroups[0], resource})
			}
		}
	}
	return all
}

// without returns the role less one right.
func without(role *rbacv1.ClusterRole, missing right) *rbacv1.ClusterRole {
	less := role.DeepCopy()
	less.Rules = nil
	for _, rule := range role.Rules {
		for _, resource := range rule.Resources {
			for _, verb := range rule.Verbs {
				if (right{verb, rule.APIGroups[0], resource}) != missing {
					less.Rules = append(less.Rules, rbacv1.PolicyRule{APIGroups: rule.APIGroups, Resources: []string{resource}, Verbs: []string{verb}})
				}
			}
		}
	}
	return less
}

func roleOf(t *testing.T, s *apitest.Server) *rbacv1.ClusterRole {
	t.Helper()
	role, err := s.Client.RbacV1().ClusterRoles().Get(t.Context(), "weir", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	role.ResourceVersion = ""
	return role
}

// setRole changes the role and waits until the server acts by it: until it has, or has not, this right.
func setRole(t *testing.T, s *apitest.Server, role *rbacv1.ClusterRole, of right, has bool) {
	t.Helper()
	if _, err := s.Client.RbacV1().ClusterRoles().Update(t.Context(), role, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	question := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: apitest.User, ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: of.verb, Group: of.group, Resource: of.resource}}}
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		answer, err := s.Client.AuthorizationV1().SubjectAccessReviews().Create(t.Context(), question, metav1.CreateOptions{})
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("the server does not act by the role: %v", err)
		}
		if answer.Status.Allowed == has {
			return
		}
	}
}
