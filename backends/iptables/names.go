package iptables

import "strings"

// Other parts of weir have chains whose names begin like a Backend's own. A Backend does not own them.
const (
	ownPrefix  = "WEIR-"
	ipvsPrefix = "WEIR-IPVS-"
	// redirectPrefix begins the names of the chains that redirect to the proxy of userspace mode.
	redirectPrefix = "WEIR-U-"
)

// names are the names of the constant chains. Each root is the top of a tree of chains. In it a packet meets only the
// rules of addresses with the same last bits, or of its own block of ports. The nat and the filter table have trees of
// the same names.
type names struct {
	prefix                            string
	services, postrouting, masquerade string
	prerouting                        string
	input, forward, output, filter    string
	health, listeners, answered       string
	addrRoot, portRoot, hairpinRoot   string
}

func namesOf(prefix string) names {
	return names{
		prefix:   prefix,
		services: prefix + "SERVICES", postrouting: prefix + "POSTROUTING", masquerade: prefix + "MASQUERADE",
		prerouting: prefix + "PREROUTING",
		input:      prefix + "INPUT", forward: prefix + "FORWARD", output: prefix + "OUTPUT", filter: prefix + "FILTER",
		health: prefix + "HEALTH", listeners: prefix + "LISTENERS", answered: prefix + "ANSWERED",
		addrRoot: prefix + "IP", portRoot: prefix + "NP", hairpinRoot: prefix + "HP",
	}
}

// owned reports whether a chain belongs to this Backend.
func (n *names) owned(chain string) bool {
	if !strings.HasPrefix(chain, n.prefix) {
		return false
	}
	return n.prefix != ownPrefix || !strings.HasPrefix(chain, ipvsPrefix) && !strings.HasPrefix(chain, redirectPrefix)
}

// shared reports whether the rules of an owned chain are Items of their own.
func (n *names) shared(chain string) bool {
	return chain == n.health || chain == n.listeners || strings.HasPrefix(chain, n.answered) || under(chain, n.addrRoot) || under(chain, n.portRoot) || under(chain, n.hairpinRoot)
}

// under reports whether a chain is in the tree below root.
func under(chain, root string) bool {
	rest, ok := strings.CutPrefix(chain, root)
	return ok && (rest == "" || rest[0] == '-')
}

// service returns the name of a chain of a Service port.
func (n *names) service(kind, key string) string { return n.prefix + kind + "-" + hash(kind, key) }
