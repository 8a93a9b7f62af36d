"""The table of what every shipped kernel uses, resources.csv, and the command that compares and rewrites it.

python tests/kernels/compile_only.py              compile everything, compare with resources.csv
python tests/kernels/compile_only.py layer_norm   only the cases with that in their name
python tests/kernels/compile_only.py --write      compile everything and rewrite resources.csv
"""

import argparse
import csv
import difflib
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import triton
from compile_gate import Case, Outcome, Resources, Target, compile_all, faults, key, pairs

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("resources.csv")
REWRITE = "python tests/kernels/compile_only.py --write"
# What the table says of a kernel, and of which one.
COLUMNS = ["kernel", "registers", "stack", "shared", "tensor_core", "spills", "wide_loads", "ptxas", "newer_stack"]
WHICH = ["room", "entry", "features", "dtype", "target"]
HEADER = [*WHICH, "triton", *COLUMNS]


def rows(case: Case, target: Target, triton_version: str, kernels: Iterable[Resources]) -> list[dict[str, str]]:
    """Return the rows of the table for one case on one GPU."""
    which = (case.room, case.entry, case.features, case.dtype, target.name, triton_version)
    return [
        dict(zip(HEADER, [*which, *(str(getattr(kernel, column)) for column in COLUMNS)], strict=True))
        for kernel in kernels
    ]


def read_table() -> list[dict[str, str]]:
    """Return the rows of resources.csv, none if it is not there."""
    if not TABLE.exists():
        return []
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


def judge(
    case: Case, target: Target, outcome: Outcome, committed: list[dict[str, str]], triton_version: str
) -> list[str]:
    """Return what is wrong with a case: it does not compile, it breaks a rule, or it differs from the table.

    Args:
        case: The case.
        target: The GPU that it was compiled for.
        outcome: What came of it.
        committed: The table. It binds only the Triton version that it was written with.
        triton_version: The one that compiled.
    """
    if outcome.error:
        return [outcome.error]
    found = faults(outcome.kernels, target, case.hgmma)
    if any(row["triton"] == triton_version for row in committed):
        now = rows(case, target, triton_version, outcome.kernels)
        which = [now[0][column] for column in WHICH]
        before = [row for row in committed if [row[column] for column in WHICH] == which]
        lines = (
            [" ".join(f"{column}={row[column]}" for column in COLUMNS) for row in table] for table in (before, now)
        )
        changes = [line.rstrip() for line in difflib.ndiff(*lines) if line[0] in "+-?"]
        if changes:
            found.append("\n".join([f"differs from {TABLE.name}; if that is meant, {REWRITE}", *changes]))
    return found


def main() -> None:
    """Compile the cases and print what they use; exit with 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", default="", help="only cases with this in their name")
    parser.add_argument("--write", action="store_true", help="rewrite the table")
    parser.add_argument("--json", type=Path, help="write the outcomes to this file, those of the toys too")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default 2)")
    arguments = parser.parse_args()
    if arguments.write and arguments.name:
        parser.error("--write rewrites the whole table: give no name")
    settings = [name for name in os.environ if name.startswith("TRITON_")]
    if settings:
        parser.error(f"unset {', '.join(settings)}: the table is of kernels compiled as Triton does by itself")
    sys.path.insert(0, str(ROOT))
    from compile_cases import cases

    chosen = [case for case in cases() if arguments.name in case.name]
    if arguments.json:
        from compile_toys import CASES

        outcomes = compile_all([*chosen, *CASES], arguments.jobs)
        arguments.json.write_text(json.dumps({name: asdict(outcome) for name, outcome in outcomes.items()}))
    else:
        sys.exit(report(chosen, compile_all(chosen, arguments.jobs), arguments.write))


def report(cases: list[Case], outcomes: dict[str, Outcome], write: bool) -> bool:
    """Print what every case uses and what is wrong with it, rewrite the table if asked to, return if anything is."""
    committed = [] if write else read_table()
    table, wrong = [], False
    for case, target in pairs(cases):
        outcome = outcomes[key(case, target)]
        for row in rows(case, target, triton.__version__, outcome.kernels):
            table.append(row)
            print(f"{key(case, target)}:", *(f"{column}={row[column]}" for column in COLUMNS))
        for fault in judge(case, target, outcome, committed, triton.__version__):
            wrong = True
            print(f"WRONG {key(case, target)}: {fault}")
    if write:
        with TABLE.open("w", newline="") as file:
            writer = csv.DictWriter(file, HEADER, lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
    return wrong


if __name__ == "__main__":
    main()
