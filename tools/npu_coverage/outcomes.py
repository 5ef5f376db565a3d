"""What a run of an entry can prove."""

OUTCOMES = {
    "match": "results equal, and at least one emulated compute operator ran",
    "moves": "results equal, but only views, copies or fills ran: proves nothing about an operator",
    "random": "random or uninitialised by definition",
    "fallback": "torch_npu has no kernel and would move the operator to the CPU",
    "missing": "calls a function that is not emulated",
    "declined": "torch_npu itself refuses every sample, before it calls a function of CANN",
    "refused": "the emulation refuses an argument, in words",
    "documented": "results differ from PyTorch's as torch_npu's documentation says they do on the chip",
    "mismatch": "results differ",
    "unsupported": "the CPU side fails too, or the entry has no samples",
    "crash": "the process died",
}
