"""Restrict a decoding process to computation, limited memory and the files that it already has open.

A malicious clip may take over the code that decodes it. That code can reach nothing: it cannot open, create or remove a
file, open a connection, or start another program or process. The process receives the clip itself as an open file.
"""

from __future__ import annotations

import errno
import os
import sys

_MEMORY_BYTES = 4 << 30
_OPEN_FILES = 64

# System calls for memory, threads and their synchronisation, time, and I/O on open files. All others are refused.
# FFmpeg, NumPy, Pillow and the C library use these on Linux. Names that the processor architecture lacks are skipped.
_ALLOWED = """
    brk madvise membarrier mmap mprotect mremap munmap
    arch_prctl exit exit_group futex futex_waitv get_robust_list rseq sched_getaffinity sched_yield set_robust_list
    clock_getres clock_gettime clock_nanosleep gettimeofday nanosleep restart_syscall time times
    rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack
    _llseek close dup fstat fstat64 lseek poll ppoll pread64 pselect6 read readv recvfrom recvmsg select sendmsg sendto
    write writev
    getsockname getsockopt
    getegid geteuid getgid getpid getppid getrandom getrlimit getrusage gettid getuid sysinfo uname
"""
_CLONE_THREAD = 0x00010000  # flag of clone(2): a thread in this process, not a new process


def enter_sandbox() -> str | None:
    """Restrict this process permanently; return why system calls cannot be filtered, or None.

    Import everything that the process needs before this call. The limits on memory and files apply even if system calls
    cannot be filtered.
    """
    _limit_resources()
    if sys.platform != "linux":
        return "system calls can be filtered only on Linux"
    try:
        import fcntl

        import pyseccomp as seccomp

        rules = seccomp.SyscallFilter(seccomp.ERRNO(errno.EPERM))
        rules.set_attr(seccomp.Attr.CTL_TSYNC, 1)  # include threads that libraries have started
        for name in _ALLOWED.split():
            if seccomp.resolve_syscall(seccomp.Arch.NATIVE, name) >= 0:
                rules.add_rule(seccomp.ALLOW, name)
        for command in (fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL):
            rules.add_rule(seccomp.ALLOW, "fcntl", seccomp.Arg(1, seccomp.EQ, command))
        rules.add_rule(seccomp.ALLOW, "prlimit64", seccomp.Arg(2, seccomp.EQ, 0))  # read limits, do not set them
        rules.add_rule(seccomp.ALLOW, "tgkill", seccomp.Arg(0, seccomp.EQ, os.getpid()))  # abort()
        rules.add_rule(seccomp.ALLOW, "clone", seccomp.Arg(0, seccomp.MASKED_EQ, _CLONE_THREAD, _CLONE_THREAD))
        # The flags of clone3 lie in memory, where no rule can check them. ENOSYS makes the C library use clone instead.
        rules.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")
        rules.load()
    except (ImportError, OSError, RuntimeError) as error:  # no libseccomp, or a kernel that refuses the filter
        return str(error) or type(error).__name__
    return None


def _limit_resources() -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limits; the time limit and the process boundary remain
        return
    # macOS refuses a limit of the address space; the process boundary remains.
    limits = {"RLIMIT_AS": _MEMORY_BYTES, "RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0, "RLIMIT_NOFILE": _OPEN_FILES}
    for name, limit in limits.items():
        try:
            resource.setrlimit(getattr(resource, name), (limit, limit))
        except (ValueError, OSError):
            continue
