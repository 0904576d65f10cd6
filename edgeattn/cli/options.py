"""Options that several commands share, and where their defaults come from: environment and `edgeattn.toml`."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeattn import files
from edgeattn.errors import UsageError, did_you_mean

CONFIG_FILE = "edgeattn.toml"
TASKS = ("classification", "saliency", "segmentation", "detection")  # edgeattn.metrics has them, and needs numpy
_NO_SETTINGS = ("help", "config", "debug")


def common_options() -> argparse.ArgumentParser:
    """The options that every command has."""
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    group = common.add_argument_group("general")
    group.add_argument("-v", "--verbose", action="store_true", help="say more, such as the time each phase took")
    group.add_argument("-q", "--quiet", action="store_true", help="no progress on stderr")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    group.add_argument("--config", metavar="FILE", help=f"settings in TOML, a table a command; else {CONFIG_FILE}")
    return common


def json_option(parser: argparse.ArgumentParser) -> None:
    """`--json` prints the machine-readable form on stdout; `--json FILE` writes it to a file."""
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="print the result as JSON, or write it")


def model_options(parser: argparse.ArgumentParser) -> None:
    """`--weights` for commands that take a PyTorch model."""
    parser.add_argument("--weights", type=Path, metavar="FILE", help="safetensors, or a checkpoint (weights only)")


def against_options(parser: argparse.ArgumentParser) -> None:
    """An engine, and the original that it is held against."""
    parser.add_argument("engine", type=Path, help="the engine")
    parser.add_argument(
        "--against",
        required=True,
        metavar="ORIGINAL",
        help="FILE.py:FACTORY, pkg.mod:FACTORY, zoo:NAME or an ONNX file",
    )
    model_options(parser)


def data_options(parser: argparse._ActionsContainer) -> None:
    """Where real samples come from, and how they become tensors."""
    parser.add_argument("--recipe", type=Path, metavar="R.toml", help="how images become tensors")


def task_option(parser: argparse._ActionsContainer) -> None:
    """Which task's metrics are meant."""
    parser.add_argument("--task", choices=TASKS, help="what the metric is of (default: what labels and outputs fit)")


def parse_drops(text: str) -> dict[str, float]:
    """Read `top1=0.5%,miou=0.01` as fractions by metric; the SQNR that must be left is in dB: `sqnr=30dB`.

    Raises:
        UsageError: not of that form, or a fraction not within 0 and 1.
    """
    drops = {}
    for part in text.split(","):
        metric, _, value = (word.strip() for word in part.partition("="))
        unit, most = ("dB", math.inf) if metric == "sqnr" else ("%", 1.0)
        try:
            drop = float(value.removesuffix(unit)) / (100 if value.endswith("%") else 1)
        except ValueError:
            drop = -1.0
        if not metric or metric in drops or not 0 <= drop <= most:
            raise UsageError(f"not an allowed drop: {part!r}; expected for example top1=0.5%, each metric once")
        drops[metric] = drop
    return drops


def converted(convert: Any) -> Any:
    """A parser of edgeattn's as an argparse type: its error becomes argparse's, which names the flag."""

    def parse(text: str) -> Any:
        try:
            return convert(text)
        except UsageError as err:
            raise argparse.ArgumentTypeError(str(err)) from err

    return parse


def whole(low: int) -> Any:
    """An argparse type: a whole number, `low` or more."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and int(text) >= low):
            raise argparse.ArgumentTypeError(f"expected a whole number, {low} or more, got {text!r}")
        return int(text)

    return parse


def apply_settings(
    parser: argparse.ArgumentParser, command: str, commands: Sequence[str], words: Sequence[str]
) -> None:
    """Take a command's defaults from `[command]` in the settings file, then from `EDGEATTN_COMMAND_OPTION`.

    Raises:
        InputError: the file cannot be read.
        UsageError: a table is no command, or a key none of the command's options; names the nearest one.
    """
    settings = {**_from_file(command, commands, words), **_from_environment(command)}
    # Reversed, since an option comes before its aliases.
    actions = {action.dest: action for action in reversed(parser._actions) if action.option_strings}
    for dest in _NO_SETTINGS:
        del actions[dest]
    for (source, key), value in settings.items():
        dest = key.replace("-", "_").lower()
        if dest not in actions:
            names = sorted(name.replace("_", "-") for name in actions)
            raise UsageError(
                f"{source}: {command} has no option {key!r}; {did_you_mean(dest.replace('_', '-'), names)}"
            )
        parser.set_defaults(**{dest: _value(actions[dest], value, f"{source}: {key}")})


def _from_file(command: str, commands: Sequence[str], words: Sequence[str]) -> dict[tuple[str, str], Any]:
    reader = argparse.ArgumentParser(prog=f"edgeattn {command}", add_help=False, allow_abbrev=False)
    reader.add_argument("--config")
    path = reader.parse_known_args(words)[0].config
    if path is None and not Path(CONFIG_FILE).is_file():
        return {}
    path = path or CONFIG_FILE
    tables = files.read_toml(Path(path))
    for name, table in tables.items():
        if name not in commands:
            raise UsageError(f"{path}: there is no command {name!r}; {did_you_mean(name, commands)}")
        if not isinstance(table, dict):
            raise UsageError(f"{path}: {name} is {table!r}; expected a table [{name}] of its options")
    return {(path, key): value for key, value in tables.get(command, {}).items()}


def _from_environment(command: str) -> dict[tuple[str, str], str]:
    prefix = f"EDGEATTN_{command.upper()}_"
    return {(name, name[len(prefix) :]): value for name, value in os.environ.items() if name.startswith(prefix)}


def _value(action: argparse.Action, value: Any, where: str) -> Any:
    """A setting as its option would have read it: text goes through the option's type, booleans stand for flags."""
    if action.nargs == 0 and not isinstance(action.const, str):
        words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
        truth = value if isinstance(value, bool) else words.get(str(value).lower())
        if truth is None:
            raise UsageError(f"{where}: expected true or false, got {value!r}")
        return truth
    if action.nargs == "?" and isinstance(value, bool):
        return action.const if value else action.default
    several = isinstance(action.default, list)
    if isinstance(value, list) and not several:
        raise UsageError(f"{where}: expected one value, got {value!r}")
    try:
        texts = [str(item) for item in value] if isinstance(value, list) else [str(value)]
        values = [action.type(text) if callable(action.type) else text for text in texts]
    except (ValueError, TypeError, argparse.ArgumentTypeError) as err:
        raise UsageError(f"{where}: {err}") from err
    if unknown := [item for item in values if action.choices is not None and item not in action.choices]:
        raise UsageError(f"{where}: {unknown[0]!r} is not one of {', '.join(map(str, action.choices or ()))}")
    return values if several else values[0]
