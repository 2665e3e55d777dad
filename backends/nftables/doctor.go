package nftables

import (
	"context"

	nft "github.com/google/nftables"

	"weir/backends/doctor"
)

// modules are the modules that the rules need. The kernel loads them when a rule names them.
var modules = []string{"nf_tables", "nf_nat", "nft_chain_nat", "nft_nat", "nft_masq", "nft_ct", "nft_numgen", "nft_fib", "nft_fib_ipv4", "nft_fib_ipv6", "nft_reject"}

// Doctor checks the requirements of the mode.
func Doctor(ctx context.Context) []doctor.Check {
	checks := []doctor.Check{doctor.NetAdmin()}
	works := doctor.Check{Name: "nf_tables", State: doctor.OK, Detail: "the kernel answers"}
	if err := Probe(ctx); err != nil {
		works.State, works.Detail, works.Mend = doctor.Missing, err.Error(), "modprobe nf_tables"
	}
	expressions := doctor.Modules{}.Check("expressions", modules...)
	if expressions.State == doctor.Advice && works.State == doctor.OK {
		expressions.State = doctor.OK // a kernel without modules has them built in, but does not say which
	}
	checks = append(checks, works, expressions)
	if works.State == doctor.OK {
		checks = append(checks, doctor.Labels(CanLabel(ctx)))
	}
	return append(append(checks, checkOwners(ctx)...), checkKubeProxy())
}

// checkKubeProxy checks whether a kube-proxy in its nftables mode has programmed this node.
func checkKubeProxy() doctor.Check {
	found := map[string]bool{}
	if conn, err := nft.New(); err == nil {
		tables, _ := conn.ListTables()
		for _, t := range tables {
			if t.Name == "kube-proxy" {
				found[map[nft.TableFamily]string{nft.TableFamilyIPv4: "ip ", nft.TableFamilyIPv6: "ip6 "}[t.Family]+t.Name] = true
			}
		}
	}
	return doctor.KubeProxy("tables of it", found)
}
