package handover

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// testEnv has the test binary be a successor, and says what to expect.
const testEnv = "WEIR_TEST_HANDOVER"

func TestMain(m *testing.M) {
	if os.Getenv(testEnv) != "" {
		os.Exit(beSuccessor())
	}
	os.Exit(m.Run())
}

// beSuccessor takes over a listener, and answers one client.
func beSuccessor() int {
	p, err := Inherit()
	if err != nil || p == nil || os.Getenv(env) != "" {
		fmt.Fprintln(os.Stderr, "inherit:", p, err, os.Getenv(env))
		return 3
	}
	flags, err := unix.FcntlInt(uintptr(descriptorOf(p.link)), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		fmt.Fprintln(os.Stderr, "the link is for further children too:", err)
		return 4
	}
	s, given := NewSockets(), 0
	s.Wait()
	var notes []string
	err = p.Take(time.Minute, func(name string, fd int) error {
		given++
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			return fmt.Errorf("%s is for further children too", name)
		}
		if strings.HasPrefix(name, "extra ") {
			return unix.Close(fd)
		}
		return s.Inherit(name, fd)
	}, func(note string) { notes = append(notes, note) })
	if err != nil || given != 301 || len(notes) != 5000 || notes[4999] != "note 4999" {
		fmt.Fprintln(os.Stderr, "take:", err, given, len(notes))
		return 5
	}
	ln, err := s.Listen("tcp", os.Getenv(testEnv))
	if err != nil {
		fmt.Fprintln(os.Stderr, "listen:", err)
		return 6
	}
	answered := make(chan error, 1)
	go func() {
		conn, err := ln.Accept()
		if err == nil {
			_, err = conn.Write([]byte("successor\n"))
			conn.Close()
		}
		answered <- err
	}()
	if err := p.Ready(time.Minute); err != nil {
		return 7
	}
	select {
	case <-answered: // it may not serve yet
		return 8
	default:
	}
	s.Serve()
	p.Serving(time.Minute)
	if err := <-answered; err != nil {
		return 9
	}
	return 0
}

func descriptorOf(l *link) (fd int) {
	raw, err := l.conn.SyscallConn()
	if err != nil {
		return -1
	}
	raw.Control(func(n uintptr) { fd = int(n) })
	return fd
}

// TestHandover hands over a listener with a client in its queue, hundreds of other descriptors, and notes.
func TestHandover(t *testing.T) {
	s := NewSockets()
	ln, err := s.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := ln.Addr().String()
	ln.Close()
	if ln, err = s.Listen("tcp", address); err != nil {
		t.Fatal(err)
	}
	t.Setenv(testEnv, address)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	next, err := Start(exe, []string{exe})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Kill()
	if err := next.Able(time.Minute); err != nil {
		t.Fatal(err)
	}
	client, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var notes []string
	for i := range 5000 {
		notes = append(notes, fmt.Sprint("note ", i))
	}
	if err := s.With(func(all []Socket) error {
		if len(all) != 1 { // the other one was closed
			t.Errorf("handed over: %v", all)
		}
		for i := range 300 {
			all = append(all, Socket{fmt.Sprint("extra ", i), all[0].FD})
		}
		return next.Give(time.Minute, all, notes)
	}); err != nil {
		t.Fatal(err)
	}
	if err := next.Take(time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := next.Serve(time.Minute); err != nil {
		t.Fatal(err)
	}
	next.Release()
	ln.Close()
	client.SetDeadline(time.Now().Add(time.Minute))
	buf := make([]byte, 20)
	if n, err := client.Read(buf); string(buf[:n]) != "successor\n" {
		t.Errorf("the client gets %q, %v", buf[:n], err)
	}
	<-next.Ended()
	if next.exit != nil {
		t.Error(next.exit)
	}
}

// TestInheritBelievesOnlyAParent gives a process descriptors that its parent did not make for it.
func TestInheritBelievesOnlyAParent(t *testing.T) {
	if p, err := Inherit(); p != nil || err != nil {
		t.Errorf("without the variable: %v, %v", p, err)
	}
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	own, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(append(own[:], stream[:]...))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	tcp := -1
	raw, _ := ln.(*net.TCPListener).SyscallConn()
	raw.Control(func(fd uintptr) { tcp = int(fd) })
	for name, value := range map[string]string{
		"nothing": "", "words": "three", "more than a number": "3x", "a sign": "+3", "standard input": "0", "negative": "-1", "closed": "100000",
		"a file": fmt.Sprint(file.Fd()), "this process's own": fmt.Sprint(own[0]), "a stream": fmt.Sprint(stream[0]), "TCP": fmt.Sprint(tcp),
	} {
		t.Setenv(env, value)
		p, err := Inherit()
		if p != nil || err == nil {
			t.Errorf("%s: believed", name)
		}
		if _, still := os.LookupEnv(env); still {
			t.Errorf("%s: the variable is for further children too", name)
		}
	}
	for _, fd := range []int{own[0], stream[0], tcp, int(file.Fd())} {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			t.Errorf("descriptor %d was closed, which may be another's: %v", fd, err)
		}
	}
}

// TestSocketsRefusesWhatIsAnother gives descriptors with the names of others.
func TestSocketsRefusesWhatIsAnother(t *testing.T) {
	dup := func(r raw, err error) int {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		conn, err := r.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		again := -1
		conn.Control(func(fd uintptr) { again, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
		if err != nil {
			t.Fatal(err)
		}
		return again
	}
	tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	udp, err2 := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	abstract, err3 := net.ListenUnix("unix", &net.UnixAddr{Name: "@weir-test-" + fmt.Sprint(os.Getpid()), Net: "unix"})
	file, err4 := os.Create(filepath.Join(t.TempDir(), "file"))
	if err := errors.Join(err, err2, err3, err4); err != nil {
		t.Fatal(err)
	}
	client, err := net.Dial("tcp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for name, of := range map[string]raw{
		"tcp 127.0.0.1:1":                    tcp,
		"tcp 127.0.0.2:0":                    tcp,
		"udp " + tcp.Addr().String():         tcp,
		"file lock":                          tcp,
		"unix " + abstract.Addr().String():   tcp,
		"sctp " + tcp.Addr().String():        tcp,
		"":                                   tcp,
		"tcp " + udp.LocalAddr().String():    udp,
		"udp 127.0.0.1:1":                    udp,
		"unix @other":                        abstract,
		"tcp 127.0.0.1:2":                    abstract,
		"tcp 127.0.0.1:3":                    file,
		"tcp " + client.LocalAddr().String(): client.(*net.TCPConn), // it does not listen
	} {
		s := NewSockets()
		fd := dup(of, nil)
		if err := s.Inherit(name, fd); err == nil {
			t.Errorf("%q was believed of %T", name, of)
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
			t.Errorf("%q: the descriptor stays open", name)
		}
	}
	for name, of := range map[string]raw{
		"tcp " + tcp.Addr().String(): tcp, "udp " + udp.LocalAddr().String(): udp, "unix " + abstract.Addr().String(): abstract, "file lock": file,
	} {
		s := NewSockets()
		if err := s.Inherit(name, dup(of, nil)); err != nil {
			t.Errorf("%q: %v", name, err)
		}
		if err := s.Inherit(name, dup(of, nil)); err == nil {
			t.Errorf("%q was taken twice", name)
		}
	}
}
