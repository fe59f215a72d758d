"""Tests the wheel in fresh environments, and the tarball in a fresh folder.

    python tests/python/wheel.py WHEEL [--tarball TARBALL] [--plugin LIBRARY] [--skip-training]

`cargo xtask wheel` and `cargo xtask dist` build WHEEL and TARBALL. LIBRARY is a plugin that was
built from the same sources, e.g. by `cargo build` in `plugins/examples`. pip downloads torch (530
MB) and the two CUDA libraries that torch needs even on the CPU, so the script needs about 3 GB of
disk space below TMPDIR; only one environment with torch exists at a time. The commands run with a
PATH without cargo. Training downloads the default model if it is not in reprpo's cache.

The script prints a line for each check and exits with 1 if a check fails. It needs Python's
standard library and readelf.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

TORCH = "2.11.0"
# torch declares 5 GB of CUDA libraries and some Python packages as dependencies, but
# libtorch_cpu.so only needs these two.
TORCH_AND_LIBRARIES = [
    f"torch=={TORCH}",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cupti==13.0.85",
]
MODEL = "smollm2-135m-instruct"
# The first command of the README with fewer pairs.
COMMAND = (
    "run --intervention prefvec --adapter hra --set intervention.lambda_dpo=1"
    " --set train.max_pairs=30 --set train.lr=4e-3"
)
# Newest symbol versions in the libraries of RHEL 8.
NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 25), "CXXABI": (1, 3, 11), "GCC": (8, 0, 0)}

failures = 0


def check(what, good, detail=""):
    global failures
    print(f"{'ok    ' if good else 'FAILED'}  {what}", flush=True)
    if not good:
        failures += 1
        print("        " + str(detail).strip().replace("\n", "\n        "), flush=True)


def clean_environment(**more):
    """Returns the environment without Rust, without libtorch, and without Python's variables."""
    dropped = {
        "LIBTORCH",
        "LD_LIBRARY_PATH",
        "PYTHONPATH",
        "PYTHONHOME",
        "VIRTUAL_ENV",
        "CARGO_HOME",
        "RUSTUP_HOME",
    }
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in dropped and not name.startswith("REPRPO_LOG")
    }
    folders = env.get("PATH", "").split(":")
    env["PATH"] = ":".join(
        f
        for f in folders
        if f and not shutil.which("cargo", path=f) and not shutil.which("rustc", path=f)
    )
    return {**env, **more}


def run(command, cwd, **env):
    process = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=clean_environment(**env),
        capture_output=True,
        text=True,
    )
    return process.returncode, process.stdout, process.stderr


class Environment:
    """A virtual environment."""

    def __init__(self, folder, **options):
        venv.create(folder, with_pip=False, **options)
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.command = folder / "bin" / "reprpo"
        # The name of the folder contains Python's version, e.g. `python3.11`.
        self.site = next((folder / "lib").glob("python3*")) / "site-packages"

    def install(self, *what):
        """Installs with the pip of the Python that runs this script; the environment has no pip."""
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            self.python,
            "install",
            "--quiet",
            "--no-deps",
            "--no-cache-dir",
        ]
        process = subprocess.run(
            [str(word) for word in [*pip, "--disable-pip-version-check", *what]],
            capture_output=True,
            text=True,
        )
        if process.returncode != 0:
            sys.exit(f"pip could not install {' '.join(map(str, what))}\n{process.stderr}")


def fake_torch(site, version, library=b""):
    """Creates a package that looks like torch to the launcher but fails if it is imported."""
    folder = site / "torch"
    (folder / "lib").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('the launcher must not import torch')\n")
    (folder / "version.py").write_text(
        f"from typing import Optional\n\n__version__ = '{version}'\n"
    )
    (folder / "lib" / "libtorch_cpu.so").write_bytes(library)


def versions(binary):
    """Returns the versions of system libraries that the binary requires, as readelf prints them."""
    text = subprocess.run(
        ["readelf", "--version-info", "--wide", str(binary)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    needs = text[text.index("Version needs section") :]
    return sorted(set(re.findall(r"Name: (\w+?)_([\d.]+|\w+)\s", needs)))


def check_binary(wheel, binary):
    """Compares the binary's required versions, as printed by readelf, with the wheel's tag."""
    minor = int(re.search(r"manylinux_2_(\d+)_x86_64", wheel.name)[1])
    newest = {**NEWEST, "GLIBC": (2, minor)} if minor <= 28 else {"GLIBC": (2, minor)}
    found = versions(binary)
    number = lambda version: (
        tuple(int(part) for part in version.split("."))
        if re.fullmatch(r"[\d.]+", version)
        else (999,)
    )
    newer = [
        f"{family}_{version}"
        for family, version in found
        if family in newest and number(version) > newest[family]
    ]
    check(f"the binary needs no symbol newer than manylinux_2_{minor}", found and not newer, newer)
    dynamic = subprocess.run(
        ["readelf", "--dynamic", "--wide", str(binary)], capture_output=True, text=True, check=True
    ).stdout
    paths = re.findall(r"\((RUNPATH|RPATH)\).*\[(.*)\]", dynamic)
    check(
        "the only RUNPATH is torch's folder in site-packages",
        paths == [("RUNPATH", "$ORIGIN/../../torch/lib")],
        paths,
    )
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    check(
        "the only libraries of libtorch that it needs are libtorch_cpu and libc10",
        {n for n in needed if "torch" in n or "c10" in n} == {"libtorch_cpu.so", "libc10.so"},
        needed,
    )


def check_from_pypi(work, wheel, plugin, training):
    """(a) Tests an environment with torch from PyPI."""
    environment = Environment(work / "pypi")
    environment.install(*TORCH_AND_LIBRARIES)
    environment.install(wheel)
    binary = environment.site / "reprpo" / "bin" / "reprpo"
    check_binary(wheel, binary)
    empty = work / "empty"
    empty.mkdir()
    code, out, err = run([environment.command, "--version"], empty)
    check(
        "torch from PyPI: `reprpo --version` runs",
        code == 0 and out.startswith("reprpo "),
        out + err,
    )
    code, out, err = run([environment.python, "-m", "reprpo", "list", "--json"], empty)
    check(
        "torch from PyPI: `python -m reprpo list --json` runs",
        code == 0 and json.loads(out or "null"),
        out + err,
    )
    code, out, err = run([binary, "--version"], empty)
    check("torch from PyPI: the binary runs without the launcher", code == 0, err)
    code, out, err = run([environment.command, "no-such-command"], empty)
    check(
        "torch from PyPI: an error of the command keeps its exit code",
        code not in (0, 127),
        (code, err),
    )
    libraries = loaded(environment.command, empty)
    check(
        "torch from PyPI: CUDA's libraries come from the wheels next to torch",
        from_folder(
            libraries,
            environment.site,
            ["libtorch_cpu.so", "libc10.so", "libcudart.so", "libcupti.so"],
        ),
        libraries,
    )

    # (c) LD_LIBRARY_PATH contains a foreign libtorch.
    foreign = work / "foreign"
    foreign.mkdir()
    for name in ("libtorch_cpu.so", "libc10.so"):
        (foreign / name).write_bytes(b"not a library")
    for path in (f"{foreign}", f"/nowhere:{foreign}:"):
        code, out, err = run([environment.command, "--version"], empty, LD_LIBRARY_PATH=path)
        check(
            f"the libtorch on LD_LIBRARY_PATH `{path.replace(str(work), '…')}` is not used",
            code == 0,
            err,
        )
    code, out, err = run([binary, "--version"], empty, LD_LIBRARY_PATH=str(foreign))
    check(
        "a foreign libtorch on LD_LIBRARY_PATH: the binary does not start without the launcher",
        code == 127,
        err,
    )

    check_beside(work, wheel, environment)
    if plugin:
        code, out, err = run([environment.command, "plugin", "check", plugin], empty)
        check("a plugin built from the same sources can be loaded", code == 0, out + err)
    if training:
        code, out, err = run([environment.command, "model", "fetch", MODEL], empty)
        check("`reprpo model fetch` prints the path of the model", code == 0 and MODEL in out, err)
        code, out, err = run([environment.command, *COMMAND.split(), "--out", "run"], empty)
        check(
            "the README's first command prints its table",
            code == 0
            and re.search(r"^split +data .*\n(train|test) ", out, re.M)
            and "margin gain" in out,
            out + err,
        )
        check_read_run(environment, empty)
    return environment


def check_read_run(environment, folder):
    """Tests `reprpo.read_run` on the run in `folder` with the environment's Python, no pandas."""
    lines = [
        "import json, sys, reprpo",
        "run = reprpo.read_run('run')",
        "assert 'torch' not in sys.modules",
        "print(json.dumps({",
        "  'name': run['config']['intervention']['name'], 'steps': len(run['metrics']),",
        "  'loss': 'loss' in run['metrics'][0], 'pairs': len(run['pairs']) > 0,",
        "  'splits': [split['split'] for split in run['summary']['splits']],",
        "}))",
    ]
    if sys.version_info < (3, 11):
        environment.install("tomli")
    code, out, err = run([environment.python, "-c", "\n".join(lines)], folder)
    read = json.loads(out or "{}")
    steps = (
        len((folder / "run" / "metrics.jsonl").read_text().splitlines())
        if (folder / "run").exists()
        else 0
    )
    good = (
        read.get("name") == "prefvec"
        and read.get("steps") == steps > 0
        and read.get("splits") == ["train", "test", "oos", "rnd"]
        and read.get("pairs")
    )
    check("`reprpo.read_run` reads the run", code == 0 and good, out + err)


def check_beside(work, wheel, environment):
    """(b) Tests torch in the system's site-packages, and `pip install --target`."""
    other = Environment(work / "system")
    # Install the wheel while the packages of `environment` are not visible; otherwise pip would
    # find the wheel installed already.
    other.install(wheel)
    # A virtual environment cannot see the packages of another one. A line in a .pth file makes them
    # visible, as if they were the system's.
    (other.site / "system.pth").write_text(f"{environment.site}\n")
    shutil.move(environment.site / "reprpo", work / "reprpo-aside")
    code, out, err = run([other.command, "--version"], work)
    check("torch in the system's site-packages: the command runs", code == 0, err)
    libraries = loaded(other.command, work)
    check(
        "torch in the system's site-packages: its libraries are used",
        from_folder(libraries, environment.site, ["libtorch_cpu.so", "libcudart.so"]),
        libraries,
    )
    target = work / "target"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            str(target),
            str(wheel),
        ],
        check=True,
    )
    code, out, err = run(
        [environment.python, "-m", "reprpo", "--version"], work, PYTHONPATH=str(target)
    )
    check("`pip install --target`: `python -m reprpo` runs", code == 0, err)
    shutil.rmtree(target)
    shutil.rmtree(other.folder)
    shutil.move(work / "reprpo-aside", environment.site / "reprpo")


def loaded(command, cwd):
    """Returns the paths from which the loader takes libtorch and the CUDA libraries it needs."""
    _, out, err = run([command, "--version"], cwd, LD_DEBUG="libs")
    return sorted(
        set(re.findall(r"calling init: (\S*/lib(?:torch_cpu|c10|cudart|cupti)\.so\S*)", out + err))
    )


def from_folder(libraries, folder, names):
    """Returns true if all named libraries were loaded and all loaded ones are below `folder`."""
    real = [Path(path).resolve() for path in libraries]
    return all(any(path.name.startswith(name) for path in real) for name in names) and all(
        folder.resolve() in path.parents for path in real
    )


def check_refusals(work, wheel):
    """(d) Tests environments without torch and with the wrong version."""
    environment = Environment(work / "wrong")
    environment.install(wheel)
    pip = f"{environment.python} -m pip install torch=={TORCH}"
    for how in ([environment.command], [environment.python, "-m", "reprpo"]):
        code, out, err = run([*how, "list"], work)
        check(
            f"without torch, `{Path(how[0]).name}` shows the pip command",
            code == 1 and out == "" and "torch is not installed" in err and pip in err,
            (code, err),
        )
    settings = environment.folder / "pyvenv.cfg"
    text = settings.read_text()
    settings.write_text(f"{text}uv = 0.9.0\n")
    code, out, err = run([environment.command, "list"], work)
    command = f"uv pip install --python {environment.python} torch=={TORCH}"
    check(
        "in an environment created by uv, the error shows a uv command",
        code == 1 and command in err,
        err,
    )
    settings.write_text(text)
    for version, end in [
        ("2.10.0", "`"),
        ("2.10.0+cpu", " --index-url https://download.pytorch.org/whl/cpu`"),
        ("2.11.1+cu130", "`"),
    ]:
        fake_torch(environment.site, version)
        code, out, err = run([environment.command, "list"], work)
        good = (
            code == 1
            and out == ""
            and f"torch {version} is installed in" in err
            and pip + end in err
        )
        check(f"torch {version} is rejected and the error shows the pip command", good, (code, err))
        shutil.rmtree(environment.site / "torch")
    # The version is right, so the binary starts, and the loader reports that the file is not a
    # library.
    fake_torch(environment.site, f"{TORCH}+cu128", b"not a library")
    code, out, err = run([environment.command, "list"], work)
    check(
        "a local version suffix is accepted", code == 127 and "libtorch_cpu.so" in err, (code, err)
    )
    shutil.rmtree(environment.folder)


def check_tarball(work, tarball, environment, training):
    """Tests the tarball with the environment's python3 on the PATH."""
    subprocess.run(["tar", "xzf", str(tarball)], cwd=work, check=True)
    [folder] = [path for path in work.iterdir() if re.fullmatch(r"reprpo-[\d.]+", path.name)]
    check(
        "the tarball is smaller than 40 MB", tarball.stat().st_size < 40e6, tarball.stat().st_size
    )
    empty = work / "empty-tarball"
    empty.mkdir()
    link = work / "links" / "reprpo"
    link.parent.mkdir()
    link.symlink_to(os.path.relpath(folder / "reprpo", link.parent))
    path = f"{environment.folder / 'bin'}:{clean_environment()['PATH']}"
    torch = environment.site / "torch"
    for start in (folder / "reprpo", link):
        code, out, err = run([start, "--version"], empty, PATH=path)
        good = (
            code == 0
            and out.startswith("reprpo ")
            and f"libtorch {TORCH}" in err
            and f"{torch}" in err
            and "python3" in err
        )
        check(
            f"`{start.relative_to(work)} --version` runs and names the libtorch that it uses",
            good,
            out + err,
        )
    code, out, err = run([folder / "reprpo", "list", "--json"], empty, PATH=path)
    check(
        "`reprpo list --json` prints only JSON",
        code == 0 and json.loads(out) and err == "",
        err,
    )
    code, out, err = run([folder / "reprpo", "--version"], empty, LIBTORCH=str(torch))
    check("LIBTORCH takes precedence", code == 0 and "(from LIBTORCH)" in err, err)
    for name in ("prefvec-hra.toml", "dpo-lora.toml"):
        code, out, err = run(
            [folder / "reprpo", "config", "show", "--config", folder / "examples" / name],
            empty,
            PATH=path,
        )
        check(f"`examples/{name}` is a valid configuration", code == 0, err)
    for name in ("pairs.jsonl", "conversations.jsonl"):
        file = folder / "examples" / name
        code, out, err = run([folder / "reprpo", "data", "inspect", file], empty, PATH=path)
        check(f"`examples/{name}` contains usable pairs", code == 0, out + err)
    bare = work / "bare"
    bare.mkdir()
    for tool in ("sh", "dirname", "readlink", "sed", "tr"):
        (bare / tool).symlink_to(shutil.which(tool))
    code, out, err = run([folder / "reprpo", "list"], empty, PATH=str(bare))
    check(
        "without python3 and LIBTORCH the launcher prints a hint",
        code == 1 and "there is no `python3`" in err and "hint:" in err,
        err,
    )
    wrong = work / "wrong-libtorch"
    fake_torch(wrong, "2.10.0+cpu")
    code, out, err = run([folder / "reprpo", "list"], empty, LIBTORCH=str(wrong / "torch"))
    check(
        "a libtorch of the wrong version is rejected",
        code == 1 and "libtorch 2.10.0+cpu is in" in err and TORCH in err,
        err,
    )
    if training:
        code, out, err = run(
            [folder / "reprpo", *COMMAND.split(), "--out", "run"], empty, PATH=path
        )
        check(
            "the tarball runs the README's first command",
            code == 0 and re.search(r"^split +data .*\n(train|test) ", out, re.M),
            out + err,
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--tarball", type=Path)
    parser.add_argument("--plugin", type=Path)
    parser.add_argument(
        "--skip-training",
        action="store_true",
        help="skip the two runs, which take a minute each",
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="reprpo-wheel-") as folder:
        work = Path(folder).resolve()
        check(
            "Rust is not on the PATH", not shutil.which("cargo", path=clean_environment()["PATH"])
        )
        check_refusals(work, args.wheel.resolve())
        plugin = args.plugin and args.plugin.resolve()
        environment = check_from_pypi(work, args.wheel.resolve(), plugin, not args.skip_training)
        if args.tarball:
            check_tarball(work, args.tarball.resolve(), environment, not args.skip_training)
    print(f"{failures} failed" if failures else "all passed")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
