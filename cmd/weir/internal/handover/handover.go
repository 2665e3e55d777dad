// Package handover replaces a running program by its successor without closing its sockets.
//
// The running program starts its successor as a child, with one end of a socket pair, and the two take these steps:
//
//	running program                      successor
//	Start                                Inherit
//	Able             <- able             has read its input, and has changed nothing
//	stops its work
//	Give             -> sockets
//	Take             <- ready            does the work, but serves no client of the sockets
//	stops to serve
//	Serve            <- serving          serves
//	Release                              Released
//
// Until Serve has returned, the running program can go on as if nothing had been: it kills the successor, and no descriptor
// was closed. A successor whose predecessor ends is on its own, with what it was given.
//
// The descriptors are those that are open when the running program has stopped, not those that were open when it started its
// successor, since that may take a minute to read its input. This, and the way back, is why the package exists: tableflip
// passes descriptors at the start, and its parent cannot go on once the child is ready.
//
// The key types are Successor, Predecessor and Sockets. Only cmd/weir may import the package.
package handover

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// env names the descriptor of the successor's end.
const env = "WEIR_HANDOVER"

// protocol is the version of the messages. Two programs that do not have the same one cannot hand over.
const protocol = "1"

// The messages. Each is one packet: a letter, and text.
const (
	msgAble    = 'a' // with the protocol
	msgReady   = 'r'
	msgServing = 's'
	msgTrouble = 'f' // with the reason

	msgSockets = 'd' // with the names of its descriptors, one a line
	msgNotes   = 'n' // with lines for the successor
	msgTake    = 't'
	msgServe   = 'v'
)

const (
	// maxDescriptors is how many a message has. The kernel allows 253, and counts those that are not received yet against the
	// limit of open files.
	maxDescriptors = 64
	// maxText bounds the text of a message, in bytes.
	maxText = 64 << 10
)

// link is an end of the socket pair.
type link struct {
	conn     *net.UnixConn
	deadline time.Time
}

// limit bounds what follows, until the next call.
func (l *link) limit(timeout time.Duration) {
	l.deadline = time.Now().Add(timeout)
	l.conn.SetDeadline(l.deadline)
}

// pair returns both ends. The second one is for a child.
func pair() (*link, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	mine, theirs := os.NewFile(uintptr(fds[0]), "handover"), os.NewFile(uintptr(fds[1]), "handover")
	l, err := newLink(mine)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return l, theirs, nil
}

// newLink closes the file.
func newLink(f *os.File) (*link, error) {
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, errors.New("it is no Unix socket")
	}
	return &link{conn: unixConn}, nil
}

// send sends a message with descriptors, which stay open here.
func (l *link) send(kind byte, text string, fds ...int) error {
	packet := append([]byte{kind}, text...)
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	for {
		_, _, err := l.conn.WriteMsgUnix(packet, rights, nil)
		if !errors.Is(err, unix.ETOOMANYREFS) || time.Now().After(l.deadline) {
			return err
		}
		time.Sleep(time.Millisecond) // until the other end has received some
	}
}

// receive returns the next message, or io.EOF if the other end is closed.
func (l *link) receive() (kind byte, text string, fds []int, err error) {
	packet, rights := make([]byte, maxText+1), make([]byte, unix.CmsgSpace(4*maxDescriptors))
	n, nRights, flags, _, err := l.conn.ReadMsgUnix(packet, rights)
	if err != nil {
		return 0, "", nil, err
	}
	messages, err := unix.ParseSocketControlMessage(rights[:nRights])
	for i := range messages {
		if some, err := unix.ParseUnixRights(&messages[i]); err == nil {
			fds = append(fds, some...)
		}
	}
	switch {
	case err != nil:
	case n == 0:
		err = io.EOF
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		err = errors.New("a message was cut off: there may be too few descriptors (LimitNOFILE)")
	}
	if err != nil {
		closeAll(fds)
		return 0, "", nil, err
	}
	return packet[0], string(packet[1:n]), fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// gone reports whether the error says that the other end is closed.
func gone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}

// peer returns the process that made the pair.
func (l *link) peer() (*unix.Ucred, error) {
	raw, err := l.conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) {
		if kind, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_SEQPACKET {
			failed = errors.Join(err, errors.New("it is no socket of packets"))
			return
		}
		cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	return cred, errors.Join(err, failed)
}

// Predecessor is the program that this one is about to replace.
type Predecessor struct {
	link *link
	// PID is its process.
	PID int
}

// Inherit returns the program that started this one in order to be replaced, or nil if there is none. It must be called before
// this process starts another one, and only once. The variable in the environment is believed only if it names a socket that
// this process's parent made, and the parent may do what this process may.
func Inherit() (*Predecessor, error) {
	text, given := os.LookupEnv(env)
	if !given {
		return nil, nil
	}
	if err := os.Unsetenv(env); err != nil {
		return nil, err
	}
	var fd int
	if _, err := fmt.Sscanf(text, "%d", &fd); err != nil || fd <= 2 || fmt.Sprint(fd) != text {
		return nil, fmt.Errorf("%s=%q names no descriptor", env, text)
	}
	// Any descriptor may have the number, even one that this process uses already.
	again, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("%s=%s: %w", env, text, err)
	}
	p, err := predecessor(again)
	if err != nil {
		return nil, fmt.Errorf("%s=%s: %w", env, text, err)
	}
	unix.Close(fd)
	return p, nil
}

// predecessor closes the descriptor if it returns an error.
func predecessor(fd int) (*Predecessor, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	l, err := newLink(os.NewFile(uintptr(fd), "handover"))
	if err != nil {
		return nil, err
	}
	cred, err := l.peer()
	switch {
	case err != nil:
	case int(cred.Pid) != os.Getppid():
		err = fmt.Errorf("process %d made it, and not the parent of this one, %d", cred.Pid, os.Getppid())
	case cred.Uid != 0 && int(cred.Uid) != os.Geteuid():
		err = fmt.Errorf("user %d made it", cred.Uid)
	}
	if err != nil {
		l.conn.Close()
		return nil, err
	}
	return &Predecessor{l, int(cred.Pid)}, nil
}

// ErrGone means that the predecessor has ended, so that this process is on its own.
var ErrGone = errors.New("the weir that was to be replaced has ended")

func orGone(err error) error {
	if err != nil && gone(err) {
		return ErrGone
	}
	return err
}

// Trouble tells why this process is not ready yet, or will not be.
func (p *Predecessor) Trouble(reason string) {
	// If it cannot be told, the predecessor says that this process is not ready in time.
	_ = p.link.send(msgTrouble, reason[:min(len(reason), 4<<10)])
}

// Take says that this process is able to take over, and waits until it may. give is called for each descriptor, which then
// belongs to it, and note for each note.
func (p *Predecessor) Take(timeout time.Duration, give func(name string, fd int) error, note func(string)) error {
	p.link.limit(timeout)
	if err := p.link.send(msgAble, protocol); err != nil {
		return orGone(err)
	}
	for {
		kind, text, fds, err := p.link.receive()
		switch {
		case err != nil:
			return orGone(err)
		case kind == msgTake:
			return nil
		case kind == msgNotes:
			for line := range strings.Lines(text) {
				note(strings.TrimSuffix(line, "\n"))
			}
		case kind == msgSockets:
			names := strings.Split(text, "\n")
			if len(names) != len(fds) {
				closeAll(fds)
				return fmt.Errorf("%d descriptors came with %d names", len(fds), len(names))
			}
			for i, name := range names {
				if err := give(name, fds[i]); err != nil {
					closeAll(fds[i+1:])
					return err
				}
			}
		}
	}
}

// Close ends the wait of all other methods.
func (p *Predecessor) Close() { p.link.conn.Close() }

// Ready says that this process does the work, and waits until it shall serve. ErrGone means that it shall too.
func (p *Predecessor) Ready(timeout time.Duration) error {
	p.link.limit(timeout)
	if err := p.link.send(msgReady, ""); err != nil {
		return orGone(err)
	}
	for {
		kind, _, fds, err := p.link.receive()
		closeAll(fds)
		if err != nil || kind == msgServe {
			return orGone(err)
		}
	}
}

// Serving says that this process serves, and waits until it is the only one in charge, or for the timeout.
func (p *Predecessor) Serving(timeout time.Duration) {
	p.link.limit(timeout)
	if p.link.send(msgServing, "") == nil {
		_, _, fds, _ := p.link.receive() // nothing more comes but the end
		closeAll(fds)
	}
	p.link.conn.Close()
}
