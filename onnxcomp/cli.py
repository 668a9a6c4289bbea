"""The command ``onnxcomp``: arguments in, exit code out; the only module that prints and exits."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from onnxcomp.errors import OnnxcompError, UsageError
from onnxcomp.printable import printable

if TYPE_CHECKING:  # imported where needed: --help must not wait for ONNX Runtime
    from onnxcomp.actions import Request

__all__ = ["main", "run"]

FAILED = 3
INTERRUPTED = 130
CUT_OFF = 141  # as programs end that write to a pipe which nobody reads any more

# Usage errors of typer itself: the base of BadParameter's base, whichever package it comes from.
_ParserError: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def main() -> NoReturn:
    """Entry point of the command."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code.

    0: done and verified. 2: bad usage or input, nothing was written. 3: a pass failed or the accuracy budget
    was exceeded, and the best attempt was kept; or onnxcomp itself failed. 130: interrupted. 141: the reader
    of stdout went away.
    """
    debug = "--debug" in arguments
    try:
        with _process_manners(debug):
            code = app(args=list(arguments), prog_name="onnxcomp", standalone_mode=False)
            sys.stdout.flush()
        if code == INTERRUPTED:  # typer has caught it
            raise KeyboardInterrupt
        return int(code or 0)
    except OnnxcompError as error:
        return _fail(str(error), error.exit_code, debug)
    except _ParserError as error:
        message = error.format_message()  # type: ignore[attr-defined]
        return _fail(f"{_sentence(message)}; see onnxcomp --help", UsageError.exit_code, debug)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted; nothing was written", INTERRUPTED, debug)
    except (BrokenPipeError, SystemExit) as error:  # typer makes the one of the other
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        _drop_output()
        return CUT_OFF
    except OSError as error:  # the machine's fault: a full disk behind stdout, a device that fails
        _drop_output()
        place = error.filename or "the output"
        return _fail(f"{place}: {error.strerror or type(error).__name__}; free it, or name another", 2, debug)
    except MemoryError:
        return _fail("out of memory; give fewer samples, or run it on a larger machine", FAILED, debug)
    except Exception as error:
        hint = "" if debug else "; this is a defect of onnxcomp, run it again with --debug and report it"
        return _fail(f"{type(error).__name__}: {_sentence(str(error))}{hint}", FAILED, debug)


@app.command()
def _command(
    model: Annotated[Path | None, typer.Argument(metavar="MODEL", help="An ONNX model.", show_default=False)] = None,
    pipeline: Annotated[
        str | None,
        typer.Option(
            "-p",
            "--pipeline",
            help="Passes with options, as in 'prune(flops=0.3),quant', or a recipe. "
            "Without it: show what is in the model.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="File to write, never the model itself. Default: MODEL's name with .compressed.onnx. "
            "A name in .onnxz packs the model; with no pipeline, too, and any other then restores a packed one.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Calibration samples: an .npz file, a folder of .npz files, or module:function. "
            "A quarter is held out to evaluate on, unless --test-data is given."
        ),
    ] = None,
    test_data: Annotated[str | None, typer.Option(help="Samples to evaluate on.")] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="top1, top5, agreement, sqnr, cosine, max_error, or module:function."),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(help="Largest loss of the metric; a pass that exceeds it is undone. Top-1: 0.01 is a point."),
    ] = None,
    report: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write a JSON report; - writes it to stdout.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every random choice.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the sessions that are timed.")] = 1,
    target: Annotated[
        str, typer.Option(help="Machine the result is for: host, x86-avx2, x86-avx512, x86-vnni, arm64.")
    ] = "host",
    keep_order: Annotated[
        bool, typer.Option("--keep-order", help="Run the passes in the order given, and no others.")
    ] = False,
    timings: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|off",
            help="Times to decide by: the JSON report of an earlier run (same input, same bytes), or off. "
            "Default: measure.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, show what would be done, write nothing.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,  # noqa: ARG001 - read by run
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    passes: Annotated[
        bool, typer.Option("--passes", help="List the passes; with the name of one: its manual page.")
    ] = False,
    replay: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Run a failed pass again from its reproducer.")
    ] = None,
) -> int:
    """Compress an ONNX model with a pipeline of verified passes, or look into it.

    onnxcomp net.onnx -p prune,quant,reorder --data samples.npz

    Exit codes: 0 done and verified; 2 bad usage or input; 3 a pass failed or lost too much.
    """
    if version:
        from onnxcomp.version import installed_version

        typer.echo(f"onnxcomp {installed_version()}")
        return 0
    from onnxcomp import actions

    actions.silence_runtime()
    if passes:
        return actions.show_passes(None if model is None else str(model))
    if replay is not None:
        return actions.replay_failure(replay, quiet)
    if model is None:
        raise UsageError("no model is given; name an .onnx file, as in: onnxcomp net.onnx -p prune,quant")
    request = actions.Request(
        model=model,
        pipeline=pipeline,
        output=output,
        data=data,
        test_data=test_data,
        metric=metric,
        max_drop=max_drop,
        report=report,
        seed=seed,
        threads=threads,
        target=target,
        keep_order=keep_order,
        timings=timings,
        quiet=quiet,
    )
    if pipeline is None:
        _refuse_without_pipeline(request, dry_run)
        return actions.inspect_model(request) if output is None else actions.convert_model(request)
    return actions.show_plan(request) if dry_run else actions.compress_model(request)


def _refuse_without_pipeline(request: Request, dry_run: bool) -> None:
    given = {
        "--data": None if request.output is None else request.data,
        "--report": None if request.output is None else request.report,
        "--test-data": request.test_data,
        "--metric": request.metric,
        "--max-drop": request.max_drop,
        "--keep-order": request.keep_order or None,
        "--timings": request.timings,
        "--dry-run": dry_run or None,
    }
    for option, value in given.items():
        if value is not None:
            raise UsageError(f"{option} needs a pipeline; name the passes, as in: -p prune,quant")


@contextlib.contextmanager
def _process_manners(debug: bool) -> Iterator[None]:
    """Characters that stdout lacks are replaced, a polite kill cleans up, no library chats."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    previous, streams = signal.signal(signal.SIGTERM, _interrupt), (sys.stdout, sys.stderr)
    try:
        with warnings.catch_warnings():
            if not debug:  # the report holds those of ours
                warnings.simplefilter("ignore")
            yield
    finally:
        signal.signal(signal.SIGTERM, previous)
        sys.stdout, sys.stderr = streams  # typer wraps them when a pipe breaks


def _drop_output() -> None:
    """Let nothing more come to stdout, so that the interpreter does not fail on it again at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupt(_signal: int, _frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    sys.stderr.write(f"onnxcomp: error: {printable(message)}\n")
    return code


def _sentence(text: str) -> str:
    """The parser's and other libraries' messages in the style of ours: one line, no full stop."""
    line = " ".join(text.split()).rstrip(".").replace("Input should", "it should")
    return line[:1].lower() + line[1:] if line[1:2].islower() else line
