package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weir/spec"
	"weir/spec/config"
	"weir/spec/filesource"
	"weir/spec/lastgood"
	"weir/spec/stall"
)

// inputFlags say what to read.
type inputFlags struct {
	files     []string
	kustomize []string
	lock      string
	config    string
	// outsideLinks is no field of a WeirConfiguration, because the author of the link may write that too.
	reread       <-chan os.Signal // has the files read again
	outsideLinks bool
	strictTree   bool
	// usable, if set, returns why a kept state must not be served.
	usable func(context.Context, *spec.Snapshot) error
	chosen spec.Choice
	// more, if set, adds the fields of other flags.
	more func(*config.WeirFields)
	// serveDNS, if set, has precedence over the configuration.
	serveDNS *bool

	set *pflag.FlagSet
	// stderr is where a command says that it waits.
	stderr func() io.Writer

	serviceCIDRs  []string
	nodePortRange string
	settleTime    time.Duration
	stateDir      string
	allowEmpty    bool
	signers       string
}

func (f *inputFlags) add(cmd *cobra.Command) {
	d := spec.DefaultWeirConfiguration()
	fs := cmd.Flags()
	f.set, f.stderr = fs, cmd.ErrOrStderr
	fs.StringArrayVarP(&f.files, "filename", "f", nil, "directory, file, glob in quotes, or - for standard input, to read manifests from; may be repeated")
	fs.StringArrayVarP(&f.kustomize, "kustomize", "k", nil, "directory with a kustomization, to read the objects that kustomize build would print; may be repeated")
	fs.StringVar(&f.config, "config", "", "file with the KubeProxyConfiguration (default: the one among the manifests, if any)")
	fs.StringVar(&f.lock, "lock", "", "file with the allocated values that Services keep, which weir allocate --write writes; it need not exist (default: any among the manifests)")
	fs.BoolVar(&f.outsideLinks, "allow-outside-links", false, "follow symlinks that lead out of what -f and --config name")
	fs.StringArrayVar(&f.chosen.Include, "include", nil, "read only files that match this pattern, as in .gitignore; may be repeated")
	fs.StringArrayVar(&f.chosen.Exclude, "exclude", nil, "leave out files and directories that match this pattern, as in .gitignore; may be repeated")
	fs.StringVarP(&f.chosen.Namespace, "namespace", "n", "", "use only objects of this namespace, which is also that of objects that name none")
	fs.StringVarP(&f.chosen.Selector, "selector", "l", "", "use only Services whose labels match, such as app=web,tier!=test")
	fs.BoolVar(&f.strictTree, "strict-tree", false, "refuse the input for every document that cannot be read, even one that weir has no use for")
	fs.StringSliceVar(&f.serviceCIDRs, "service-cidrs", prefixStrings(d.ServiceCIDRs), "ranges for the ClusterIPs of Services that set none, at most one per family")
	fs.StringVar(&f.nodePortRange, "node-port-range", fmt.Sprintf("%d-%d", d.NodePortMin, d.NodePortMax), "range for the node ports of Services that set none")
	fs.DurationVar(&f.settleTime, "settle-time", d.SettleTime, "how long the files must stay unchanged before a change is read")
	fs.StringVar(&f.stateDir, "state-dir", d.StateDir, "directory for state that must survive a restart")
	fs.StringVar(&f.signers, "allowed-signers", "", "allowed signers file of OpenSSH, outside of the repository: use only a Git work tree whose commit one of them signed (default: that of the WeirConfiguration, if any)")
	completeFlag(cmd, "namespace", completeNamespace(&f.stateDir))
	fs.BoolVar(&f.allowEmpty, "allow-empty", false, "accept an input without any Service as an instruction to have none")
}

// source returns the source that the flags name. Invalid flags are usage errors.
func (f *inputFlags) source(log hclog.Logger) (spec.Source, error) {
	if f.none() {
		return nil, usageError{errors.New("nothing to read: give -f DIR, -f FILE, -f - for standard input, or -k DIR for a kustomization")}
	}
	if err := f.checkPaths(); err != nil {
		return nil, usageError{err}
	}
	if f.set.Changed("allowed-signers") && f.signers == "" {
		return nil, usageError{errors.New("--allowed-signers is empty, as a variable that is not set; without the flag, no signature is demanded")}
	}
	overrides, err := f.overrides()
	if err != nil {
		return nil, usageError{err}
	}
	files := filesource.New(filesource.Options{Paths: f.files, Kustomize: f.kustomize, Config: f.config, Lock: f.lock, Overrides: overrides, Log: log, AllowOutsideLinks: f.outsideLinks, StrictTree: f.strictTree, Reread: f.reread, Waiting: f.waiting})
	return f.keeping(files, overrides, log), nil
}

// checkPaths refuses paths that cannot be meant. An empty one would be the current directory.
func (f *inputFlags) checkPaths() error {
	for flag, paths := range map[string][]string{"-f": f.files, "-k": f.kustomize} {
		if slices.Contains(paths, "") {
			return fmt.Errorf("%s is empty, as a variable that is not set; write . for the current directory", flag)
		}
	}
	if f.lock == "" {
		return nil
	}
	fi, err := stall.Do(context.Background(), stall.Limit, "looking at "+f.lock, func() (os.FileInfo, error) { return os.Stat(f.lock) })
	if err == nil && fi.IsDir() { // any other fault is told of the file
		return fmt.Errorf("--lock %s is a directory; name a file, such as %s", f.lock, filepath.Join(f.lock, spec.LockFile))
	}
	return nil
}

// waiting says that a command waits for standard input.
func (f *inputFlags) waiting() {
	fmt.Fprintln(f.stderr(), "weir waits for standard input, because of -f -, and nothing has come; to read a directory or a file, give -f with its name")
}

// keeping returns a Source of the files that begins with their last good state if they cannot be used.
func (f *inputFlags) keeping(files *filesource.Source, overrides spec.Overrides, log hclog.Logger) spec.Source {
	return lastgood.New(lastgood.Options{
		Source: files, Input: "the input in files", Overrides: overrides, Usable: f.usable, Served: files.Kept, Log: log,
		Cluster:  func() string { return "files" },
		Interval: time.Second, // files change rarely
		File: func(settings *spec.Snapshot) string {
			weir := overrides.Apply(spec.DefaultWeirConfiguration())
			if settings != nil {
				weir = settings.Weir
			}
			return filepath.Join(weir.StateDir, "files-snapshot")
		},
	})
}

// readsStdin reports whether standard input is read.
func (f *inputFlags) readsStdin() bool { return slices.Contains(f.files, "-") }

// none reports whether no files are named but that of --config.
func (f *inputFlags) none() bool { return len(f.files)+len(f.kustomize) == 0 }

// names returns what the flags name, for a plan.
func (f *inputFlags) names() string { return strings.Join(slices.Concat(f.files, f.kustomize), ", ") }

// overrides returns the settings of a WeirConfiguration that were given as flags. They are validated like its fields.
func (f *inputFlags) overrides() (spec.Overrides, error) {
	var in config.WeirFields
	for flag, take := range map[string]func(){
		"service-cidrs":   func() { in.ServiceCIDRs = f.serviceCIDRs },
		"node-port-range": func() { in.NodePortRange = f.nodePortRange },
		"settle-time":     func() { in.SettleTime = &metav1.Duration{Duration: f.settleTime} },
		"state-dir":       func() { in.StateDir = f.stateDir },
		"allow-empty":     func() { in.AllowEmpty = &f.allowEmpty },
		"allowed-signers": func() { in.AllowedSigners = config.Path(absolute(f.signers)) },
		"include":         func() { in.Include = f.chosen.Include },
		"exclude":         func() { in.Exclude = f.chosen.Exclude },
		"namespace":       func() { in.Namespace = f.chosen.Namespace },
		"selector":        func() { in.Selector = f.chosen.Selector },
	} {
		if f.set.Changed(flag) {
			take()
		}
	}
	if f.more != nil {
		f.more(&in)
	}
	o, err := overridesOf(in)
	o.ServeDNS = f.serveDNS
	return o, err
}

// absolute returns a path that a flag gave, from the root directory on.
func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil && path != "" {
		return abs
	}
	return path
}

// overridesOf returns the Overrides of fields that were given as flags.
func overridesOf(in config.WeirFields) (spec.Overrides, error) {
	var errs []error
	o := in.Overrides(func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", flagOf(field), fmt.Sprintf(format, args...)))
	})
	return o, errors.Join(errs...)
}

// flagOf returns the flag for a field of the WeirConfiguration.
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
	case "allowedSigners":
		return "--allowed-signers"
	case "podSources":
		return "--pod-source"
	case "dns.listen":
		return "--dns-listen"
	case "dns.clusterDomain":
		return "--cluster-domain"
	case "dns.upstreams":
		return "--dns-upstream"
	case "include", "exclude", "namespace", "selector":
		return "--" + name
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
	variantFlag
	ipvsFlags
	userspaceFlags
}

func (f *nodeFlags) add(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.hostname, "hostname-override", "", "name of this node, as endpoints give it in nodeName (default: the configuration's hostnameOverride, else the host name)")
	fs.StringVar(&f.mode, "proxy-mode", "", orList(knownModes().names())+" (default: the configuration's mode, else "+defaultModes[0]+" if the node has it)")
	completeValues(cmd, "proxy-mode", knownModes().names()...)
	f.ipvsFlags.add(fs)
	f.userspaceFlags.add(fs)
	f.addVariant(fs)
}

func (f *nodeFlags) check() error {
	if err := f.checkVariant(); err != nil {
		return err
	}
	if err := f.userspaceFlags.check(&f.mode); err != nil || f.mode == "" {
		return err
	}
	if _, err := knownModes().mode(f.mode); err != nil {
		return usageError{fmt.Errorf("--proxy-mode: %w", err)}
	}
	return nil
}

// logFlags say what to log and in which format.
type logFlags struct {
	format, level string
	verbosity     int

	set *pflag.FlagSet
}

// add sets the command's default level: a daemon logs what it does, a command that prints it does not.
func (f *logFlags) add(cmd *cobra.Command, level string) {
	fs := cmd.Flags()
	f.set = fs
	fs.StringVar(&f.format, "log-format", "text", "text or json")
	fs.StringVar(&f.level, "log-level", level, "error, warn, info, debug or trace")
	completeValues(cmd, "log-format", logFormats...)
	completeValues(cmd, "log-level", logLevels...)
	fs.IntVarP(&f.verbosity, "v", "v", 0, "verbosity as in kube-proxy: 0 to 1 is info, 2 to 4 debug, 5 and above trace; the more verbose of this and --log-level counts")
}

var (
	logFormats = []string{"text", "json"}
	logLevels  = []string{"error", "warn", "info", "debug", "trace"}
)

func (f *logFlags) check() error {
	return errors.Join(
		oneOf("--log-format", f.format, logFormats...),
		oneOf("--log-level", f.level, logLevels...),
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
	completeValues(cmd, "output", "text", "json")
}

func (f *outputFlag) check() error { return oneOf("--output", f.format, "text", "json") }
