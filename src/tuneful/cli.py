"""The command line: a lazy table of commands, exit codes, and one message for whatever goes wrong.

A command's file is imported when the command is asked for (or `--help` lists them all), and what is heavy when it works.
"""

from __future__ import annotations

import importlib
import sys
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

import tuneful
from tuneful.commands.examples import EXAMPLES
from tuneful.console import prepare_streams
from tuneful.errors import InputError, ModelError, TunefulError

COMMANDS = {
    "run": ("run", "The whole job"),
    "check": ("check", "Before training"),
    "show": ("show", "Before training"),
    "synthesize": ("synthesize", "Before training"),
    "train": ("run", "Training"),
    "sweep": ("sweep", "Training"),
    "generate": ("generate", "Answers"),
    "chat": ("chat", "Answers"),
    "serve": ("serve", "Answers"),
    "evaluate": ("evaluate", "Evidence"),
    "compare": ("compare", "Evidence"),
    "report": ("report", "Evidence"),
    "runs": ("runs", "Evidence"),
    "explain": ("explain", "Evidence"),
    "export": ("export", "To other programs"),
    "doctor": ("doctor", "This machine"),
}
"""Every command in the order of the work: the file of `commands/` that holds its NAME_command, and its group in `--help`."""


class LazyGroup(TyperGroup):
    """The commands of COMMANDS, each imported when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Every name, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, None where there is none; then all are loaded, so that one of them can be suggested."""
        for name in [cmd_name] if cmd_name in COMMANDS else COMMANDS:
            if name not in self.commands:
                self.commands[name] = _loaded(name)
        return self.commands.get(cmd_name)


app = typer.Typer(
    name="tuneful",
    cls=LazyGroup,
    help="Instruction finetuning that shows its work.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show a traceback with an error")] = False,
) -> None:
    """Instruction finetuning that shows its work."""
    if version:
        print(f"tuneful {tuneful.__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point of the `tuneful` command."""
    debug = "--debug" in sys.argv
    prepare_streams()
    try:
        arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
        sys.exit(app(prog_name="tuneful", standalone_mode=False, args=arguments))
    except TunefulError as error:
        _fail(error, error.exit_code, debug)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except OSError as error:
        if error.filename is None:
            _fail(error, 1, debug)
        _fail(InputError(f"{error.filename}: cannot be used: {error.strerror or error}"), InputError.exit_code, debug)
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # typer's own, about an argument
            if not error.format_message():  # no argument at all: the help was shown
                sys.exit(error.exit_code)
            _fail(_usage_error(error), int(error.exit_code), debug)
        _fail(error, 1, debug)
    except BaseException as error:
        if (
            type(error).__name__ != "PanicException"
        ):  # the library of tokenizers has no narrower one for what it cannot do
            raise
        stopped = ModelError(f"the library of tokenizers stopped, at a text or at the tokenizer of the model: {error}")
        _fail(stopped, stopped.exit_code, debug)


def _loaded(name: str) -> Any:
    """The command `name` as typer makes it of its function."""
    file, group = COMMANDS[name]
    function = getattr(importlib.import_module(f"tuneful.commands.{file}"), f"{name}_command")
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    alone.command(name, rich_help_panel=group, epilog=_epilog(name))(function)
    return typer.main.get_command(alone)


def _epilog(name: str) -> str:
    """The examples that stand at the end of a command's help, a line each."""
    return "Examples:\n\n" + "\n\n".join(EXAMPLES[name])


def _usage_error(error: Any) -> InputError:
    """Typer's own complaint about an argument, said our way."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "tuneful"
    setting = _setting_meant(str(error.option_name)) if type(error).__name__ == "NoSuchOption" else ""
    return InputError(f"{str(error.format_message()).rstrip('.')}; {setting}see {command} --help")


def _setting_meant(option: str) -> str:
    """`--learning-rate`, which is no option: how the setting of that name is given; "" where there is none."""
    from tuneful.config.explain import setting_named
    from tuneful.config.load import all_keys

    key = setting_named(option.lstrip("-").replace("-", "_"), all_keys()) if option.startswith("--") else None
    return f"a setting has no dashes: {key}=VALUE, after the data; " if key else ""


def _fail(error: Exception, exit_code: int, debug: bool) -> NoReturn:
    if debug:
        raise error
    lines = str(error) or type(error).__name__
    if not isinstance(error, TunefulError):
        lines = f"{type(error).__name__}: {lines}\n(this looks like a defect of Tuneful: --debug shows where)"
    print(f"error: {lines}", file=sys.stderr)
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
