package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/net/dns/dnsmessage"

	"weir/backends/dataplane"
	"weir/backends/dns"
	"weir/reconcile"
	"weir/reconcile/tell/changes"
	"weir/reconcile/tell/names"
	"weir/reconcile/tell/status"
	"weir/spec"
	"weir/spec/config"
	"weir/spec/kubedns"
)

// zoneFlags say how the names of Services end.
type zoneFlags struct {
	domain string
	set    *pflag.FlagSet
}

func (f *zoneFlags) add(fs *pflag.FlagSet) {
	f.set = fs
	fs.StringVar(&f.domain, "cluster-domain", spec.DefaultWeirConfiguration().DNS.ClusterDomain, "domain that the names of Services end in")
}

func (f *zoneFlags) fields(in *config.WeirFields) {
	if f.set.Changed("cluster-domain") {
		in.DNS = &config.DNSFields{ClusterDomain: f.domain}
	}
}

// dnsFlags say where weir run answers questions for names, and where it asks for others.
type dnsFlags struct {
	zoneFlags
	serve     bool
	only      bool
	listen    []string
	upstreams []string
}

func (f *dnsFlags) add(fs *pflag.FlagSet) {
	d := spec.DefaultWeirConfiguration().DNS
	fs.BoolVar(&f.serve, "dns", false, "answer for the names of Services, such as web.default.svc.cluster.local, on this node")
	fs.BoolVar(&f.only, "dns-only", false, "answer for names and program nothing: the data path is that of another program")
	fs.StringArrayVar(&f.listen, "dns-listen", []string{d.Listen[0].String()}, "ADDRESS:PORT to answer at, over UDP and TCP; may be repeated")
	fs.StringArrayVar(&f.upstreams, "dns-upstream", nil, "ADDRESS[:PORT] of a resolver for all other names; may be repeated (default: those of /etc/resolv.conf)")
	f.zoneFlags.add(fs)
}

// fields adds what was given to the fields of a WeirConfiguration.
func (f *dnsFlags) fields(in *config.WeirFields) {
	if f.zoneFlags.fields(in); in.DNS == nil {
		in.DNS = &config.DNSFields{}
	}
	if f.set.Changed("dns-listen") {
		in.DNS.Listen = f.listen
	}
	in.DNS.Upstreams = f.upstreams
}

// given returns whether the flags ask for answers: nil leaves that to the configuration.
func (f *dnsFlags) given() *bool {
	switch {
	case f.only:
		return new(true)
	case f.set.Changed("dns"):
		return &f.serve
	}
	return nil
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
		Use:   "lookup NAME [TYPE] [-f DIR|FILE|-]",
		Short: "Answer one question for a name",
		Long: `Print what the "weir run" of this node answers to a question, or with -f what it would answer, and which endpoints are left
out and why. NAME may be short: web, web.default, web.default.svc. TYPE is A and AAAA
unless given: SRV, CNAME, TXT, PTR, SOA, NS. An address asks for its name.

Exit codes: 0 there is an answer; 1 there is none, or the input is not valid; 2 the command line is wrong; 3 no weir is running.`,
		Example: "  weir dns lookup web.default\n  weir dns lookup web.default -f ./cluster\n  weir dns lookup _http._tcp.web.default SRV -f ./cluster\n  weir dns lookup 10.96.0.10 -f ./cluster",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 2 {
				return usageError{errors.New("give one name, and perhaps a type: weir dns lookup web.default SRV -f DIR")}
			}
			name, types, err := questionOf(args)
			if err != nil {
				return err
			}
			if input.none() {
				a, err := status.Lookup(cmd.Context(), input.stateDir, name, types)
				if err != nil {
					return orUnreachable(err)
				}
				return printAnswer(cmd, a)
			}
			_, resolver, err := loadZone(cmd, &input, &zone)
			if err != nil {
				return err
			}
			return printAnswer(cmd, lookUp(resolver, resolver.Zone.(*names.Zone), name, types))
		},
	}
	input.add(cmd)
	zone.add(cmd.Flags())
	return cmd
}

// changedNames returns the names that come and go from one input to another, if weir answers for names by either of them. Of a
// record of the kernel they are not known.
func changedNames(before, after *spec.Snapshot, record bool) (*changes.NameChanges, []spec.Notice) {
	if record || !after.Weir.DNS.Serve && (before == nil || !before.Weir.DNS.Serve) {
		return nil, nil
	}
	return changes.NamesBetween(namesIn(before), namesIn(after))
}

// namesIn returns every name that a Snapshot gives, each with its Service, without the names of addresses. A Snapshot in which
// weir does not answer for names, and nil, give none.
func namesIn(snap *spec.Snapshot) map[string]dataplane.ServiceName {
	if snap == nil || !snap.Weir.DNS.Serve {
		return nil
	}
	r := newResolver(zoneOf(snap), snap.Weir.DNS)
	found := map[string]dataplane.ServiceName{}
	for svc := range snap.Services.All() {
		for _, record := range r.List(reconcile.Names(svc)) {
			if record.Type != dnsmessage.TypePTR {
				found[record.Name] = svc.Name
			}
		}
	}
	return found
}

// zoneOf returns a Zone in which all of a Snapshot is in force.
func zoneOf(snap *spec.Snapshot) *names.Zone {
	zone := names.NewZone()
	zone.Updated(spec.Update{Snapshot: snap, Delta: spec.Delta{All: true}})
	zone.Applied(reconcile.Report{})
	return zone
}

// loadZone reads the input, and puts all of it in force in a Zone.
func loadZone(cmd *cobra.Command, input *inputFlags, flags *zoneFlags) (*spec.Snapshot, *dns.Resolver, error) {
	input.more = flags.fields
	source, err := input.source(hclog.NewNullLogger())
	if err != nil {
		return nil, nil, err
	}
	snap, err := kubedns.New(source, hclog.NewNullLogger()).Load(cmd.Context())
	if err != nil {
		return nil, nil, err
	}
	return snap, newResolver(zoneOf(snap), snap.Weir.DNS), nil
}

// questionOf returns what the arguments of weir dns lookup ask for.
func questionOf(args []string) (name string, types []string, err error) {
	name, types = args[0], []string{"A", "AAAA"}
	if addr, err := netip.ParseAddr(name); err == nil {
		name, types = dns.ReverseName(addr.Unmap()), []string{"PTR"}
	}
	if len(args) == 2 {
		types = []string{strings.ToUpper(args[1])}
		if _, ok := recordTypes[types[0]]; !ok {
			return "", nil, usageError{fmt.Errorf("%q is not a type; one of A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT", args[1])}
		}
	}
	return name, types, nil
}

// lookUp answers a question, and says why an answer is not complete.
func lookUp(r *dns.Resolver, zone *names.Zone, name string, types []string) (answer status.NameAnswer) {
	if zone.Serial() == 0 {
		return status.NameAnswer{Error: "no Services are in force yet: clients are told to ask again"}
	}
	exists := false
	for _, full := range searched(name, r.Domain) {
		for _, t := range types {
			a, mine := r.Resolve(dns.Question{Name: full, Type: recordTypes[t]})
			if !mine || a.Unknown {
				answer.Error = fmt.Sprintf("%s is of no Service; other resolvers answer for it", full)
				return answer
			}
			exists = exists || a.RCode == dnsmessage.RCodeSuccess
			for _, record := range append(a.Records, a.Extra...) {
				answer.Records = append(answer.Records, record.String())
			}
			if a.Chase != "" {
				answer.Why = append(answer.Why, a.Chase+" is elsewhere")
			}
		}
		if svc := zone.Service(serviceOf(full, r.Domain)); svc != nil && (exists || len(svc.Slices) > 0) {
			for _, text := range reconcile.LeftOut(svc) {
				answer.Why = append(answer.Why, "left out: "+text)
			}
		}
		if exists {
			break
		}
	}
	switch {
	case exists && len(answer.Records) == 0:
		answer.Error = name + " exists and has no record of that type"
	case !exists:
		answer.Error = name + " does not exist"
	}
	return answer
}

// serviceOf returns the Service that a full name is of or below.
func serviceOf(full, domain string) dataplane.ServiceName {
	labels := strings.Split(strings.TrimSuffix(strings.ToLower(full), ".svc."+domain), ".")
	if len(labels) < 2 {
		return dataplane.ServiceName{}
	}
	return dataplane.ServiceName{Namespace: labels[len(labels)-1], Name: labels[len(labels)-2]}
}

func printAnswer(cmd *cobra.Command, a status.NameAnswer) error {
	for _, record := range a.Records {
		fmt.Fprintln(cmd.OutOrStdout(), record)
	}
	for _, why := range a.Why {
		fmt.Fprintln(cmd.ErrOrStderr(), spec.Clean(why))
	}
	if a.Error != "" {
		return errors.New(a.Error)
	}
	return nil
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
