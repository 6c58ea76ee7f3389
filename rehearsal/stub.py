"""Build the stub of CUDA and start Python with it. Does not import torch, which has to load after the stub."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "rehearsal"
LIBRARY = BUILD / "libcuda_stub.so"


def unavailable_reason() -> str | None:
    """Why this machine cannot run the rehearsal; None if it can."""
    if sys.platform != "linux":
        return "the rehearsal needs Linux"
    if shutil.which("gcc") is None:
        return "the rehearsal needs gcc"
    if _headers() is None:
        return "the rehearsal needs torch built for CUDA 13, which brings nvidia/cu13/include/driver_types.h"
    return None


def environment() -> dict[str, str]:
    """Environment variables of a Python process whose CUDA is the stub, which is built if it is out of date.

    Raises:
        RuntimeError: If `unavailable_reason`.
    """
    reason = unavailable_reason()
    if reason is not None:
        raise RuntimeError(reason)
    source = HERE / "cuda_stub.c"
    if not LIBRARY.exists() or LIBRARY.stat().st_mtime < source.stat().st_mtime:
        BUILD.mkdir(parents=True, exist_ok=True)
        new = BUILD / f"{os.getpid()}.so"
        includes = [f"-I{HERE / 'include'}", f"-I{_headers()}"]
        flags = ["-w", "-std=gnu17", "-O1", "-shared", "-fPIC"]
        subprocess.run(["gcc", *flags, *includes, "-o", str(new), str(source)], check=True)
        new.replace(LIBRARY)
        (BUILD / "libcuda.so.1").unlink(missing_ok=True)
        (BUILD / "libcuda.so.1").symlink_to(LIBRARY.name)  # torch loads the driver by this name
    paths = [str(BUILD), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    known = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return {
        **known,
        "LD_PRELOAD": str(LIBRARY),
        "LD_LIBRARY_PATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def restart(module: str) -> None:
    """Run a module of this folder again with the stub, unless this process has it."""
    if os.environ.get("LD_PRELOAD") != str(LIBRARY):
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], environment())


def _headers() -> Path | None:
    spec = find_spec("nvidia")
    folders = [] if spec is None else spec.submodule_search_locations or []
    found = [Path(folder) / "cu13" / "include" for folder in folders]
    return next((folder for folder in found if (folder / "driver_types.h").exists()), None)
