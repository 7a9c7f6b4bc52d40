# Ferry's build. `make help` lists the targets.
BUILD      ?= build
PKG_CONFIG ?= pkg-config
PREFIX     ?= /usr/local
DESTDIR    ?=
O          ?= -O2 -g
WERROR     ?= -Werror
NDEBUG     ?=
VERSION    := $(file <VERSION)
ifeq ($(origin CC),default)
  CC := gcc
endif

# libslirp, libmicrohttpd, GnuTLS and libyaml are not linked: they are loaded when they are needed.
PKGS := liburing slirp libmicrohttpd gnutls yaml-0.1 jansson libzstd liblz4 liblzma zlib

WARN        := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes $(WERROR)
CFLAGS_ALL   = -std=gnu17 $(O) $(WARN) -fno-strict-aliasing -fstack-protector-strong -I. \
               -D_GNU_SOURCE -DFERRY_VERSION='"$(VERSION)"' $(if $(NDEBUG),-DNDEBUG) \
               $(PKG_CFLAGS) $(CFLAGS) $(SAN)
LDFLAGS_ALL  = -Wl,--as-needed -Wl,-z,relro $(LDFLAGS) $(SAN)

# Goals that compile nothing by themselves do not ask for libraries: some of them install those first.
ifneq ($(filter-out help deps clean lab linux demo check bench check-layers uninstall, \
                    $(or $(MAKECMDGOALS),all)),)
  ifneq ($(shell $(PKG_CONFIG) --exists $(PKGS) && echo yes),yes)
    $(error A library of: $(PKGS) is missing. Run `make deps`, which installs them)
  endif
  PKG_CFLAGS := $(shell $(PKG_CONFIG) --cflags $(PKGS))
  PKG_LIBS   := $(shell $(PKG_CONFIG) --libs $(PKGS)) -lpthread
  # What was built with other flags is built anew.
  FLAGS := $(CC) $(CFLAGS_ALL) $(LDFLAGS_ALL)
  ifneq ($(strip $(file <$(BUILD)/flags)),$(strip $(FLAGS)))
    $(shell mkdir -p $(BUILD))
    $(file >$(BUILD)/flags,$(FLAGS))
  endif
endif

LIB_SRC  := $(sort $(filter-out vmm/main.c,$(wildcard vmm/*.c vmm/util/*.c vmm/x86/*.c devices/*.c \
              devices/*/*.c net/*.c firmware/*.c firmware/x86/*.c migration/*.c)))
LIB_OBJ  := $(LIB_SRC:%.c=$(BUILD)/obj/%.o)
UNIT_SRC := $(sort $(wildcard tests/unit/test_*.c))
UNIT_BIN := $(UNIT_SRC:tests/unit/%.c=$(BUILD)/tests/unit/%)
UNIT_AUX := $(patsubst %.c,$(BUILD)/obj/%.o,$(sort $(filter-out $(UNIT_SRC),$(wildcard tests/unit/*.c))))

.PHONY: all
all: $(BUILD)/ferry ## build build/ferry; NDEBUG=1 leaves the assertions out

$(BUILD)/ferry: $(BUILD)/obj/vmm/main.o $(BUILD)/libferry.a
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(PKG_LIBS)

$(BUILD)/libferry.a: $(LIB_OBJ)
	@rm -f $@
	$(AR) qcsD $@ $^

$(BUILD)/obj/%.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) -MMD -MP -c -o $@ $<

$(BUILD)/tests/unit/%: $(BUILD)/obj/tests/unit/%.o $(UNIT_AUX) $(BUILD)/libferry.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(PKG_LIBS) -lcriterion

# Fragments: payload guests (`guest`), fuzz targets (`fuzz`).
-include tests/guest/guest.mk tests/fuzz/fuzz.mk tests/net/net.mk tests/lab/lab.mk

# ---- what takes packages that may be missing: they come first, then make starts over ----
.PHONY: demo check lab linux bench deps built
built: all unit $(GUEST_ELF) $(REPLAY_BIN) $(WIRE) $(TCP_SERVER) $(LAB_BIN)

demo: deps ## boot a Linux guest with networking, and show it
	@$(MAKE) --no-print-directory all
	@tests/demo/demo.sh

check: deps ## run every test
	@$(MAKE) --no-print-directory built asan-built
	@BUILD=$(BUILD) tests/check.sh

lab: deps ## a shell on a KVM host under emulation, with ferry in it
	@$(MAKE) --no-print-directory all $(LAB_BIN)
	@tests/lab/lab shell --put $(BUILD)/ferry --put $$(tests/lab/guest-initramfs.sh):/root/initrd \
	    --put $$(tests/lab/fetch.sh --kernel):/root/vmlinuz --memory 4G

linux: deps ## the small Linux that boots where KVM emulates kernel code; prints where it is
	@tests/guest/linux.sh

bench: deps ## measure start, size and costs, beside QEMU
	@$(MAKE) --no-print-directory built $(BUILD)/tests/bench/first-output $(BUILD)/tests/bench/switch \
	    $(BUILD)/tests/bench/loopback $(TCP_SERVER)
	@BUILD=$(BUILD) tests/bench/bench.sh

deps: ## install the Debian packages that all this takes
	@tests/deps.sh

# Those that measure Ferry's own code.
$(BUILD)/tests/bench/switch $(BUILD)/tests/bench/loopback: $(BUILD)/tests/bench/%: \
    $(BUILD)/obj/tests/bench/%.o $(BUILD)/libferry.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(PKG_LIBS)

$(BUILD)/tests/bench/%: tests/bench/%.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) -o $@ $<

# ---- tests of one kind ----
.PHONY: unit check-unit check-cli asan asan-built tsan
unit: $(UNIT_BIN)
# Objects of tests are kept, though nothing but a rule names them.
.SECONDARY:

check-unit: unit ## run the unit tests
	@set -e; for test in $(UNIT_BIN); do $$test --quiet; done

check-cli: all ## try the command line
	@FERRY=$(BUILD)/ferry tests/cli/run-tests

# Each sanitizer has a build folder of its own, in which unit tests and payload guests run.
SANITIZED = @LSAN_OPTIONS=suppressions=$(CURDIR)/tests/lsan.supp:print_suppressions=0 \
    $(MAKE) --no-print-directory O='-O1 -g -fno-omit-frame-pointer'
ASAN = $(SANITIZED) BUILD=$(BUILD)/asan SAN='-fsanitize=address,undefined -fno-sanitize-recover=all'
asan: ## unit tests and payload guests under the address and undefined-behaviour sanitizers
	+$(ASAN) check-unit $(PAYLOADS)
asan-built:
	+$(ASAN) all unit

# Criterion's sandbox does not survive the thread sanitizer: here only whole guests run.
tsan: ## payload guests under the thread sanitizer
	+$(SANITIZED) BUILD=$(BUILD)/tsan SAN='-fsanitize=thread -Wno-tsan' all $(PAYLOADS)

PAYLOADS = $(if $(GUEST_ELF),check-guest)

# ---- reading the code ----
.PHONY: lint check-layers
C_FILES = $(shell git ls-files '*.c' '*.h' | grep -v '^tests/guest/')
SCRIPTS = $(shell git grep -lE '^\#!/bin/(ba)?sh')
TIDY_FLAGS = -std=gnu17 -I. -D_GNU_SOURCE -DFERRY_VERSION='"$(VERSION)"' $(PKG_CFLAGS)

lint: check-layers ## clang-tidy, cppcheck, shellcheck, mandoc and the layers, whichever is there
	@tests/lint $(TIDY_FLAGS)

check-layers: ## check that dependencies point one way
	@tests/check-layers

# ---- installing ----
.PHONY: install uninstall clean help
BIN  := $(DESTDIR)$(PREFIX)/bin
MAN  := $(DESTDIR)$(PREFIX)/share/man/man1
BASH := $(DESTDIR)$(PREFIX)/share/bash-completion/completions
ZSH  := $(DESTDIR)$(PREFIX)/share/zsh/site-functions
FISH := $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d

install: all ## into $(PREFIX), below $(DESTDIR)
	install -d $(BIN) $(MAN) $(BASH) $(ZSH) $(FISH)
	install -m 755 $(BUILD)/ferry $(BIN)/ferry
	install -m 644 man/*.1 $(MAN)
	install -m 644 completion/ferry.bash $(BASH)/ferry
	install -m 644 completion/_ferry $(ZSH)/_ferry
	install -m 644 completion/ferry.fish $(FISH)/ferry.fish

uninstall: ## what install put there
	rm -f $(BIN)/ferry $(addprefix $(MAN)/,$(notdir $(wildcard man/*.1)))
	rm -f $(BASH)/ferry $(ZSH)/_ferry $(FISH)/ferry.fish

clean: ## remove what was built, not what was downloaded
	@mkdir -p $(BUILD)
	find $(BUILD) -mindepth 1 -maxdepth 1 ! -name cache -exec rm -rf {} +

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1:\2/p' $(filter Makefile %.mk,$(MAKEFILE_LIST)) | \
	    awk -F: '{ printf "%-20s%s\n", $$1, $$2 }'

-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)
