"""Options that several commands share, and where their defaults come from: environment and `edgeattn.toml`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeattn import files
from edgeattn.errors import UsageError, did_you_mean

CONFIG_FILE = "edgeattn.toml"


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


def data_options(parser: argparse.ArgumentParser) -> None:
    """Where real samples come from, and how they become tensors."""
    parser.add_argument("--recipe", type=Path, metavar="R.toml", help="how images become tensors")


def converted(convert: Any) -> Any:
    """A parser of edgeattn's as an argparse type: its error becomes argparse's, which names the flag."""

    def parse(text: str) -> Any:
        try:
            return convert(text)
        except UsageError as err:
            raise argparse.ArgumentTypeError(str(err)) from err

    return parse


def apply_settings(parser: argparse.ArgumentParser, command: str, words: Sequence[str]) -> None:
    """Take a command's defaults from `[command]` in the settings file, then from `EDGEATTN_COMMAND_OPTION`.

    Raises:
        UsageError: the file cannot be read, or a key is none of the command's options; names the nearest one.
    """
    settings = {**_from_file(command, words), **_from_environment(command)}
    actions = {action.dest: action for action in parser._actions if action.option_strings}
    for (source, key), value in settings.items():
        dest = key.replace("-", "_").lower()
        if dest not in actions:
            names = [name.replace("_", "-") for name in actions]
            raise UsageError(
                f"{source}: {command} has no option {key!r}; {did_you_mean(dest.replace('_', '-'), names)}"
            )
        parser.set_defaults(**{dest: _value(actions[dest], value, f"{source}: {key}")})


def _from_file(command: str, words: Sequence[str]) -> dict[tuple[str, str], Any]:
    reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    reader.add_argument("--config")
    path = reader.parse_known_args(words)[0].config
    if path is None and not Path(CONFIG_FILE).is_file():
        return {}
    table = files.read_toml(Path(path or CONFIG_FILE)).get(command, {})
    return {(path or CONFIG_FILE, key): value for key, value in table.items()}


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
    try:
        texts = [str(item) for item in value] if isinstance(value, list) else [str(value)]
        values = [action.type(text) if callable(action.type) else text for text in texts]
    except (ValueError, TypeError, argparse.ArgumentTypeError) as err:
        raise UsageError(f"{where}: {err}") from err
    return values if isinstance(value, list) or isinstance(action.default, list) else values[0]
