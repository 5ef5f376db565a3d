"""Small models without files: sizes that fit no vector width, and sizes that fill tiles."""

from __future__ import annotations

from tests.models.hf_tiny import MOE, SMALL
from tests.models.real_configs import Config

from gallium.models.config import read_spec
from gallium.models.spec import ModelSpec

EVEN: Config = SMALL | {
    "vocab_size": 320, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 32,
}  # fmt: skip
EVEN_MOE: Config = EVEN | MOE | {"moe_intermediate_size": 64, "n_routed_experts": 16, "n_group": 4, "topk_group": 2}
CONFIGS: dict[str, Config] = {
    "glm-odd": SMALL | {"model_type": "glm", "attention_bias": True},
    "glm-tied-even": EVEN | {"model_type": "glm", "tie_word_embeddings": True},
    "glm4-odd": SMALL | {"model_type": "glm4"},
    "glm4_moe-odd": SMALL | MOE | {"model_type": "glm4_moe", "use_qk_norm": True, "attention_bias": True},
    "glm4_moe-even": EVEN_MOE | {"model_type": "glm4_moe"},
}


def spec_of(name: str, **changes: object) -> ModelSpec:
    """The spec of one of them, with other config values if asked."""
    return read_spec(CONFIGS[name] | changes)
