// One group of cores of a 910B (a cube core and its two vector cores, or one vector core), run in order on the host.
//
// A core's scalar unit (S) gives instructions to pipes, which run beside one another. What orders two instructions is a
// flag from pipe to pipe, a barrier of a pipe, or a cross-core flag; vector clocks carry that, so that a race is found
// whatever the order in which the host happens to run. Cores are coroutines of one thread: nothing depends on timing.
#pragma once
#include <ucontext.h>

#include <array>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "memref.hpp"

namespace hivm {

enum Pipe : int { kS, kV, kM, kMte1, kMte2, kMte3, kFix, kPipes, kAll = kPipes };
constexpr const char* kPipeNames[kPipes] = {"S", "V", "M", "MTE1", "MTE2", "MTE3", "FIX"};
constexpr int kCores = 3, kEvents = 8, kFlags = 16, kMostSets = 15, kCellBytes = 32, kPageCells = 128;

// Instructions of one pipe in flight may overtake one another unless a pipe_barrier stands between them. The compiler
// puts one between dependent instructions of these pipes; it has none for the others, which are taken to be in order.
constexpr bool overtakes(int pipe) { return pipe == kV || pipe == kMte2 || pipe == kMte3; }

using Clock = std::array<uint32_t, 24>;  // of each core and pipe, the last instruction that is known to be finished
inline void join(Clock& into, const Clock& from) {
    for (size_t i = 0; i < into.size(); i++) into[i] = into[i] > from[i] ? into[i] : from[i];
}

// Who touched which of a cell's 32 bytes.
struct Touch {
    uint32_t instruction, mask, line;
    uint16_t group;
    uint8_t agent, write;
};
// The bytes that hold something, and of those, by width of the element that was written: i1, then 1, 2, 4, 8 bytes.
constexpr int kWidths = 5;
struct Cell {
    uint32_t written, widths[kWidths], count;
    Touch touches[6];
};
struct Page {
    uint32_t generation;
    Cell cells[kPageCells];
};

// An arena of a core, or an argument in global memory.
struct Memory {
    std::string name;
    char* data = nullptr;
    int64_t size = 0, alignment = 1;
    bool global = false, read_only = false, initialised = false;
    uint32_t generation = 0;  // raised to forget all that was written and touched
    int64_t read_bytes = 0, written_bytes = 0, peak = 0;
    std::vector<std::unique_ptr<Page>> pages;

    Cell& cell(int64_t index);
};

struct Event {
    bool set = false;
    uint32_t line = 0;
    Clock clock{};
};

struct Core {
    int index = 0;  // 0: cube; 1 and 2: vector
    bool done = false, started = false;
    int awaits = -1;  // the cross-core flag
    uint32_t line = 0;
    ucontext_t context{};
    Memory ub, l1, l0c;
    Clock known[kPipes] = {};  // what comes before anything that a pipe does next
    uint32_t issued[kPipes] = {};  // instructions so far
    Event events[kPipes][kPipes][kEvents];
    std::deque<Clock> received[kFlags][2];  // sets of a cross-core flag, of each core that sends them

    std::string place() const;
};

struct Counters {
    int64_t macs = 0, unaligned = 0, vector_operands = 0, saturated = 0, calls = 0;
    int64_t operations[kTypes] = {}, elements[kTypes] = {};
};

struct Machine {
    int64_t num_blocks = 0, most_calls = 0;
    bool mix = false, vectors_first = false, aborted = false;
    int group = 0;
    std::vector<std::unique_ptr<Memory>> globals;  // by argument; null: a scalar
    std::vector<uint64_t> scalars;
    Core cores[kCores];
    Core* core = nullptr;  // the one that runs
    ucontext_t scheduler{};
    Counters counters;
    std::vector<std::string> errors;
    std::set<std::string> seen;

    // Note an error once: `kind` and the line tell errors apart, and few are enough.
    void error(const std::string& kind, const std::string& what);
    Memory* find(const char* base);
};
extern Machine* machine;

// One instruction of a pipe, from its first operand to its last.
class Instruction {
  public:
    Instruction(const char* name, int pipe);
    // Whether these elements may be touched; if not, that has been reported. Views without elements always may.
    bool reads(const View& view) { return touches(view, false, true); }
    bool writes(const View& view) { return touches(view, true, true); }
    // Scratch memory: whatever was there is gone, and nothing that can be read has come.
    bool scribbles(const View& view);
    void fail(const std::string& what) const;
    const char* name() const { return name_; }
    Core& core() const { return core_; }

  private:
    const char* name_;
    Core& core_;
    int pipe_;
    uint32_t number_;

    bool touches(const View& view, bool write, bool valid);
    void touch(Memory& memory, const View& view, int64_t low, int64_t high, bool write, bool valid);
    void check_value(Memory& memory, const Cell& cell, int width, int64_t at, uint32_t mask);
    bool within(Memory& memory, const View& view, int64_t low, int64_t high, bool write);
    void collide(Memory& memory, Cell& cell, int64_t at, uint32_t mask, bool write);
    void keep(Cell& cell, uint32_t mask, bool write);
    bool after(const Touch& touch) const;
};

void set_flag(int from, int to, int64_t event);
void wait_flag(int from, int to, int64_t event);
void order_pipes(int from, int to);  // all that `from` was given comes before what `to` is given next

// What a library call looks like to the compiler: "memref<?xf32> f32 -> i32".
template <class T>
struct Spelling;
#define HIVM_SPELLING(TYPE, TEXT)                  \
    template <>                                    \
    struct Spelling<TYPE> {                        \
        static std::string text() { return TEXT; } \
    };
HIVM_SPELLING(float, "f32")
HIVM_SPELLING(Half, "f16")
HIVM_SPELLING(BFloat, "bf16")
HIVM_SPELLING(HalfBits, "f16")
HIVM_SPELLING(BFloatBits, "bf16")
HIVM_SPELLING(int8_t, "i8")
HIVM_SPELLING(int16_t, "i16")
HIVM_SPELLING(int32_t, "i32")
HIVM_SPELLING(int64_t, "i64")
HIVM_SPELLING(Flag, "i1")
HIVM_SPELLING(Bit, "i1")
HIVM_SPELLING(void, "")
#undef HIVM_SPELLING
template <class T, int R>
struct Spelling<MemRef<T, R>*> {
    static std::string text() {
        std::string text = "memref<";
        for (int i = 0; i < R; i++) text += "?x";
        return text + Spelling<T>::text() + ">";
    }
};

std::map<std::string, std::string>& catalogue();
struct Listed {
    template <class R, class... A>
    Listed(const char* name, R (*)(A...)) {
        std::string text;
        ((text += Spelling<A>::text() + " "), ...);
        catalogue()[name] = text + "-> " + Spelling<R>::text();
    }
};
// A library call and its place in the catalogue.
#define HIVM_CALL(NAME, ARGUMENTS, ...)                            \
    extern "C" void _mlir_ciface_##NAME ARGUMENTS { __VA_ARGS__; } \
    HIVM_LIST(NAME)
#define HIVM_LIST(NAME) static const hivm::Listed listed_##NAME(#NAME, &_mlir_ciface_##NAME)

}  // namespace hivm
