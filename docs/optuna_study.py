"""Lets Optuna choose the points of a study.

    python docs/optuna_study.py reprpo sweep study.toml --sampler external

The arguments are the command to run. `docs/studies.md` describes the messages. Replace `SAMPLER` to
use another of Optuna's samplers. The script keeps no files: when the command continues a study, it
reports the earlier trials first, and the script adds them to Optuna's study.
"""

import json
import subprocess
import sys

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

SAMPLER = optuna.samplers.TPESampler


def distribution(field):
    """Converts a searched field to Optuna's form."""
    if "choices" in field:
        # Optuna only takes simple values, so a list or a table is passed as its JSON text.
        return CategoricalDistribution([json.dumps(choice) for choice in field["choices"]])
    kind = IntDistribution if field["integer"] else FloatDistribution
    number = int if field["integer"] else float
    return kind(number(field["low"]), number(field["high"]), log=field["log"])


def main():
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    command = subprocess.Popen(
        sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    studies, spaces, open_trials = {}, {}, {}
    for line in command.stdout:
        message = json.loads(line)
        kind, method = message["type"], message.get("method")
        if kind == "start":
            for name, about in message["methods"].items():
                spaces[name] = {f: distribution(d) for f, d in about["fields"].items()}
                studies[name] = optuna.create_study(direction="maximize", sampler=SAMPLER(seed=0))
        elif kind == "ask":
            trial = studies[method].ask(spaces[method])
            open_trials[method, message["trial"]] = trial
            values = {
                field: json.loads(value)
                if isinstance(spaces[method][field], CategoricalDistribution)
                else value
                for field, value in trial.params.items()
            }
            print(json.dumps({"values": values}), file=command.stdin, flush=True)
        elif kind == "tell":
            score, space = message["score"], spaces[method]
            state = TrialState.FAIL if score is None else TrialState.COMPLETE
            trial = open_trials.pop((method, message["trial"]), None)
            if trial is not None:
                studies[method].tell(trial, score, state=state)
                continue
            # The trial is from an earlier session.
            params = {
                field: json.dumps(value)
                if isinstance(space[field], CategoricalDistribution)
                else value
                for field, value in message["values"].items()
            }
            studies[method].add_trial(
                create_trial(state=state, value=score, params=params, distributions=space)
            )
        elif kind == "end":
            for name, study in studies.items():
                print(f"best of {name}: {study.best_value:.4f} at {study.best_params}")
    sys.exit(command.wait())


if __name__ == "__main__":
    main()
