"""The command line `exemplar`: one module per group of commands. An error is one sentence and a non-zero exit code.

`exemplar --help` imports neither torch nor a model: heavy modules are imported inside the commands that need them.
"""

from __future__ import annotations

import errno
import io
import os
import sys

import typer
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from typer.exceptions import TyperException

from app.cli import categories, measure, segment, serve, setup, teach
from app.cli.terminal import fail
from app.errors import AppError, UnauthorizedError

# Errors of writing to the terminal, to a file in its place, or to a command that has ended.
_NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE)
# Calls that errors of the service advise, and the commands that make them.
_COMMANDS = {
    "POST /categories/{name}/example": "teach",
    "POST /categories/{name}/rollback": "rollback",
    "GET /categories/{name}/adapter": "export",
    "GET /jobs/{id}": "jobs",
}

app = typer.Typer(
    help="Exemplar: learn to segment a category from one example.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

# In the order in which --help lists them.
app.command()(teach.teach)
app.command(name="register", hidden=True)(teach.teach)  # the command's earlier name
app.command()(segment.segment)
app.command(name="categories")(categories.list_categories)
app.command(name="category")(categories.show_category)
app.command(name="jobs")(categories.list_jobs)
app.command(name="versions")(categories.list_versions)
app.command()(categories.rollback)
app.command()(categories.delete)
app.command(name="export")(categories.export_adapter)
app.command(name="import")(categories.import_adapter)
app.command()(serve.serve)
app.command()(serve.worker)
app.command()(serve.demo)
app.command(name="key")(setup.make_key)
app.command(name="backbones")(setup.list_backbones)
app.command()(measure.evaluate)
app.command()(measure.parity)


def main() -> None:
    """Run a command; an expected error is printed as one sentence, without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may have bytes that are not UTF-8
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()  # now, so that a disk that is full is an error of the command
        sys.exit(code)
    except AppError as error:
        fail(_in_commands(error))
    except ValidationError as error:
        fail(f"The settings can't be used: {'; '.join(_problem(e) for e in error.errors())}.")
    except OSError as error:
        if error.filename is None and error.errno not in _NOT_WRITTEN:
            raise
        if error.filename is None:
            _drop_output()
        fail(f"{error.filename or 'The output'}: {error.strerror}.")
    except TyperException as error:
        fail(error.format_message(), code=2)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)


def _in_commands(error: AppError) -> str:
    """The sentence of an error, with commands and options in the place of the service's calls and headers."""
    if error.status == UnauthorizedError.status:
        return f"{error.detail.partition(':')[0]}: give a key of this service with --key or EXEMPLAR_API_KEY."
    sentence = error.detail
    for call, command in _COMMANDS.items():
        sentence = sentence.replace(call, f"`exemplar {command}`")
    return sentence


def _problem(error: ErrorDetails) -> str:
    """The variable and what is wrong with it, without pydantic's name for errors of our own validators."""
    return f"EXEMPLAR_{str(error['loc'][0]).upper()}: {error['msg'].removeprefix('Value error, ')}"


def _drop_output() -> None:
    """Write what is left of the output to nowhere: Python would try once more at the end, and fail with a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
