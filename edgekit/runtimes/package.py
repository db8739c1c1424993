"""How an engine's Python package is called: what Python imports, and what pip installs on each platform."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """A distribution that adds an execution provider to an engine: the module that it brings, and the provider's name."""

    module: str
    provider: str


@dataclass(frozen=True, kw_only=True)
class Package:
    """An engine's Python package.

    module: what Python imports. name: what pip installs where nothing else is asked for; manifests and cache keys call the
    engine so, whichever distribution brought it. extra: the extra of edgekit that installs it, None where edgekit always does.
    builds: other distributions of the same module, each with the execution providers that it adds. Two of them in one
    environment write the same folder. plugins: distributions that add a provider beside any of them, each with its module.
    """

    module: str
    name: str
    extra: str | None = None
    builds: Mapping[str, Sequence[str]] = field(default_factory=dict)
    plugins: Mapping[str, Plugin] = field(default_factory=dict)

    @property
    def distributions(self) -> tuple[str, ...]:
        """Every name under which pip may have installed it, the usual one first."""
        return (self.name, *self.builds)

    @property
    def requirement(self) -> str:
        """What to give to `pip install` to have the version that edgekit wants, quoted for a shell."""
        return f'"edgekit[{self.extra}]"' if self.extra else self.name

    def build_for(self, provider: str) -> str | None:
        """The distribution that brings an execution provider; None where the usual one does, or none is known."""
        return next((name for name, providers in self.builds.items() if provider in providers), None)

    def plugin_for(self, provider: str) -> str | None:
        """The distribution that adds an execution provider to whichever build is there; None where there is none."""
        return next((name for name, plugin in self.plugins.items() if plugin.provider == provider), None)
