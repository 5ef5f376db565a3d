"""The models that Gallium runs, and the one way to load them."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

from gallium.errors import UnsupportedModel
from gallium.models import glm, glm4, glm4_moe, llama
from gallium.models.decoder import Model
from gallium.models.family import Family
from gallium.models.sharding import local_spec, share
from gallium.models.spec import ModelSpec
from gallium.models.weights import CheckpointLike, Packer, RoleOf, Rows, Source, Survey
from gallium.ops.handles import ALONE, Linear, Placement, Tensor
from gallium.ops.interface import Ops

FAMILIES: dict[str, Family] = {f.model_type: f for f in (glm.FAMILY, glm4.FAMILY, glm4_moe.FAMILY, llama.FAMILY)}
BUILDERS = {f.arch: f.build_layer for f in FAMILIES.values()}

NOT_YET = {
    "chatglm": "the remote-code form of GLM-4-9B; use the repository that ends in -hf, or a GGUF",
    "glm4_moe_lite": "GLM-4.7-Flash; its latent attention (MLA) is planned",
    "glm_moe_dsa": "GLM-5; its sparse latent attention (DSA) is planned",
    "glm5_next": "GLM-5.3-Flash",
    "glm4v": "GLM-4.1V, with a vision tower",
    "glm46v": "GLM-4.6V-Flash, with a vision tower",
    "glm4v_moe": "GLM-4.5V and 4.6V, with a vision tower",
    "glm_ocr": "GLM-OCR, with a vision tower",
    "glmasr": "GLM-ASR, with an audio encoder",
    "glm_image": "GLM-Image, an image generator",
    "glmga": "GLM-GA, with a vision tower",
}
"""GLM model types that are known by name and refused with a reason."""

EMBEDDING, NORM, HEAD = "model.embed_tokens", "model.norm.weight", "lm_head"


def family_of(model_type: object) -> Family:
    """The family of one config. Raises UnsupportedModel, naming what is supported."""
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    known = ", ".join(FAMILIES)
    if isinstance(model_type, str) and model_type in NOT_YET:
        raise UnsupportedModel(
            f"model_type {model_type!r} ({NOT_YET[model_type]}) is known but not supported yet; supported: {known}."
        )
    if model_type is None:
        raise UnsupportedModel(f"the config has no model_type, so the architecture is unknown; supported: {known}.")
    raise UnsupportedModel(f"model_type {model_type!r} is not supported; supported: {known}.")


def load_model(
    checkpoint: CheckpointLike,
    spec: ModelSpec,
    ops: Ops,
    progress: Callable[[int, int], None] | None = None,
    *,
    role_of: RoleOf = lambda weights, role: role,
    placement: Placement = ALONE,
) -> Model:
    """Check the checkpoint's names and shapes, then pack it layer by layer: all of it, or one rank's part.

    `spec` is that of the whole model; the Model that comes back has the rank's own (`sharding.local_spec`), and only
    the rank's part is read. `role_of(weights, role)` picks projections that a backend should keep more precise than the
    model. `progress(done, total)` is called after embedding and head, and after every layer. Raises what
    `sharding.check_divides` raises, and CheckpointError, before anything is read, naming all missing, unused and
    wrongly shaped tensors.
    """
    local = local_spec(spec, placement)
    names = frozenset(checkpoint.names())
    checkpoint.check(expected_tensors(spec, names), ignored_tensors(spec, names))
    packer = Packer(checkpoint, ops, role_of, placement)
    embedding, norm, head = take_ends(packer, spec, own_head=has_own_head(checkpoint, spec, names, placement))
    layers = []
    for index in range(spec.num_layers):
        if progress is not None:
            progress(index + 1, spec.num_layers + 1)
        layers.append(BUILDERS[spec.arch](packer, spec, index))
    if progress is not None:
        progress(spec.num_layers + 1, spec.num_layers + 1)
    return Model(local, ops, embedding, layers, norm, head)


def expected_tensors(spec: ModelSpec, names: Collection[str]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor the model reads; `names` decides where a file may choose a form."""
    survey = Survey(names)
    take_ends(survey, spec, own_head=not spec.tied_head or f"{HEAD}.weight" in survey.names)
    for index in range(spec.num_layers):
        BUILDERS[spec.arch](survey, spec, index)
    return survey.expected


def ignored_tensors(spec: ModelSpec, names: Collection[str]) -> set[str]:
    """Tensors that a file may have and no forward pass needs: MTP layers, rope tables of old files."""
    ignored = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(spec.num_layers)}
    return ignored | set(glm4_moe.mtp_tensors(spec, names))


def take_ends(source: Source, spec: ModelSpec, *, own_head: bool) -> tuple[Linear, Tensor, Linear]:
    """Embedding, final norm and head; a tied head is the embedding's own handle."""
    rows = [Rows(EMBEDDING, spec.vocab_size)]
    embedding = source.linear(rows, spec.hidden, role="embedding" if own_head else "head", cut="rows")
    norm = source.vector(NORM, spec.hidden)
    if not own_head:
        return embedding, norm, embedding
    return embedding, norm, source.linear([Rows(HEAD, spec.vocab_size)], spec.hidden, role="head", cut="rows")


def has_own_head(
    checkpoint: CheckpointLike, spec: ModelSpec, names: Collection[str], placement: Placement = ALONE
) -> bool:
    """Whether the head is a matrix of its own.

    A config may say that the head is tied and the file hold both. transformers ties them only if they are equal,
    and so does Gallium, each rank by its own rows.
    """
    if not spec.tied_head or f"{HEAD}.weight" not in names:
        return not spec.tied_head
    head, embedding = checkpoint.weight(f"{HEAD}.weight"), checkpoint.weight(f"{EMBEDDING}.weight")
    rows = share(spec.vocab_size, placement.tp, placement.tp_rank)
    if head.storage != embedding.storage:
        return True
    return not np.array_equal(head.rows(rows.start, rows.stop).raw(), embedding.rows(rows.start, rows.stop).raw())
