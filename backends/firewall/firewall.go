// Package firewall finds where another program's firewall drops what is forwarded, which no rule of weir can open: a
// packet has to be accepted by every base chain, and weir's rules are in one of them at most.
//
// The key type is Chain. The package changes nothing, and does not know which rules of the chains accept what. Only
// cmd/weir and tests may import it.
package firewall

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/google/nftables"

	"weir/backends/dataplane"
	"weir/backends/doctor"
	"weir/backends/nfnl"
	"weir/backends/xtables"
)

// Chain is a base chain for forwarded packets that drops what no rule accepts, by its policy or by a rule without a
// condition.
type Chain struct {
	// Where names the chain: "chain FORWARD of table ip filter".
	Where string
	// Variant is the iptables whose rules are in the chain, or "" if it is no chain of iptables.
	Variant xtables.Mode
}

// Dropping returns the base chains of this network namespace that drop what is forwarded, of both mechanisms. An error
// means that the list may not be complete.
func Dropping(ctx context.Context) ([]Chain, error) {
	found, err := droppingNFT(ctx)
	for _, f := range []dataplane.Family{dataplane.IPv4, dataplane.IPv6} {
		drops, legacyErr := droppingLegacy(ctx, f)
		if drops {
			found = append(found, Chain{fmt.Sprintf("chain FORWARD of iptables-legacy, %s", f), xtables.Legacy})
		}
		err = errors.Join(err, legacyErr)
	}
	return found, err
}

func droppingNFT(ctx context.Context) (found []Chain, err error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, err
	}
	chains, err := conn.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list the chains of nftables: %w", err)
	}
	rules, err := nfnl.Netlink{}.Dial()
	if err != nil {
		return nil, err
	}
	defer func() { _ = rules.Close() }()
	families := map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet"}
	for _, c := range chains {
		family, known := families[c.Table.Family]
		if !known || c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookForward {
			continue
		}
		flow, err := readFlow(ctx, rules, nfnl.Table{Family: uint8(c.Table.Family), Name: c.Table.Name})
		if err != nil {
			return found, fmt.Errorf("list the rules of table %s %s: %w", family, c.Table.Name, err)
		}
		rest := flow.rest(c.Name)
		if rest == goesOn && c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
			rest = drops
		}
		if rest != drops {
			continue
		}
		chain := Chain{Where: fmt.Sprintf("chain %s of table %s %s", c.Name, family, c.Table.Name)}
		if c.Name == "FORWARD" && c.Table.Name == "filter" && family != "inet" {
			chain.Variant = xtables.NFT
		}
		found = append(found, chain)
	}
	return found, nil
}

// droppingLegacy reads the table of the legacy mechanism only if it exists, because the program would create it.
func droppingLegacy(ctx context.Context, f dataplane.Family) (bool, error) {
	names := "/proc/thread-self/net/ip_tables_names"
	if f == dataplane.IPv6 {
		names = "/proc/thread-self/net/ip6_tables_names"
	}
	text, err := os.ReadFile(names)
	if err != nil || !strings.Contains("\n"+string(text), "\nfilter\n") {
		return false, nil // there is no such table
	}
	k, err := xtables.Open(xtables.Legacy, f)
	if err != nil {
		return false, err
	}
	saved, err := k.Save(ctx, f, "filter")
	if err != nil {
		return false, err
	}
	flow, rest, err := parseFlow(saved)
	if end := flow.rest("FORWARD"); end != goesOn {
		rest = end
	}
	return rest == drops, errors.Join(err, saved.Close())
}

// Opening is what weir accepts of what is forwarded, in one mode.
type Opening struct {
	// Variant is the iptables with which weir writes its rules, or "" for none.
	Variant xtables.Mode
	// Accepts says what these rules accept: "answers, and nothing else needs it".
	Accepts string
}

// Effect returns what the chain means for Services.
func (c Chain) Effect(o Opening) string {
	effect := c.Where + " drops what no rule there accepts"
	if c.Variant != "" && c.Variant == o.Variant {
		return effect + ": weir accepts there " + o.Accepts
	}
	return effect + ", and weir cannot open it: connections to endpoints outside of the node's own processes are dropped"
}

// Remedy is what helps against all of them.
const Remedy = "accept the pods' network there before anything drops it, or drop nothing by default (iptables -P FORWARD ACCEPT)"

// Doctor checks whether a firewall drops what is forwarded in a mode.
func Doctor(found []Chain, err error, o Opening) doctor.Check {
	c := doctor.Check{Name: "firewall for forwarded packets", State: doctor.OK, Detail: "no chain drops by default"}
	var effects []string
	for _, f := range found {
		effects = append(effects, f.Effect(o))
	}
	switch {
	case len(effects) > 0:
		c.State, c.Detail, c.Mend = doctor.Advice, strings.Join(effects, "; "), Remedy
	case err != nil:
		c.State, c.Detail = doctor.Advice, "cannot be read: "+err.Error()
	}
	return c
}
