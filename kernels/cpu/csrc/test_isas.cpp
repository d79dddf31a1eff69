// Runs every operation under every instruction set of this machine and under 1, 2 and 3 threads, and compares all that
// they write with what plain C++ on one thread writes: it must be the same to the last bit. (A NaN may be any NaN.)
#include <algorithm>
#include <cstdio>

#include "test_attention.hpp"
#include "test_support.hpp"

namespace {

// ---- Rows

void quantise(Pass& pass, const Rows& rows, int columns) {
    if (rows.rows.q || rows.rows.tokens) pass.add(UPWELL_QUANTISE, {rows, columns});
    if (rows.rows.q) pass.add(UPWELL_MARK, {rows, columns});
}

void linear(Pass& pass, int format, int rows) {
    pass.begin(std::string("linear ") + kFormatNames[format] + " rows " + std::to_string(rows));
    // 32 blocks and 1003 columns of W8A8 take two parts; 40 outputs take two panels, the second with 8 rows of 32.
    int n = 40, k = is_float(format) ? 77 : format == UPWELL_W8A8 ? 1003 : 1024;
    Matrix first(format, n, k, rows % 2, pass.random), second(format, 17, k, false, pass.random);
    Rows in(rows, k, true, kind_of(format));
    for (int64_t i = 0; i < in.x.count(); i++) in.x[i] = pass.random.number();
    Array<float> out(rows * (n + 3)), other(rows * 17);
    quantise(pass, in, k);
    pass.add(UPWELL_LINEAR, {in, first, out, n + 3}, UPWELL_NO_BARRIER);
    pass.add(UPWELL_LINEAR, {in, second, other, 17});
    pass.run(rows);
    pass.keep(in);
    pass.keep("out", out);
    pass.keep("other", other);
}

void silu_linear(Pass& pass, int format, int rows) {
    pass.begin(std::string("silu_linear ") + kFormatNames[format] + " rows " + std::to_string(rows));
    int f = 96, k = kind_of(format) == Kind::kBlocks ? 256 : 33;
    Matrix matrix(format, 2 * f, k, rows % 2, pass.random);
    Rows in(rows, k, true, kind_of(format)), out(rows, f, true, Kind::kBlocks);
    for (int64_t i = 0; i < in.x.count(); i++) in.x[i] = pass.random.number();
    quantise(pass, in, k);
    pass.add(UPWELL_SILU_LINEAR, {in, matrix, out});
    pass.add(UPWELL_MARK, {out, f});
    pass.run(rows);
    pass.keep(out);
}

// More rows than one band holds (kBandRows of linear.hpp), and the same rows again in calls of one band each.
void bands(Pass& pass, int format, int rows) {
    pass.begin(std::string("bands ") + kFormatNames[format] + " rows " + std::to_string(rows));
    const int n = 35, f = 64, k = kStored[format].columns == 256 ? 256 : 128;
    const Kind kind = kind_of(format);
    Matrix matrix(format, n, k, rows % 2, pass.random), gates(format, 2 * f, k, rows % 2, pass.random);
    Rows all(rows, k, true, kind), up(rows, f, true, Kind::kBlocks);
    for (int64_t i = 0; i < all.x.count(); i++) all.x[i] = pass.random.number();
    Array<float> out(rows * n), again(out.count()), up_again(up.x.count());
    quantise(pass, all, k);
    pass.add(UPWELL_LINEAR, {all, matrix, out, n}, UPWELL_NO_BARRIER);
    pass.add(UPWELL_SILU_LINEAR, {all, gates, up});
    pass.add(UPWELL_MARK, {up, f});
    pass.run(rows);
    for (int first = 0, some; first < rows; first += some) {
        some = std::min(rows - first, 100);
        Rows few(some, k, true, kind), few_up(0, f, false, Kind::kFloats);
        memcpy(few.x, all.x + first * k, few.x.bytes());
        few_up.rows.x = up_again + first * f;
        quantise(pass, few, k);
        pass.add(UPWELL_LINEAR, {few, matrix, again + first * n, n}, UPWELL_NO_BARRIER);
        pass.add(UPWELL_SILU_LINEAR, {few, gates, few_up});
        pass.run(some);
    }
    pass.keep("out", out);
    pass.keep(up);
    pass.same("out", out, again);
    pass.same("x", up.x, up_again);
}

// Numbers that are not ordinary ones: they must come out the same too, and never as good numbers.
void special_numbers(Pass& pass, int format) {
    pass.begin(std::string("special numbers ") + kFormatNames[format]);
    const float kSpecial[] = {
        __builtin_nanf(""),  __builtin_inff(),           -__builtin_inff(),          1e-41f, -0.0f, 3e38f, 1e-38f, 0.0f,
        __builtin_nanf("1"), __builtin_nanf("0x3fffff"), -__builtin_nanf("0x3fffff")};
    int rows = 11, k = 256, n = 32;
    Matrix matrix(format, n, k, false, pass.random), gates(format, 2 * n, k, false, pass.random);
    Rows in(rows, k, true, kind_of(format)), up(rows, n, true, Kind::kFloats);
    for (int r = 0; r < rows; r++) {
        bool tiny = r == 3 || r == 4;  // all of the row
        for (int i = 0; i < k; i++) in.x[r * k + i] = tiny ? kSpecial[r] : pass.random.number();
        in.x[r * k + 5 * r] = kSpecial[r];
    }
    Array<float> out(rows * n);
    quantise(pass, in, k);
    pass.add(UPWELL_LINEAR, {in, matrix, out, n});
    pass.add(UPWELL_SILU_LINEAR, {in, gates, up});
    pass.run(rows);
    pass.keep("q", in.q);
    pass.keep("tokens", in.tokens);
    pass.keep("out", out);
    pass.keep("up", up.x);
}

void norm(Pass& pass, int columns, int heads, bool residual, Kind kind = Kind::kBlocks) {
    pass.begin("norm " + std::to_string(columns) + " by " + std::to_string(heads) +
               (kind == Kind::kTokens ? " tokens" : ""));
    int rows = 7, width = columns * heads;
    Rows in(rows, width, true, Kind::kFloats), out(rows, width, true, heads == 1 ? kind : Kind::kFloats);
    for (int64_t i = 0; i < in.x.count(); i++) in.x[i] = pass.random.number();
    Array<float> before(rows * width, pass.random), weight(columns, pass.random), sum(rows * width);
    pass.add(UPWELL_NORM, {in, residual ? Argument(before) : nullptr, weight, sum, out, columns, heads, 1e-5f});
    if (out.rows.q) pass.add(UPWELL_MARK, {out, columns});
    pass.run(rows);
    pass.keep(out);
    pass.keep("sum", sum);
}

void elementwise(Pass& pass, int columns) {
    pass.begin("silu_mul, gather, argmax of " + std::to_string(columns));
    int rows = 9;
    Array<float> x(rows * 2 * columns, pass.random);
    Rows made(rows, columns, true, Kind::kBlocks), gathered(3, columns, true, Kind::kTokens);
    pass.add(UPWELL_SILU_MUL, {x, 2 * columns, made, columns});
    pass.add(UPWELL_MARK, {made, columns});
    pass.add(UPWELL_GATHER, {x, 2 * columns, gathered, columns}, UPWELL_ROWS_SAMPLED);
    Array<int32_t> best(3), row{8, 0, 5};
    x[2 * columns * 5] = x[2 * columns * 5 + columns - 1] = 100;  // a tie
    x[2 * columns * 8 + columns - 1] = __builtin_nanf("");
    pass.add(UPWELL_ARGMAX, {gathered.x, columns, columns, best}, UPWELL_ROWS_SAMPLED);
    upwell_batch batch = {};
    batch.num_tokens = rows, batch.num_rows = 3, batch.logit_rows = row;
    pass.run(batch);
    pass.keep(made);
    pass.keep(gathered);
    pass.keep("best", best);
}

// A row with each of the limits, with all of them, and with ends that lie far down, on numbers among which some are
// equal.
void draw(Pass& pass, int vocab) {
    pass.begin("draw of " + std::to_string(vocab));
    Array<double> temperature{1.0, 0.7, 1.3, 1e-4, 1.0, 2.0, 3.0, 50.0}, top_p{1.0, 1.0, 0.9, 1.0, 0.5, 0.8, 0.99, 0.7};
    Array<double> min_p{0.0, 0.0, 0.0, 0.0, 0.05, 0.01, 1e-3, 0.0},
        uniform{0.0, 0.5, 0.999, 0.3, 0.75, 0.9999999, 0.6, 0.4};
    Array<int32_t> top_k{0, 5, 0, 0, 0, 40, 4000, 0}, out(top_k.count());
    Array<float> logits(top_k.count() * vocab);
    for (int64_t i = 0; i < logits.count(); i++) logits[i] = (float)pass.random.below(200) / 16;
    pass.add(UPWELL_DRAW, {logits, vocab, vocab, temperature, top_k, top_p, min_p, uniform, out});
    pass.run(top_k.count());
    pass.keep("weights", logits);
    pass.keep("out", out);
}

void embed(Pass& pass, int format) {
    pass.begin(std::string("embed ") + kFormatNames[format]);
    int n = 40, k = is_float(format) ? 77 : 512;
    Matrix matrix(format, n, k, false, pass.random);
    Array<int32_t> tokens{0, 39, 17, 16, 31};
    Array<float> out(tokens.count() * k);
    pass.add(UPWELL_EMBED, {matrix, out, k});
    upwell_batch batch = {};
    batch.num_tokens = tokens.count(), batch.token_ids = tokens;
    pass.run(batch);
    pass.keep("out", out);
}

void rope(Pass& pass, int head_dim) {
    pass.begin("rope " + std::to_string(head_dim));
    int heads = 3, width = heads * head_dim;
    Array<int32_t> positions{0, 11, 4, 7, 2};
    Array<float> table(2 * 12 * (head_dim / 2), pass.random), x(positions.count() * width, pass.random);
    Array<float> out(positions.count() * width);
    pass.add(UPWELL_ROPE, {x, width, out, width, heads, head_dim, table, 12});
    upwell_batch batch = {};
    batch.num_tokens = positions.count(), batch.positions = positions;
    pass.run(batch);
    pass.keep("out", out);
}

// ---- Routed experts

// Beyond one band of tokens, all of them go to the first expert.
void experts(Pass& pass, int format, int tokens) {
    pass.begin(std::string("experts ") + kFormatNames[format] + " tokens " + std::to_string(tokens));
    constexpr int kExperts = 6, kTop = 2;
    const bool many = tokens > 200;
    const int hidden = many ? 64 : 256, inner = many ? 32 : 256, pairs = tokens * kTop;
    const Kind kind = kind_of(format);
    std::vector<upwell_matrix> up, down;
    std::vector<Matrix*> matrices;
    for (int e = 0; e < 2 * kExperts; e++) {
        bool first = e < kExperts;
        matrices.push_back(new Matrix(format, first ? 2 * inner : hidden, first ? hidden : inner, false, pass.random));
        (first ? up : down).push_back(matrices.back()->matrix);
    }
    Rows in(tokens, hidden, true, kind), gathered(pairs, hidden, kind == Kind::kFloats, kind);
    Rows between(pairs, inner, kind != Kind::kBlocks, kind);
    for (int64_t i = 0; i < in.x.count(); i++) in.x[i] = pass.random.number();
    Array<int32_t> expert_of(pairs), row_of(pairs), token_of(pairs), first_row(kExperts + 1);
    Array<float> gate_of(pairs), result(pairs * hidden), out(tokens * hidden), scores(tokens * kExperts, pass.random);
    for (int t = 0; many && t < tokens; t++) scores[t * kExperts] = 50;
    upwell_experts table = {kExperts,  kTop,        tokens % 2,    hidden,       inner,
                            up.data(), down.data(), expert_of,     row_of,       gate_of,
                            token_of,  first_row,   gathered.rows, between.rows, result};
    Rows wanted(0, hidden, false, Kind::kFloats);
    wanted.rows = {kind == Kind::kFloats ? in.rows.x : nullptr, hidden, in.rows.q, in.rows.tokens};
    quantise(pass, in, hidden);
    pass.add(UPWELL_ROUTE, {&table, scores, kExperts});
    pass.add(UPWELL_EXPERT_ORDER, {&table});
    pass.add(UPWELL_EXPERT_GATHER, {&table, wanted});
    pass.add(UPWELL_EXPERT_UP, {&table});
    pass.add(UPWELL_EXPERT_MARK, {&table});
    pass.add(UPWELL_EXPERT_DOWN, {&table});
    pass.add(UPWELL_EXPERT_SUM, {&table, out, hidden});
    pass.run(tokens);
    pass.keep("expert_of", expert_of);
    pass.keep("gate_of", gate_of);
    pass.keep("row_of", row_of);
    pass.keep(between);
    pass.keep("out", out);
    for (Matrix* matrix : matrices) delete matrix;
}

// ---- Threads

// On one processor threads wait for each other, so the caller works alone for a while, and then with them again: always
// the same results. The threads took part in a program if it took more processor time than its caller's.
void rests(Pass& pass) {
    OneProcessor one;
    pass.begin("rests");
    constexpr int kRows = 3, kColumns = 64, kPrograms = 5000;
    Matrix matrix(UPWELL_Q8_0, kColumns, kColumns, false, pass.random);
    Rows first(kRows, kColumns, true, Kind::kBlocks), second(kRows, kColumns, true, Kind::kBlocks);
    for (int64_t i = 0; i < first.x.count(); i++) first.x[i] = pass.random.number();
    Array<float> out(kRows * kColumns), wanted(out.count());
    int changes = 0, wanted_changes = pass.threads() > 1 ? 4 : 0;
    bool together = true;
    for (int i = 0; i < kPrograms && (i == 0 || changes < wanted_changes); i++) {
        memset((void*)second.x, 0, second.x.bytes());
        memset((void*)out, 0, out.bytes());
        quantise(pass, first, kColumns);
        pass.add(UPWELL_LINEAR, {first, matrix, second.x, kColumns});
        quantise(pass, second, kColumns);
        pass.add(UPWELL_LINEAR, {second, matrix, out, kColumns});
        int64_t all = pass.cpu_nanoseconds(), own = own_cpu_nanoseconds();
        pass.run(kRows);
        own = own_cpu_nanoseconds() - own, all = pass.cpu_nanoseconds() - all;
        if ((all > own) != together) together = !together, changes++;
        if (!together) usleep(1000);
        if (i == 0) memcpy(wanted, out, out.bytes());
        pass.same("out", out, wanted);
    }
    if (changes < wanted_changes) pass.fail("the threads NEVER rested and came back");
    pass.keep("out", out);
}

void all_operations(Pass& pass) {
    constexpr int kManyRows[] = {256, 257, 300, 513};  // a band, and more of one, two and three
    for (int format = 0; format < kFormats; format++) {
        // With tiles of six rows, those up to 18 are not staged, and the rest end in tiles of every size.
        for (int rows = 1; rows <= 24; rows++) linear(pass, format, rows);
        linear(pass, format, 200);
        for (int rows : {1, 2, 9}) silu_linear(pass, format, rows);
        for (int rows : kManyRows) bands(pass, format, rows);
        special_numbers(pass, format);
        embed(pass, format);
    }
    for (int format : {UPWELL_Q4_0, UPWELL_Q4_K}) silu_linear(pass, format, 200);
    norm(pass, 576, 1, true);
    norm(pass, 70, 1, false);
    norm(pass, 70, 1, false, Kind::kTokens);
    norm(pass, 64, 3, false);
    for (int columns : {5, 64, 1003}) elementwise(pass, columns);
    for (int vocab : {7, 1003, 20011}) draw(pass, vocab);
    for (int head_dim : {8, 64, 80, 128, 256}) {
        rope(pass, head_dim);
        for (int kind = 0; kind < kCacheKinds; kind++)
            for (bool plain : {true, false}) attention(pass, kind, head_dim, plain);
    }
    for (int kind = 0; kind < kCacheKinds; kind++) {
        shared_segments(pass, kind);
        extreme_cache(pass, kind);
    }
    for (int format : {UPWELL_F16, UPWELL_Q8_0, UPWELL_Q4_K, UPWELL_W8A8})
        for (int tokens : {1, 2, 17}) experts(pass, format, tokens);
    for (int format : {UPWELL_F16, UPWELL_Q8_0, UPWELL_W8A8})
        for (int tokens : kManyRows) experts(pass, format, tokens);
    rests(pass);
}

// ---- Comparison

uint32_t canonical(const Written& of, size_t i) {  // all NaNs are one
    return of.floats && (of.words[i] & 0x7fffffff) > 0x7f800000 ? 0x7fc00000 : of.words[i];
}

bool agree(const std::vector<Written>& expected, const std::vector<Written>& got, const char* isa, int threads) {
    bool all = true;
    for (size_t i = 0; i < expected.size(); i++)
        for (size_t j = 0; j < expected[i].words.size(); j++) {
            uint32_t a = canonical(expected[i], j), b = canonical(got[i], j);
            if (a == b) continue;
            float x, y;
            memcpy(&x, &a, 4);
            memcpy(&y, &b, 4);
            printf("%s, %d threads: %s: word %zu is %08x (%g), but %08x (%g) in plain C++\n", isa, threads,
                   expected[i].name.c_str(), j, b, (double)y, a, (double)x);
            all = false;
            break;
        }
    return all;
}

uint64_t fingerprint(const std::vector<Written>& results) {
    uint64_t hash = 14695981039346656037u;
    for (const Written& each : results)
        for (size_t i = 0; i < each.words.size(); i++) hash = (hash ^ canonical(each, i)) * 1099511628211u;
    return hash;
}

// What the operations write, or the end of the test if they contradict themselves.
std::vector<Written> written_by(const char* isa, int threads) {
    if (!upwell_use(isa)) abort();
    Pass pass(threads);
    all_operations(pass);
    if (!pass.sound) {
        printf("so under %s with %d threads\n", isa, threads);
        exit(1);
    }
    return std::move(pass.written);
}

}  // namespace

// test_isas [THREADS [best]]: at most so many threads, 3 if nothing is said; and the first instruction set alone.
int main(int count, char** arguments) {
    int most_threads = count > 1 ? atoi(arguments[1]) : 3;
    std::vector<Written> expected = written_by("scalar", 1);
    std::string isas = upwell_isas();
    if (count > 2) isas.resize(std::min(isas.find(' '), isas.size()));
    bool sound = true;
    for (char* isa = strtok(isas.data(), " "); isa; isa = strtok(nullptr, " ")) {
        bool same = true;
        for (int threads = strcmp(isa, "scalar") ? 1 : 2; threads <= most_threads; threads++)
            same &= agree(expected, written_by(isa, threads), isa, threads);
        printf("%s: %zu results %s plain C++\n", isa, expected.size(), same ? "equal those of" : "DIFFER from");
        fflush(stdout);
        sound &= same;
    }
    printf("fingerprint %016llx\n", (unsigned long long)fingerprint(expected));
    return sound ? 0 : 1;
}
