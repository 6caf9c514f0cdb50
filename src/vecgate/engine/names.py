"""Names: "NAME[:role]" and aliases -> (model, role, dimensions); knows nothing of models but their names, tasks, prompts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from vecgate.core import Checkpoint, ModelCard, Task, VirtualName
from vecgate.errors import ConfigError, ModelNotFound, WrongTask

ROLES = ("query", "document")
"""Every embedding model has these, with an empty prompt where its checkpoint has none."""
NO_ROLE = "latest"
"""Ollama's word for a model as it stands; its users write it in other dialects too."""

Named = Checkpoint | ModelCard
"""A model by its name, aliases, task and prompts: here, or as another process tells of it."""
Alias = tuple[str, str, int | None]
"""Name, what it stands for (NAME[:role], another alias included), dimensions."""


@dataclass(frozen=True, slots=True)
class Name:
    """What a request's model name means: the true name, and the role and the width it carries."""

    model: str
    role: str | None = None
    dimensions: int | None = None


class Names:
    """The served models by every name they answer to; the first of a task is that task's default.

    Names are compared without case: hub ids are. Raises ConfigError for an alias that stands for nothing.
    """

    def __init__(self, models: Iterable[Named], aliases: Iterable[Alias] = ()) -> None:
        self._models = {model.name: model for model in models}
        self._known: dict[str, Name] = {}
        for name in self._models:
            self._known[name.casefold()] = Name(name)  # before what is short for others
        for model in self._models.values():
            for name in names_of(model):
                self._known.setdefault(name.casefold(), Name(model.name))
        self._aliases = self._resolved({name.casefold(): (name, target, size) for name, target, size in aliases})

    def find(self, asked: str | None, task: Task) -> Name:
        """The model behind a name, or the task's default for None or blank.

        Raises ModelNotFound with the names that exist, WrongTask when the named model does not offer the task.
        """
        if asked is None or not asked.strip():
            return Name(self.default(task).name)
        name = self._named(asked.strip())
        offered = self._models[name.model].task
        if offered != task:
            raise WrongTask(f"Model {name.model!r} offers {_verb(offered)}, not {_verb(task)}.")
        return name

    def any(self, asked: str | None) -> Named:
        """The model behind a name whatever its task; the first one for None."""
        if asked is None or not asked.strip():
            return next(iter(self._models.values()))
        return self._models[self._named(asked.strip()).model]

    def default(self, task: Task) -> Named:
        found = self.first(task)
        if found is None:
            raise WrongTask(f"No loaded model offers {_verb(task)}; served here: {', '.join(self._models)}.")
        return found

    def first(self, task: Task) -> Named | None:
        return next((model for model in self._models.values() if model.task == task), None)

    def listed(self) -> list[str]:
        """Every name without a role, the aliases last."""
        names = dict.fromkeys(name for model in self._models for name in self._own(model))
        return list(names | dict.fromkeys(self._aliases))

    def _own(self, model: str) -> tuple[str, ...]:
        """The checkpoint's names that mean it: the first model has those that several would have."""
        return tuple(name for name in names_of(self._models[model]) if self._known[name.casefold()].model == model)

    def aliases_of(self, model: str) -> tuple[str, ...]:
        """The names that mean no more than the model, those of the settings last."""
        return self._own(model)[1:] + tuple(name for name, meant in self._aliases.items() if meant == Name(model))

    def virtual_of(self, model: str) -> tuple[VirtualName, ...]:
        """What a list of models shows beside the true name: the roles, then the aliases of the settings."""
        roles = [VirtualName(f"{model}:{role}", role) for role in roles_of(self._models[model])]
        named = [
            VirtualName(name, meant.role, meant.dimensions)
            for name, meant in self._aliases.items()
            if meant.model == model
        ]
        return (*roles, *named)

    def check_width(self, model: str, dimensions: int) -> None:
        """Raises ConfigError for an alias that asks for more than a loaded model's `dimensions`."""
        for name, meant in self._aliases.items():
            if meant.model == model and (meant.dimensions or 0) > dimensions:
                message = (
                    f"The alias {name!r} asks for {meant.dimensions} dimensions; {model!r} allows 1 to {dimensions}."
                )
                raise ConfigError(message)

    def _named(self, asked: str) -> Name:
        if (name := self._read(asked)) is not None:
            return name
        base = self._known.get(asked.rpartition(":")[0].casefold())
        if base is not None and (roles := roles_of(self._models[base.model])):
            raise ModelNotFound(f"The model {asked[:200]!r} does not exist here: the roles are {', '.join(roles)}.")
        raise ModelNotFound(f"The model {asked[:200]!r} does not exist here; these do: {', '.join(self.listed())}.")

    def _read(self, asked: str) -> Name | None:
        """A known name as it stands, or one with a role behind its last colon; None for any other."""
        if (name := self._known.get(asked.casefold())) is not None:
            return name
        base, _, word = asked.rpartition(":")
        if (name := self._known.get(base.casefold())) is None or word.casefold() == NO_ROLE:
            return name
        roles = roles_of(self._models[name.model])
        role = word if word in roles else next((role for role in roles if role.casefold() == word.casefold()), None)
        return replace(name, role=role) if role else None

    def _resolved(self, waiting: dict[str, Alias]) -> dict[str, Name]:
        """What each alias means, by its spelling, in their order; each becomes a known name, too."""
        found: dict[str, Name] = {}
        spelt = [name for name, _, _ in waiting.values()]
        while waiting:
            meant = {key: name for key, (_, target, _) in waiting.items() if (name := self._read(target)) is not None}
            if not meant:
                raise ConfigError(self._why(waiting))
            for key, name in meant.items():
                alias, _, dimensions = waiting.pop(key)
                if (other := self._read(alias)) is not None:
                    raise ConfigError(f"The alias {alias!r} is a name of {other.model!r} already; choose another one.")
                if dimensions is not None and self._models[name.model].task != "embed":
                    raise ConfigError(
                        f"The alias {alias!r} has dimensions, and {name.model!r} is a reranker without any."
                    )
                self._known[key] = found[alias] = replace(name, dimensions=dimensions or name.dimensions)
        return {name: found[name] for name in spelt}

    def _why(self, waiting: Mapping[str, Alias]) -> str:
        """Why none of these aliases can be followed to a model."""
        for name, target, _ in waiting.values():
            base, _, _ = target.rpartition(":")
            if target.casefold() not in waiting and base.casefold() not in waiting:
                return (
                    f"The alias {name!r} stands for {target!r}, which is not served; served: {', '.join(self._models)}."
                )
        names = ", ".join(name for name, _, _ in waiting.values())
        return f"The aliases {names} stand for each other and for no model; served: {', '.join(self._models)}."


def names_of(model: Named) -> tuple[str, ...]:
    """The true name first, then its last path component and the aliases."""
    return tuple(dict.fromkeys((model.name, model.name.rpartition("/")[2], *model.aliases)))


def roles_of(model: Named) -> tuple[str, ...]:
    """What may stand behind the colon of its names: the two roles every embedding model has, and its prompts."""
    return tuple(dict.fromkeys((*ROLES, *model.prompts))) if model.task == "embed" else ()


def _verb(task: Task) -> str:
    return "embeddings" if task == "embed" else "reranking"
