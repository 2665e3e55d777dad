package nftables

import (
	"context"
	"errors"

	"weir/backends/dataplane"
	"weir/backends/nfnl"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const labelBytes = 16

// label is weir's connection label as the kernel has it.
func label() []byte {
	bits := make([]byte, labelBytes)
	bits[dataplane.ConnectionLabel/8] = 1 << (dataplane.ConnectionLabel % 8)
	return bits
}

// setLabel labels the connection.
func setLabel() part {
	return part{"ct label set " + dataplane.ConnectionLabelText, []expr.Any{
		&expr.Immediate{Register: reg(0), Data: label()},
		&expr.Ct{Key: expr.CtKeyLABELS, Register: reg(0), SourceRegister: true},
	}}
}

// labelled matches the packets of a connection that has the label.
func labelled() part {
	return part{"ct label " + dataplane.ConnectionLabelText, []expr.Any{
		&expr.Ct{Key: expr.CtKeyLABELS, Register: reg(0)},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: labelBytes, Mask: label(), Xor: make([]byte, labelBytes)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg(0), Data: make([]byte, labelBytes)},
	}}
}

// CanLabel reports whether this kernel has connection labels (CONFIG_NF_CONNTRACK_LABELS).
func CanLabel(ctx context.Context) bool { return accepts(ctx, newRule("", labelled(), setLabel())) }

// accepts reports whether the kernel takes a rule. It tries a transaction that cannot succeed, so that nothing changes.
func accepts(ctx context.Context, r rule) bool {
	c, err := nfnl.Netlink{}.Dial()
	if err != nil {
		return true // the first use of the Backend says what is wrong
	}
	defer func() { _ = c.Close() }()
	const chain = "probe"
	encoded, err := r.encode(dataplane.IPv4, chain)
	if err != nil {
		return false
	}
	t := nfnl.Table{Family: unix.NFPROTO_IPV4, Name: backendTable + "-probe"}
	err = c.Commit(ctx, []nfnl.Message{
		nfnl.NewTable(t, nil), nfnl.NewChain(t, nfnl.Chain{Name: chain}), nfnl.AppendRule(t, encoded),
		nfnl.DeleteChain(t, "absent"),
	})
	const ruleIndex = 2
	refused := (*nfnl.BatchError)(nil)
	if errors.As(err, &refused) {
		for _, f := range refused.Failures {
			if f.Index == ruleIndex {
				return false
			}
		}
	}
	return true
}
