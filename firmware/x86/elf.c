/*
 * ELF kernels: headers, program headers and the PVH note into a load plan.
 *
 * Does not load (load.c does), relocate, or look at sections. Both classes are read, for Multiboot
 * kernels are 32-bit. Every header is copied once from the source, then validated. No state.
 *
 * Texts: System V ABI (gABI 4.1) chapters 4 and 5; psABI x86-64 and i386 for the machine numbers;
 * Xen, docs/misc/pvh.pandoc and public/elfnote.h, for XEN_ELFNOTE_PHYS32_ENTRY.
 */
#include <elf.h>
#include <errno.h>
#include <string.h>

#include "firmware/x86/x86_internal.h"
#include "vmm/util/log.h"

/* Of a PT_NOTE segment is looked at; Linux has some hundred bytes. */
#define NOTES_MAX 4096
#define XEN_ELFNOTE_PHYS32_ENTRY 18

/* The two classes' headers, as one. */
struct elf_header {
    uint16_t type;
    uint16_t machine;
    uint64_t entry;
    uint64_t phoff;
    uint16_t phentsize;
    uint16_t phnum;
};

struct elf_program {
    uint32_t type;
    uint64_t offset;
    uint64_t vaddr;
    uint64_t paddr;
    uint64_t filesz;
    uint64_t memsz;
    uint64_t align;
};

static const struct {
    uint16_t machine;
    const char *name;
} machines[] = {
    {EM_386, "x86, 32-bit"}, {EM_X86_64, "x86-64"},   {EM_ARM, "arm"},
    {EM_AARCH64, "arm64"},   {EM_RISCV, "RISC-V"},    {EM_PPC64, "ppc64"},
    {EM_S390, "s390"},       {EM_MIPS, "MIPS"},       {EM_SPARCV9, "SPARC"},
};

static const char *machine_name(uint16_t machine)
{
    for (size_t i = 0; i < sizeof(machines) / sizeof(machines[0]); i++)
        if (machines[i].machine == machine)
            return machines[i].name;
    return "another machine";
}

/* Fields of the same name, from either class. */
#define COPY_HEADER(h, e)                                                                          \
    (*(h) = (struct elf_header){(e).e_type, (e).e_machine, (e).e_entry, (e).e_phoff,               \
                                (e).e_phentsize, (e).e_phnum})
#define COPY_PROGRAM(p, e)                                                                         \
    (*(p) = (struct elf_program){(e).p_type, (e).p_offset, (e).p_vaddr, (e).p_paddr, (e).p_filesz, \
                                 (e).p_memsz, (e).p_align})

static int read_header(const struct kernel_source *source, bool *is_64, struct elf_header *out)
{
    const char *path = source->file->path;
    uint8_t ident[EI_NIDENT];
    Elf64_Ehdr e64;
    Elf32_Ehdr e32;
    int err = kernel_source_read(source, ident, sizeof(ident), 0);

    if (err)
        return err;
    if (memcmp(ident, ELFMAG, SELFMAG) != 0 || ident[EI_VERSION] != EV_CURRENT ||
        (ident[EI_CLASS] != ELFCLASS64 && ident[EI_CLASS] != ELFCLASS32)) {
        log_error("kernel %s: its ELF header is not valid", path);
        return -ENOEXEC;
    }
    if (ident[EI_DATA] != ELFDATA2LSB) {
        log_error("kernel %s: a big-endian ELF, and this machine is x86-64", path);
        return -ENOEXEC;
    }
    *is_64 = ident[EI_CLASS] == ELFCLASS64;
    if (*is_64) {
        err = kernel_source_read(source, &e64, sizeof(e64), 0);
        if (!err)
            COPY_HEADER(out, e64);
    } else {
        err = kernel_source_read(source, &e32, sizeof(e32), 0);
        if (!err)
            COPY_HEADER(out, e32);
    }
    return err;
}

/* Headers are read from the first on, and one outside the source ends it: `at` cannot wrap. */
static int read_program(const struct kernel_source *source, bool is_64,
                        const struct elf_header *header, unsigned index, struct elf_program *out)
{
    uint64_t at = header->phoff + (uint64_t)index * header->phentsize;
    Elf64_Phdr p64;
    Elf32_Phdr p32;
    int err;

    if (is_64) {
        err = kernel_source_read(source, &p64, sizeof(p64), at);
        if (!err)
            COPY_PROGRAM(out, p64);
    } else {
        err = kernel_source_read(source, &p32, sizeof(p32), at);
        if (!err)
            COPY_PROGRAM(out, p32);
    }
    return err;
}

static int check_header(const struct kernel_source *source, bool is_64,
                        const struct elf_header *header)
{
    const char *path = source->file->path;
    size_t least = is_64 ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr);

    if (header->machine != EM_X86_64 && header->machine != EM_386) {
        log_error("kernel %s: an ELF for %s (machine %u), and this machine is x86-64", path,
                  machine_name(header->machine), header->machine);
        return -ENOEXEC;
    }
    if (header->type != ET_EXEC && header->type != ET_DYN) {
        log_error("kernel %s: an ELF that is not executable (type %u): an object file, or a core",
                  path, header->type);
        return -ENOEXEC;
    }
    if (header->phnum == 0 || header->phnum > KERNEL_MAX_SEGMENTS || header->phentsize < least) {
        log_error("kernel %s: %u ELF program headers of %u bytes; 1 to %u of at least %zu are "
                  "expected", path, header->phnum, header->phentsize, KERNEL_MAX_SEGMENTS, least);
        return -ENOEXEC;
    }
    return 0;
}

static uint64_t align_up(uint64_t value, uint64_t unit)
{
    return (value + unit - 1) & ~(unit - 1);
}

/* gABI chapter 5, "Note Section": name and descriptor are each padded to the alignment. */
static bool find_pvh_note(const uint8_t *notes, uint32_t length, uint64_t unit, gpa_t *entry)
{
    uint64_t at = 0;

    while (length - at >= sizeof(Elf64_Nhdr)) {
        Elf64_Nhdr note;
        uint64_t name, desc;

        memcpy(&note, notes + at, sizeof(note));
        name = at + sizeof(note);
        desc = align_up(name + note.n_namesz, unit);
        /* All sums of 32-bit numbers in 64 bits: none wraps. */
        if (desc + note.n_descsz > length)
            return false;
        if (note.n_type == XEN_ELFNOTE_PHYS32_ENTRY && note.n_namesz == 4 &&
            memcmp(notes + name, "Xen", 4) == 0 && (note.n_descsz == 4 || note.n_descsz == 8)) {
            *entry = 0;
            memcpy(entry, notes + desc, note.n_descsz);
            return true;
        }
        at = align_up(desc + note.n_descsz, unit);
        if (at > length)
            return false;
    }
    return false;
}

static int read_note(const struct kernel_source *source, const struct elf_program *program,
                     struct elf_facts *facts)
{
    uint8_t notes[NOTES_MAX];
    uint32_t length = sizeof(notes);
    int err;

    if (program->filesz < length)
        length = (uint32_t)program->filesz;
    err = kernel_source_read(source, notes, length, program->offset);
    if (!err && find_pvh_note(notes, length, program->align == 8 ? 8 : 4, &facts->pvh_entry))
        facts->has_pvh_entry = true;
    return err;
}

/*
 * The entry is a physical address with Linux; where it is not one of a segment, but a virtual one
 * is, it is translated.
 */
static gpa_t physical_entry(uint64_t entry, const struct elf_program *program, gpa_t found)
{
    uint64_t offset = entry - program->vaddr;

    if (entry >= program->paddr && entry - program->paddr < program->memsz)
        return entry;
    if (found == 0 && entry >= program->vaddr && offset < program->memsz)
        return program->paddr + offset;
    return found;
}

static int add_segment(const struct kernel_source *source, const struct elf_program *program,
                       struct kernel_plan *plan)
{
    if (program->memsz == 0)
        return 0;
    if (program->paddr < BOOT_KERNEL_MIN) {
        log_error("kernel %s: segment %u is to be loaded at %#llx; below 1 MiB there is no room "
                  "for kernels", source->file->path, plan->n_segments,
                  (unsigned long long)program->paddr);
        return -EINVAL;
    }
    plan->segments[plan->n_segments++] = (struct kernel_segment){
        .at = program->paddr,
        .offset = program->offset,
        .file_size = program->filesz,
        .mem_size = program->memsz,
    };
    return 0;
}

static int refuse_program(const struct kernel_source *source)
{
    log_error("kernel %s: an ELF that asks for an interpreter: a program, not a kernel",
              source->file->path);
    return -ENOEXEC;
}

int elf_parse(const struct kernel_source *source, struct kernel_plan *plan,
              struct elf_facts *facts)
{
    struct elf_header header;
    gpa_t entry = 0;
    int err;

    *plan = (struct kernel_plan){0};
    *facts = (struct elf_facts){0};
    err = read_header(source, &facts->is_64, &header);
    if (err)
        return err;
    facts->machine = header.machine;
    err = check_header(source, facts->is_64, &header);
    for (unsigned i = 0; i < header.phnum && !err; i++) {
        struct elf_program program;

        err = read_program(source, facts->is_64, &header, i, &program);
        if (!err && program.type == PT_NOTE && !facts->has_pvh_entry)
            err = read_note(source, &program, facts);
        if (!err && program.type == PT_INTERP)
            err = refuse_program(source);
        if (err || program.type != PT_LOAD)
            continue;
        entry = physical_entry(header.entry, &program, entry);
        err = add_segment(source, &program, plan);
    }
    plan->entry = entry ? entry : header.entry;
    return err ? err : kernel_plan_check(plan, source);
}

int elf_check_64(const struct kernel_source *source, const struct elf_facts *facts)
{
    if (facts->is_64 && facts->machine == EM_X86_64)
        return 0;
    log_error("kernel %s: a 32-bit ELF without a Multiboot header; ELF kernels must be 64-bit",
              source->file->path);
    return -ENOEXEC;
}

int elf_check_entry(const struct kernel_source *source, const struct kernel_plan *plan)
{
    for (unsigned i = 0; i < plan->n_segments; i++) {
        const struct kernel_segment *s = &plan->segments[i];

        if (plan->entry >= s->at && plan->entry - s->at < s->mem_size)
            return 0;
    }
    log_error("kernel %s: its entry %#llx is in none of its %u segments", source->file->path,
              (unsigned long long)plan->entry, plan->n_segments);
    return -ENOEXEC;
}
