#include "textflag.h"

// α is the polynomial of the field of tweaks, x^128 + x^7 + x^2 + x + 1, as the
// carries of the two halves of a tweak meet it.
DATA alpha<>+0(SB)/8, $0x0000000000000087
DATA alpha<>+8(SB)/8, $0x0000000000000001
GLOBL alpha<>(SB), RODATA|NOPTR, $16

// LOW computes the next round key from X1 and the assisted X2, in X1.
#define LOW(rcon, at) \
	AESKEYGENASSIST $rcon, X2, X3; \
	PSHUFD $0xff, X3, X3; \
	MOVO X1, X4; \
	PSLLDQ $4, X4; PXOR X4, X1; \
	PSLLDQ $4, X4; PXOR X4, X1; \
	PSLLDQ $4, X4; PXOR X4, X1; \
	PXOR X3, X1; \
	MOVOU X1, at(BX)

// HIGH computes the one after it, in X2.
#define HIGH(at) \
	AESKEYGENASSIST $0, X1, X3; \
	PSHUFD $0xaa, X3, X3; \
	MOVO X2, X4; \
	PSLLDQ $4, X4; PXOR X4, X2; \
	PSLLDQ $4, X4; PXOR X4, X2; \
	PSLLDQ $4, X4; PXOR X4, X2; \
	PXOR X3, X2; \
	MOVOU X2, at(BX)

#define INVERSE(from, to) \
	MOVOU from(BX), X3; \
	AESIMC X3, X3; \
	MOVOU X3, to(CX)

// func expandKey(key *[32]byte, enc, dec *[15][16]byte)
TEXT ·expandKey(SB), NOSPLIT, $0-24
	MOVQ key+0(FP), AX
	MOVQ enc+8(FP), BX
	MOVQ dec+16(FP), CX
	MOVOU 0(AX), X1
	MOVOU 16(AX), X2
	MOVOU X1, 0(BX)
	MOVOU X2, 16(BX)
	LOW(0x01, 32)
	HIGH(48)
	LOW(0x02, 64)
	HIGH(80)
	LOW(0x04, 96)
	HIGH(112)
	LOW(0x08, 128)
	HIGH(144)
	LOW(0x10, 160)
	HIGH(176)
	LOW(0x20, 192)
	HIGH(208)
	LOW(0x40, 224)
	MOVOU 224(BX), X3
	MOVOU X3, 0(CX)
	INVERSE(208, 16)
	INVERSE(192, 32)
	INVERSE(176, 48)
	INVERSE(160, 64)
	INVERSE(144, 80)
	INVERSE(128, 96)
	INVERSE(112, 112)
	INVERSE(96, 128)
	INVERSE(80, 144)
	INVERSE(64, 160)
	INVERSE(48, 176)
	INVERSE(32, 192)
	INVERSE(16, 208)
	MOVOU 0(BX), X3
	MOVOU X3, 224(CX)
	PXOR X1, X1
	PXOR X2, X2
	PXOR X3, X3
	PXOR X4, X4
	RET

// TAKE loads a block, with the first round key in X12 and its tweak in X15, and
// makes the tweak of the next one. What the block is to be mixed with at the end,
// the tweak and the last round key (X11), goes to the frame.
#define TAKE(i, block) \
	MOVOU (16*i)(SI), block; \
	PXOR X15, block; \
	PXOR X12, block; \
	MOVO X15, X14; \
	PXOR X11, X14; \
	MOVOU X14, (16*i)(SP); \
	PSHUFD $0x13, X15, X14; \
	PADDQ X15, X15; \
	PSRAL $31, X14; \
	PAND X13, X14; \
	PXOR X14, X15

#define ROUND(op, at) \
	MOVOU at(AX), X9; \
	op X9, X0; op X9, X1; op X9, X2; op X9, X3; \
	op X9, X4; op X9, X5; op X9, X6; op X9, X7

// GIVE ends a block: the last round adds tweak and round key at once.
#define GIVE(op, i, block) \
	MOVOU (16*i)(SP), X9; \
	op X9, block; \
	MOVOU block, (16*i)(DI)

#define UNIT(op, last) \
	MOVOU (DX), X15; \
	MOVOU alpha<>(SB), X13; \
	MOVOU 0(AX), X12; \
	MOVOU 224(AX), X11; \
	MOVQ $32, CX; \
eight: \
	TAKE(0, X0); TAKE(1, X1); TAKE(2, X2); TAKE(3, X3); \
	TAKE(4, X4); TAKE(5, X5); TAKE(6, X6); TAKE(7, X7); \
	ROUND(op, 16); ROUND(op, 32); ROUND(op, 48); ROUND(op, 64); \
	ROUND(op, 80); ROUND(op, 96); ROUND(op, 112); ROUND(op, 128); \
	ROUND(op, 144); ROUND(op, 160); ROUND(op, 176); ROUND(op, 192); \
	ROUND(op, 208); \
	GIVE(last, 0, X0); GIVE(last, 1, X1); GIVE(last, 2, X2); GIVE(last, 3, X3); \
	GIVE(last, 4, X4); GIVE(last, 5, X5); GIVE(last, 6, X6); GIVE(last, 7, X7); \
	ADDQ $128, SI; \
	ADDQ $128, DI; \
	DECQ CX; \
	JNZ eight

// func encryptUnit(keys *[15][16]byte, tweak *[16]byte, dst, src *[UnitSize]byte)
TEXT ·encryptUnit(SB), NOSPLIT, $128-32
	MOVQ keys+0(FP), AX
	MOVQ tweak+8(FP), DX
	MOVQ dst+16(FP), DI
	MOVQ src+24(FP), SI
	UNIT(AESENC, AESENCLAST)
	RET

// func decryptUnit(keys *[15][16]byte, tweak *[16]byte, dst, src *[UnitSize]byte)
TEXT ·decryptUnit(SB), NOSPLIT, $128-32
	MOVQ keys+0(FP), AX
	MOVQ tweak+8(FP), DX
	MOVQ dst+16(FP), DI
	MOVQ src+24(FP), SI
	UNIT(AESDEC, AESDECLAST)
	RET
