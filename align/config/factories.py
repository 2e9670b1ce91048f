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


def load_object(path: str) -> Any:
    """Import the Python object at `package.module:attribute`, which runs the module's code: name only your own.

    Raises `ValueError` with the part that is wrong.
    """
    if not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", path):
        raise ValueError(f"{path!r} is not a dotted path; write package.module:name")
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
        raise ValueError(f"{path!r}: importing it raised {type(error).__name__}: {error}") from error


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
    flags = [(n, *place) for n, value in (args or {}).items() if n in hints for place in booleans([hints[n]], value)]
    if flags:
        raise ConfigError([file.problem((*key, *place), BOOLEAN) for place in flags])

    def names(place: KeyPath) -> list[str]:
        """The keys that are valid at a place below `key`."""
        return names_at(hints.get(place[0]), place[1:]) if place else list(inspect.signature(factory).parameters)

    try:
        return validate_call(factory)(**(args or {}))
    except ValidationError as error:
        raise ConfigError(explain(error, args or {}, file, key, names)) from error
    except ValueError as error:
        raise ConfigError([file.problem(key, str(error))]) from error
    except Exception as error:  # a factory may be the user's: whatever it raises belongs to this key
        raise ConfigError([file.problem(key, f"calling it raised {type(error).__name__}: {error}")]) from error
