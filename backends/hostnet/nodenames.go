package hostnet

import (
	"context"
	"crypto/sha256"
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
	"golang.org/x/sys/unix"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/backends/doctor"
)

// Way is how the processes of a node come to find the names of Services.
type Way string

// The ways. WayAuto is the first of the others that fits the node, and WayNone none of them.
const (
	WayAuto       Way = "auto"
	WayNone       Way = "none"
	WayResolvConf Way = "resolv.conf"
	WayHosts      Way = "hosts"
)

// NamesWanted says what the processes of a node shall find.
type NamesWanted struct {
	Way Way
	// At is where weir answers.
	At netip.AddrPort
	// Domain is that of all names, without a dot at its end.
	Domain string
	// Ranges are those of ClusterIPs, whose names are asked of weir too.
	Ranges []netip.Prefix
	// Answers reports whether a resolver answers for the domain. nil means that no resolver can be asked.
	Answers func(netip.AddrPort) bool
	// Hosts returns the names for /etc/hosts, sorted.
	Hosts func() []HostNames
}

// HostNames is a name with its addresses.
type HostNames struct {
	Name  string
	Addrs []netip.Addr
}

// maxHostNames is how many names /etc/hosts gets. Each process reads the file for each name that it looks up.
const maxHostNames = 10_000

// NodeNames is the Backend that has the processes of a node ask weir for the names of Services, in the way that the node
// resolves names. Its Items are what weir adds to the files of others. It remembers in a file which ones those are, so that a
// later process can take it back.
//
// Only one goroutine at a time may use it.
type NodeNames struct {
	// Root is "" but in tests.
	Root string

	log      hclog.Logger
	stateDir string
	record   namesRecord
	wanted   *NamesWanted // nil: take back what there is
	// failed are the ways that the node does not allow, with the reason.
	failed map[Way]error
	told   map[string]struct{}
	// link is the open link of WayResolved, or nil. The kernel removes the link when the file is closed.
	link *os.File
	// added reports whether this process has added anything.
	added bool
}

// namesRecord is the content of the file in the state directory.
type namesRecord struct {
	// Files are those that weir added to, and whether it made them.
	Files map[string]namesFile `json:"files"`
}

type namesFile struct {
	Way  Way  `json:"way"`
	Made bool `json:"made,omitempty"`
}

const namesRecordFile = "node-names.json"

// NewNodeNames returns a NodeNames that wants nothing. It reads what an earlier process added from the state directory.
func NewNodeNames(log hclog.Logger, stateDir string) *NodeNames {
	n := &NodeNames{log: log, stateDir: stateDir, record: namesRecord{Files: map[string]namesFile{}}, failed: map[Way]error{}, told: map[string]struct{}{}}
	if err := n.load(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.warn("which files earlier processes added the resolver to is not known: " + err.Error())
	}
	return n
}

// Want says what the node shall find. nil means nothing. Ways that failed are tried again.
func (n *NodeNames) Want(w *NamesWanted) {
	n.wanted = w
	clear(n.failed)
}

// Retry has ways that failed tried again, because another process changed the files.
func (n *NodeNames) Retry() { clear(n.failed) }

func (n *NodeNames) load() error {
	f, err := os.OpenFile(filepath.Join(n.stateDir, namesRecordFile), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if !trusted(st) {
		return fmt.Errorf("%s belongs to another user or can be written by others: remove it", f.Name())
	}
	data, err := io.ReadAll(io.LimitReader(f, maxLedger))
	var r namesRecord
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	maps.Copy(n.record.Files, r.Files)
	return nil
}

// remember records that weir adds to a file, before it does, and makes it if another process has removed it.
func (n *NodeNames) remember(path string, way Way) {
	before, known := n.record.Files[path]
	_, err := os.Lstat(path)
	made := errors.Is(err, fs.ErrNotExist)
	if known && (before.Made || !made) {
		return
	}
	n.record.Files[path] = namesFile{Way: way, Made: made}
	n.save()
}

func (n *NodeNames) forget(path string) {
	if _, known := n.record.Files[path]; known {
		delete(n.record.Files, path)
		n.save()
	}
}

func (n *NodeNames) save() {
	if n.stateDir == "" {
		return
	}
	data, err := json.Marshal(n.record)
	if err == nil {
		err = replaceFile(filepath.Join(n.stateDir, namesRecordFile), data)
	}
	if err != nil {
		n.warn("what weir added to the resolvers of the node cannot be kept for a later cleanup: " + plain(err))
	}
}

// warn logs each text once.
func (n *NodeNames) warn(text string) {
	if _, told := n.told[text]; !told {
		n.told[text] = struct{}{}
		n.log.Warn(text)
	}
}

// nodeName is what weir adds to a file, as an Item.
type nodeName struct {
	way  Way
	path string
	text string // what is added
	// broken says what is wrong with it, or is "".
	broken string
}

// isNodeName reports whether a change is of what has processes ask weir for names.
func isNodeName(c backends.Change) bool {
	_, now := c.New.(nodeName)
	_, before := c.Old.(nodeName)
	return now || before
}

// ID implements backends.Item.
func (i nodeName) ID() backends.ID { return backends.ID("names " + string(i.way) + " " + i.path) }

// String implements backends.Item.
func (i nodeName) String() string {
	text := strings.TrimSuffix(strings.ReplaceAll(i.text, "\n", "; "), "; ")
	if i.way == WayHosts {
		text = fmt.Sprintf("%d lines with names of Services, %.4x", strings.Count(i.text, "\n"), sha256.Sum256([]byte(i.text)))
	}
	if i.broken != "" {
		return fmt.Sprintf("names: %q in %s, which %s", text, i.path, i.broken)
	}
	return fmt.Sprintf("names: %q in %s, so that processes of this node find the names of Services", text, i.path)
}

// Base implements backends.Backend: what the first way adds that has not failed. Nothing is added if processes ask weir anyhow.
func (n *NodeNames) Base() []backends.Item {
	ways := n.ways()
	if len(ways) == 0 {
		return nil
	}
	item, ok := n.item(ways[0])
	if !ok || n.byHand(ways[0]) {
		return nil
	}
	return []backends.Item{item}
}

// byHand reports whether the resolver on the node answers for the cluster already, although weir has added nothing.
func (n *NodeNames) byHand(way Way) bool {
	if way == WayResolvConf || way == WayHosts || n.added || n.wanted.Answers == nil {
		return false
	}
	for range n.Observe(context.Background()) {
		return false
	}
	asked := n.askedWithout()
	return len(asked) > 0 && onNode(asked[0]) && n.wanted.Answers(netip.AddrPortFrom(asked[0], 53))
}

// exists reports whether the node has a file.
func (n *NodeNames) exists(name string) bool {
	_, err := os.Lstat(filepath.Join("/", n.Root, name))
	return err == nil
}

// ways returns the ways that fit the node and have not failed, the best first.
func (n *NodeNames) ways() (ways []Way) {
	switch {
	case n.wanted == nil || n.wanted.Way == WayNone:
	case n.wanted.Way != WayAuto:
		ways = []Way{n.wanted.Way}
		if n.wanted.Way == WayResolvConf && n.wanted.At.Port() != 53 {
			n.failed[WayResolvConf] = fmt.Errorf("weir answers at %s, and /etc/resolv.conf can name no other port than 53: give weir run --dns-listen %s", n.wanted.At, netip.AddrPortFrom(n.wanted.At.Addr(), 53))
		}
	default:
		ways = n.fitting()
	}
	return slices.DeleteFunc(ways, func(w Way) bool { return n.failed[w] != nil })
}

// fitting returns the ways that fit the node.
func (n *NodeNames) fitting() (ways []Way) {
	asked := n.askedWithout()
	if len(asked) > 0 && resolvedStubs[asked[0]] {
		ways = append(ways, WayResolved)
	} else if len(asked) > 0 && onNode(asked[0]) && netip.AddrPortFrom(asked[0], 53) != n.wanted.At {
		if n.exists(managerDir) {
			ways = append(ways, WayNetworkManager)
		}
		if n.exists(dnsmasqDir) {
			ways = append(ways, WayDnsmasq)
		}
	}
	if n.wanted.At.Port() == 53 && (len(asked) == 0 || !resolvedStubs[asked[0]]) {
		ways = append(ways, WayResolvConf)
	}
	return append(ways, WayHosts)
}

// askedWithout returns the resolvers that processes of the node ask, or would without weir.
func (n *NodeNames) askedWithout() []netip.Addr {
	text, err := readTextFile(n.target(WayResolvConf))
	if err != nil {
		return nil
	}
	rest, _, _ := cutBlock(string(text), oursIn(WayResolvConf))
	return nameservers(rest)
}

// item returns what a way adds, and false if nothing is to be done.
func (n *NodeNames) item(way Way) (nodeName, bool) {
	i := nodeName{way: way, path: n.target(way)}
	switch way {
	case WayResolved:
		i.path, i.text = "systemd-resolved", n.resolvedText()
	case WayDnsmasq, WayNetworkManager:
		i.text = fmt.Sprintf("server=/%s/%s#%d\n", n.wanted.Domain, n.wanted.At.Addr(), n.wanted.At.Port())
	case WayResolvConf:
		at := n.wanted.At.Addr()
		if asked := n.askedWithout(); len(asked) > 0 && asked[0] == at {
			return i, false
		}
		i.text = "nameserver " + at.String() + "\n"
	case WayHosts:
		i.text = n.hostLines()
		if i.text == "" {
			return i, false
		}
	}
	return i, true
}

// hostLines returns the lines for /etc/hosts.
func (n *NodeNames) hostLines() string {
	var b strings.Builder
	names := n.wanted.Hosts()
	if len(names) > maxHostNames {
		n.warn(fmt.Sprintf("%d Services have names, and /etc/hosts gets the first %d: let the node ask weir as a resolver", len(names), maxHostNames))
		names = names[:maxHostNames]
	}
	for _, h := range names {
		if !isHostName(h.Name) {
			continue
		}
		for _, a := range h.Addrs {
			if a.IsLoopback() || a.IsMulticast() || a.IsUnspecified() || a.Zone() != "" {
				continue
			}
			fmt.Fprintf(&b, "%s\t%s\n", a, h.Name)
		}
	}
	return b.String()
}

// isHostName reports whether a name has only labels that DNS allows for hosts.
func isHostName(name string) bool {
	if len(name) > 253 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
				return false
			}
		}
	}
	return true
}

// Apply implements backends.Backend.
func (n *NodeNames) Apply(ctx context.Context, p backends.Plan) (r backends.Result) {
	for _, c := range p.Changes {
		var err error
		if c.New != nil {
			err = n.add(ctx, c.New.(nodeName))
			n.added = n.added || err == nil
		} else {
			err = n.takeBack(ctx, c.Old.(nodeName))
		}
		if err != nil {
			if r.Refused == nil {
				r.Refused = map[backends.ID]error{}
			}
			r.Refused[c.ID] = err
		}
	}
	return r
}

// add puts what weir adds into a file, in place of what it added before.
func (n *NodeNames) add(ctx context.Context, i nodeName) error {
	if i.way == WayResolved {
		return n.setResolved(ctx, i)
	}
	if n.elsewhere(i.path) {
		return fmt.Errorf("%s is that of processes in another network namespace", i.path)
	}
	text, err := readTextFile(i.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	n.remember(i.path, i.way)
	rest, _, _ := cutBlock(string(text), oursIn(i.way))
	now := prepended(i.text, rest)
	if i.way == WayHosts {
		now = appended(rest, i.text)
	}
	if err := writeTextFile(i.path, []byte(now)); err != nil {
		if string(text) == rest {
			n.forget(i.path)
		}
		return err
	}
	if i.way == WayResolvConf || i.way == WayHosts {
		return nil
	}
	err = n.restart(ctx, i.way)
	if err == nil {
		err = n.heeded(ctx)
	}
	if err != nil && ctx.Err() == nil {
		err = errors.Join(err, n.takeBack(ctx, i))
	}
	return err
}

// takeBack leaves of a file what others wrote.
func (n *NodeNames) takeBack(ctx context.Context, i nodeName) error {
	if i.way == WayResolved {
		return n.dropResolved()
	}
	text, err := readTextFile(i.path)
	if errors.Is(err, fs.ErrNotExist) {
		n.forget(i.path)
		return nil
	} else if err != nil {
		return err
	}
	rest, _, _ := cutBlock(string(text), oursIn(i.way))
	if rest == "" && n.record.Files[i.path].Made {
		err = os.Remove(i.path)
	} else if rest != string(text) {
		err = writeTextFile(i.path, []byte(rest))
	}
	if err == nil {
		n.forget(i.path)
	}
	if err == nil && (i.way == WayDnsmasq || i.way == WayNetworkManager) {
		if err := n.restart(ctx, i.way); err != nil {
			n.warn("what asked weir may still ask it: " + err.Error())
		}
	}
	return err
}

// Ensure makes the node as it is wanted, and returns what it changed. If a way fails, the next one that fits is taken; the error
// is why none is left, or that ctx has ended.
func (n *NodeNames) Ensure(ctx context.Context) (changed []backends.Change, err error) {
	for {
		plan := n.Plan(ctx)
		if refused := n.asked(); refused != nil {
			err = refused
		}
		r := n.Apply(ctx, plan)
		for _, c := range plan.Changes {
			if r.Refused[c.ID] == nil {
				changed = append(changed, c)
			}
		}
		if ctx.Err() != nil {
			return changed, ctx.Err() // what failed because of that is no reason for another way
		}
		again := false
		for _, c := range plan.Changes {
			refused := r.Refused[c.ID]
			if refused == nil {
				continue
			}
			err = errors.Join(err, refused)
			if c.New != nil {
				n.failed[c.New.(nodeName).way] = refused
				again = true
			}
		}
		switch {
		case again:
			continue
		case err != nil && len(n.ways()) > 0:
			n.warn("the node finds names in another way, because " + plain(err))
			err = nil
		}
		return changed, err
	}
}

// asked returns why the one way that is asked for failed.
func (n *NodeNames) asked() error {
	if n.wanted == nil {
		return nil
	}
	return n.failed[n.wanted.Way]
}

// Plan returns what differs from what is wanted.
func (n *NodeNames) Plan(ctx context.Context) (p backends.Plan) {
	want := map[backends.ID]backends.Item{}
	for _, i := range n.Base() {
		want[i.ID()] = i
	}
	for i := range n.Observe(ctx) {
		w := want[i.ID()]
		delete(want, i.ID())
		switch {
		case w == nil:
			p.Changes = append(p.Changes, backends.Change{Op: backends.Delete, ID: i.ID(), Old: i})
		case w.String() != i.String():
			p.Changes = append(p.Changes, backends.Change{Op: backends.Update, ID: i.ID(), Old: i, New: w})
		}
	}
	for id, w := range want {
		p.Changes = append(p.Changes, backends.Change{Op: backends.Create, ID: id, New: w})
	}
	// What is new comes before what goes, so that names are found all the time.
	slices.SortFunc(p.Changes, func(a, b backends.Change) int { return int(a.Op) - int(b.Op) })
	return p
}

// Render implements backends.Backend. Services add nothing by themselves.
func (n *NodeNames) Render(*dataplane.ServicePort) ([]backends.Item, error) { return nil, nil }

// Close implements backends.Backend.
func (n *NodeNames) Close() error { return nil }

// Optional implements backends.Backend.
func (n *NodeNames) Optional() backends.Optional { return backends.Optional{} }

// Doctor says what weir has added, if anything. answers reports whether weir answers.
func (n *NodeNames) Doctor(answers bool) (checks []doctor.Check) {
	for i := range n.Observe(context.Background()) {
		c := doctor.Check{Name: "names for processes, kept", State: doctor.OK, Detail: fmt.Sprintf("%s; weir takes it away when it ends", i)}
		if !answers {
			c.State, c.Mend = doctor.Advice, "weir cleanup"
			c.Detail = fmt.Sprintf("%s, although no weir answers: one was killed", i)
		}
		checks = append(checks, c)
	}
	return checks
}

// Modified returns a text that differs when what is in force may.
func (n *NodeNames) Modified() string {
	text := ""
	for _, way := range slices.Sorted(maps.Keys(wayFiles)) {
		var st unix.Stat_t
		path := n.target(way)
		if unix.Stat(path, &st) == nil {
			text += fmt.Sprintln(path, st.Ino, st.Dev, st.Mtim, st.Size)
		}
	}
	if n.link != nil {
		text += resolvedModified()
	}
	return text
}
