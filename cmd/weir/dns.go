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
	node      string
}

func (f *dnsFlags) add(fs *pflag.FlagSet) {
	d := spec.DefaultWeirConfiguration().DNS
	fs.BoolVar(&f.serve, "dns", false, "answer for the names of Services, such as web.default.svc.cluster.local, on this node")
	fs.BoolVar(&f.only, "dns-only", false, "answer for names and program nothing: the data path is that of another program")
	fs.StringArrayVar(&f.listen, "dns-listen", []string{d.Listen[0].String()}, "ADDRESS:PORT to answer at, over UDP and TCP; may be repeated")
	fs.StringArrayVar(&f.upstreams, "dns-upstream", nil, "ADDRESS[:PORT] of a resolver for all other names; may be repeated (default: those of /etc/resolv.conf)")
	fs.StringVar(&f.node, "dns-node-resolver", d.NodeResolver, "how processes of this node come to ask weir, which weir sets while it runs: "+orList(config.NodeResolvers))
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
	if f.set.Changed("dns-node-resolver") {
		in.DNS.NodeResolver = f.node
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
		api   apiFlags
		zone  zoneFlags
	)
	cmd := &cobra.Command{
		Use:     "zone -f DIR|FILE|-|--api",
		Short:   "Print every name as a zone file",
		Long:    "Print every record of the zone that the input makes, as a zone file in the order of Services, with the names of addresses after those of each. The serial number is always 1, so that the same input makes the same file.\n\nExit codes: 0 printed; 1 the input is not valid; 2 the command line is wrong.",
		Example: "  weir dns zone -f ./cluster\n  diff <(weir dns zone -f before) <(weir dns zone -f after)",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if input.none() && !api.asked() {
				return usageError{errors.New("nothing to read: give -f DIR, -f FILE, -f - for standard input, -k DIR for a kustomization, or --api")}
			}
			snap, resolver, err := loadZone(cmd, &input, &api, &zone)
			if err != nil {
				return err
			}
			apex := resolver.Apex()
			apex[0].Serial = 1 // the same input makes the same file
			for _, r := range apex {
				fmt.Fprintln(cmd.OutOrStdout(), r)
			}
			for svc := range snap.Services.All() {
				for _, r := range resolver.List(reconcile.Names(svc)) {
					fmt.Fprintln(cmd.OutOrStdout(), r)
				}
			}
			return nil
		},
	}
	input.add(cmd)
	api.add(cmd)
	zone.add(cmd.Flags())
	return cmd
}

func newDNSLookup() *cobra.Command {
	var (
		input inputFlags
		api   apiFlags
		zone  zoneFlags
		from  string
	)
	cmd := &cobra.Command{
		Use:   "lookup NAME [TYPE] [-f DIR|FILE|-|--api]",
		Short: "Answer one question for a name",
		Long: `Print what the "weir run" of this node answers to a question, or with -f or --api what it would answer, and which endpoints are left
out and why. NAME may be short: web, web.default, web.default.svc. TYPE is A and AAAA unless given: SRV, CNAME, TXT, PTR, SOA, NS.
An address asks for its name. For a name of no Service, the running weir asks other resolvers, as it does for its clients.

With --from, the question is asked as that pod would: in the search domains of its namespace, one after the other, and as it is if
it has 5 dots or nothing else is left.

Exit codes: 0 there is an answer; 1 there is none, or the input is not valid; 2 the command line is wrong; 3 no weir is running.`,
		Example: "  weir dns lookup web.default\n  weir dns lookup web.default -f ./cluster\n  weir dns lookup _http._tcp.web.default SRV -f ./cluster\n  weir dns lookup 10.96.0.10 -f ./cluster\n  weir dns lookup www.example.com\n  weir dns lookup web.shop --from default/client",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 2 {
				return usageError{errors.New("give one name, and perhaps a type: weir dns lookup web.default SRV -f DIR")}
			}
			name, types, err := questionOf(args)
			if err != nil {
				return err
			}
			question := status.NameQuestion{Name: name, Types: types, From: from}
			if input.none() && !api.asked() {
				a, err := status.Lookup(cmd.Context(), input.stateDir, question)
				if err != nil {
					return orUnreachable(err)
				}
				return printAnswer(cmd, a)
			}
			snap, resolver, err := loadZone(cmd, &input, &api, &zone)
			if err != nil {
				return err
			}
			return printAnswer(cmd, lookUp(resolver, resolver.Zone.(*names.Zone), &podNamespaces{found: snap.Found}, question, nil))
		},
	}
	input.add(cmd)
	api.add(cmd)
	zone.add(cmd.Flags())
	cmd.ValidArgsFunction = completeDNSName(&input.stateDir)
	cmd.Flags().StringVar(&from, "from", "", "pod that asks, as [NAMESPACE/]NAME or by its address: the names that its resolver tries are printed too")
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
		addNames(found, r, svc)
	}
	return found
}

// addNames adds the names of a Service, without those of addresses.
func addNames(to map[string]dataplane.ServiceName, r *dns.Resolver, svc *spec.Service) {
	for _, record := range r.List(reconcile.Names(svc)) {
		if record.Type != dnsmessage.TypePTR {
			to[record.Name] = svc.Name
		}
	}
}

// zoneOf returns a Zone in which all of a Snapshot is in force.
func zoneOf(snap *spec.Snapshot) *names.Zone {
	zone := names.NewZone()
	zone.Updated(spec.Update{Snapshot: snap, Delta: spec.Delta{All: true}})
	zone.Applied(reconcile.Report{})
	return zone
}

// loadZone reads the input, and puts all of it in force in a Zone.
func loadZone(cmd *cobra.Command, input *inputFlags, api *apiFlags, flags *zoneFlags) (*spec.Snapshot, *dns.Resolver, error) {
	input.more, input.serveDNS, api.named = flags.fields, new(true), true
	source, err := api.source(input, &nodeFlags{}, nil, hclog.NewNullLogger(), nil)
	if err != nil {
		return nil, nil, err
	}
	snap, err := source.Load(cmd.Context())
	if err != nil {
		return nil, nil, err
	}
	resolver := newResolver(zoneOf(snap), snap.Weir.DNS)
	resolver.Servers = serversIn(snap)
	return snap, resolver, nil
}

// serversIn returns the addresses at which weir answers pods by a Snapshot.
func serversIn(snap *spec.Snapshot) (addrs []netip.Addr) {
	if svc := snap.Services.Get(kubedns.Name); svc != nil {
		for _, text := range svc.Object.Spec.ClusterIPs {
			if a, err := netip.ParseAddr(text); err == nil {
				addrs = append(addrs, a)
			}
		}
	}
	return addrs
}

// questionOf returns what the arguments of weir dns lookup ask for.
func questionOf(args []string) (name string, types []string, err error) {
	name, types = args[0], []string{"A", "AAAA"}
	if addr, err := netip.ParseAddr(name); err == nil {
		name, types = dns.ReverseName(addr.Unmap()), []string{"PTR"}
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
		switch {
		case label == "":
			return "", nil, usageError{fmt.Errorf("%q is no name: a part between dots is empty", name)}
		case len(label) > 63:
			return "", nil, usageError{fmt.Errorf("%q is no name: a part between dots has more than 63 characters", name)}
		}
	}
	if len(args) == 2 {
		types = []string{strings.ToUpper(args[1])}
		if _, ok := recordTypes[types[0]]; !ok {
			return "", nil, usageError{fmt.Errorf("%q is not a type; one of A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT", args[1])}
		}
	}
	return name, types, nil
}

// askElsewhere asks other resolvers for a name. It returns the records as text, and whether the name exists.
type askElsewhere func(name string, t dnsmessage.Type) (records []string, exists bool, err error)

// lookUp answers a question, and says why an answer is not complete. With a nil elsewhere, other resolvers are not asked.
func lookUp(r *dns.Resolver, zone *names.Zone, pods *podNamespaces, q status.NameQuestion, elsewhere askElsewhere) status.NameAnswer {
	if zone.Serial() == 0 {
		return status.NameAnswer{Error: "no Services are in force yet: clients are told to ask again"}
	}
	l := &lookup{resolver: r, elsewhere: elsewhere}
	asked := searched(q.Name, r.Domain)
	if q.From != "" {
		namespace, err := pods.namespaceOf(q.From, zone)
		if err != nil {
			return status.NameAnswer{Error: err.Error()}
		}
		l.answer.Search = search(namespace, r.Domain)
		asked = askedFor(q.Name, l.answer.Search)
	}
	mentioned := false
	for _, full := range asked {
		if mentioned && q.From == "" { // it is a name of that Service, and of nothing elsewhere
			break
		}
		result := l.ask(full, q.Types)
		if q.From != "" {
			l.answer.Steps = append(l.answer.Steps, status.NameStep{Name: full, Result: result})
		}
		if l.answer.Error != "" {
			return l.answer
		}
		svc := zone.Service(serviceOf(full, r.Domain))
		mentioned = mentioned || svc != nil
		if svc != nil && (l.exists || len(svc.Slices) > 0) {
			for _, text := range reconcile.LeftOut(svc) {
				l.answer.Why = append(l.answer.Why, "left out: "+text)
			}
		}
		if l.exists {
			break
		}
	}
	switch {
	case !l.exists:
		l.answer.Error = q.Name + " does not exist"
		if len(asked) > 1 && q.From == "" {
			l.answer.Error += ", and neither does it as " + strings.Join(asked, ", ")
		}
	case len(l.answer.Records) == 0:
		l.answer.Error = q.Name + " exists and has no record of that type"
	}
	return l.answer
}

// lookup is the work on one question.
type lookup struct {
	resolver  *dns.Resolver
	elsewhere askElsewhere
	answer    status.NameAnswer
	exists    bool // a name that was asked for
}

// ask adds the records of a full name to the answer, and returns what becomes of the name.
func (l *lookup) ask(full string, types []string) string {
	for _, t := range types {
		a, mine := l.resolver.Resolve(dns.Question{Name: full, Type: recordTypes[t]})
		if !mine || a.Unknown {
			return l.forward(full, types)
		}
		l.exists = l.exists || a.RCode == dnsmessage.RCodeSuccess
		for _, record := range append(a.Records, a.Extra...) {
			l.answer.Records = append(l.answer.Records, record.String())
		}
		if a.Chase != "" {
			l.chase(a.Chase, recordTypes[t])
		}
	}
	switch {
	case len(l.answer.Records) > 0:
		return "answered"
	case l.exists:
		return "exists, without a record of that type"
	}
	return "does not exist"
}

// forward asks other resolvers for a name.
func (l *lookup) forward(full string, types []string) string {
	const result, what = "other resolvers answer for it", "%s is of no Service; other resolvers answer for it"
	if l.elsewhere == nil {
		l.answer.Error = fmt.Sprintf(what, full)
		return result
	}
	for _, t := range types {
		records, exists, err := l.elsewhere(full, recordTypes[t])
		if err != nil {
			l.answer.Error = fmt.Sprintf(what+", and do not: %s", full, err)
			return result
		}
		l.exists = l.exists || exists
		l.answer.Records = append(l.answer.Records, records...)
	}
	return result
}

// chase asks other resolvers for the name that a CNAME leads to.
func (l *lookup) chase(name string, t dnsmessage.Type) {
	l.answer.Why = append(l.answer.Why, name+" is elsewhere")
	if l.elsewhere == nil {
		return
	}
	records, _, err := l.elsewhere(name, t)
	if err != nil {
		l.answer.Why = append(l.answer.Why, err.Error())
	}
	l.answer.Records = append(l.answer.Records, records...)
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
	if len(a.Search) > 0 {
		fmt.Fprintf(cmd.OutOrStdout(), "; search %s, ndots %d\n", spec.Clean(strings.Join(a.Search, " ")), ndots)
	}
	for _, s := range a.Steps {
		fmt.Fprintf(cmd.OutOrStdout(), "; %s %s\n", spec.Clean(s.Name), spec.Clean(s.Result))
	}
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

// searched returns the full names that a name may stand for, in the order of a pod's search domains in namespace default, and as it
// is at last.
func searched(name, domain string) []string {
	full := strings.TrimSuffix(name, ".") + "."
	if strings.HasSuffix(strings.ToLower(full), "."+domain) || strings.EqualFold(full, domain) || strings.HasSuffix(full, ".arpa.") || strings.HasSuffix(name, ".") {
		return []string{full}
	}
	all := []string{full + "default.svc." + domain, full + "svc." + domain, full + domain}
	if strings.Contains(name, ".") { // else it is of no domain at all
		all = append(all, full)
	}
	return all
}
