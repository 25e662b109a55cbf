# Herdbook. `make help` lists what there is.

SHELL := /bin/bash -o pipefail
GO    ?= go
HOOK  := storage/gitrepo/hookbin/herdbook-hook
RELEASE := $(shell git describe --tags --always --dirty 2>/dev/null)

# Packages whose tests drive real clients against the built server.
SLOW := github.com/herdbook/herdbook/cmd/herdbook

.PHONY: help build demo demo-stop test check bench bench-go hook

help: ## Show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -t -s "$$(printf '\t')"

hook: $(HOOK)

# The program that git starts during a push: small, so that starting it costs next to nothing.
$(HOOK): $(wildcard cmd/herdbook-hook/*.go storage/gitrepo/hook/*.go) go.mod
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $@ ./cmd/herdbook-hook

build: hook ## Build bin/herdbook
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.release=$(RELEASE)' -o bin/herdbook ./cmd/herdbook

demo: build ## Play the main job on a real model; leaves the server running
	@demo/demo.sh

demo-stop: ## Stop what make demo left running
	@demo/stop.sh

test: ## Run every check and every test
	@.ci/stages

check: hook ## Format, vet, staticcheck, layout and the fast tests, with the race detector
	@out=$$($(GO) tool gofumpt -l $$(git ls-files --cached --others --exclude-standard '*.go')) && [ -z "$$out" ] || { echo "not formatted (go tool gofumpt -w FILE):"; echo "$$out"; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck -checks all ./...
	$(GO) test -race $$($(GO) list ./... | grep -v -x -F '$(SLOW)')
	$(GO) test -race -skip '^Test(Scripts|Crash|PowerCut|Fault)' $(SLOW)

bin/herdbook-bench: $(wildcard cmd/herdbook-bench/*.go) go.mod
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $@ ./cmd/herdbook-bench

bench: build bin/herdbook-bench ## Measure against the floor and rivals; writes docs/benchmarks.md
	bin/herdbook-bench run --out docs/benchmarks.md

bench-go: hook ## Run the Go benchmarks
	$(GO) test -run '^$$' -bench . -benchmem ./...
