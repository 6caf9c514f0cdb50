"""How a reranker's checkpoint reads a pair and which logits make its score; knows files and the table, no tokens of a call."""

from __future__ import annotations

from dataclasses import dataclass

from vecgate.core import PairTemplate
from vecgate.engine import chat
from vecgate.engine.families import Family, pair_form
from vecgate.engine.files import Files
from vecgate.engine.modules import Chain
from vecgate.engine.task import architecture, generates
from vecgate.engine.words import Words
from vecgate.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Scoring:
    """template: None where the tokenizer's own form of a pair is read. yes_id, no_id: as in core.Checkpoint.
    instruction: what the template was made about; "" where it says nothing, or what its own text says."""

    template: PairTemplate | None = None
    yes_id: int | None = None
    no_id: int | None = None
    instruction: str = ""


def read(files: Files, chain: Chain | None, row: Family | None, words: Words | None, instruction: str) -> Scoring:
    """words: None for an encoder, which has its tokenizer's form and a head. instruction: of the files or the user.

    Raises CheckpointError where the form is not known.
    """
    if words is None:
        if "message" in files.modalities:
            raise CheckpointError(f"{files.root}: a {files.family} is not shown messages, as its modality_config asks.")
        return Scoring(instruction=instruction)
    if chain is not None and chain.yes_id is not None:
        ids = _in_vocabulary(files, chain.yes_id, chain.no_id)
        return Scoring(_declared(files, instruction), *ids, instruction)
    template: PairTemplate | None
    found = chat.find(files.root, files.tokenizer, files.family, files.settings)
    if found is not None and ("message" in files.modalities or chat.speaks_of_pairs(found)):
        template = found.pair(instruction)
    elif row is not None and row.instructed:
        instruction = instruction or row.prompts[str(row.default_prompt)]
        template = pair_form(instruction)
    else:
        _check_plain(files, chain, found)
        template = None
    if not generates(files.config):
        return Scoring(template, instruction=instruction)
    return Scoring(template, words.single("yes"), words.single("no"), instruction)


def _declared(files: Files, instruction: str) -> PairTemplate | None:
    """By modules.json and sentence_bert_config.json: a chat where messages are among the modalities, else a plain pair."""
    if files.settings.get("transformer_task") != "text-generation":
        raise CheckpointError(
            f"{files.folder / 'modules.json'} ends in LogitScore, so {files.root / 'sentence_bert_config.json'} must set "
            "transformer_task to 'text-generation'; fetch the model again."
        )
    if "message" not in files.modalities:
        return None
    found = chat.find(files.root, files.tokenizer, files.family, files.settings)
    if found is None:
        raise CheckpointError(
            f"{files.root / 'sentence_bert_config.json'} asks for messages, but there is no chat_template.jinja, nor a "
            "chat_template in tokenizer_config.json; fetch the model again."
        )
    return found.pair(instruction)


def _check_plain(files: Files, chain: Chain | None, found: chat.Chat | None) -> None:
    """Raises CheckpointError where the tokenizer's own form of a pair can't be meant."""
    if generates(files.config):
        raise CheckpointError(
            f"{files.root} is a {files.family} that is to rerank, and nothing says how it reads a pair; take a checkpoint "
            "with sentence-transformers' LogitScore and a chat template for query and document."
        )
    if found is not None and chain is None:
        raise CheckpointError(
            f"{found.path}: its chat template has no place for a query and a document, which {architecture(files.config)} "
            "is to be shown by it; a reranker is served by such a template only."
        )


def _in_vocabulary(files: Files, yes_id: int, no_id: int | None) -> tuple[int, int | None]:
    size = files.config.get("vocab_size")
    for one in (yes_id, no_id):
        if one is not None and not 0 <= one < (size if isinstance(size, int) else one + 1):
            raise CheckpointError(f"{files.folder}: LogitScore names the token {one}, and the vocabulary has {size}.")
    return yes_id, no_id
