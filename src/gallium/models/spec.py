"""ModelSpec: every fact of one model that the rest of the program may ask for, read from its config."""

from __future__ import annotations

from dataclasses import dataclass

from gallium.ops.handles import AttentionSpec, ModelFacts, MoeSpec


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model. Numbers come from the checkpoint's config file; none is derived from another."""

    arch: str  # "glm", "glm4", "glm4_moe"; the model class that runs it
    vocab_size: int  # rows of the embedding, padding included
    hidden: int
    num_layers: int
    ffn: int  # width of a dense MLP
    eps: float
    attention: AttentionSpec
    max_positions: int
    tied_head: bool
    eos_ids: tuple[int, ...]
    qkv_bias: bool = False
    out_bias: bool = False  # bias of o_proj; never for a GLM
    mlp_bias: bool = False  # never for a GLM
    qk_norm: bool = False
    moe: MoeSpec | None = None
    first_dense: int = 0  # layers before the first MoE layer
    moe_ffn: int = 0  # width of one routed expert
    shared_ffn: int = 0  # width of the shared expert, 0 = none
    mtp_layers: int = 0  # known by name, not run

    @property
    def facts(self) -> ModelFacts:
        """The part that a backend sees."""
        return ModelFacts(self.arch, self.num_layers, self.hidden, self.vocab_size, self.attention, self.moe)
