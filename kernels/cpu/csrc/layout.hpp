// Sizes and limits that do not depend on an instruction set: what the kernels and the functions for Python agree on.
#pragma once
#include "upwell.h"
#include "work.hpp"

namespace {

constexpr int kLanes = 16;              // floats of a vector
constexpr int kPanelRows = 2 * kLanes;  // of weights: two halves of a vector's lanes
constexpr int kPartBlocks = 24, kMaxParts = 128;  // blocks of a part of a row of activations, and parts of a row
constexpr int64_t kMaxHead = 256, kMaxExperts = 1024;
constexpr int kQueryRows = 48;  // queries times heads of a group that share the load of a tile

constexpr int64_t padded_head(int64_t d) { return (d + kLanes - 1) / kLanes * kLanes; }
constexpr int64_t cache_item_bytes(int kind) { return kind == UPWELL_KV_F32 ? 4 : kind == UPWELL_KV_I8 ? 1 : 2; }
constexpr bool has_scales(int kind) { return kind == UPWELL_KV_I16 || kind == UPWELL_KV_I8; }

// Of the keys or the values of one block and head.
constexpr int64_t cache_head_bytes(int kind, int64_t block_size, int64_t head_dim) {
    return padded_head(head_dim) * block_size * cache_item_bytes(kind) + (has_scales(kind) ? 4 * block_size : 0);
}

constexpr int64_t kSegment =
    512;  // tokens: what a softmax is summed over before the sum joins that of what came before

// A step of one token a sequence is so many pieces: key heads of sequences. Where threads have fewer of them than this,
// they share out segments, through memory that holds a counter for each piece and then what each segment has summed.
constexpr int64_t kPiecesOfThread = 4, kMaxPieces = kPiecesOfThread * kMaxThreads;
constexpr int64_t partial_floats(int64_t group, int64_t head_dim) {
    return (group * (padded_head(head_dim) + 2) + 15) / 16 * 16;
}

}  // namespace
