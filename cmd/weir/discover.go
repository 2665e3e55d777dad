package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"weir/spec"
	"weir/spec/endpoints"
	"weir/spec/podsource"
)

// discoverFlags are the flags of weir discover.
type discoverFlags struct {
	input  inputFlags
	pods   podFlags
	node   string
	format string
	watch  bool
}

func newDiscover() *cobra.Command {
	var f discoverFlags
	cmd := &cobra.Command{
		Use:        "discover",
		SuggestFor: []string{"pods", "endpoints"},
		Short:      "Show the pods that run on this node, and the Services that select them",
		Long: `Ask the container runtimes of this node for the pods that run: podman, docker, the kubelet, and those with Kubernetes'
Container Runtime Interface, such as containerd. With -f or -k, say which Services of the input select them, and for the other
Services which pod is nearest to being selected and what its labels lack. Pods with a status in the input count as if a runtime
had told of them. With -o yaml or json, print the EndpointSlices that weir run makes of the pods, as any cluster takes them;
without -f and -k, print the pods themselves, as weir takes them elsewhere with -f. With -n, print the pods and the Services of
one namespace. Nothing is changed.

A container of podman or docker outside of a pod is a pod of one container. Its namespace is that of its label
io.kubernetes.pod.namespace, or default.

Exit codes: 0 printed; 1 the input is not valid, or a runtime does not answer; 2 the command line is wrong.`,
		Example: `  weir discover
  weir discover -f ./cluster
  weir discover -f ./cluster -o yaml > endpointslices.yaml
  weir discover -o yaml > pods.yaml
  weir discover --watch --pod-source podman=unix:///run/podman/podman.sock`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := oneOf("--output", f.format, discoverFormats...); err != nil {
				return err
			}
			if f.watch && f.format != "table" {
				return usageError{errors.New("--watch prints a table: leave out --output")}
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			return f.run(ctx, cmd)
		},
	}
	f.input.add(cmd)
	f.pods.add(cmd.Flags())
	fs := cmd.Flags()
	fs.StringVar(&f.node, "hostname-override", "", "name of this node (default: the host name)")
	fs.StringVarP(&f.format, "output", "o", "table", "how to print: table, or the EndpointSlices, or without -f and -k the pods, as yaml or json")
	fs.BoolVarP(&f.watch, "watch", "w", false, "print a line for each change of a pod, until interrupted")
	completeValues(cmd, "output", discoverFormats...)
	return cmd
}

var discoverFormats = []string{"table", "yaml", "json"}

func (f *discoverFlags) run(ctx context.Context, cmd *cobra.Command) error {
	node, err := nodeName(f.node, "")
	if err != nil {
		return err
	}
	f.input.more = f.pods.fields
	overrides, err := f.input.overrides()
	if err != nil {
		return usageError{err}
	}
	d, weir := discovery{namespace: f.input.chosen.Namespace}, overrides.Apply(spec.DefaultWeirConfiguration())
	if !f.input.none() {
		source, err := f.input.source(hclog.NewNullLogger())
		if err != nil {
			return err
		}
		snap, err := source.Load(ctx)
		if err != nil {
			printProblems(cmd.ErrOrStderr(), err)
			return errReported
		}
		d.take(snap)
		weir = snap.Weir
	}
	runtimes := f.pods.inForce(ctx, weir)
	if len(runtimes) == 0 && (f.input.none() || f.watch) {
		var usual []string
		for _, r := range spec.UsualPodSources {
			usual = append(usual, r.Socket)
		}
		return fmt.Errorf("no container runtime is at %s: start one's socket (systemctl enable --now podman.socket), or name it with --pod-source",
			strings.Join(usual, ", "))
	}
	if f.watch {
		return watchPods(ctx, cmd.OutOrStdout(), runtimes, node, d.namespace)
	}
	for i, r := range runtimes {
		pods, err := podReader(r, node).List(ctx)
		if err != nil {
			return fmt.Errorf("pods of %s: %w", r, err)
		}
		for _, pod := range pods {
			d.add(i, runtimeName(r, runtimes), pod)
		}
	}
	d.sort()
	errOut := cmd.ErrOrStderr()
	for _, p := range d.pods {
		if p.Status.Message != "" {
			fmt.Fprintf(errOut, "%s pod %s/%s of %s: %s\n", paint(errOut, yellow, "ignored:"), p.Namespace, p.Name, p.runtime, spec.Clean(p.Status.Message))
		}
	}
	switch {
	case f.format == "table":
		return d.table(cmd.OutOrStdout())
	case f.input.none():
		return d.list(cmd.OutOrStdout(), f.format)
	}
	return d.slices(cmd.OutOrStdout(), f.format)
}

// runtimeName returns the kind of a source of pods, with its socket if there are several of the kind.
func runtimeName(s spec.PodSource, all []spec.PodSource) string {
	for _, other := range all {
		if other.Kind == s.Kind && other != s {
			return s.String()
		}
	}
	return s.Kind
}

// discovery is what runs and what selects it.
type discovery struct {
	namespace string // "" stands for all
	services  spec.Services
	nodes     map[string]*corev1.Node
	templates spec.Templates
	byLabels  endpoints.Templates
	index     endpoints.Index
	pods      []foundPod
}

type foundPod struct {
	*corev1.Pod
	runtime string
}

// inputSource is the input among the sources of pods: the last one, since a runtime knows more of a pod.
const inputSource = 1 << 20

// take takes what an input declares, with the pods that it tells of.
func (d *discovery) take(snap *spec.Snapshot) {
	d.services, d.nodes, d.templates = snap.Services, snap.Nodes, snap.Templates
	for t := range snap.Templates.All() {
		d.byLabels.Set(endpoints.PodKey{Namespace: t.Namespace, Name: t.Key()}, t)
	}
	for pod := range snap.Pods.All() {
		d.add(inputSource, "the input", pod)
	}
}

// add adds a pod, completed by its template.
func (d *discovery) add(source int, runtime string, pod *corev1.Pod) {
	if d.namespace != "" && pod.Namespace != d.namespace {
		return
	}
	pod = endpoints.Completed(pod, d.byLabels.Of(pod))
	d.index.SetPod(endpoints.PodKey{Source: source, Namespace: pod.Namespace, Name: pod.Name}, pod)
	d.pods = append(d.pods, foundPod{pod, runtime})
}

// selected returns the pods that a Service selects.
func (d *discovery) selected(svc *spec.Service) []*corev1.Pod {
	if !endpoints.Selects(svc.Object) {
		return nil
	}
	return d.index.Selected(svc.Name.Namespace, svc.Object.Spec.Selector)
}

func (d *discovery) sort() {
	slices.SortFunc(d.pods, func(a, b foundPod) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.runtime, b.runtime))
	})
}

func (d *discovery) table(w io.Writer) error {
	selectedBy := map[*corev1.Pod][]string{}
	for svc := range d.services.All() {
		for _, pod := range d.selected(svc) {
			selectedBy[pod] = append(selectedBy[pod], svc.Name.Name)
		}
	}
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "POD\tSTATE\tADDRESSES\tRUNTIME\tSERVICES")
	for _, p := range d.pods {
		fmt.Fprintf(t, "%s\t%s\n", podLine(p), orDash(strings.Join(selectedBy[p.Pod], ",")))
	}
	if d.services.Len() > 0 {
		fmt.Fprintln(t, "\nSERVICE\tSELECTS\tENDPOINTS")
		for svc := range d.services.All() {
			fmt.Fprintf(t, "%s\t%s\t%s\n", svc.Name, orDash(selectorText(svc.Object.Spec.Selector)), d.endpointsText(svc))
		}
	}
	return t.Flush()
}

func podLine(p foundPod) string {
	var addrs []string
	for _, a := range p.Status.PodIPs {
		addrs = append(addrs, a.IP)
	}
	return fmt.Sprintf("%s/%s\t%s\t%s\t%s", p.Namespace, p.Name, podState(p.Pod), orDash(strings.Join(addrs, ",")), p.runtime)
}

func podState(p *corev1.Pod) string {
	switch {
	case p.DeletionTimestamp != nil:
		return "terminating"
	case endpoints.Ready(p):
		return "ready"
	case p.Status.Phase == corev1.PodRunning:
		return "not ready"
	}
	state := strings.ToLower(string(p.Status.Phase))
	if how := endpoints.Ending(p); how != "" {
		state += " (" + how + ")"
	}
	return state
}

// endpointsText returns the addresses of the endpoints of a Service, or why there are none.
func (d *discovery) endpointsText(svc *spec.Service) string {
	if len(svc.Slices) > 0 {
		return "those in the input, which win over pods"
	}
	if !endpoints.Selects(svc.Object) {
		return "none: it selects no pods"
	}
	pods := d.selected(svc)
	if len(pods) == 0 {
		return "none: " + d.nearest(svc)
	}
	var all []string
	for _, s := range endpoints.Of(svc.Object, pods, d.zone) {
		for _, e := range s.Endpoints {
			text := e.Addresses[0]
			if !*e.Conditions.Ready {
				text += " (not ready)"
			}
			all = append(all, text)
		}
	}
	text := strings.Join(all, ", ")
	if text == "" {
		text = "none: " + endpoints.WhyNone(pods)
	}
	if slices.ContainsFunc(pods, endpoints.Unprobed) {
		text += "; weir run asks their readinessProbe"
	}
	for i := range svc.Object.Spec.Ports {
		if wrong := endpoints.UnknownPort(&svc.Object.Spec.Ports[i], pods, nil); wrong != "" {
			text += fmt.Sprintf("; targetPort %s", wrong)
		}
	}
	return text
}

// nearest says which templates make pods that the Service selects, or which pod or template is nearest to that.
func (d *discovery) nearest(svc *spec.Service) string {
	selector, namespace := svc.Object.Spec.Selector, svc.Name.Namespace
	if of := d.byLabels.Selected(namespace, selector); len(of) > 0 {
		return "no pod of " + of[0].Promise() + " runs"
	}
	pods := func(yield func(*corev1.Pod) bool) {
		for _, p := range d.pods {
			if p.Namespace == namespace && !yield(p.Pod) {
				return
			}
		}
	}
	return cmp.Or(endpoints.Nearest(selector, pods, d.templates.In(namespace)), "no pod of its namespace has any of these labels")
}

func (d *discovery) zone(node string) string {
	if n := d.nodes[node]; n != nil {
		return n.Labels[corev1.LabelTopologyZone]
	}
	return ""
}

// slices prints the EndpointSlices of the Services as a list.
func (d *discovery) slices(w io.Writer, format string) error {
	list := discoveryv1.EndpointSliceList{TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSliceList"}, Items: []discoveryv1.EndpointSlice{}}
	for svc := range d.services.All() {
		if len(svc.Slices) > 0 {
			continue
		}
		for _, s := range endpoints.Of(svc.Object, d.selected(svc), d.zone) {
			s.TypeMeta = metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"}
			list.Items = append(list.Items, *s)
		}
	}
	if format == "json" {
		return writeJSON(w, list)
	}
	for _, s := range list.Items {
		text, err := yaml.Marshal(s)
		if err == nil {
			_, err = fmt.Fprintf(w, "---\n%s", text)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// list prints the pods as a list that can be an input.
func (d *discovery) list(w io.Writer, format string) error {
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}, Items: []corev1.Pod{}}
	for _, p := range d.pods {
		pod := *p.Pod
		pod.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
		list.Items = append(list.Items, pod)
	}
	if format == "json" {
		return writeJSON(w, list)
	}
	text, err := yaml.Marshal(list)
	if err == nil {
		_, err = w.Write(text)
	}
	return err
}

// watchPods prints a line for each change of a pod of the namespace, or of any, until ctx is done.
func watchPods(ctx context.Context, w io.Writer, runtimes []spec.PodSource, node, namespace string) error {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, r := range runtimes {
		source := podsource.New(podsource.Options{Name: r.String(), Reader: podReader(r, node)})
		wg.Go(func() {
			_ = source.Watch(ctx, func(u spec.Update) { // it ends with ctx
				mu.Lock()
				defer mu.Unlock()
				if u.Err != nil {
					fmt.Fprintln(w, oneLine(u.Err.Error()))
					return
				}
				names := u.Delta.Pods
				if u.Delta.All {
					names = slices.Collect(u.Snapshot.Pods.Names())
				}
				t := tabwriter.NewWriter(w, 24, 0, 3, ' ', 0)
				for _, name := range names {
					if namespace != "" && name.Namespace != namespace {
						continue
					}
					if pod := u.Snapshot.Pods.Get(name); pod != nil {
						fmt.Fprintln(t, podLine(foundPod{pod, runtimeName(r, runtimes)}))
					} else {
						fmt.Fprintf(t, "%s\tgone\t-\t%s\n", name, runtimeName(r, runtimes))
					}
				}
				_ = t.Flush()
			})
		})
	}
	wg.Wait()
	return nil
}

func selectorText(selector map[string]string) string {
	var all []string
	for _, k := range slices.Sorted(maps.Keys(selector)) {
		all = append(all, k+"="+selector[k])
	}
	return strings.Join(all, ",")
}

func orDash(s string) string { return cmp.Or(s, "-") }
