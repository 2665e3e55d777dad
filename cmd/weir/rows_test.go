package main_test

import (
	"cmp"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"weir/backends/netlab"
)

const (
	// answerWait is how long a probe waits for an answer that must come.
	answerWait = 20 * time.Second
	// dropWait is how long a probe waits for nothing. Too short a wait could only hide a fault on a slow machine.
	dropWait = 400 * time.Millisecond

	// unserved is the result of a port that an address of a Service does not have: some modes refuse it, and some let the
	// packet go wherever it would go without them.
	unserved netlab.Outcome = "unserved"
)

// check verifies a row for all its combinations of from, to and protocol. Flows are kept for later steps.
func (r row) check(lab *netlab.Lab, flows map[string]*netlab.Flow) error {
	for _, proto := range r.Protocol {
		for _, from := range r.From {
			for _, to := range r.To {
				p := probe{row: r, proto: netlab.Protocol(proto), lab: lab, from: lab.Host(from), to: netip.MustParseAddrPort(to)}
				if err := p.check(flows); err != nil {
					return fmt.Errorf("%s from %s to %s: %w", proto, from, to, err)
				}
			}
		}
	}
	return nil
}

// transient reports that what the row expects may come a moment after the rules are in place. Where connections are drained, an
// address stays for as long.
func (r row) transient() bool {
	return r.Flow != "" || r.HTTP != 0 || r.inTurn && r.Result == netlab.Unreachable
}

// probe is one combination of a row.
type probe struct {
	row
	proto netlab.Protocol
	lab   *netlab.Lab
	from  *netlab.Host
	to    netip.AddrPort
}

func (p probe) check(flows map[string]*netlab.Flow) error {
	switch {
	case p.HTTP != 0:
		return p.checkHTTP()
	case p.Flow != "":
		return p.checkFlow(flows)
	case p.Result != "":
		return p.expect(p.from.Probe(p.proto, p.to, p.wait()))
	case p.ForgetsAfter != 0:
		return p.checkForgets()
	case p.Sticky:
		return p.checkSticky()
	}
	return p.checkSpread()
}

func (p probe) wait() time.Duration {
	if p.Result == netlab.Dropped {
		return dropWait
	}
	return answerWait
}

// expect compares one reply with what the row allows, shares aside.
func (p probe) expect(r netlab.Reply) error {
	want := cmp.Or(p.Result, netlab.Answered)
	if want == unserved && (r.Outcome == netlab.Refused || r.Outcome == netlab.Unreachable) {
		return nil
	}
	if r.Outcome != want {
		return fmt.Errorf("got %v, want %s", r, want)
	}
	if want != netlab.Answered {
		return nil
	}
	if p.nameIn(r) == "" {
		return fmt.Errorf("got %v, want one of %v", r, p.weights())
	}
	src := r.Source.Addr()
	ok := true
	switch p.Source {
	case "", "any":
	case "self":
		ok = p.from.Owns(src)
	case netlab.Node:
		ok = p.lab.Node().Owns(src)
	default:
		ok = src.String() == p.Source
	}
	if !ok {
		return fmt.Errorf("got %v, want source %s", r, p.Source)
	}
	return nil
}

// weights returns Share, or 1 for each of Answers.
func (p probe) weights() map[string]int {
	if len(p.Share) > 0 {
		return p.Share
	}
	w := map[string]int{}
	for _, a := range p.Answers {
		w[a] = 1
	}
	return w
}

// nameIn returns which of the expected names a reply is, "pod1" or "pod1:8080", or "".
func (p probe) nameIn(r netlab.Reply) string {
	names := p.weights()
	for _, n := range []string{r.Server, fmt.Sprintf("%s:%d", r.Server, r.Port)} {
		if _, ok := names[n]; ok {
			return n
		}
	}
	return ""
}

// turns is how often each endpoint must have its turn.
const turns = 3

// checkSpread connects often enough to meet every endpoint, and compares the shares.
func (p probe) checkSpread() error {
	weights := p.weights()
	n := p.Connections
	switch {
	case p.inTurn:
		n = 0
		for _, w := range weights {
			n += turns * w
		}
	case n == 0:
		n = enoughConnections(len(weights))
	}
	counts := map[string]int{}
	for range n {
		r := p.from.Probe(p.proto, p.to, p.wait())
		if err := p.expect(r); err != nil {
			return err
		}
		counts[p.nameIn(r)]++
	}
	for name, w := range weights {
		if p.inTurn && counts[name] != turns*w {
			return fmt.Errorf("%d connections went to %v, not in turn to %v", n, counts, weights)
		}
	}
	return checkShares(counts, weights)
}

// checkSticky connects again and again and must always meet the same one. Without affinity among k this would be so by
// chance once in k^24 times.
func (p probe) checkSticky() error {
	first := ""
	for range max(p.Connections, 25) {
		r := p.from.Probe(p.proto, p.to, p.wait())
		if err := p.expect(r); err != nil {
			return err
		}
		if name := p.nameIn(r); first == "" {
			first = name
		} else if name != first {
			return fmt.Errorf("met %s after %s, in spite of session affinity", name, first)
		}
	}
	return nil
}

// checkForgets connects with pauses and must meet another one some time: staying with one of three for 40 pauses happens
// by chance once in 10^19 times.
func (p probe) checkForgets() error {
	first := ""
	for range 40 {
		r := p.from.Probe(p.proto, p.to, p.wait())
		if err := p.expect(r); err != nil {
			return err
		}
		name := p.nameIn(r)
		if first != "" && name != first {
			return nil
		}
		first = name
		time.Sleep(time.Duration(p.ForgetsAfter))
	}
	return fmt.Errorf("met %s every time, with %s in between", first, time.Duration(p.ForgetsAfter))
}

// checkFlow asks on a connection that stays open from step to step.
func (p probe) checkFlow(flows map[string]*netlab.Flow) error {
	key := fmt.Sprint(p.Flow, p.proto, p.from.Name, p.to)
	flow := flows[key]
	if flow == nil {
		var err error
		if flow, err = p.from.Open(p.proto, p.to, p.wait()); err != nil {
			return err
		}
		flows[key] = flow
	}
	wait := p.wait()
	if p.proto == netlab.UDP {
		wait = dropWait // a lost datagram is asked for again by the caller
	}
	return p.expect(flow.Ask(wait))
}

func (p probe) checkHTTP() error {
	client := http.Client{
		Transport: &http.Transport{DialContext: p.from.DialContext, DisableKeepAlives: true},
		Timeout:   answerWait,
	}
	resp, err := client.Get("http://" + p.to.String() + "/healthz")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if resp.StatusCode != p.HTTP {
		return fmt.Errorf("status %d, want %d: %s", resp.StatusCode, p.HTTP, body)
	}
	return nil
}

// proxied returns the rows as they are where a proxy of the node's connects to the endpoints. Nothing is between a client
// and a pod that it asks directly.
func proxied(rows []row) []row {
	rows = slices.Clone(rows)
	for i := range rows {
		direct := slices.ContainsFunc(rows[i].To, func(to string) bool {
			return netlab.PodCIDR4.Contains(netip.MustParseAddrPort(to).Addr())
		})
		if rows[i].Source != "" && rows[i].Source != "any" && !direct {
			rows[i].Source = netlab.Node
		}
	}
	return rows
}

// takingTurns returns the rows as they are where the mode takes endpoints in turn.
func takingTurns(rows []row) []row {
	rows = slices.Clone(rows)
	for i := range rows {
		rows[i].inTurn = true
	}
	return rows
}

// localAddresses returns the rows as they are where the node has the Services' addresses whether these serve or not, and no
// rules.
func localAddresses(rows []row) []row {
	rows = slices.Clone(rows)
	for i := range rows {
		switch {
		case rows[i].Result == netlab.Unreachable:
			rows[i].Result = unserved
		case rows[i].Result == netlab.Dropped && slices.Equal(rows[i].Protocol, list{string(netlab.TCP)}):
			rows[i].Result = netlab.Refused // a process can turn a connection away, but not be silent about it
		}
	}
	return rows
}

// lasting returns the rows that hold without a weir process.
func lasting(rows []row) []row {
	return slices.DeleteFunc(slices.Clone(rows), func(r row) bool { return r.HTTP != 0 })
}
