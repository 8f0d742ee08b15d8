"""The command line. Only what a command needs is imported, so that help answers at once."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from pyro_vae.errors import PyroVAEError, RequestError

COMMANDS = {
    "train": "train a model into a run folder",
    "evaluate": "estimate log p(x) of a run, with its errors",
    "compare": "paired differences of log p(x) between runs, with standard errors",
    "diagnose": "where log p(x) goes: gaps of the guide, use of the latents, calibration",
    "generate": "picture: samples from the model",
    "reconstruct": "picture: data beside their reconstructions",
    "traverse": "picture: what each latent does",
    "latent": "picture: latent means of the data; with two latents, the manifold too",
    "probe": "how well a linear classifier tells labels from latents, beside pixels and PCA",
    "list": "components, objectives, estimators and presets, with their fields",
    "schema": "JSON schema of a spec, for editor completion",
}
PICTURES = ("generate", "reconstruct", "traverse", "latent")

EPILOG = """\
exit codes: 0 done; 2 the request was wrong (one line per mistake); 1 the run failed.
`pyro-vae COMMAND --help` shows a command's options; `pyro-vae list` what there is to choose from.
"""


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, and returned."""

    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except SystemExit as stop:  # --help and --version
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return _fail("interrupted", 1)
    except BrokenPipeError:  # `pyro-vae schema | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except RequestError as error:
        return _fail(str(error), 2)
    except PyroVAEError as error:
        return _fail(str(error), 1)
    except Exception as error:
        code = _code_of(error)
        if code is None:
            raise
        return _fail(str(error), code)


def _fail(message: str, code: int) -> int:
    for line in message.splitlines() or ["failed"]:
        print(f"pyro-vae: {line}", file=sys.stderr)
    return code


def _code_of(error: Exception) -> int | None:
    """The exit code of what `inference` raises on purpose; None for anything else."""
    package = sys.modules.get("inference")
    if package is None or not isinstance(error, package.InferenceError):
        return None
    return 2 if isinstance(error, package.RequestError) else 1


def _run(arguments: list[str]) -> int:
    top = _top()
    given = top.parse_args(arguments[:1])
    if given.command is None:
        top.print_help()
        return 0
    if given.command not in COMMANDS:
        from pyro_vae.component import nearest

        raise RequestError(
            f"no command is called '{given.command}'{nearest(given.command, COMMANDS)}"
        )
    args = _parser(given.command).parse_intermixed_args(arguments[1:])
    if getattr(args, "modules", None):
        from pyro_vae.app.importing import import_module

        for module in args.modules:
            import_module(module)
    from pyro_vae.app import commands

    getattr(commands, f"{given.command}_command")(args)
    return 0


def _top() -> argparse.ArgumentParser:
    from pyro_vae import __version__

    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:{width}}  {said}" for name, said in COMMANDS.items())
    top = _Parser(
        prog="pyro-vae",
        usage="pyro-vae COMMAND ...",
        description=f"Variational autoencoders as Pyro programs.\n\ncommands:\n{listed}",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"pyro-vae {__version__}")
    top.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    return top


def _parser(command: str) -> argparse.ArgumentParser:
    parser = _Parser(prog=f"pyro-vae {command}", description=COMMANDS[command], allow_abbrev=False)
    add = parser.add_argument
    if command == "train":
        _add_train(parser)
    elif command == "evaluate":
        parser.usage = "pyro-vae evaluate RUN [--estimator NAME] [key=value ...] [OPTION ...]"
        add("run", metavar="RUN", help="a run folder")
        add(
            "changes",
            nargs="*",
            metavar="key=value",
            help="changes to the spec's evaluate section, e.g. estimator.num_temperatures=200",
        )
        add("--estimator", help="how to estimate (default: what the run's spec says)")
        add("--samples", type=int, metavar="K", help="samples per datum")
        add("--split", help="train, validation or test")
        add("--num-data", type=int, metavar="N", help="a random N of the split, always the same")
        add("--engine", help="what computes: auto, eager or compiled")
        add("--precision", help="float32, tf32, bfloat16 or float64")
        add("--device", help="where to compute, e.g. cpu or cuda")
        add("--quiet", action="store_true", help="no progress bar")
    elif command == "diagnose":
        add("run", metavar="RUN", help="a run folder")
        add("--estimator", help="how log p(x) is estimated (default: ais)")
        add("--split", help="train, validation or test")
        add("--num-data", type=int, metavar="N", help="a random N of the split, always the same")
        add("--seed", type=int, help="of the random draws")
        add("--device", help="where to compute, e.g. cpu or cuda")
        add("--quiet", action="store_true", help="no progress bar")
    elif command == "probe":
        add("run", metavar="RUN", help="a run folder")
        add("--num-train", type=int, metavar="N", help="a random N labelled training data")
        add("--seed", type=int, default=0, help="of the random choices (default: 0)")
    elif command == "compare":
        add("runs", nargs="+", metavar="RUN", help="evaluated run folders")
    elif command in PICTURES:
        add("run", metavar="RUN", help="a run folder")
        add("--out", metavar="FILE", help="a PNG file (default: in the run's pictures folder)")
        add("--seed", type=int, default=0, help="of the random draws (default: 0)")
        if command != "generate":
            add("--split", help="whose data to show: test, validation or train")
    elif command == "list":
        add("family", nargs="?", help="priors, guides, likelihoods, networks, datasets, ...")
        add("--matrix", action="store_true", help="which priors and guides work together")
        add("--out", metavar="FILE", help="draw the matrix, too, in this PNG file")
    add(
        "--import",
        dest="modules",
        action="append",
        metavar="MODULE",
        help="a module name or .py file that defines components of your own; may be repeated",
    )
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    parser.usage = (
        "pyro-vae train [SPEC.yaml | PRESET] [key=value ...] [--out DIR] [--resume] "
        "[--import MODULE] [--quiet]"
    )
    add(
        "request",
        nargs="*",
        metavar="SPEC.yaml | PRESET | key=value",
        help="a spec (default: the preset digits) and changes to it, "
        "e.g. model.prior=vamp model.prior.components=200 train.epochs=3",
    )
    add("--out", metavar="DIR", help="the run folder (default: the next runs/NUMBER-NAME)")
    add("--resume", action="store_true", help="go on with the run in --out DIR")
    add("--quiet", action="store_true", help="no progress bar")
