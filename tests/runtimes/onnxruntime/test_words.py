"""What onnxruntime says when a provider does not start: lines of real failures, as they came."""

from __future__ import annotations

import os
import sys

import pytest

from edgekit.runtimes.onnxruntime import words

# onnxruntime-gpu 1.31.1 without cuBLAS, its log with its colours.
MISSING = (
    "\x1b[1;31m2026-11-28 19:32:21.580308101 [E:onnxruntime:Default, provider_bridge_ort.cc:2458 operator()]"
    " /onnxruntime_src/onnxruntime/core/session/provider_bridge_ort.cc:2043 onnxruntime::Provider&"
    " onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load library"
    " /home/me/env/onnxruntime/capi/libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: cannot open shared object"
    " file: No such file or directory\n\x1b[m\n"
)
# The same with every library and a driver that finds no device: its Python part prints it.
NO_DEVICE = (
    "*************** EP Error ***************\nEP Error /onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:154"
    " std::conditional_t<THRW, void, onnxruntime::common::Status> onnxruntime::CudaCall(ERRTYPE, const char*) [with ERRTYPE ="
    " cudaError; bool THRW = true] CUDA failure 100: no CUDA-capable device is detected ; GPU=-1 ; hostname=vm ;"
    " file=/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider.cc ; line=355 ;"
    " expr=cudaSetDevice(info_.device_id); \n\n when using ['CUDAExecutionProvider', 'CPUExecutionProvider']\n"
    "Falling back to ['CPUExecutionProvider'] and retrying.\n****************************************\n"
)


@pytest.mark.parametrize(
    ("raw", "read"),
    [
        (
            MISSING,
            (
                "Failed to load library libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: cannot open shared object"
                " file: No such file or directory"
            ),
        ),
        (NO_DEVICE, "CUDA failure 100: no CUDA-capable device is detected"),
        ("something else\n", None),
    ],
)
def test_the_words_are_kept_without_their_source(raw: str, read: str | None) -> None:
    assert words.read(raw) == ([] if read is None else [read])


def test_both_ways_are_heard_and_neither_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    """A line on standard output would stand among the probe's."""
    with words.heard() as said:
        os.write(2, MISSING.encode())
        print(NO_DEVICE)
    assert [line.split(":")[0] for line in said] == [
        "Failed to load library libonnxruntime_providers_cuda.so with error",
        "CUDA failure 100",
    ]
    assert capfd.readouterr() == ("", "")
    print("after", file=sys.stderr)
    assert capfd.readouterr().err == "after\n"


def test_words_are_kept_where_the_block_fails(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), words.heard() as said:  # noqa: PT012
        os.write(2, MISSING.encode())
        raise ValueError("broken")
    assert len(said) == 1
    os.write(2, b"again")
    assert capfd.readouterr().err == "again"
