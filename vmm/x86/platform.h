/*
 * The x86 platform map: guest physical addresses, I/O ports and interrupt lines of the machine.
 *
 * Constants only. The machine builder places chips and memory by them, the firmware tells the guest
 * of them (memory map, ACPI); neither repeats a figure.
 */
#ifndef FERRY_X86_PLATFORM_H
#define FERRY_X86_PLATFORM_H

/* RAM: 0 .. min(size, hole base), and what does not fit from the hole's end. */
#define PLATFORM_HOLE_BASE 0xC0000000ull
#define PLATFORM_HOLE_END 0x100000000ull

/* Below 1 MiB, as PCs have it: what the guest must not take for RAM. */
#define PLATFORM_EBDA_BASE 0x9FC00ull
#define PLATFORM_GENID_BASE 0xDF000ull  /* the VM generation ID: 16 bytes, in a page of their own */
#define PLATFORM_TABLES_BASE 0xE0000ull /* ACPI tables, RSDP first, as far as they fit */
#define PLATFORM_RESET_VECTOR 0xFFFF0ull /* real mode's F000:FFF0, where firmware would begin */
#define PLATFORM_TABLES_END 0x100000ull

/* In the hole below 4 GiB. */
#define PLATFORM_MMIO32_BASE 0xC0000000ull /* PCI memory window */
#define PLATFORM_MMIO32_SIZE 0x20000000ull
#define PLATFORM_ECAM_BASE 0xE0000000ull
#define PLATFORM_ECAM_SIZE 0x100000ull /* bus 0 alone: 32 devices x 8 functions x 4 KiB */
#define PLATFORM_ECAM_LAST_BUS 0
#define PLATFORM_IOAPIC_BASE 0xFEC00000ull
#define PLATFORM_IOAPIC_PINS 24
#define PLATFORM_LAPIC_BASE 0xFEE00000ull
/* Four pages that KVM asks for on VT-x (KVM_SET_IDENTITY_MAP_ADDR, KVM_SET_TSS_ADDR). */
#define PLATFORM_KVM_IDENTITY_MAP 0xFEFFC000ull
#define PLATFORM_KVM_TSS 0xFEFFD000ull

/* I/O ports. */
#define PLATFORM_I8042_COMMAND_PORT 0x64 /* 0xFE written here resets */
#define PLATFORM_COM1_PORT 0x3F8
#define PLATFORM_COM1_PORTS 8
#define PLATFORM_PVPANIC_PORT 0x505
#define PLATFORM_SLEEP_CONTROL_PORT 0x600 /* ACPI 6.4 §4.8.3.7: SLP_TYP in bits 4:2, SLP_EN bit 5 */
#define PLATFORM_SLEEP_STATUS_PORT 0x601  /* WAK_STS in bit 7 */
#define PLATFORM_RESET_PORT 0x602
#define PLATFORM_RESET_VALUE 1
#define PLATFORM_PCI_CONFIG_ADDRESS_PORT 0xCF8
#define PLATFORM_PCI_CONFIG_DATA_PORT 0xCFC

/* The sleep type of \_S5; the guest powers off by writing (type << 2 | 1 << 5) to the control. */
#define PLATFORM_SLEEP_TYPE_S5 5

/* Interrupt lines (GSI, which is the IOAPIC's pin). All are edge triggered, active high. */
#define PLATFORM_COM1_GSI 4
#define PLATFORM_GED_GSI 5 /* ACPI event device: the power button */
#define PLATFORM_GENID_GSI 6 /* ACPI event device: the VM generation ID is another */

#endif
