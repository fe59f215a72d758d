"""Compares the runs of two builds of reprpo byte by byte.

    python tests/python/same_runs.py OLD NEW MODEL PAIRS

OLD and NEW are two builds of the command, MODEL is a small Hugging Face folder, and PAIRS is a
file of preference pairs. The script makes a short run with every intervention, adapter, transform
and tap that OLD lists, and some runs that are killed after a checkpoint and then resumed. It
prints a table and exits with 1 if any file differs. Files in `adapter/`, `transform/`,
`checkpoints/` and `eval/` must have the same bytes, and `metrics.jsonl` the same values. Run it
before and after a change that must not affect any result. It only needs Python's standard
library.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# The methods used while another kind varies. `STATES` uses an intervention that reads states, so
# that taps and transforms have an effect.
PLAIN = {"intervention": "dpo", "adapter": "lora", "transform": "none", "tap": "hs"}
STATES = {**PLAIN, "intervention": "prefvec"}
SETTINGS = ["train.max_pairs=20", "train.batch=2", "train.accumulate=2", "train.max_length=96"]
SETTINGS += ["eval.max_pairs=6", "eval.completions=1", "eval.completion_tokens=8"]
# Runs with additional settings: name, methods, settings.
SPECIAL = [
    ("mse per token", {**STATES, "intervention": "mse", "transform": "ether"}, []),
    ("original prefvec", STATES, ["intervention.variant=original"]),
    ("original rank", {**STATES, "intervention": "rank"}, ["intervention.variant=original"]),
    ("pooling common", STATES, ["tap.pooling=common"]),
    (
        "pooling last, shared transform",
        {**STATES, "transform": "ortho"},
        ["tap.pooling=last", "train.share_transform=true"],
    ),
    ("dropout", PLAIN, ["adapter.lora_dropout=0.3", "train.epochs=2"]),
    ("bf16", {**STATES, "adapter": "hra"}, ["dtype=bf16"]),
]
RESUMED = [
    ("resumed dpo × lora", PLAIN, ["adapter.lora_dropout=0.2"]),
    ("resumed prefvec × hra × ortho", {**STATES, "adapter": "hra", "transform": "ortho"}, []),
    ("resumed rr × lora", {**PLAIN, "intervention": "rr"}, []),
]
KEPT = ["adapter", "transform", "checkpoints", "eval"]


def methods(binary):
    listed = json.loads(
        subprocess.run([binary, "list", "--json"], check=True, capture_output=True).stdout
    )
    return {kind: [entry["name"] for entry in listed if entry["kind"] == kind] for kind in PLAIN}


def runs(binary):
    """Yields the name, chosen methods and settings of each run."""
    known = methods(binary)
    for kind, names in known.items():
        base = PLAIN if kind in ("intervention", "adapter") else STATES
        for name in names:
            # The default layers of some taps select no layer of a small model.
            yield (
                f"{kind} {name}",
                {**base, kind: name},
                ["tap.layers=0,1"] if kind == "tap" else [],
            )
    yield from SPECIAL


def command(binary, model, pairs, chosen, settings, out):
    flags = [part for kind, name in chosen.items() for part in (f"--{kind}", name)]
    sets = [part for setting in SETTINGS + settings for part in ("--set", setting)]
    return [
        binary,
        "run",
        "--model",
        model,
        "--dataset",
        pairs,
        "--device",
        "cpu",
        "--out",
        str(out),
        *flags,
        *sets,
    ]


def call(arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "REPRPO_NO_PROGRESS": "1"}
    return subprocess.run(arguments, capture_output=True, text=True, env=environment)


def killed(arguments, out):
    """Starts the run and kills it after its checkpoint is written and before it ends."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "REPRPO_NO_PROGRESS": "1"}
    process = subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    latest = out / "checkpoints" / "latest"
    while not latest.exists():
        if process.poll() is not None:
            raise SystemExit(f"the run ended before its checkpoint: {' '.join(arguments)}")
        time.sleep(0.002)
    process.kill()
    process.wait()
    if not latest.exists():
        raise SystemExit("the run ended before it could be killed; give it more pairs")


def contents(folder):
    """Returns the compared files of a run: their bytes, or the values of `metrics.jsonl`."""
    found = {}
    for part in KEPT:
        for path in sorted((folder / part).rglob("*")):
            if path.is_file() and path.name != "fingerprints.json":
                found[str(path.relative_to(folder))] = path.read_bytes()
    if (folder / "metrics.jsonl").is_file():
        found["metrics.jsonl"] = [
            json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()
        ]
    return found


def differences(old, new):
    names = sorted(set(old) | set(new))
    return [name for name in names if old.get(name) != new.get(name)]


def main():
    old, new, model, pairs = sys.argv[1:]
    bad = 0
    print("| run | steps | files | result |\n|---|---|---|---|")

    def report(name, found):
        nonlocal bad
        (a, b) = found
        wrong = differences(a, b)
        empty = not a
        bad += bool(wrong) or empty
        steps = len(a.get("metrics.jsonl", []))
        result = (
            "nothing was written"
            if empty
            else f"differs: {', '.join(wrong)}"
            if wrong
            else "identical"
        )
        print(f"| {name} | {steps} | {len(a)} | {result} |", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number, (name, chosen, settings) in enumerate(runs(old)):
            found = []
            for build, binary in (("old", old), ("new", new)):
                out = root / f"{build}-{number}"
                process = call(command(binary, model, pairs, chosen, settings, out))
                if process.returncode != 0:
                    print(process.stderr, file=sys.stderr)
                    raise SystemExit(f"`{name}` failed with {binary}")
                found.append(contents(out))
            report(name, found)
        for number, (name, chosen, settings) in enumerate(RESUMED):
            stopped, resumed = [], []
            for build, binary in (("old", old), ("new", new)):
                out = root / f"{build}-resumed-{number}"
                # The runs have seven steps and one checkpoint, after the fourth step.
                killed(
                    command(
                        binary,
                        model,
                        pairs,
                        chosen,
                        settings + ["train.epochs=1.4", "train.checkpoint_every=4"],
                        out,
                    ),
                    out,
                )
                files = contents(out)
                files.pop("metrics.jsonl", None)
                stopped.append(files)
                process = call([binary, "run", "--resume", str(out)])
                if process.returncode != 0:
                    raise SystemExit(f"{process.stderr}\n{binary} could not resume `{name}`")
                resumed.append(contents(out))
            report(f"checkpoint of {name}", stopped)
            report(name, resumed)
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
