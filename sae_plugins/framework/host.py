"""The plugins of one trainer: pluggy's manager, and calls that name the culprit."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import pluggy

from sae_plugins.base.errors import PluginError, did_you_mean
from sae_plugins.framework import hookspecs
from sae_plugins.framework.plugin import Plugin

if TYPE_CHECKING:
    from sae_plugins.framework.profile import Profile

EVENTS = tuple(
    name for name, function in vars(hookspecs).items() if hasattr(function, "sae_plugins_spec")
)
_UNWINDING = frozenset({"after_update"})
_OWNED = {"project": ("decoder_norm", "encoder")}
"""Events for the plugins alone that claim one of these resources."""


class Host:
    """Calls the events of `plugins`, in their order."""

    def __init__(self, plugins: list[Plugin], profile: Profile | None = None) -> None:
        """Register the plugins, which are in their resolved order; a profile measures each call."""
        self.plugins = plugins
        manager = pluggy.PluginManager("sae_plugins")
        manager.add_hookspecs(hookspecs)
        for plugin in plugins:
            manager.register(plugin, name=plugin.name)

        def caller(plugin: Plugin, event: str) -> Callable[..., Any]:
            others = [other for other in plugins if other is not plugin]
            call = manager.subset_hook_caller(event, others)
            return call if profile is None else profile.timed((plugin.name, event), call)

        self._callers = {
            event: [
                # one caller per plugin: results and exceptions are known by their owner
                (plugin, caller(plugin, event))
                for plugin in (reversed(plugins) if event in _UNWINDING else plugins)
                if hasattr(getattr(type(plugin), event, None), "sae_plugins_impl")
            ]
            for event in EVENTS
        }

    def listens(self, *events: str) -> bool:
        """Whether any plugin implements one of `events`."""
        return any(self._callers[event] for event in events)

    def call(self, event: str, **arguments: Any) -> Iterator[tuple[Plugin, Any]]:
        """Call `event` plugin by plugin, yielding each plugin with what it returned.

        A generator: a plugin is called when the caller asks for its result.

        Raises:
            PluginError: a plugin raised; names the plugin and the event.
        """
        for plugin, caller in self._callers[event]:
            try:
                results = caller(**arguments)
            except PluginError as error:
                raise PluginError(f"plugin {plugin.name!r}, event {event!r}: {error}") from error
            except Exception as error:
                from sae_plugins.base.saelens import interruption

                if isinstance(error, interruption()):
                    raise  # SIGINT or SIGTERM, which SAELens answers with a checkpoint
                raise PluginError(
                    f"plugin {plugin.name!r} failed in event {event!r}: "
                    f"{type(error).__name__}: {error} "
                    f"({_where(error, type(plugin))})"
                ) from error
            yield plugin, results[0] if results else None

    def notify(self, event: str, **arguments: Any) -> None:
        """Call an event that returns nothing."""
        for _ in self.call(event, **arguments):
            pass


def built(plugin: type[Plugin], options: Any) -> Plugin:
    """An instance of a plugin, with its validated options.

    Raises:
        PluginError: its constructor raised.
    """
    try:
        return plugin(options)
    except PluginError as error:
        raise PluginError(f"plugin {plugin.name!r}: {error}") from error
    except Exception as error:
        raise PluginError(
            f"plugin {plugin.name!r} failed when it was built: {type(error).__name__}: {error} "
            f"({_where(error, plugin)})"
        ) from error


@cache  # plans of studies ask it thousands of times of the same classes
def check_events(plugin: type[Plugin]) -> None:
    """Refuse a plugin whose events would not be called as it thinks.

    Raises:
        PluginError: it implements an event that does not exist, takes an argument that the event
            does not have, lacks `@hookimpl` on one, or has not claimed what the event is about.
    """
    for name, function in inspect.getmembers(plugin, inspect.isfunction):
        marked = hasattr(function, "sae_plugins_impl")
        if name in EVENTS and not marked:
            raise PluginError(
                f"plugin {plugin.name!r} defines {name}() without @sae_plugins.hookimpl above it, "
                "so it would never be called"
            )
        if marked and name not in EVENTS:
            raise PluginError(
                f"plugin {plugin.name!r} implements {name}(), which is no event: "
                f"{did_you_mean(name, EVENTS)}"
            )
        owners = _OWNED.get(name, ()) if marked else ()
        if owners and not {*owners} & {*plugin.claims}:
            raise PluginError(
                f"plugin {plugin.name!r} implements {name}(), which is for plugins that claim "
                f"{' or '.join(map(repr, owners))}: add what it is about to its claims"
            )
        if marked:
            _check_arguments(plugin, name, function)


def _check_arguments(plugin: type[Plugin], event: str, function: Callable[..., Any]) -> None:
    known = set(inspect.signature(getattr(hookspecs, event)).parameters)
    _, *taken = inspect.signature(function).parameters.values()
    for name in (each.name for each in taken if each.default is each.empty):
        if name not in known:
            raise PluginError(
                f"plugin {plugin.name!r}, {event}(): the event has no argument {name!r}: "
                f"{did_you_mean(name, known)}"
            )


def _where(error: Exception, plugin: type[Plugin]) -> str:
    """The innermost line of the plugin's own file: file, line and code; else the innermost one."""
    own = {
        member.__code__.co_filename
        for member in vars(plugin).values()
        if hasattr(member, "__code__")
    }
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((frame for frame in reversed(frames) if frame.filename in own), frames[-1])
    return f"{frame.filename}, line {frame.lineno}: {frame.line}"
