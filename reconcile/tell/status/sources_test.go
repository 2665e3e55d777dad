package status

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"weir/backends/dataplane"
	"weir/backends/fake"
	"weir/reconcile"
	"weir/spec"
	"weir/spec/apisource"
	"weir/spec/apisource/apitest"
	"weir/spec/filesource"
	"weir/spec/join"
	"weir/spec/join/jointest"
	"weir/spec/seed"
)

// patience limits every wait. It is generous, because machines differ in speed.
const patience = time.Minute

var sourceNode = reconcile.Node{Name: "node-a", Families: []dataplane.Family{dataplane.IPv4}}

// declared is what a layer declares: a Service and its slice, by name.
type declared map[string]*spec.Service

// sourcesWorld is a directory and an API, joined with a toy source and a toy filter, in front of an Engine and a Board.
type sourcesWorld struct {
	*testing.T
	r      *rand.Rand
	dir    string
	api    *apitest.Memory
	pods   *jointest.Source
	filter *jointest.Filter
	out    *spec.Outbox

	kernel *fake.Kernel
	engine *reconcile.Engine
	board  *Board

	// What the test wrote, and what the sources can know of it: a directory with a broken file, and an API that refuses
	// every request, stay as they were.
	inFiles, inAPI     declared
	fromFiles, fromAPI declared
	broken, refuses    bool
	outages            int
}

func newSourcesWorld(t *testing.T) *sourcesWorld {
	w := &sourcesWorld{T: t, r: seed.Rand(t), dir: t.TempDir(), api: apitest.NewMemory(t), pods: jointest.NewSource(), filter: jointest.NewFilter(),
		out: spec.NewOutbox(), kernel: fake.NewKernel(), board: NewBoard("v1"), inFiles: declared{}, inAPI: declared{}}
	w.engine = engineOver(w.kernel)
	// Each layer always declares one Service, since a layer without any may be a mistake.
	w.write("y", declare("y", 0, 9, 1))
	w.put("z", declare("z", 1, 9, 1))
	settle := time.Millisecond
	files := filesource.New(filesource.Options{Paths: []string{w.dir}, Overrides: spec.Overrides{SettleTime: &settle}})
	api := apisource.New(apisource.Options{Connection: apisource.Connection{Kubeconfig: apitest.Kubeconfig(t, w.api.URL), QPS: -1}, NodeName: sourceNode.Name})
	source := join.New(files, join.Fixed("the API", api), join.Fixed("the pods", w.pods)).Filtered(w.filter)
	jointest.Watch(t, source, w.out.Put)
	<-w.filter.Started
	<-w.pods.Started
	w.pods.Say(spec.Delta{All: true})
	return w
}

func engineOver(k *fake.Kernel) *reconcile.Engine {
	return reconcile.NewEngine(reconcile.Options{
		DataPath: reconcile.DataPath{Mode: "fake", Backend: fake.New(k, dataplane.Config{})}, Node: sourceNode,
	})
}

// declare returns a Service of a layer with a number of endpoints.
func declare(name string, layer, i, endpoints int) *spec.Service {
	ip := fmt.Sprintf("10.96.%d.%d", layer, i+1)
	family, policy, port, protocol, portName := corev1.IPFamilyPolicySingleStack, corev1.ServiceInternalTrafficPolicyCluster, int32(8080), corev1.ProtocolTCP, "p"
	meta := metav1.ObjectMeta{Namespace: "default", Name: name}
	svc := &corev1.Service{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: meta,
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip}, IPFamilyPolicy: &family, InternalTrafficPolicy: &policy,
			IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, Ports: []corev1.ServicePort{{Name: portName, Port: 80, Protocol: protocol}}},
	}
	slice := &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"}, ObjectMeta: meta,
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &portName, Port: &port, Protocol: &protocol}},
		Endpoints: []discoveryv1.Endpoint{},
	}
	slice.Labels = map[string]string{discoveryv1.LabelServiceName: name}
	for j := range endpoints {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.%d.%d.%d", 100+layer, i, j+1)}})
	}
	return &spec.Service{Name: dataplane.ServiceName{Namespace: "default", Name: name}, Object: svc, Slices: []*discoveryv1.EndpointSlice{slice}}
}

// write writes a Service to the directory, or removes it.
func (w *sourcesWorld) write(name string, svc *spec.Service) {
	w.Helper()
	file := filepath.Join(w.dir, name+".yaml")
	if delete(w.inFiles, name); svc == nil {
		if err := os.Remove(file); err != nil && !os.IsNotExist(err) {
			w.Fatal(err)
		}
	} else {
		w.inFiles[name] = svc
		var text []byte
		for _, o := range []any{svc.Object, svc.Slices[0]} {
			doc, err := yaml.Marshal(o)
			if err != nil {
				w.Fatal(err)
			}
			text = append(append(text, "---\n"...), doc...)
		}
		w.writeFile(file, text)
	}
	w.know()
}

func (w *sourcesWorld) writeFile(file string, text []byte) {
	w.Helper()
	tmp := filepath.Join(w.dir, ".tmp")
	err := os.WriteFile(tmp, text, 0o600)
	if err == nil {
		err = os.Rename(tmp, file)
	}
	if err != nil {
		w.Fatal(err)
	}
}

// put writes a Service to the API, or removes it.
func (w *sourcesWorld) put(name string, svc *spec.Service) {
	if was := w.inAPI[name]; was != nil && svc == nil {
		w.api.Delete(was.Slices[0].DeepCopy())
		w.api.Delete(was.Object.DeepCopy())
	}
	if delete(w.inAPI, name); svc != nil {
		w.inAPI[name] = svc
		w.api.Put(svc.Slices[0].DeepCopy())
		w.api.Put(svc.Object.DeepCopy())
	}
	w.know()
}

// spoil breaks the directory by a file, or repairs it.
func (w *sourcesWorld) spoil(on bool) {
	file := filepath.Join(w.dir, "broken.yaml")
	if w.broken = on; on {
		w.writeFile(file, []byte("apiVersion: v1\nkind: Service\nmetadata: {name: broken}\nspec: {clusterIP: nowhere, ports: [{port: 80}]}\n"))
	} else if err := os.Remove(file); err != nil {
		w.Fatal(err)
	}
	w.know()
}

// know records what the sources can know.
func (w *sourcesWorld) know() {
	if !w.broken {
		w.fromFiles = maps.Clone(w.inFiles)
	}
	if !w.refuses {
		w.fromAPI = maps.Clone(w.inAPI)
	}
}

var sourceNames = []string{"a", "b", "c", "d"}

// step has one of the sources say, get wrong, withhold or find something.
func (w *sourcesWorld) step() string {
	i := w.r.IntN(len(sourceNames))
	name := sourceNames[i]
	key := dataplane.ServiceName{Namespace: "default", Name: name}
	made := func(layer int) *spec.Service {
		if w.r.IntN(3) == 0 {
			return nil
		}
		return declare(name, layer, i, w.r.IntN(4))
	}
	switch w.r.IntN(9) {
	case 0, 1:
		w.write(name, made(0))
		return "the file of " + name
	case 2, 3:
		w.put(name, made(1))
		return name + " in the API"
	case 4:
		var list []*discoveryv1.EndpointSlice
		if svc := made(2); svc != nil {
			svc.Slices[0].Name = "pods-of-" + name
			list = svc.Slices
		}
		w.pods.Give(key, list)
		w.pods.Say(spec.Delta{Services: []dataplane.ServiceName{key}})
		return "the pods of " + name
	case 5:
		w.filter.Judge(fmt.Sprintf("10.%d.%d.%d", 100+w.r.IntN(3), i, 1+w.r.IntN(3)), w.r.IntN(2) == 0, key)
		return "an endpoint of " + name
	case 6:
		w.spoil(!w.broken)
		return fmt.Sprintf("the files are broken: %v", w.broken)
	case 7:
		const most = 2 // a client of the API waits for a second or more after each
		if !w.refuses && w.outages == most {
			break
		}
		if w.refuses = !w.refuses; w.refuses {
			w.outages++
		}
		w.api.Refuse(w.refuses)
		w.know()
		return fmt.Sprintf("the API refuses: %v", w.refuses)
	}
	w.pods.Say(spec.Delta{All: true})
	return "the pods say everything again"
}

// model returns the Services that the sources make together, worked out from nothing.
func (w *sourcesWorld) model() map[dataplane.ServiceName]*spec.Service {
	all := map[dataplane.ServiceName]*spec.Service{}
	for _, layer := range []declared{w.fromFiles, w.fromAPI} {
		for _, svc := range layer {
			all[svc.Name] = svc
		}
	}
	for name, svc := range all {
		both := *svc
		both.Slices = append(slices.Clone(svc.Slices), w.pods.Snapshot.Slices.Get(name).List...)
		both.Slices = w.filter.Slices(name, &both, nil)
		all[name] = &both
	}
	return all
}

// take hands what was sent to the Engine and the Board, as the Loop does.
func (w *sourcesWorld) take() {
	w.Helper()
	for u, ok := w.out.Take(); ok; u, ok = w.out.Take() {
		if w.board.Update(u, time.Now()); u.Err == nil {
			w.engine.SetSnapshot(u.Snapshot, u.Delta)
		}
	}
	rep := w.engine.Round(w.Context(), reconcile.Request{})
	if rep.Err != nil {
		w.Fatal(rep.Err)
	}
	w.board.Report(rep)
}

// mismatch returns what differs from the model: in the kernel, in a plan, or in the status.
func (w *sourcesWorld) mismatch() string {
	w.Helper()
	model := &spec.Snapshot{Services: spec.ServicesOf(slices.Collect(maps.Values(w.model()))...)}
	kernel := fake.NewKernel()
	fresh := engineOver(kernel)
	fresh.SetSnapshot(model, spec.Delta{All: true})
	want := NewBoard("v1")
	want.Report(fresh.Round(w.Context(), reconcile.Request{Full: true}))
	if d := cmp.Diff(kernel.Objects(), w.kernel.Objects()); d != "" {
		return "the kernel (-want +got):\n" + d
	}
	other := engineOver(w.kernel)
	other.SetSnapshot(model, spec.Delta{All: true})
	if plan, err := other.Plan(w.Context(), "dry run"); err != nil || !plan.Empty() {
		return fmt.Sprintf("the plan: %v\n%s", err, plan)
	}
	got := w.board.Status("")
	for i, s := range got.Services {
		if inFile := strings.HasPrefix(s.Source, w.dir); inFile != (w.fromAPI[s.Name] == nil) {
			return fmt.Sprintf("the status says that %s is from %q", s.Name, s.Source)
		}
		got.Services[i].Source = ""
	}
	if d := cmp.Diff(want.Status("").Services, got.Services, cmp.AllowUnexported(Port{})); d != "" {
		return "the status (-want +got):\n" + d
	}
	if refused := got.Refused != nil; refused != (w.broken || w.refuses) {
		return fmt.Sprintf("the status names a fault: %+v", got.Refused)
	}
	return ""
}

// await takes what is sent until everything is as the model says.
func (w *sourcesWorld) await(step string) {
	w.Helper()
	for deadline := time.Now().Add(patience); ; {
		w.take()
		wrong := w.mismatch()
		if wrong == "" {
			return
		}
		if time.Now().After(deadline) {
			w.Fatalf("after %s: %s", step, wrong)
		}
		select {
		case <-w.out.Ready():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// TestSourcesTogether has files, an API, a toy source and a toy filter say, get wrong and withhold things in any order:
// the kernel, a plan and the status are what all of them said last.
func TestSourcesTogether(t *testing.T) {
	w := newSourcesWorld(t)
	w.await("the start")
	for range 60 {
		w.await(w.step())
	}
}

// TestRevisionIsOutdated follows the mark of a state that a layer cannot read any more.
func TestRevisionIsOutdated(t *testing.T) {
	w := newSourcesWorld(t)
	w.await("the start")
	says := func(when string, stale bool) {
		t.Helper()
		if got := w.board.Status("").Revision; strings.HasSuffix(got, "-stale") != stale {
			t.Errorf("%s the revision is %q", when, got)
		}
	}
	says("at first", false)
	w.refuses = true
	w.api.Refuse(true)
	w.await("the API refuses")
	w.write("a", declare("a", 0, 0, 2))
	w.await("a file changed meanwhile")
	says("while the API refuses", true)
	w.refuses = false
	w.api.Refuse(false)
	w.put("b", declare("b", 1, 1, 2))
	w.await("the API answers again")
	says("afterwards", false)
	w.spoil(true)
	w.await("a broken file")
	w.put("b", declare("b", 1, 1, 3))
	w.await("a change in the API")
	says("while a file is broken, which was read", false)
}
