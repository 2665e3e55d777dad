# Everything here works as root and, where user namespaces are allowed, without. Nothing on the host changes but for
# packages that are missing, which .ci/deps installs and names.

GO          ?= go
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME    ?= 10s

# Debian keeps iptables and nft where an ordinary user's PATH does not look.
export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: all build demo test vet lint fuzz bench cover deps clean

all: build

build:
	$(GO) build -trimpath -o bin/weir ./cmd/weir

# Shows weir at work, in network namespaces of its own.
demo: deps
	$(GO) run ./cmd/weir/internal/demo

# Everything: static checks, all tests with the race detector, real packets included, and each fuzz target for a moment.
test: deps vet lint
	WEIR_TEST_REQUIRE=1 $(GO) test -race -timeout 30m ./...
	.ci/fuzz $(FUZZTIME)

vet:
	@unformatted=$$(gofmt -l backends cmd reconcile spec); test -z "$$unformatted" || { echo "gofmt -w $$unformatted"; exit 1; }
	$(GO) vet ./...

lint:
	$(GO) run $(STATICCHECK) ./...

# Each fuzz target for longer: make fuzz FUZZTIME=10m
fuzz: FUZZTIME = 2m
fuzz:
	.ci/fuzz $(FUZZTIME)

bench: deps
	WEIR_TEST_REQUIRE=1 $(GO) test -run '^$$' -bench . -benchmem -timeout 60m ./...

cover: deps
	@mkdir -p .cache
	WEIR_TEST_REQUIRE=1 $(GO) test -coverprofile .cache/cover.out -coverpkg ./... ./...
	$(GO) tool cover -func .cache/cover.out | tail -1

deps:
	@.ci/deps

clean:
	rm -rf bin .cache
