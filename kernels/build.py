#!/usr/bin/env python3
"""Compiles kernels/*.cu to PTX for compute_70, and checks what is committed. Needs no GPU and no CUDA toolkit:

    python3 -m venv venv && venv/bin/pip install --no-deps nvidia-cuda-nvrtc-cu12==12.1.105 nvidia-cuda-nvcc-cu12==12.9.86
    venv/bin/python kernels/build.py              writes kernels/ptx/*.ptx
    venv/bin/python kernels/build.py --check      compares instead of writing
    venv/bin/python kernels/build.py --assemble   also assembles for every card (ptxas), fails on spills
    venv/bin/python kernels/build.py --output DIR writes elsewhere

NVRTC 12.1 writes PTX that any driver from CUDA 12.1 on takes; a newer one would ask for a newer driver.
"""

import argparse
import ctypes
import glob
import hashlib
import os
import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
NVRTC = "12.1"
CARDS = ["sm_70", "sm_75", "sm_80", "sm_90"]
HINT = "pip install --no-deps nvidia-cuda-nvrtc-cu12==12.1.105 nvidia-cuda-nvcc-cu12==12.9.86"


def candidates(*patterns):
    """Files below the site-packages of this Python and below CUDA_HOME."""
    roots = [os.path.join(path, "nvidia") for path in sys.path if path] + [os.environ.get("CUDA_HOME", "/usr/local/cuda")]
    return [found for root in roots for pattern in patterns for found in glob.glob(os.path.join(root, pattern))]


def load_nvrtc():
    for path in candidates("cuda_nvrtc/lib/libnvrtc.so.12", "lib64/libnvrtc.so.12"):
        nvrtc = ctypes.CDLL(path)
        major, minor = ctypes.c_int(), ctypes.c_int()
        nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        if f"{major.value}.{minor.value}" == NVRTC:
            return nvrtc
    sys.exit(f"NVRTC {NVRTC} is not here; {HINT}")


def digest(source):
    """Of the source and of every header, which is what a kernel's PTX depends on."""
    hasher = hashlib.sha256()
    for path in [source, *sorted(HERE.glob("*.cuh"))]:
        hasher.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return hasher.hexdigest()


def compile_ptx(nvrtc, source):
    program = ctypes.c_void_p()
    headers = sorted(HERE.glob("*.cuh"))
    texts = (ctypes.c_char_p * len(headers))(*[header.read_bytes() for header in headers])
    names = (ctypes.c_char_p * len(headers))(*[header.name.encode() for header in headers])
    name = source.name.encode()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.read_bytes(), name, len(headers), texts, names)
    options = [b"--gpu-architecture=compute_70", b"--std=c++17", b"--restrict"]
    code = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    log = fetch(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
    if code:
        sys.exit(f"{source.name}: NVRTC fails with {code}:\n{log}")
    warnings = [line for line in log.splitlines() if line.strip() and "compute_70" not in line]
    if warnings:
        print("\n".join(warnings))
    text = fetch(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return f"// source sha256 {digest(source)}\n{text}"


def fetch(size_of, read, program):
    size = ctypes.c_size_t()
    size_of(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    read(program, buffer)
    return buffer.value.decode()


def assemble(ptx, ptxas):
    """Registers, shared memory and spills of every kernel; True when none spills."""
    clean = True
    for card in CARDS:
        command = [ptxas, "-v", f"-arch={card}", str(ptx), "-o", "/dev/null"]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            sys.exit(f"{ptx.name}: ptxas fails for {card}:\n{result.stderr}")
        for entry in re.split(r"Compiling entry function ", result.stderr)[1:]:
            name = entry.split("'")[1]
            spills = sum(map(int, re.findall(r"(\d+) bytes spill", entry)))
            registers = re.search(r"Used (\d+) registers", entry).group(1)
            shared = re.search(r"(\d+) bytes smem", entry)
            print(f"{card} {name:32} {registers:>3} registers {shared.group(1) if shared else 0:>6} bytes shared {spills} spilled")
            clean &= spills == 0
    return clean


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--assemble", action="store_true")
    parser.add_argument("--output", type=pathlib.Path, default=HERE / "ptx")
    options = parser.parse_args()
    nvrtc = load_nvrtc()
    ptxas = (candidates("cuda_nvcc/bin/ptxas", "bin/ptxas") or [None])[0]
    if options.assemble and not ptxas:
        sys.exit(f"ptxas is not here; {HINT}")
    options.output.mkdir(parents=True, exist_ok=True)
    good = True
    for source in sorted(HERE.glob("*.cu")):
        text, target = compile_ptx(nvrtc, source), options.output / f"{source.stem}.ptx"
        if options.check:
            same = target.exists() and target.read_text() == text
            good &= same
            print(f"{target.name}: {'as committed' if same else 'differs from what this source compiles to'}")
        else:
            target.write_text(text)
        if options.assemble:
            good &= assemble(target, ptxas)
    if not good:
        sys.exit("kernels/ptx is stale or a kernel spills: see above; kernels/build.py writes it anew")


if __name__ == "__main__":
    main()
