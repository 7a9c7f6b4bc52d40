/*
 * A writer of AML, ACPI's byte code: namespace objects, data, the few operators that a small DSDT
 * needs, resource templates.
 *
 * Calls append to a growing buffer in the order in which the terms stand in ASL. What encloses
 * others (scope, device, method, if, else, package) is opened by its call and closed by aml_end().
 * Errors stick: after one, calls do nothing, and aml_finish() returns it. One thread at a time.
 *
 * Text: ACPI 6.4 §20 (AML), §6.4 (resource data types).
 */
#ifndef FERRY_FIRMWARE_AML_H
#define FERRY_FIRMWARE_AML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define AML_MAX_DEPTH 12

struct aml {
    uint8_t *data; /* owned until aml_finish() or aml_fini() */
    size_t length;
    size_t capacity;
    size_t open[AML_MAX_DEPTH]; /* where the package lengths of what is open belong */
    unsigned depth;
    int error;
};

/* Operators and objects that are one byte, for aml_op() (ACPI 6.4 §20.2.5). */
enum aml_op {
    AML_ZERO = 0x00,
    AML_ONE = 0x01,
    AML_LOCAL0 = 0x60,
    AML_ARG0 = 0x68,
    AML_ARG1 = 0x69,
    AML_ARG2 = 0x6A,
    AML_ARG3 = 0x6B,
    AML_STORE = 0x70,  /* source, target */
    AML_AND = 0x7B,    /* operand, operand, target */
    AML_OR = 0x7D,     /* operand, operand, target */
    AML_NOTIFY = 0x86, /* object, value */
    AML_LNOT = 0x92,   /* operand */
    AML_LEQUAL = 0x93, /* operand, operand */
    AML_RETURN = 0xA4, /* value */
};

void aml_init(struct aml *aml);
void aml_fini(struct aml *aml);
/* 0, or the first error: -ENOMEM, -EINVAL (something left open). The bytes stay in aml. */
int aml_finish(struct aml *aml);

/* Names are paths as in ASL, each segment of four characters: "\\_SB_", "PCI0", "\\_SB_.PWRB". */
void aml_scope(struct aml *aml, const char *path);
void aml_device(struct aml *aml, const char *path);
void aml_method(struct aml *aml, const char *path, unsigned n_args, bool serialized);
void aml_if(struct aml *aml);
void aml_else(struct aml *aml);
void aml_package(struct aml *aml, uint8_t n_elements);
void aml_end(struct aml *aml);

/* Name (path, ...): the object follows. */
void aml_name(struct aml *aml, const char *path);
/* A reference to a named object. */
void aml_path(struct aml *aml, const char *path);
void aml_op(struct aml *aml, enum aml_op op);
void aml_integer(struct aml *aml, uint64_t value);
void aml_string(struct aml *aml, const char *text);
/* EISAID ("PNP0A08"): three letters and four hexadecimal digits. */
void aml_eisaid(struct aml *aml, const char *id);
/* ToUUID ("xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx"), a buffer (ACPI 6.4 §19.6.142). */
void aml_uuid(struct aml *aml, const char *text);
void aml_buffer(struct aml *aml, const void *bytes, size_t length);
/* CreateDWordField (source, byte_index, name); the source is an operator of one byte. */
void aml_create_dword_field(struct aml *aml, enum aml_op source, uint64_t byte_index,
                            const char *name);

/* ---- resource templates ---- */
#define AML_RESOURCES_MAX 256

struct aml_resources {
    uint8_t bytes[AML_RESOURCES_MAX];
    size_t length;
};

/* Ranges are [base, base + size); size is not 0. They append to a zero-initialised struct. */
void aml_res_io(struct aml_resources *res, uint16_t base, uint8_t size);
void aml_res_irq(struct aml_resources *res, unsigned irq);           /* IRQNoFlags */
void aml_res_interrupt(struct aml_resources *res, uint32_t gsi);     /* edge, active high */
void aml_res_memory32_fixed(struct aml_resources *res, uint32_t base, uint32_t size);
/* Windows of a bridge: ResourceProducer, fixed, positive decode. */
void aml_res_bus_window(struct aml_resources *res, uint16_t first, uint16_t last);
void aml_res_io_window(struct aml_resources *res, uint16_t base, uint32_t size);
void aml_res_memory32_window(struct aml_resources *res, uint32_t base, uint32_t size);
void aml_res_memory64_window(struct aml_resources *res, uint64_t base, uint64_t size);
/* The template as a buffer object, with its end tag. */
void aml_resources(struct aml *aml, const struct aml_resources *res);

#endif
