# make demo    one request, one signed image: the whole pipeline, in front of your eyes
# make serve   a server for the real upstream (UPSTREAM=, LISTEN=, DATA= change what it uses)
# make test    everything that has to pass; make test-fast is the inner loop
# make test-aws       only the test of the deployment on AWS
# make deploy-local   template.yaml on an emulator of AWS; make deploy is the real thing, see docs/deploy.md
# make bench   figures, see docs/performance.md; IB=DIR those of both paths on an unpacked ImageBuilder; make bench-aws those of the drivers for AWS

SHELL := /bin/bash -o pipefail
GO    ?= go
TOOL  := $(GO) tool -modfile=scripts/tools/go.mod

UPSTREAM ?= https://downloads.openwrt.org
LISTEN   ?= 127.0.0.1:8000
DATA     ?= data

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo development)

# Everything but the demo distribution, the end-to-end tests over it and the deployment.
FAST := $(shell $(GO) list ./... 2>/dev/null | grep -v -e /scripts/demo -e /cmd/sysup -e /infra/deploytest)

.PHONY: build setup lint test test-fast test-aws demo serve deploy deploy-local bench bench-aws fuzz vuln clean

build: sysup

.PHONY: sysup
sysup:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o $@ ./cmd/sysup

setup:
	@scripts/setup
	@scripts/engines
	@scripts/emulator install
	@scripts/schemathesis install

lint:
	@test -z "$$(gofmt -l . | tee /dev/stderr)" || { echo 'gofmt -w the files above'; exit 1; }
	$(GO) vet ./...
	$(TOOL) staticcheck ./...

# The demo distribution is made before the tests, where it takes half as long.
.PHONY: distribution
distribution: setup
	$(GO) run ./scripts/demo

test: setup lint distribution builders
	@echo "engines: SQLite $$($(GO) list -m -f '{{.Version}}' modernc.org/sqlite) (modernc.org/sqlite), goqite $$($(GO) list -m -f '{{.Version}}' maragu.dev/goqite), a directory on $$(stat -f -c %T .), $$(scripts/engines names), $$(scripts/emulator names), $$(scripts/schemathesis name), in-memory fakes"
	$(GO) test -race -shuffle=on -timeout 20m ./...

# All of template.yaml on the emulator, and all that can happen to it. It is among the tests of `make test` too, which
# makes the builder's image before.
test-aws: setup builders
	$(GO) test -race -count=1 -timeout 20m -v ./infra/deploytest

# Says whether builders can run in containers here.
.PHONY: builders
builders: setup
	@BASE=debootstrap IMAGE=sysup-builder:test-aws scripts/deploy-local builders

test-fast:
	$(GO) test -shuffle=on $(FAST)

demo: setup sysup
	@scripts/try

serve: sysup
	./sysup serve --listen $(LISTEN) --data $(DATA) --upstream $(UPSTREAM) $(ARGS)

# The Lambda functions for template.yaml, whose parameter Architecture says the same.
ARCHITECTURE ?= arm64
.PHONY: functions
functions:
	@for function in api housekeeper certifier; do \
	  CGO_ENABLED=0 GOOS=linux GOARCH=$(ARCHITECTURE:x86_64=amd64) $(GO) build -trimpath -tags lambda.norpc \
	    -ldflags '-s -w -X github.com/attended-sysupgrade/sysup/functions/start.Version=$(VERSION)' \
	    -o build/functions/$$function/bootstrap ./functions/$$function || exit 1; done

# The template on this machine, until Ctrl-C; scripts/deploy-local says what can be changed.
deploy-local: setup
	@scripts/deploy-local

# The template in the AWS account of the environment; docs/deploy.md comes first. PARAMETERS='MaxBuilders=4 ...' changes some.
SAM ?= build/emulator/tools/bin/sam
deploy: functions
	@scripts/emulator install
	SAM_CLI_TELEMETRY=0 $(SAM) deploy --parameter-overrides Architecture=$(ARCHITECTURE) $(PARAMETERS)

bench: setup sysup
	@IB=$(IB) scripts/bench

# 200 requests, FULL=1 for 1,000; ARGS='-kill' and others are in scripts/load/builders_test.go.
bench-aws: setup
	@FULL=$(FULL) scripts/bench-aws $(ARGS)

# Each parser of foreign bytes for FUZZTIME.
FUZZTIME ?= 10m
fuzz:
	@$(GO) list ./... | while read -r pkg; do \
	  $(GO) test -list '^Fuzz' $$pkg | grep ^Fuzz | while read -r target; do \
	    echo "== $$pkg $$target"; $(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) $$pkg || exit 1; done || exit 1; done

# Known weaknesses in what is used; asks the Go vulnerability database.
vuln:
	$(TOOL) govulncheck ./...

clean:
	rm -rf build sysup
