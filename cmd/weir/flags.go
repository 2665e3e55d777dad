package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"weir/spec"
	"weir/spec/config"
	"weir/spec/filesource"
)

// The proxy modes, in the order in which they are offered.
const (
	modeIPTables  = "iptables"
	modeIPVS      = "ipvs"
	modeNFTables  = "nftables"
	modeUserspace = "userspace"
)

// inputFlags say what to read.
type inputFlags struct {
	files  []string
	config string

	set *pflag.FlagSet

	serviceCIDRs  []string
	nodePortRange string
	settleTime    time.Duration
	stateDir      string
	allowEmpty    bool
}

func (f *inputFlags) add(cmd *cobra.Command) {
	d := spec.DefaultWeirConfiguration()
	fs := cmd.Flags()
	f.set = fs
	fs.StringArrayVarP(&f.files, "filename", "f", nil, "directory, file, or - for standard input, to read manifests from; may be repeated")
	fs.StringVar(&f.config, "config", "", "file with the KubeProxyConfiguration (default: the one among the manifests, if any)")
	fs.StringSliceVar(&f.serviceCIDRs, "service-cidrs", prefixStrings(d.ServiceCIDRs), "ranges from which to give ClusterIPs to Services that set none, at most one per family")
	fs.StringVar(&f.nodePortRange, "node-port-range", fmt.Sprintf("%d-%d", d.NodePortMin, d.NodePortMax), "range from which to give node ports to Services that set none")
	fs.DurationVar(&f.settleTime, "settle-time", d.SettleTime, "how long the files must be quiet before a change is read")
	fs.StringVar(&f.stateDir, "state-dir", d.StateDir, "directory for what must outlive the process")
	fs.BoolVar(&f.allowEmpty, "allow-empty", false, "accept an input without any Service as an instruction to have none")
}

// source returns the source that the flags name. Mistakes in them are usage errors.
func (f *inputFlags) source(log hclog.Logger) (spec.Source, error) {
	if len(f.files) == 0 {
		return nil, usageError{errors.New("nothing to read: give -f DIR, -f FILE, or -f - for standard input")}
	}
	weir, err := f.weir()
	if err != nil {
		return nil, usageError{err}
	}
	return filesource.New(filesource.Options{Paths: f.files, Config: f.config, Weir: weir, Log: log}), nil
}

// weir returns what the flags that were given do to a WeirConfiguration.
func (f *inputFlags) weir() (func(*spec.WeirConfiguration), error) {
	// The flags are checked as the document is that they stand for, so that there is one set of rules.
	doc := map[string]any{"apiVersion": config.WeirAPIVersion, "kind": config.WeirKind}
	given := map[string]func(dst, src *spec.WeirConfiguration){}
	add := func(flag, field string, value any, set func(dst, src *spec.WeirConfiguration)) {
		if f.set.Changed(flag) {
			doc[field], given[flag] = value, set
		}
	}
	add("service-cidrs", "serviceCIDRs", f.serviceCIDRs, func(d, s *spec.WeirConfiguration) { d.ServiceCIDRs, d.ServiceCIDRsGiven = s.ServiceCIDRs, true })
	add("node-port-range", "nodePortRange", f.nodePortRange, func(d, s *spec.WeirConfiguration) { d.NodePortMin, d.NodePortMax = s.NodePortMin, s.NodePortMax })
	add("settle-time", "settleTime", f.settleTime.String(), func(d, s *spec.WeirConfiguration) { d.SettleTime = s.SettleTime })
	add("state-dir", "stateDir", f.stateDir, func(d, s *spec.WeirConfiguration) { d.StateDir = s.StateDir })
	add("allow-empty", "allowEmpty", f.allowEmpty, func(d, s *spec.WeirConfiguration) { d.AllowEmpty = s.AllowEmpty })

	text, err := yaml.Marshal(doc)
	if err != nil {
		return nil, err
	}
	parsed, problems := config.DecodeWeir(config.Doc{File: "flags", Line: 1, Bytes: text})
	var errs []error
	for _, p := range problems {
		errs = append(errs, fmt.Errorf("%s: %s", flagOf(p.Field), p.Detail))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return func(c *spec.WeirConfiguration) {
		for _, set := range given {
			set(c, &parsed)
		}
	}, nil
}

// flagOf returns the flag that stands for a field of the WeirConfiguration.
func flagOf(field string) string {
	name, _, _ := strings.Cut(field, "[")
	switch name {
	case "serviceCIDRs":
		return "--service-cidrs"
	case "nodePortRange":
		return "--node-port-range"
	case "settleTime":
		return "--settle-time"
	case "stateDir":
		return "--state-dir"
	}
	return field
}

func prefixStrings(prefixes []netip.Prefix) []string {
	s := make([]string, len(prefixes))
	for i, p := range prefixes {
		s[i] = p.String()
	}
	return s
}

// nodeFlags say which node this is and how to program it. They win over the KubeProxyConfiguration.
type nodeFlags struct {
	hostname string
	mode     string
	variant  string
	ipvsFlags
	userspaceFlags
}

func (f *nodeFlags) add(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.hostname, "hostname-override", "", "name of this node, as endpoints give it in nodeName (default: the configuration's hostnameOverride, else the host name)")
	fs.StringVar(&f.mode, "proxy-mode", "", "iptables, ipvs, nftables or userspace (default: the configuration's mode, else iptables if the node has it)")
	f.ipvsFlags.add(fs)
	f.userspaceFlags.add(fs)
	f.addVariant(fs)
}

func (f *nodeFlags) addVariant(fs *pflag.FlagSet) {
	fs.StringVar(&f.variant, "iptables-variant", "auto", "which iptables to use: auto, nft or legacy")
}

func (f *nodeFlags) check() error {
	if err := oneOf("--iptables-variant", f.variant, "auto", "nft", "legacy"); err != nil {
		return err
	}
	if err := f.userspaceFlags.check(&f.mode); err != nil || f.mode == "" {
		return err
	}
	if err := checkMode(f.mode); err != nil {
		return usageError{fmt.Errorf("--proxy-mode: %w", err)}
	}
	return nil
}

// checkMode says what there is if the mode is not.
func checkMode(mode string) error {
	switch mode {
	case "", modeIPTables, modeIPVS, modeNFTables, modeUserspace:
		return nil
	}
	return fmt.Errorf("mode %q is not known; use %s, %s, %s or %s", mode, modeIPTables, modeIPVS, modeNFTables, modeUserspace)
}

// logFlags say what to log and how.
type logFlags struct {
	format, level string
	verbosity     int

	set *pflag.FlagSet
}

// add takes the level that the command has by default: a daemon tells what it does, a command that prints it does not.
func (f *logFlags) add(cmd *cobra.Command, level string) {
	fs := cmd.Flags()
	f.set = fs
	fs.StringVar(&f.format, "log-format", "text", "text or json")
	fs.StringVar(&f.level, "log-level", level, "error, warn, info, debug or trace")
	fs.IntVarP(&f.verbosity, "v", "v", 0, "verbosity as in kube-proxy: 0 to 1 is info, 2 to 4 debug, 5 and above trace; the more verbose of this and --log-level counts")
}

func (f *logFlags) check() error {
	return errors.Join(
		oneOf("--log-format", f.format, "text", "json"),
		oneOf("--log-level", f.level, "error", "warn", "info", "debug", "trace"),
	)
}

func oneOf(flag, value string, allowed ...string) error {
	for _, a := range allowed {
		if value == a {
			return nil
		}
	}
	return usageError{fmt.Errorf("%s is %q; must be one of %s", flag, value, strings.Join(allowed, ", "))}
}

// outputFlag chooses between text and JSON.
type outputFlag struct{ format string }

func (f *outputFlag) add(cmd *cobra.Command, what string) {
	cmd.Flags().StringVarP(&f.format, "output", "o", "text", "how to print "+what+": text or json")
}

func (f *outputFlag) check() error { return oneOf("--output", f.format, "text", "json") }
