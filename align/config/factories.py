"""Find the objects that a recipe names by dotted path, and call them with arguments checked by their signature."""

from __future__ import annotations

import inspect
import pkgutil
import re
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import ValidationError, validate_call

from align.config.problems import BOOLEAN, booleans, explain, names_at, nearest
from align.config.recipe_file import ConfigError, KeyPath, RecipeFile
from align.system.blame import no_exit, user_line
from align.system.rehearsal import rehearse


def check_path(path: str) -> None:
    """Raise `ValueError` unless it is written as a dotted path; nothing is imported."""
    if not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", path):
        raise ValueError(f"{path!r} is not a dotted path; write package.module:name")


def load_object(path: str) -> Any:
    """Import the Python object at `package.module:attribute`, which runs the module's code: name only your own.

    Raises `ValueError` with the part that is wrong.
    """
    check_path(path)
    try:
        return pkgutil.resolve_name(path)
    except ModuleNotFoundError as error:
        what = f"cannot import {error.name!r} for {path!r}; is it installed or on PYTHONPATH?"
        raise ValueError(what + _did_you_mean(error.name, _modules_beside(error.name))) from error
    except AttributeError as error:
        there = [name for name in dir(error.obj) if not name.startswith("_")]
        raise ValueError(f"{path!r}: {error}{_did_you_mean(error.name, there)}") from error
    except ImportError as error:
        raise ValueError(f"{path!r}: {error}") from error
    except (Exception, SystemExit) as error:  # the module is the user's: whatever it raises belongs to this path
        line = user_line(error)
        where = f" ({line})" if line else ""
        raise ValueError(f"{path!r}: importing it raised {type(error).__name__}: {error}{where}") from error


def check_survives(path: str, step: Callable[[Any], object]) -> None:
    """Raise `ValueError` where `step`, given the object at a dotted path, or importing it ends the process: a copy of
    this one tries it first. What stands in this library is not tried."""
    if path.startswith(("align.", "rewards.")):
        return
    ended = rehearse(lambda: step(load_object(path)))
    if ended:
        raise ValueError(f"{path!r}: {ended} while it was imported or called")


def _modules_beside(name: str) -> list[str]:
    """The modules that stand where the missing one was looked for."""
    package, _, _ = name.rpartition(".")
    paths = getattr(sys.modules.get(package), "__path__", None) if package else sys.path
    prefix = f"{package}." if package else ""
    return [module.name for module in pkgutil.iter_modules(paths, prefix)] if paths else []


def _did_you_mean(name: str | None, names: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing where no name is close."""
    what = nearest(name or "", names)
    return f"; {what}" if what.startswith("did") else ""


def call(factory: Callable, args: Mapping[str, Any] | None, file: RecipeFile, key: KeyPath) -> Any:
    """Return factory(**args), with types and ranges checked against its signature.

    Raises `ConfigError` whose problems name the line in `file`; `key` is where `args` stand.
    """
    if args is not None and not (isinstance(args, Mapping) and all(isinstance(name, str) for name in args)):
        raise ConfigError([file.problem(key, f"takes a mapping of its arguments, but it is {args!r}")])
    hints = typing.get_type_hints(factory, include_extras=True)
    args = _functions(args or {}, hints, file, key)
    flags = [(n, *place) for n, value in args.items() if n in hints for place in booleans([hints[n]], value)]
    if flags:
        raise ConfigError([file.problem((*key, *place), BOOLEAN) for place in flags])

    def names(place: KeyPath) -> list[str]:
        """The keys that are valid at a place below `key`."""
        return names_at(hints.get(place[0]), place[1:]) if place else list(inspect.signature(factory).parameters)

    try:
        with no_exit(getattr(factory, "__name__", str(factory))):
            return validate_call(factory)(**args)
    except ValidationError as error:
        raise ConfigError(explain(error, args, file, key, names)) from error
    except ValueError as error:
        raise ConfigError([file.problem(key, str(error))]) from error
    except Exception as error:  # a factory may be the user's: whatever it raises belongs to this key
        raise ConfigError([file.problem(key, f"calling it raised {type(error).__name__}: {error}")]) from error


def _functions(args: Mapping[str, Any], hints: Mapping[str, Any], file: RecipeFile, key: KeyPath) -> dict[str, Any]:
    """The arguments, with the function that a dotted path names where the signature takes a function.

    Raises `ConfigError` for a path without one, and for a function that does not say that it returns what is wanted: it
    is looked at before it is called.
    """
    out = dict(args)
    for name, value in args.items():
        kinds = (hints.get(name), *typing.get_args(hints.get(name)))
        wanted = next((typing.get_args(kind)[-1] for kind in kinds if typing.get_origin(kind) is Callable), None)
        if wanted is not None and isinstance(value, str) and ":" in value:
            try:
                out[name] = _function(value, wanted)
            except ValueError as error:
                raise ConfigError([file.problem((*key, name), str(error))]) from error
    return out


def _function(path: str, returns: type) -> Callable:
    """The function at a dotted path. Raises `ValueError` unless it says that it returns this type."""
    check_survives(path, lambda _: None)
    found = load_object(path)
    if (what := unfit(found, returns)) is not None:
        raise ValueError(f"{path} {what}")
    return found


def unfit(factory: Any, kind: type | tuple) -> str | None:
    """Say why an object of the user's is not called: it must say that it makes what can stand there."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not inspect.isfunction(factory):
        return "is not a function"
    try:
        returns = typing.get_type_hints(factory).get("return")
    except Exception as error:  # annotations are the user's code too
        return f"has annotations that cannot be read: {type(error).__name__}: {error}"
    if inspect.isclass(returns) and issubclass(returns, kinds):
        return None
    wanted = " or ".join(kind.__name__ for kind in kinds)
    if returns is None:
        return f"does not say what it returns; write `-> {kinds[0].__name__}` behind its arguments"
    return f"returns {getattr(returns, '__name__', returns)}, as it says, which cannot stand here; name one of {wanted}"
