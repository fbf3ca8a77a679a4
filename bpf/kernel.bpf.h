/* SPDX-License-Identifier: GPL-2.0-only */
/* Reads of kernel structures, without kernel headers: each offset is named OFFSET(structure, field) where it
 * is used; the loader finds these names in the text, looks them up in this kernel's BTF and defines them. A
 * field that some kernels lack is asked for by #if HAS_structure__field; ENUM(type, NAME) is an enumerator,
 * -1 where this kernel has none of that name. */
#pragma once

#define OFFSET(structure, field) OFFSET_##structure##__##field
#define ENUM(type, name) ENUM_##type##__##name
#define INLINE static inline __attribute__((always_inline))

/* Field of a structure behind a plain address (from a map, or from another such read): it goes through
 * the helper, because the verifier only lets typed pointers be loaded from. Fault: zero. */
#define READ(type, base, structure, field)                                                             \
    ({                                                                                                 \
        type value_ = 0;                                                                               \
        bpf_probe_read_kernel(&value_, sizeof(value_), (void *)((base) + OFFSET(structure, field)));   \
        value_;                                                                                        \
    })

/* The same where the verifier knows the type (current task, what its fields lead to, its registers):
 * a plain load, without a call. */
#define LOAD(type, base, structure, field) (*(volatile type *)((base) + OFFSET(structure, field)))

/* A bound that the verifier can see. Clang drops a mask that it knows to be idle (the value was compared
 * before, in another register), and Linux 6.18 then refuses the copy: "R2 min value is negative, either use
 * unsigned or 'var &= const'". The empty statement hides the value from clang. */
#define BOUND(value, mask)                                                                             \
    ({                                                                                                 \
        uint64_t bounded_ = (value);                                                                   \
        asm volatile("" : "+r"(bounded_));                                                             \
        bounded_ & (mask);                                                                             \
    })

INLINE uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

INLINE uint32_t most(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

/* The task's saved registers: at the exit of a system call its arguments still stand there, so receives
 * need no hook at entry. Since Linux 5.15 (bpf_task_pt_regs). */
INLINE uint64_t saved_registers(void)
{
    return bpf_task_pt_regs(bpf_get_current_task_btf());
}

INLINE uint64_t argument(uint64_t registers, int n)
{
#if defined(__TARGET_ARCH_arm64)
    if (n == 0) /* regs[0] holds the result by now */
        return LOAD(uint64_t, registers, pt_regs, orig_x0);
    return *(volatile uint64_t *)(registers + OFFSET(pt_regs, regs) + 8 * n);
#else
    switch (n) {
    case 0:
        return LOAD(uint64_t, registers, pt_regs, di);
    case 1:
        return LOAD(uint64_t, registers, pt_regs, si);
    case 2:
        return LOAD(uint64_t, registers, pt_regs, dx);
    default:
        return LOAD(uint64_t, registers, pt_regs, r10);
    }
#endif
}

#if CAPTURE_KPROBES
/* The same for a function of the kernel, at its entry; and its result, at its return. `ctx` is a pt_regs. */
INLINE uint64_t parameter(void *ctx, int n)
{
#if defined(__TARGET_ARCH_arm64)
    return *(uint64_t *)(ctx + OFFSET(pt_regs, regs) + 8 * n);
#else
    switch (n) {
    case 0:
        return *(uint64_t *)(ctx + OFFSET(pt_regs, di));
    case 1:
        return *(uint64_t *)(ctx + OFFSET(pt_regs, si));
    case 2:
        return *(uint64_t *)(ctx + OFFSET(pt_regs, dx));
    case 3:
        return *(uint64_t *)(ctx + OFFSET(pt_regs, cx));
    default:
        return *(uint64_t *)(ctx + OFFSET(pt_regs, r8));
    }
#endif
}

INLINE int64_t returned(void *ctx)
{
#if defined(__TARGET_ARCH_arm64)
    return *(int64_t *)(ctx + OFFSET(pt_regs, regs));
#else
    return *(int64_t *)(ctx + OFFSET(pt_regs, ax));
#endif
}
#endif
