# SPDX-License-Identifier: LGPL-2.1-or-later
# `make` alone prints what there is. Nothing here asks a question.

PYTHON ?= python3
CC ?= gcc
PKG_CONFIG ?= pkg-config
PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
DESTDIR ?=
PYTEST_ARGS ?=
MINUTES ?= 10

VENV := .venv
BIN := $(VENV)/bin
BUILD := build
STAMP := $(VENV)/.installed

VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' remus_native/_version.py)
LIB := libremus_native
SONAME := $(LIB).so.0

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
# Our own builds: warnings are errors, in the extension too.
export REMUS_WERROR ?= 1

.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: help system-packages setup demo test test-slow test-vm test-c lint format lib \
	install-lib asan tsan test-asan test-tsan bench bench-quick soak sim sim-long test-sim mutants \
	fuzz analyze coverage coverage-sim crash clean FORCE

help: ## print the targets (the default)
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' \
		$(firstword $(MAKEFILE_LIST))

# ---- The environment -------------------------------------------------------

# Debian's packages, each asked for by what it brings: what is there already
# from elsewhere is not installed. As root, or with a sudo that asks nothing,
# the missing ones are installed; else they are named. Without those of the
# first group nothing can be built; the others serve tests.
system-packages:
	@PATH="$$PATH:/usr/sbin:/sbin"; build=; tests=; \
	has() { command -v "$$1" >/dev/null 2>&1; }; \
	python() { $(PYTHON) -c "$$1" >/dev/null 2>&1; }; \
	look() { \
	    build=; tests=; \
	    has $(PYTHON) || build="$$build python3"; \
	    has gcc || has cc || build="$$build gcc"; \
	    test -e /usr/include/stdio.h || build="$$build libc6-dev"; \
	    has $(PKG_CONFIG) || build="$$build pkg-config"; \
	    $(PKG_CONFIG) --exists 'fuse3 >= 3.10' 2>/dev/null || \
	        build="$$build libfuse3-dev"; \
	    $(PKG_CONFIG) --exists 'gnutls >= 3.7' 2>/dev/null || \
	        build="$$build libgnutls28-dev"; \
	    python 'import ensurepip, venv' || build="$$build python3-venv"; \
	    python 'import os, sysconfig; \
	os.stat(sysconfig.get_path("include") + "/Python.h")' || \
	        build="$$build python3-dev"; \
	    for pair in fusermount3:fuse3 mkfs.ext4:e2fsprogs \
	        e2fsck:e2fsprogs debugfs:e2fsprogs chattr:e2fsprogs \
	        losetup:mount dmsetup:dmsetup mount:mount umount:mount \
	        setarch:util-linux nsenter:util-linux fsfreeze:util-linux \
	        unshare:util-linux addpart:util-linux delpart:util-linux \
	        blkdiscard:util-linux \
	        ip:iproute2 tc:iproute2 fio:fio qemu-img:qemu-utils \
	        qemu-io:qemu-utils qemu-system-x86_64:qemu-system-x86 \
	        nbdkit:nbdkit nbdfuse:libnbd-bin \
	        qemu-storage-daemon:qemu-system-common \
	        sqlite3:sqlite3 busybox:busybox readelf:binutils \
	        psktool:gnutls-bin gnutls-cli:gnutls-bin openssl:openssl \
	        shellcheck:shellcheck git:git patch:patch \
	        clang:clang cppcheck:cppcheck gcov:gcc \
	        blkid:util-linux runuser:util-linux pgrep:procps \
	        pkill:procps; do \
	        has "$${pair%%:*}" && continue; \
	        case "$$tests " in *" $${pair##*:} "*) ;; \
	            *) tests="$$tests $${pair##*:}";; esac; \
	    done; \
	    ls /usr/lib/llvm-*/lib/clang/*/lib/linux/libclang_rt.fuzzer-*.a >/dev/null \
	        2>&1 || tests="$$tests libclang-rt-14-dev"; \
	}; \
	look; \
	test -n "$$build$$tests" || exit 0; \
	if has apt-get; then \
	    if [ "$$(id -u)" = 0 ]; then as=; \
	    elif has sudo && sudo -n true 2>/dev/null; then as="sudo -n"; \
	    else as=no; fi; \
	    if [ "$$as" != no ]; then \
	        echo "installing:$$build$$tests"; \
	        apt() { $$as env DEBIAN_FRONTEND=noninteractive \
	            apt-get -y -qq "$$@" </dev/null; }; \
	        apt update; \
	        apt install --no-install-recommends $$build $$tests >/dev/null || \
	            for package in $$build $$tests; do \
	                apt install --no-install-recommends $$package \
	                    >/dev/null || true; \
	            done; \
	        look; \
	    fi; \
	fi; \
	if [ -n "$$tests" ]; then \
	    echo "missing, some tests are skipped without: apt-get install$$tests" >&2; \
	fi; \
	if [ -n "$$build" ]; then \
	    echo "missing, cannot build without: apt-get install$$build" >&2; \
	    exit 1; \
	fi

setup: $(STAMP) $(BUILD)/sim/remus_sim.so ## .venv with the package in place; Debian packages if allowed

SOURCES := $(sort $(wildcard csrc/*/*.c))
HEADERS := $(sort $(wildcard csrc/*.h csrc/*/*.h))
PUBLIC := csrc/remus.h $(sort $(wildcard csrc/remus/*.h))
# The simulated world is for tests: it is not in the library or the wheel.
SIM_SOURCES := $(sort $(wildcard tests/sim/*.c))
# All that is laid out by clang-format, in the version of pyproject.toml.
C_FILES := $(SOURCES) $(HEADERS) $(sort $(wildcard tests/sim/*.[ch] tests/sim/*/*.[ch] tests/c/*.[ch] \
	tests/fuzz/*.[ch] benchmarks/*.[ch]))

# Installed in place: Python changes need nothing, C changes compile again.
$(STAMP): $(SOURCES) $(HEADERS) csrc/flags.mk setup.py pyproject.toml Makefile \
		remus_native/_build.py remus_native/_version.py \
		$(if $(wildcard remus_native/_core*.so),,FORCE)
	@$(MAKE) --no-print-directory system-packages
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || \
		$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -q 'setuptools>=77' 'cffi>=1.15'
	$(BIN)/python -m pip install -q --no-build-isolation -e '.[test,rich]'
	@touch $@

# ---- What a user does --------------------------------------------------------

demo: setup ## a guest, a backup, a failover, on this machine
	$(BIN)/remus-native demo

# $(call each_benchmark,FLAGS): its figures and drawings go to build/bench.
define each_benchmark
@mkdir -p $(BUILD)/bench; \
draw=; \
if $(BIN)/python -c 'import matplotlib' 2>/dev/null; then draw=yes; \
else echo "not drawn: pip install matplotlib"; fi; \
for script in benchmarks/bench_*.py; do \
    name=$$(basename "$$script" .py); name=$${name#bench_}; \
    echo "== $$name"; \
    $(BIN)/python "$$script" $(1) --json "$(BUILD)/bench/$$name.json" \
        $${draw:+--plot "$(BUILD)/bench/$$name"} || exit 1; \
done
endef

bench: setup ## every benchmark (a quarter of an hour); figures in build/bench
	$(call each_benchmark,)

bench-quick: setup ## every benchmark in its short form (two minutes)
	$(call each_benchmark,--quick)

# ---- Tests ---------------------------------------------------------------------

# Most tests wait for something: as many pytest processes share them out.
LANES ?= $(shell test "$$(nproc)" -lt 2 && echo 1 || echo 2)
JOBS ?= $(shell nproc)
# For a make that was given no -j of its own.
PARALLEL = --no-print-directory $(if $(filter -j%,$(MAKEFLAGS)),,-j$(JOBS))

test: ## C tests, simulated world, the default suite (PYTEST_ARGS=... LANES=...)
	@$(MAKE) $(PARALLEL) setup
	@$(MAKE) --no-print-directory test-c test-sim
	$(BIN)/python tests/tools/run_suite.py $(LANES) $(BUILD)/junit-default.xml \
	    $(PYTEST_ARGS)
	$(if $(PYTEST_ARGS),,$(BIN)/python tests/tools/crash_states.py 10000 \
	    $(BUILD)/junit-default.xml)

# pytest's 5 says that no test was selected.
test-slow: setup ## soak, crash and fuzz tests (PYTEST_ARGS=...)
	$(BIN)/python -m pytest -m 'slow and not vm' --timeout=1200 \
	    --junitxml=$(BUILD)/junit-slow.xml $(PYTEST_ARGS) || [ $$? = 5 ]

# States after a crash, of chains of eight lives; seeds from 10000 on.
STATES ?= 100000
crash: setup ## crashes in chains of lives, until so many are seen (STATES=100000)
	REMUS_CRASH_STATES=$(STATES) $(BIN)/python -m pytest -q -m slow --timeout=0 \
	    --junitxml=$(BUILD)/junit-crash.xml \
	    tests/crash/test_journal_ends.py::test_many_chains_of_lives_at_the_edges
	$(BIN)/python tests/tools/crash_states.py $(STATES) $(BUILD)/junit-crash.xml

soak: setup ## two hosts under databases and faults (MINUTES=10 SEED=)
	$(BIN)/python tests/soak/soak.py --minutes $(MINUTES) \
	    --out $(BUILD)/soak $(if $(findstring command,$(origin SEED)),--seed $(SEED))

test-vm: setup ## real DRBD, in a virtual machine (PYTEST_ARGS=...)
	$(BIN)/python -m pytest -m vm --junitxml=$(BUILD)/junit-vm.xml $(PYTEST_ARGS)

# gcc with its analyzer and cppcheck; tests/analysis.txt explains what they find.
analyze: system-packages ## gcc -fanalyzer and cppcheck over csrc
	$(PYTHON) tests/tools/analyze.py

lint: setup ## ruff, mypy, clang-format, shellcheck
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(C_FILES)
	@command -v shellcheck >/dev/null || \
	    { echo "shellcheck is missing: apt-get install shellcheck" >&2; exit 1; }
	shellcheck .ci/run hotplug/* tests/vm/*.sh

format: setup ## lay out Python (ruff) and C (clang-format)
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_FILES)

# ---- C ---------------------------------------------------------------------------

C_TESTS := $(sort $(wildcard tests/c/test_*.c))

CFLAGS ?= -O2 -g
include csrc/flags.mk
C_FLAGS = $(LANGUAGE) $(WARNINGS) $(if $(filter 1,$(REMUS_WERROR)),-Werror) -fPIC \
	-iquote csrc $(shell $(PKG_CONFIG) --cflags fuse3 gnutls)
C_LIBS = -pthread $(shell $(PKG_CONFIG) --libs fuse3 gnutls)

# V=1 shows each command of the compiler.
Q := $(if $(V),,@)

# Objects in four variants: plain is the library; tests link the checked one
# (REMUS_CHECKED: what the code relies on is asserted), asan or tsan.
plain_FLAGS = $(CFLAGS)
checked_FLAGS = $(CFLAGS) -DREMUS_CHECKED
asan_FLAGS = -DREMUS_CHECKED -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined \
	-fno-sanitize-recover=all
tsan_FLAGS = -DREMUS_CHECKED -O1 -g -fno-omit-frame-pointer -fsanitize=thread
# For the targets of tests/fuzz: libFuzzer is clang's. What gcc warns of counts.
fuzz_CC = clang
fuzz_FLAGS = -Wno-error -DREMUS_CHECKED -O1 -g -fno-omit-frame-pointer \
	-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all

# What was run, by gcov: `make coverage`. Counters that threads share are atomic.
coverage_FLAGS = -DREMUS_CHECKED -O0 -g --coverage -fprofile-update=atomic

# The thread sanitizer needs the memory layout of a process not to be random.
checked_RUN =
asan_RUN = ASAN_OPTIONS=detect_stack_use_after_return=1:strict_string_checks=1 \
	UBSAN_OPTIONS=print_stacktrace=1
tsan_RUN = TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1$(patsubst \
	%,:suppressions=$(CURDIR)/%,$(wildcard tests/c/tsan.supp)) \
	$(shell setarch -R true 2>/dev/null && echo setarch -R)

define variant
$(BUILD)/$(1)/%.o: csrc/%.c Makefile
	@mkdir -p $$(@D)
	@echo "CC      $$@"
	$(Q)$$(or $$($(1)_CC),$$(CC)) $$(C_FLAGS) $$($(1)_FLAGS) -MMD -MP -c -o $$@ $$<

$(BUILD)/$(1)/sim/%.o: tests/sim/%.c Makefile
	@mkdir -p $$(@D)
	@echo "CC      $$@"
	$(Q)$$(or $$($(1)_CC),$$(CC)) $$(C_FLAGS) -iquote tests/sim $$($(1)_FLAGS) -MMD -MP -c -o $$@ $$<

$(1)_OBJECTS := $(SOURCES:csrc/%.c=$(BUILD)/$(1)/%.o) \
	$(SIM_SOURCES:tests/%.c=$(BUILD)/$(1)/%.o)

$(BUILD)/$(1)/test_%: tests/c/test_%.c Makefile $$($(1)_OBJECTS)
	@echo "LINK    $$@"
	$(Q)$$(CC) $$(C_FLAGS) -iquote tests/sim $$($(1)_FLAGS) -MMD -MP -MF $$@.d \
	    -o $$@ $$< $$(filter %.o,$$^) $$(LDFLAGS) $$(C_LIBS)

$(1)_TESTS := $(C_TESTS:tests/c/%.c=$(BUILD)/$(1)/%)
-include $(wildcard $(BUILD)/$(1)/*.d $(BUILD)/$(1)/*/*.d)
endef
$(foreach v,plain checked asan tsan fuzz coverage,$(eval $(call variant,$(v))))

# The extension that the test suite uses in the place of the package's own.
$(BUILD)/sim/remus_sim.c: tests/sim/emit.py remus_native/_build.py $(PUBLIC) \
		tests/sim/remus_testing.h $(STAMP)
	$(Q)$(BIN)/python tests/sim/emit.py $@

# $(call extension,VARIANT)
define extension
	@mkdir -p $(@D)
	@echo "LINK    $@"
	$(Q)$(CC) -shared -fPIC $(LANGUAGE) $($(1)_FLAGS) \
	    -iquote csrc -iquote tests/sim $$($(BIN)/python -c 'import sysconfig; \
	print("-I" + sysconfig.get_path("include"))') -o $@ $^ $(LDFLAGS) $(C_LIBS) \
	    -Wl,-Bsymbolic-functions
endef

$(BUILD)/sim/remus_sim.so: $(BUILD)/sim/remus_sim.c $(checked_OBJECTS)
	$(call extension,checked)

$(BUILD)/coverage/extension/remus_sim.so: $(BUILD)/sim/remus_sim.c $(coverage_OBJECTS)
	$(call extension,coverage)

# The tests of one variant, each with at most five minutes.  Exit 77: it can't
# run here, and its last line says why.
define run-test
	@program=$(BUILD)/$(1)/$*; \
	if $($(1)_RUN) timeout 300 "$$program" >"$$program.log" 2>&1 </dev/null; \
	then echo "ok      $$program"; \
	else code=$$?; \
	    test $$code != 77 || { \
	        echo "skipped $$program: $$(tail -n 1 "$$program.log")"; \
	        exit 0; }; \
	    cat "$$program.log"; \
	    echo "FAILED  $$program (exit $$code)"; exit 1; \
	fi
endef

# What measures time runs before the rest, with nothing beside it.
C_ALONE := test_checkpoint_costs test_fuse_stall test_group_costs test_return test_roles

define variant-runs
.PHONY: build-$(1) $($(1)_TESTS:$(BUILD)/$(1)/%=run-$(1)-%)
build-$(1): $($(1)_TESTS)
	@:
$($(1)_TESTS:$(BUILD)/$(1)/%=run-$(1)-%): run-$(1)-%: $(BUILD)/$(1)/%
	$$(call run-test,$(1))
endef
$(foreach v,checked asan tsan,$(eval $(call variant-runs,$(v))))

define run-tests
	@test -n "$($(1)_TESTS)" || echo "tests/c has no test_*.c: nothing to run"
	@$(MAKE) $(PARALLEL) build-$(1)
	@$(MAKE) --no-print-directory -j1 $(C_ALONE:%=run-$(1)-%)
	@$(MAKE) $(PARALLEL) --output-sync=target \
	    $(filter-out $(C_ALONE:%=run-$(1)-%),$($(1)_TESTS:$(BUILD)/$(1)/%=run-$(1)-%))
endef

test-c: ## the C tests
	$(call run-tests,checked)

asan: $(asan_TESTS) ## build the C tests with address and undefined sanitizers
tsan: $(tsan_TESTS) ## build the C tests with the thread sanitizer

# ---- The simulated world (tests/sim/world) ---------------------------------------

# What stands between the code and the C library there: see wrap.c.
WORLD_WRAPS := pthread_mutex_lock pthread_mutex_trylock pthread_mutex_unlock pthread_cond_wait pthread_cond_timedwait pthread_cond_signal \
	pthread_cond_broadcast pthread_create pthread_join clock_gettime nanosleep sched_yield \
	eventfd socket bind listen connect accept4 \
	getsockopt setsockopt send recv sendmsg read \
	write shutdown close poll setpriority mmap \
	madvise fcntl geteuid getrandom pthread_cancel dup3 \
	remus_mount_check remus_mount_open remus_mount_again remus_mount_close remus_mount_detach
WORLD_OBJECTS := $(patsubst tests/sim/world/%.c,$(BUILD)/world-objects/%.o,$(sort \
	$(wildcard tests/sim/world/*.c)))
# `make sim` has these; `make test` those of SIM_SEEDS (some 30 ms of a CPU each: half a
# minute on two idle cores), and each of SIM_TWICE twice; `make sim-long` a million.
SEEDS ?= 2000
SEED ?= 1
SIM_SEEDS ?= 2000
SIM_TWICE ?= 60
SIM_LONG ?= 1000000
SIM_JOBS = --jobs $(shell nproc)

# The world itself is built as checked; what it runs is of one variant or another.
$(BUILD)/world-objects/%.o: tests/sim/world/%.c Makefile
	@mkdir -p $(@D)
	@echo "CC      $@"
	$(Q)$(CC) $(C_FLAGS) -iquote tests/sim -iquote tests/sim/world $(checked_FLAGS) -MMD -MP -c -o $@ $<
-include $(wildcard $(BUILD)/world-objects/*.d)

$(BUILD)/world: $(WORLD_OBJECTS) $(checked_OBJECTS)
$(BUILD)/coverage/world: $(WORLD_OBJECTS) $(coverage_OBJECTS)
$(BUILD)/coverage/world: WORLD_LINK = -Wl,-u,__gcov_dump -lgcov
$(BUILD)/world $(BUILD)/coverage/world: Makefile
	@echo "LINK    $@"
	$(Q)$(CC) -o $@ $(filter %.o,$^) $(WORLD_WRAPS:%=-Wl,--wrap=%) $(LDFLAGS) $(C_LIBS) $(WORLD_LINK)

sim: $(BUILD)/world ## both sides in a world that a seed decides (SEED= SEEDS=)
	$(BUILD)/world $(SIM_JOBS) $(SEED) $(SEEDS)

sim-long: $(BUILD)/world ## SIM_LONG seeds, for hours; the last line has the rate
	$(BUILD)/world $(SIM_JOBS) $(SEED) $(SIM_LONG)

test-sim: $(BUILD)/world ## the simulated world, bounded (SIM_SEEDS= SIM_TWICE=)
	$(BUILD)/world $(SIM_JOBS) --twice 1 $(SIM_TWICE)
	$(BUILD)/world $(SIM_JOBS) 1 $(SIM_SEEDS)

# ---- Coverage (tests/covered.txt) ------------------------------------------------

COVERAGE_SEEDS ?= 600
coverage-sim: ## what of csrc the simulated world runs, by lines and branches (two minutes)
	@$(MAKE) $(PARALLEL) $(BUILD)/coverage/world
	$(PYTHON) tests/tools/covered.py --only-world --seeds $(COVERAGE_SEEDS)

# Too long for .ci/run, which has coverage-sim.
coverage: setup ## what the world and all tests run of csrc, and what not (an hour)
	@$(MAKE) $(PARALLEL) $(BUILD)/coverage/world $(coverage_TESTS) \
	    $(BUILD)/coverage/extension/remus_sim.so
	$(BIN)/python tests/tools/covered.py --seeds $(COVERAGE_SEEDS) --lanes $(LANES)

# ---- Fuzzing (tests/fuzz) ---------------------------------------------------------

SECONDS ?= 60
TARGETS ?=
FUZZ_TARGETS := $(patsubst tests/fuzz/%.c,$(BUILD)/fuzz/%,$(sort \
	$(wildcard tests/fuzz/target_*.c)))
FUZZ_SHARED := $(patsubst tests/fuzz/%.c,$(BUILD)/fuzz/shared/%.o,$(sort \
	$(filter-out tests/fuzz/target_%,$(wildcard tests/fuzz/*.c))))
FUZZ_FLAGS = $(C_FLAGS) -iquote tests/sim -iquote tests/fuzz $(fuzz_FLAGS)

$(BUILD)/fuzz/shared/%.o: tests/fuzz/%.c Makefile
	@mkdir -p $(@D)
	@echo "CC      $@"
	$(Q)$(fuzz_CC) $(FUZZ_FLAGS) -MMD -MP -c -o $@ $<

# An archive: only streams of records have a mutator of their own.
$(BUILD)/fuzz/shared.a: $(FUZZ_SHARED)
	@rm -f $@
	$(Q)$(AR) qcs $@ $^

$(BUILD)/fuzz/target_records: FUZZ_LINK = -Wl,--wrap=remus_input_next,--wrap=pthread_cond_wait
$(BUILD)/fuzz/target_answers: FUZZ_LINK = -Wl,--wrap=remus_input_next
$(FUZZ_TARGETS): $(BUILD)/fuzz/%: tests/fuzz/%.c $(BUILD)/fuzz/shared.a \
		$(fuzz_OBJECTS) Makefile
	@echo "LINK    $@"
	$(Q)$(fuzz_CC) $(FUZZ_FLAGS) -fsanitize=fuzzer -MMD -MP -MF $@.d $(FUZZ_LINK) -o $@ \
	    $< $(BUILD)/fuzz/shared.a $(fuzz_OBJECTS) $(LDFLAGS) $(C_LIBS)

fuzz: ## every fuzz target for SECONDS=60 each (TARGETS="records psk")
	@$(MAKE) $(PARALLEL) $(if $(TARGETS),$(TARGETS:%=$(BUILD)/fuzz/target_%),$(FUZZ_TARGETS))
	$(PYTHON) tests/tools/fuzz.py --seconds $(SECONDS) $(TARGETS)

MUTANTS ?=
mutants: setup ## deliberate breaks of the core: what catches which (MUTANTS="NAMES")
	$(BIN)/python tests/tools/mutants.py $(MUTANTS)

# For the guest of test-vm: in one file, without FUSE, by the library alone.
$(BUILD)/vm/drbd_disk: tests/c/drbd_disk.c $(BUILD)/$(LIB).a Makefile
	@mkdir -p $(@D)
	@echo "LINK    $@"
	$(Q)$(CC) $(C_FLAGS) $(plain_FLAGS) -static -o $@ $< $(BUILD)/$(LIB).a \
	    $(LDFLAGS) -pthread

test-asan: asan ## run them
	$(call run-tests,asan)

test-tsan: tsan ## run them
	$(call run-tests,tsan)

lib: $(BUILD)/$(SONAME) $(BUILD)/$(LIB).a $(BUILD)/remus_native.pc ## the C library

# Fails if the exported functions are not exactly those of remus.h and its parts.
$(BUILD)/$(LIB).so: $(SOURCES:csrc/%.c=$(BUILD)/plain/%.o) \
		csrc/$(LIB).map $(PUBLIC) Makefile
	@echo "LINK    $@"
	$(Q)$(CC) -shared -o $@ $(filter %.o,$^) $(LDFLAGS) $(C_LIBS) \
	    -Wl,-soname,$(SONAME) -Wl,--version-script=csrc/$(LIB).map \
	    -Wl,-z,defs -Wl,-z,relro -Wl,-z,now
	@sed -n 's/^REMUS_API .*[ *]\(remus_[a-z0-9_]*\)(.*/\1/p' $(PUBLIC) | \
	    LC_ALL=C sort >$(BUILD)/api-header
	@nm -D --defined-only $@ | \
	    sed -n 's/^[0-9a-f]* T \([^@]*\).*/\1/p' | \
	    LC_ALL=C sort >$(BUILD)/api-library
	@diff $(BUILD)/api-header $(BUILD)/api-library || { echo \
	    "the public headers (<) and what $@ exports (>) differ: csrc/$(LIB).map" >&2; \
	    exit 1; }

$(BUILD)/$(SONAME): $(BUILD)/$(LIB).so
	ln -sf $(LIB).so $@

$(BUILD)/$(LIB).a: $(SOURCES:csrc/%.c=$(BUILD)/plain/%.o)
	@echo "AR      $@"
	@rm -f $@
	$(Q)$(AR) qcs $@ $^ # q: two folders may have a file of one name

# FORCE: it holds PREFIX and LIBDIR, which can differ at each call.
$(BUILD)/remus_native.pc: csrc/remus_native.pc.in FORCE
	@mkdir -p $(@D)
	sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@LIBDIR@|$(LIBDIR)|' \
	    -e 's|@VERSION@|$(VERSION)|' $< >$@

install-lib: lib ## install it (PREFIX=/usr/local DESTDIR= LIBDIR=PREFIX/lib)
	install -d $(DESTDIR)$(LIBDIR)/pkgconfig $(DESTDIR)$(PREFIX)/include/remus
	install -m 644 csrc/remus.h $(DESTDIR)$(PREFIX)/include/
	install -m 644 csrc/remus/*.h $(DESTDIR)$(PREFIX)/include/remus/
	install -m 644 $(BUILD)/remus_native.pc $(DESTDIR)$(LIBDIR)/pkgconfig/
	install -m 644 $(BUILD)/$(LIB).a $(DESTDIR)$(LIBDIR)/
	install -m 755 $(BUILD)/$(LIB).so $(DESTDIR)$(LIBDIR)/$(LIB).so.$(VERSION)
	ln -sf $(LIB).so.$(VERSION) $(DESTDIR)$(LIBDIR)/$(SONAME)
	ln -sf $(SONAME) $(DESTDIR)$(LIBDIR)/$(LIB).so

clean: ## remove what was built, .venv too
	rm -rf $(BUILD) dist $(VENV) *.egg-info remus_native/_core*.so \
	    .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find remus_native tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

FORCE:
