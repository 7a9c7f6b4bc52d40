# Ferry's build. `make help` lists the targets.
BUILD   ?= build
CC      ?= gcc
PREFIX  ?= /usr/local
DESTDIR ?=
O       ?= -O2 -g
WERROR  ?= -Werror
VERSION := $(shell cat VERSION 2>/dev/null)

PKGS := liburing slirp jansson libzstd liblz4 liblzma zlib
PKG_CONFIG ?= pkg-config

WARN   := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes $(WERROR)
CFLAGS_ALL = -std=gnu17 $(O) $(WARN) -fno-strict-aliasing -fstack-protector-strong -I. \
             -D_GNU_SOURCE -DFERRY_VERSION='"$(VERSION)"' $(PKG_CFLAGS) $(CFLAGS) $(SAN)
LDFLAGS_ALL = -Wl,--as-needed -Wl,-z,relro $(LDFLAGS) $(SAN)

# Targets that need neither compiler nor libraries do not ask pkg-config.
ifeq ($(filter help deps clean lab,$(MAKECMDGOALS)),)
  ifneq ($(shell $(PKG_CONFIG) --exists $(PKGS) && echo yes),yes)
    ifeq ($(filter check demo,$(MAKECMDGOALS)),)
      $(error A library of: $(PKGS) is missing. Run `make deps`, which installs them)
    endif
  endif
  PKG_CFLAGS := $(shell $(PKG_CONFIG) --cflags $(PKGS) 2>/dev/null)
  PKG_LIBS   := $(shell $(PKG_CONFIG) --libs $(PKGS) 2>/dev/null) -lpthread
endif

LIB_SRC  := $(sort $(filter-out vmm/main.c,$(wildcard vmm/*.c vmm/util/*.c vmm/x86/*.c devices/*.c \
              devices/*/*.c net/*.c firmware/*.c firmware/x86/*.c migration/*.c)))
LIB_OBJ  := $(LIB_SRC:%.c=$(BUILD)/obj/%.o)
UNIT_SRC := $(sort $(wildcard tests/unit/test_*.c))
UNIT_BIN := $(UNIT_SRC:tests/unit/%.c=$(BUILD)/tests/unit/%)
UNIT_AUX := $(patsubst %.c,$(BUILD)/obj/%.o,$(sort $(filter-out $(UNIT_SRC),$(wildcard tests/unit/*.c))))

.PHONY: all help clean unit deps lab
all: $(BUILD)/ferry

help:
	@echo 'make            build $(BUILD)/ferry'
	@echo 'make demo       boot a Linux guest with networking, dependencies included'
	@echo 'make check      run every test, dependencies included'
	@echo 'make lab        a shell in the lab, a KVM host under emulation, with ferry in it'
	@echo 'make deps       install the Debian packages that all this takes'

$(BUILD)/ferry: $(BUILD)/obj/vmm/main.o $(BUILD)/libferry.a
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(PKG_LIBS)

$(BUILD)/libferry.a: $(LIB_OBJ)
	@rm -f $@
	$(AR) qcsD $@ $^

$(BUILD)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) -MMD -MP -c -o $@ $<

$(BUILD)/tests/unit/%: $(BUILD)/obj/tests/unit/%.o $(UNIT_AUX) $(BUILD)/libferry.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(PKG_LIBS) -lcriterion

unit: $(UNIT_BIN)

# The rest needs packages that may be missing: they come first, then make starts over.
deps:
	@tests/deps.sh

lab: deps
	@$(MAKE) --no-print-directory all
	@tests/lab/lab shell --put $(BUILD)/ferry --put $$(tests/lab/guest-initramfs.sh):/root/initrd \
	    --put $$(tests/lab/fetch.sh --kernel):/root/vmlinuz --memory 4G

clean:
	rm -rf $(BUILD)/obj $(BUILD)/tests $(BUILD)/ferry $(BUILD)/libferry.a

-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)
