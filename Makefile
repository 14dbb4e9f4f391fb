# SPDX-License-Identifier: LGPL-2.1-or-later
# `make` alone prints what there is. Nothing here asks a question.

PYTHON ?= python3
CC ?= gcc
PKG_CONFIG ?= pkg-config
PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
DESTDIR ?=
PYTEST_ARGS ?=

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
	install-lib asan tsan test-asan test-tsan bench clean FORCE

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
	        losetup:mount setarch:util-linux mount:mount fio:fio \
	        qemu-img:qemu-utils qemu-system-x86_64:qemu-system-x86 \
	        sqlite3:sqlite3 busybox:busybox readelf:binutils \
	        psktool:gnutls-bin openssl:openssl \
	        shellcheck:shellcheck; do \
	        has "$${pair%%:*}" || tests="$$tests $${pair##*:}"; \
	    done; \
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

setup: $(STAMP) ## .venv with the package in place; Debian packages if allowed

# Installed in place: Python changes need nothing, C changes compile again.
$(STAMP): $(wildcard csrc/*.c csrc/*.h) setup.py pyproject.toml Makefile \
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

bench: setup ## every benchmark, in its short form
	@for script in benchmarks/bench_*.py; do \
	    test -e "$$script" || continue; \
	    echo "== $$script"; \
	    $(BIN)/python "$$script" --quick || exit 1; \
	done

# ---- Tests ---------------------------------------------------------------------

test: setup ## C tests and the default suite (PYTEST_ARGS=...)
	@$(MAKE) --no-print-directory test-c
	$(BIN)/python -m pytest --junitxml=$(BUILD)/junit-default.xml $(PYTEST_ARGS)

# pytest's 5 says that no test was selected.
test-slow: setup ## soak, crash and fuzz tests (PYTEST_ARGS=...)
	$(BIN)/python -m pytest -m 'slow and not vm' --timeout=1200 \
	    --junitxml=$(BUILD)/junit-slow.xml $(PYTEST_ARGS) || [ $$? = 5 ]

test-vm: setup ## real DRBD, in a virtual machine (PYTEST_ARGS=...)
	$(BIN)/python -m pytest -m vm --junitxml=$(BUILD)/junit-vm.xml $(PYTEST_ARGS)

lint: setup ## ruff, mypy, shellcheck
	$(BIN)/ruff check .
	$(BIN)/mypy
	@command -v shellcheck >/dev/null || \
	    { echo "shellcheck is missing: apt-get install shellcheck" >&2; exit 1; }
	shellcheck .ci/run hotplug/* tests/vm/*.sh

format: setup ## lay out Python (ruff) and, where clang-format is, C
	$(BIN)/ruff format .
	@! command -v clang-format >/dev/null || clang-format -i csrc/*.[ch]

# ---- C ---------------------------------------------------------------------------

SOURCES := $(sort $(wildcard csrc/*.c))
# The simulated disk and what drives it are for tests: not in the library.
LIB_SOURCES := $(filter-out csrc/io_sim.c %_test.c,$(SOURCES))
C_TESTS := $(sort $(wildcard tests/c/test_*.c))

CFLAGS ?= -O2 -g
C_FLAGS = -std=c11 -D_GNU_SOURCE -Wall -Wextra -Wconversion -Wshadow \
	$(if $(filter 1,$(REMUS_WERROR)),-Werror) -fvisibility=hidden -fPIC -pthread \
	-iquote csrc $(shell $(PKG_CONFIG) --cflags fuse3 gnutls)
C_LIBS = -pthread $(shell $(PKG_CONFIG) --libs fuse3 gnutls)

# V=1 shows each command of the compiler.
Q := $(if $(V),,@)

# Objects and tests in three variants: plain, asan, tsan.
plain_FLAGS = $(CFLAGS)
asan_FLAGS = -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined \
	-fno-sanitize-recover=all
tsan_FLAGS = -O1 -g -fno-omit-frame-pointer -fsanitize=thread

# The thread sanitizer needs the memory layout of a process not to be random.
plain_RUN =
asan_RUN = ASAN_OPTIONS=detect_stack_use_after_return=1:strict_string_checks=1 \
	UBSAN_OPTIONS=print_stacktrace=1
tsan_RUN = TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1$(patsubst \
	%,:suppressions=$(CURDIR)/%,$(wildcard tests/c/tsan.supp)) \
	$(shell setarch -R true 2>/dev/null && echo setarch -R)

define variant
$(BUILD)/$(1)/%.o: csrc/%.c Makefile
	@mkdir -p $$(@D)
	@echo "CC      $$@"
	$(Q)$$(CC) $$(C_FLAGS) $$($(1)_FLAGS) -MMD -MP -c -o $$@ $$<

$(BUILD)/$(1)/test_%: tests/c/test_%.c Makefile \
		$(SOURCES:csrc/%.c=$(BUILD)/$(1)/%.o)
	@echo "LINK    $$@"
	$(Q)$$(CC) $$(C_FLAGS) $$($(1)_FLAGS) -MMD -MP -MF $$@.d -o $$@ $$< \
	    $$(filter %.o,$$^) $$(LDFLAGS) $$(C_LIBS)

$(1)_TESTS := $(C_TESTS:tests/c/%.c=$(BUILD)/$(1)/%)
-include $(wildcard $(BUILD)/$(1)/*.d)
endef
$(foreach v,plain asan tsan,$(eval $(call variant,$(v))))

# The tests of one variant, each with at most five minutes.  Exit 77: it can't
# run here, and its last line says why.
define run-tests
	@for program in $($(1)_TESTS); do \
	    if $($(1)_RUN) timeout 300 "$$program" >"$$program.log" 2>&1 \
	        </dev/null; \
	    then echo "ok      $$program"; \
	    else code=$$?; \
	        test $$code != 77 || { \
	            echo "skipped $$program: $$(tail -n 1 "$$program.log")"; \
	            continue; }; \
	        cat "$$program.log"; \
	        echo "FAILED  $$program (exit $$code)"; exit 1; fi; \
	done
	@test -n "$($(1)_TESTS)" || echo "tests/c has no test_*.c: nothing to run"
endef

test-c: $(plain_TESTS) ## the C tests
	$(call run-tests,plain)

asan: $(asan_TESTS) ## build the C tests with address and undefined sanitizers
tsan: $(tsan_TESTS) ## build the C tests with the thread sanitizer

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

# Fails if the exported functions are not exactly those of remus.h.
$(BUILD)/$(LIB).so: $(LIB_SOURCES:csrc/%.c=$(BUILD)/plain/%.o) \
		csrc/$(LIB).map csrc/remus.h Makefile
	@echo "LINK    $@"
	$(Q)$(CC) -shared -o $@ $(filter %.o,$^) $(LDFLAGS) $(C_LIBS) \
	    -Wl,-soname,$(SONAME) -Wl,--version-script=csrc/$(LIB).map \
	    -Wl,-z,defs -Wl,-z,relro -Wl,-z,now
	@sed -n 's/^REMUS_API .*[ *]\(remus_[a-z0-9_]*\)(.*/\1/p' csrc/remus.h | \
	    LC_ALL=C sort >$(BUILD)/api-header
	@nm -D --defined-only $@ | \
	    sed -n 's/^[0-9a-f]* T \([^@]*\).*/\1/p' | \
	    LC_ALL=C sort >$(BUILD)/api-library
	@diff $(BUILD)/api-header $(BUILD)/api-library || { echo \
	    "csrc/remus.h (<) and what $@ exports (>) differ: csrc/$(LIB).map" >&2; \
	    exit 1; }

$(BUILD)/$(SONAME): $(BUILD)/$(LIB).so
	ln -sf $(LIB).so $@

$(BUILD)/$(LIB).a: $(LIB_SOURCES:csrc/%.c=$(BUILD)/plain/%.o)
	@echo "AR      $@"
	@rm -f $@
	$(Q)$(AR) rcs $@ $^

# FORCE: it holds PREFIX and LIBDIR, which can differ at each call.
$(BUILD)/remus_native.pc: csrc/remus_native.pc.in FORCE
	@mkdir -p $(@D)
	sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@LIBDIR@|$(LIBDIR)|' \
	    -e 's|@VERSION@|$(VERSION)|' $< >$@

install-lib: lib ## install it (PREFIX=/usr/local DESTDIR= LIBDIR=PREFIX/lib)
	install -d $(DESTDIR)$(LIBDIR)/pkgconfig $(DESTDIR)$(PREFIX)/include
	install -m 644 csrc/remus.h $(DESTDIR)$(PREFIX)/include/
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
