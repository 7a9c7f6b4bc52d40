/*
 * The instructions that are completed in user space, where a host's KVM does not know them: what
 * tells each in its bytes, and which function carries it out.
 *
 * Rows of one opcode, prefix and encoding all have a ModRM or none has; the first that fits is
 * taken. Text: Intel SDM volume 2, appendix A, and each instruction's page.
 */
#include "vmm/x86/emulate_internal.h"

#define M X86_FORM_MODRM
#define MEM (X86_FORM_MODRM | X86_FORM_MEM)
#define REG (X86_FORM_MODRM | X86_FORM_REG)
#define VEX X86_FORM_VEX
#define ANY X86_ANY

/* clang-format off */
#define ROW(name, map, opcode, pp, form, reg, rm, imm, detail, function) \
    {(name), x86_do_##function, X86_MAP_##map, (opcode), X86_PP_##pp, (form), (reg), (rm), (imm), (detail)}

const struct x86_op x86_ops[] = {
    /*   name           map   opcode pp    form  reg  rm   imm detail function */
    /* System */
    ROW("int3",         ONE,  0xCC, ANY,  0,    ANY, ANY, 0,  0, int3),
    ROW("int",          ONE,  0xCD, ANY,  0,    ANY, ANY, 1,  0, int),
    ROW("int1",         ONE,  0xF1, ANY,  0,    ANY, ANY, 0,  0, int1),
    ROW("ud2",          0F,   0x0B, ANY,  0,    ANY, ANY, 0,  0, undefined),
    ROW("ud1",          0F,   0xB9, ANY,  M,    ANY, ANY, 0,  0, undefined),
    ROW("ud0",          0F,   0xFF, ANY,  M,    ANY, ANY, 0,  0, undefined),
    ROW("monitor",      0F,   0x01, NONE, REG,  1,   0,   0,  0, monitor),
    ROW("mwait",        0F,   0x01, NONE, REG,  1,   1,   0,  0, mwait),
    ROW("clac",         0F,   0x01, NONE, REG,  1,   2,   0,  0, ac),
    ROW("stac",         0F,   0x01, NONE, REG,  1,   3,   0,  0, ac),
    ROW("xgetbv",       0F,   0x01, NONE, REG,  2,   0,   0,  0, xgetbv),
    ROW("rdtscp",       0F,   0x01, NONE, REG,  7,   1,   0,  0, rdtscp),
    ROW("verr",         0F,   0x00, ANY,  M,    4,   ANY, 0,  0, verr_verw),
    ROW("verw",         0F,   0x00, ANY,  M,    5,   ANY, 0,  0, verr_verw),
    ROW("lar",          0F,   0x02, ANY,  M,    ANY, ANY, 0,  0, lar_lsl),
    ROW("lsl",          0F,   0x03, ANY,  M,    ANY, ANY, 0,  0, lar_lsl),
    ROW("rdpid",        0F,   0xC7, F3,   REG,  7,   ANY, 0,  0, rdpid),
    ROW("rdfsbase",     0F,   0xAE, F3,   REG,  0,   ANY, 0,  0, fsgsbase),
    ROW("rdgsbase",     0F,   0xAE, F3,   REG,  1,   ANY, 0,  0, fsgsbase),
    ROW("wrfsbase",     0F,   0xAE, F3,   REG,  2,   ANY, 0,  0, fsgsbase),
    ROW("wrgsbase",     0F,   0xAE, F3,   REG,  3,   ANY, 0,  0, fsgsbase),
    ROW("invpcid",      0F38, 0x82, 66,   MEM,  ANY, ANY, 0,  0, invpcid),
    ROW("clwb",         0F,   0xAE, 66,   MEM,  6,   ANY, 0,  0, cache_line),
    ROW("clflushopt",   0F,   0xAE, 66,   MEM,  7,   ANY, 0,  0, cache_line),

    /* What a handler may begin with */
    ROW("nop",          ONE,  0x90, NONE, 0,    ANY, ANY, 0,  0, nop),
    ROW("pause",        ONE,  0x90, F3,   0,    ANY, ANY, 0,  0, nop),
    ROW("nop",          0F,   0x1F, ANY,  M,    0,   ANY, 0,  0, nop),
    ROW("endbr",        0F,   0x1E, F3,   REG,  7,   ANY, 0,  0, nop),
    ROW("cld",          ONE,  0xFC, ANY,  0,    ANY, ANY, 0,  0, direction),
    ROW("std",          ONE,  0xFD, ANY,  0,    ANY, ANY, 0,  0, direction),
    ROW("push",         ONE,  0x50, ANY,  X86_FORM_LOW3, ANY, ANY, 0, 0, push),

    /* General registers */
    ROW("cmpxchg16b",   0F,   0xC7, NONE, MEM | X86_FORM_LOCK | X86_FORM_W1, 1, ANY, 0, 0, cmpxchg16b),
    ROW("popcnt",       0F,   0xB8, F3,   M,    ANY, ANY, 0,  0, popcnt),
    ROW("tzcnt",        0F,   0xBC, F3,   M,    ANY, ANY, 0,  0, tzcnt),
    ROW("lzcnt",        0F,   0xBD, F3,   M,    ANY, ANY, 0,  0, lzcnt),
    ROW("crc32",        0F38, 0xF0, F2,   M,    ANY, ANY, 0,  0, crc32),
    ROW("crc32",        0F38, 0xF1, F2,   M,    ANY, ANY, 0,  0, crc32),
    ROW("movbe",        0F38, 0xF0, NONE, MEM,  ANY, ANY, 0,  0, movbe_load),
    ROW("movbe",        0F38, 0xF0, 66,   MEM,  ANY, ANY, 0,  0, movbe_load),
    ROW("movbe",        0F38, 0xF1, NONE, MEM,  ANY, ANY, 0,  0, movbe_store),
    ROW("movbe",        0F38, 0xF1, 66,   MEM,  ANY, ANY, 0,  0, movbe_store),
    ROW("adcx",         0F38, 0xF6, 66,   M,    ANY, ANY, 0,  0, adx),
    ROW("adox",         0F38, 0xF6, F3,   M,    ANY, ANY, 0,  0, adx),
    ROW("andn",         0F38, 0xF2, NONE, M | VEX, ANY, ANY, 0, 0, andn),
    ROW("blsr",         0F38, 0xF3, NONE, M | VEX, 1, ANY, 0, 0, bls),
    ROW("blsmsk",       0F38, 0xF3, NONE, M | VEX, 2, ANY, 0, 0, bls),
    ROW("blsi",         0F38, 0xF3, NONE, M | VEX, 3, ANY, 0, 0, bls),
    ROW("bextr",        0F38, 0xF7, NONE, M | VEX, ANY, ANY, 0, 0, bextr),
    ROW("shlx",         0F38, 0xF7, 66,   M | VEX, ANY, ANY, 0, 0, bmi_shift),
    ROW("sarx",         0F38, 0xF7, F3,   M | VEX, ANY, ANY, 0, 0, bmi_shift),
    ROW("shrx",         0F38, 0xF7, F2,   M | VEX, ANY, ANY, 0, 0, bmi_shift),
    ROW("mulx",         0F38, 0xF6, F2,   M | VEX, ANY, ANY, 0, 0, mulx),
    ROW("rorx",         0F3A, 0xF0, F2,   M | VEX, ANY, ANY, 1, 0, rorx),

    /* x87 */
    ROW("fwait",        ONE,  0x9B, ANY,  0,    ANY, ANY, 0,  0, fwait),
    ROW("fldcw",        ONE,  0xD9, ANY,  MEM,  5,   ANY, 0,  0, fldcw),
    ROW("fnstcw",       ONE,  0xD9, ANY,  MEM,  7,   ANY, 0,  0, fnstcw),
    ROW("fild",         ONE,  0xDB, ANY,  MEM,  0,   ANY, 0,  4, fild),
    ROW("fnclex",       ONE,  0xDB, ANY,  REG,  4,   2,   0,  0, fnclex),
    ROW("fninit",       ONE,  0xDB, ANY,  REG,  4,   3,   0,  0, fninit),
    ROW("fnstsw",       ONE,  0xDD, ANY,  MEM,  7,   ANY, 0,  0, fnstsw),
    ROW("fild",         ONE,  0xDF, ANY,  MEM,  0,   ANY, 0,  2, fild),
    ROW("fild",         ONE,  0xDF, ANY,  MEM,  5,   ANY, 0,  8, fild),
    ROW("fnstsw",       ONE,  0xDF, ANY,  REG,  4,   0,   0,  0, fnstsw_ax),
    ROW("emms",         0F,   0x77, NONE, 0,    ANY, ANY, 0,  0, emms),

    /* The state of x87 and SSE */
    ROW("fxsave",       0F,   0xAE, NONE, MEM,  0,   ANY, 0,  0, fxsave),
    ROW("fxrstor",      0F,   0xAE, NONE, MEM,  1,   ANY, 0,  0, fxrstor),
    ROW("ldmxcsr",      0F,   0xAE, NONE, MEM,  2,   ANY, 0,  0, ldmxcsr),
    ROW("stmxcsr",      0F,   0xAE, NONE, MEM,  3,   ANY, 0,  0, stmxcsr),
    ROW("vldmxcsr",     0F,   0xAE, NONE, MEM | VEX, 2, ANY, 0, 0, ldmxcsr),
    ROW("vstmxcsr",     0F,   0xAE, NONE, MEM | VEX, 3, ANY, 0, 0, stmxcsr),
    ROW("xsave",        0F,   0xAE, NONE, MEM,  4,   ANY, 0,  0, xsave),
    ROW("xrstor",       0F,   0xAE, NONE, MEM,  5,   ANY, 0,  0, xrstor),
    ROW("xsaveopt",     0F,   0xAE, NONE, MEM,  6,   ANY, 0,  0, xsave),
    ROW("xrstors",      0F,   0xC7, NONE, MEM,  3,   ANY, 0,  0, xrstors),
    ROW("xsavec",       0F,   0xC7, NONE, MEM,  4,   ANY, 0,  0, xsavec),
    ROW("xsaves",       0F,   0xC7, NONE, MEM,  5,   ANY, 0,  0, xsavec),
    {0},
};
/* clang-format on */
