# The network modes against the host's kernel, in network namespaces of the test's own.
WIRE := $(BUILD)/tests/net/wire

.PHONY: check-modes
check-modes: guest $(BUILD)/ferry $(WIRE) $(BUILD)/tests/net/server ## try the network modes, in network namespaces
	tests/net/run-tests --ferry $(BUILD)/ferry --guests $(BUILD)/guest --wire $(WIRE)

$(WIRE): $(BUILD)/obj/tests/net/wire.o $(BUILD)/libferry.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(PKG_LIBS)

# What the payload tcp talks to.
TCP_SERVER := $(BUILD)/tests/net/server

$(TCP_SERVER): $(BUILD)/obj/tests/net/server.o
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS_ALL) -o $@ $^
