/*
 * Preloaded into User-Mode Linux on CPUs whose extended register state is large (Intel AMX: 11 KB).
 *
 * UML 6.1 keeps that state of its processes in a buffer of fixed size and hands it to ptrace(PTRACE_SETREGSET), which
 * refuses a state shorter than the CPU's: the kernel panics at boot. This widens the buffer: the state's tail, which
 * UML does not know, is read from the process and given back unchanged.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

#ifndef NT_X86_XSTATE
#define NT_X86_XSTATE 0x202
#endif

long ptrace(enum __ptrace_request request, ...)
{
	static long (*real)(int, pid_t, void *, void *);
	static char full[65536] __attribute__((aligned(64)));
	va_list args;
	va_start(args, request);
	pid_t pid = va_arg(args, pid_t);
	void *addr = va_arg(args, void *);
	void *data = va_arg(args, void *);
	va_end(args);
	if (!real)
		real = (long (*)(int, pid_t, void *, void *))dlsym(RTLD_NEXT, "ptrace");
	if (request == PTRACE_SETREGSET && addr == (void *)NT_X86_XSTATE) {
		struct iovec *given = data;
		struct iovec whole = {full, sizeof full};
		if (real(PTRACE_GETREGSET, pid, addr, &whole) == 0 && whole.iov_len > given->iov_len) {
			memcpy(full, given->iov_base, given->iov_len);
			return real(PTRACE_SETREGSET, pid, addr, &whole);
		}
	}
	return real(request, pid, addr, data);
}
