"""Reads the runs of reprpo. The command itself is a binary; this package does not import torch."""

import json
from pathlib import Path

from ._version import __version__

__all__ = ["__version__", "read_run"]


def read_run(path, frames=None):
    """Reads the folder of a run, which may still be in progress.

    With `frames=None`, tables are pandas data frames if pandas is installed, and lists of
    dictionaries otherwise. Pass `frames=False` to always get lists, or `frames=True` to always get
    data frames (ImportError without pandas). In a data frame, the column of a nested value such as
    `row["base"]["chosen"]["logp_sum"]` is called `base.chosen.logp_sum`.

    Returns a dictionary:

    - `config`: the resolved configuration, a dictionary
    - `metrics`: table with a row for each line of `metrics.jsonl`. Not every line has every key:
      the line of a validation has `eval_…`, but no `loss`. Missing values are NaN in a data frame.
    - `validation`: the best step and its values, a dictionary; None without validation
    - `summary`: the evaluation as a dictionary, whose `splits` is a table with a row for each
      split; None before the end. A metric has the keys `value`, `low` and `high`; both ends are
      None if the metric has no interval, and `no_interval` is then the reason.
    - `pairs`: table with the scores of each pair of the evaluation; None before the end. `cluster`
      is the pair's cluster. A pair with `dropped`, or with `overlap` and a `reason`, has no scores.

    Raises FileNotFoundError if `path` is not the folder of a run, and ValueError if one of its
    files is damaged.
    """
    try:
        import tomllib
    except ImportError:  # Python 3.9 and 3.10
        import tomli as tomllib

    folder = Path(path)
    table = _tables(frames)
    if not (folder / "config.toml").is_file():
        raise FileNotFoundError(f"`{folder}` is not the folder of a run: it has no `config.toml`")
    run = {
        "config": _parsed(folder / "config.toml", tomllib.loads),
        "metrics": table(_lines(folder / "metrics.jsonl") or []),
        "validation": _parsed(folder / "validation.json", json.loads),
        "summary": _parsed(folder / "eval" / "summary.json", json.loads),
        "pairs": _lines(folder / "eval" / "pairs.jsonl"),
    }
    if run["summary"] is not None:
        run["summary"]["splits"] = table(run["summary"].get("splits", []))
    if run["pairs"] is not None:
        run["pairs"] = table(run["pairs"])
    return run


def _tables(frames):
    """Returns a function that converts a list of dictionaries to a table."""
    try:
        if frames is not False:
            from pandas import json_normalize

            return json_normalize
    except ImportError:
        if frames:
            raise
    return lambda rows: rows


def _parsed(path, parse):
    """Parses the text of a file. Returns None if there is no such file."""
    if not path.exists():
        return None
    try:
        return parse(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"`{path}`: {error}") from None


def _lines(path):
    """Parses a file of JSON lines. Returns None if there is no such file.

    A last line without a line break is left out, because it is still being written.
    """
    if not path.exists():
        return None
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"`{path}`, line {number}: {error}") from None
    return rows
