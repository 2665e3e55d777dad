package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	mdnetlink "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"weir/backends/dataplane"
)

// Attributes of ctnetlink for filtering a dump, which the libraries do not name (linux/netfilter/nfnetlink_conntrack.h
// and net/netfilter/nf_conntrack.h). The kernel has had them since 5.8; an older one ignores them and dumps everything.
const (
	ctaFilter           = 25
	ctaFilterOrigFlags  = 1
	ctaFilterReplyFlags = 2
	filterBySource      = 1 << 0
	filterByProtocol    = 1 << 3
	filterBySourcePort  = 1 << 4
)

// kernel is the connection tracking table of the network namespace in which it was opened. A library's list of the
// table would hold all flows in memory, and a busy node has hundreds of thousands. This type reads them one by one.
type kernel struct {
	sockets map[int]*nl.SocketHandle
}

func openKernel() (table, error) {
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	timeout := unix.Timeval{Sec: 30}
	if err := errors.Join(s.SetSendTimeout(&timeout), s.SetReceiveTimeout(&timeout)); err != nil {
		s.Close()
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	return &kernel{map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: {Socket: s}}}, nil
}

func (k *kernel) close() {
	for _, s := range k.sockets {
		s.Close()
	}
}

func (k *kernel) request(f dataplane.Family, operation, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(netlink.ConntrackTable<<8|operation, flags)
	req.Sockets = k.sockets
	family := uint8(unix.AF_INET)
	if f == dataplane.IPv6 {
		family = unix.AF_INET6
	}
	req.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
	return req
}

func (k *kernel) dump(f dataplane.Family, p dataplane.Protocol, from netip.AddrPort, yield func(Flow, []byte)) error {
	req := k.request(f, nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP)
	proto := nl.NewRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_PROTO, nil)
	proto.AddRtAttr(nl.CTA_PROTO_NUM, nl.Uint8Attr(uint8(p)))
	filter := nl.NewRtAttr(unix.NLA_F_NESTED|ctaFilter, nil)
	if from.IsValid() {
		flags := uint32(filterByProtocol | filterBySourcePort)
		reply := nl.NewRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_REPLY, nil)
		if f == dataplane.IPv4 { // for IPv6 the kernel yields all flows but those
			flags |= filterBySource
			ip := nl.NewRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_IP, nil)
			ip.AddRtAttr(nl.CTA_IP_V4_SRC, from.Addr().AsSlice())
			reply.AddChild(ip)
		}
		proto.AddRtAttr(nl.CTA_PROTO_SRC_PORT, nl.BEUint16Attr(from.Port()))
		reply.AddChild(proto)
		filter.AddRtAttr(ctaFilterReplyFlags, nl.Uint32Attr(flags))
		req.AddData(reply)
	} else {
		orig := nl.NewRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_ORIG, nil)
		orig.AddChild(proto)
		filter.AddRtAttr(ctaFilterOrigFlags, nl.Uint32Attr(filterByProtocol))
		req.AddData(orig)
	}
	req.AddData(filter)

	var parseErr error
	err := req.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(msg []byte) bool {
		handle, flow, err := parse(msg)
		if err != nil {
			parseErr = err
			return false
		}
		yield(flow, handle)
		return true
	})
	return errors.Join(err, parseErr)
}

func (k *kernel) remove(f dataplane.Family, handle []byte) (bool, error) {
	req := k.request(f, nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK)
	req.AddRawData(handle)
	_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil, err
}

// seenReply, srcNAT and dstNAT are IPS_SEEN_REPLY, IPS_SRC_NAT and IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h.
const (
	seenReply = 1 << 1
	srcNAT    = 1 << 4
	dstNAT    = 1 << 5
)

// tcpClose is TCP_CONNTRACK_CLOSE of linux/netfilter/nf_conntrack_tcp.h, the state of a connection that was reset.
const tcpClose = 8

// parse parses a dumped flow. Its attributes are its handle. They include the flow's id, so that a later flow with the
// same addresses is not mistaken for it.
func parse(msg []byte) (handle []byte, flow Flow, err error) {
	if len(msg) < nl.SizeofNfgenmsg {
		return nil, Flow{}, fmt.Errorf("flow of %d bytes", len(msg))
	}
	handle = msg[nl.SizeofNfgenmsg:]
	ad, err := decoder(handle)
	if err != nil {
		return nil, Flow{}, fmt.Errorf("flow: %w", err)
	}
	var orig, reply tuple
	var status uint32
	var state uint8
	for ad.Next() {
		switch ad.Type() {
		case nl.CTA_STATUS:
			status = ad.Uint32()
		case nl.CTA_TUPLE_ORIG:
			ad.Nested(orig.decode)
		case nl.CTA_TUPLE_REPLY:
			ad.Nested(reply.decode)
		case nl.CTA_PROTOINFO:
			ad.Nested(func(ad *mdnetlink.AttributeDecoder) error { return decodeState(ad, &state) })
		}
	}
	if err := ad.Err(); err != nil {
		return nil, Flow{}, fmt.Errorf("flow: %w", err)
	}
	flow = Flow{
		Protocol: orig.protocol,
		Src:      orig.src,
		Dst:      netip.AddrPortFrom(orig.dst, orig.dstPort),
		ReplySrc: netip.AddrPortFrom(reply.src, reply.srcPort),
	}
	flow.Masqueraded, flow.Unanswered = status&srcNAT != 0, status&seenReply == 0
	flow.Closed = flow.Protocol == dataplane.TCP && state == tcpClose
	flow.ByIPVS = flow.Dst != flow.ReplySrc && status&dstNAT == 0
	return handle, flow, nil
}

// decodeState decodes the state of a TCP connection.
func decodeState(ad *mdnetlink.AttributeDecoder, state *uint8) error {
	for ad.Next() {
		if ad.Type() != nl.CTA_PROTOINFO_TCP {
			continue
		}
		ad.Nested(func(ad *mdnetlink.AttributeDecoder) error {
			for ad.Next() {
				if ad.Type() == nl.CTA_PROTOINFO_TCP_STATE {
					*state = ad.Uint8()
				}
			}
			return ad.Err()
		})
	}
	return ad.Err()
}

func decoder(b []byte) (*mdnetlink.AttributeDecoder, error) {
	ad, err := mdnetlink.NewAttributeDecoder(b)
	if err == nil {
		ad.ByteOrder = binary.BigEndian
	}
	return ad, err
}

// tuple is one direction of a flow.
type tuple struct {
	protocol         dataplane.Protocol
	src, dst         netip.Addr
	srcPort, dstPort uint16
}

func (t *tuple) decode(ad *mdnetlink.AttributeDecoder) error {
	for ad.Next() {
		switch ad.Type() {
		case nl.CTA_TUPLE_IP:
			ad.Nested(t.decodeAddrs)
		case nl.CTA_TUPLE_PROTO:
			ad.Nested(t.decodePorts)
		}
	}
	return ad.Err()
}

func (t *tuple) decodeAddrs(ad *mdnetlink.AttributeDecoder) error {
	for ad.Next() {
		a, _ := netip.AddrFromSlice(ad.Bytes())
		switch ad.Type() {
		case nl.CTA_IP_V4_SRC, nl.CTA_IP_V6_SRC:
			t.src = a
		case nl.CTA_IP_V4_DST, nl.CTA_IP_V6_DST:
			t.dst = a
		}
	}
	return ad.Err()
}

func (t *tuple) decodePorts(ad *mdnetlink.AttributeDecoder) error {
	for ad.Next() {
		switch ad.Type() {
		case nl.CTA_PROTO_NUM:
			t.protocol = dataplane.Protocol(ad.Uint8())
		case nl.CTA_PROTO_SRC_PORT:
			t.srcPort = ad.Uint16()
		case nl.CTA_PROTO_DST_PORT:
			t.dstPort = ad.Uint16()
		}
	}
	return ad.Err()
}
