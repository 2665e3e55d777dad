# Everything here works as root and, where user namespaces are allowed, without. Nothing on the host changes but for
# packages that are missing, which .ci/deps installs and names.

GO          ?= go
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME    ?= 10s

# Debian keeps iptables and nft where an ordinary user's PATH does not look.
export PATH := $(PATH):/usr/sbin:/sbin

# IPVS is tested in this kernel if it has it, else in a virtual machine.
IPVS = $(shell modprobe -qa ip_vs dummy ip_set xt_set 2>/dev/null; test -e /proc/net/ip_vs && echo 1)

.PHONY: all build demo test vet lint fuzz bench cover deps testserver vm-test vm-bench vm-shell clean

all: build

build:
	$(GO) build -trimpath -o bin/weir ./cmd/weir

# Shows weir at work, in network namespaces of its own.
demo: deps
	$(GO) run ./cmd/weir/internal/demo

# Everything: static checks, all tests with the race detector, real packets included, and each fuzz target for a moment.
test: deps vet lint testserver
	WEIR_TEST_REQUIRE=1 WEIR_TEST_REQUIRE_IPVS=$(IPVS) $(GO) test -race -timeout 30m ./...
	$(if $(IPVS),,$(MAKE) vm-test)
	.ci/fuzz $(FUZZTIME)

vet:
	@unformatted=$$(gofmt -l backends cmd examples reconcile spec); test -z "$$unformatted" || { echo "gofmt -w $$unformatted"; exit 1; }
	$(GO) vet ./...

lint:
	$(GO) run $(STATICCHECK) ./...

# Other random sequences than those of make test, and each fuzz target for longer: make fuzz FUZZTIME=10m
fuzz: FUZZTIME = 2m
fuzz: deps testserver
	WEIR_TEST_SEED=$$(date +%s) .ci/fuzz $(FUZZTIME)

# The whole program first, then every package.
bench: deps testserver
	@.ci/deps bench
	WEIR_TEST_REQUIRE=1 $(GO) test -run '^$$' -bench 'Node|API|Proxy' -benchtime 1x -timeout 60m ./cmd/weir
	WEIR_TEST_REQUIRE=1 $(GO) test -run '^$$' -bench . -benchmem -timeout 60m ./backends/... ./reconcile/... ./spec/...
	$(if $(IPVS),,$(MAKE) vm-bench)

cover: deps testserver
	@mkdir -p .cache
	WEIR_TEST_REQUIRE=1 $(GO) test -coverprofile .cache/cover.out -coverpkg ./... ./...
	$(GO) tool cover -func .cache/cover.out | tail -1

# The API server that tests talk to: one that is installed, or one built from source, which takes minutes the first time.
testserver:
	@.ci/testserver

# The tests of IPVS, and packets in the other modes, on Debian's kernel in a virtual machine.
vm-test: deps bin/vmexec
	CGO_ENABLED=0 $(GO) test -count=1 -timeout 30m -exec "$(CURDIR)/bin/vmexec -limit 32m" ./backends/ipvs
	CGO_ENABLED=0 $(GO) test -count=1 -timeout 30m -exec "$(CURDIR)/bin/vmexec -limit 32m" ./cmd/weir -run 'TestDoctor|TestIPVS|TestPain09_SwitchesAroundIPVS|TestPlansNeverLie/^ipvs|TestStatusTraffic/ipvs|TestScenario/^(ipvs|iptables-nft)$$'
	CGO_ENABLED=0 $(GO) test -count=1 -timeout 10m -exec "$(CURDIR)/bin/vmexec -limit 12m" ./cmd/weir -run TestIPVSComesWhereItWasMissing
	CGO_ENABLED=0 $(GO) test -count=1 -timeout 15m -exec "$(CURDIR)/bin/vmexec -limit 17m" ./cmd/weir -run 'TestScenario/^nftables$$'

# What IPVS costs, in that machine, in about five minutes: figures of an emulated processor mean something as ratios only.
vm-bench: deps bin/vmexec
	CGO_ENABLED=0 $(GO) test -run '^$$' -bench Program -benchtime 2x -timeout 30m -exec "$(CURDIR)/bin/vmexec -limit 32m" ./backends/ipvs
	CGO_ENABLED=0 $(GO) test -run '^$$' -bench OneChange -benchtime 500x -timeout 30m -exec "$(CURDIR)/bin/vmexec -limit 32m" ./backends/ipvs

# A shell in that machine, with weir in it.
vm-shell: deps bin/vmexec
	bin/vmexec -shell

.PHONY: bin/vmexec
bin/vmexec:
	@$(GO) build -o $@ ./backends/netlab/vmexec

deps:
	@.ci/deps

clean:
	rm -rf bin .cache
