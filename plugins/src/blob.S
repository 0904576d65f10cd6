// The kernels themselves, as machine code and PTX, one after the other: the table knows where each begins.
    .section .rodata
    .globl edgeattn_blob
    .hidden edgeattn_blob
    .balign 64
edgeattn_blob:
    .incbin EDGEATTN_BLOB
    .section .note.GNU-stack, "", %progbits
