"""The command line. A room's commands are imported only when one of them is called.

So ``edgepress --help`` answers at once, and a device that holds only the base install can use every
command that runs there; a command that needs more names the extra that brings it.
"""

from __future__ import annotations

import importlib
import io
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import click

from . import __version__

if TYPE_CHECKING:
    from .runtime.errors import EdgepressError


class _Entry(NamedTuple):
    """Where a command lives, and the line that ``edgepress --help`` shows for it."""

    module: str
    summary: str


COMMANDS = {
    "compress": _Entry("compress.commands", "Turn a trained backbone into a verified bundle."),
    "export": _Entry("compress.commands", "Write a trained backbone as a clean float32 ONNX file."),
    "evaluate": _Entry("compress.commands", "Score a bundle, an ONNX file or a torch factory."),
    "predict": _Entry("runtime.commands", "Run a bundle on pictures."),
    "bench": _Entry(
        "benchmarks.commands", "Measure latency, size, load time and memory; compare two."
    ),
    "inspect": _Entry(
        "compress.commands", "Show what is in a bundle or an ONNX file, and how it was made."
    ),
    "transcode": _Entry(
        "export.commands", "Rewrite an INT8 ONNX file of any tool so that it runs fast."
    ),
    "verify": _Entry("runtime.commands", "Check a bundle's hashes, schema and golden self-test."),
    "pack": _Entry(
        "runtime.commands", "Write a bundle folder as one .zip that every command reads."
    ),
    "combine": _Entry(
        "runtime.commands", "Join bundles of one network for several targets into one."
    ),
    "engine": _Entry(
        "runtime.engine_commands", "Build a bundle's engine for this machine's NVIDIA GPU."
    ),
    "doctor": _Entry(
        "runtime.commands", "Prove the engines of this machine by running a tiny model."
    ),
}

_EXTRAS = {
    "nncf": "compress",
    "onnx": "export",
    "onnxscript": "compress",
    "safetensors": "compress",
    "torch": "compress",
    "torch_pruning": "compress",
}
_INTERRUPTED = 130


class _Rooms(click.Group):
    """A group that knows its commands by name and imports a room only to run one of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module = importlib.import_module(f"{__package__}.{entry.module}")
        command = getattr(module, cmd_name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module.__name__}.{cmd_name} is not a click command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"Did you mean '{near[0]}'?" if near else f"Commands: {', '.join(COMMANDS)}."
            ctx.fail(f"No such command '{args[0]}'. {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])


@click.group(
    cls=_Rooms,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 done; 2 bad usage or input; 3 a bound not met; 4 a comparison that "
    "would not settle; 5 a damaged or refused bundle; 1 a bug of ours; 130 interrupted.",
)
@click.version_option(__version__, prog_name="edgepress", message="%(prog)s %(version)s")
def cli() -> None:
    """Compress trained vision backbones and run them at the edge.

    Every command explains itself with --help, and with --json prints exactly one JSON object on
    stdout, everything else on stderr.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end the process with its exit status.

    Args:
        arguments: What follows the program's name; ``None`` takes it from ``sys.argv``.

    Raises:
        SystemExit: Always, with the exit status that ``edgepress --help`` lists.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names that its encoding lacks are told escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        result: object = cli.main(words, prog_name="edgepress", standalone_mode=False)
    except click.Abort:
        click.echo("Interrupted.", err=True)
        sys.exit(_INTERRUPTED)
    except click.ClickException as error:
        error.show()
        _print_json(words, "E_USAGE", error.format_message())
        sys.exit(error.exit_code)
    except Exception as error:
        known = _as_ours(error, words)
        if known is None:
            _print_json(words, "E_BUG", f"unexpected {type(error).__name__}: {error}")
            raise
        click.echo(f"Error: {known}", err=True)
        _print_json(words, known.code, known.message, known.mend, known.path)
        sys.exit(known.exit_status)
    sys.exit(result if isinstance(result, int) else 0)


def _as_ours(error: Exception, words: Sequence[str]) -> EdgepressError | None:
    """``error`` as one of edgepress's own, a missing optional package among them; else ``None``."""
    from .runtime.errors import EdgepressError, MissingExtraError

    if isinstance(error, EdgepressError):
        return error
    package = error.name if isinstance(error, ModuleNotFoundError) else None
    if package is None or package not in _EXTRAS:
        return None
    command = next((word for word in words if word in COMMANDS), "")
    extra = _EXTRAS[package] if command in ("inspect", "transcode") else "compress"
    return MissingExtraError(package, extra, f"edgepress {command}".strip())


def _print_json(
    words: Sequence[str], code: str, message: str, mend: str = "", path: str | None = None
) -> None:
    if "--json" in words:
        error = {"code": code, "message": message, "mend": mend, "path": path}
        click.echo(json.dumps({"error": error}, indent=1))


if __name__ == "__main__":
    main()
