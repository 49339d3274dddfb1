#!/usr/bin/env python3
"""RouterModelCustom: one OpenAI-compatible server in front of many llama-server processes."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and hand over; the exit code."""
    if sys.version_info < (3, 10):  # noqa: UP036, this file still runs there, the rest does not
        return _complain(f"Python 3.10 or newer is needed; this is {sys.version.split()[0]}")
    try:
        code = _run(_parser().parse_args(arguments))
        sys.stdout.flush()
    except BrokenPipeError:  # `run.py check | head`: whoever read us has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _run(options: argparse.Namespace) -> int:
    if "config" not in options:
        options.config = Path(os.environ.get("CONFIG_PATH") or "config.json")
    try:
        from app.cli import commands as cli  # after parsing: --help needs none of it
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("app"):
            raise
        return _complain(
            f"the Python package {error.name!r} is missing; in a virtual environment run: "
            "pip install -r requirements.txt"
        )

    commands = {"serve": cli.serve, "check": cli.check, "init": cli.init, "demo": cli.demo}
    return commands[options.command](options)


def _complain(message: str) -> int:
    print(message, file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "-c",
        "--config",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="PATH",
        help="configuration file (default: $CONFIG_PATH, then config.json)",
    )
    parser = argparse.ArgumentParser(prog="run.py", description=__doc__, parents=[common])
    parser.set_defaults(command="serve")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.default = "serve"
    commands.add_parser("serve", parents=[common], help="start the server (the default)")
    check = commands.add_parser(
        "check", parents=[common], help="validate configuration, binary, models, devices"
    )
    check.add_argument("--schema", action="store_true", help="print the configuration's JSON schema and exit")
    init = commands.add_parser(
        "init", parents=[common], help="write a configuration for a folder of GGUF files"
    )
    init.add_argument("--models-dir", type=Path, required=True, metavar="DIR", help="searched for *.gguf")
    init.add_argument("--force", action="store_true", help="overwrite a configuration; api and system stay")
    commands.add_parser("demo", help="serve the demo models that `make demo` installed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
