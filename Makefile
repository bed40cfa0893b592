# Thin over cargo: every target is what its line in `make help` says.

CNI_BIN_DIR ?= /opt/cni/bin
SBIN_DIR    ?= /usr/local/sbin
UNIT_DIR    ?= /usr/local/lib/systemd/system
DESTDIR     ?=

# Folder = package = binary.
PLUGINS := $(notdir $(wildcard plugins/* ipam/*))
# With musl where Rust has it: a program starts in a third of the time.
export CARGO_BUILD_TARGET ?= $(shell packaging/target)
TRIPLE   = $(CARGO_BUILD_TARGET)
RELEASE  = target/$(TRIPLE)/release

# `make test` and `make demo` run a build without optimisation, which takes a third of the time and stops at an overflow.
# `make test PROFILE=release` runs what ships.
PROFILE ?= release
BUILT    = target/$(TRIPLE)/$(PROFILE:dev=debug)
BIN      = $(CURDIR)/$(if $(filter release,$(PROFILE)),bin,target/bin)
test demo: PROFILE = dev
export PODWIRE_BIN ?= $(BIN)

.DEFAULT_GOAL := help
.PHONY: help target build install uninstall demo test lint unit black-box test-vm test-kubernetes fuzz faults storm bench packages test-packages book deny reproduce release clean

help: ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

target:
	@packaging/target --add

build: target ## the binaries that ship, into bin/; bin/suite is all of them in one file
	cargo build --profile $(PROFILE) --locked $(PLUGINS:%=-p %) -p podwire -p podwired -p suite
	$(BUILT)/podwire install --no-record --bin-dir $(BIN) --sbin-dir $(BIN)
	@cp $(BUILT)/suite $(BIN)/.suite.new && mv -f $(BIN)/.suite.new $(BIN)/suite
	$(if $(filter dev,$(PROFILE)),strip $(BIN)/*)

# Contents of a package have no record of what was there before.
PLACES = --root $(or $(DESTDIR),/) --bin-dir $(CNI_BIN_DIR) --sbin-dir $(SBIN_DIR) --unit-dir $(UNIT_DIR)

install: build ## into DESTDIR: plugins to CNI_BIN_DIR, podwire and podwired to SBIN_DIR, units to UNIT_DIR; LAYOUT=one: as one file
	$(PODWIRE_BIN)/podwire install $(PLACES) $(if $(DESTDIR),--no-record) $(if $(LAYOUT),--layout $(LAYOUT))

uninstall: ## back to what was there before `make install`
	$(PODWIRE_BIN)/podwire uninstall $(PLACES)

# Only what it runs: all programs take twice as long.
DEMO = bridge host-local portmap vxlan

demo: target ## two pods on a bridge, then three hosts with an overlay: wired, shown, pinged, checked, removed
	cargo build --profile $(PROFILE) --locked $(DEMO:%=-p %) -p podwire -p podwired
	$(BUILT)/podwire install --no-record --plugins $$(echo $(DEMO) | tr ' ' ,) --bin-dir $(BIN) --sbin-dir $(BIN)
	tests/packages demo
	tests/demo

# The virtual machine comes last, alone: beside other tests its clock runs on while it waits for a processor, and time limits pass.
test: lint unit black-box test-vm ## everything that CI runs

lint: target ## formatting and clippy
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo clippy -p black-box -p netlink --test vlan --test bridge_vlan --test dummy --test ipvlan --test vrf --test kubernetes --locked -- -D warnings

unit: target ## tests beside the code, and the crates' tests against this kernel
	tests/packages test
	timeout 1500 cargo test --no-fail-fast --workspace --exclude black-box --exclude benches --exclude faults --locked

# The one-file layout, and the tests to which the difference may matter: names, delegates, the daemon. The daemon has a fixed
# address there (suite/src/main.rs).
ONE = $(CURDIR)/target/one
ON_ONE = protocol linked loopback dhcp

black-box: build ## the built binaries, against this kernel and real runtimes
	tests/packages test
	timeout 1800 tests/run black-box benches faults
	$(BIN)/podwire install --layout one --no-record --bin-dir $(ONE) --sbin-dir $(ONE)
	PODWIRE_BIN=$(ONE) timeout 300 cargo test --no-fail-fast --locked -p black-box -p benches -p faults $(ON_ONE:%=--test %) \
		-- --skip the_daemon_is_position_independent

test-vm: build ## what this kernel may lack (VLANs), on Debian's kernel in QEMU
	tests/packages vm
	tests/vm/run

test-kubernetes: build ## the nodes of a cluster as a store, against a real API server, the Helm chart, and a node with kubelet; Kubernetes is built once from Debian's source (15 minutes)
	tests/packages kubernetes
	tests/kubernetes-programs target/kubernetes
	timeout 1200 cargo test --no-fail-fast --locked -p black-box --test kubernetes

fuzz: ## hostile input for every parser, SECONDS for each (default 60)
	fuzz/run $(or $(SECONDS),60)

faults: build ## plugins killed, and let down, at each system call, and commands of podwire killed; 100 reboots: docs/reliability.md (FAULTS_AT_MOST=N: N points of each)
	tests/packages test
	cargo build --release --locked -p faults
	FAULTS_BOOTS=100 cargo test --locked -p faults --test accidents
	$(RELEASE)/faults kill
	$(RELEASE)/faults commands
	$(RELEASE)/faults fail

storm: build ## 200 attachments by many at once who lose patience, for SECONDS (default 60)
	tests/packages test
	cargo build --locked -p faults
	target/$(TRIPLE)/debug/faults storm $(or $(SECONDS),60)

bench: build ## against the Go plugins and the floor: docs/performance.md (FULL=1: all of the curves; GO=DIR: another build of Go)
	tests/packages bench
	cargo build --release --locked -p benches
	$(RELEASE)/measure $(if $(FULL),--full) $(if $(GO),--go $(GO))

packages: build ## what is shipped, into target/packages: Debian packages, image, JSON Schema
	cargo build --release --locked -p manual -p schema
	@cp $(RELEASE)/manual $(RELEASE)/schema bin/
	packaging/deb target/packages
	packaging/image target/packages
	bin/schema > target/packages/cni.schema.json

test-packages: packages ## the Debian package in a bare Debian, the image, the manifests, README's two commands (downloads Debian once; FULL=1: make test whole there)
	tests/packages shipping
	tests/shipping
	FULL=$(FULL) tests/bare

book: ## the documents as a book, into target/book/html (with mdbook: cargo install mdbook --locked)
	packaging/book target/book

deny: ## licences, sources and duplicates of all crates; advisories where their database can be fetched (with cargo-deny: cargo install cargo-deny --locked)
	packaging/deny

reproduce: ## builds what ships twice, in two places, and compares the bytes (20 minutes)
	packaging/reproduce

release: ## everything of the release VERSION, into target/release-VERSION (SIGN=COMMAND signs the checksums)
	packaging/release target/release-$(VERSION) $(VERSION)

clean: ## what was built
	cargo clean
	rm -rf bin
