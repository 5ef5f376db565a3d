"""Chat templates that Gallium brings for GLM checkpoints (mostly GGUF files) that have none of their own.

They render the shapes that the families' own templates give. Which one is meant is told by the model type and, where
one type covers several shapes, by the model's name; the choice is announced, never made in silence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gallium.text.tokenizer import GLM_ENDS, Tokenizer

FOLDER = Path(__file__).parent / "templates"
_TITLES = {
    "glm_edge": "GLM-Edge",
    "glm4": "GLM-4",
    "glm45": "GLM-4.5",
    "glm47": "GLM-4.7",
    "glm53": "GLM-5.3",
}
_VERSION = re.compile(r"(?:glm|chatglm)[-_ ]?(?:z)?(\d+(?:\.\d+)?)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class BuiltinTemplate:
    """One of Gallium's own templates, and the sentence that tells the user of it."""

    name: str
    source: str
    notice: str


def builtin_template(model_type: str, model_name: str, tokenizer: Tokenizer) -> BuiltinTemplate | None:
    """The template for a GLM model without one; None if it is no GLM, or lacks the tokens that the template writes.

    `model_name` is what the file or folder calls the model; it tells GLM-4.5 from 4.7 and 5 from 5.3, which share a
    model type. Without a version in it the older shape is taken, and the notice says so.
    """
    name = _family(model_type, model_name, tokenizer)
    if name is None or any(tokenizer.id_of(token) is None for token in GLM_ENDS):
        return None
    version = _version(model_name)
    doubt = "" if version or model_type in ("glm", "glm4", "chatglm") else ", which is a guess by its model type"
    notice = (
        f"The checkpoint has no chat template; using Gallium's own for {_TITLES[name]}{doubt}. "
        "Put the model's chat_template.jinja beside it to use that instead."
    )
    return BuiltinTemplate(name, (FOLDER / f"{name}.jinja").read_text(encoding="utf-8"), notice)


def _version(model_name: str) -> float | None:
    match = _VERSION.search(model_name)
    return float(match[1]) if match else None


def _family(model_type: str, model_name: str, tokenizer: Tokenizer) -> str | None:
    version = _version(model_name) or 0.0
    if model_type in ("glm", "glm4", "chatglm"):
        edge = "edge" in model_name.lower() or tokenizer.vocab_size < 100_000
        return "glm_edge" if edge and model_type != "glm4" else "glm4"
    if model_type == "glm4_moe":
        return "glm47" if version >= 4.7 else "glm45"
    if model_type == "glm4_moe_lite":
        return "glm47"
    if model_type == "glm_moe_dsa":
        return "glm53" if version >= 5.3 else "glm47"
    return "glm53" if model_type == "glm5_next" else None
