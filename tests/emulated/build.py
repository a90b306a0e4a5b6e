"""Build the emulated accelerator once for each torch, compiler and source, and find it again."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils import cpp_extension

from tests.source_tree import ROOT

SOURCES = Path(__file__).parent / "csrc"
CACHE = ROOT / "build" / "emulated"
# What is slow here is the compiler, not the code: kernels are those of torch.
FLAGS = ("-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall")
LIBRARIES = ("-ltorch", "-ltorch_cpu", "-ltorch_python", "-lc10")
TIMEOUT_SECONDS = 600


class BuildError(Exception):
    """The extension can't be built here; says why."""


def extension() -> Path:
    """The shared library, built if need be. Processes that ask at a time wait for the one that builds.

    Raises:
        BuildError: there is no compiler, or it failed.
    """
    compiler = shutil.which(cpp_extension.get_cxx_compiler())
    if compiler is None:
        raise BuildError(f"no C++ compiler: {cpp_extension.get_cxx_compiler()} is not on the path")
    folder = CACHE / _key(compiler)
    library = folder / f"_emulated{sysconfig.get_config_var('EXT_SUFFIX')}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            _build(compiler, library)
    return library


def _key(compiler: str) -> str:
    version = _run([compiler, "--version"])
    facts = [torch.__version__, str(torch.version.git_version), sysconfig.get_config_var("EXT_SUFFIX"), version]
    digest = hashlib.sha256("\n".join([*facts, *FLAGS, *LIBRARIES]).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + source.read_bytes())
    return f"torch-{torch.__version__}-{digest.hexdigest()[:16]}"


def _build(compiler: str, library: Path) -> None:
    """Compile as many files at a time as there are processors; the library appears whole or not at all."""
    folders = [*cpp_extension.include_paths(), sysconfig.get_paths()["include"]]
    includes = [word for folder in folders for word in ("-isystem", folder)]
    paths = cpp_extension.library_paths()
    search = [word for folder in paths for word in (f"-L{folder}", f"-Wl,-rpath,{folder}")]
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:

        def compiled(source: Path) -> str:
            target = str(Path(scratch) / f"{source.stem}.o")
            _run([compiler, *FLAGS, *includes, "-c", str(source), "-o", target])
            return target

        largest_first = sorted(SOURCES.glob("*.cpp"), key=lambda source: source.stat().st_size, reverse=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compiled, largest_first))
        linked = Path(scratch) / library.name
        _run([compiler, "-shared", *objects, *search, *LIBRARIES, "-o", str(linked)])
        linked.replace(library)


def _run(command: list[str]) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]}: {error}") from error
    if result.returncode:
        raise BuildError(f"{' '.join(command)} failed:\n{result.stderr[-4000:]}")
    return result.stdout
