// Routed experts: softmax over all of them, the top k, a weighted sum of their MLPs.
//
// Tokens are gathered by expert, so that each expert's weights are read once a step. A token's sum goes over its
// experts by rising index, whoever else went there.
#pragma once
#include "layout.hpp"
#include "linear.hpp"
#include "rows.hpp"

namespace {

static void route_token(const upwell_experts& e, const float* scores, int64_t token) {
    float chance[kMaxExperts], most = scores[0], sum = 0, kept = 0;
    bool taken[kMaxExperts] = {false};
    for (int64_t i = 0; i < e.num_experts; i++) most = scores[i] > most ? scores[i] : most;
    for (int64_t i = 0; i < e.num_experts; i++) {
        chance[i] = lane(exp2_(fset((scores[i] - most) * 1.44269504089f)), 0);
        sum += chance[i];
    }
    for (int64_t k = 0; k < e.top_k; k++) {
        int64_t best = -1;
        for (int64_t i = 0; i < e.num_experts; i++)
            if (!taken[i] && (best < 0 || chance[i] > chance[best])) best = i;
        taken[best] = true;
    }
    int64_t pair = token * e.top_k;
    for (int64_t i = 0; i < e.num_experts; i++)
        if (taken[i]) {
            e.expert_of[pair] = (int32_t)i;
            e.gate_of[pair++] = chance[i] / sum;
            kept += chance[i] / sum;
        }
    if (e.normalise)
        for (pair = token * e.top_k; pair < (token + 1) * e.top_k; pair++) e.gate_of[pair] /= kept;
}

static void run_route(const Work& work, const upwell_experts& e, const float* scores, int64_t ld, int64_t tokens) {
    for (Range range = work.next(tokens); range.more(); range = work.next(tokens))
        for (int64_t t = range.first; t < range.last; t++) route_token(e, scores + t * ld, t);
}

static void run_expert_order(const Work& work, const upwell_experts& e, int64_t tokens) {
    if (!work.next(1).more()) return;
    int32_t at[kMaxExperts];
    for (int64_t i = 0; i <= e.num_experts; i++) e.first_row[i] = 0;
    for (int64_t pair = 0; pair < tokens * e.top_k; pair++) e.first_row[e.expert_of[pair] + 1]++;
    for (int64_t i = 0; i < e.num_experts; i++) {
        at[i] = e.first_row[i];
        e.first_row[i + 1] += e.first_row[i];
    }
    for (int64_t pair = 0; pair < tokens * e.top_k; pair++) {
        int32_t row = at[e.expert_of[pair]]++;
        e.row_of[pair] = row;
        e.token_of[row] = (int32_t)(pair / e.top_k);
    }
}

static void run_expert_gather(const Work& work, const upwell_experts& e, const upwell_rows& in, int64_t tokens) {
    int64_t rows = tokens * e.top_k, blocks = (e.hidden + 31) / 32;
    for (Range range = work.next(rows); range.more(); range = work.next(rows))
        for (int64_t r = range.first; r < range.last; r++) {
            int64_t t = e.token_of[r];
            if (in.x)
                __builtin_memcpy(e.gathered.x + r * e.gathered.ld, in.x + t * in.ld, sizeof(float) * (size_t)e.hidden);
            if (in.q)
                __builtin_memcpy(row_of(e.gathered.q, r, blocks), row_of(in.q, t, blocks),
                                 UPWELL_BLOCK_BYTES * (size_t)blocks);
            if (in.tokens)
                __builtin_memcpy(token_of(e.gathered.tokens, r, e.hidden), token_of(in.tokens, t, e.hidden),
                                 (size_t)token_bytes(e.hidden));
        }
}

// Calls item(expert, first row, rows, item of that expert) for every item that falls to this thread.
template <class Count, class Item>
INLINE void each_expert_item(const Work& work, const upwell_experts& e, const Count& count, const Item& item) {
    int64_t total = 0, before = 0, expert = 0;
    for (int64_t i = 0; i < e.num_experts; i++) total += count(i, e.first_row[i + 1] - e.first_row[i]);
    for (Range range = work.next(total); range.more(); range = work.next(total))
        for (int64_t at = range.first; at < range.last; at++) {
            if (at < before) before = expert = 0;
            int64_t rows = e.first_row[expert + 1] - e.first_row[expert];
            while (at - before >= count(expert, rows)) {
                before += count(expert, rows);
                expert++;
                rows = e.first_row[expert + 1] - e.first_row[expert];
            }
            item(expert, (int64_t)e.first_row[expert], rows, at - before);
        }
}

static void run_expert_up(const Work& work, const upwell_experts& e) {
    forget_band(work);
    each_expert_item(
        work, e, [&](int64_t i, int64_t rows) { return silu_linear_items(e.up[i], rows); },
        [&](int64_t i, int64_t first, int64_t rows, int64_t at) {
            silu_linear_item(rows_from(e.gathered, first, e.hidden), e.up[i], rows_from(e.between, first, e.inner),
                             rows, at, (LinearScratch*)work.scratch);
        });
}

static void run_expert_mark(const Work& work, const upwell_experts& e, int64_t tokens) {
    if (e.between.q) run_mark(work, e.between, e.inner, tokens * e.top_k);
    if (e.between.tokens) run_quantise(work, e.between, e.inner, tokens * e.top_k);
}

static void run_expert_down(const Work& work, const upwell_experts& e) {
    forget_band(work);
    each_expert_item(
        work, e, [&](int64_t i, int64_t rows) { return linear_items(e.down[i], rows); },
        [&](int64_t i, int64_t first, int64_t rows, int64_t at) {
            linear_item(rows_from(e.between, first, e.inner), e.down[i], e.result + first * e.hidden, e.hidden, rows,
                        at, (LinearScratch*)work.scratch);
        });
}

static void run_expert_sum(const Work& work, const upwell_experts& e, float* out, int64_t ld, int64_t tokens) {
    for (Range range = work.next(tokens); range.more(); range = work.next(tokens))
        for (int64_t t = range.first; t < range.last; t++)
            for (int64_t i = 0; i < e.hidden; i += kLanes) {
                int lanes = lanes_left(e.hidden, i);
                F sum = fset(0);
                for (int64_t pair = t * e.top_k; pair < (t + 1) * e.top_k; pair++)
                    sum = fma(fset(e.gate_of[pair]), fload_n(e.result + e.row_of[pair] * e.hidden + i, lanes), sum);
                fstore_n(out + t * ld + i, sum, lanes);
            }
}

}  // namespace
