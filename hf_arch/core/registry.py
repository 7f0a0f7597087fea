"""One mechanism for every kind of component: a named table that a user's own file can extend.

    from hf_arch.core.registry import MIXERS

    @MIXERS.register("my_mixer")
    class MyMixer(RecurrentMixer): ...

An entry is a class, a function or a value whose interface the registry's docstring names. Files named in the
environment variable `HF_ARCH_PLUGINS` (separated by `os.pathsep`), or passed to `load_plugin`, are imported for the
entries that they register.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from .bundled import BUNDLED
from .errors import ConfigError, choice_error
from .plugins import PLUGIN_MODULE, Plugin, load_environment_plugins, loading_plugin, make_room, registries
from .plugins import load_plugin as load_plugin
from .plugins import plugin_error as plugin_error
from .plugins import plugin_line as plugin_line

T = TypeVar("T")


class Registry(Generic[T]):
    """Named entries of one kind. `register` refuses a second entry under a name that is taken by another class."""

    def __init__(
        self,
        kind: str,
        doc: str,
        base: str | None = None,
        listing: str | None = "hf-arch list --components",
        *,
        home: str | None = None,
        elsewhere: Mapping[str, str] | None = None,
    ):
        """`base`: the class, by its path, that what a plugin registers has to be a subclass of. `listing`: the command
        that lists the entries, None where there is none. `home`: the module of `hf_arch` that registers the entries, or
        the package whose modules do, each the entry of its own name, so that a look for one imports that one alone;
        None where those who need the entries import them. `elsewhere`: {name: module of the home} of the others."""
        self.kind, self.base, self.home, self.elsewhere = kind, base, home, elsewhere or {}
        self.listing = None if BUNDLED else listing
        self.__doc__ = doc
        self._entries: dict[str, T] = {}
        self._owners: dict[str, Plugin] = {}
        self.entered: Callable[[T], object] | None = None
        """Called with each entry that takes effect: on registration, and when an earlier version is put back."""
        registries.append(self)

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: enter a class or function under `name`; registering the same class again (a reload) replaces
        it."""

        def enter(entry: T) -> T:
            plugin = loading_plugin()
            self.enter(name, entry, plugin)
            if plugin is not None:
                plugin.entries.append((self, name, entry))
            return entry

        return enter

    def enter(self, name: str, entry: T, plugin: Plugin | None = None) -> None:
        """The same for the entry of a `plugin`. Raises `ConfigError` where the name is taken."""
        if plugin is not None:
            self._require_base(name, entry)
            self._import(name)  # what the package calls so is taken
        holder = self.owner(name)
        if holder is not None and holder is not plugin:
            make_room(holder, self, name, plugin)
        taken = self._entries.get(name)
        if taken is not None and _identity(taken) != _identity(entry):
            raise ConfigError(f"{self.kind}: {name!r} is registered already by {_identity(taken)}; choose another name")
        self._entries[name] = entry
        if plugin is not None:
            self._owners[name] = plugin
        if self.entered is not None:
            self.entered(entry)

    def _require_base(self, name: str, entry: Any) -> None:
        if self.base is None or BUNDLED:
            return
        module, _, base = self.base.rpartition(".")
        if not (isinstance(entry, type) and issubclass(entry, getattr(importlib.import_module(module), base))):
            raise ConfigError(
                f"{self.kind}: {name!r} is {getattr(entry, '__name__', repr(entry))}, which is not a subclass of "
                f"{self.base}"
            )

    def owner(self, name: str) -> Plugin | None:
        """The plugin that registered the entry of this name; None where the package did, or nothing is called so."""
        return self._owners.get(name) if name in self._entries else None

    def remove(self, name: str, plugin: Plugin) -> None:
        """Takes the entry of a plugin out, where it is still this plugin's."""
        if self.owner(name) is plugin:
            del self._entries[name], self._owners[name]

    def snapshot(self) -> tuple[dict[str, T], dict[str, Plugin]]:
        """What `restore` needs to make the registry as it is now."""
        return dict(self._entries), dict(self._owners)

    def restore(self, held: tuple[dict[str, T], dict[str, Plugin]]) -> None:
        """The entries of plugins as they were; what the package has registered since stays."""
        entries, owners = held
        ours = {name: entry for name, entry in self._entries.items() if self.owner(name) is None}
        replaced = [entry for name, entry in entries.items() if self._entries.get(name, entry) is not entry]
        self._entries, self._owners = {**ours, **entries}, dict(owners)
        if self.entered is not None:
            for entry in replaced:
                self.entered(entry)

    def get(self, name: str, field: str | None = None) -> T:
        """The entry called `name`; a ConfigError that names `field`, the nearest and all allowed names otherwise."""
        if name not in self:
            raise choice_error(field or self.kind, name, self._entries, self.listing)
        if (owner := self.owner(name)) is not None:
            owner.used = True
        return self._entries[name]

    def __getitem__(self, name: str) -> T:
        return self.get(name)

    def __contains__(self, name: object) -> bool:
        if name in self._entries:
            return True
        self._import(str(name))
        load_environment_plugins()
        if name not in self._entries:
            self._complete()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        self._complete()
        return iter(sorted(self._entries))

    def items(self) -> list[tuple[str, T]]:
        self._complete()
        return sorted(self._entries.items())

    def _complete(self) -> None:
        """Import whatever registers something here: of the package, and what `HF_ARCH_PLUGINS` names."""
        self._import(None)
        load_environment_plugins()

    def _import(self, name: str | None) -> None:
        """Import what of the package may register `name` here, or anything. The code that came with a model is complete
        as it is."""
        if self.home is not None and not BUNDLED:
            # By name, so that no bundle takes that module along.
            module = None if name is None else self.elsewhere.get(name, name)
            importlib.import_module("hf_arch.deferred").import_entries(self.home, module)


def import_all_entries() -> None:
    """Import whatever of the package registers something, for a process that others are forked from. No plugin."""
    for registry in list(registries):
        registry._import(None)


def _identity(entry: Any) -> str:
    if not hasattr(entry, "__qualname__"):  # a value, not a class or function
        return repr(entry)
    # The bare name is kept for plugins, whose module name depends on their text.
    module = "" if entry.__module__.startswith(PLUGIN_MODULE) else f"{entry.__module__}."
    return f"{module}{entry.__qualname__}"


MIXERS: Registry[Any] = Registry(
    "mixer",
    "Token mixers: subclasses of `hf_arch.layers.mixers.base.Mixer`.",
    home="layers.mixers",
    elsewhere={"kv_builder": "shared_kv", "cross_attention": "shared_kv"},
)
FFNS: Registry[Any] = Registry(
    "ffn",
    "Channel mixers: subclasses of `hf_arch.layers.ffns.ffn.FeedForward`.",
    home="layers.ffns",
    elsewhere=dict.fromkeys(("none", "mlp", "glu"), "ffn"),
)
NORMS: Registry[Any] = Registry("norm", "Norms: modules built as `norm(dim, eps)`.", home="layers.norms")
POSITIONS: Registry[Any] = Registry(
    "position",
    "Position encodings: subclasses of `hf_arch.layers.positions.Position`.",
    home="layers.positions",
)
STREAMS: Registry[Any] = Registry(
    "stream",
    "Residual streams: subclasses of `hf_arch.layers.streams.base.Stream`.",
    home="layers.streams",
    elsewhere={"add": "base"},
)
SITES: Registry[Any] = Registry(
    "site", "Modules at places of a block: subclasses of `hf_arch.layers.sites.base.Site`.", home="layers.sites"
)
EMBEDDINGS: Registry[Any] = Registry(
    "embedding",
    "Beside the token embedding: subclasses of `hf_arch.layers.embeddings.base.Embedding`.",
    home="layers.embeddings",
)
DEPTHS: Registry[Any] = Registry(
    "depth",
    "How often layers run: subclasses of `hf_arch.layers.depths.base.Depth`.",
    home="layers.depths",
    elsewhere={"plain": "base", "shared": "loop"},
)
LOSSES: Registry[Any] = Registry(
    "loss", "Auxiliary losses: subclasses of `hf_arch.models.losses.base.AuxiliaryLoss`.", home="models.losses"
)
PARAMETRIZATIONS: Registry[Any] = Registry(
    "parametrization",
    "What changes with size: subclasses of `hf_arch.layers.parametrization.Parametrization`.",
    home="layers.parametrization",
)
OPTIMIZERS: Registry[Any] = Registry(
    "optimizer",
    "What `training.optim` names: subclasses of `hf_arch.optimizers.base.OptimizerBuilder`.",
    base="hf_arch.optimizers.base.OptimizerBuilder",
)
SCHEDULES: Registry[Any] = Registry(
    "schedule",
    "What `training.lr_scheduler_type` names: subclasses of `hf_arch.schedules.base.Schedule`.",
    base="hf_arch.schedules.base.Schedule",
)
INITS: Registry[Any] = Registry(
    "init",
    "Initialisation policies that `model.init` names: subclasses of `hf_arch.models.init_policy.InitPolicy`.",
    base="hf_arch.models.init_policy.InitPolicy",
    home="models.init_policy",
)
METRICS: Registry[Any] = Registry(
    "metric",
    "Numbers measured at evaluation: subclasses of `hf_arch.evaluation.metric.Metric`.",
    base="hf_arch.evaluation.metric.Metric",
)
COLUMNS: Registry[Any] = Registry(
    "column",
    "Columns of tables and reports: subclasses of `hf_arch.runs.columns.ReportColumn`.",
    base="hf_arch.runs.columns.ReportColumn",
)
ACTIVATIONS: Registry[Callable] = Registry(
    "activation", "Elementwise functions of one tensor.", home="layers.activations"
)
CORPORA: Registry[Any] = Registry(
    "corpus", "Corpora: functions as `hf_arch.data.corpus.OpenCorpus`.", listing="hf-arch list --corpora"
)
PROBES: Registry[Any] = Registry(
    "probe", "Synthetic probes: `hf_arch.data.probes.probe.Probe` values.", listing="hf-arch list --probes"
)
ARCHITECTURES: Registry[Any] = Registry(
    "architecture",
    "Architectures: `hf_arch.models.architectures.base.Architecture` entries.",
    listing="hf-arch list",
    home="models.architectures",
)
