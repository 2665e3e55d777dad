package daemonset

import (
	"bytes"
	"os"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
)

// TestManifests decodes strictly, so that a field that does not exist is an error.
func TestManifests(t *testing.T) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{appsv1.AddToScheme, corev1.AddToScheme, rbacv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	for _, file := range []string{"rbac.yaml", "daemonset.yaml"} {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for doc := range bytes.SplitSeq(data, []byte("\n---\n")) {
			o, _, err := decoder.Decode(doc, nil, nil)
			if err != nil {
				t.Errorf("%s: %v", file, err)
				continue
			}
			switch o := o.(type) {
			case *appsv1.DaemonSet:
				unprivileged(t, o)
			case *rbacv1.ClusterRole:
				readOnly(t, o)
			}
		}
	}
}

func unprivileged(t *testing.T, d *appsv1.DaemonSet) {
	for _, c := range d.Spec.Template.Spec.Containers {
		s := c.SecurityContext
		if *s.Privileged || *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem {
			t.Errorf("container %s is not confined", c.Name)
		}
		if len(s.Capabilities.Drop) != 1 || s.Capabilities.Drop[0] != "ALL" || len(s.Capabilities.Add) != 1 || s.Capabilities.Add[0] != "NET_ADMIN" {
			t.Errorf("container %s has capabilities %+v", c.Name, s.Capabilities)
		}
	}
}

func readOnly(t *testing.T, r *rbacv1.ClusterRole) {
	for _, rule := range r.Rules {
		if verbs := strings.Join(rule.Verbs, " "); verbs != "list watch" {
			t.Errorf("%v may be accessed by %s; list and watch are enough", rule.Resources, verbs)
		}
	}
}
