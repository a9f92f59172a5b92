"""What of this machine the process may really use: physical cores and memory.

A container sees all cores of its host and may use two of them; a thread for each it sees makes a
generation many times slower. So the affinity of the process and the quotas of its control groups
(cgroups) count, and of two threads on one physical core only one: matrix products do not gain from the
second.

The functions with ``root`` read Linux's ``/proc`` and ``/sys`` below it, so that tests can hand in trees.
"""

from __future__ import annotations

import ctypes
import math
import os
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["available_memory", "physical_memory", "usable_physical_cores"]

_ROOT = Path("/")


def usable_physical_cores() -> int:
    """Physical cores that this process may use now, at least 1: affinity and cgroup quota applied."""
    if sys.platform == "linux":
        return linux_cores(os.sched_getaffinity(0), _ROOT)
    # Python 3.13 has process_cpu_count, which knows an affinity where the system has one.
    logical: int = getattr(os, "process_cpu_count", os.cpu_count)() or 1
    return max(1, min(_physical_cores() or logical, logical))


def physical_memory() -> int:
    """Bytes of memory, or what the process's cgroups allow of it; 0 where it cannot be told."""
    if sys.platform == "linux":
        return linux_memory(_ROOT)[0]
    return _memory()[0]


def available_memory() -> int:
    """Bytes that can be had now without swapping, cgroups considered; 0 where it cannot be told."""
    if sys.platform == "linux":
        return linux_memory(_ROOT)[1]
    return _memory()[1]


# --- Linux: cores ----------------------------------------------------------------------------------


def linux_cores(cpus: Iterable[int], root: Path) -> int:
    """The physical cores behind the logical ``cpus``, within the CPU quota."""
    cores = len({_siblings(cpu, root) for cpu in cpus})
    quota = cpu_quota(root)
    if quota is not None:
        cores = min(cores, math.floor(quota))
    return max(1, cores)


def _siblings(cpu: int, root: Path) -> frozenset[int]:
    """The logical CPUs on the same core; a CPU that the kernel says nothing about has its own."""
    text = _read(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return parse_cpu_list(text or "") or frozenset((cpu,))
    except ValueError:
        return frozenset((cpu,))


def parse_cpu_list(text: str) -> frozenset[int]:
    """``"0-2,8"`` as the kernel writes it: 0, 1, 2 and 8."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            cpus.update(range(int(first), int(last or first) + 1))
    return frozenset(cpus)


def cpu_quota(root: Path) -> float | None:
    """The tightest CPU quota of the process's cgroups and all above them, in cores; None without one."""
    quotas = []
    for folder in cgroup_folders("cpu", root):
        unified = (_read(folder / "cpu.max") or "").split()  # "200000 100000" or "max 100000"
        if len(unified) == 2:
            quotas.append(_ratio(*unified))
        quota, period = (_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))
        if quota and period:
            quotas.append(_ratio(quota, period))  # version 1 writes -1 for none
    return min((quota for quota in quotas if quota is not None), default=None)


def _ratio(quota: str, period: str) -> float | None:
    try:
        ratio = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return None
    return ratio if ratio > 0 else None


# --- Linux: memory ---------------------------------------------------------------------------------


def linux_memory(root: Path) -> tuple[int, int]:
    """Physical and available bytes, each cut down to what the cgroups allow."""
    facts = _fields(_read(root / "proc/meminfo"))
    machine = total = facts.get("MemTotal", 0) * 1024
    # Kernels before 3.14 have no MemAvailable; what is free and cached comes close.
    spare = facts.get("MemAvailable", facts.get("MemFree", 0) + facts.get("Cached", 0)) * 1024
    for folder in cgroup_folders("memory", root):
        for limit_file, used_file, cache_field in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit = _int(_read(folder / limit_file))
            if limit is None or limit >= machine:  # "max", or version 1's huge number for none
                continue
            used = _int(_read(folder / used_file)) or 0
            # The file cache counts as used, yet the kernel gives it up when memory is wanted.
            used -= _fields(_read(folder / "memory.stat")).get(cache_field, 0)
            total, spare = min(total, limit), min(spare, max(0, limit - used))
    return total, min(spare, total)


# --- Linux: control groups -------------------------------------------------------------------------


def cgroup_folders(controller: str, root: Path) -> Iterator[Path]:
    """The folders of the process's cgroups, versions 1 and 2, each with all its parents.

    A limit anywhere above holds as well. ``/proc/self/cgroup`` names the groups, and the mount table
    where they are found: in a container the two often disagree, and the mounted root then is the group.
    """
    mounts = list(_cgroup_mounts(root))
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        unified = number == "0" and not controllers
        if not unified and controller not in controllers.split(","):
            continue
        for kind, options, mount_root, mount_point in mounts:
            if kind != ("cgroup2" if unified else "cgroup") or (not unified and controller not in options):
                continue
            yield from _upwards(root / mount_point.lstrip("/"), _below(group, mount_root))


def _below(group: str, mount_root: str) -> tuple[str, ...]:
    """The path of ``group`` below the mounted root; empty where it is not below it."""
    parts = tuple(part for part in group.split("/") if part)
    base = tuple(part for part in mount_root.split("/") if part)
    if ".." in parts or parts[: len(base)] != base:
        return ()
    return parts[len(base) :]


def _upwards(mount: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    for length in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:length])


def _cgroup_mounts(root: Path) -> Iterator[tuple[str, tuple[str, ...], str, str]]:
    """Kind, options (in version 1 the controllers), mounted root and mount point of each cgroup mount."""
    for line in (_read(root / "proc/self/mountinfo") or "").splitlines():
        # 36 35 98:0 /root /mount/point rw,noatime master:1 - type source options
        before, _, after = line.partition(" - ")
        left, right = before.split(), after.split()
        if len(left) >= 5 and len(right) >= 3 and right[0] in ("cgroup", "cgroup2"):
            yield (right[0], tuple(right[2].split(",")), _unescape(left[3]), _unescape(left[4]))


def _unescape(path: str) -> str:
    """The mount table writes blanks and the like as ``\\040``."""
    for code, character in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        path = path.replace(code, character)
    return path


# --- reading ---------------------------------------------------------------------------------------


def _read(path: Path) -> str | None:
    """The file's text, or None: sandboxes hide any of these files, and none of them is needed."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return None


def _int(text: str | None) -> int | None:
    try:
        return int(text or "")
    except ValueError:
        return None


def _fields(text: str | None) -> dict[str, int]:
    """``Name: 12 kB`` and ``name 12`` lines."""
    fields = {}
    for line in (text or "").splitlines():
        words = line.split()
        if len(words) >= 2 and (number := _int(words[1])) is not None:
            fields[words[0].rstrip(":")] = number
    return fields


# --- macOS and Windows: asked through ctypes --------------------------------------------------------

# SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX, as far as it is read here: Relationship, Size, then for a core
# Flags, EfficiencyClass, 20 reserved bytes, GroupCount, and that many GROUP_AFFINITY.
_HEADER = struct.Struct("<II")
_GROUP_COUNT_AT = 30
_GROUPS_AT = 32
_GROUP = struct.Struct("<QHHHH" if struct.calcsize("P") == 8 else "<LHHHH")
_RELATION_PROCESSOR_CORE = 0


def count_cores(records: bytes, affinity: int = 0) -> int:
    """Cores in the answer of GetLogicalProcessorInformationEx, of those that ``affinity`` allows; 0 is all.

    An affinity mask speaks of one processor group; a process in several groups has none.
    """
    cores = offset = 0
    while offset + _HEADER.size <= len(records):
        relation, size = _HEADER.unpack_from(records, offset)
        if size < _HEADER.size or offset + size > len(records):
            break
        if relation == _RELATION_PROCESSOR_CORE:
            (groups,) = struct.unpack_from("<H", records, offset + _GROUP_COUNT_AT)
            masks = (
                _GROUP.unpack_from(records, offset + _GROUPS_AT + index * _GROUP.size)[0]
                for index in range(groups)
            )
            cores += any(not affinity or mask & affinity for mask in masks)
        offset += size
    return cores


if sys.platform == "win32":

    class _MemoryStatus(ctypes.Structure):
        _fields_ = (
            ("dwLength", ctypes.c_uint32),
            ("dwMemoryLoad", ctypes.c_uint32),
            ("ullTotalPhys", ctypes.c_uint64),
            ("ullAvailPhys", ctypes.c_uint64),
            ("ullTotalPageFile", ctypes.c_uint64),
            ("ullAvailPageFile", ctypes.c_uint64),
            ("ullTotalVirtual", ctypes.c_uint64),
            ("ullAvailVirtual", ctypes.c_uint64),
            ("ullAvailExtendedVirtual", ctypes.c_uint64),
        )

    def _physical_cores() -> int:
        """Physical cores within the process's affinity; 0 where Windows does not tell."""
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        size = ctypes.c_uint32(0)
        ask = kernel.GetLogicalProcessorInformationEx
        ask(_RELATION_PROCESSOR_CORE, None, ctypes.byref(size))  # fails, and says how much it needs
        answer = ctypes.create_string_buffer(size.value)
        if not size.value or not ask(_RELATION_PROCESSOR_CORE, answer, ctypes.byref(size)):
            return 0
        mask, everything = ctypes.c_size_t(0), ctypes.c_size_t(0)
        kernel.GetCurrentProcess.restype = ctypes.c_void_p
        process = ctypes.c_void_p(kernel.GetCurrentProcess())
        kernel.GetProcessAffinityMask(process, ctypes.byref(mask), ctypes.byref(everything))
        # A mask of all CPUs of one group must not rule out the cores of the others.
        return count_cores(answer.raw[: size.value], 0 if mask.value == everything.value else mask.value)

    def _memory() -> tuple[int, int]:
        """Physical and available bytes."""
        status = _MemoryStatus(dwLength=ctypes.sizeof(_MemoryStatus))
        if not ctypes.WinDLL("kernel32").GlobalMemoryStatusEx(ctypes.byref(status)):
            return 0, 0
        return status.ullTotalPhys, status.ullAvailPhys

else:

    def _sysctl(name: str) -> int:
        """One number that macOS's ``sysctlbyname`` knows, or 0."""
        try:
            ask = ctypes.CDLL(None).sysctlbyname
        except (AttributeError, OSError):
            return 0
        # Some answers have 32 bits, some 64; all systems that macOS runs on are little-endian.
        value, size = ctypes.c_uint64(0), ctypes.c_size_t(8)
        failed = ask(name.encode(), ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
        return 0 if failed else value.value

    def _physical_cores() -> int:
        """The performance cores on Apple silicon: a slow core among the threads makes the rest wait."""
        return _sysctl("hw.perflevel0.physicalcpu") or _sysctl("hw.physicalcpu")

    def _memory() -> tuple[int, int]:
        """Physical bytes, and those that are free or hold what can be dropped at once."""
        pages = ("vm.page_free_count", "vm.page_purgeable_count", "vm.page_pageable_external_count")
        return _sysctl("hw.memsize"), sum(map(_sysctl, pages)) * _sysctl("hw.pagesize")
