/*
 * The PC part of the machine: its chips, its firmware tables, the first vCPU's entry.
 *
 * Composition root for x86, beside vmm/machine.c. The loop's thread; vCPUs are parked.
 */
#include <errno.h>

#include "devices/pci/pci.h"
#include "devices/power.h"
#include "devices/pvpanic.h"
#include "devices/uart16550.h"
#include "devices/vmgenid.h"
#include "firmware/kernel.h"
#include "firmware/x86/acpi.h"
#include "firmware/x86/reset_vector.h"
#include "vmm/machine_internal.h"
#include "vmm/vcpu.h"
#include "vmm/x86/platform.h"
#include "vmm/x86/x86.h"

void machine_arch_memory(struct memory_config *config)
{
    config->hole_base = PLATFORM_HOLE_BASE;
    config->hole_end = PLATFORM_HOLE_END;
}

static int add_power(struct machine *m)
{
    const struct power_config config = {
        .id = "power",
        .sleep_control_port = PLATFORM_SLEEP_CONTROL_PORT,
        .sleep_status_port = PLATFORM_SLEEP_STATUS_PORT,
        .s5_type = PLATFORM_SLEEP_TYPE_S5,
        .reset_port = PLATFORM_RESET_PORT,
        .reset_value = PLATFORM_RESET_VALUE,
        .i8042_command_port = PLATFORM_I8042_COMMAND_PORT,
        .button_gsi = PLATFORM_GED_GSI,
    };
    int err = power_create(&m->power, &m->env, &config);

    return err ? err : machine_add_device(m, m->power);
}

static int add_pvpanic(struct machine *m)
{
    const struct pvpanic_config config = {.id = "pvpanic", .port = PLATFORM_PVPANIC_PORT};
    struct device *dev;
    int err = pvpanic_create(&dev, &m->env, &config);

    return err ? err : machine_add_device(m, dev);
}

static int add_uart(struct machine *m)
{
    const struct uart16550_config config = {
        .id = "com1",
        .base = PLATFORM_COM1_PORT,
        .gsi = PLATFORM_COM1_GSI,
        .chardev = m->serial,
    };
    struct device *dev;
    int err = uart16550_create(&dev, &m->env, &config);

    return err ? err : machine_add_device(m, dev);
}

static int add_genid(struct machine *m)
{
    const struct vmgenid_config config = {
        .id = "genid", .place = PLATFORM_GENID_BASE, .gsi = PLATFORM_GENID_GSI};
    int err = vmgenid_create(&m->genid, &m->env, &config);

    return err ? err : machine_add_device(m, m->genid);
}

static int add_pci(struct machine *m)
{
    const struct pci_bus_config config = {
        .ecam = {PLATFORM_ECAM_BASE, PLATFORM_ECAM_SIZE},
        .mmio32 = {PLATFORM_MMIO32_BASE, PLATFORM_MMIO32_SIZE},
        .config_port = PLATFORM_PCI_CONFIG_ADDRESS_PORT,
    };
    struct device *dev;
    int err = pci_bus_create(&dev, &m->pci, &m->env, &config);

    return err ? err : machine_add_device(m, dev);
}

int machine_arch_devices(struct machine *m)
{
    static int (*const steps[])(struct machine *) = {add_power, add_pvpanic, add_uart, add_genid,
                                                         add_pci};
    int err = 0;

    for (size_t i = 0; !err && i < sizeof(steps) / sizeof(steps[0]); i++)
        err = steps[i](m);
    return err;
}

static void entry_of(const struct boot_entry *boot, struct x86_entry *entry)
{
    *entry = (struct x86_entry){
        .mode = X86_PROTECTED32,
        .rip = boot->entry,
        .rbx = boot->info,
        .cr3 = boot->page_tables,
        .gdt = boot->gdt,
        .gdt_limit = boot->gdt_limit,
        .cs = BOOT_SELECTOR_CS,
        .ds = BOOT_SELECTOR_DS,
        .tss = BOOT_SELECTOR_TSS,
    };
    switch (boot->mode) {
    case BOOT_LONG64:
        entry->mode = X86_LONG64;
        entry->rbx = 0;
        entry->rsi = boot->info;
        break;
    case BOOT_PVH32:
        break;
    case BOOT_MULTIBOOT32:
        entry->rax = BOOT_MULTIBOOT_MAGIC;
        break;
    }
}

/* Where KVM emulates the guest's kernel, a fifth of a second goes into each device that is found: none
 * is described there that the guest boots as well without. */
int machine_arch_load(struct machine *m)
{
    const struct acpi_config acpi = {
        .n_cpus = m->config->cpus,
        .has_processors = !m->assist,
        .has_uart = !m->assist || m->config->console == CONSOLE_SERIAL,
        .has_pvpanic = true,
        .has_power_button = true,
        .has_genid = true,
        .has_pci = true,
    };
    struct firmware_tables tables;
    struct boot_entry boot;
    struct x86_entry entry;
    int err = acpi_build(m->mem, &acpi, &tables);

    if (!err)
        err = vmgenid_show(m->genid);
    if (!err)
        err = reset_vector_write(m->mem);
    if (!err)
        err = kernel_load(m->kernel, m->mem, &tables, &boot);
    if (err)
        return err;
    entry_of(&boot, &entry);
    return x86_vcpu_enter_at(vcpu_fd(vcpus_get(m->vcpus, 0)), &entry);
}
