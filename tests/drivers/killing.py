"""Kills a forked process with SIGKILL at its n-th system call that changes files, by ptrace.

What is counted are system calls as the kernel meets them, so it does not matter which library
makes them: Python, torch's writer in C++ or safetensors' in Rust.
"""

import ctypes
import os
import platform
import signal
from collections.abc import Callable
from pathlib import Path

# asm/unistd_64.h (x86-64)
PATH_CALLS = {
    76: "truncate",
    82: "rename",
    83: "mkdir",
    84: "rmdir",
    85: "creat",
    86: "link",
    87: "unlink",
    88: "symlink",
    258: "mkdirat",
    263: "unlinkat",
    264: "renameat",
    316: "renameat2",
}
FILE_CALLS = {
    1: "write",
    18: "pwrite64",
    20: "writev",
    40: "sendfile",
    74: "fsync",
    75: "fdatasync",
    77: "ftruncate",
}
COPY_FILE_RANGE = 326  # its third argument is the file that is written
OPENAT, CREATES = 257, os.O_CREAT | os.O_TRUNC

# linux/ptrace.h
TRACEME, SYSCALL, SETOPTIONS, GET_SYSCALL_INFO = 0, 24, 0x4200, 0x420E
TRACESYSGOOD, TRACECLONE, EXITKILL = 1, 8, 0x100000
ENTRY = 1
WALL = 0x40000000  # linux/wait.h: threads too


class Info(ctypes.Structure):
    """``struct ptrace_syscall_info`` at a call's entry."""

    _fields_ = (
        ("op", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
        ("arch", ctypes.c_uint32),
        ("instruction_pointer", ctypes.c_uint64),
        ("stack_pointer", ctypes.c_uint64),
        ("nr", ctypes.c_uint64),
        ("args", ctypes.c_uint64 * 6),
        ("more", ctypes.c_uint64 * 2),
    )


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def unable() -> str:
    """Return why processes cannot be traced here; empty if they can."""
    if platform.machine() != "x86_64":
        return f"the system calls' numbers are those of x86-64, this is {platform.machine()}"
    try:
        killed_at(1, Path("/"), lambda: None)
    except OSError as error:
        return f"ptrace is not allowed here: {error}"
    return ""


def killed_at(
    count: int, folder: Path, action: Callable[[], object], log: Path | None = None
) -> str | None:
    """Run ``action`` in a fork that is killed before its ``count``-th change below ``folder``.

    Args:
        count: From 1.
        folder: Calls on open files elsewhere are not counted, those with a path all are.
        action: An exception in it fails the test.
        log: Takes its output.

    Returns:
        The call that it was killed at, such as ``"fsync x.json"``; None if it ended before.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if log is not None:
                descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(descriptor, 1)
                os.dup2(descriptor, 2)
            _libc.ptrace(TRACEME, 0, None, None)
            os.kill(os.getpid(), signal.SIGSTOP)
            action()
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    os.waitpid(child, WALL)
    options = TRACESYSGOOD | TRACECLONE | EXITKILL
    if _libc.ptrace(SETOPTIONS, child, None, options) != 0:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, WALL)
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    _libc.ptrace(SYSCALL, child, None, None)
    seen, killed = 0, None
    while True:
        thread, status = os.waitpid(-1, WALL)
        if not os.WIFSTOPPED(status):
            if thread == child:
                code = os.waitstatus_to_exitcode(status)
                assert killed or code == 0, f"the action failed: {code}"
                return killed
            continue
        stop, deliver = os.WSTOPSIG(status), 0
        if stop == signal.SIGTRAP | 0x80:
            if (call := _change(thread, folder)) is not None:
                seen += 1
                if seen == count:
                    killed = call
                    os.kill(child, signal.SIGKILL)
                    continue
        elif stop not in (signal.SIGTRAP, signal.SIGSTOP):
            deliver = stop
        _libc.ptrace(SYSCALL, thread, None, deliver)


def _change(thread: int, folder: Path) -> str | None:
    """Return the name of the call that ``thread`` is about to make, if it changes a file."""
    info = Info()
    _libc.ptrace(GET_SYSCALL_INFO, thread, ctypes.sizeof(info), ctypes.addressof(info))
    if info.op != ENTRY:
        return None
    if info.nr in FILE_CALLS or info.nr == COPY_FILE_RANGE:
        descriptor = info.args[2 if info.nr == COPY_FILE_RANGE else 0]
        try:
            file = Path(os.readlink(f"/proc/{thread}/fd/{descriptor}"))
        except OSError:
            return None
        name = FILE_CALLS.get(info.nr, "copy_file_range")
        return f"{name} {file.name}" if folder in (file, *file.parents) else None
    if info.nr == OPENAT:
        return "open" if info.args[2] & CREATES else None
    return PATH_CALLS.get(info.nr)
