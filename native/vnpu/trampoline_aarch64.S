// Stores the arguments of any function, by the AAPCS64 convention, and calls ga_vnpu_phase_one(index, words).
// The index comes in w16, which carries no argument.
    .text
    .hidden ga_vnpu_phase_one
    .hidden ga_vnpu_phase_two
    .globl ga_vnpu_trampoline
    .hidden ga_vnpu_trampoline
    .type ga_vnpu_trampoline, %function
ga_vnpu_trampoline:
    .cfi_startproc
    stp x29, x30, [sp, #-16]!
    .cfi_def_cfa_offset 16
    .cfi_offset x29, -16
    .cfi_offset x30, -8
    add x17, sp, #16
    mov x29, sp
    sub sp, sp, #144
    stp x0, x1, [sp]
    stp x2, x3, [sp, #16]
    stp x4, x5, [sp, #32]
    stp x6, x7, [sp, #48]
    stp d0, d1, [sp, #64]
    stp d2, d3, [sp, #80]
    stp d4, d5, [sp, #96]
    stp d6, d7, [sp, #112]
    str x17, [sp, #128]
    mov w0, w16
    mov x1, sp
    bl ga_vnpu_phase_one
    mov sp, x29
    ldp x29, x30, [sp], #16
    ret
    .cfi_endproc
    .size ga_vnpu_trampoline, .-ga_vnpu_trampoline

    .macro stub name index
    .globl \name\()GetWorkspaceSize
    .type \name\()GetWorkspaceSize, %function
\name\()GetWorkspaceSize:
    mov w16, #\index
    b ga_vnpu_trampoline
    .size \name\()GetWorkspaceSize, .-\name\()GetWorkspaceSize
    .endm

    .macro second name
    .globl \name
    .type \name, %function
\name:
    b ga_vnpu_phase_two
    .size \name, .-\name
    .endm

    .macro largest name
    .globl \name\()GetMaxWorkspaceSize
    .set \name\()GetMaxWorkspaceSize, \name\()GetWorkspaceSize
    .endm
#include "stubs.inc"
    .section .note.GNU-stack, "", %progbits
