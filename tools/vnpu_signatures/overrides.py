"""What neither the wheel nor the call sites say, decided by hand, each with its reason."""

# Name → (number of arguments of the right call, why the other call is not followed).
VARIANTS: dict[str, tuple[int, str]] = {
    "MaxPool3dWithArgmaxBackward": (9, "op-plugin's out overload leaves `indices` out, which the function needs"),
    "MlaPrologV3WeightNz": (37, "the call with query_norm_flag is for CANN before 8.5.0.alpha003"),
}

# Name → (parameter names, source). The wheel gives the types of these, and the sources read have no call: the wheel is
# newer, or older. Names come from the wheel's own schema of the operator, or from the nearest relative's call site.
NAMES: dict[str, tuple[str, str]] = {
    "DropoutV3Grad": (
        "grad_output mask scale grad_input",
        "wheel; aten::native_dropout_backward, seen in a call on a 950",
    ),
    "DropoutV3Tensor": (
        "self optional_noise_shape p seed offset offset_intragraph result mask",
        "wheel; named after DropoutV3 and InplaceUniformTensor, seen in a captured call on a 950",
    ),
    "FusedAdam": (
        "self grads exp_avgs exp_avg_sqs max_exp_avg_sqs state_steps grad_scale found_inf"
        " lr beta1 beta2 weight_decay eps amsgrad maximize",
        "wheel; aten::_fused_adam_, seen in a call on a 950",
    ),
    "InplaceCeil": ("self", "wheel; aten::ceil_"),
    "MatmulAbftVerify": (
        "a b c checksum_weight e_max comp_row",
        "wheel; schema of npu::_npu_matmul_abft_verify, seen in a call",
    ),
    "MhcPreBackwardV2": (
        "x phi alpha grad_h_in grad_h_post grad_h_res inv_rms h_mix h_pre h_post gamma grad_x_post hc_eps"
        " inner_precise x_grad phi_grad alpha_grad bias_post_grad gamma_grad",
        "wheel; MhcPreBackward and the schema of npu::npu_mhc_pre_backward, seen in a call",
    ),
    "StatelessExponentialTensor": (
        "self seed offset offset_intragraph lambd",
        "wheel; named after InplaceUniformTensor, seen in a captured call on a 950",
    ),
    # The wheel always passes 1 between `sorted` and `values`; nothing read says what it means.
    "TopkV2": ("self k dim largest sorted reserved values indices", "wheel; named after Topk, seen in a call"),
}

# Name → {index: (letter, why)}: what a pointer points to that every call passes as null.
POINTERS: dict[str, dict[int, tuple[str, str]]] = {
    "FusedInferAttentionScoreV4": {23: ("I", "the length of the shared prefix, as in V3 and V5")},
    "FusedInferAttentionScoreV5": {
        29: ("I", "q_start_idx, as in FlashAttentionVarLenScoreV5"),
        30: ("I", "kv_start_idx, as in FlashAttentionVarLenScoreV5"),
    },
}

# Name → why no call of it needs a signature.
NEVER_CALLED: dict[str, str] = {
    "LogSigmoid": "op-plugin only asks whether it exists, and calls LogSigmoidForward",
}
