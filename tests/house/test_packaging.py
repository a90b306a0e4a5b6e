"""The package installs and imports in every way promised: wheel, sdist, editable, plain checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.source_tree import PACKAGES, ROOT, files

CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LISTED = CONFIG["tool"]["setuptools"]["packages"]
SITE = Path(sysconfig.get_path("purelib"))

# Imports every package and says where each came from; `import passes` must not work.
PROBE = """
import importlib, json, sys
found = {name: importlib.import_module(name).__spec__.submodule_search_locations[0] for name in json.loads(sys.argv[1])}
for name in ("passes", "planners"):
    try:
        importlib.import_module(name)
    except ImportError:
        continue
    raise SystemExit(f"import {name} works: it must be sicompiler.{name} only")
print(json.dumps(found))
"""


def _run(*command: str | Path, cwd: Path) -> str:
    hidden = ("PYTEST_", "PYTHON", "PIP_CONSTRAINT", "COV_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    result = subprocess.run([str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def _pip_install(python: str | Path, *arguments: str | Path, cwd: Path) -> None:
    offline = ("--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check")
    _run(python, "-m", "pip", "install", *offline, *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git would clone, so that builds leave nothing behind in the real one."""
    copy = tmp_path_factory.mktemp("checkout")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("sicompiler", "passes", "planners"):
        shutil.copytree(ROOT / folder, copy / folder, symlinks=True, ignore=ignore)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from an sdist, which is the way that forgets most files."""
    out = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, checkout, cwd=out)
    assert len(list(out.glob("*.tar.gz"))) == 1
    (found,) = out.glob("*.whl")
    return found


def test_listed_packages_are_the_folders_on_disk() -> None:
    on_disk = set()
    for package, root in PACKAGES.items():
        for path in files(root, "*.py"):
            on_disk.add(".".join((package, *path.relative_to(root).parts[:-1])))
    assert set(LISTED) == on_disk, "[tool.setuptools] packages in pyproject.toml and the folders on disk differ"
    assert sorted(set(LISTED)) == LISTED, "keep [tool.setuptools] packages sorted"


def test_every_package_has_an_init() -> None:
    """A folder without one is a namespace package: it imports here and breaks elsewhere."""
    mapping = CONFIG["tool"]["setuptools"]["package-dir"]
    missing = [p for p in LISTED if not (ROOT / mapping.get(p, p.replace(".", "/")) / "__init__.py").is_file()]
    assert not missing, f"no __init__.py in {missing}"


@pytest.mark.parametrize("name", ["passes", "planners"])
def test_links_are_relative(name: str) -> None:
    link = ROOT / "sicompiler" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"


def test_constraints_pin_every_dependency() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    extras = CONFIG["project"]["optional-dependencies"].values()
    asked = [*CONFIG["project"]["dependencies"], *(item for extra in extras for item in extra)]
    names = {item.split(">")[0] for item in asked}
    assert not names - pins.keys(), f"not pinned in constraints.txt: {sorted(names - pins.keys())}"


def test_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    expected = {
        f"{package.replace('.', '/')}/{path.relative_to(root)}"
        for package, root in PACKAGES.items()
        for path in files(root)
    }
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == expected
    assert "sicompiler/py.typed" in names


def test_wheel_metadata(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (metadata,) = [archive.read(n).decode() for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
    assert "License-Expression: Apache-2.0" in metadata
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in archive.namelist())
    namespace: dict[str, str] = {}
    exec((ROOT / "sicompiler" / "_version.py").read_text(encoding="utf-8"), namespace)
    assert f"\nVersion: {namespace['__version__']}\n" in metadata


def test_wheel_imports_and_adds_only_sicompiler(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    _pip_install(sys.executable, "--target", target, wheel, cwd=tmp_path)
    added = {path.name for path in target.iterdir() if not path.name.endswith(".dist-info")}
    assert added - {"bin"} == {"sicompiler"}

    # -S leaves out .pth files: an editable install of the running environment can't answer in our place.
    code = f"import sys; sys.path[:0] = [{str(target)!r}]; sys.path.append({str(SITE)!r})\n{PROBE}"
    found = json.loads(_run(sys.executable, "-I", "-S", "-c", code, json.dumps(LISTED), cwd=tmp_path))
    assert found == {name: str(target / name.replace(".", "/")) for name in LISTED}


def test_editable_install_imports_and_sees_new_files(checkout: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    _run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=tmp_path)
    paths = sysconfig.get_paths(scheme="venv", vars={"base": str(environment), "platbase": str(environment)})
    python = Path(paths["scripts"]) / ("python.exe" if os.name == "nt" else "python")
    (Path(paths["purelib"]) / "outer.pth").write_text(f"{SITE}\n")  # torch, pip and setuptools of this interpreter

    source = shutil.copytree(checkout, tmp_path / "source", symlinks=True)
    _pip_install(python, "--editable", source, cwd=tmp_path)
    (source / "passes" / "brand_new.py").write_text("ANSWER = 42\n")
    code = f"import sicompiler.passes.brand_new as new; assert new.ANSWER == 42\n{PROBE}"
    found = json.loads(_run(python, "-I", "-c", code, json.dumps(LISTED), cwd=tmp_path))
    assert {name: Path(path).resolve() for name, path in found.items()} == {
        name: (source / name.replace(".", "/")).resolve() for name in LISTED
    }
    (script,) = Path(paths["scripts"]).glob("sicompiler*")
    assert script.is_file()


def test_pytest_runs_in_a_checkout_that_is_not_installed(checkout: Path, tmp_path: Path) -> None:
    source = shutil.copytree(checkout, tmp_path / "source", symlinks=True)
    (source / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "conftest.py", source / "tests")
    (source / "tests" / "test_probe.py").write_text(
        "import importlib, pathlib, pytest\n"
        f"@pytest.mark.parametrize('name', {LISTED})\n"
        "def test_import(name):\n"
        "    folder = importlib.import_module(name).__spec__.submodule_search_locations[0]\n"
        "    assert pathlib.Path(folder).is_relative_to(pathlib.Path(__file__).parents[1])\n"
        "def test_guard():\n"
        "    with pytest.raises(ImportError, match='sicompiler.passes'):\n"
        "        import passes\n"
    )
    output = _run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", cwd=source)
    assert f"{len(LISTED) + 1} passed" in output


@pytest.mark.skipif(not any((ROOT / "sicompiler").glob("cli*")), reason="sicompiler.cli is not written yet")
def test_entry_point_exists() -> None:
    module, _, function = CONFIG["project"]["scripts"]["sicompiler"].partition(":")
    code = f"import {module}; assert callable({module}.{function})"
    _run(sys.executable, "-c", code, cwd=ROOT)
