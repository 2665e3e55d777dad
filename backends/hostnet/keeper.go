package hostnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

// Keeper sets kernel parameters and remembers the values that they had, in a file that outlives the process. A
// parameter that several Backends need keeps its value until the last of them needs it no more.
//
// A parameter that cannot be set, as in a container, fails nothing: it is logged once and counted. Only one goroutine at
// a time may use a Keeper, except as a prometheus.Collector.
type Keeper struct {
	log    hclog.Logger
	sysctl Sysctl

	stateDir, file string // "" means that nothing is written
	loaded         bool
	records        map[string]record
	hairpins       *hairpins
	answers        *answerKeeper
	// lasts reports whether full syncs look after the file and after what rules guard.
	lasts bool
	// unsaved reports whether the file does not hold the records: it was refused, or the last write failed, for the reason
	// in saveFailed.
	unsaved    bool
	saveFailed string
	// exposed reports whether the log has the warning about loopback addresses.
	exposed bool
	// held are the parameters that each Backend needs.
	held map[*Managed]map[string]struct{}
	// good holds the parameters that had their value in this process, and failed those that cannot be set, with the value
	// that they have.
	good   map[string]struct{}
	failed map[string]string
	told   map[string]struct{} // errors already logged

	repaired prometheus.Counter
	unset    prometheus.Gauge
}

// record is what the Keeper remembers of a parameter.
type record struct {
	Was string `json:"was"`
	Set string `json:"set"`
}

// ledger is the content of the file. It means nothing after a reboot, or in another network namespace.
type ledger struct {
	Boot       string            `json:"boot"`
	Namespace  uint64            `json:"networkNamespace"`
	Parameters map[string]record `json:"parameters"`
	// Ports are the ports of bridges by the index of their interface.
	Ports map[int]portRecord `json:"bridgePorts,omitempty"`
	// Behind are the addresses of pods that are behind no port that is known yet.
	Behind []netip.Addr `json:"behindUnknownPorts,omitempty"`
}

// ledgerFile is the name of the file in the state directory, and maxLedger bounds its size.
const (
	ledgerFile = "parameters.json"
	maxLedger  = 1 << 20
)

// NewKeeper returns a Keeper that remembers nothing until Remember.
func NewKeeper(log hclog.Logger, s Sysctl) *Keeper {
	return &Keeper{
		log: log, sysctl: s, records: map[string]record{}, hairpins: newHairpins(), answers: &answerKeeper{sysctl: s, made: map[int]struct{}{}}, held: map[*Managed]map[string]struct{}{},
		good: map[string]struct{}{}, failed: map[string]string{}, told: map[string]struct{}{},
		repaired: prometheus.NewCounter(prometheus.CounterOpts{Name: "weir_kernel_parameters_repaired_total", Help: "Kernel parameters that another process had changed and that were set again."}),
		unset:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "weir_kernel_parameters_unset", Help: "Kernel parameters that weir needs and cannot set."}),
	}
}

// Describe implements prometheus.Collector.
func (k *Keeper) Describe(c chan<- *prometheus.Desc) { k.repaired.Describe(c); k.unset.Describe(c) }

// Collect implements prometheus.Collector.
func (k *Keeper) Collect(c chan<- prometheus.Metric) { k.repaired.Collect(c); k.unset.Collect(c) }

// Remember reads what an earlier process set, and keeps the records in this state directory from now on.
func (k *Keeper) Remember(stateDir string) {
	file := filepath.Join(stateDir, ledgerFile)
	if k.file == file {
		return
	}
	k.stateDir, k.file = stateDir, file
	if k.loaded {
		return
	}
	k.loaded = true
	l, err := readLedger(file)
	switch boot, ns := identity(); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		k.warn("the values that kernel parameters had are not known: " + err.Error())
		k.unsaved = true
	case l.Boot == boot && l.Namespace == ns:
		maps.Copy(k.records, l.Parameters)
		maps.Copy(k.hairpins.ports, l.Ports)
		for _, a := range l.Behind {
			k.hairpins.unknown[a] = struct{}{}
		}
	}
}

// readLedger refuses a file that another user could have written.
func readLedger(file string) (l ledger, err error) {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return l, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return l, err
	}
	if !trusted(st) {
		return l, fmt.Errorf("%s belongs to another user or can be written by others: remove it", file)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxLedger))
	if err == nil {
		err = json.Unmarshal(data, &l)
	}
	if err != nil {
		return l, fmt.Errorf("%s: %w", file, err)
	}
	return l, nil
}

// trusted reports whether only this process's user and root could have written a file.
func trusted(st unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFREG && (int(st.Uid) == os.Geteuid() || st.Uid == 0) && st.Mode&0o022 == 0
}

// Last makes each full sync write a lost file again, and look after what rules guard. It is for a process that stays.
func (k *Keeper) Last() { k.lasts = true }

// keepFile writes the file if it does not hold the records, for instance because the state directory was removed.
func (k *Keeper) keepFile() {
	if k.file == "" {
		return
	}
	if !k.unsaved && len(k.records)+len(k.hairpins.ports)+len(k.hairpins.unknown) > 0 {
		var st unix.Stat_t
		err := unix.Lstat(k.file, &st)
		k.unsaved = errors.Is(err, fs.ErrNotExist) || err == nil && !trusted(st)
	}
	if k.unsaved {
		k.save()
	}
}

// identity returns the boot, and the network namespace of the calling thread.
func identity() (boot string, namespace uint64) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err == nil {
		boot = strings.TrimSpace(string(text))
	}
	var st unix.Stat_t
	if unix.Stat("/proc/thread-self/ns/net", &st) == nil {
		namespace = st.Ino
	}
	return boot, namespace
}

// save writes the records.
func (k *Keeper) save() {
	if k.file == "" {
		return
	}
	boot, ns := identity()
	data, err := json.Marshal(ledger{boot, ns, k.records, k.hairpins.ports, slices.SortedFunc(maps.Keys(k.hairpins.unknown), netip.Addr.Compare)})
	if err == nil {
		err = replaceFile(k.file, data)
	}
	k.unsaved = err != nil
	reason := ""
	if err != nil {
		reason = plain(err)
	}
	switch before := k.saveFailed; {
	case reason == before:
	case reason != "":
		k.log.Warn("the values that kernel parameters had cannot be kept for a later cleanup: " + k.file + ": " + reason)
	default:
		k.log.Info("the values that kernel parameters had are kept for a later cleanup again", "file", k.file)
	}
	k.saveFailed = reason
}

// plain returns the cause of an error of a file, without the path: that of a temporary file is another one each time.
func plain(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return err.Error()
}

func replaceFile(file string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+"-*") // 0600
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	if err = errors.Join(err, tmp.Close()); err == nil { // not synced, because it means nothing after a crash of the node
		err = os.Rename(tmp.Name(), file)
	}
	if err != nil {
		os.Remove(tmp.Name())
	}
	return err
}

// warn logs each text once.
func (k *Keeper) warn(text string) {
	if _, told := k.told[text]; !told {
		k.told[text] = struct{}{}
		k.log.Warn(text)
	}
}

// look returns the value of a parameter that is needed, or "" if weir has not set it and it has another one. It returns
// the needed value for a parameter that the kernel does not have, or does not let this process set, because nothing can
// be done.
func (k *Keeper) look(p Parameter) string {
	value, err := k.sysctl.Get(p.Name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return p.Value
	case err != nil:
		k.warn(err.Error())
		return p.Value
	case value == p.Value:
		k.good[p.Name] = struct{}{}
		delete(k.failed, p.Name)
	case k.failed[p.Name] == value:
		return p.Value
	case !k.sysctl.writable(p.Name):
		k.fail(p, value, fmt.Errorf("sysctl %s is %s and cannot be set to %s: this kernel does not allow it here", p.Name, value, p.Value))
		return p.Value
	}
	_, had := k.good[p.Name]
	if _, set := k.records[p.Name]; !set && !had {
		return ""
	}
	return value
}

// fail records that a parameter cannot be set.
func (k *Keeper) fail(p Parameter, value string, err error) {
	k.failed[p.Name] = value
	k.unset.Set(float64(len(k.failed)))
	k.warn(fmt.Sprintf("%v (needed because %s)", err, p.Reason))
}

// set gives a parameter its value, and records the one that it had before weir set it first.
func (k *Keeper) set(p Parameter) {
	was, err := k.sysctl.Get(p.Name)
	if err != nil || was == p.Value {
		return
	}
	if _, known := k.records[p.Name]; !known {
		k.records[p.Name] = record{Was: was, Set: p.Value}
		k.save() // first, because this process may end in between
	}
	if _, err := k.sysctl.Ensure(p.Name, p.Value); err != nil {
		delete(k.records, p.Name)
		k.save()
		k.fail(p, was, err)
		return
	}
	if r := k.records[p.Name]; r.Set != p.Value {
		r.Set = p.Value
		k.records[p.Name] = r
		k.save()
	}
	if _, had := k.good[p.Name]; had {
		k.repaired.Inc()
		k.log.Warn("another process changed a kernel parameter: set again", "sysctl", p.Name, "found", was, "value", p.Value, "reason", p.Reason)
	} else {
		k.log.Info("kernel parameter set", "sysctl", p.Name, "found", was, "value", p.Value, "reason", p.Reason)
	}
	k.good[p.Name] = struct{}{}
	delete(k.failed, p.Name)
	k.unset.Set(float64(len(k.failed)))
}

// putBack gives a parameter the value that it had, unless another process has changed it since.
func (k *Keeper) putBack(name string) error {
	r, known := k.records[name]
	if !known {
		return nil
	}
	is, err := k.sysctl.Get(name)
	if err == nil && is == r.Set {
		if _, err = k.sysctl.Ensure(name, r.Was); err == nil {
			k.log.Info("kernel parameter put back, because nothing of weir needs it any more", "sysctl", name, "value", r.Was)
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	delete(k.records, name)
	delete(k.good, name)
	k.save()
	return nil
}

// unneeded returns the parameters that weir set, still have that value, and are not among the needed ones.
func (k *Keeper) unneeded(needed []Parameter) (list []setting) {
	for _, name := range slices.Sorted(maps.Keys(k.records)) {
		if slices.ContainsFunc(needed, func(p Parameter) bool { return p.Name == name }) {
			continue
		}
		r := k.records[name]
		if is, err := k.sysctl.Get(name); err == nil && is == r.Set {
			list = append(list, setting{name: name, value: is, was: r.Was})
		}
	}
	return list
}

// needed reports whether a Backend needs the parameter.
func (k *Keeper) needed(name string) bool { return k.heldBesides(nil, name) }

// warnLoopback logs once that neighbours may reach the loopback addresses: nothing needs the parameter, so that no rule of
// weir guards it, and weir does not know that it set it.
func (k *Keeper) warnLoopback(guarded bool) {
	if _, set := k.records[routeLocalnet]; set || guarded || k.needed(routeLocalnet) {
		k.exposed = false
		return
	}
	text := LoopbackWarning(k.sysctl, k.stateDir)
	if text != "" && !k.exposed {
		k.log.Warn(text)
	}
	k.exposed = text != ""
}

// deliveredBesides reports whether another Backend has found or made the local route to an address, and not dropped it.
func (k *Keeper) deliveredBesides(b *Managed, a netip.Addr) bool {
	for other := range k.held {
		if _, has := other.delivered[a]; has && other != b {
			return true
		}
	}
	return false
}

// heldBesides reports whether another Backend needs the parameter.
func (k *Keeper) heldBesides(b *Managed, name string) bool {
	for other, names := range k.held {
		if _, needs := names[name]; needs && other != b {
			return true
		}
	}
	return false
}
