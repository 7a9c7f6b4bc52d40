/* A guest's view of the PCI bus for tests; see the header. Owned by the test's thread. */
#include "tests/unit/fake_pci.h"

#include <criterion/criterion.h>
#include <linux/pci_regs.h>

struct device *fake_pci_create_sized(struct fake_env *fake, struct pci_bus **bus, uint64_t window)
{
    const struct pci_bus_config config = {
        .ecam = {.base = FAKE_ECAM, .size = 0x100000},
        .mmio32 = {.base = FAKE_WINDOW, .size = window},
        .config_port = FAKE_CONFIG_PORT,
    };
    struct device *dev = NULL;

    device_lock(&fake->env);
    cr_assert_eq(pci_bus_create(&dev, bus, &fake->env, &config), 0);
    device_unlock(&fake->env);
    return dev;
}

struct device *fake_pci_create(struct fake_env *fake, struct pci_bus **bus)
{
    return fake_pci_create_sized(fake, bus, FAKE_WINDOW_SIZE);
}

uint32_t fake_config_read(struct fake_env *fake, unsigned slot, unsigned offset, unsigned size)
{
    return (uint32_t)fake_mmio_read(fake, FAKE_ECAM + (slot << 15) + offset, size);
}

void fake_config_write(struct fake_env *fake, unsigned slot, unsigned offset, unsigned size,
                       uint32_t value)
{
    fake_mmio_write(fake, FAKE_ECAM + (slot << 15) + offset, size, value);
}

unsigned fake_find_cap(struct fake_env *fake, unsigned slot, uint8_t id, unsigned n)
{
    unsigned at = 0;

    if (fake_config_read(fake, slot, PCI_STATUS, 2) & PCI_STATUS_CAP_LIST)
        at = fake_config_read(fake, slot, PCI_CAPABILITY_LIST, 1);
    for (int i = 0; at != 0; i++) {
        cr_assert_lt(i, 48, "the list of capabilities does not end");
        if (fake_config_read(fake, slot, at, 1) == id && n-- == 0)
            return at;
        at = fake_config_read(fake, slot, at + PCI_CAP_LIST_NEXT, 1);
    }
    return 0;
}

uint64_t fake_bar(struct fake_env *fake, unsigned slot, unsigned index)
{
    return fake_config_read(fake, slot, PCI_BASE_ADDRESS_0 + 4 * index, 4) & ~0xFull;
}

void fake_set_command(struct fake_env *fake, unsigned slot, uint16_t command)
{
    fake_config_write(fake, slot, PCI_COMMAND, 2, command);
}
