"""What a decoding process may do: compute, use memory up to a limit, and talk through what it already holds.

A clip may be made to take over the code that decodes it. That code then finds nothing to take: no file can be opened,
made or removed, no connection, no other program or process. The clip itself came in as an open file.
"""

from __future__ import annotations

import errno
import os
import sys

_MEMORY_BYTES = 4 << 30
_OPEN_FILES = 64

# Memory, threads and their waiting, time, and what is done with files that are open already; all else is refused. By
# what FFmpeg, NumPy, Pillow and the C library use on Linux; a name that a processor does not have is left out.
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
_CLONE_THREAD = 0x00010000  # of clone(2): within this process, and no other


def confine() -> str | None:
    """Limit this process for good; all that it will need must be imported by now. Returns why, in words, where system
    calls cannot be filtered: the limits on memory and files hold all the same."""
    _limit_resources()
    if sys.platform != "linux":
        return "only Linux has such a filter"
    try:
        import fcntl

        import pyseccomp as seccomp

        rules = seccomp.SyscallFilter(seccomp.ERRNO(errno.EPERM))
        rules.set_attr(seccomp.Attr.CTL_TSYNC, 1)  # threads that libraries started are meant too
        for name in _ALLOWED.split():
            if seccomp.resolve_syscall(seccomp.Arch.NATIVE, name) >= 0:
                rules.add_rule(seccomp.ALLOW, name)
        for command in (fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL):
            rules.add_rule(seccomp.ALLOW, "fcntl", seccomp.Arg(1, seccomp.EQ, command))
        rules.add_rule(seccomp.ALLOW, "prlimit64", seccomp.Arg(2, seccomp.EQ, 0))  # to ask, not to set
        rules.add_rule(seccomp.ALLOW, "tgkill", seccomp.Arg(0, seccomp.EQ, os.getpid()))  # abort()
        rules.add_rule(seccomp.ALLOW, "clone", seccomp.Arg(0, seccomp.MASKED_EQ, _CLONE_THREAD, _CLONE_THREAD))
        # Its flags lie in memory, where no rule sees them; told that it does not exist, the C library takes clone.
        rules.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")
        rules.load()
    except (ImportError, OSError, RuntimeError) as error:  # no libseccomp, or a kernel that will not
        return str(error) or type(error).__name__
    return None


def _limit_resources() -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limits; the time limit and the process boundary remain
        return
    # macOS refuses an address space limit: there, too, the process boundary remains.
    limits = {"RLIMIT_AS": _MEMORY_BYTES, "RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0, "RLIMIT_NOFILE": _OPEN_FILES}
    for name, limit in limits.items():
        try:
            resource.setrlimit(getattr(resource, name), (limit, limit))
        except (ValueError, OSError):
            continue
