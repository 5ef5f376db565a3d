"""llama: a Llama checkpoint is a glm with half-split rope over whole heads. Only defaults differ."""

from __future__ import annotations

from gallium.models import glm
from gallium.models.family import Family

FAMILY = Family(
    model_type="llama",
    arch="glm",
    build_layer=glm.layer,
    interleaved=False,
    rotary_factor=None,
    attention_bias=False,
    default_eos=(2,),
    llama=True,
)
