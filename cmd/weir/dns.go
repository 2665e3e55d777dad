package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/net/dns/dnsmessage"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"

	"weir/backends/dns"
	"weir/backends/hostnet"
	"weir/reconcile"
	"weir/reconcile/tell/names"
	"weir/spec"
)

// zoneFlags say how the names of Services end.
type zoneFlags struct{ domain string }

func (f *zoneFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&f.domain, "cluster-domain", "cluster.local", "domain that the names of Services end in")
}

func (f *zoneFlags) check() error {
	if errs := utilvalidation.IsDNS1123Subdomain(strings.TrimSuffix(f.domain, ".")); len(errs) > 0 {
		return usageError{fmt.Errorf("--cluster-domain: %q: %s", f.domain, strings.Join(errs, "; "))}
	}
	return nil
}

// resolver returns a Resolver of the zone.
func (f *zoneFlags) resolver(zone dns.Zone) *dns.Resolver {
	return &dns.Resolver{Zone: zone, Domain: strings.ToLower(strings.TrimSuffix(f.domain, ".") + "."), Pods: dns.PodsInsecure}
}

// dnsFlags say where weir run answers questions for names, and where it asks for others.
type dnsFlags struct {
	zoneFlags
	serve     bool
	listen    []string
	upstreams []string

	addrs   []netip.AddrPort
	servers []netip.AddrPort
}

func (f *dnsFlags) add(fs *pflag.FlagSet) {
	fs.BoolVar(&f.serve, "dns", false, "answer for the names of Services, such as web.default.svc.cluster.local, on this node")
	fs.StringArrayVar(&f.listen, "dns-listen", []string{"127.0.0.1:53"}, "ADDRESS:PORT to answer at, over UDP and TCP; may be repeated")
	fs.StringArrayVar(&f.upstreams, "dns-upstream", nil, "ADDRESS[:PORT] of a resolver for all other names; may be repeated (default: those of /etc/resolv.conf)")
	f.zoneFlags.add(fs)
}

func (f *dnsFlags) check() error {
	if err := f.zoneFlags.check(); err != nil {
		return err
	}
	for _, text := range f.listen {
		at, err := netip.ParseAddrPort(text)
		if err != nil {
			return usageError{fmt.Errorf("--dns-listen: %q is not ADDRESS:PORT, such as 127.0.0.1:53", text)}
		}
		f.addrs = append(f.addrs, at)
	}
	for _, text := range f.upstreams {
		server, err := resolverAddr(text)
		if err != nil {
			return usageError{fmt.Errorf("--dns-upstream: %q is not ADDRESS or ADDRESS:PORT, such as 192.0.2.53", text)}
		}
		f.servers = append(f.servers, server)
	}
	return nil
}

func resolverAddr(text string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return netip.AddrPortFrom(a, 53), nil
	}
	return netip.ParseAddrPort(text)
}

// resolvConf names the resolvers of the node.
const resolvConf = "/etc/resolv.conf"

// nameServer is the Observer that answers questions for names. Its zone follows what is in force.
type nameServer struct {
	reconcile.NopObserver
	*names.Zone
	flags   dnsFlags
	log     hclog.Logger
	up      *dns.Upstreams
	allowed atomic.Pointer[allowed]
}

// allowed are the addresses that may ask.
type allowed struct {
	addrs    []netip.Addr
	prefixes []netip.Prefix
}

func newNameServer(log hclog.Logger, flags dnsFlags) *nameServer {
	return &nameServer{Zone: names.NewZone(), flags: flags, log: log.Named("dns"), up: dns.NewUpstreams()}
}

// Updated implements reconcile.Observer.
func (n *nameServer) Updated(u spec.Update) { n.Zone.Updated(u) }

// RoundStarts implements reconcile.Observer.
func (n *nameServer) RoundStarts(r reconcile.Request) { n.Zone.RoundStarts(r) }

// Applied implements reconcile.Observer.
func (n *nameServer) Applied(r reconcile.Report) { n.Zone.Applied(r) }

// Configured implements reconcile.Observer. The node itself and its pods may ask.
func (n *nameServer) Configured(_ *spec.Snapshot, s reconcile.Settings) {
	t := s.From.(*nodeConfig)
	a := &allowed{addrs: t.DataPlane.NodeAddresses}
	cidrs := strings.Split(t.Config.ClusterCIDR, ",")
	if t.Object != nil {
		cidrs = append(cidrs, t.Object.Spec.PodCIDRs...)
	}
	for _, text := range cidrs {
		if p, err := netip.ParsePrefix(strings.TrimSpace(text)); err == nil {
			a.prefixes = append(a.prefixes, p)
		}
	}
	n.allowed.Store(a)
}

func (n *nameServer) mayAsk(addr netip.Addr) bool {
	a := n.allowed.Load()
	return addr.IsLoopback() || a != nil && (slices.Contains(a.addrs, addr) ||
		slices.ContainsFunc(a.prefixes, func(p netip.Prefix) bool { return p.Contains(addr) }))
}

// run serves until ctx is done. An address that cannot be listened at is tried again, because it may come later.
func (n *nameServer) run(ctx context.Context) {
	var all sync.WaitGroup
	all.Go(func() { n.followResolvers(ctx) })
	for _, at := range n.flags.addrs {
		all.Go(func() { n.serve(ctx, at) })
	}
	all.Wait()
}

func (n *nameServer) serve(ctx context.Context, at netip.AddrPort) {
	resolver := n.flags.resolver(n.Zone)
	if !at.Addr().IsUnspecified() {
		resolver.Servers = []netip.Addr{at.Addr()}
	}
	told := ""
	for ctx.Err() == nil {
		n.log.Debug("answering for names", "address", at.String(), "domain", resolver.Domain)
		server := &dns.Server{Resolver: resolver, Forwarder: n.up, Allowed: n.mayAsk, Log: n.log}
		err := server.Serve(ctx, at)
		if err != nil && ctx.Err() == nil && err.Error() != told {
			told = err.Error()
			n.log.Error("names cannot be answered; trying again every second", "address", at.String(), "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// followResolvers keeps the resolvers for other names as the flags or the node say.
func (n *nameServer) followResolvers(ctx context.Context) {
	if len(n.flags.servers) > 0 {
		n.up.Set(n.flags.servers)
		return
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var read time.Time
	for {
		if info, err := os.Stat(resolvConf); err == nil && !info.ModTime().Equal(read) {
			read = info.ModTime()
			n.up.Set(n.nodeResolvers())
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// nodeResolvers returns the resolvers of the node, without weir itself.
func (n *nameServer) nodeResolvers() (servers []netip.AddrPort) {
	f, err := os.Open(resolvConf)
	if err != nil {
		n.log.Warn("the resolvers of this node cannot be read; other names than those of Services are refused", "error", err)
		return nil
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 1<<16))
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(fields[1]); err == nil && !n.listensAt(netip.AddrPortFrom(a, 53)) {
			servers = append(servers, netip.AddrPortFrom(a, 53))
		}
	}
	return servers
}

func (n *nameServer) listensAt(server netip.AddrPort) bool {
	own, _ := hostnet.Addresses()
	return slices.ContainsFunc(n.flags.addrs, func(at netip.AddrPort) bool {
		return at == server || at.Port() == server.Port() && at.Addr().IsUnspecified() && (server.Addr().IsLoopback() || slices.Contains(own, server.Addr()))
	})
}

func newDNS() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dns",
		Short: "Show the names of Services",
		Long: `Show the DNS names that an input gives its Services, without touching this node. "weir run --dns" answers for them.

The names are those of the Kubernetes DNS specification 1.1.0: web.default.svc.cluster.local for a Service,
_http._tcp.web.default.svc.cluster.local for a named port, db-0.db.default.svc.cluster.local for an endpoint of a headless
Service with a hostname, and names of addresses.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newDNSZone(), newDNSLookup())
	return cmd
}

func newDNSZone() *cobra.Command {
	var (
		input inputFlags
		zone  zoneFlags
	)
	cmd := &cobra.Command{
		Use:     "zone -f DIR|FILE|-",
		Short:   "Print every name as a zone file",
		Long:    "Print every record of the zone that the input makes, as a zone file in the order of Services.\n\nExit codes: 0 printed; 1 the input is not valid; 2 the command line is wrong.",
		Example: "  weir dns zone -f ./cluster\n  diff <(weir dns zone -f before) <(weir dns zone -f after)",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			snap, resolver, err := loadZone(cmd, &input, &zone)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s\n", dns.Record{Name: "dns-version." + resolver.Domain, Type: dnsmessage.TypeTXT, TTL: 28800, Text: "1.1.0"})
			for svc := range snap.Services.All() {
				for _, r := range resolver.List(reconcile.Names(svc)) {
					fmt.Fprintln(cmd.OutOrStdout(), r)
				}
			}
			return nil
		},
	}
	input.add(cmd)
	zone.add(cmd.Flags())
	return cmd
}

func newDNSLookup() *cobra.Command {
	var (
		input inputFlags
		zone  zoneFlags
	)
	cmd := &cobra.Command{
		Use:   "lookup NAME [TYPE] -f DIR|FILE|-",
		Short: "Answer one question for a name",
		Long: `Print what "weir run --dns" answers to a question. NAME may be short: web, web.default, web.default.svc. TYPE is A and AAAA
unless given: SRV, CNAME, TXT, PTR, SOA, NS. An address asks for its name.

Exit codes: 0 there is an answer; 1 there is none, or the input is not valid; 2 the command line is wrong.`,
		Example: "  weir dns lookup web.default -f ./cluster\n  weir dns lookup _http._tcp.web.default SRV -f ./cluster\n  weir dns lookup 10.96.0.10 -f ./cluster",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 2 {
				return usageError{errors.New("give one name, and perhaps a type: weir dns lookup web.default SRV -f DIR")}
			}
			_, resolver, err := loadZone(cmd, &input, &zone)
			if err != nil {
				return err
			}
			return answerOnce(cmd.OutOrStdout(), cmd.ErrOrStderr(), resolver, args)
		},
	}
	input.add(cmd)
	zone.add(cmd.Flags())
	return cmd
}

// loadZone reads the input, and puts all of it in force in a Zone.
func loadZone(cmd *cobra.Command, input *inputFlags, flags *zoneFlags) (*spec.Snapshot, *dns.Resolver, error) {
	if err := flags.check(); err != nil {
		return nil, nil, err
	}
	source, err := input.source(hclog.NewNullLogger())
	if err != nil {
		return nil, nil, err
	}
	snap, err := source.Load(cmd.Context())
	if err != nil {
		return nil, nil, err
	}
	zone := names.NewZone()
	zone.Updated(spec.Update{Snapshot: snap, Delta: spec.Delta{All: true}})
	zone.Applied(reconcile.Report{})
	return snap, flags.resolver(zone), nil
}

// answerOnce answers a question and prints the records, or why there is none.
func answerOnce(out, errOut io.Writer, r *dns.Resolver, args []string) error {
	types := []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA}
	name := args[0]
	if addr, err := netip.ParseAddr(name); err == nil {
		name, types = dns.ReverseName(addr.Unmap()), []dnsmessage.Type{dnsmessage.TypePTR}
	}
	if len(args) == 2 {
		t, ok := recordTypes[strings.ToUpper(args[1])]
		if !ok {
			return usageError{fmt.Errorf("%q is not a type; one of A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT", args[1])}
		}
		types = []dnsmessage.Type{t}
	}
	found, exists := false, false
	for _, full := range searched(name, r.Domain) {
		for _, t := range types {
			a, mine := r.Resolve(dns.Question{Name: full, Type: t})
			if !mine {
				return fmt.Errorf("%s is not in %s; other resolvers answer for it", full, r.Domain)
			}
			exists = exists || a.RCode == dnsmessage.RCodeSuccess
			for _, record := range append(a.Records, a.Extra...) {
				found = true
				fmt.Fprintln(out, record)
			}
			if a.Chase != "" {
				fmt.Fprintf(errOut, "%s is elsewhere\n", a.Chase)
			}
		}
		if exists {
			break
		}
	}
	switch {
	case found:
		return nil
	case exists:
		return fmt.Errorf("%s exists and has no record of that type", name)
	}
	return fmt.Errorf("%s does not exist", name)
}

var recordTypes = map[string]dnsmessage.Type{
	"A": dnsmessage.TypeA, "AAAA": dnsmessage.TypeAAAA, "CNAME": dnsmessage.TypeCNAME, "NS": dnsmessage.TypeNS, "PTR": dnsmessage.TypePTR,
	"SOA": dnsmessage.TypeSOA, "SRV": dnsmessage.TypeSRV, "TXT": dnsmessage.TypeTXT,
}

// searched returns the full names that a name may stand for, in the order of a pod's search domains in namespace default.
func searched(name, domain string) []string {
	full := strings.TrimSuffix(name, ".") + "."
	if strings.HasSuffix(strings.ToLower(full), "."+domain) || strings.EqualFold(full, domain) || strings.HasSuffix(full, ".arpa.") || strings.HasSuffix(name, ".") {
		return []string{full}
	}
	return []string{full + "default.svc." + domain, full + "svc." + domain, full + domain}
}
