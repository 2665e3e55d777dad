package nftables

import (
	"strings"
	"testing"

	"weir/backends/netlab"

	"github.com/google/nftables/expr"
)

// TestWithoutLabels expects rules that ask for a translation where the kernel has no labels for connections.
func TestWithoutLabels(t *testing.T) {
	text := func(options ...Option) string {
		var all strings.Builder
		b := New(testConfig(), options...)
		for _, i := range b.Base() {
			all.WriteString(i.String() + "\n")
		}
		for _, c := range b.shapeChains(both[0], shape{addrScope, kindExternal, 2, 0, 0}).items {
			all.WriteString(c.String() + "\n")
		}
		return all.String()
	}
	const marked = "meta mark & 0x00004000 != 0 "
	with, without := text(), text(WithoutLabels())
	if !strings.Contains(with, marked+"ct label 119 goto masquerading") || !strings.Contains(with, "ct label set 119") {
		t.Errorf("with labels:\n%s", with)
	}
	if !strings.Contains(without, marked+"ct status dnat goto masquerading") || strings.Contains(without, "ct label") {
		t.Errorf("without labels:\n%s", without)
	}
}

// TestCanLabel asks the kernel, which is unchanged after that.
func TestCanLabel(t *testing.T) {
	needNFT(t)
	node := netlab.New(t, netlab.Topology{}).Node()
	if err := node.Do(func() error {
		if !CanLabel(t.Context()) {
			t.Error("this kernel has no connection labels, or the question is wrong")
		}
		if accepts(t.Context(), newRule("", part{exprs: ct(expr.CtKey(200)).load(reg(0))})) {
			t.Error("the kernel takes a key that there is not")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if out, err := node.Exec(t.Context(), "nft", "list", "ruleset"); err != nil || strings.Contains(out, "probe") {
		t.Errorf("%v %s", err, out)
	}
}
