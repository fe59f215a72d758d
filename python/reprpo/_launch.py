"""The command `reprpo`: finds the libtorch of the installed torch, and starts the binary with it.

torch is only located and never imported, because the import takes seconds.
"""

import importlib.util
import os
import re
import shlex
import signal
import sys
from pathlib import Path

from ._version import TORCH, __version__

# Symbolic links are resolved, as by the loader when it looks for libtorch relative to the binary.
BINARY = (Path(__file__).parent / "bin" / "reprpo").resolve()


NEED = f"reprpo {__version__} needs torch {TORCH}"

# The libraries of libtorch that the binary loads.
LIBTORCH = ("libtorch_cpu.so", "libc10.so")


class LaunchError(Exception):
    """The binary cannot be started. The arguments are the message and the hint."""


def main() -> None:
    """Replaces this process with the binary, or exits with 1."""
    try:
        torch = find_torch()
        check_version(torch)
        library_path = new_library_path(torch / "lib", os.environ.get("LD_LIBRARY_PATH", ""))
        if library_path is not None:
            os.environ["LD_LIBRARY_PATH"] = library_path
        # Python ignores these signals, and the binary would inherit that.
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        try:
            os.execv(BINARY, [str(BINARY), *sys.argv[1:]])
        except OSError as error:
            hint = f"run `{install_command()} --force-reinstall --no-deps` with the wheel of reprpo"
            raise LaunchError(f"cannot start `{BINARY}`: {error.strerror}", hint) from None
    except LaunchError as error:
        print(f"error: {error.args[0]}\n\nhint: {error.args[1]}", file=sys.stderr)
        sys.exit(1)


def find_torch() -> Path:
    """Returns the folder of the package `torch`."""
    spec = importlib.util.find_spec("torch")
    # A folder `torch` without `__init__.py` is a namespace package, whose origin is None.
    if spec is None or spec.origin is None:
        what = f"torch is not installed for `{sys.executable}`, but {NEED}"
        raise LaunchError(what, f"run `{install_command()} torch=={TORCH}`")
    torch = Path(spec.origin).parent
    if not (torch / "lib" / "libtorch_cpu.so").is_file():
        what = f"the torch in `{torch}` has no `lib/libtorch_cpu.so`"
        raise LaunchError(what, f"run `{install_command()} --force-reinstall torch=={TORCH}`")
    return torch


def check_version(torch: Path) -> None:
    """Raises LaunchError for a version of torch that the binary was not built for.

    The local part of a version, such as `+cu130`, is ignored.
    """
    version = version_of(torch)
    if version.split("+")[0] != TORCH:
        # The CPU builds are not on PyPI.
        index = (
            " --index-url https://download.pytorch.org/whl/cpu" if version.endswith("+cpu") else ""
        )
        what = f"torch {version} is installed in `{torch}`, but {NEED}"
        raise LaunchError(what, f"run `{install_command()} torch=={TORCH}{index}`")


def version_of(torch: Path) -> str:
    """Returns the version of the torch in a folder, such as `2.11.0+cu130`."""
    try:
        text = (torch / "version.py").read_text(encoding="utf-8")
        found = re.search(r"^__version__\s*=\s*['\"]([^'\"]+)", text, re.MULTILINE)
    except OSError:
        found = None
    if found:
        return found[1]
    from importlib import metadata

    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        what = f"the version of the torch in `{torch}` cannot be found"
        raise LaunchError(
            what, f"run `{install_command()} --force-reinstall torch=={TORCH}`"
        ) from None


def new_library_path(lib: Path, current: str) -> "str | None":
    """Returns the LD_LIBRARY_PATH with which the binary loads the libtorch in `lib`.

    Returns None if the current value is right. The binary looks for libtorch in `../../torch/lib`,
    which is correct if both packages are in the same `site-packages`. The loader searches
    LD_LIBRARY_PATH first, so `lib` must come before a folder with another libtorch.
    """
    folders = current.split(":") if current else []
    # An empty entry means the current folder.
    libtorches = [
        Path(folder or ".")
        for folder in folders
        if any((Path(folder or ".") / name).exists() for name in LIBTORCH)
    ]
    found = libtorches[0] if libtorches else BINARY.parents[2] / "torch" / "lib"
    return None if same(found, lib) else ":".join([str(lib), *folders])


def same(a: Path, b: Path) -> bool:
    """Returns true if both paths exist and are the same folder."""
    try:
        return a.samefile(b)
    except OSError:
        return False


def install_command() -> str:
    """Returns the command that installs packages for this Python.

    Environments made by uv do not have pip, so uv must install packages into them.
    """
    python = shlex.quote(sys.executable or "python3")
    try:
        settings = (Path(sys.prefix) / "pyvenv.cfg").read_text(encoding="utf-8")
    except OSError:
        settings = ""
    by_uv = re.search(r"^uv\s*=", settings, re.MULTILINE)
    return f"uv pip install --python {python}" if by_uv else f"{python} -m pip install"
