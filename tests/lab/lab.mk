# How fast this machine's time-stamp counter runs: tests/lab/lab tells its kernel.
LAB_TSC := $(BUILD)/tests/lab/tsc

$(LAB_TSC): tests/lab/tsc.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) -o $@ $<
