# Fuzz targets. One is tests/fuzz/fuzz_NAME.c (see fuzz.h), with seeds in tests/fuzz/corpus/NAME/.
# Other .c files here, but for replay.c, are helper code linked into every target.
#
#   make fuzz                      build all with libFuzzer and the sanitizers, run each in turn
#   make fuzz FUZZ=NAME            only that one
#   make fuzz FUZZ_SECONDS=600     how long each runs
#   make fuzz-replay               run each once over its seeds, by the ordinary compiler
#
# What a run finds new is kept in $(BUILD)/fuzz/corpus/NAME; a crash in $(BUILD)/fuzz/NAME-crash-*.
FUZZ_CC      ?= clang-14
FUZZ_SECONDS ?= 20
FUZZ_SAN     := -fsanitize=address,undefined -fno-sanitize-recover=undefined
FUZZ_NAMES   := $(patsubst tests/fuzz/fuzz_%.c,%,$(sort $(wildcard tests/fuzz/fuzz_*.c)))
FUZZ         ?= $(FUZZ_NAMES)
FUZZ_HELPERS := $(filter-out tests/fuzz/replay.c tests/fuzz/fuzz_%.c,$(sort $(wildcard tests/fuzz/*.c)))
FUZZ_LIB     := $(LIB_SRC:%.c=$(BUILD)/fuzz/obj/%.o) $(FUZZ_HELPERS:%.c=$(BUILD)/fuzz/obj/%.o)
REPLAY_BIN   := $(FUZZ_NAMES:%=$(BUILD)/tests/fuzz/replay_%)
REPLAY_AUX   := $(FUZZ_HELPERS:%.c=$(BUILD)/obj/%.o)

.PHONY: fuzz fuzz-replay fuzz-tools
fuzz: $(FUZZ:%=$(BUILD)/fuzz/fuzz_%) ## run every fuzz target for FUZZ_SECONDS (20), by clang
	@for name in $(FUZZ); do \
	    mkdir -p $(BUILD)/fuzz/corpus/$$name tests/fuzz/corpus/$$name; \
	    log=$(BUILD)/fuzz/$$name.log; \
	    $(BUILD)/fuzz/fuzz_$$name -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=2048 \
	        -print_final_stats=1 -artifact_prefix=$(BUILD)/fuzz/$$name- \
	        $(BUILD)/fuzz/corpus/$$name tests/fuzz/corpus/$$name >$$log 2>&1 || \
	        { tail -n 60 $$log; echo "fuzz $$name: failed; $$log has it all"; exit 1; }; \
	    echo "fuzz $$name: $$(sed -n 's/^stat::number_of_executed_units: *//p' $$log) inputs," \
	        "$$(ls $(BUILD)/fuzz/corpus/$$name | wc -l) kept, no failure"; \
	done

fuzz-replay: $(REPLAY_BIN) ## run the fuzz targets over their stored corpora
	@for name in $(FUZZ); do \
	    $(BUILD)/tests/fuzz/replay_$$name tests/fuzz/corpus/$$name || exit 1; \
	done

fuzz-tools:
	@command -v $(FUZZ_CC) >/dev/null || { \
	    echo 'make fuzz: there is no $(FUZZ_CC); install the packages clang-14 and' \
	         'libclang-rt-14-dev, or name another clang by FUZZ_CC=' >&2; exit 1; }

$(BUILD)/fuzz/obj/%.o: %.c | fuzz-tools
	@mkdir -p $(@D)
	$(FUZZ_CC) $(CFLAGS_ALL) -w -O1 $(FUZZ_SAN) -fsanitize=fuzzer-no-link -MMD -MP -c -o $@ $<

$(BUILD)/fuzz/libferry.a: $(FUZZ_LIB)
	@rm -f $@
	$(AR) qcsD $@ $^

$(BUILD)/fuzz/fuzz_%: $(BUILD)/fuzz/obj/tests/fuzz/fuzz_%.o $(BUILD)/fuzz/libferry.a
	$(FUZZ_CC) $(LDFLAGS_ALL) $(FUZZ_SAN) -fsanitize=fuzzer -o $@ $^ $(PKG_LIBS)

$(BUILD)/tests/fuzz/replay_%: $(BUILD)/obj/tests/fuzz/replay.o $(BUILD)/obj/tests/fuzz/fuzz_%.o \
                              $(REPLAY_AUX) $(BUILD)/libferry.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(PKG_LIBS)

.PRECIOUS: $(BUILD)/fuzz/obj/%.o

-include $(shell find $(BUILD)/fuzz/obj -name '*.d' 2>/dev/null)
