package userspace

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"weir/backends"
	"weir/backends/dataplane"
)

// publicName is an abstract socket on which a process publishes its listeners, so that the plans of other processes
// show only the changes. The name belongs to the network namespace, as the listeners do.
const publicName = "@weir/listeners"

const (
	publishTimeout = 5 * time.Second
	maxPublished   = 64 << 20
)

// Publish answers every trusted process that connects with the list of listeners, until ctx is done. The function opens an
// abstract socket.
func (l *Listeners) Publish(ctx context.Context, listen func(name string) (*net.UnixListener, error)) error {
	ln, err := listen(publicName)
	if err != nil {
		return fmt.Errorf("cannot publish the listeners to other weir processes: %w", err)
	}
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	for {
		c, err := ln.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return ctx.Err()
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of descriptors
			continue
		}
		l.tell(c)
	}
}

// tell writes the listeners to a process, if it is trusted.
func (l *Listeners) tell(c *net.UnixConn) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(publishTimeout))
	if !trusted(c) {
		return
	}
	w := bufio.NewWriter(c)
	for _, i := range l.items() {
		fmt.Fprintln(w, i)
	}
	fmt.Fprintln(w, endOfList)
	w.Flush()
}

const endOfList = "end"

// trusted reports whether the other process runs as root or as this user.
func trusted(c *net.UnixConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return err == nil && credErr == nil && (cred.Uid == 0 || int(cred.Uid) == os.Geteuid())
}

// published returns the listeners of the weir process in this network namespace; none if there is no such process. Another user may
// have taken the name, and accept nothing.
func published() ([]publishedItem, error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: publicName, Net: "unix"})
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EAGAIN) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ask the running weir for its listeners: %w", err)
	}
	if !trusted(c) {
		c.Close()
		return nil, nil
	}
	return readPublished(c)
}

// readPublished parses the text that tell writes.
func readPublished(c *net.UnixConn) ([]publishedItem, error) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(publishTimeout))
	var items []publishedItem
	lines := bufio.NewScanner(io.LimitReader(c, maxPublished))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if lines.Text() == endOfList {
			return items, nil
		}
		items = append(items, publishedItem(lines.Text()))
	}
	return nil, errors.Join(errors.New("the running weir sent an incomplete list of its listeners"), lines.Err())
}

// publishedItem is a listener of another process.
type publishedItem string

// ID is the same as the listener's own.
func (p publishedItem) ID() backends.ID {
	id, _, _ := strings.Cut(string(p), " for ")
	return backends.ID(id)
}

func (p publishedItem) String() string { return string(p) }

// bind returns the address of the listener.
func (p publishedItem) bind() (at netip.AddrPort, ok bool) {
	f := strings.Fields(string(p))
	if len(f) < 3 {
		return at, false
	}
	at, err := netip.ParseAddrPort(f[2])
	return at, err == nil
}

// use returns the purpose of the listener's port.
func (p publishedItem) use() (use portUse, port uint16, ok bool) {
	f := strings.Fields(string(p))
	if len(f) < 5 {
		return use, 0, false
	}
	bind, err := netip.ParseAddrPort(f[2])
	parts := strings.Split(f[4], "/") // namespace/name[:port]/TCP/IPv4
	if err != nil || len(parts) != 4 {
		return use, 0, false
	}
	use.key.Service.Namespace = parts[0]
	use.key.Service.Name, use.key.Port, _ = strings.Cut(parts[1], ":")
	use.key.Protocol = dataplane.TCP
	if parts[2] == dataplane.UDP.String() {
		use.key.Protocol = dataplane.UDP
	}
	use.key.Family = dataplane.FamilyOf(bind.Addr())
	use.local = strings.Contains(string(p), " policy Local ")
	return use, bind.Port(), true
}
