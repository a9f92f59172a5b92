"""Cores and memory, read from made-up /proc and /sys trees, and from this machine's own."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from llama_runner import system
from llama_runner.system import (
    available_memory,
    cpu_quota,
    linux_cores,
    linux_memory,
    parse_cpu_list,
    physical_memory,
    usable_physical_cores,
)

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc and /sys")

GIB = 2**30
V2_MOUNT = "31 23 0:28 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def topology(groups: list[str]) -> dict[str, str]:
    """Sibling lists, as ``["0,4", "1,5"]`` for two cores of two threads each."""
    return {
        f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": group + "\n"
        for group in groups
        for cpu in parse_cpu_list(group)
    }


def test_parse_cpu_list() -> None:
    assert parse_cpu_list("0-2,8\n") == {0, 1, 2, 8}
    assert parse_cpu_list("\n") == frozenset()


@pytest.mark.parametrize(
    ("cpus", "cores"),
    [(range(8), 4), ({0, 4}, 1), ({0, 1, 2}, 3), ({0, 4, 1}, 2), ({17}, 1), ({17, 18}, 2), (set(), 1)],
)
def test_threads_of_one_core_count_once(tmp_path: Path, cpus: set[int], cores: int) -> None:
    write(tmp_path, topology(["0,4", "1,5", "2,6", "3,7"]))  # nothing is known of 17 and 18
    assert linux_cores(cpus, tmp_path) == cores


def test_sibling_ranges_and_rubbish(tmp_path: Path) -> None:
    write(tmp_path, topology(["0-1", "2-3"]))
    assert linux_cores(range(4), tmp_path) == 2
    write(tmp_path, {"sys/devices/system/cpu/cpu2/topology/thread_siblings_list": "what?"})
    assert linux_cores(range(4), tmp_path) == 3


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 8),
        ("400000 100000", 4),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("9900000 100000", 8),
    ],
)
def test_quota_is_rounded_down_to_at_least_one(tmp_path: Path, quota: str, cores: int) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/box\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/box/cpu.max": quota + "\n",
        },
    )
    assert linux_cores(range(8), tmp_path) == cores


def test_tightest_quota_of_all_parents(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/slice/box/leaf\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/slice/cpu.max": "300000 100000\n",
            "sys/fs/cgroup/slice/box/cpu.max": "max 100000\n",
            "sys/fs/cgroup/slice/box/leaf/cpu.max": "600000 100000\n",
            "sys/fs/cgroup/elsewhere/cpu.max": "100000 100000\n",
        },
    )
    assert cpu_quota(tmp_path) == 3.0


def test_container_that_sees_its_group_as_the_mounted_root(tmp_path: Path) -> None:
    """Without a namespace of its own, the group's name is the host's and the mount begins at it."""
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/docker/abc/inner\n",
            "proc/self/mountinfo": "31 23 0:28 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n",
            "sys/fs/cgroup/cpu.max": "200000 100000\n",
            "sys/fs/cgroup/inner/cpu.max": "max 100000\n",
        },
    )
    assert cpu_quota(tmp_path) == 2.0


@pytest.mark.parametrize("group", ["/../../other", "/somewhere/else"])
def test_group_outside_the_mount_falls_back_to_its_root(tmp_path: Path, group: str) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": f"0::{group}\n",
            "proc/self/mountinfo": "31 23 0:28 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n",
            "sys/fs/cgroup/cpu.max": "200000 100000\n",
        },
    )
    assert cpu_quota(tmp_path) == 2.0


def test_version_1_quota_beside_an_empty_version_2(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/box\n3:memory:/box\n0::/\n",
            "proc/self/mountinfo": (
                "32 31 0:29 / /sys/fs/cgroup/cpu\\040acct rw - cgroup cgroup rw,cpu,cpuacct\n"
                "33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
                "34 31 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
            ),
            "sys/fs/cgroup/cpu acct/box/cpu.cfs_quota_us": "150000\n",
            "sys/fs/cgroup/cpu acct/box/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu acct/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu acct/cpu.cfs_period_us": "100000\n",
        },
    )
    assert cpu_quota(tmp_path) == 1.5


@pytest.mark.parametrize("text", ["", "max", "x y", "100000 0", "0 100000", "\xff\xfe"])
def test_unreadable_quota_is_none(tmp_path: Path, text: str) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\nrubbish\n",
            "proc/self/mountinfo": "short\n" + V2_MOUNT,
            "sys/fs/cgroup/cpu.max": text,
        },
    )
    assert cpu_quota(tmp_path) is None


def test_nothing_at_all_is_one_core_each(tmp_path: Path) -> None:
    assert linux_cores(range(3), tmp_path) == 3
    assert linux_memory(tmp_path) == (0, 0)


MEMINFO = {"proc/meminfo": f"MemTotal: {16 * 2**20} kB\nMemFree: 1 kB\nMemAvailable: {8 * 2**20} kB\n"}


def test_memory_without_a_limit(tmp_path: Path) -> None:
    write(tmp_path, MEMINFO)
    assert linux_memory(tmp_path) == (16 * GIB, 8 * GIB)


def test_memory_within_a_version_2_limit(tmp_path: Path) -> None:
    write(
        tmp_path,
        MEMINFO
        | {
            "proc/self/cgroup": "0::/slice/box\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/slice/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/slice/memory.current": f"{3 * GIB}\n",
            "sys/fs/cgroup/slice/memory.stat": f"anon 5\ninactive_file {GIB}\n",
            "sys/fs/cgroup/slice/box/memory.max": "max\n",
        },
    )
    assert linux_memory(tmp_path) == (4 * GIB, 2 * GIB)  # the file cache is given up on demand


def test_memory_that_neighbours_use_up(tmp_path: Path) -> None:
    """The group itself has room, but the larger one around it is full."""
    write(
        tmp_path,
        MEMINFO
        | {
            "proc/self/cgroup": "0::/slice/box\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/slice/memory.max": f"{6 * GIB}\n",
            "sys/fs/cgroup/slice/memory.current": f"{5 * GIB}\n",
            "sys/fs/cgroup/slice/box/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/slice/box/memory.current": f"{GIB}\n",
        },
    )
    assert linux_memory(tmp_path) == (4 * GIB, GIB)


def test_memory_within_a_version_1_limit(tmp_path: Path) -> None:
    write(
        tmp_path,
        MEMINFO
        | {
            "proc/self/cgroup": "3:memory:/box\n",
            "proc/self/mountinfo": "33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",  # none
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": f"{2 * GIB}\n",
            "sys/fs/cgroup/memory/box/memory.usage_in_bytes": f"{3 * GIB}\n",
        },
    )
    assert linux_memory(tmp_path) == (2 * GIB, 0)


# --- this machine ----------------------------------------------------------------------------------


def test_this_machine() -> None:
    assert 1 <= usable_physical_cores() <= (os.cpu_count() or 1)
    assert 0 < available_memory() <= physical_memory()


@linux_only
@pytest.mark.parametrize("how", ["one", "siblings", "all"])
def test_affinity_of_a_real_process(how: str) -> None:
    allowed = os.sched_getaffinity(0)
    first = min(allowed)
    siblings = Path(f"/sys/devices/system/cpu/cpu{first}/topology/thread_siblings_list")
    together = parse_cpu_list(siblings.read_text()) if siblings.exists() else frozenset((first,))
    cpus = {"one": {first}, "siblings": set(together & allowed), "all": set(allowed)}[how]
    code = (
        "import os, sys; from llama_runner.system import usable_physical_cores as cores;"
        "os.sched_setaffinity(0, map(int, sys.argv[1:])); print(cores())"
    )
    command = [sys.executable, "-c", code, *map(str, cpus)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert int(answer) == (1 if how != "all" else usable_physical_cores())


# --- other systems ---------------------------------------------------------------------------------


def core_record(*masks: int) -> bytes:
    groups = b"".join(system._GROUP.pack(mask, group, 0, 0, 0) for group, mask in enumerate(masks))
    body = bytes(22) + struct.pack("<H", len(masks)) + groups
    return struct.pack("<II", 0, 8 + len(body)) + body


def test_windows_records() -> None:
    other = struct.pack("<II", 1, 16) + bytes(8)  # a NUMA node
    records = core_record(0b0011) + other + core_record(0b1100) + core_record(0b110000)
    assert system.count_cores(records) == 3
    assert system.count_cores(records, affinity=0b0110) == 2
    assert system.count_cores(core_record(0b1, 0b1)) == 1
    assert system.count_cores(records[:-4]) == 2  # torn: what is whole counts
    assert system.count_cores(b"") == 0


@linux_only
def test_sysctl_is_absent_without_harm() -> None:
    assert system._physical_cores() == 0
