# Programs of the lab: how fast this machine's time-stamp counter runs, which tests/lab/lab tells its kernel;
# what keeps that kernel from patching its code while tests run.
LAB_BIN := $(BUILD)/tests/lab/tsc $(BUILD)/tests/lab/hold

$(LAB_BIN): $(BUILD)/tests/lab/%: tests/lab/%.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) -o $@ $<
