// What an instruction may touch, and what comes before it.
#include "core.hpp"

#include <algorithm>
#include <cinttypes>
#include <cstdio>

namespace hivm {

Machine* machine = nullptr;

std::map<std::string, std::string>& catalogue() {
    static std::map<std::string, std::string> calls;
    return calls;
}

namespace {
constexpr size_t kMostErrors = 60;

std::string format(const char* text, int64_t a, int64_t b = 0) {
    char buffer[160];
    snprintf(buffer, sizeof(buffer), text, a, b);
    return buffer;
}
std::string agent_name(int agent) {
    const char* cores[kCores] = {"cube", "vector 0", "vector 1"};
    return std::string(cores[agent / kPipes]) + " " + kPipeNames[agent % kPipes];
}
}  // namespace

void Machine::error(const std::string& kind, const std::string& what) {
    if (!seen.insert(kind + (core ? format(" %" PRId64 " %" PRId64, core->line, core->index) : "")).second) return;
    if (errors.size() >= kMostErrors) return;
    errors.push_back((core ? core->place() + ": " : format("group %" PRId64 ": ", group)) + what);
}

Memory* Machine::find(const char* base) {
    for (Memory* memory : {&core->ub, &core->l1, &core->l0c})
        if (memory->data == base) return memory;
    for (auto& memory : globals)
        if (memory && memory->data == base) return memory.get();
    return nullptr;
}

std::string Core::place() const {
    const char* kinds[kCores] = {"cube", "vector 0", "vector 1"};
    return format("group %" PRId64, machine->group) + " " + kinds[index] + format(", line %" PRId64, line);
}

Cell& Memory::cell(int64_t index) {
    auto& page = pages[(size_t)(index / kPageCells)];
    if (!page) page.reset(new Page{});
    if (page->generation != generation) {
        for (Cell& cell : page->cells) cell = Cell{};
        page->generation = generation;
    }
    return page->cells[index % kPageCells];
}

// ---- Instructions

Instruction::Instruction(const char* name, int pipe) : name_(name), core_(*machine->core), pipe_(pipe) {
    join(core_.known[pipe], core_.known[kS]);
    number_ = ++core_.issued[pipe];
    if (!overtakes(pipe)) core_.known[pipe][(size_t)(core_.index * kPipes + pipe)] = number_ - 1;
}

void Instruction::fail(const std::string& what) const { machine->error(what, std::string(name_) + ": " + what); }

bool Instruction::after(const Touch& touch) const {
    return touch.group == machine->group && core_.known[pipe_][touch.agent] >= touch.instruction;
}

void Instruction::collide(Memory& memory, Cell& cell, int64_t at, uint32_t mask, bool write) {
    int own = core_.index * kPipes + pipe_;
    for (uint32_t i = 0; i < cell.count; i++) {
        const Touch& touch = cell.touches[i];
        if (!(touch.mask & mask) || !(write || touch.write) || after(touch)) continue;
        bool same_group = touch.group == machine->group;
        if (same_group && touch.agent == own && touch.instruction == number_) continue;
        std::string other = same_group ? agent_name(touch.agent) : format("group %" PRId64, touch.group);
        machine->error("race " + std::to_string(touch.line),
                       std::string("race: ") + name_ + (write ? " writes " : " reads ") + memory.name +
                           format(" at %" PRId64, at) + " what " + other + (touch.write ? " writes" : " reads") +
                           format(" at line %" PRId64, touch.line) + ", and nothing orders them");
    }
}

// Remember this instruction; forget what it comes after, and its pipe's earlier reads of the same bytes.
void Instruction::keep(Cell& cell, uint32_t mask, bool write) {
    uint8_t own = (uint8_t)(core_.index * kPipes + pipe_);
    uint32_t kept = 0;
    for (uint32_t i = 0; i < cell.count; i++) {
        Touch& touch = cell.touches[i];
        bool covered = !(touch.mask & ~mask), mine = touch.group == machine->group && touch.agent == own;
        if (covered && (write ? after(touch) || mine : !touch.write && mine)) continue;
        cell.touches[kept++] = touch;
    }
    if (kept == sizeof(cell.touches) / sizeof(Touch)) std::move(cell.touches + 1, cell.touches + kept--, cell.touches);
    cell.touches[kept] = {number_, mask, core_.line, (uint16_t)machine->group, own, write};
    cell.count = kept + 1;
}

bool Instruction::within(Memory& memory, const View& view, int64_t low, int64_t high, bool write) {
    const char* verb = write ? " writes " : " reads ";
    if (low < 0 || high > memory.size) {
        machine->error("out of " + memory.name, std::string(name_) + verb + memory.name +
                                                    format(" at %" PRId64 " to %" PRId64, low, high) +
                                                    format(", which ends at %" PRId64, memory.size));
        return false;
    }
    if (write && memory.read_only) {
        machine->error("read-only " + memory.name, std::string(name_) + " writes " + memory.name + ", an input");
        return false;
    }
    bool vector = pipe_ == kV && !memory.global;
    int64_t start = (view.data - view.base) + (view.bytes ? view.offset * view.bytes : view.offset >> 3);
    if (vector) machine->counters.vector_operands++;
    if (start % memory.alignment == 0) return true;
    if (vector) machine->counters.unaligned++;  // the library then works by the scalar unit
    else if (!memory.global && pipe_ != kS)
        machine->error("misaligned", std::string(name_) + verb + memory.name + format(" at %" PRId64, start) +
                                         format(", not a multiple of %" PRId64, memory.alignment));
    return true;
}

bool Instruction::touches(const View& view, bool write, bool valid) {
    if (view.count() <= 0) return true;
    Memory* memory = machine->find(view.base);
    if (!memory) {
        fail("an operand lies in no memory of this core");
        return false;
    }
    int64_t low = INT64_MAX, high = INT64_MIN, bytes = 0;
    each_run(view, [&](int64_t from, int64_t to) {
        low = std::min(low, from), high = std::max(high, to), bytes += to - from;
    });
    if (!within(*memory, view, low, high, write)) return false;
    (write ? memory->written_bytes : memory->read_bytes) += bytes;
    memory->peak = std::max(memory->peak, high);
    if (memory->read_only) return true;
    each_run(view, [&](int64_t from, int64_t to) { touch(*memory, view, from, to, write, valid); });
    return true;
}

// What is read must have been written, and with elements of the same width: a buffer that another one was put upon
// shows by that even where the order of the two is sound.
void Instruction::check_value(Memory& memory, const Cell& cell, int width, int64_t at, uint32_t mask) {
    if (!memory.initialised && (mask & ~cell.written))
        machine->error("uninitialised " + memory.name,
                       std::string(name_) + " reads " + memory.name +
                           format(" at %" PRId64 ", where nothing has been written", at));
    for (int other = 0; other < kWidths; other++)
        if (other != width && (mask & cell.widths[other]))
            machine->error("width " + memory.name, std::string(name_) + " reads " + memory.name +
                                                       format(" at %" PRId64 ", written as another type", at));
}

void Instruction::touch(Memory& memory, const View& view, int64_t low, int64_t high, bool write, bool valid) {
    int width = view.bytes == 8 ? 4 : view.bytes == 4 ? 3 : (int)view.bytes;
    for (int64_t index = low / kCellBytes; index * kCellBytes < high; index++) {
        int64_t start = index * kCellBytes, from = std::max(low - start, (int64_t)0);
        int64_t to = std::min(high - start, (int64_t)kCellBytes);
        uint32_t mask = (to == kCellBytes ? ~0u : (1u << to) - 1) & ~((1u << from) - 1);
        Cell& cell = memory.cell(index);
        if (!write) check_value(memory, cell, width, start + from, mask);
        collide(memory, cell, start + from, mask, write);
        keep(cell, mask, write);
        if (!write) continue;
        cell.written = valid ? cell.written | mask : cell.written & ~mask;
        for (int i = 0; i < kWidths; i++) cell.widths[i] &= ~mask;
        if (valid) cell.widths[width] |= mask;
    }
}

bool Instruction::scribbles(const View& view) {
    if (view.count() <= 0) return true;
    if (!touches(view, true, false)) return false;
    each_run(view, [&](int64_t from, int64_t to) { memset(view.base + from, 0xff, (size_t)(to - from)); });
    return true;
}

// ---- Order

namespace {
Clock finished(Core& core, int pipe) {
    join(core.known[pipe], core.known[kS]);
    Clock clock = core.known[pipe];
    clock[(size_t)(core.index * kPipes + pipe)] = core.issued[pipe];
    return clock;
}
std::string event_name(int from, int to, int64_t event) {
    return std::string("flag ") + kPipeNames[from] + " -> " + kPipeNames[to] + format(" %" PRId64, event);
}
bool possible(int from, int to, int64_t event) {
    if (from < 0 || from >= kPipes || to < 0 || to >= kPipes || event < 0 || event >= kEvents) {
        machine->error("event", format("a flag with event %" PRId64 " does not exist", event));
        return false;
    }
    return true;
}
}  // namespace

void order_pipes(int from, int to) {
    Core& core = *machine->core;
    join(core.known[to], finished(core, from));
}

void set_flag(int from, int to, int64_t event) {
    if (!possible(from, to, event)) return;
    Core& core = *machine->core;
    Event& flag = core.events[from][to][event];
    if (flag.set)
        machine->error("set twice",
                       event_name(from, to, event) + format(" is set, and has been since line %" PRId64, flag.line));
    flag = {true, core.line, finished(core, from)};
}

void wait_flag(int from, int to, int64_t event) {
    if (!possible(from, to, event)) return;
    Core& core = *machine->core;
    Event& flag = core.events[from][to][event];
    if (!flag.set)
        return machine->error("never set", event_name(from, to, event) + " is waited for, and nothing sets it");
    join(core.known[to], flag.clock);
    flag.set = false;
}

namespace {
void count_call(uint32_t line) {
    machine->core->line = line;
    if (++machine->counters.calls <= machine->most_calls) return;
    machine->core = nullptr;
    machine->error("calls", "stopped: more instructions than a run may have");
    machine->aborted = true;
    setcontext(&machine->scheduler);
}

void pointer(MemRef<int8_t, 1>* to, Memory& memory, int64_t address, int64_t bytes) {
    if (address < 0 || address + bytes > memory.size)
        machine->error("cast out of " + memory.name, "a pointer_cast to " + memory.name +
                                                         format(" at %" PRId64, address) +
                                                         format(", %" PRId64 " bytes, leads out of it", bytes));
    if (address % memory.alignment)
        machine->error("cast misaligned " + memory.name,
                       "a pointer_cast to " + memory.name + format(" at %" PRId64 " is misaligned", address));
    *to = {memory.data, memory.data, 0, {memory.size}, {1}};
}

// Wait until the other cores of the group have set the flag, letting them run. What comes later on the waiting pipe is
// ordered behind it; if that is the scalar unit, which issues to all pipes, everything is.
void await(Core& core, int pipe, int64_t flag) {
    auto& sets = core.received[flag];
    size_t senders = core.index ? 1 : 2;
    core.awaits = (int)flag;
    while (sets[0].empty() || (senders > 1 && sets[1].empty())) swapcontext(&core.context, &machine->scheduler);
    core.awaits = -1;
    for (size_t i = 0; i < senders; i++) {
        join(core.known[pipe], sets[i].front());
        sets[i].pop_front();
    }
}
void send(std::deque<Clock>& sets, const Clock& clock, int64_t flag) {
    sets.push_back(clock);
    if (sets.size() > (size_t)kMostSets)
        machine->error("counter", format("cross-core flag %" PRId64 " is set more than 15 times unanswered", flag));
}
}  // namespace
}  // namespace hivm

using namespace hivm;

extern "C" {
void hivm_at(int64_t line) { count_call((uint32_t)line); }
void _mlir_ciface_hivm_ub(MemRef<int8_t, 1>* to, int64_t address, int64_t bytes) {
    pointer(to, machine->core->ub, address, bytes);
}
void _mlir_ciface_hivm_cbuf(MemRef<int8_t, 1>* to, int64_t address, int64_t bytes) {
    pointer(to, machine->core->l1, address, bytes);
}
void _mlir_ciface_hivm_cc(MemRef<int8_t, 1>* to, int64_t address, int64_t bytes) {
    pointer(to, machine->core->l0c, address, bytes);
}
int64_t hivm_block_idx() { return machine->group; }
int64_t hivm_block_num() { return machine->num_blocks; }
int64_t hivm_sub_block_idx() { return machine->core->index ? machine->core->index - 1 : 0; }
int64_t hivm_sub_block_num() { return machine->mix ? 2 : 1; }
void hivm_set_flag(int64_t from, int64_t to, int64_t event) { set_flag((int)from, (int)to, event); }
void hivm_wait_flag(int64_t from, int64_t to, int64_t event) { wait_flag((int)from, (int)to, event); }
void hivm_pipe_barrier(int64_t pipe) {
    Core& core = *machine->core;
    if (pipe != kAll) {
        core.known[pipe] = finished(core, (int)pipe);
        return;
    }
    Clock all{};
    for (int i = 0; i < kPipes; i++) join(all, finished(core, i));
    for (Clock& known : core.known) known = all;
}
void hivm_block_set(int64_t pipe, int64_t flag) {
    if (flag < 0 || flag >= kFlags) return machine->error("flag", "a cross-core flag that does not exist is set");
    Core& core = *machine->core;
    Clock clock = finished(core, (int)pipe);
    if (core.index) send(machine->cores[0].received[flag][core.index - 1], clock, flag);
    else
        for (int vector = 1; vector < kCores; vector++) send(machine->cores[vector].received[flag][0], clock, flag);
}
void hivm_block_wait(int64_t pipe, int64_t flag) {
    if (flag < 0 || flag >= kFlags)
        return machine->error("flag", "a cross-core flag that does not exist is waited for");
    await(*machine->core, (int)pipe, flag);
}
}
