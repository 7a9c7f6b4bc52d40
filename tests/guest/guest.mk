# Payload guests: freestanding PVH kernels in $(BUILD)/guest/NAME.elf. `make guest` builds them all.
#
# -mgeneral-regs-only on the baseline x86-64 keeps out of them every instruction that a KVM which
# emulates CPL 0 refuses there (SSE, popcnt and the like); see lib/start.S.
GUEST_CC       ?= gcc
GUEST_CFLAGS   := -std=gnu17 -O2 -g -Wall -Wextra -Wshadow -Wstrict-prototypes \
                  -Wmissing-prototypes $(WERROR) -m64 -march=x86-64 -mgeneral-regs-only \
                  -mno-red-zone -mcmodel=small -ffreestanding -fno-pic -fno-pie \
                  -fno-stack-protector -fcf-protection=none -fno-asynchronous-unwind-tables \
                  -fno-strict-aliasing -ffunction-sections -fdata-sections -Itests/guest/lib -Itests/guest
GUEST_LDFLAGS  := -m64 -static -nostdlib -no-pie -Wl,--build-id=none -Wl,--gc-sections \
                  -Wl,-z,max-page-size=4096 -Wl,-z,noexecstack
GUEST_LIB_SRC  := $(sort $(wildcard tests/guest/lib/*.c))
GUEST_LIB_OBJ  := $(BUILD)/obj/tests/guest/lib/start.o $(GUEST_LIB_SRC:%.c=$(BUILD)/obj/%.o)
GUEST_SRC      := $(sort $(filter-out tests/guest/multiboot.c,$(wildcard tests/guest/*.c)))
GUEST_ELF      := $(GUEST_SRC:tests/guest/%.c=$(BUILD)/guest/%.elf) $(BUILD)/guest/multiboot.elf

.PHONY: guest check-guest
guest: $(GUEST_ELF) ## build the payload guests

check-guest: guest $(BUILD)/ferry $(BUILD)/tests/net/server ## run the payload guests under ferry
	tests/guest/run-tests --ferry $(BUILD)/ferry --guests $(BUILD)/guest

$(BUILD)/obj/tests/guest/%.o: tests/guest/%.c
	@mkdir -p $(@D)
	$(GUEST_CC) $(GUEST_CFLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/obj/tests/guest/%.o: tests/guest/%.S
	@mkdir -p $(@D)
	$(GUEST_CC) $(GUEST_CFLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/guest/%.elf: $(BUILD)/obj/tests/guest/%.o $(GUEST_LIB_OBJ) tests/guest/lib/payload.lds
	@mkdir -p $(@D)
	$(GUEST_CC) $(GUEST_LDFLAGS) -Wl,-T,tests/guest/lib/payload.lds -o $@ $(filter %.o,$^)

# The payloads hostile and tcp are in several files.
GUEST_HOSTILE_SRC := $(sort $(wildcard tests/guest/hostile/*.c))
GUEST_TCP_SRC := $(sort $(wildcard tests/guest/tcp/*.c))
$(BUILD)/guest/hostile.elf: $(GUEST_HOSTILE_SRC:%.c=$(BUILD)/obj/%.o)
$(BUILD)/guest/tcp.elf: $(GUEST_TCP_SRC:%.c=$(BUILD)/obj/%.o)

# The Multiboot guest is 32-bit and stands alone.
GUEST_MULTIBOOT_OBJ := $(BUILD)/obj/tests/guest/multiboot/start.o \
                       $(BUILD)/obj/tests/guest/multiboot/main.o

$(BUILD)/obj/tests/guest/multiboot/start.o: tests/guest/multiboot.S
	@mkdir -p $(@D)
	$(GUEST_CC) -m32 -c -o $@ $<

$(BUILD)/obj/tests/guest/multiboot/main.o: tests/guest/multiboot.c
	@mkdir -p $(@D)
	$(GUEST_CC) $(filter-out -m64 -march=x86-64 -mcmodel=small,$(GUEST_CFLAGS)) -m32 -march=i686 \
	    -MMD -MP -c -o $@ $<

$(BUILD)/guest/multiboot.elf: $(GUEST_MULTIBOOT_OBJ)
	@mkdir -p $(@D)
	$(GUEST_CC) -m32 -static -nostdlib -no-pie -Wl,--build-id=none -Wl,-z,noexecstack \
	    -Wl,-z,max-page-size=4096 -Wl,-Ttext-segment=0x100000 -Wl,-e,multiboot_entry -o $@ $^
