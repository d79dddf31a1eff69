// The C ABI of the native CPU backend: what Python sees, and nothing else. kernels/cpu/abi.py mirrors it.
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define UPWELL_ABI 8
#define UPWELL_BLOCK_BYTES 128  // of a block of 32 activations as int8: two planes (activation.hpp)
#define UPWELL_TOKEN_HEADER_BYTES 32  // of a row of activations with one scale (w8a8.hpp)

// How a packed weight lies in memory: panels of 32 output rows, interleaved for one 512-bit vector (see formats.hpp).
enum upwell_format {
    UPWELL_F32 = 0,
    UPWELL_F16 = 1,
    UPWELL_BF16 = 2,
    UPWELL_Q8_0 = 3,
    UPWELL_Q4_0 = 4,
    UPWELL_Q4_1 = 5,
    UPWELL_Q4_K = 6,
    UPWELL_Q6_K = 7,
    UPWELL_W8A8 = 8,
};

// How keys and values lie in the cache. The integers carry a scale for each token and head.
enum upwell_cache_kind { UPWELL_KV_F32 = 0, UPWELL_KV_F16 = 1, UPWELL_KV_I16 = 2, UPWELL_KV_I8 = 3 };

// A packed weight matrix [n, k].
typedef struct {
    int32_t format, n, k, reserved;
    const uint8_t* panels;
    const float* bias;  // f32[n], or null
} upwell_matrix;

// Rows of activations: as f32, as int8 with one scale a block of 32 columns, as int8 with one scale a row, or more of
// them.
typedef struct {
    float* x;      // f32[rows, ld], or null
    int64_t ld;    // floats from row to row
    void* q;       // UPWELL_BLOCK_BYTES a row and block of 32 columns, or null
    void* tokens;  // UPWELL_TOKEN_HEADER_BYTES + columns rounded up to 32 a row, or null
} upwell_rows;

// One layer's paged cache; k and v are u8[num_blocks, kv_heads, head_bytes].
typedef struct {
    int32_t kind, block_size, kv_heads, head_dim;
    uint8_t* k;
    uint8_t* v;
    int64_t head_bytes;  // of the keys, or the values, of one block and head
    int64_t num_blocks;
} upwell_cache;

// What an instruction does, and what lies in its `a`, in order. Structs are given by address. Arrays are f32[rows, ld],
// `ld` the floats from row to row; a norm's weight is f32[columns], a table of rotations f32[2, positions, head_dim /
// 2], `best` i32[rows], -1 for a row that holds a NaN or an infinity; a window of 0 sees all. Of DRAW, top_k and out
// are i32[rows], the other parameters f64[rows].
enum upwell_op {
    UPWELL_EMBED = 0,          // matrix, out, ld
    UPWELL_NORM = 1,           // rows in, residual or null, weight, sum, rows out, columns, heads, eps
    UPWELL_QUANTISE = 2,       // rows, columns
    UPWELL_LINEAR = 3,         // rows in, matrix, out, ld
    UPWELL_SILU_LINEAR = 4,    // rows in, matrix [2f, k], rows out; f a multiple of 32
    UPWELL_ROPE = 5,           // x, ld, out, ld, heads, head_dim, table, positions in it
    UPWELL_WRITE_KV = 6,       // cache, k, ld, v, ld, table or null, positions in it, norm weight or null, eps
    UPWELL_ATTENTION = 7,  // cache, q, ld, rows out, heads, scale, window, table or null, positions, norm or null, eps,
                           // memory of zeros, its bytes
    UPWELL_SILU_MUL = 8,  // x, ld, rows out, columns
    UPWELL_GATHER = 9,  // x, ld, rows out, columns: the rows that are sampled
    UPWELL_ARGMAX = 10,  // x, ld, columns, best
    UPWELL_ROUTE = 11,  // experts, scores, ld: which experts each token goes to
    UPWELL_EXPERT_ORDER = 12,  // experts: which rows each expert gets
    UPWELL_EXPERT_GATHER = 13,  // experts, rows in
    UPWELL_EXPERT_UP = 14,  // experts
    UPWELL_EXPERT_DOWN = 15,  // experts
    UPWELL_EXPERT_SUM = 16,  // experts, out, ld
    UPWELL_MARK = 17,  // rows, columns: which blocks are wide, once a row is whole
    UPWELL_EXPERT_MARK = 18,  // experts
    UPWELL_DRAW = 19,  // logits, ld, vocab, temperature, top_k, top_p, min_p, uniform, out: overwrites the logits
};

// One native call of a step. Pointers and integers lie in `a` as they are, floats as their bits.
typedef struct {
    int32_t op;
    int32_t flags;
    int64_t a[15];
} upwell_instr;

enum upwell_flags {
    UPWELL_ROWS_SAMPLED = 1,  // the operation runs over the rows that are sampled, not over all tokens
    UPWELL_NO_BARRIER = 2,  // the next operation reads nothing that this one writes
};

// What changes from step to step, as kernels/ops.py explains it; an array that no instruction reads may be null.
// token_ids, positions and slots are [num_tokens], q_starts [num_seqs + 1], kv_lens [num_seqs], block_table
// [num_seqs, max_blocks], logit_rows [num_rows].
typedef struct {
    int64_t num_tokens, num_seqs, max_blocks, num_rows;
    const int32_t *token_ids, *positions, *slots, *q_starts, *kv_lens, *block_table, *logit_rows;
} upwell_batch;

// Routed experts of one layer: matrices [2f, h], f a multiple of 32, and [h, f], one an expert, and the memory that
// routing works in. A token's pair is one of its top_k experts; pairs are kept by token and rising expert, rows by
// expert and token.
typedef struct {
    int64_t num_experts, top_k, normalise, hidden, inner;
    const upwell_matrix *up, *down;
    int32_t *expert_of, *row_of;  // i32[tokens * top_k]
    float* gate_of;  // f32[tokens * top_k]
    int32_t* token_of;  // i32[rows]
    int32_t* first_row;  // i32[num_experts + 1]
    upwell_rows gathered, between;  // [rows, hidden], [rows, inner]
    float* result;  // f32[rows, hidden]
} upwell_experts;

// What was wrong with a call, which then has done nothing; kernels/cpu/abi.py has the words.
enum upwell_status {
    UPWELL_OK = 0,
    UPWELL_NO_ISA = 1,  // upwell_use has chosen none
    UPWELL_BAD_PROGRAM = 2,  // null, too long, or an instruction that is none or lacks an address
    UPWELL_BAD_BATCH = 3,  // null
    UPWELL_BAD_COUNT = 4,  // negative, or more than there are
    UPWELL_BAD_TOKEN_IDS = 5,
    UPWELL_BAD_POSITIONS = 6,
    UPWELL_BAD_SLOTS = 7,
    UPWELL_BAD_Q_STARTS = 8,
    UPWELL_BAD_KV_LENS = 9,
    UPWELL_BAD_BLOCK_TABLE = 10,
    UPWELL_BAD_LOGIT_ROWS = 11,
    UPWELL_BAD_TEMPERATURE = 12,
    UPWELL_BAD_TOP_K = 13,
    UPWELL_BAD_TOP_P = 14,
    UPWELL_BAD_MIN_P = 15,
    UPWELL_BAD_UNIFORM = 16,
    UPWELL_BAD_POOL = 17,  // null
    UPWELL_BAD_FORMAT = 18,  // of a weight or a cache
    UPWELL_BAD_ADDRESS = 19,  // null
    UPWELL_BAD_ROW = 20,  // of another size than its columns need
    UPWELL_BUSY_POOL = 21,  // with the call of another thread
    UPWELL_FORKED_POOL = 22,  // made by the process that this one was forked from
};

#pragma GCC visibility push(default)

// UPWELL_ABI of the library.
int upwell_abi(void);
// Sizes and limits that Python repeats, to be compared when it loads the library; the last has no name.
typedef struct {
    const char* name;
    int64_t value;
} upwell_constant;
const upwell_constant* upwell_constants(void);
// The instruction sets that this machine and build have, best first, separated by spaces. The library keeps the text.
const char* upwell_isas(void);
// Choose one of them, for all pools; 1, or 0 if there is none of that name.
int upwell_use(const char* isa);

typedef struct upwell_pool upwell_pool;
// Threads that wait for programs. A pool runs one program at a time: a second call, made meanwhile by another thread,
// is refused with UPWELL_BUSY_POOL. It belongs to the process that made it: a fork has a copy of its memory but none of
// its threads, so calls there are refused with UPWELL_FORKED_POOL, and may be made of a new pool. Several pools may run
// at once. So many threads, the caller's own among them; null if they cannot be had, or are not 1 to MAX_THREADS.
upwell_pool* upwell_pool_new(int threads);
// End its threads; null is allowed. Not while a program runs. In a fork, memory alone is freed.
void upwell_pool_free(upwell_pool* pool);
// Run a program over a batch: every thread of the pool and the caller work on it, for one caller at a time. Returns an
// upwell_status. A row's result depends on its own sequence alone, not on the rest of the batch nor on the threads.
int upwell_run(upwell_pool* pool, const upwell_instr* program, int64_t count, const upwell_batch* batch);
// As upwell_run, adding the nanoseconds of each instruction to i64[count], unless that is null.
int upwell_profile(upwell_pool* pool, const upwell_instr* program, int64_t count, const upwell_batch* batch,
                   int64_t* nanoseconds);

// CPU nanoseconds that all threads have spent in programs so far, waiting for each other inside of one included, but
// not the moment that they spin before they sleep between two. -1 for null.
int64_t upwell_pool_cpu(const upwell_pool* pool);
// Programs that the caller has run alone so far, since the other threads did not get a processor. -1 for null.
int64_t upwell_pool_rested(const upwell_pool* pool);

// Bytes of the panels of a weight [n, k]. Negative where there is no such format or size.
int64_t upwell_packed_bytes(int format, int64_t n, int64_t k);
// Interleave u8[rows, row_bytes] of a stored weight of k columns into panels, from row `first` on; what no row fills
// stays as it is. Returns an upwell_status.
int upwell_pack(int format, int64_t rows, int64_t k, const uint8_t* stored, int64_t row_bytes, uint8_t* panels,
                int64_t first);
// Bytes of the keys, or the values, of one block and head. Negative where there is no such kind or size.
int64_t upwell_cache_head_bytes(int kind, int64_t block_size, int64_t head_dim);
// Bytes of the memory with which ATTENTION shares out every step of one token for each of at most `seqs` sequences, at
// most `context` tokens long; a window of 0 sees all. Arguments are not checked.
int64_t upwell_partial_bytes(int threads, int64_t seqs, int64_t context, int64_t window, int64_t kv_heads,
                             int64_t heads, int64_t head_dim);
// Read a cache's keys, or with is_value its values, back as f32[num_blocks, block_size, kv_heads, head_dim]. Returns an
// upwell_status.
int upwell_cache_read(const upwell_cache* cache, int64_t num_blocks, int is_value, float* out);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif
