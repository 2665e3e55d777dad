# Everything here works as root and, where user namespaces are allowed, without. Nothing on the host changes but for
# packages that are missing, which .ci/deps installs and names.

GO          ?= go
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME    ?= 5s

# Without this tag the library of kustomize can load plugins of Go, and the linker keeps all that a plugin might call: the
# program has 63 MB instead of 39, and 40 MB resident instead of 29. The second tag leaves out the traces of gRPC, whose
# templates have the linker keep all methods: 53 MB instead of 43.
TAGS := kustomize_disable_go_plugin_support,grpcnotrace

# The version that tests upgrade a node from. It is built before they run, in namespaces that reach no proxy of modules.
PREVIOUS := .cache/previous/weir

# Debian keeps iptables and nft where an ordinary user's PATH does not look.
export PATH := $(PATH):/usr/sbin:/sbin

# IPVS is tested in this kernel if it has it, else in a virtual machine.
IPVS = $(shell modprobe -qa ip_vs dummy ip_set xt_set 2>/dev/null; test -e /proc/net/ip_vs && echo 1)

.PHONY: all build build-arm release release-check release-test demo check test vet lint fuzz bench chaos cover deps testserver vm-test vm-chaos vm-bench vm-shell clean

all: build

build:
	$(GO) build -trimpath -tags $(TAGS) -o bin/weir ./cmd/weir

# A machine with 32 bits has other constants and calls. An emulator of its instructions runs what is built.
build-arm: deps
	GOARCH=arm GOARM=7 CGO_ENABLED=0 $(GO) build -tags $(TAGS) -o .cache/weir-arm ./cmd/weir
	qemu-arm .cache/weir-arm plan -f examples/quickstart --against empty | grep "1 Service: 1 to add"

# What is published of a commit: programs, packages, images, bills of materials and checksums, in bin/release. The same commit
# and the same Go make the same bytes anywhere; release-check builds again and compares. Without uncommitted changes.
REVISION ?= HEAD
release:
	$(GO) run -C .release . -tags $(TAGS) -revision $(REVISION)

# Installs, upgrades and purges the package in a copy of this system, and runs the image. Only root can.
release-test: deps
	WEIR_TEST_REQUIRE=1 $(GO) test -C .release -count=1 -timeout 10m ./...

release-check:
	$(GO) run -C .release . -tags $(TAGS) -revision $(REVISION) -check

# Shows weir at work, in network namespaces of its own.
demo: deps
	$(GO) run ./cmd/weir/internal/demo

# The loop of a person at work: static checks, and the tests that need no API server, container runtime or virtual machine,
# without the race detector; of those that run a whole program, one of each kind. Three to five minutes when the build cache is
# warm.
check: deps vet lint
	@.ci/stage "tests, the quick ones" $(GO) test -short -timeout 10m ./...

# Everything: static checks, all tests with the race detector, real packets included, and each fuzz target for a moment. The
# scenarios run a whole weir in each mode, and do so without the detector, in less than half of the time.
test:
	@echo "make test takes 30 to 45 minutes on two cores, the first time some minutes more; make check takes three to five"
	@.ci/stage "packages that are missing" $(MAKE) -s deps
	@.ci/stage "format and vet" $(MAKE) -s vet
	@.ci/stage "staticcheck" $(MAKE) -s lint
	@.ci/stage "API server for the tests" $(MAKE) -s testserver
	@.ci/stage "a program for 32 bits" $(MAKE) -s build-arm
	@.ci/stage "the version to upgrade from" .ci/previous $(PREVIOUS)
	@.ci/stage "tests, with the race detector" env WEIR_TEST_OLD_BINARY=$$(realpath -q $(PREVIOUS)) WEIR_TEST_REQUIRE=1 WEIR_TEST_REQUIRE_IPVS=$(IPVS) $(GO) test -race -timeout 50m -skip '^TestScenario$$' ./...
	@.ci/stage "scenarios" env WEIR_TEST_REQUIRE=1 WEIR_TEST_REQUIRE_IPVS=$(IPVS) CGO_ENABLED=0 $(GO) test -timeout 25m -run '^TestScenario$$' ./cmd/weir
	$(if $(IPVS),,@.ci/stage "virtual machine" $(MAKE) -s vm-test)
	@.ci/stage "fuzz targets, $(FUZZTIME) each" .ci/fuzz $(FUZZTIME)
	@.ci/stage "the demo" $(MAKE) -s demo
	@if [ "$$(id -u)" = 0 ]; then .ci/stage "the release, installed and upgraded" $(MAKE) -s release-test; else echo "the release is not tried: only root can install packages"; fi

vet:
	@unformatted=$$(gofmt -l .release backends cmd examples reconcile spec); test -z "$$unformatted" || { echo "gofmt -w $$unformatted"; exit 1; }
	$(GO) vet ./...
	$(GO) vet -C .release ./...

lint:
	$(GO) run $(STATICCHECK) ./...
	cd .release && $(GO) run $(STATICCHECK) ./...

# Other random sequences than those of make test, and each fuzz target for longer: make fuzz FUZZTIME=10m
fuzz: FUZZTIME = 2m
fuzz: deps testserver
	WEIR_TEST_SEED=$$(date +%s) .ci/fuzz $(FUZZTIME)

# What attacks and accidents do, in at most ten minutes once the tests are built: kills under churn in each mode, for CHAOS
# each, a full disk, no descriptors, a log that stalls, a hostile API server, thieves of the lock, and foreign owners of
# tables. testdata/ATTACKS.md has the table. No connection is lost in the modes of the kernel, and /healthz never says that
# all is well when it is not.
CHAOS ?= 60s
chaos: deps
	WEIR_CHAOS=$(CHAOS) $(GO) test -count=1 -v -timeout 4m ./cmd/weir -run 'TestKilledAtAnyMoment|TestFullDisk|TestBrokenInput|TestRunHalfRequests|TestRunTableOwned|TestRunLogReaderGone|TestLogStalls|TestLogFails|TestLogClose|TestLock|TestStatusSocketRemoved|TestUserspaceDoesNotRecurse'
	$(GO) test -count=1 -timeout 2m ./spec/apisource ./reconcile/tell/health -run 'TestRedirects|TestAnswers|TestLarge|TestEmptyList|TestAddressesOf|TestRewritten|TestIncomplete|TestSilence|TestHalfRequests|TestTotal|TestNoDescriptors'
	$(if $(IPVS),,$(MAKE) vm-chaos)

# The whole program first, then every package.
bench: deps testserver
	@.ci/deps bench
	@.ci/testserver bench
	WEIR_TEST_REQUIRE=1 $(GO) test -run '^$$' -bench 'Node|API|Proxy|Names|Pods|Liveness' -benchtime 1x -timeout 240m ./cmd/weir
	WEIR_TEST_REQUIRE=1 $(GO) test -run '^$$' -bench . -benchmem -timeout 60m ./backends/... ./reconcile/... ./spec/...
	$(if $(IPVS),,$(MAKE) vm-bench)

cover: deps testserver
	@mkdir -p .cache
	WEIR_TEST_REQUIRE=1 $(GO) test -coverprofile .cache/cover.out -coverpkg ./... ./...
	$(GO) tool cover -func .cache/cover.out | tail -1

# The API server that tests talk to: one that is installed, or one built from source, which takes minutes the first time.
testserver:
	@.ci/testserver

# The tests of IPVS, and packets in the other modes, on Debian's kernel in a virtual machine. Of the scenarios of iptables and
# nftables mode, which run on the machine's own kernel too, each sixth is taken: all are with make vm-test EVERY=1.
EVERY ?= 6
vm-test: deps bin/vmexec
	CGO_ENABLED=0 $(GO) test -count=1 -timeout 30m -exec "$(CURDIR)/bin/vmexec -limit 32m" ./backends/ipvs
	CGO_ENABLED=0 $(GO) test -count=1 -timeout 45m -exec "$(CURDIR)/bin/vmexec -limit 47m" ./cmd/weir -run 'TestDoctor|TestIPVS|TestPain09_SwitchesAroundIPVS|TestPlansNeverLie/^ipvs|TestStatusTraffic/ipvs|TestLiveness/^ipvs$$|TestKubeDNS/^ipvs$$|TestKubeDNSByDefault/^ipvs$$|TestClusterDNSOfKubelet/^ipvs$$|TestScenario/^ipvs$$'
	.ci/previous $(PREVIOUS)
	test ! -e $(PREVIOUS) || WEIR_TEST_OLD_BINARY=../../$(PREVIOUS) CGO_ENABLED=0 $(GO) test -count=1 -timeout 10m -exec "$(CURDIR)/bin/vmexec -limit 12m -add $(PREVIOUS)" ./cmd/weir -run 'TestUpgradeLosesNothing/^ipvs$$'
	CGO_ENABLED=0 $(GO) test -count=1 -timeout 10m -exec "$(CURDIR)/bin/vmexec -limit 12m" ./cmd/weir -run TestIPVSComesWhereItWasMissing
	WEIR_TEST_EVERY=$(EVERY) CGO_ENABLED=0 $(GO) test -count=1 -timeout 25m -exec "$(CURDIR)/bin/vmexec -limit 27m" ./cmd/weir -run 'TestScenario/^(iptables-nft|nftables)$$'

# The kills under churn in mode ipvs, a few: the clock of an emulated processor is not that of the machine.
vm-chaos: deps bin/vmexec
	CGO_ENABLED=0 $(GO) test -count=1 -v -timeout 30m -exec "$(CURDIR)/bin/vmexec -limit 7m" ./cmd/weir -run 'TestKilledAtAnyMoment/^ipvs$$'

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
