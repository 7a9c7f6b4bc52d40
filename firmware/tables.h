/*
 * Where the firmware's tables lie in guest memory; made by the table builder of the architecture,
 * used by the kernel loaders (to point the kernel at them, and to keep off them).
 */
#ifndef FERRY_FIRMWARE_TABLES_H
#define FERRY_FIRMWARE_TABLES_H

#include "vmm/memory.h"

struct firmware_tables {
    gpa_t root;    /* what the kernel is handed: the RSDP. 0: there are no tables */
    gpa_t base;    /* all of the tables lie in [base, base + size), page-aligned */
    uint64_t size; /* bytes */
};

#endif
