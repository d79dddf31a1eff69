"""The ``upwell`` command: serve, pull, chat, doctor."""

from __future__ import annotations

import argparse
import asyncio
import logging
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.markup import escape

from engine.errors import UpwellError
from engine.weights.store import resolve_model
from kernels.ascend.stubs_refused import refusal, stub_library_on_path
from server import settings

console = Console(stderr=True, highlight=False)


def main() -> NoReturn:
    """Do what the command line says, and exit."""
    _check_package_names()
    arguments = command_line()
    args = arguments.parse_args()
    if args.version:
        from importlib.metadata import version  # noqa: PLC0415  (only this needs the mail parser behind it)

        print(f"upwell {version('upwell')}")
    elif args.run is None:
        arguments.print_help()
        sys.exit(2)
    else:
        with _errors_in_one_line():
            args.run(args)
    sys.exit(0)


class CommandLine(argparse.ArgumentParser):
    """Says how a value is given that begins with a dash, which argparse takes for a flag."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and exit with code 2."""
        flag = re.fullmatch(r"argument (--[\w-]+): expected one argument", message)
        if flag:
            message += f"; a value that begins with a dash is written {flag[1]}=-VALUE"
        super().error(message)


def command_line() -> CommandLine:
    """All commands with their arguments; what is parsed has the function of the command as ``run``."""
    parser = CommandLine(
        prog="upwell",
        description="An OpenAI-compatible inference server for Huawei Ascend NPUs and for the CPU you sit at.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="Print the version and exit.")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for run, text, add_flags in (
        (serve, "Serve a model over HTTP.", settings.add_serve_flags),
        (pull, "Fetch a model into the cache, and print where it lies.", settings.add_model_flags),
        (chat, "Chat with a running server in the terminal.", settings.add_chat_flags),
        (doctor, "Say what an Ascend NPU would need here, or what an error code means.", settings.add_doctor_flags),
    ):
        command = commands.add_parser(run.__name__, help=text, description=text, allow_abbrev=False)
        command.set_defaults(run=run)
        add_flags(command)
    return parser


def serve(args: argparse.Namespace) -> None:
    """Serve a model over HTTP."""
    _refuse_stub_libraries()
    from server.run import run_server  # noqa: PLC0415  (pull and chat start faster without the HTTP stack)

    _log_to_stderr()
    asyncio.run(run_server(settings.serve_settings(args), console))


def pull(args: argparse.Namespace) -> None:
    """Fetch a model into the cache, and print where it lies."""
    _raise_keyboard_interrupt()
    print(resolve_model(args.model, settings.cache_dir(args.cache_dir), console.print).path)


def chat(args: argparse.Namespace) -> None:
    """Chat with a running server in the terminal."""
    _raise_keyboard_interrupt()
    from server.chat_client import Chat  # noqa: PLC0415  (only this command needs an HTTP client)

    options = {"temperature": args.temperature, "max_tokens": args.max_tokens}
    conversation = Chat(args.url, settings.client_key(args.api_key), args.system, options)
    if args.message is not None:
        conversation.ask(args.message)
    else:
        conversation.talk()


def doctor(args: argparse.Namespace) -> None:
    """Say what an Ascend NPU would need here, or what an error code means; exit code 1 if one here is not ready."""
    from server.doctor import doctor as examine  # noqa: PLC0415  (only this command needs tables)

    sys.exit(examine(args.code, settings.engine_environment(), as_json=args.json))


def _refuse_stub_libraries() -> None:
    """Exit with code 2 where the driver's libraries are stubs for tests: whatever the device, nothing is served."""
    stub = stub_library_on_path(settings.engine_environment())
    if stub is not None:
        console.print(f"[red]error:[/red] {escape(refusal(stub))}", soft_wrap=True)
        sys.exit(2)


def _raise_keyboard_interrupt() -> None:
    """For commands that clear up, or go on, after a Ctrl-C; until now it ended the process (see ``__main__``)."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _check_package_names() -> None:
    """Other distributions own packages called ``kernels`` or ``server`` too: make sure that ours are ours."""
    import engine  # noqa: PLC0415
    import kernels  # noqa: PLC0415
    import server  # noqa: PLC0415

    homes = {Path(str(module.__file__)).parent.parent for module in (server, engine, kernels)}
    if len(homes) != 1:
        places = ", ".join(sorted(map(str, homes)))
        console.print(
            f"[red]error:[/red] the packages server, engine and kernels come from different places ({places}); "
            "another distribution has taken one of the names. Install upwell into a fresh virtual environment.",
            soft_wrap=True,
        )
        sys.exit(1)


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("upwell").setLevel(logging.INFO)


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    """What can be said in a sentence is said in one, and the exit code is 1."""
    try:
        yield
    except UpwellError as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
