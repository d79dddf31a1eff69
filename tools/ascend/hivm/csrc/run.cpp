// Running a kernel on one group of cores after another, and what Python asks for.
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>

#include "core.hpp"

using namespace hivm;

namespace {
constexpr size_t kStackBytes = 8 << 20;
constexpr uint8_t kUnset = 0xff;  // bytes of memory that nothing has been written to: NaN

struct Region {
    char* data;
    size_t bytes;
    explicit Region(size_t size)
        : data((char*)mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)), bytes(size) {
        if (data == MAP_FAILED) abort();
    }
    Region(const Region&) = delete;
    Region& operator=(const Region&) = delete;
    ~Region() { munmap(data, bytes); }
};

void (*entries[2])();  // of the cube core and of a vector core

void begin_core() {
    Core& core = *machine->core;
    entries[core.index ? 1 : 0]();
    core.done = true;
    setcontext(&machine->scheduler);
}

void arena(Memory& memory, const char* name, Region& region, int64_t alignment) {
    memory.name = name;
    memory.data = region.data;
    memory.size = (int64_t)region.bytes;
    memory.alignment = alignment;
    memory.pages.resize(region.bytes / (kCellBytes * kPageCells));
}

void prepare(Core& core, Region& stack) {
    core.done = core.started = false;
    core.awaits = -1;
    core.line = 0;
    for (int i = 0; i < kPipes; i++) core.known[i] = {}, core.issued[i] = 0;
    for (auto& from : core.events)
        for (auto& to : from)
            for (Event& event : to) event = {};
    for (auto& flag : core.received)
        for (auto& sets : flag) sets.clear();
    for (Memory* memory : {&core.ub, &core.l1, &core.l0c}) {
        memset(memory->data, kUnset, (size_t)memory->size);
        memory->generation++;
    }
    getcontext(&core.context);
    core.context.uc_stack.ss_sp = stack.data;
    core.context.uc_stack.ss_size = stack.bytes;
    core.context.uc_link = nullptr;
    makecontext(&core.context, begin_core, 0);
}

// Whether a core has come nearer to its end.
bool resume(Core& core) {
    if (core.done || machine->aborted) return false;
    if (core.awaits >= 0) {
        auto& sets = core.received[core.awaits];
        if (sets[0].empty() || (!core.index && sets[1].empty())) return false;
    }
    machine->core = &core;
    swapcontext(&machine->scheduler, &core.context);
    return true;
}

void check_left(Core& core) {
    machine->core = &core;
    for (int from = 0; from < kPipes; from++)
        for (int to = 0; to < kPipes; to++)
            for (const Event& event : core.events[from][to])
                if (event.set) {
                    core.line = event.line;
                    machine->error("left set", std::string("flag ") + kPipeNames[from] + " -> " + kPipeNames[to] +
                                                   " is still set at the end");
                }
    for (int flag = 0; flag < kFlags; flag++)
        if (core.received[flag][0].size() + core.received[flag][1].size())
            machine->error("left over " + std::to_string(flag),
                           "cross-core flag " + std::to_string(flag) + " is still set at the end");
}

void run_group(Region (&stacks)[kCores]) {
    int first = machine->mix ? 0 : 1, last = machine->mix ? kCores : 2;
    for (int i = first; i < last; i++) prepare(machine->cores[i], stacks[i]);
    for (bool going = true; going;) {
        going = false;
        for (int i = first; i < last; i++)
            going |= resume(machine->cores[machine->vectors_first ? first + last - 1 - i : i]);
    }
    if (machine->aborted) return;
    bool stuck = false;
    for (int i = first; i < last; i++) stuck |= !machine->cores[i].done;
    for (int i = first; i < last; i++) {
        Core& core = machine->cores[i];
        machine->core = &core;
        if (!core.done)
            machine->error("deadlock", "deadlock: cross-core flag " + std::to_string(core.awaits) + " is never set");
        if (!stuck) check_left(core);
    }
}

void append(std::string& text, const char* name, int64_t value) {
    text += "\"" + std::string(name) + "\": " + std::to_string(value) + ", ";
}

std::string escaped(const std::string& text) {
    std::string out;
    for (char c : text) out += c == '"' || c == '\\' ? std::string("\\") + c : std::string(1, c);
    return out;
}

std::string report() {
    const Counters& counters = machine->counters;
    std::string text = "{";
    append(text, "macs", counters.macs);
    append(text, "unaligned_operands", counters.unaligned);
    append(text, "vector_operands", counters.vector_operands);
    append(text, "saturated", counters.saturated);
    append(text, "instructions", counters.calls);
    int64_t peaks[3] = {};
    for (const Core& core : machine->cores) {
        const Memory* memories[3] = {&core.ub, &core.l1, &core.l0c};
        for (int i = 0; i < 3; i++) peaks[i] = std::max(peaks[i], memories[i]->peak);
    }
    append(text, "peak_ub", peaks[0]), append(text, "peak_l1", peaks[1]), append(text, "peak_l0c", peaks[2]);
    const char* names[kTypes] = {"float", "half", "bfloat16_t", "int8_t", "int16_t", "int32_t", "int64_t", "bool"};
    text += "\"vector\": {";
    for (int i = 0; i < kTypes; i++)
        text += (i ? ", \"" : "\"") + std::string(names[i]) + "\": [" + std::to_string(counters.operations[i]) + ", " +
                std::to_string(counters.elements[i]) + "]";
    text += "}, \"traffic\": {";
    bool comma = false;
    for (size_t i = 0; i < machine->globals.size(); i++) {
        const Memory* memory = machine->globals[i].get();
        if (!memory) continue;
        text += (comma ? ", \"" : "\"") + std::to_string(i) + "\": [" + std::to_string(memory->read_bytes) + ", " +
                std::to_string(memory->written_bytes) + "]";
        comma = true;
    }
    text += "}, \"errors\": [";
    for (size_t i = 0; i < machine->errors.size(); i++)
        text += (i ? ", \"" : "\"") + escaped(machine->errors[i]) + "\"";
    return text + "]}";
}
}  // namespace

extern "C" {
struct hivm_argument {
    const char* name;
    void* data;  // null: a scalar
    int64_t bytes;
    uint64_t bits;  // of a scalar
    int32_t read_only, initialised;
};

struct hivm_launch {
    void (*cube)();  // null: the kernel has vector cores alone
    void (*vector)();
    const hivm_argument* arguments;
    int64_t num_arguments, num_blocks, most_calls;
    int32_t vectors_first;
};

const char* hivm_catalogue() {
    static std::string text;
    if (text.empty())
        for (auto& [name, signature] : catalogue()) text += name + "\t" + signature + "\n";
    return text.c_str();
}

// Run a kernel; the answer is JSON and holds until the next run.
const char* hivm_run(const hivm_launch* launch) {
    static std::string text;
    Machine whole;
    machine = &whole;
    whole.mix = launch->cube;
    whole.num_blocks = launch->num_blocks;
    whole.most_calls = launch->most_calls;
    whole.vectors_first = launch->vectors_first;
    entries[0] = launch->cube, entries[1] = launch->vector;
    for (int64_t i = 0; i < launch->num_arguments; i++) {
        const hivm_argument& argument = launch->arguments[i];
        whole.scalars.push_back(argument.bits);
        whole.globals.emplace_back(argument.data ? new Memory : nullptr);
        if (!argument.data) continue;
        Memory& memory = *whole.globals.back();
        memory.name = argument.name, memory.data = (char*)argument.data, memory.size = argument.bytes;
        memory.global = true, memory.read_only = argument.read_only, memory.initialised = argument.initialised;
        memory.pages.resize((size_t)(argument.bytes / (kCellBytes * kPageCells)) + 1);
    }
    Region ub[kCores] = {Region(192 << 10), Region(192 << 10), Region(192 << 10)};
    Region l1[kCores] = {Region(512 << 10), Region(512 << 10), Region(512 << 10)};
    Region l0c[kCores] = {Region(128 << 10), Region(128 << 10), Region(128 << 10)};
    Region stacks[kCores] = {Region(kStackBytes), Region(kStackBytes), Region(kStackBytes)};
    for (int i = 0; i < kCores; i++) {
        whole.cores[i].index = i;
        arena(whole.cores[i].ub, "UB", ub[i], 32);
        arena(whole.cores[i].l1, "L1", l1[i], 32);
        arena(whole.cores[i].l0c, "L0C", l0c[i], 64);
    }
    for (whole.group = 0; whole.group < whole.num_blocks && !whole.aborted; whole.group++) run_group(stacks);
    text = report();
    machine = nullptr;
    return text.c_str();
}
}

// ---- The kernel's parameters

namespace {
template <class T>
T scalar_argument(int64_t index) {
    T value;
    memcpy(&value, &machine->scalars[(size_t)index], sizeof(T));
    return value;
}
void buffer_argument(MemRef<int8_t, 1>* to, int64_t index, int64_t bytes) {
    Memory& memory = *machine->globals[(size_t)index];
    *to = {memory.data, memory.data, 0, {memory.size / bytes}, {1}};
}
}  // namespace

#define HIVM_ARGUMENT(NAME, PASSED)                                                                \
    extern "C" PASSED hivm_scalar_##NAME(int64_t index) { return scalar_argument<PASSED>(index); } \
    extern "C" void _mlir_ciface_hivm_buffer_##NAME(MemRef<int8_t, 1>* to, int64_t index) {        \
        buffer_argument(to, index, (int64_t)sizeof(PASSED));                                       \
    }
HIVM_ARGUMENT(f32, float)
HIVM_ARGUMENT(f16, HalfBits)
HIVM_ARGUMENT(bf16, BFloatBits)
HIVM_ARGUMENT(i1, bool)
HIVM_ARGUMENT(i8, int8_t)
HIVM_ARGUMENT(i16, int16_t)
HIVM_ARGUMENT(i32, int32_t)
HIVM_ARGUMENT(i64, int64_t)
