package manifest

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"weir/spec"
)

// validator collects what is wrong with one object. Field paths are formatted only for what is wrong.
type validator struct {
	problems []fieldProblem
	notices  []fieldProblem
}

// add reports a problem of the field whose path is given as a format.
func (v *validator) add(detail, path string, args ...any) {
	if len(v.problems) < maxProblemsPerDocument {
		v.problems = append(v.problems, fieldProblem{fmt.Sprintf(path, args...), detail})
	}
}

func (v *validator) notice(detail, path string, args ...any) {
	if len(v.notices) < maxProblemsPerDocument {
		v.notices = append(v.notices, fieldProblem{fmt.Sprintf(path, args...), detail})
	}
}

// addAll reports messages of apimachinery's helpers about a value.
func (v *validator) addAll(messages []string, value, path string, args ...any) {
	for _, m := range messages {
		v.add(quote(value)+": "+short(m), path, args...)
	}
}

func (v *validator) addErrors(errs field.ErrorList) {
	for _, e := range errs {
		v.add(printable(short(e.ErrorBody())), "%s", e.Field)
	}
}

// short leaves out of a message the examples and the regular expression, which are longer than what they explain.
func short(message string) string {
	message, _, _ = strings.Cut(message, " (e.g. ")
	return message
}

// meta validates the metadata of an object and sets its namespace.
func (v *validator) meta(m *metav1.ObjectMeta, namespaced bool, name func(string) []string) {
	switch {
	case m.Name != "":
		v.addAll(name(m.Name), m.Name, "metadata.name")
	case m.GenerateName != "":
		v.add("must be given: there is no API server here to make a name from generateName", "metadata.name")
	default:
		v.add("is missing", "metadata.name")
	}
	switch {
	case namespaced && m.Namespace == "":
		m.Namespace = metav1.NamespaceDefault
	case namespaced:
		v.addAll(utilvalidation.IsDNS1123Label(m.Namespace), m.Namespace, "metadata.namespace")
	case m.Namespace != "":
		v.add(quote(m.Namespace)+": this kind has no namespace", "metadata.namespace")
	}
	v.addErrors(metav1validation.ValidateLabels(m.Labels, field.NewPath("metadata", "labels")))
	v.addErrors(apivalidation.ValidateAnnotations(m.Annotations, field.NewPath("metadata", "annotations")))
}

var protocols = []corev1.Protocol{tcp, udp, sctp}

func (v *validator) protocol(p corev1.Protocol, path string, args ...any) {
	if !slices.Contains(protocols, p) {
		v.add(quote(string(p))+" is none of TCP, UDP, SCTP"+caseHint(string(p), "TCP", "UDP", "SCTP"), path, args...)
	}
}

func caseHint(got string, values ...string) string {
	for _, want := range values {
		if got != want && strings.EqualFold(got, want) {
			return "; write " + want
		}
	}
	return ""
}

func (v *validator) port(port int32, path string, args ...any) {
	for _, m := range utilvalidation.IsValidPortNum(int(port)) {
		v.add(fmt.Sprintf("%d: %s", port, m), path, args...)
	}
}

func (v *validator) oneOf(got string, values []string, path string, args ...any) {
	if !slices.Contains(values, got) {
		v.add(fmt.Sprintf("%s is none of %s%s", quote(got), strings.Join(values, ", "), caseHint(got, values...)), path, args...)
	}
}

// address parses an address as the API server accepts it today: no leading zeros, no IPv4 in IPv6 form, no zone.
func (v *validator) address(s, path string, args ...any) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil && strings.Contains(s, "/"):
		v.add(quote(s)+" is not an IP address; leave out the prefix length", path, args...)
	case err != nil:
		v.add(quote(s)+" is not an IP address, such as 10.9.8.7 or 2001:db8::ffff", path, args...)
	case a.Zone() != "":
		v.add(quote(s)+" has a zone, which an address here cannot have", path, args...)
	case a.Is4In6():
		v.add(fmt.Sprintf("%s is an IPv4 address in IPv6 form; write %s", quote(s), a.Unmap()), path, args...)
	default:
		return a, true
	}
	return netip.Addr{}, false
}

// plainAddress is an address that traffic can be sent to from elsewhere.
func (v *validator) plainAddress(s, path string, args ...any) (netip.Addr, bool) {
	a, ok := v.address(s, path, args...)
	if !ok {
		return a, false
	}
	if kind := specialAddress(a); kind != "" {
		v.add(fmt.Sprintf("%s is %s", a, kind), path, args...)
		return a, false
	}
	return a, true
}

func specialAddress(a netip.Addr) string {
	switch {
	case a.IsUnspecified():
		return "the unspecified address"
	case a.IsLoopback():
		return "a loopback address"
	case a.IsLinkLocalUnicast():
		return "a link-local address"
	case a.IsMulticast():
		return "a multicast address"
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "the broadcast address"
	}
	return ""
}

func (v *validator) prefix(s, path string, args ...any) {
	s = strings.TrimSpace(s) // as the API server does
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		hint := ""
		if a, err := netip.ParseAddr(s); err == nil {
			hint = fmt.Sprintf("; write %s/%d for this one address", a, a.BitLen())
		}
		v.add(quote(s)+" is not a CIDR, such as 10.9.8.0/24 or 2001:db8::/64"+hint, path, args...)
	case p.Addr().Is4In6():
		v.add(quote(s)+" is an IPv4 prefix in IPv6 form; write it as IPv4", path, args...)
	}
}

// accept ends the decoding of one object: it reports what was found and returns true if the object is fit for use.
func (d *document) accept(id objectID, at place, shape []fieldProblem, v *validator) bool {
	name := describeID(id)
	for _, p := range shape {
		d.problemAt(at.find(p.field), name, p.field, p.detail)
	}
	for _, p := range v.problems {
		if !follows(p, shape) {
			d.problemAt(at.find(p.field), name, p.field, p.detail)
		}
	}
	for _, p := range v.notices {
		n := spec.Problem{Origin: spec.Origin{File: d.path, Line: at.find(p.field)}, Object: name, Field: printable(p.field), Detail: p.detail}
		d.out.notices = append(d.out.notices, n)
	}
	return len(shape) == 0 && len(v.problems) == 0
}

// follows says whether a problem is but the consequence of a field, or one within it, that could not be decoded.
func follows(p fieldProblem, shape []fieldProblem) bool {
	return slices.ContainsFunc(shape, func(s fieldProblem) bool {
		return s.field == "" || p.field == s.field || strings.HasPrefix(s.field, p.field+".") || strings.HasPrefix(s.field, p.field+"[") ||
			strings.HasPrefix(p.field, s.field+".") || strings.HasPrefix(p.field, s.field+"[")
	})
}

var plainName = regexp.MustCompile(`^[\w.-]{0,253}/?[\w.-]{0,253}$`)

// describeID names an object of which the name may be hostile.
func describeID(id objectID) string {
	if id.name.Name == "" {
		return id.kind.String()
	}
	name := strings.TrimPrefix(id.name.String(), "/")
	if plainName.MatchString(name) {
		return id.String()
	}
	return id.kind.String() + " " + quote(name)
}
