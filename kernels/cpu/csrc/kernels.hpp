// Every operation, once for the instruction set whose vectors were included before. Each isa_*.cpp includes this.
#pragma once
#include "attention.hpp"
#include "isa.hpp"
#include "moe.hpp"
#include "sampling.hpp"

namespace {

// The greatest of each row, the lower index on a tie; -1 if the row holds a NaN or an infinity.
static void run_argmax(const Work& work, const float* x, int64_t ld, int64_t columns, int32_t* best, int64_t rows) {
    for (Range range = work.next(rows); range.more(); range = work.next(rows))
        for (int64_t r = range.first; r < range.last; r++) {
            const float* row = x + r * ld;
            F most = fset(row[0]), sound = fset(0);
            for (int64_t i = 0; i < columns; i += kLanes) {
                F y = i + kLanes <= columns ? fload(row + i) : fload_n(row + i, (int)(columns - i));
                sound = fma(y, fset(0), sound);  // NaN from then on if y is NaN or infinite
                if (i + kLanes > columns) y = keep_lanes(y, 0, (int)(columns - i), fset(row[0]));
                most = fmax(most, y);
            }
            float top = fpeak(most);
            int64_t at = 0;
            while (at + kLanes <= columns && !at_least(fload(row + at), fset(top))) at += kLanes;
            while (at < columns && row[at] != top) at++;
            best[r] = fsum(sound) == 0 ? (int32_t)at : -1;
        }
}

INLINE float number(int64_t bits) {
    int32_t low = (int32_t)bits;
    float value;
    __builtin_memcpy(&value, &low, 4);
    return value;
}

template <class T>
INLINE T* address(int64_t bits) {
    return (T*)(intptr_t)bits;
}

static void run(const Work& w, const upwell_instr& i, const upwell_batch& b) {
    const int64_t* a = i.a;
    int64_t rows = i.flags & UPWELL_ROWS_SAMPLED ? b.num_rows : b.num_tokens;
#define ROWS(J) (*address<const upwell_rows>(a[J]))
#define MATRIX(J) (*address<const upwell_matrix>(a[J]))
#define CACHE(J) (*address<const upwell_cache>(a[J]))
#define EXPERTS (*address<const upwell_experts>(a[0]))
#define FLOATS(J) address<float>(a[J])
    switch (i.op) {
        case UPWELL_EMBED: return run_embed(w, b, MATRIX(0), FLOATS(1), a[2]);
        case UPWELL_NORM:
            return run_norm(w, ROWS(0), FLOATS(1), FLOATS(2), FLOATS(3), ROWS(4), a[5], a[6], number(a[7]), rows);
        case UPWELL_QUANTISE: return run_quantise(w, ROWS(0), a[1], rows);
        case UPWELL_LINEAR: return run_linear(w, ROWS(0), MATRIX(1), FLOATS(2), a[3], rows);
        case UPWELL_SILU_LINEAR: return run_silu_linear(w, ROWS(0), MATRIX(1), ROWS(2), rows);
        case UPWELL_ROPE: return run_rope(w, b, FLOATS(0), a[1], FLOATS(2), a[3], a[4], a[5], {FLOATS(6), a[7]});
        case UPWELL_WRITE_KV:
            return run_write_kv(w, b, CACHE(0), FLOATS(1), a[2], FLOATS(3), a[4], FLOATS(7), number(a[8]),
                                {FLOATS(5), a[6]});
        case UPWELL_ATTENTION:
            return run_attention(w, b,
                                 {&CACHE(0),
                                  FLOATS(1),
                                  a[2],
                                  ROWS(3),
                                  a[4],
                                  number(a[5]),
                                  a[6],
                                  {FLOATS(7), a[8]},
                                  FLOATS(9),
                                  number(a[10]),
                                  address<uint8_t>(a[11]),
                                  a[12]});
        case UPWELL_SILU_MUL: return run_silu_mul(w, FLOATS(0), a[1], ROWS(2), a[3], rows);
        case UPWELL_GATHER: return run_gather(w, b, FLOATS(0), a[1], ROWS(2), a[3]);
        case UPWELL_ARGMAX: return run_argmax(w, FLOATS(0), a[1], a[2], address<int32_t>(a[3]), rows);
        case UPWELL_DRAW: {
            DrawParams p = {address<double>(a[3]), address<int32_t>(a[4]), address<double>(a[5]), address<double>(a[6]),
                            address<double>(a[7])};
            return run_draw(w, FLOATS(0), a[1], a[2], p, address<int32_t>(a[8]), rows);
        }
        case UPWELL_ROUTE: return run_route(w, EXPERTS, FLOATS(1), a[2], rows);
        case UPWELL_EXPERT_ORDER: return run_expert_order(w, EXPERTS, rows);
        case UPWELL_EXPERT_GATHER: return run_expert_gather(w, EXPERTS, ROWS(1), rows);
        case UPWELL_EXPERT_UP: return run_expert_up(w, EXPERTS);
        case UPWELL_EXPERT_MARK: return run_expert_mark(w, EXPERTS, rows);
        case UPWELL_MARK: return run_mark(w, ROWS(0), a[1], rows);
        case UPWELL_EXPERT_DOWN: return run_expert_down(w, EXPERTS);
        case UPWELL_EXPERT_SUM: return run_expert_sum(w, EXPERTS, FLOATS(1), a[2], rows);
    }
#undef ROWS
#undef MATRIX
#undef CACHE
#undef EXPERTS
#undef FLOATS
}

static_assert(sizeof(LinearScratch) <= kScratchBytes && sizeof(AttentionScratch) <= kScratchBytes &&
              sizeof(DrawScratch) <= kScratchBytes);

}  // namespace
