"""What the Linux kernel offers to lock a process in: namespaces, Landlock, seccomp. ctypes alone.

Each call builds one wall around the calling thread and all that it starts afterwards, so it must
come before any other thread. A wall that the kernel refuses is left out; ``worker.confine`` tries
afterwards what holds, and says so.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_CLONE_ANY_NAMESPACE = 0x7E020000
_CAPABILITY_VERSION = 0x20080522

# Landlock: numbers of the system calls are the same everywhere.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG, _MAKE_SYM = 1 << 4, 1 << 5, 1 << 7, 1 << 8, 1 << 12
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_FS_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""Version of Landlock -> how many rights over files it knows."""
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_WRITE = (
    _WRITE_FILE
    | _READ_FILE
    | _READ_DIR
    | _REMOVE_DIR
    | _REMOVE_FILE
    | _MAKE_DIR
    | _MAKE_REG
    | _MAKE_SYM
    | _TRUNCATE
)
_DEVICE = _WRITE_FILE | _READ_FILE | _READ_DIR | _IOCTL_DEV

# seccomp: classic BPF over (number, architecture, ..., arguments).
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _KILL, _DENY, _MISSING = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
_AF_UNIX, _AF_INET, _AF_NETLINK = 1, 2, 16
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1

# Number on x86-64 and on 64-bit Arm.
_ALWAYS = {
    "connect": (42, 203),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "setsid": (112, 157),
    "setpgid": (109, 154),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "open_by_handle_at": (304, 265),
    # Landlock knows none of these, and what is lent are often links to the very blobs.
    "truncate": (76, 45),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
}
_OLD_FORMS = {"chmod": 90, "chown": 92, "lchown": 94, "utime": 132, "utimes": 235, "futimesat": 261}
"""The same, on x86-64 alone."""
_SOCKET, _KILL_NR, _TGKILL, _PRLIMIT = (41, 198), (62, 129), (234, 131), (302, 261)
_CLONE, _CLONE3 = (56, 220), (435, 435)
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_X32 = 0x40000000


def no_new_privileges() -> None:
    """Let no program that is started gain rights, as ``sudo`` would; the next walls need it."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def own_namespaces() -> bool:
    """Enter a user and a network namespace of one's own, without a single route."""
    user, group = os.geteuid(), os.getegid()
    if _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return False
    with suppress(OSError):
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    return True


def loopback() -> bool:
    """Let the processes of one's own network talk to each other: bring its only interface up."""
    request = struct.pack("16sH22x", b"lo", _IFF_UP)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, request)
    return True


def no_capabilities() -> None:
    """Give up every capability, those over one's own namespaces too."""
    header = struct.pack("<Ii", _CAPABILITY_VERSION, 0)
    if _libc.capset(header, bytes(24)) != 0:
        raise OSError(ctypes.get_errno(), "capset failed")


def landlock(
    *, read: Iterable[Path], write: Iterable[Path], devices: Iterable[Path], loopback: bool = False
) -> bool:
    """Leave these paths and no others; False if what is left can be cut off, or all of it is left.

    The first takes version 3. From version 4 on TCP goes too, except for ``loopback``, from version
    6 on signals to others and their sockets.
    """
    version = _libc.syscall(_CREATE_RULESET, None, 0, 1)
    if version < 1:
        return False
    handled = (1 << _FS_RIGHTS.get(version, 16)) - 1
    net = 0b11 if version >= 4 and not loopback else 0
    scoped = 0b11 if version >= 6 else 0
    attributes = struct.pack("<QQQ", handled, net, scoped)
    attributes = attributes[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = _libc.syscall(_CREATE_RULESET, attributes, len(attributes), 0)
    if ruleset < 0:
        return False
    try:
        for paths, rights in ((read, _READ), (write, _WRITE), (devices, _DEVICE)):
            for path in paths:
                _allow(ruleset, path, rights & handled)
        return bool(_libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0) and version >= 3
    finally:
        os.close(ruleset)


def seccomp(*, unix_sockets: bool, loopback: bool = False) -> bool:
    """Refuse the network, signals to others, new marks on files, and what only attacks need.

    Args:
        unix_sockets: leave stream sockets of this machine, which CUDA makes and never connects.
        loopback: leave TCP, and the list of interfaces that its users ask for.
    """
    if platform.machine() not in _MACHINES:
        return False
    column, machine = _MACHINES[platform.machine()]
    me = os.getpid()
    code = [
        _op(_LOAD, 4),
        _op(_EQUAL, machine, 1, 0),
        _op(_RETURN, _KILL),
        _op(_LOAD, 0),
        _op(_AT_LEAST, _X32, 0, 1),
        _op(_RETURN, _DENY),
    ]
    refused = [n[column] for name, n in _ALWAYS.items() if name != "connect" or not loopback]
    for number in refused + ([] if column else [*_OLD_FORMS.values()]):
        code += _when(number, [_op(_RETURN, _DENY)])
    # Without clone3, whose flags lie in memory, the C library takes clone.
    code += _when(_CLONE3[column], [_op(_RETURN, _MISSING)])
    flags = _argument(0)
    code += _when(
        _CLONE[column], [flags, _op(_ANY_BIT, _CLONE_ANY_NAMESPACE, 0, 1), _op(_RETURN, _DENY)]
    )
    for numbers, own in ((_KILL_NR, (me, 0)), (_TGKILL, (me,)), (_PRLIMIT, (me, 0))):
        code += _when(numbers[column], _unless_first_is(own))
    families = [(_AF_UNIX, _NOT_DATAGRAM)] if unix_sockets else []
    families += [(_AF_INET, _STREAM), (_AF_NETLINK, _ANY)] if loopback else []
    code += _when(_SOCKET[column], _only(families))
    code.append(_op(_RETURN, _ALLOW))
    filters = ctypes.create_string_buffer(b"".join(code), 8 * len(code))
    program = struct.pack("<HxxxxxxQ", len(code), ctypes.addressof(filters))
    return bool(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0) == 0)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # not there on this machine, so there is nothing to allow
    try:
        if not path.is_dir():
            rights &= _OF_FILES
        rule = struct.pack("<Qi", rights, descriptor)
        if _libc.syscall(_ADD_RULE, ruleset, 1, rule, 0) != 0:
            raise OSError(ctypes.get_errno(), f"Landlock refuses a rule for {path}")
    finally:
        os.close(descriptor)


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value & 0xFFFFFFFF)


def _argument(index: int) -> bytes:
    """Load the lower half of an argument."""
    return _op(_LOAD, 16 + 8 * index)


_SOCK_STREAM, _SOCK_DGRAM = 1, 2
_TYPE = [_op(_LOAD, 16 + 8), _op(_AND, 0xF)]
"""Load the type of a socket, without its flags."""
_NOT_DATAGRAM = [*_TYPE, _op(_EQUAL, _SOCK_DGRAM, 0, 1), _op(_RETURN, _DENY)]
_STREAM = [*_TYPE, _op(_EQUAL, _SOCK_STREAM, 1, 0), _op(_RETURN, _DENY)]
_ANY: list[bytes] = []


def _when(number: int, body: list[bytes]) -> list[bytes]:
    """Run ``body`` for one system call, allow it afterwards, and go on with the others."""
    body = [*body, _op(_RETURN, _ALLOW)]
    return [_op(_EQUAL, number, 0, len(body)), *body]


def _unless_first_is(own: tuple[int, ...]) -> list[bytes]:
    """Deny unless the first argument is one of these process ids."""
    tests = [_op(_EQUAL, pid, len(own) - index, 0) for index, pid in enumerate(own)]
    return [_argument(0), *tests, _op(_RETURN, _DENY)]


def _only(families: list[tuple[int, list[bytes]]]) -> list[bytes]:
    """Deny sockets but those of these families, of the types that their test lets pass."""
    code = [_argument(0)]
    for family, test in families:
        body = [*test, _op(_RETURN, _ALLOW)]
        code += [_op(_EQUAL, family, 0, len(body)), *body]
    return [*code, _op(_RETURN, _DENY)]


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")
