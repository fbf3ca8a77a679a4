/* SPDX-License-Identifier: Apache-2.0 */
/* The system calls that the pipeline may make once it reads what strangers sent: an allow-list.
 *
 * A seccomp filter in classic BPF, written by hand: load, compare, return. What is not listed gets EPERM,
 * which every library takes for a missing right. Two calls get ENOSYS, because glibc then takes the older
 * call whose arguments a filter can see (they pass theirs by pointer).
 *
 * Not needed and so not listed: bpf, execve, fork, ptrace, mount, kill, bind, listen, anything that
 * changes the file system, and netlink sockets (glibc's getaddrinfo asks netlink which address families
 * this host has, and takes both for present when it may not ask). AF_UNIX stays for name services that
 * are reached by it (nscd, systemd-resolved, sssd). */
#include "core.h"
#include <asm/unistd.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/prctl.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#if defined(__x86_64__)
#define AUDIT_ARCH_HERE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define AUDIT_ARCH_HERE AUDIT_ARCH_AARCH64
#else
#error "no system call list for this architecture: add its AUDIT_ARCH_ and check the numbers below"
#endif

/* Allowed whatever their arguments are. */
static const int ALLOWED[] = {
    /* descriptors: what is open already, and what `openat` below lets in */
    __NR_read, __NR_readv, __NR_pread64, __NR_write, __NR_writev, __NR_close, __NR_close_range, __NR_lseek,
    __NR_dup, __NR_dup3, __NR_pipe2, __NR_eventfd2, __NR_fsync, __NR_fdatasync, __NR_ftruncate,
    __NR_fadvise64,
    __NR_epoll_create1, __NR_epoll_ctl, __NR_epoll_pwait, __NR_ppoll, __NR_pselect6,
    /* files, to read */
    __NR_fstat, __NR_newfstatat, __NR_statx, __NR_faccessat, __NR_faccessat2, __NR_readlinkat,
    __NR_getdents64, __NR_getcwd, __NR_fstatfs, __NR_statfs,
    /* connections */
    __NR_connect, __NR_accept, __NR_accept4, __NR_sendto, __NR_sendmsg, __NR_sendmmsg, __NR_recvfrom,
    __NR_recvmsg, __NR_recvmmsg, __NR_getsockname, __NR_getpeername, __NR_setsockopt, __NR_getsockopt,
    __NR_shutdown,
    /* memory */
    __NR_brk, __NR_munmap, __NR_mremap, __NR_madvise, __NR_membarrier,
    /* threads and time */
    __NR_futex, __NR_set_robust_list, __NR_get_robust_list, __NR_set_tid_address, __NR_rseq,
    __NR_sched_yield, __NR_sched_getaffinity, __NR_getcpu, __NR_gettid, __NR_exit, __NR_exit_group,
    __NR_rt_sigaction, __NR_rt_sigprocmask, __NR_rt_sigreturn, __NR_sigaltstack, __NR_restart_syscall,
    __NR_nanosleep, __NR_clock_nanosleep, __NR_clock_gettime, __NR_clock_getres, __NR_gettimeofday,
    /* who am I */
    __NR_getpid, __NR_getppid, __NR_getuid, __NR_geteuid, __NR_getgid, __NR_getegid, __NR_getresuid,
    __NR_getresgid, __NR_uname, __NR_sysinfo, __NR_getrusage, __NR_times, __NR_getrandom,
#if defined(__x86_64__) /* the older forms that newer architectures left out */
    __NR_stat, __NR_lstat, __NR_access, __NR_readlink, __NR_poll, __NR_select, __NR_epoll_wait, __NR_dup2,
    __NR_time, __NR_arch_prctl,
#endif
};

/* glibc falls back to clone(2) and openat(2). */
static const int NOT_THERE[] = {__NR_clone3, __NR_openat2};

#define FILTER_MAX 512

struct filter {
    struct sock_filter code[FILTER_MAX];
    unsigned short count;
};

static void put(struct filter *f, uint16_t code, uint32_t k, uint8_t yes, uint8_t no)
{
    f->code[f->count++] = (struct sock_filter)BPF_JUMP(code, k, yes, no);
}

static void load(struct filter *f, size_t offset)
{
    put(f, BPF_LD | BPF_W | BPF_ABS, (uint32_t)offset, 0, 0);
}

static void answer(struct filter *f, uint32_t action)
{
    put(f, BPF_RET | BPF_K, action, 0, 0);
}

#define REFUSE(error) (SECCOMP_RET_ERRNO | (error))
/* The low half of an argument (both architectures are little-endian). Flags and numbers of the kernel's
 * interfaces are 32 bits wide; the kernel itself looks no further for those checked here. */
#define ARGUMENT(n) (offsetof(struct seccomp_data, args) + 8 * (n))

/* Calls with that number get `action`. The number is in the accumulator before and after. */
static void on_number(struct filter *f, int number, uint32_t action)
{
    put(f, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)number, 0, 1);
    answer(f, action);
}

/* Calls with that number: allowed when no bit of `bits` is set in the argument. */
static void on_clear(struct filter *f, int number, unsigned argument, uint32_t bits)
{
    put(f, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)number, 0, 4);
    load(f, ARGUMENT(argument));
    put(f, BPF_JMP | BPF_JSET | BPF_K, bits, 0, 1);
    answer(f, REFUSE(EPERM));
    answer(f, SECCOMP_RET_ALLOW);
}

/* Calls with that number: allowed when the argument is one of `values`. */
static void on_value(struct filter *f, int number, unsigned argument, const uint32_t *values, unsigned count)
{
    put(f, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)number, 0, (uint8_t)(2 + 2 * count));
    load(f, ARGUMENT(argument));
    for (unsigned i = 0; i < count; i++)
        on_number(f, (int)values[i], SECCOMP_RET_ALLOW);
    answer(f, REFUSE(EPERM));
}

/* Calls with that number: allowed unless all of `bits` are set in the argument. */
static void on_not_all(struct filter *f, int number, unsigned argument, uint32_t bits)
{
    put(f, BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)number, 0, 5);
    load(f, ARGUMENT(argument));
    put(f, BPF_ALU | BPF_AND | BPF_K, bits, 0, 0);
    put(f, BPF_JMP | BPF_JEQ | BPF_K, bits, 0, 1);
    answer(f, REFUSE(EPERM));
    answer(f, SECCOMP_RET_ALLOW);
}

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static void write_filter(struct filter *f)
{
    load(f, offsetof(struct seccomp_data, arch));
    put(f, BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_HERE, 1, 0);
    answer(f, SECCOMP_RET_KILL_PROCESS); /* another architecture's numbers mean other calls */
    load(f, offsetof(struct seccomp_data, nr));
    for (unsigned i = 0; i < COUNT(ALLOWED); i++)
        on_number(f, ALLOWED[i], SECCOMP_RET_ALLOW);
    for (unsigned i = 0; i < COUNT(NOT_THERE); i++)
        on_number(f, NOT_THERE[i], REFUSE(ENOSYS));

    /* Reading only. O_TMPFILE needs O_WRONLY or O_RDWR beside it. */
    const uint32_t writing = O_WRONLY | O_RDWR | O_CREAT | O_TRUNC | O_APPEND;
    on_clear(f, __NR_openat, 2, writing);
#if defined(__x86_64__)
    on_clear(f, __NR_open, 1, writing);
#endif

    const uint32_t families[] = {AF_INET, AF_INET6, AF_UNIX};
    on_value(f, __NR_socket, 0, families, COUNT(families));

    const uint32_t descriptor_commands[] = {F_DUPFD, F_DUPFD_CLOEXEC, F_GETFD, F_SETFD, F_GETFL, F_SETFL};
    on_value(f, __NR_fcntl, 1, descriptor_commands, COUNT(descriptor_commands));
    const uint32_t terminal_commands[] = {FIONBIO, FIONREAD, FIOCLEX, TCGETS, TIOCGWINSZ};
    on_value(f, __NR_ioctl, 1, terminal_commands, COUNT(terminal_commands));

    /* Memory is writable or executable; libraries that name services load are mapped, not patched. */
    on_not_all(f, __NR_mmap, 2, PROT_WRITE | PROT_EXEC);
    on_clear(f, __NR_mprotect, 2, PROT_EXEC);

    /* Threads, never processes. */
    put(f, BPF_JMP | BPF_JEQ | BPF_K, __NR_clone, 0, 4);
    load(f, ARGUMENT(0));
    put(f, BPF_JMP | BPF_JSET | BPF_K, 0x00010000 /* CLONE_THREAD */, 1, 0);
    answer(f, REFUSE(EPERM));
    answer(f, SECCOMP_RET_ALLOW);

    const uint32_t self[] = {(uint32_t)getpid()}; /* abort() and pthread_kill() of this process */
    on_value(f, __NR_tgkill, 0, self, COUNT(self));
    const uint32_t naming[] = {PR_SET_NAME};
    on_value(f, __NR_prctl, 0, naming, COUNT(naming));

    /* glibc asks for the stack limit when it makes threads: reading only, the new limit is NULL. */
    put(f, BPF_JMP | BPF_JEQ | BPF_K, __NR_prlimit64, 0, 6);
    load(f, ARGUMENT(2));
    put(f, BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 3);
    load(f, ARGUMENT(2) + 4);
    put(f, BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 1);
    answer(f, SECCOMP_RET_ALLOW);
    answer(f, REFUSE(EPERM));

    answer(f, REFUSE(EPERM));
}

int sandbox_enter(void)
{
    struct filter filter = {.count = 0};
    write_filter(&filter);
    const struct sock_fprog program = {.len = filter.count, .filter = filter.code};
    /* All threads at once; a thread that cannot follow is returned as its id. */
    long failed = syscall(__NR_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program);
    if (failed < 0)
        return -errno;
    return failed == 0 ? 0 : -ESRCH;
}

_Static_assert(COUNT(ALLOWED) * 2 + COUNT(NOT_THERE) * 2 + 128 < FILTER_MAX, "the filter fits");
