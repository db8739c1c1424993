"""What drivers' tools print, and what is read of it; nvidia-smi's lines are written in its format, none was at hand."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.runtimes.accelerators import find_accelerators, read_nvidia, read_vulkan, say

H100 = "NVIDIA H100 80GB HBM3, 81559, 580.65.06, 3, 34\n"
BANNER = """\
Sat Nov 28 10:12:44 2026
+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 580.65.06              Driver Version: 580.65.06      CUDA Version: 13.0     |
+-----------------------------------------+------------------------+----------------------+
"""
# GPU2 was recorded from Debian's vulkaninfo 1.3.239; the others are written in its format, as no such GPU was at hand.
SUMMARY = """\
==========
VULKANINFO
==========

Vulkan Instance Version: 1.3.275

Instance Layers: count = 1
--------------------------
VK_LAYER_MESA_device_select  Linux device selection layer 1.3.211  version 1

Devices:
========
GPU0:
	apiVersion         = 1.3.277
	driverVersion      = 550.120.0.0
	vendorID           = 0x10de
	deviceID           = 0x28a1
	deviceType         = PHYSICAL_DEVICE_TYPE_DISCRETE_GPU
	deviceName         = NVIDIA GeForce RTX 4050 Laptop GPU
	driverID           = DRIVER_ID_NVIDIA_PROPRIETARY
	driverName         = NVIDIA
	driverInfo         = 550.120
	conformanceVersion = 1.3.7.2
GPU1:
	apiVersion         = 4206830 (1.3.238)
	driverVersion      = 100675584 (0x6003000)
	deviceType         = PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU
	deviceName         = V3D 7.1.7
	driverName         = V3DV Mesa
	driverInfo         = Mesa 23.2.1-1~bpo12+rpt3
GPU2:
	apiVersion         = 1.3.230
	driverVersion      = 0.0.1
	vendorID           = 0x10005
	deviceID           = 0x0000
	deviceType         = PHYSICAL_DEVICE_TYPE_CPU
	deviceName         = llvmpipe (LLVM 15.0.6, 256 bits)
	driverID           = DRIVER_ID_MESA_LLVMPIPE
	driverName         = llvmpipe
	driverInfo         = Mesa 22.3.6 (LLVM 15.0.6)
	conformanceVersion = 1.3.1.1
	deviceUUID         = 6d657361-3232-2e33-2e36-000000000000
	driverUUID         = 6c6c766d-7069-7065-5555-494400000000
"""


def test_nvidias_table_and_banner() -> None:
    (found,) = read_nvidia(H100, BANNER)
    assert found == {
        "name": "NVIDIA H100 80GB HBM3",
        "memory_mb": 81559,
        "driver": "580.65.06",
        "cuda": "13.0",
        "vulkan": None,
        "busy": 0.03,
        "celsius": 34,
    }
    assert read_nvidia(H100, BANNER.replace("CUDA Version", "CUDA UMD Version"))[0]["cuda"] == "13.0"
    assert len(read_nvidia(H100 * 2, "")) == 2


def test_a_board_that_shares_its_memory_tells_none() -> None:
    (found,) = read_nvidia("Orin (nvgpu), [N/A], 540.4.0, [N/A], [Not Supported]\n", BANNER)
    assert (found["name"], found["memory_mb"], found["busy"], found["celsius"]) == ("Orin (nvgpu)", None, None, None)


def test_a_driver_that_fails_is_no_accelerator() -> None:
    failed = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that ...\n"
    assert read_nvidia(failed, "") == read_nvidia("No devices were found\n", "") == []
    assert say(["no-such-tool-of-anybody"]) == say(["false"]) == ""
    assert say(["echo", "x"]) == "x\n"


def test_vulkans_summary_without_what_the_cpu_plays() -> None:
    first, second = read_vulkan(SUMMARY)
    assert (first["name"], first["vulkan"], first["driver"]) == (
        "NVIDIA GeForce RTX 4050 Laptop GPU",
        "1.3.277",
        "NVIDIA 550.120",
    )
    assert (second["name"], second["vulkan"]) == ("V3D 7.1.7", "1.3.238")
    assert read_vulkan("Cannot create Vulkan instance.\n") == []


def test_one_accelerator_of_two_tools_is_one() -> None:
    laptop = "NVIDIA GeForce RTX 4050 Laptop GPU, 6141, 550.120, 0, 41\n"

    def answer(command: Sequence[str]) -> str:
        if command[0] == "vulkaninfo":
            return SUMMARY
        return laptop if len(command) > 1 else BANNER

    first, second = find_accelerators(answer)
    assert (first["memory_mb"], first["cuda"], first["vulkan"]) == (6141, "13.0", "1.3.277")
    assert second["name"] == "V3D 7.1.7"
    assert find_accelerators(lambda _: "") == []
