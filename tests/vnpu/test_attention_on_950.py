"""The 950 has its own versions of attention, and draws dropout masks within the kernel. A process has one chip."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

SCRIPT = """
    from gallium import vnpu
    vnpu.install()
    import torch, torch_npu
    from tests.vnpu.attention_reference import attention, close
    from tests.vnpu.support import called

    x = [torch.randn(2, n, 6, d) for n, d in ((4, 48), (2, 48), (2, 16))]
    half = [t.half() for t in x]
    with called() as names:
        out, _ = torch_npu.npu_fused_infer_attention_score(
            *[t.npu() for t in half], num_heads=4, num_key_value_heads=2, scale=0.2, input_layout="BNSD")
        device = [t.npu().requires_grad_() for t in x]
        trained = torch_npu.npu_fusion_attention(*device, 4, "BNSD", scale=0.2)
        trained[0].sin().sum().backward()
    assert {"FusedInferAttentionScoreV5", "FlashAttentionScoreV4", "FlashAttentionScoreGradV4"} <= names, names
    close(out, attention(*half, 0.2).out, torch.float16)
    exact = [t.double().requires_grad_() for t in x]
    expected = attention(*exact, 0.2).out
    close(trained[0], expected, torch.float32)
    expected.sin().sum().backward()
    for a, b in zip(device, exact):
        close(a.grad, b.grad, torch.float32)

    value = torch.eye(6).expand(2, 2, 6, 6).contiguous()
    drop = {"scale": 0.2, "keep_prob": 0.5, "seed": 5, "offset": 2}
    device = [t.npu().requires_grad_() for t in (*x[:2], value)]
    dropped = torch_npu.npu_fusion_attention(*device, 4, "BNSD", **drop)
    keep = dropped[0].detach().cpu() != 0  # with the unit matrix as values the output shows the probabilities
    assert 0.3 < keep.float().mean() < 0.7
    exact = [t.double().requires_grad_() for t in (*x[:2], value)]
    expected = attention(*exact, 0.2, keep=keep, keep_prob=0.5).out
    close(dropped[0], expected, torch.float32)
    dropped[0].sin().sum().backward()
    expected.sin().sum().backward()
    for a, b in zip(device, exact):
        close(a.grad, b.grad, torch.float32)
    try:
        torch_npu.npu_prompt_flash_attention(*[t.npu() for t in half], num_heads=4)
    except RuntimeError as error:
        assert "Ascend950" in str(error)
    print("fine")
"""


def test_the_950_has_its_own_versions() -> None:
    environment = dict(os.environ, GALLIUM_VNPU_SOC="Ascend950PR_9589", PYTHONPATH=os.pathsep.join([".", *sys.path]))
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip().endswith("fine"), done.stderr[-3000:]
