"""Names: "NAME[:role]" and aliases -> (model, role); knows nothing of models but their names and tasks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vecgate.core import Checkpoint, Task
from vecgate.errors import ModelNotFound, WrongTask


@dataclass(frozen=True, slots=True)
class Name:
    """What a request's model name means: the true name and the role it carries."""

    model: str
    role: str | None = None


class Names:
    """The served models by every name they answer to; the first of a task is that task's default.

    Names are compared without case: hub ids are.
    """

    def __init__(self, checkpoints: Iterable[Checkpoint]) -> None:
        self._known: dict[str, Checkpoint] = {}
        self._models = tuple(checkpoints)
        for checkpoint in self._models:
            for name in names_of(checkpoint):
                self._known.setdefault(name.casefold(), checkpoint)

    def find(self, asked: str | None, task: Task) -> Name:
        """The model behind a name, or the task's default for None or blank.

        Raises ModelNotFound with the names that exist, WrongTask when the named model does not offer the task.
        """
        if asked is None or not asked.strip():
            return Name(self.default(task).name)
        checkpoint, role = self._split(asked.strip())
        if checkpoint.task != task:
            raise WrongTask(f"Model {checkpoint.name!r} offers {_verb(checkpoint.task)}, not {_verb(task)}.")
        return Name(checkpoint.name, role)

    def any(self, asked: str | None) -> Checkpoint:
        """The model behind a name whatever its task; the first one for None."""
        return self._models[0] if asked is None or not asked.strip() else self._split(asked.strip())[0]

    def default(self, task: Task) -> Checkpoint:
        found = self.first(task)
        if found is None:
            served = ", ".join(model.name for model in self._models)
            raise WrongTask(f"No loaded model offers {_verb(task)}; served here: {served}.")
        return found

    def first(self, task: Task) -> Checkpoint | None:
        return next((model for model in self._models if model.task == task), None)

    def _split(self, asked: str) -> tuple[Checkpoint, str | None]:
        if (checkpoint := self._known.get(asked.casefold())) is not None:
            return checkpoint, None
        name, colon, role = asked.rpartition(":")
        if colon and role and (checkpoint := self._known.get(name.casefold())) is not None:
            return checkpoint, role
        raise ModelNotFound(f"The model {asked[:200]!r} does not exist here; these do: {', '.join(self.listed())}.")

    def listed(self) -> list[str]:
        return list(dict.fromkeys(name for model in self._models for name in names_of(model)))


def names_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The true name first, then its last path component and the aliases."""
    return tuple(dict.fromkeys((checkpoint.name, checkpoint.name.rpartition("/")[2], *checkpoint.aliases)))


def _verb(task: Task) -> str:
    return "embeddings" if task == "embed" else "reranking"
