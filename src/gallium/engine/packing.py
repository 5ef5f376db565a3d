"""Packs a model into a folder: what loading would make of it, written down, so that a later start only maps it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gallium
from gallium.checkpoints import Checkpoint
from gallium.checkpoints.opening import PACKED_FILE
from gallium.checkpoints.packed_writing import PackedWriter
from gallium.checkpoints.replacing import replacing_folder
from gallium.checkpoints.writing import copy_files, write_json
from gallium.engine.assembly import complete_template
from gallium.engine.loading import choose_precision, matrix_roles, read_tokenizer, releasing
from gallium.engine.memory import BITS
from gallium.errors import UsageError
from gallium.models.catalog import HEAD, expected_tensors, load_model
from gallium.models.config import read_spec
from gallium.ops.backend import find
from gallium.ops.packed import StoresPacked, given_away
from gallium.settings import EngineSettings
from gallium.text.tokenizer_folder import read_files
from gallium.text.vocabulary import write_vocabulary


def pack(
    source: Checkpoint,
    folder: Path,
    settings: EngineSettings,
    *,
    label: str,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write `source` as the packed folder `folder` in `settings.precision`, by the backend that would run it.

    The folder has all that the model needs: weights, config, tokenizer, chat template, generation settings. `label` is
    what the model is called. Never more than a layer stands in memory. Raises UsageError if the folder exists and is
    not to be overwritten, BackendError if the backend keeps no files, and the errors of loading; nothing is left then.
    """
    if source.kind == "packed":
        raise UsageError(f"{source.path} is packed already: convert the model that it was packed from.")
    # A GGUF file has names of its own, and a part is known by the name that the model asks for.
    source = replace(source, tensors={name: replace(tensor, name=name) for name, tensor in source.tensors.items()})
    spec = read_spec(source.config, source.generation_config)
    backend = find(settings.backend)
    precision, _ = choose_precision(backend, spec.facts, settings.precision, source.stored_precision)
    ops = backend.open(spec.facts, precision, settings.threads)
    expected = expected_tensors(spec, source.names())
    needs = int(sum(math.prod(shape) for shape in expected.values()) * BITS[precision] / 8)
    with replacing_folder(folder, overwrite=overwrite, keep=source.path, needs=needs) as fresh:
        with (fresh / PACKED_FILE).open("wb", buffering=0) as file:
            writer = PackedWriter(file, len(expected))
            roles = matrix_roles(precision, settings.precision, integers=source.has_integers)
            load_model(source, spec, given_away(ops, writer.handle), releasing(source, progress), role_of=roles)
            parts = {name.partition("[")[0] for name in writer.parts}
            for name, shape in expected.items():
                if name not in parts and len(shape) == 1:
                    writer.tensor(source.weight(name))
            assert isinstance(ops, StoresPacked)  # given_away has looked
            made_by = f"gallium {gallium.__version__}"
            writer.finish(
                backend=backend.name, layout=ops.layout, precision=precision, made_by=made_by, source=label,
                model=source,
            )  # fmt: skip
        tied = f"{HEAD}.weight" not in parts
        write_json(fresh / "config.json", source.config | {"tie_word_embeddings": tied})
        _write_text(source, fresh, label)
    return folder


def _write_text(source: Checkpoint, fresh: Path, label: str) -> None:
    """The tokenizer and its template; a folder's own files where it has them."""
    if source.kind == "safetensors":
        copy_files(source.path, fresh)
    text = read_tokenizer(source, needed=False)
    if text is None:
        return
    had_template = text.chat_template is not None
    complete_template(text, str(source.config.get("model_type")), label)
    if source.kind == "gguf":
        text.save(fresh)
    elif not had_template and text.chat_template is not None:
        (fresh / "chat_template.jinja").write_text(text.chat_template, encoding="utf-8")
    whole: str = read_files(fresh).core.to_str()
    write_vocabulary(
        fresh, whole, special_tokens=text.special_tokens, eos_ids=text.eos_ids, chat_template=text.chat_template
    )
