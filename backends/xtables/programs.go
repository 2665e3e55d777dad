package xtables

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"weir/backends/dataplane"
)

const (
	// restoreTimeout ends an iptables-restore that hangs. The largest rulesets take a minute.
	restoreTimeout = 5 * time.Minute
	// lockWait is how long iptables waits for the lock that its processes share, in seconds.
	lockWait = "10"
	// maxOutput bounds how much of a program's output is kept.
	maxOutput = 16 << 10
)

// programs is the Kernel that runs the programs of one mechanism.
type programs struct {
	mode     Mode
	paths    map[string]string // the absolute path of each program
	features Features
	// unusable holds the families for which iptables cannot be used, and why.
	unusable map[dataplane.Family]error
}

// Features implements Kernel.
func (k *programs) Features() Features { return k.features }

// program returns a name such as "iptables-nft-save".
func program(f dataplane.Family, mode Mode, verb string) string {
	name := "iptables-"
	if f == dataplane.IPv6 {
		name = "ip6tables-"
	}
	return name + string(mode) + "-" + verb
}

// command prepares a program with a minimal environment.
func (k *programs) command(ctx context.Context, f dataplane.Family, verb string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, k.paths[program(f, k.mode, verb)], args...)
	cmd.Env = []string{"PATH=/usr/sbin:/sbin:/usr/bin:/bin", "LC_ALL=C"}
	if lock := os.Getenv("XTABLES_LOCKFILE"); lock != "" {
		cmd.Env = append(cmd.Env, "XTABLES_LOCKFILE="+lock)
	}
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Save implements Kernel.
func (k *programs) Save(ctx context.Context, f dataplane.Family, table string) (io.ReadCloser, error) {
	return k.save(ctx, f, table)
}

// Counters implements Kernel.
func (k *programs) Counters(ctx context.Context, f dataplane.Family, table string) (io.ReadCloser, error) {
	return k.save(ctx, f, table, "-c")
}

// save starts iptables-save.
func (k *programs) save(ctx context.Context, f dataplane.Family, table string, args ...string) (io.ReadCloser, error) {
	if table != "" {
		if k.mode == Legacy && !legacyTable(f, table) {
			// The legacy program would create the table when it lists it.
			return io.NopCloser(strings.NewReader("")), nil
		}
		args = append(args, "-t", table)
	}
	ctx, cancel := context.WithCancel(ctx)
	cmd := k.command(ctx, f, "save", args...)
	s := &saving{cmd: cmd, cancel: cancel}
	cmd.Stderr = &s.said
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		cancel()
		return nil, err
	}
	s.Reader = out
	return s, nil
}

// saving is the output of a running program.
type saving struct {
	io.Reader
	cmd    *exec.Cmd
	cancel context.CancelFunc
	said   head
}

// Close ends the program. It returns an error if the program failed.
func (s *saving) Close() error {
	rest, _ := io.CopyN(io.Discard, s.Reader, 1)
	if rest > 0 {
		s.cancel() // the reader has stopped early
	}
	err := s.cmd.Wait()
	s.cancel()
	if err != nil {
		return fmt.Errorf("%s: %w: %q", s.cmd.Path, err, s.said.text())
	}
	return nil
}

// legacyTable reports whether the legacy mechanism holds a table in this network namespace.
func legacyTable(f dataplane.Family, table string) bool {
	name := "/proc/thread-self/net/ip_tables_names"
	if f == dataplane.IPv6 {
		name = "/proc/thread-self/net/ip6_tables_names"
	}
	names, err := os.ReadFile(name)
	if errors.Is(err, os.ErrPermission) {
		return true // the program will report the error
	}
	for _, n := range strings.Fields(string(names)) {
		if n == table {
			return true
		}
	}
	return false
}

// Restore implements Kernel.
func (k *programs) Restore(ctx context.Context, f dataplane.Family, input []byte) error {
	err := k.restore(ctx, f, input, nil, k.RestoreCommand(f)[1:]...)
	if failed := (*RestoreError)(nil); k.mode == NFT && errors.As(err, &failed) && strings.Contains(failed.Message, notPermitted) {
		if problem := owned(ctx, f); problem != "" {
			return &RestoreError{Retry: true, Message: problem + ": " + failed.Message}
		}
	}
	return err
}

// notPermitted is what iptables-nft prints for EPERM, the error for a table that another process owns.
const notPermitted = "Operation not permitted"

// RestoreCommand implements Kernel.
func (k *programs) RestoreCommand(f dataplane.Family) []string {
	args := []string{program(f, k.mode, "restore"), "--noflush"}
	if k.mode == Legacy {
		args = append(args, "--wait", lockWait) // nf_tables has transactions, and needs no lock
	}
	return args
}

func (k *programs) restore(ctx context.Context, f dataplane.Family, input []byte, attr *syscall.SysProcAttr, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, restoreTimeout)
	defer cancel()
	cmd := k.command(ctx, f, "restore", args...)
	cmd.SysProcAttr = attr
	var said head
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &said, &said
	err := cmd.Run()
	if err == nil {
		return nil
	}
	exit := (*exec.ExitError)(nil)
	if ctx.Err() != nil || !errors.As(err, &exit) || exit.ExitCode() < 0 {
		return fmt.Errorf("%s: %w: %q", cmd.Path, errors.Join(err, ctx.Err()), said.text())
	}
	return restoreError(exit.ExitCode(), said.text())
}

// lineAtFault finds the line in the output of any of the programs: "line 7 failed", "Error occurred at line: 7", or
// "line 7: CHAIN_DEL failed".
var lineAtFault = regexp.MustCompile(`\bline:? (\d+)\b`)

// restoreError makes a RestoreError of the output of iptables-restore. Exit code 4 stands for a problem of resources,
// such as the lock, unless the kernel named a line.
func restoreError(code int, said string) *RestoreError {
	e := &RestoreError{Message: fmt.Sprintf("%q (exit code %d)", said, code)} // quoted, so that its end can be told
	if m := lineAtFault.FindAllStringSubmatch(said, -1); m != nil {
		e.Line, _ = strconv.Atoi(m[len(m)-1][1])
	}
	e.TooLong = strings.Contains(said, "Message too long")
	e.Retry = code == 4 && e.Line == 0 || strings.Contains(said, "xtables lock") || strings.Contains(said, "Resource temporarily unavailable")
	return e
}

// Generation implements Kernel.
func (k *programs) Generation(ctx context.Context) (uint64, error) {
	if k.mode == Legacy {
		return 0, errNoGeneration
	}
	return generation(ctx)
}

// generation reads the number of the last nf_tables transaction in this network namespace from the kernel.
func generation(ctx context.Context) (uint64, error) {
	id, err := readGeneration(ctx)
	if err != nil {
		return 0, fmt.Errorf("cannot read the generation of nf_tables: %w", err)
	}
	return uint64(id), nil
}

func readGeneration(ctx context.Context) (uint32, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(10 * time.Second)
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return 0, err
	}
	replies, err := conn.Execute(netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN),
			Flags: netlink.Request | netlink.Acknowledge,
		},
		Data: []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0},
	})
	if err != nil {
		return 0, err
	}
	for _, r := range replies {
		if len(r.Data) < 4 {
			continue
		}
		attrs, err := netlink.NewAttributeDecoder(r.Data[4:])
		if err != nil {
			return 0, err
		}
		attrs.ByteOrder = binary.BigEndian
		for attrs.Next() {
			if attrs.Type() == unix.NFTA_GEN_ID {
				return attrs.Uint32(), nil
			}
		}
	}
	return 0, errors.New("the kernel's answer holds no generation")
}

// head keeps the beginning of the bytes written to it.
type head struct{ kept []byte }

// Write implements io.Writer.
func (h *head) Write(p []byte) (int, error) {
	h.kept = append(h.kept, p[:min(len(p), maxOutput-len(h.kept))]...)
	return len(p), nil
}

// text returns the output on one line, without the advice to read the manual, and without a warning of every system that
// gives connection labels no names.
func (h *head) text() string {
	var lines []string
	for line := range strings.Lines(string(h.kept)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "Try `") && !strings.HasPrefix(line, "Warning: cannot open /etc/xtables/connlabel.conf") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "; ")
}
