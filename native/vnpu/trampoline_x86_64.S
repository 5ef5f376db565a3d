# Stores the arguments of any function, by the System V convention, and calls ga_vnpu_phase_one(index, words).
# The index comes in r11d, which carries no argument.
    .text
    .hidden ga_vnpu_phase_one
    .hidden ga_vnpu_phase_two
    .globl ga_vnpu_trampoline
    .hidden ga_vnpu_trampoline
    .type ga_vnpu_trampoline, @function
ga_vnpu_trampoline:
    .cfi_startproc
    pushq %rbp
    .cfi_def_cfa_offset 16
    .cfi_offset %rbp, -16
    movq %rsp, %rbp
    .cfi_def_cfa_register %rbp
    subq $128, %rsp
    movq %rdi, -128(%rbp)
    movq %rsi, -120(%rbp)
    movq %rdx, -112(%rbp)
    movq %rcx, -104(%rbp)
    movq %r8, -96(%rbp)
    movq %r9, -88(%rbp)
    movq %xmm0, -80(%rbp)
    movq %xmm1, -72(%rbp)
    movq %xmm2, -64(%rbp)
    movq %xmm3, -56(%rbp)
    movq %xmm4, -48(%rbp)
    movq %xmm5, -40(%rbp)
    movq %xmm6, -32(%rbp)
    movq %xmm7, -24(%rbp)
    leaq 16(%rbp), %rax
    movq %rax, -16(%rbp)
    movl %r11d, %edi
    leaq -128(%rbp), %rsi
    call ga_vnpu_phase_one
    leave
    .cfi_def_cfa %rsp, 8
    ret
    .cfi_endproc
    .size ga_vnpu_trampoline, .-ga_vnpu_trampoline

    .macro stub name index
    .globl \name\()GetWorkspaceSize
    .type \name\()GetWorkspaceSize, @function
\name\()GetWorkspaceSize:
    movl $\index, %r11d
    jmp ga_vnpu_trampoline
    .size \name\()GetWorkspaceSize, .-\name\()GetWorkspaceSize
    .endm

    .macro second name
    .globl \name
    .type \name, @function
\name:
    jmp ga_vnpu_phase_two
    .size \name, .-\name
    .endm

    .macro largest name
    .globl \name\()GetMaxWorkspaceSize
    .set \name\()GetMaxWorkspaceSize, \name\()GetWorkspaceSize
    .endm
#include "stubs.inc"
    .section .note.GNU-stack, "", @progbits
