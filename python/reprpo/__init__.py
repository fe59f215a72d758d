"""Reads the runs of reprpo. The command itself is a binary; this package does not import torch."""

import json
from pathlib import Path

from ._version import __version__

__all__ = ["__version__", "read_run"]


def read_run(path, frames=None):
    """Reads the folder of a run, also while the run goes on.

    With `frames=None`, tables are pandas data frames if pandas is installed, and lists of dictionaries otherwise. Pass
    `frames=False` to always get lists, or `frames=True` to always get data frames (ImportError without pandas).

    Returns a dictionary:

    - `config`: the resolved configuration, a dictionary
    - `metrics`: table with a row for each line of `metrics.jsonl`; a line need not have every key, e.g. a validation has
      `eval_…` and no `loss` (missing values are NaN in a data frame)
    - `summary`: the evaluation as a dictionary, whose `splits` is a table with a row for each split; None before the end
    - `pairs`: table with the scores of each evaluated pair, with columns such as `base.chosen.logp_sum`; None before the end

    Raises FileNotFoundError if `path` is not the folder of a run, and ValueError if a file of it is damaged.
    """
    try:
        import tomllib
    except ImportError:  # Python 3.9 and 3.10
        import tomli as tomllib

    folder = Path(path)
    table = _tables(frames)
    config = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
    summary, pairs = folder / "eval" / "summary.json", folder / "eval" / "pairs.jsonl"
    run = {"config": config, "metrics": table(_lines(folder / "metrics.jsonl")), "summary": None, "pairs": None}
    if summary.exists():
        run["summary"] = json.loads(summary.read_text(encoding="utf-8"))
        run["summary"]["splits"] = table(run["summary"].get("splits", []))
    if pairs.exists():
        run["pairs"] = table(_lines(pairs))
    return run


def _tables(frames):
    """A function that makes a table of a list of dictionaries."""
    try:
        if frames is not False:
            from pandas import json_normalize

            return json_normalize
    except ImportError:
        if frames:
            raise
    return lambda rows: rows


def _lines(path):
    """The objects in a file of JSON lines. A last line without its end is still being written, and left out."""
    rows = []
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, 1):
            try:
                if line.endswith("\n"):
                    rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"`{path}`, line {number}: {error}") from None
    return rows
