"""cmake/Backends.cmake: what a configure turns on, and what it says, on machines that are made up here.

A scratch project includes the module. Toolkits and drivers are empty files and shell scripts in a temporary folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MODULES = Path(__file__).resolve().parents[1] / "cmake"
PROJECT = """
cmake_minimum_required(VERSION 3.24)
project(scratch LANGUAGES CXX)
list(APPEND CMAKE_MODULE_PATH "{modules}")
include(Backends)
llama_runner_print_backends()
llama_runner_backend_facts(facts)
file(WRITE "${{CMAKE_BINARY_DIR}}/facts.json" "${{facts}}")
"""
GPU_BACKENDS = ("CUDA", "HIP", "METAL", "VULKAN")

shell = pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="the made-up machines run Linux")


def find_cmake() -> str | None:
    beside = shutil.which(
        "cmake", path=str(Path(sys.executable).parent)
    )  # where the cmake package of PyPI puts it
    return beside or shutil.which("cmake")


pytestmark = pytest.mark.skipif(find_cmake() is None, reason="no cmake, on the path or from the extra `test`")


class Machine:
    """A folder with its own tools first on the path, and configures of the scratch project on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.build = folder / "build"
        self.bin.mkdir()
        (folder / "CMakeLists.txt").write_text(PROJECT.format(modules=MODULES.as_posix()))
        self.options: dict[str, str] = {}
        self.env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("CUDA", "VULKAN", "ROCM"))
        }
        self.env["PATH"] = os.pathsep.join(
            [str(self.bin), str(Path(sys.executable).parent), os.environ["PATH"]]
        )

    def tool(self, name: str, script: str, folder: Path | None = None) -> Path:
        path = (folder or self.bin) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    def configure(self, **options: str) -> subprocess.CompletedProcess[str]:
        defines = [f"-D{name}={value}" for name, value in {**self.options, **options}.items()]
        command = [find_cmake() or "cmake", "-S", str(self.folder), "-B", str(self.build), *defines]
        if shutil.which("ninja", path=self.env["PATH"]):
            command += ["-G", "Ninja"]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, check=False)

    def facts(self, **options: str) -> dict[str, dict[str, str]]:
        result = self.configure(**options)
        assert result.returncode == 0, result.stderr
        return json.loads((self.build / "facts.json").read_text())

    def refusal(self, **options: str) -> str:
        result = self.configure(**options)
        assert result.returncode != 0
        return " ".join(result.stderr.split())  # as CMake did not break its lines

    def cache(self, name: str) -> str | None:
        found = re.search(rf"^{name}:\w+=(.*)$", (self.build / "CMakeCache.txt").read_text(), re.MULTILINE)
        return found[1] if found else None

    # --- what can be installed on it

    def cuda(self, version: str = "12.4", cublas: bool = True, knows: str = "sm_90") -> None:
        root = self.folder / "cuda"
        nvcc = f"""
case "$*" in
  *__cmake_determine_cuda*) echo '#$ TOP={root}' >&2; exit 1;;
  *--version*) echo 'Cuda compilation tools, release {version}, V{version}.99'; exit 0;;
  *{knows}*) exit 0;;
esac
echo "nvcc fatal   : Unsupported gpu architecture, \\"it\\" says" >&2; exit 1"""
        self.tool("nvcc", nvcc, root / "bin")
        libraries = ["libcudart.so", "stubs/libcuda.so", *(["libcublas.so"] if cublas else [])]
        for name in ["include/cuda_runtime.h", *(f"lib64/{library}" for library in libraries)]:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        del self.options["CMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit"]
        self.options["CUDAToolkit_ROOT"] = str(root)

    def no_cuda(self) -> None:
        self.options["CMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit"] = "ON"

    def nvidia(self, *devices: str, old: bool = False) -> None:
        """Devices as "9.0, NVIDIA H200"; an old driver does not know the architecture."""
        lines = "\n".join(devices)
        listed = "\n".join(
            f"GPU {n}: {device.split(', ')[1]} (UUID: GPU-0)" for n, device in enumerate(devices)
        )
        query = "exit 2" if old or not devices else f"cat <<'END'\n{lines}\nEND"
        self.tool("nvidia-smi", f"case \"$*\" in *-L*) cat <<'END'\n{listed}\nEND\n;; *) {query}\n;; esac")

    def vulkan(self, *devices: tuple[str, str], glslc: bool = True) -> None:
        root = self.folder / "vulkan"
        headers = root / "include" / "vulkan"
        headers.mkdir(parents=True)
        (headers / "vulkan.h").touch()
        (headers / "vulkan_core.h").write_text(
            "#define VK_HEADER_VERSION 250\n"
            "#define VK_HEADER_VERSION_COMPLETE VK_MAKE_API_VERSION(0, 1, 3, VK_HEADER_VERSION)\n"
        )
        (root / "libvulkan.so").touch()
        (root / "SPIRV-HeadersConfig.cmake").touch()
        self.options |= {
            "Vulkan_LIBRARY": str(root / "libvulkan.so"),
            "Vulkan_INCLUDE_DIR": str(root / "include"),
            "SPIRV-Headers_DIR": str(root),
            "Vulkan_GLSLC_EXECUTABLE": str(self.tool("glslc", "exit 0", root)) if glslc else "",
        }
        blocks = (
            f"GPU{n}:\n\tdeviceID           = 0x0\n\tdeviceType         = PHYSICAL_DEVICE_TYPE_{kind}\n"
            f"\tdeviceName         = {name}\n\tdriverID           = 0"
            for n, (kind, name) in enumerate(devices)
        )
        self.tool("vulkaninfo", "cat <<'END'\nVULKANINFO\n" + "\n".join(blocks) + "\nEND")

    def rocm(self, *names: str) -> None:
        root = self.folder / "rocm"
        self.tool("hipcc", "echo 'HIP version: 6.2.41133-dd7f95766'", root / "bin")
        agents = "\n".join(
            f"  Name:                    {name}\n      Name:   amdgcn-amd-amdhsa--{name}" for name in names
        )
        self.tool(
            "rocminfo", f"cat <<'END'\n  Name:                    AMD Ryzen\n{agents}\nEND", root / "bin"
        )
        for package in ("hip", "hipblas", "rocblas"):
            (root / "lib" / "cmake" / package).mkdir(parents=True)
        self.env["ROCM_PATH"] = str(root)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """One without any toolkit or device, whatever the real one has."""
    machine = Machine(tmp_path)
    machine.no_cuda()
    if sys.platform not in ("win32", "darwin"):
        machine.nvidia()
        machine.tool("vulkaninfo", "exit 1")
        machine.tool("rocminfo", "exit 1")
    return machine


# --- nothing there ---------------------------------------------------------------------------------------------------


def test_every_backend_is_accounted_for(machine: Machine) -> None:
    facts = machine.facts()
    assert sorted(facts) == ["blas", "cpu", "cuda", "hip", "metal", "openmp", "vulkan"]
    for name, fact in facts.items():
        assert fact["state"] in ("on", "off")
        assert fact["reason"], name
        if name != "cpu":
            assert machine.cache(f"GGML_{name.upper()}") == fact["state"].upper()
    assert facts["cpu"]["state"] == "on"
    assert facts["openmp"]["state"] == ("off" if sys.platform == "darwin" else "on")


def test_one_aligned_table(machine: Machine) -> None:
    lines = machine.configure().stdout.splitlines()
    start = next(n for n, line in enumerate(lines) if "backends of this build" in line)
    table = lines[start + 1 : start + 9]
    assert [line.split()[0] for line in table] == [
        "backend",
        "cpu",
        "cuda",
        "hip",
        "metal",
        "vulkan",
        "blas",
        "openmp",
    ]
    assert [line.split()[1] for line in table[1:]] == [line[14:17].strip() for line in table[1:]]
    assert {line.index(line.split()[2], 18) for line in table} == {21}


@shell
def test_without_anything_all_gpu_backends_are_off(machine: Machine) -> None:
    facts = machine.facts()
    assert [facts[name.lower()]["state"] for name in GPU_BACKENDS] == ["off"] * 4
    assert facts["cuda"]["reason"] == "not found: the CUDA toolkit with nvcc"
    assert facts["metal"]["reason"] == "not found: macOS"


@pytest.mark.parametrize("backend", [*GPU_BACKENDS, "BLAS", "OPENMP"])
def test_a_value_that_is_none_is_refused(machine: Machine, backend: str) -> None:
    refusal = machine.refusal(**{f"LLAMA_RUNNER_{backend}": "maybe"})
    assert f"LLAMA_RUNNER_{backend}=maybe is not known: use AUTO, ON or OFF" in refusal


@shell
@pytest.mark.parametrize(
    ("backend", "missing", "package"),
    [
        ("CUDA", "the CUDA toolkit with nvcc", "nvidia-cuda-toolkit"),
        ("HIP", "hipcc", "libhipblas-dev"),
        ("METAL", "macOS", "Xcode"),
        ("VULKAN", "glslc", "libvulkan-dev glslc spirv-headers"),
        ("BLAS", "NoSuchBLAS", "libopenblas-dev pkg-config"),
    ],
)
def test_on_with_something_missing_says_what_and_where_from(
    machine: Machine, backend: str, missing: str, package: str
) -> None:
    if backend == "HIP" and shutil.which("hipcc"):
        pytest.skip("this machine has hipcc")
    if backend == "VULKAN":
        machine.vulkan(glslc=False)
    options = {f"LLAMA_RUNNER_{backend}": "ON", "GGML_BLAS_VENDOR": "NoSuchBLAS"}
    refusal = machine.refusal(**options)
    assert f"LLAMA_RUNNER_{backend}=ON, but this is missing: {missing}" in refusal
    assert package in refusal
    assert f"Or go on without it: LLAMA_RUNNER_{backend}=AUTO or OFF." in refusal


# --- CUDA ------------------------------------------------------------------------------------------------------------


def test_this_machine(tmp_path: Path) -> None:
    """Whatever the machine has, the configure succeeds, and a toolkit without a device is never built for."""
    machine = Machine(tmp_path)
    facts = machine.facts()
    if (
        shutil.which("nvcc")
        and not shutil.which("nvidia-smi")
        and not Path("/proc/driver/nvidia/gpus").exists()
    ):
        reason = facts["cuda"]["reason"]
        assert re.fullmatch(r"CUDA \d+\.\d+ found, no device: off, force with LLAMA_RUNNER_CUDA=ON", reason)


@shell
def test_a_toolkit_that_lies_about(machine: Machine) -> None:
    machine.cuda("13.0")
    line = "CUDA 13.0 found, no device: off, force with LLAMA_RUNNER_CUDA=ON"
    assert machine.facts()["cuda"] == {"state": "off", "reason": line}
    assert line in machine.configure().stdout
    assert machine.cache("CMAKE_CUDA_ARCHITECTURES") is None


@shell
def test_toolkit_and_device(machine: Machine) -> None:
    machine.cuda()
    machine.nvidia("9.0, NVIDIA H200")
    fact = machine.facts()["cuda"]
    assert fact == {
        "state": "on",
        "reason": "CUDA 12.4, NVIDIA H200, 90-real",
        "version": "12.4.99",
        "arch": "90-real",
    }
    assert machine.cache("GGML_CUDA") == "ON"
    assert machine.cache("CMAKE_CUDA_ARCHITECTURES") == "90-real"
    assert machine.cache("CMAKE_CUDA_COMPILER") == str(machine.folder / "cuda" / "bin" / "nvcc")


@shell
def test_two_kinds_of_device(machine: Machine) -> None:
    machine.cuda(knows="-arch=")
    machine.nvidia("8.6, NVIDIA A10", '12.0, NVIDIA [new] "quoted"', "8.6, NVIDIA A10")
    fact = machine.facts()["cuda"]
    assert fact["arch"] == "86-real;120-real"
    assert machine.cache("CMAKE_CUDA_ARCHITECTURES") == "86-real;120-real"


@shell
def test_a_driver_too_old_to_name_the_architecture(machine: Machine) -> None:
    machine.cuda(knows="-arch=native")
    machine.nvidia("0, Tesla T4", old=True)
    fact = machine.facts()["cuda"]
    assert (fact["state"], fact["arch"]) == ("on", "native")
    assert "Tesla T4" in fact["reason"]


@shell
def test_a_device_that_the_toolkit_cannot_compile_for(machine: Machine) -> None:
    machine.cuda()
    machine.nvidia("7.0, Tesla V100")
    fact = machine.facts()["cuda"]
    assert fact["state"] == "off"
    assert fact["reason"].startswith(
        "CUDA 12.4 and Tesla V100 found, but not an nvcc that compiles for sm_70"
    )
    assert 'Unsupported gpu architecture, "it" says' in fact["reason"]  # quotes come through the JSON
    assert "sm_70" in machine.refusal(LLAMA_RUNNER_CUDA="ON")


@shell
def test_a_toolkit_without_cublas(machine: Machine) -> None:
    machine.cuda(cublas=False)
    machine.nvidia("9.0, NVIDIA H200")
    assert (
        machine.facts()["cuda"]["reason"] == "CUDA 12.4 and NVIDIA H200 found, but not CUDA's cublas library"
    )
    assert "this is missing: CUDA's cublas library" in machine.refusal(LLAMA_RUNNER_CUDA="ON")


@shell
def test_forced_without_a_device(machine: Machine) -> None:
    machine.cuda("12.8")
    fact = machine.facts(LLAMA_RUNNER_CUDA="ON")["cuda"]
    assert fact["state"] == "on"
    assert fact["arch"] == "75-virtual;80-virtual;86-real;89-real;90-virtual;120a-real"


@shell
def test_forbidden(machine: Machine) -> None:
    machine.cuda()
    machine.nvidia("9.0, NVIDIA H200")
    assert machine.facts(LLAMA_RUNNER_CUDA="OFF")["cuda"] == {
        "state": "off",
        "reason": "LLAMA_RUNNER_CUDA=OFF",
    }


@shell
def test_architectures_of_the_callers_own_stay(machine: Machine) -> None:
    machine.cuda()
    machine.nvidia("9.0, NVIDIA H200")
    for _ in range(2):
        assert machine.facts(CMAKE_CUDA_ARCHITECTURES="90a-real")["cuda"]["arch"] == "90a-real"


@shell
def test_a_second_configure_follows_the_machine(machine: Machine) -> None:
    machine.cuda(knows="-arch=")
    machine.nvidia("9.0, NVIDIA H200")
    assert machine.facts()["cuda"]["arch"] == "90-real"
    machine.nvidia("8.6, NVIDIA A10")
    assert machine.facts()["cuda"]["arch"] == "86-real"
    machine.nvidia()
    assert machine.facts()["cuda"]["state"] == "off"
    assert machine.cache("GGML_CUDA") == "OFF"


# --- the others ------------------------------------------------------------------------------------------------------

LLVMPIPE = ("CPU", "llvmpipe (LLVM 15.0.6, 256 bits)")
RADEON = ("DISCRETE_GPU", "AMD Radeon RX 7900 (RADV)")


@shell
def test_vulkan_with_a_device(machine: Machine) -> None:
    machine.vulkan(LLVMPIPE, RADEON)
    fact = machine.facts()["vulkan"]
    assert fact == {
        "state": "on",
        "reason": "Vulkan 1.3.250, AMD Radeon RX 7900 (RADV)",
        "version": "1.3.250",
    }


@shell
def test_vulkan_with_a_software_renderer_only(machine: Machine) -> None:
    machine.vulkan(LLVMPIPE)
    reason = machine.facts()["vulkan"]["reason"]
    assert reason == "Vulkan 1.3.250 found, no device: off, force with LLAMA_RUNNER_VULKAN=ON"
    assert machine.facts(LLAMA_RUNNER_VULKAN="ON")["vulkan"]["state"] == "on"


@shell
def test_vulkan_without_glslc(machine: Machine) -> None:
    machine.vulkan(RADEON, glslc=False)
    machine.options["CMAKE_FIND_USE_CMAKE_SYSTEM_PATH"] = "OFF"
    if shutil.which("glslc"):
        pytest.skip("this machine has glslc")
    assert (
        machine.facts()["vulkan"]["reason"]
        == "Vulkan 1.3.250 and AMD Radeon RX 7900 (RADV) found, but not glslc"
    )


@shell
def test_vulkan_leaves_a_device_to_cuda(machine: Machine) -> None:
    machine.cuda()
    machine.nvidia("9.0, NVIDIA H200")
    machine.vulkan(("DISCRETE_GPU", "NVIDIA H200"))
    reason = machine.facts()["vulkan"]["reason"]
    assert reason == "CUDA drives the GPU already: off, force with LLAMA_RUNNER_VULKAN=ON"
    assert machine.facts(LLAMA_RUNNER_VULKAN="ON")["vulkan"]["state"] == "on"


@shell
def test_hip_with_a_device(machine: Machine) -> None:
    machine.rocm("gfx1100", "gfx1100", "gfx90a")
    machine.options["CMAKE_IGNORE_PATH"] = str(machine.bin)
    fact = machine.facts()["hip"]
    expected = {
        "state": "on",
        "reason": "HIP 6.2, an AMD GPU, gfx1100 gfx90a",
        "version": "6.2",
        "arch": "gfx1100;gfx90a",
    }
    assert fact == expected
    assert machine.cache("GPU_TARGETS") == "gfx1100;gfx90a"


@shell
@pytest.mark.skipif(Path("/dev/kfd").exists(), reason="this machine has an AMD GPU")
def test_hip_without_a_device(machine: Machine) -> None:
    machine.rocm()
    machine.options["CMAKE_IGNORE_PATH"] = str(machine.bin)
    assert machine.facts()["hip"]["reason"] == "HIP 6.2 found, no device: off, force with LLAMA_RUNNER_HIP=ON"


@shell
def test_openmp_can_be_forced_and_forbidden(machine: Machine) -> None:
    fact = machine.facts(LLAMA_RUNNER_OPENMP="ON")["openmp"]
    assert fact["state"] == "on"
    assert fact["reason"].startswith("OpenMP ")
    assert machine.facts(LLAMA_RUNNER_OPENMP="OFF")["openmp"]["state"] == "off"


@pytest.mark.skipif(sys.platform != "darwin", reason="not a Mac")
def test_a_mac(machine: Machine) -> None:
    facts = machine.facts()
    assert facts["metal"]["state"] == facts["blas"]["state"] == "on"
    assert machine.cache("GGML_METAL_EMBED_LIBRARY") == "ON"
    assert machine.cache("GGML_BLAS_VENDOR") == "Apple"


# --- the CPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [None, "1700000000"])
def test_a_local_build_is_for_this_machine(machine: Machine, epoch: str | None) -> None:
    if epoch:
        machine.env["SOURCE_DATE_EPOCH"] = epoch
    assert "built for this machine" in machine.facts()["cpu"]["reason"]
    names = ("GGML_NATIVE", "GGML_BACKEND_DL", "GGML_CPU_ALL_VARIANTS")
    assert [machine.cache(name) for name in names] == ["ON", "OFF", "OFF"]


@shell
@pytest.mark.parametrize(
    ("system", "processor", "expected"),
    [
        ("Linux", "x86_64", ["OFF", "ON", "ON"]),
        ("Linux", "aarch64", ["OFF", "ON", "ON"]),
        ("Linux", "loongarch64", ["OFF", "OFF", "OFF"]),
        ("FreeBSD", "aarch64", ["OFF", "OFF", "OFF"]),
    ],
)
def test_a_portable_build(machine: Machine, system: str, processor: str, expected: list[str]) -> None:
    machine.cuda()
    machine.nvidia("9.0, NVIDIA H200")
    made_up = {
        "CMAKE_SYSTEM_NAME": system,
        "CMAKE_SYSTEM_PROCESSOR": processor,
        "CMAKE_CXX_COMPILER_FORCED": "ON",
    }
    facts = machine.facts(LLAMA_RUNNER_PORTABLE="ON", **made_up)
    names = ("GGML_NATIVE", "GGML_BACKEND_DL", "GGML_CPU_ALL_VARIANTS")
    assert [machine.cache(name) for name in names] == expected
    reason = facts["cpu"]["reason"]
    assert ("all variants" in reason) == (expected[2] == "ON")
    assert ("no variants to pick from" in reason) == (expected[2] == "OFF")
    assert facts["cuda"]["state"] == "off"
    # What this machine has says nothing about the ones the build is for.
    assert facts["cuda"]["reason"].startswith(("a portable build", "not found"))


@shell
def test_a_portable_build_with_cuda_forced_is_for_many_devices(machine: Machine) -> None:
    machine.cuda(knows="-arch=")
    machine.nvidia("9.0, NVIDIA H200")
    fact = machine.facts(LLAMA_RUNNER_PORTABLE="ON", LLAMA_RUNNER_CUDA="ON")["cuda"]
    assert fact["arch"] == "75-virtual;80-virtual;86-real;89-real;90-virtual"
