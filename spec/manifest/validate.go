package manifest

import (
	"cmp"
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
	"weir/spec/document"
)

// fieldProblem is a problem of one field of an object.
type fieldProblem struct{ field, detail string }

// validator collects the problems of one object. It formats field paths only for problems.
type validator struct {
	// namespace is that of objects that name none; "" stands for the default.
	namespace string
	problems  []fieldProblem
	notices   []fieldNotice
	// lines are those of fields that are written in a string of the document.
	lines map[string]int
}

// fieldNotice is a notice of a kind about a field.
type fieldNotice struct {
	id spec.NoticeID
	fieldProblem
}

// add reports a problem of the field whose path is given as a format.
func (v *validator) add(detail, path string, args ...any) {
	if len(v.problems) < maxProblemsPerDocument {
		v.problems = append(v.problems, fieldProblem{fmt.Sprintf(path, args...), detail})
	}
}

// at is add for a field whose line is known.
func (v *validator) at(line int, detail, path string, args ...any) {
	if v.lines == nil {
		v.lines = map[string]int{}
	}
	v.lines[fmt.Sprintf(path, args...)] = line
	v.add(detail, path, args...)
}

func (v *validator) notice(id spec.NoticeID, detail, path string, args ...any) {
	if len(v.notices) < maxProblemsPerDocument {
		v.notices = append(v.notices, fieldNotice{id, fieldProblem{fmt.Sprintf(path, args...), detail}})
	}
}

// addAll reports the messages that a helper of apimachinery returned for a value.
func (v *validator) addAll(messages []string, value, path string, args ...any) {
	for _, m := range messages {
		v.add(document.Quote(value)+": "+short(m), path, args...)
	}
}

func (v *validator) addErrors(errs field.ErrorList) {
	for _, e := range errs {
		v.add(document.Printable(short(e.ErrorBody())), "%s", e.Field)
	}
}

// short removes the examples and the regular expression from a message, because they are longer than the explanation.
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
		m.Namespace = cmp.Or(v.namespace, metav1.NamespaceDefault)
	case namespaced:
		v.addAll(utilvalidation.IsDNS1123Label(m.Namespace), m.Namespace, "metadata.namespace")
	case m.Namespace != "":
		v.add(document.Quote(m.Namespace)+": this kind has no namespace", "metadata.namespace")
	}
	v.addErrors(metav1validation.ValidateLabels(m.Labels, field.NewPath("metadata", "labels")))
	v.addErrors(apivalidation.ValidateAnnotations(m.Annotations, field.NewPath("metadata", "annotations")))
}

var protocols = []corev1.Protocol{tcp, udp, sctp}

func (v *validator) protocol(p corev1.Protocol, path string, args ...any) {
	if !slices.Contains(protocols, p) {
		v.add(document.Quote(string(p))+" is none of TCP, UDP, SCTP"+caseHint(string(p), "TCP", "UDP", "SCTP"), path, args...)
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
		v.add(fmt.Sprintf("%s is none of %s%s", document.Quote(got), strings.Join(values, ", "), caseHint(got, values...)), path, args...)
	}
}

// address parses an address as the API server accepts it today: no leading zeros, no IPv4 in IPv6 form, no zone.
func (v *validator) address(s, path string, args ...any) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil && strings.Contains(s, "/"):
		v.add(document.Quote(s)+" is not an IP address; leave out the prefix length", path, args...)
	case err != nil:
		v.add(document.Quote(s)+" is not an IP address, such as 10.9.8.7 or 2001:db8::ffff", path, args...)
	case a.Zone() != "":
		v.add(document.Quote(s)+" has a zone, which an address here cannot have", path, args...)
	case a.Is4In6():
		v.add(fmt.Sprintf("%s is an IPv4 address in IPv6 form; write %s", document.Quote(s), a.Unmap()), path, args...)
	default:
		return a, true
	}
	return netip.Addr{}, false
}

// plainAddress parses an address that other hosts can send traffic to.
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

// thisNetwork is refused for every address. 240.0.0.0/4 is not: clusters use it as a range of ClusterIPs and pods.
var thisNetwork = netip.MustParsePrefix("0.0.0.0/8")

func specialAddress(a netip.Addr) string {
	switch {
	case a.IsUnspecified():
		return "the unspecified address"
	case thisNetwork.Contains(a):
		return "in 0.0.0.0/8, where no host has an address"
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
		v.add(document.Quote(s)+" is not a CIDR, such as 10.9.8.0/24 or 2001:db8::/64"+hint, path, args...)
	case p.Addr().Is4In6():
		v.add(document.Quote(s)+" is an IPv4 prefix in IPv6 form; write it as IPv4", path, args...)
	}
}

// accept ends the decoding of one object. It reports the problems, and returns whether the object can be used.
func (d *decoding) accept(id objectID, at *document.Document, shape []document.Problem, v *validator) bool {
	name := describeID(id)
	for _, p := range shape {
		d.problemAt(p.Line, name, p.Field, p.Detail)
	}
	for _, p := range v.problems {
		if !follows(p, shape) {
			line, ok := v.lines[p.field]
			if !ok {
				line = at.Line(p.field)
			}
			d.problemAt(line, name, p.field, p.detail)
		}
	}
	for _, p := range v.notices {
		origin := spec.Origin{File: d.path, Line: at.Line(p.field)}
		d.out.notices = append(d.out.notices, p.id.Notice(origin, name, document.Printable(p.field), p.detail))
	}
	return len(shape) == 0 && len(v.problems) == 0
}

// follows reports whether a problem is only a consequence of a field that could not be decoded.
func follows(p fieldProblem, shape []document.Problem) bool {
	return slices.ContainsFunc(shape, func(s document.Problem) bool {
		return s.Field == "" || p.field == s.Field || strings.HasPrefix(s.Field, p.field+".") || strings.HasPrefix(s.Field, p.field+"[") ||
			strings.HasPrefix(p.field, s.Field+".") || strings.HasPrefix(p.field, s.Field+"[")
	})
}

var plainName = regexp.MustCompile(`^[\w.-]{0,253}/?[\w.-]{0,253}$`)

// describeID names an object whose name may be hostile.
func describeID(id objectID) string {
	if id.name.Name == "" {
		return id.kind.String()
	}
	name := strings.TrimPrefix(id.name.String(), "/")
	if plainName.MatchString(name) {
		return id.String()
	}
	return id.kind.String() + " " + document.Quote(name)
}
