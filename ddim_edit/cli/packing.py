"""Options that belong together, handed over to a command as one object."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import click
from click.core import ParameterSource

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Command], Command]
Rivals = Mapping[str, Sequence[str]]
_TYPED = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)


def packed(
    name: str, make: Callable[..., object], *options: Decorator[Any], rivals: Rivals = MappingProxyType({})
) -> Decorator[Any]:
    """A decorator that adds options to a command and hands them over as one object `make(...)` called `name`.

    `rivals` names the options that each displaces where it is typed and they come from `--config`.
    """
    fields = list(inspect.signature(make).parameters)

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def wrapper(**given: Any) -> Any:
            own = {field: given.pop(field) for field in fields} | _displaced(rivals)
            return command(**given, **{name: make(**own)})

        decorated: Callable[..., Any] = wrapper
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


def _displaced(rivals: Rivals) -> dict[str, None]:
    """The options that an earlier run had and that something typed now excludes; forgets them."""
    ctx = click.get_current_context()
    typed = [name for name in rivals if ctx.get_parameter_source(name) in _TYPED]
    gone = {other for name in typed for other in rivals[name]}
    gone = {name for name in gone if ctx.get_parameter_source(name) is ParameterSource.DEFAULT_MAP}
    ctx.params.update(dict.fromkeys(gone))
    return dict.fromkeys(gone)
