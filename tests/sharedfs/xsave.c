/* Let Debian 12's User-Mode Linux (6.1) run on CPUs whose XSAVE area is larger than it knows (AMX: 2023 and later).
 *
 * It sets a process's registers with PTRACE_SETREGSET and a buffer of the size it knows, which the kernel refuses with
 * EFAULT where the real area is larger. So the whole area is read first, UML's part is laid over it, and all is written.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static long kernel(long request, long pid, void *address, void *data)
{
    return syscall(SYS_ptrace, request, pid, address, data);
}

static long set_registers(long pid, void *which, struct iovec *known)
{
    static __thread unsigned char area[65536] __attribute__((aligned(64)));
    struct iovec whole = { area, sizeof area };

    if (kernel(PTRACE_GETREGSET, pid, which, &whole) != 0 || whole.iov_len <= known->iov_len)
        return kernel(PTRACE_SETREGSET, pid, which, known);
    memcpy(area, known->iov_base, known->iov_len);
    return kernel(PTRACE_SETREGSET, pid, which, &whole);
}

long ptrace(enum __ptrace_request request, ...)
{
    va_list rest;
    va_start(rest, request);
    pid_t pid = va_arg(rest, pid_t);
    void *address = va_arg(rest, void *);
    void *data = va_arg(rest, void *);
    va_end(rest);

    if (request == PTRACE_SETREGSET && (long)address == NT_X86_XSTATE)
        return set_registers(pid, address, data);
    if (request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER) {
        long value = 0; /* as in glibc, the word that was read is what is returned */
        long status = kernel(request, pid, address, &value);
        if (status < 0)
            return status;
        errno = 0;
        return value;
    }
    return kernel(request, pid, address, data);
}
