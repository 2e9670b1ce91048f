"""A filter of system calls for the sandbox of `rewards.code` (seccomp): what would hold memory that no limit counts, or
make namespaces of one's own, fails in it as if the machine had none."""

from __future__ import annotations

import errno
import platform
import struct

# x86_64, aarch64; the numbers of Linux's syscall tables
REFUSED = {
    "memfd_create": (319, 279),  # files in memory that are not in /tmp
    "memfd_secret": (447, 447),
    "shmget": (29, 194),  # memory of System V, which stays when it is detached
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "io_uring_setup": (425, 425),  # buffers in the kernel, and calls that a filter does not see
    "perf_event_open": (298, 241),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "setns": (308, 268),
}
CLONE, CLONE3, SOCKET = (56, 220), (435, 435), (41, 198)
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # (column, AUDIT_ARCH)

NAMESPACES = 0x7E020000  # CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET
OTHER_ABI = 0x40000000  # x32 calls on x86_64
AF_UNIX = 1

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # of classic BPF
NUMBER, ARCH, ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; the first argument's lower half
ALLOW, KILL, ERROR = 0x7FFF0000, 0x80000000, 0x00050000


def supported() -> bool:
    """Whether there is a filter for this machine."""
    return platform.machine() in MACHINES


def program() -> bytes:
    """The filter for this machine as BPF, as `bwrap --seccomp` takes it. Raises `KeyError` where there is none."""
    column, arch = MACHINES[platform.machine()]
    code = [
        (LOAD, 0, 0, ARCH),
        (EQUAL, 1, 0, arch),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, 0, 1, OTHER_ABI),
        _fails(errno.ENOSYS),
        *_when(EQUAL, CLONE3[column], errno.ENOSYS),  # its flags are out of reach; the C library then takes clone
    ]
    for numbers in REFUSED.values():
        code += _when(EQUAL, numbers[column], errno.EPERM)
    code += [(EQUAL, 0, 3, CLONE[column]), (LOAD, 0, 0, ARGUMENT), *_when(ANY_BIT, NAMESPACES, errno.EPERM)]
    code += [(LOAD, 0, 0, NUMBER), (EQUAL, 0, 3, SOCKET[column]), (LOAD, 0, 0, ARGUMENT)]
    code += [(EQUAL, 1, 0, AF_UNIX), _fails(errno.EAFNOSUPPORT)]
    return b"".join(struct.pack("HBBI", *line) for line in [*code, (RETURN, 0, 0, ALLOW)])


def _fails(error: int) -> tuple[int, int, int, int]:
    """End with an error number."""
    return RETURN, 0, 0, ERROR | error


def _when(test: int, value: int, error: int) -> list[tuple[int, int, int, int]]:
    """Fail where the accumulator passes the test."""
    return [(test, 0, 1, value), _fails(error)]
