# The commands of the project. Only `test`, `build` and `fuzz` are needed to
# use it: they take Go and git. `check` is what a change must pass; it runs
# pinned tools (tools/go.mod) and the race detector, which wants a C compiler.

# Runs of each fuzz target, or a time (30s): a run that ends by time can fail for
# no reason of the target (golang/go#75804).
FUZZTIME  ?= 50000x
BENCHTIME ?= 1s
BENCH     ?= .
IMAGES    ?=
RUNS      ?= 3
TIMEOUT   ?= 15m
# Of one package under the race detector, on a machine that does other things too.
RACETIMEOUT ?= 60m

tool = go tool -modfile=tools/go.mod

.PHONY: test check build bench fuzz mutations copysoak histories simulate linearizable stopped kills volumes fmt format-check vet lint dead tidy-check race clean

test:
	go test -timeout $(TIMEOUT) ./...

build:
	CGO_ENABLED=0 go build -trimpath -o bin/snapferry ./cmd/snapferry

# Layering is a test: ./internal/layering.
check: format-check vet lint dead tidy-check race

fmt:
	$(tool) gofumpt -w .

format-check:
	@out=$$($(tool) gofumpt -l .) || exit 1; \
	if [ -n "$$out" ]; then echo "not formatted (make fmt):"; echo "$$out"; exit 1; fi

vet:
	go vet ./...

lint:
	$(tool) staticcheck ./...

dead:
	@out=$$($(tool) deadcode -test ./...) || exit 1; \
	if [ -n "$$out" ]; then echo "never called:"; echo "$$out"; exit 1; fi

tidy-check:
	go mod tidy -diff

race:
	go test -race -shuffle=on -timeout $(RACETIMEOUT) ./...

# The Go benchmarks, and with IMAGES=DIR (made by bench/images.sh DIR) whole
# commands against the peers that are in PATH, interleaved.
bench: build
	$(if $(IMAGES),SNAPFERRY_BENCH_IMAGE=$(abspath $(IMAGES))/v1.raw) \
	go test -run '^$$' -bench '$(BENCH)' -benchtime $(BENCHTIME) -timeout 60m ./...
	$(if $(IMAGES),bench/compare.py $(IMAGES) --runs $(RUNS),@echo "against peers: bench/images.sh DIR; make bench IMAGES=DIR")
	$(if $(IMAGES),bench/volume.py $(IMAGES) --runs $(RUNS))
	$(if $(IMAGES),bench/sealed.py $(IMAGES) --runs $(RUNS))

# Every fuzz target of the module, one after the other, each for FUZZTIME.
fuzz:
	@grep -rE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*\(' . \
	| sed -E 's|^(.*)/[^/]*:func (Fuzz[A-Za-z0-9_]*)\(.*|\1 \2|' | sort -u \
	| { set -e; while read -r dir name; do \
		echo "fuzz $$dir $$name"; \
		go test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x "$$dir" </dev/null; \
	done; }

# Tests the tests: makes each fault of internal/mutation, in an overlay, and
# wants the test that is named beside it to fail. An hour or so.
mutations:
	go test ./internal/mutation -run TestMutationsAreCaught -catch -v -timeout 180m

# Random lives of a chain over the real store, many of them: forks, open
# children, aborts, crashes, concurrent deletions. Half an hour or so.
HISTORIES ?= 10000
histories:
	go test ./internal/vault -run TestLifeAndDeath -histories $(HISTORIES) -timeout 300m

# Worlds of two or three regions in virtual time, many of them: random imports, copies,
# live volumes, deletions, with power cuts, broken links, full disks and flipped bits, and
# a model of what they must hold. Two hours or so. One that fails says what was done in
# it; it is run again with:  go test ./internal/simtest -run TestSimulation -seed N -seeds 1
# -count 20, because the scheduler too has a small part in what happens.
SEEDS     ?= 10000
FIRSTSEED ?= 1
simulate:
	go test ./internal/simtest -run TestSimulation -seeds $(SEEDS) -seed $(FIRSTSEED) -timeout 600m

# Histories of several clients that do everything to the snapshots of two regions at
# once, some under faults: there must be an order that explains every answer. Half an
# hour or so. One that has none is shown on a page, and its clients do the same again,
# though not at the same moments, with:  go test ./internal/simtest -run TestLinearizable
# -history N -histories 1 -count 50
ORDERS ?= 5000
linearizable:
	go test ./internal/simtest -run TestLinearizable -histories $(ORDERS) -history $(FIRSTSEED) -v -timeout 300m

# A worker, a process of its own, is stopped (SIGSTOP) at every change it makes of
# the bucket, taken over, and woken after a minute. Ten minutes or so.
PAUSE ?= 60s
stopped:
	go test ./internal/control -run TestStoppedWorkers -every 1 -pause $(PAUSE) -parallel 24 -v -timeout 60m

# A region is killed (SIGKILL) in the middle of each kind of work that deletion leads
# to, and a recovery, so often. An hour or so.
KILLS ?= 100
kills:
	go test ./cmd/snapferry -run 'Test(Upkeep|Recovery)SurvivesKills' -kills $(KILLS) -parallel 4 -v -timeout 180m

# Live volumes: a region is killed under clients that write so often, snapshots of
# three volumes are taken together, and of file systems that an application writes
# to; with GUEST=DIR (made by cmd/snapferry/testdata/guest.sh DIR) virtual machines
# run from volumes and from copies of their snapshots. Half an hour or so; the file
# systems want root.
VOLUMEKILLS ?= 50
SETS        ?= 100
FSSNAPSHOTS ?= 100
GUEST       ?=
volumes:
	go test ./cmd/snapferry -run 'TestVolume(SurvivesKills|Sets|FileSystems|OnFullDisk|Guest)$$' -volumekills $(VOLUMEKILLS) -sets $(SETS) \
		-fssnapshots $(FSSNAPSHOTS) $(if $(GUEST),-guest $(abspath $(GUEST))) -v -timeout 180m

# Copies over a link that is cut, slowed, half open and reset at random, while regions
# are killed, for so long.
SOAK ?= 30m
copysoak:
	go test ./cmd/snapferry -run 'TestCopySoak$$' -copysoak $(SOAK) -v -timeout 180m

clean:
	rm -rf bin
