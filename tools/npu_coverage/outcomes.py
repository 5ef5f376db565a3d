"""What a run of an entry can prove."""

OUTCOMES = {
    "match": "all samples that torch_npu takes agree, and at least one emulated compute operator ran",
    "partly": "the same, but torch_npu would move some samples to the CPU, or some differ as documented",
    "documented": "differs from PyTorch as torch_npu's code or documentation says that it does on the chip",
    "moves": "results equal, but only views, copies or fills ran: proves nothing about an operator",
    "random": "random or uninitialised by definition",
    "fallback": "torch_npu has no kernel and would move the operator to the CPU",
    "declined": "torch_npu itself refuses every sample, before it calls a function of CANN",
    "illegal": "the function of CANN refuses every sample by a documented limit, as one of the chip's types",
    "missing": "calls a function that is not emulated",
    "refused": "the emulation does not have a value of an argument, and says so",
    "failed": "the emulated operator failed by itself: a fault",
    "mismatch": "results differ: a fault",
    "crash": "the process died: a fault",
    "unsupported": "the CPU side fails too, or the entry has no samples",
}
FAULTS = ("mismatch", "failed", "crash")
