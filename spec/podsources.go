package spec

import (
	"path/filepath"
	"slices"
	"strings"
)

// PodSource is a container runtime of the node, or its kubelet, that is asked for pods.
type PodSource struct{ Kind, Socket string }

// String returns the name of the source in messages.
func (s PodSource) String() string { return s.Kind + " at " + s.Socket }

// Away is a source of pods that cannot be read at the moment.
type Away struct {
	// Source is its name, such as "podman at /run/podman/podman.sock".
	Source string
	// Reason is why it cannot be read, and Stands what is in force of its pods meanwhile.
	Reason, Stands string
}

// String returns "podman at /run/podman/podman.sock is away: REASON; STANDS". It is clean.
func (a Away) String() string {
	return Clean(a.Source + " is away: " + a.Reason + "; " + a.Stands)
}

// UsualPodSources are where runtimes and the kubelet listen for root.
var UsualPodSources = []PodSource{
	{"podman", "/run/podman/podman.sock"}, {"docker", "/run/docker.sock"},
	{"kubelet", "/var/lib/kubelet/pods-api/pods-api.sock"},
	{"cri", "/run/containerd/containerd.sock"}, {"cri", "/run/crio/crio.sock"},
}

const (
	// MaxPodSources is how many sources of pods a node may have.
	MaxPodSources = 8
	// maxSocketPath is how long the path of a socket may be in Linux.
	maxSocketPath = 107
)

// ParsePodSources parses sources as users write them, such as cri=unix:///run/containerd/containerd.sock; "none" alone stands
// for no source. It reports the index of each that is invalid, in which case the result is not usable.
func ParsePodSources(texts []string, report func(i int, format string, args ...any)) []PodSource {
	all := []PodSource{}
	for i, text := range texts {
		kind, address, given := strings.Cut(text, "=")
		usual := usualSocket(kind)
		socket := strings.TrimPrefix(address, "unix://")
		s := PodSource{kind, filepath.Clean(socket)}
		switch {
		case text == "none" && len(texts) == 1:
			return all
		case text == "none":
			report(i, "none: leave out the others, or none")
		case filepath.IsAbs(text) || strings.HasPrefix(text, "unix:"):
			report(i, "%s: say what listens there too, such as podman=%s", Clean(text), Clean(text))
		case usual == "":
			report(i, "%q is not podman, docker, kubelet or cri", Clean(kind))
		case !given:
			report(i, "%s: give the socket too, such as %s=unix://%s", kind, kind, usual)
		case !filepath.IsAbs(socket) || strings.ContainsFunc(socket, unsafeRune):
			report(i, "%s: %q is not the path of a socket, such as unix://%s", kind, Clean(address), usual)
		case len(socket) > maxSocketPath:
			report(i, "%s: the path of a socket has at most %d characters", kind, maxSocketPath)
		case slices.Contains(all, s):
			report(i, "%s is given twice", s)
		case len(all) == MaxPodSources:
			report(i, "there may be at most %d", MaxPodSources)
		default:
			all = append(all, s)
		}
	}
	return all
}

// usualSocket returns where a source of that kind listens for root, or "" if there is no such kind.
func usualSocket(kind string) string {
	for _, s := range UsualPodSources {
		if s.Kind == kind {
			return s.Socket
		}
	}
	return ""
}
