// shim: notes every change that a broker makes to its data directory, and what it made durable, in a log of its own.
//
// Owns: catching the system calls that write, name or sync files below POWER_LOSS_ROOT, and the log's format (rebuild.rs
// reads it). Never: decides what survives a power loss; changes what the broker writes; looks at anything outside the root.
//
// Preloaded. It does not replace libc's functions, because not every caller goes through libc: a seccomp filter traps the
// system calls themselves (SIGSYS, in the calling thread), and the handler makes the call from the one place that the filter
// lets through. So it sees the very binary that users run. Nothing here allocates or calls libc once the filter is in place.
//
// Environment: POWER_LOSS_ROOT, the data directory, absolute, as the broker names it. POWER_LOSS_LOG, the log, which must not
// be below the root. While POWER_LOSS_LOG.eio exists, every sync fails with EIO and promises nothing. POWER_LOSS_SYNC_MS is added
// to the time that each sync takes, so that more is on its way when the power goes; while POWER_LOSS_LOG.slow exists,
// POWER_LOSS_SLOW_MS is.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <ucontext.h>

#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#ifndef SYS_close_range
#define SYS_close_range 436
#endif

// The one place from which calls are let through: `raw_syscall_end` is the address behind the instruction.
long raw_syscall(long number, long a, long b, long c, long d, long e, long f);
extern const char raw_syscall_end[];

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
__asm__(".text\n.globl raw_syscall\n.hidden raw_syscall\n.type raw_syscall,@function\nraw_syscall:\n"
        "mov %rdi,%rax\nmov %rsi,%rdi\nmov %rdx,%rsi\nmov %rcx,%rdx\nmov %r8,%r10\nmov %r9,%r8\nmov 8(%rsp),%r9\n"
        "syscall\n.globl raw_syscall_end\n.hidden raw_syscall_end\nraw_syscall_end:\nret\n");
#define REGISTER(context, n) ((context)->uc_mcontext.gregs[argument_registers[n]])
#define RESULT(context) ((context)->uc_mcontext.gregs[REG_RAX])
static const int argument_registers[6] = {REG_RDI, REG_RSI, REG_RDX, REG_R10, REG_R8, REG_R9};
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
__asm__(".text\n.globl raw_syscall\n.hidden raw_syscall\n.type raw_syscall,%function\nraw_syscall:\n"
        "mov x8,x0\nmov x0,x1\nmov x1,x2\nmov x2,x3\nmov x3,x4\nmov x4,x5\nmov x5,x6\n"
        "svc #0\n.globl raw_syscall_end\n.hidden raw_syscall_end\nraw_syscall_end:\nret\n");
#define REGISTER(context, n) ((context)->uc_mcontext.regs[n])
#define RESULT(context) ((context)->uc_mcontext.regs[0])
#else
#error "the shim knows x86_64 and aarch64"
#endif

#define CALL(number, ...) CALL_(number, __VA_ARGS__, 0, 0, 0, 0, 0, 0)
#define CALL_(number, a, b, c, d, e, f, ...) \
    raw_syscall(number, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

// A record of the log: this header, then `length` bytes. Native byte order. rebuild.rs has the same list.
enum { OPEN = 1, CLOSE, DUP, WRITE, SIZE, ALLOCATE, RENAME, UNLINK, MKDIR, SYNC, SYNCFS, UNSUPPORTED };
enum { OPEN_CREATED = 1, OPEN_TRUNCATED = 2 };
struct record {
    uint32_t kind;
    int32_t fd;
    uint64_t a, b;
    uint64_t length;
};

#define PATH_BYTES 4096
#define FD_MAX 65536
#define IOV_MAX_HERE 1024

static char root[PATH_BYTES];
static size_t root_length;
static char eio_path[PATH_BYTES];
static char slow_path[PATH_BYTES];
static int log_fd = -1;
static struct timespec sync_time;
static struct timespec slow_time;
// Everything below is guarded by the lock.
static int lock_word;
static unsigned char tracked[FD_MAX];
static uint64_t records;

static void lock(void) {
    while (__atomic_exchange_n(&lock_word, 1, __ATOMIC_ACQUIRE)) CALL(SYS_sched_yield, 0);
}
static void unlock(void) { __atomic_store_n(&lock_word, 0, __ATOMIC_RELEASE); }

// The test is worthless once the log is not whole: end the process so that nobody can miss it.
static void fail(const char *why) {
    CALL(SYS_write, 2, why, strlen(why));
    CALL(SYS_exit_group, 99);
    __builtin_unreachable();
}

static void log_bytes(const void *bytes, size_t length) {
    const char *at = bytes;
    while (length > 0) {
        long written = CALL(SYS_write, log_fd, at, length);
        if (written == -EINTR) continue;
        if (written <= 0) fail("power-loss shim: cannot write the log\n");
        at += written;
        length -= (size_t)written;
    }
}

static void log_header(int kind, int fd, uint64_t a, uint64_t b, uint64_t length) {
    struct record record = {(uint32_t)kind, fd, a, b, length};
    records++;
    log_bytes(&record, sizeof record);
}

static void log_text(int kind, int fd, uint64_t a, const char *text) {
    size_t length = strlen(text);
    log_header(kind, fd, a, 0, length);
    log_bytes(text, length);
}

static int is_tracked(long fd) {
    return fd >= 0 && fd < FD_MAX && __atomic_load_n(&tracked[fd], __ATOMIC_RELAXED);
}

// Writes the path below the root that `dirfd` and `path` name to `out`, or returns 0 if it is not below the root.
static int below_root(long dirfd, const char *path, char *out) {
    char whole[PATH_BYTES * 2];
    size_t length = 0;
    if (path[0] != '/') {
        char link[40] = "/proc/self/cwd";
        if ((int)dirfd != AT_FDCWD) {
            if (!is_tracked((int)dirfd)) return 0;
            // By number, because the directory may have another name by now.
            char digits[12];
            int count = 0;
            for (long rest = dirfd; rest > 0 || count == 0; rest /= 10) digits[count++] = (char)('0' + rest % 10);
            memcpy(link, "/proc/self/fd/", 14);
            for (int i = 0; i < count; i++) link[14 + i] = digits[count - 1 - i];
            link[14 + count] = 0;
        }
        long got = CALL(SYS_readlinkat, AT_FDCWD, link, whole, PATH_BYTES - 1);
        if (got <= 0) return 0;
        length = (size_t)got;
        whole[length++] = '/';
    }
    size_t rest = strnlen(path, PATH_BYTES);
    if (rest >= PATH_BYTES) return 0;
    memcpy(whole + length, path, rest + 1);
    if (strncmp(whole, root, root_length) != 0) return 0;
    const char *tail = whole + root_length;
    if (*tail != 0 && *tail != '/') return 0;
    while (*tail == '/') tail++;
    if (strlen(tail) >= PATH_BYTES) return 0;
    strcpy(out, tail);
    return 1;
}

static void unsupported(const char *what) { lock(); log_text(UNSUPPORTED, -1, 0, what); unlock(); }

static long on_open(long number, const long *a) {
    long dirfd = AT_FDCWD, flags, mode;
    const char *path;
    if (number == SYS_openat) {
        dirfd = a[0], path = (const char *)a[1], flags = a[2], mode = a[3];
    } else {
#ifdef SYS_open
        path = (const char *)a[0];
        flags = number == SYS_creat ? O_CREAT | O_WRONLY | O_TRUNC : a[1];
        mode = number == SYS_creat ? a[1] : a[2];
#else
        return -ENOSYS;
#endif
    }
    char name[PATH_BYTES];
    if (!below_root(dirfd, path, name)) return CALL(SYS_openat, dirfd, path, flags, mode);
    lock();
    struct stat before;
    int existed = CALL(SYS_newfstatat, dirfd, path, &before, 0) == 0;
    long fd = CALL(SYS_openat, dirfd, path, flags, mode);
    if (fd >= FD_MAX) fail("power-loss shim: too many open files\n");
    if (fd >= 0) {
        tracked[fd] = 1;
        uint64_t how = (existed ? 0 : OPEN_CREATED) | (flags & O_TRUNC ? OPEN_TRUNCATED : 0);
        log_text(OPEN, (int)fd, how, name);
    }
    unlock();
    return fd;
}

static long on_close(long fd) {
    if (!is_tracked(fd)) return CALL(SYS_close, fd);
    lock();
    tracked[fd] = 0;
    log_header(CLOSE, (int)fd, 0, 0, 0);
    long result = CALL(SYS_close, fd);
    unlock();
    return result;
}

static long on_dup(long number, const long *a) {
    lock();
    long result = raw_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (result >= 0 && result < FD_MAX) {
        if (tracked[result]) log_header(CLOSE, (int)result, 0, 0, 0);
        tracked[result] = is_tracked(a[0]) ? 1 : 0;
        if (tracked[result]) log_header(DUP, (int)a[0], (uint64_t)result, 0, 0);
    }
    unlock();
    return result;
}

static long on_write(long number, const long *a) {
    long fd = a[0];
    if (!is_tracked(fd)) return raw_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    struct iovec one = {(void *)a[1], (size_t)a[2]};
    const struct iovec *parts = &one;
    long count = 1;
    if (number != SYS_write && number != SYS_pwrite64) parts = (const struct iovec *)a[1], count = a[2];
    lock();
    long result = raw_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (result > 0) {
        int positioned = number == SYS_pwrite64 || number == SYS_pwritev || number == SYS_pwritev2;
        long offset = positioned ? a[3] : -1;
        if (offset < 0) offset = CALL(SYS_lseek, fd, 0, SEEK_CUR) - result;
        log_header(WRITE, (int)fd, (uint64_t)offset, 0, (uint64_t)result);
        size_t left = (size_t)result;
        for (long i = 0; i < count && left > 0; i++) {
            size_t now = parts[i].iov_len < left ? parts[i].iov_len : left;
            log_bytes(parts[i].iov_base, now);
            left -= now;
        }
    }
    unlock();
    return result;
}

static long on_size(long number, const long *a) {
    long fd = a[0];
    if (!is_tracked(fd)) return raw_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    lock();
    long result = raw_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (result == 0 && number == SYS_ftruncate) log_header(SIZE, (int)fd, (uint64_t)a[1], 0, 0);
    if (result == 0 && number == SYS_fallocate) {
        // Only growth is known: other modes change bytes.
        if (a[1] == 0) log_header(ALLOCATE, (int)fd, (uint64_t)a[2], (uint64_t)a[3], 0);
        else if (a[1] != FALLOC_FL_KEEP_SIZE) log_text(UNSUPPORTED, -1, 0, "fallocate with a mode");
    }
    unlock();
    return result;
}

static long on_rename(long number, const long *a, long from_dir, const char *from, long to_dir, const char *to, long flags) {
    char names[PATH_BYTES * 2];
    char to_name[PATH_BYTES];
    int from_in = below_root(from_dir, from, names), to_in = below_root(to_dir, to, to_name);
    if (!from_in && !to_in) return raw_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    lock();
    long result = raw_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (result == 0) {
        if (!from_in || !to_in || (flags & ~1L) != 0) {
            log_text(UNSUPPORTED, -1, 0, "a rename across the root, or with flags");
        } else {
            size_t length = strlen(names);
            names[length++] = '\n';
            strcpy(names + length, to_name);
            log_text(RENAME, -1, 0, names);
        }
    }
    unlock();
    return result;
}

// unlink, rmdir, mkdir: one name comes or goes.
static long on_name(long number, const long *a, int kind, long dirfd, const char *path) {
    char name[PATH_BYTES];
    if (!below_root(dirfd, path, name)) return raw_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    lock();
    long result = raw_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (result == 0) log_text(kind, -1, 0, name);
    unlock();
    return result;
}

static long on_sync(long number, const long *a) {
    long fd = a[0];
    if (number != SYS_syncfs && number != SYS_sync && !is_tracked(fd)) return CALL(number, fd);
    struct stat unused;
    if (CALL(SYS_newfstatat, AT_FDCWD, eio_path, &unused, 0) == 0) return -EIO;
    // A sync promises what was done before it began, not what was done while it ran.
    lock();
    uint64_t covered = records;
    unlock();
    int slow = CALL(SYS_newfstatat, AT_FDCWD, slow_path, &unused, 0) == 0;
    CALL(SYS_nanosleep, slow ? &slow_time : &sync_time, 0);
    long result = CALL(number, fd);
    if (result == 0) {
        lock();
        log_header(number == SYS_syncfs || number == SYS_sync ? SYNCFS : SYNC, (int)fd, covered, 0, 0);
        unlock();
    }
    return result;
}

static long handle(long number, const long *a) {
    char name[PATH_BYTES];
    switch (number) {
#ifdef SYS_open
    case SYS_open: case SYS_creat: return on_open(number, a);
    case SYS_rename: return on_rename(number, a, AT_FDCWD, (const char *)a[0], AT_FDCWD, (const char *)a[1], 0);
    case SYS_unlink: case SYS_rmdir: return on_name(number, a, UNLINK, AT_FDCWD, (const char *)a[0]);
    case SYS_mkdir: return on_name(number, a, MKDIR, AT_FDCWD, (const char *)a[0]);
    case SYS_link: case SYS_symlink:
        if (below_root(AT_FDCWD, (const char *)a[1], name)) unsupported("a link");
        break;
    case SYS_dup2: return on_dup(number, a);
#endif
#ifdef SYS_renameat
    case SYS_renameat: return on_rename(number, a, a[0], (const char *)a[1], a[2], (const char *)a[3], 0);
#endif
    case SYS_renameat2: return on_rename(number, a, a[0], (const char *)a[1], a[2], (const char *)a[3], a[4]);
    case SYS_openat: return on_open(number, a);
    case SYS_openat2:
        if (below_root(a[0], (const char *)a[1], name)) unsupported("openat2");
        break;
    case SYS_close: return on_close(a[0]);
    case SYS_dup: case SYS_dup3: case SYS_fcntl: return on_dup(number, a);
    case SYS_write: case SYS_writev: case SYS_pwrite64: case SYS_pwritev: case SYS_pwritev2: return on_write(number, a);
    case SYS_ftruncate: case SYS_fallocate: return on_size(number, a);
    case SYS_truncate:
        if (below_root(AT_FDCWD, (const char *)a[0], name)) unsupported("truncate by name");
        break;
    case SYS_unlinkat: return on_name(number, a, UNLINK, a[0], (const char *)a[1]);
    case SYS_mkdirat: return on_name(number, a, MKDIR, a[0], (const char *)a[1]);
    case SYS_linkat:
        if (below_root(a[2], (const char *)a[3], name)) unsupported("a link");
        break;
    case SYS_symlinkat:
        if (below_root(a[1], (const char *)a[2], name)) unsupported("a link");
        break;
    case SYS_fsync: case SYS_fdatasync: case SYS_syncfs: case SYS_sync: return on_sync(number, a);
    case SYS_mmap:
        if (is_tracked(a[4])) unsupported("a shared mapping that is written to");
        break;
    case SYS_copy_file_range: case SYS_splice:
        if (is_tracked(a[2])) unsupported("copying inside the kernel");
        break;
    case SYS_sendfile:
        if (is_tracked(a[0])) unsupported("sendfile into a file");
        break;
    case SYS_io_uring_setup: unsupported("io_uring"); break;
    case SYS_close_range: unsupported("close_range"); break;
    default: break;
    }
    return raw_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

static void on_trap(int signal, siginfo_t *info, void *raw) {
    (void)signal;
    ucontext_t *context = raw;
    long arguments[6];
    for (int i = 0; i < 6; i++) arguments[i] = (long)REGISTER(context, i);
    RESULT(context) = handle(info->si_syscall, arguments);
}

static const int trapped[] = {
#ifdef SYS_open
    SYS_open, SYS_creat, SYS_rename, SYS_unlink, SYS_rmdir, SYS_mkdir, SYS_link, SYS_symlink, SYS_dup2,
#endif
#ifdef SYS_renameat
    SYS_renameat,
#endif
    SYS_renameat2, SYS_openat, SYS_openat2, SYS_close, SYS_dup, SYS_dup3, SYS_write, SYS_writev, SYS_pwrite64, SYS_pwritev,
    SYS_pwritev2, SYS_ftruncate, SYS_fallocate, SYS_truncate, SYS_unlinkat, SYS_mkdirat, SYS_linkat, SYS_symlinkat, SYS_fsync,
    SYS_fdatasync, SYS_syncfs, SYS_sync, SYS_copy_file_range, SYS_splice, SYS_sendfile, SYS_io_uring_setup, SYS_close_range,
};

#define FIELD(name) offsetof(struct seccomp_data, name)
#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, field)
#define JUMP_EQUAL(value, yes, no) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(value), yes, no)
#define RETURN(what) BPF_STMT(BPF_RET | BPF_K, what)

static void install_filter(void) {
    static struct sock_filter program[256];
    size_t n = 0;
    uint64_t end = (uint64_t)(uintptr_t)raw_syscall_end;
    program[n++] = (struct sock_filter)LOAD(FIELD(arch));
    program[n++] = (struct sock_filter)JUMP_EQUAL(ARCHITECTURE, 1, 0);
    program[n++] = (struct sock_filter)RETURN(SECCOMP_RET_KILL_PROCESS);
    program[n++] = (struct sock_filter)LOAD(FIELD(instruction_pointer));
    program[n++] = (struct sock_filter)JUMP_EQUAL(end, 0, 3);
    program[n++] = (struct sock_filter)LOAD(FIELD(instruction_pointer) + 4);
    program[n++] = (struct sock_filter)JUMP_EQUAL(end >> 32, 0, 1);
    program[n++] = (struct sock_filter)RETURN(SECCOMP_RET_ALLOW);
    program[n++] = (struct sock_filter)LOAD(FIELD(nr));
    for (size_t i = 0; i < sizeof trapped / sizeof *trapped; i++) {
        program[n++] = (struct sock_filter)JUMP_EQUAL(trapped[i], 0, 1);
        program[n++] = (struct sock_filter)RETURN(SECCOMP_RET_TRAP);
    }
    // fcntl matters where it duplicates, mmap where others' writes would reach the file.
    program[n++] = (struct sock_filter)JUMP_EQUAL(SYS_fcntl, 0, 4);
    program[n++] = (struct sock_filter)LOAD(FIELD(args[1]));
    program[n++] = (struct sock_filter)JUMP_EQUAL(F_DUPFD, 1, 0);
    program[n++] = (struct sock_filter)JUMP_EQUAL(F_DUPFD_CLOEXEC, 0, 8);
    program[n++] = (struct sock_filter)RETURN(SECCOMP_RET_TRAP);
    program[n++] = (struct sock_filter)JUMP_EQUAL(SYS_mmap, 0, 6);
    program[n++] = (struct sock_filter)LOAD(FIELD(args[2]));
    program[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, PROT_WRITE, 0, 4);
    program[n++] = (struct sock_filter)LOAD(FIELD(args[3]));
    program[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, MAP_ANONYMOUS, 2, 0);
    program[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, MAP_SHARED, 0, 1);
    program[n++] = (struct sock_filter)RETURN(SECCOMP_RET_TRAP);
    program[n++] = (struct sock_filter)RETURN(SECCOMP_RET_ALLOW);
    struct sock_fprog filter = {(unsigned short)n, program};
    if (CALL(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1) != 0) fail("power-loss shim: PR_SET_NO_NEW_PRIVS failed\n");
    if (CALL(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &filter) != 0) {
        fail("power-loss shim: seccomp filters are not allowed here\n");
    }
}

static struct timespec time_from(const char *name) {
    const char *text = getenv(name);
    long ms = text ? strtol(text, NULL, 10) : 0;
    return (struct timespec){ms / 1000, ms % 1000 * 1000000};
}

__attribute__((constructor)) static void begin(void) {
    const char *where = getenv("POWER_LOSS_ROOT"), *log = getenv("POWER_LOSS_LOG");
    if (!where || !log || where[0] != '/' || strlen(where) >= PATH_BYTES || strlen(log) + 6 >= PATH_BYTES) {
        fail("power-loss shim: POWER_LOSS_ROOT and POWER_LOSS_LOG are needed\n");
    }
    sync_time = time_from("POWER_LOSS_SYNC_MS");
    slow_time = time_from("POWER_LOSS_SLOW_MS");
    strcpy(root, where);
    root_length = strlen(root);
    strcpy(eio_path, log);
    strcat(eio_path, ".eio");
    strcpy(slow_path, log);
    strcat(slow_path, ".slow");
    long fd = CALL(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0) fail("power-loss shim: cannot open the log\n");
    // Out of the way of the numbers that the broker gets.
    log_fd = (int)CALL(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 900);
    if (log_fd < 0) fail("power-loss shim: cannot move the log's descriptor\n");
    CALL(SYS_close, fd);
    struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO | SA_NODEFER};
    if (sigaction(SIGSYS, &action, NULL) != 0) fail("power-loss shim: sigaction failed\n");
    install_filter();
}
