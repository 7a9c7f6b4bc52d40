/* A guest's view of the PCI bus for tests: configuration accesses by ECAM. */
#ifndef FERRY_TESTS_FAKE_PCI_H
#define FERRY_TESTS_FAKE_PCI_H

#include "devices/pci/pci.h"
#include "tests/unit/fake_env.h"

#define FAKE_ECAM 0xE0000000ull
#define FAKE_WINDOW 0xC0000000ull
#define FAKE_WINDOW_SIZE 0x20000000ull
#define FAKE_CONFIG_PORT 0xCF8

/* The bus with its host bridge, as the platform map places it. */
struct device *fake_pci_create(struct fake_env *fake, struct pci_bus **bus);
/* The same with a memory window of another size. */
struct device *fake_pci_create_sized(struct fake_env *fake, struct pci_bus **bus, uint64_t window);

uint32_t fake_config_read(struct fake_env *fake, unsigned slot, unsigned offset, unsigned size);
void fake_config_write(struct fake_env *fake, unsigned slot, unsigned offset, unsigned size,
                       uint32_t value);
/* Offset of the n-th capability of this id (n from 0), or 0. Asserts that the list ends. */
unsigned fake_find_cap(struct fake_env *fake, unsigned slot, uint8_t id, unsigned n);
/* Where BAR `index` is, by its register. */
uint64_t fake_bar(struct fake_env *fake, unsigned slot, unsigned index);
void fake_set_command(struct fake_env *fake, unsigned slot, uint16_t command);

#endif
