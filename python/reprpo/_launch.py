"""The command `reprpo`: finds the libtorch of the installed torch, and becomes the binary.

torch is located but never imported, because the import takes seconds and the binary needs none of
it.
"""

import importlib.util
import os
import re
import shlex
import signal
import sys
from pathlib import Path

from ._version import TORCH, __version__

# With links resolved, as the loader does before it looks for libtorch from here.
BINARY = (Path(__file__).parent / "bin" / "reprpo").resolve()


NEED = f"reprpo {__version__} needs torch {TORCH}"

# The libraries of libtorch that the binary loads.
LIBTORCH = ("libtorch_cpu.so", "libc10.so")


class LaunchError(Exception):
    """The binary cannot be started. The arguments are what is wrong and what to do about it."""


def main() -> None:
    """Replaces this process by the binary, or exits with 1."""
    try:
        torch = find_torch()
        check_version(torch)
        library_path = new_library_path(torch / "lib", os.environ.get("LD_LIBRARY_PATH", ""))
        if library_path is not None:
            os.environ["LD_LIBRARY_PATH"] = library_path
        # Python ignores these signals, and a process that replaces it inherits that.
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
    """The folder of the package `torch`."""
    spec = importlib.util.find_spec("torch")
    # A folder of this name without `__init__.py` has no origin.
    if spec is None or spec.origin is None:
        what = f"torch is not installed for `{sys.executable}`, but {NEED}"
        raise LaunchError(what, f"run `{install_command()} torch=={TORCH}`")
    torch = Path(spec.origin).parent
    if not (torch / "lib" / "libtorch_cpu.so").is_file():
        what = f"the torch in `{torch}` has no `lib/libtorch_cpu.so`"
        raise LaunchError(what, f"run `{install_command()} --force-reinstall torch=={TORCH}`")
    return torch


def check_version(torch: Path) -> None:
    """Refuses a version of torch that the binary is not built for.

    The local part of a version, such as `+cu130`, does not matter.
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
    """The version of the torch in a folder, such as `2.11.0+cu130`."""
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
        what = f"the torch in `{torch}` does not say which version it is"
        raise LaunchError(
            what, f"run `{install_command()} --force-reinstall torch=={TORCH}`"
        ) from None


def new_library_path(lib: Path, current: str) -> "str | None":
    """The value that LD_LIBRARY_PATH needs so that the binary loads the libtorch in `lib`.

    None if it can stay as it is. The binary looks for libtorch in `../../torch/lib`, where it is if
    both packages are in one `site-packages`. The loader searches LD_LIBRARY_PATH first, so `lib`
    must come before a folder with another libtorch.
    """
    folders = current.split(":") if current else []
    # An empty name on the path is the current folder.
    libtorches = [
        Path(folder or ".")
        for folder in folders
        if any((Path(folder or ".") / name).exists() for name in LIBTORCH)
    ]
    found = libtorches[0] if libtorches else BINARY.parents[2] / "torch" / "lib"
    return None if same(found, lib) else ":".join([str(lib), *folders])


def same(a: Path, b: Path) -> bool:
    """True if both paths lead to one folder that exists."""
    try:
        return a.samefile(b)
    except OSError:
        return False


def install_command() -> str:
    """The command that installs packages for this Python. Environments of uv do not have pip."""
    python = shlex.quote(sys.executable or "python3")
    try:
        settings = (Path(sys.prefix) / "pyvenv.cfg").read_text(encoding="utf-8")
    except OSError:
        settings = ""
    by_uv = re.search(r"^uv\s*=", settings, re.MULTILINE)
    return f"uv pip install --python {python}" if by_uv else f"{python} -m pip install"
