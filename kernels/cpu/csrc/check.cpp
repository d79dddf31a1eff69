// What a program and its batch must be before they run: a gate that ends inside of a panel, a count or an index that
// leads out of memory is refused, under every instruction set alike. Sizes of the memory itself are the caller's to
// know.
#include "check.hpp"

#include <cstdint>

#include "layout.hpp"
#include "work.hpp"

namespace {

// Which arguments of each operation are addresses that must not be null, as bits; in the order of upwell_op.
constexpr uint16_t kAddresses[] = {
    1 | 2,           // embed
    1 | 4 | 16,      // norm
    1,               // quantise
    1 | 2 | 4,       // linear
    1 | 2 | 4,       // silu_linear
    1 | 4 | 64,      // rope
    1 | 2 | 8,       // write_kv
    1 | 2 | 8,       // attention
    1 | 4,           // silu_mul
    1 | 4,           // gather
    1 | 8,           // argmax
    1 | 2,           // route
    1,               // expert_order
    1 | 2,           // expert_gather
    1,               // expert_up
    1,               // expert_down
    1 | 2,           // expert_sum
    1,               // mark
    1,               // expert_mark
    1 | 0x1f8,       // draw
};
constexpr int kOps = sizeof(kAddresses) / sizeof(*kAddresses);
static_assert(kOps == UPWELL_DRAW + 1);

bool sound(const upwell_instr& instr) {
    if (instr.op < 0 || instr.op >= kOps) return false;
    for (unsigned bits = kAddresses[instr.op]; bits; bits &= bits - 1)
        if (!instr.a[__builtin_ctz(bits)]) return false;
    const void* of[] = {(const void*)(intptr_t)instr.a[0], (const void*)(intptr_t)instr.a[1]};
    if (instr.op == UPWELL_SILU_LINEAR) return ((const upwell_matrix*)of[1])->n % (2 * kPanelRows) == 0;
    if (instr.op == UPWELL_EXPERT_UP) return ((const upwell_experts*)of[0])->inner % kPanelRows == 0;
    return true;
}

// Whether all numbers are indices of something of `size`.
bool within(const int32_t* numbers, int64_t count, int64_t size) {
    if (count > 0 && !numbers) return false;
    for (int64_t i = 0; i < count; i++)
        if (numbers[i] < 0 || numbers[i] >= size) return false;
    return true;
}

// `positions` is how many the table of rotations has, if attention rotates: queries by kv_lens, as the keys of the same
// tokens are rotated by the batch's positions, so these must agree.
int check_sequences(const upwell_batch& b, const upwell_cache& c, int64_t positions) {
    const bool rotates = positions < INT64_MAX;
    if (rotates && b.num_tokens && !b.positions) return UPWELL_BAD_POSITIONS;
    if (!b.q_starts || b.q_starts[0] != 0 || b.q_starts[b.num_seqs] != b.num_tokens) return UPWELL_BAD_Q_STARTS;
    for (int64_t s = 0; s < b.num_seqs; s++)
        if (b.q_starts[s + 1] < b.q_starts[s]) return UPWELL_BAD_Q_STARTS;
    if (b.num_seqs && !b.kv_lens) return UPWELL_BAD_KV_LENS;
    for (int64_t s = 0; s < b.num_seqs; s++) {
        int64_t queries = b.q_starts[s + 1] - b.q_starts[s], length = b.kv_lens[s];
        int64_t blocks = (length + c.block_size - 1) / c.block_size;
        if (length < queries || length > positions || blocks > b.max_blocks) return UPWELL_BAD_KV_LENS;
        if (!b.block_table || !within(b.block_table + s * b.max_blocks, blocks, c.num_blocks))
            return UPWELL_BAD_BLOCK_TABLE;
        for (int64_t i = 0; i < queries && rotates; i++)
            if (b.positions[b.q_starts[s] + i] != length - queries + i) return UPWELL_BAD_POSITIONS;
    }
    return UPWELL_OK;
}

template <class Holds>
bool each(int64_t rows, const Holds& holds) {
    for (int64_t r = 0; r < rows; r++)
        if (!holds(r)) return false;
    return true;
}

int check_draw(const int64_t* a, int64_t rows) {
    auto doubles = [&](int i) { return (const double*)(intptr_t)a[i]; };
    auto temperature = doubles(3), top_p = doubles(5), min_p = doubles(6), uniform = doubles(7);
    auto top_k = (const int32_t*)(intptr_t)a[4];
    if (a[2] < 1) return UPWELL_BAD_COUNT;
    if (!each(rows, [&](int64_t r) { return temperature[r] > 0; })) return UPWELL_BAD_TEMPERATURE;
    if (!each(rows, [&](int64_t r) { return top_k[r] >= 0; })) return UPWELL_BAD_TOP_K;
    if (!each(rows, [&](int64_t r) { return top_p[r] > 0; })) return UPWELL_BAD_TOP_P;
    if (!each(rows, [&](int64_t r) { return min_p[r] >= 0 && min_p[r] <= 1; })) return UPWELL_BAD_MIN_P;
    if (!each(rows, [&](int64_t r) { return uniform[r] >= 0 && uniform[r] < 1; })) return UPWELL_BAD_UNIFORM;
    return UPWELL_OK;
}

// The least of what the operations of a program index, so that each array of the batch is gone through once.
struct Sizes {
    int64_t ids = INT64_MAX, positions = INT64_MAX, slots = INT64_MAX, contexts = INT64_MAX;
    const upwell_cache* cache = nullptr;  // that attention reads, with the fewest blocks
    bool gathers = false;
};

void lower(int64_t& least, int64_t size) {
    if (size < least) least = size;
}

void note(const upwell_instr& instr, Sizes* sizes) {
    const int64_t* a = instr.a;
    const upwell_cache* cache = (const upwell_cache*)(intptr_t)a[0];
    switch (instr.op) {
        case UPWELL_EMBED: return lower(sizes->ids, ((const upwell_matrix*)(intptr_t)a[0])->n);
        case UPWELL_ROPE: return lower(sizes->positions, a[7]);
        case UPWELL_WRITE_KV:
            if (a[5]) lower(sizes->positions, a[6]);
            return lower(sizes->slots, cache->num_blocks * cache->block_size);
        case UPWELL_ATTENTION:
            if (a[7]) lower(sizes->contexts, a[8]);
            if (!sizes->cache || cache->num_blocks < sizes->cache->num_blocks) sizes->cache = cache;
            return;
        case UPWELL_GATHER: sizes->gathers = true;
    }
}

}  // namespace

int check(const upwell_instr* program, int64_t count, const upwell_batch* batch) {
    if (!program || count < 0 || count > kMaxProgram) return UPWELL_BAD_PROGRAM;
    if (!batch) return UPWELL_BAD_BATCH;
    const upwell_batch& b = *batch;
    if (b.num_tokens < 0 || b.num_seqs < 0 || b.max_blocks < 0 || b.num_rows < 0) return UPWELL_BAD_COUNT;
    Sizes sizes;
    for (int64_t i = 0; i < count; i++) {
        if (!sound(program[i])) return UPWELL_BAD_PROGRAM;
        note(program[i], &sizes);
        int64_t rows = program[i].flags & UPWELL_ROWS_SAMPLED ? b.num_rows : b.num_tokens;
        int status = program[i].op == UPWELL_DRAW ? check_draw(program[i].a, rows) : UPWELL_OK;
        if (status) return status;
    }
    if (sizes.ids < INT64_MAX && !within(b.token_ids, b.num_tokens, sizes.ids)) return UPWELL_BAD_TOKEN_IDS;
    if (sizes.positions < INT64_MAX && !within(b.positions, b.num_tokens, sizes.positions)) return UPWELL_BAD_POSITIONS;
    if (sizes.slots < INT64_MAX && !within(b.slots, b.num_tokens, sizes.slots)) return UPWELL_BAD_SLOTS;
    if (sizes.gathers && !within(b.logit_rows, b.num_rows, b.num_tokens)) return UPWELL_BAD_LOGIT_ROWS;
    return sizes.cache ? check_sequences(b, *sizes.cache, sizes.contexts) : UPWELL_OK;
}
