package sandbox

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// A command without network gets a network namespace in which there is a loopback and nothing else: fakeroot and other
// programs speak with themselves by it. The first process opens the proxy's listener there and hands it to the server,
// which thus serves a network that it is not in.

// network sets up the command's own network, if it is to have one.
func (o order) network() error {
	if !o.Spec.DenyNetwork {
		return nil
	}
	if err := loopback(); err != nil {
		return fmt.Errorf("setting up the loopback: %w", err)
	}
	if !o.Proxy {
		return nil
	}
	if err := handOver(); err != nil {
		return fmt.Errorf("opening the proxy's address: %w", err)
	}
	return nil
}

func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

func handOver() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	at := netip.MustParseAddrPort(ProxyAddress)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}); err != nil {
		return err
	}
	if err := unix.Listen(fd, 128); err != nil {
		return err
	}
	if err := unix.Sendmsg(listenerFile, []byte{0}, unix.UnixRights(fd), nil, 0); err != nil {
		return err
	}
	return unix.Close(listenerFile)
}

// door is the server's way into the network of a command.
type door struct {
	ours      *net.UnixConn // nil if there is no door
	theirs    *os.File      // the first process's end
	listeners chan net.Listener
	served    chan struct{}
}

// openDoor makes the sockets by which the listener comes.
func (j *Job) openDoor() (*door, error) {
	d := &door{}
	if j.spec.Proxy == nil {
		return d, nil
	}
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	d.theirs = os.NewFile(uintptr(ends[1]), "door")
	ours := os.NewFile(uintptr(ends[0]), "door")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		d.theirs.Close()
		return nil, err
	}
	d.ours = conn.(*net.UnixConn)
	return d, nil
}

// serve lets proxy serve the listener once it comes. The first process has been started.
func (d *door) serve(proxy func(net.Listener)) {
	if d.ours == nil {
		return
	}
	d.theirs.Close() // so that its end is seen
	d.listeners, d.served = make(chan net.Listener, 1), make(chan struct{})
	go func() {
		defer close(d.served)
		l, err := d.receive()
		if err == nil { // else the first process says what is wrong
			d.listeners <- l
		}
		close(d.listeners)
		if err == nil {
			proxy(l)
		}
	}()
}

// close ends what serve began.
func (d *door) close() {
	if d.ours == nil {
		return
	}
	d.theirs.Close()
	d.ours.Close()
	if d.served == nil {
		return
	}
	for l := range d.listeners {
		l.Close()
	}
	<-d.served
}

// receive waits for the listener, or for the end of the first process.
func (d *door) receive() (net.Listener, error) {
	rights := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := d.ours.ReadMsgUnix(make([]byte, 1), rights)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(rights[:n])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("no listener came: %w", err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("no listener came: %w", err)
	}
	file := os.NewFile(uintptr(fds[0]), "listener")
	defer file.Close()
	return net.FileListener(file)
}
