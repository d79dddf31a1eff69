"""How many threads are taken when nobody says: by cores, and by what control groups grant. The files are made up."""

from __future__ import annotations

import os

import pytest

from kernels.control_groups import cpu_quota, memory_bytes
from kernels.cpu.threads import MAX_THREADS, ThreadCount, default_threads, one_of_each_core
from kernels.ops import BackendOptions
from kernels.resolve import BACKENDS
from tests.support.backends import DEVICES


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes a machine of so many processors, two a core, and the files of its control groups; returns its root."""

    def make(processors, files, siblings=2):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)))
        for cpu in range(processors):
            core = f"{cpu // siblings * siblings}-{cpu // siblings * siblings + siblings - 1}\n"
            files[f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"] = core
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return make


def test_one_thread_a_core(machine):
    root = machine(8, {})
    assert default_threads(root) == ThreadCount(4, "physical cores")
    assert one_of_each_core(root) == [0, 2, 4, 6]


def test_one_thread_a_processor_where_the_topology_is_not_told(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5})
    assert default_threads(tmp_path).count == 3


def test_no_more_threads_than_the_library_has_room_for(machine):
    root = machine(MAX_THREADS + 1, {}, siblings=1)
    assert default_threads(root) == ThreadCount(MAX_THREADS, "the most there can be")


@pytest.mark.parametrize(
    ("cpu_max", "count", "reason"),
    [
        ("150000 100000\n", 1, "CPU quota of 1.5"),
        ("399999 100000\n", 3, "CPU quota of 4"),
        ("20000 100000\n", 1, "CPU quota of 0.2"),
        ("3200000 100000\n", 32, "physical cores"),
        ("max 100000\n", 32, "physical cores"),
        ("max\n", 32, "physical cores"),
        ("", 32, "physical cores"),
        ("100000 0\n", 32, "physical cores"),
    ],
)
def test_version_2_of_a_container(machine, cpu_max, count, reason):
    """A container's own group is the root of what it sees."""
    root = machine(64, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": cpu_max})
    assert default_threads(root) == ThreadCount(count, reason)


def test_the_least_limit_of_the_groups_around_counts(machine):
    files = {
        "proc/self/cgroup": "0::/system.slice/upwell.service/main\n",
        "sys/fs/cgroup/system.slice/cpu.max": "300000 100000\n",
        "sys/fs/cgroup/system.slice/upwell.service/cpu.max": "250000 50000\n",
        "sys/fs/cgroup/system.slice/upwell.service/main/cpu.max": "max 100000\n",
        "sys/fs/cgroup/other.slice/cpu.max": "100000 100000\n",
    }
    assert cpu_quota(machine(64, files)) == 3


V1 = "12:pids:/docker/c0ffee\n4:cpuset:/docker/c0ffee\n3:{}:/docker/c0ffee\n1:name=systemd:/docker/c0ffee\n0::/\n"


@pytest.mark.parametrize("controllers", ["cpu,cpuacct", "cpuacct,cpu", "cpu"])
@pytest.mark.parametrize("mount", ["cpu", None])
@pytest.mark.parametrize("group", ["", "docker/c0ffee"], ids=["mounted as the root", "the host's path"])
def test_version_1(machine, controllers, mount, group):
    folder = f"sys/fs/cgroup/{mount or controllers}/{group}"
    files = {
        "proc/self/cgroup": V1.format(controllers),
        f"{folder}/cpu.cfs_quota_us": "250000\n",
        f"{folder}/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpuset/cpu.cfs_quota_us": "100000\n",
    }
    assert default_threads(machine(64, files)) == ThreadCount(2, "CPU quota of 2.5")


def test_version_1_without_a_limit(machine):
    files = {
        "proc/self/cgroup": V1.format("cpu,cpuacct"),
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    }
    assert cpu_quota(machine(4, files)) is None


@pytest.mark.parametrize(
    "quotas",
    [
        {"init": 300000},
        {"init": -1, ".": 300000},
        {"c0ffee/init": -1, "c0ffee": 300000},
        {"c0ffee/init": 300000, "init": 100000},
        {"c0ffee/init": 300000, "c0ffee/init/worker": 100000, "c0ffee/other": 100000},
    ],
    ids=str,
)
@pytest.mark.parametrize("version", [1, 2])
def test_of_the_hosts_path_only_the_end_is_mounted(machine, version, quotas):
    """What a container mounts may be any of the groups on the way to its own; the longest end that is there is it."""
    files = {"proc/self/cgroup": f"{'3:cpu,cpuacct' if version == 1 else '0:'}:/pods/c0ffee/init\n"}
    for group, quota in quotas.items():
        if version == 1:
            files[f"sys/fs/cgroup/cpu,cpuacct/{group}/cpu.cfs_quota_us"] = str(quota)
            files[f"sys/fs/cgroup/cpu,cpuacct/{group}/cpu.cfs_period_us"] = "100000"
        else:
            files[f"sys/fs/cgroup/{group}/cpu.max"] = f"{'max' if quota < 0 else quota} 100000"
    assert cpu_quota(machine(64, files)) == 3


def test_a_group_outside_of_the_namespace_is_looked_for_nowhere_else(machine):
    files = {
        "proc/self/cgroup": "0::/../../x\nnonsense\n",
        "sys/x/cpu.max": "100000 100000\n",
        "sys/fs/cgroup/cpu.max": "max 100000\n",
    }
    assert cpu_quota(machine(4, files)) is None


@pytest.mark.skipif("cpu" not in DEVICES, reason="no native library: .ci/run builds one and has it")
def test_the_backend_says_how_many_threads_and_why():
    make = BACKENDS["cpu"]
    assert "2 threads (as asked)" in make(BackendOptions(threads=2)).info.description
    assert f"{default_threads()}, " in make(BackendOptions()).info.description


@pytest.mark.parametrize(
    ("files", "granted"),
    [
        ({}, None),
        ({"sys/fs/cgroup/memory.max": "max\n"}, None),
        ({"sys/fs/cgroup/memory.max": "536870912\n"}, 512 << 20),
        ({"sys/fs/cgroup/memory.max": f"{1 << 62}\n"}, None),
        ({"sys/fs/cgroup/memory/docker/c0ffee/memory.limit_in_bytes": "268435456\n"}, 256 << 20),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
    ],
)
def test_memory(machine, files, granted):
    """What the groups grant if that is less than what the machine has."""
    root = machine(2, {"proc/self/cgroup": "5:memory:/docker/c0ffee\n0::/\n", **files})
    machine_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert memory_bytes(root) == (granted or machine_bytes)
