#include "ptxvm/allocate.h"

#include <algorithm>
#include <climits>

#include "ptxvm/decode.h"

namespace lumos::ptxvm {
namespace {

using Set = std::vector<uint64_t>;

bool contains(const Set& set, int i) { return set[i / 64] >> (i % 64) & 1; }
void insert(Set* set, int i) { (*set)[i / 64] |= 1ull << (i % 64); }
void erase(Set* set, int i) { (*set)[i / 64] &= ~(1ull << (i % 64)); }

void collect(const Operand& operand, std::vector<int>* registers) {
  if (operand.reg >= 0) registers->push_back(operand.reg);
  for (const Operand& element : operand.elements) collect(element, registers);
}

struct BasicBlock {
  int begin, end;
  std::vector<int> successors;
  Set live_in, live_out;
};

bool ends_block(const Instruction& i) {
  return i.name == "bra" || i.name == "brx" || i.name == "exit" || i.name == "ret" || i.name == "trap";
}

std::vector<BasicBlock> basic_blocks(const Function& kernel) {
  const int n = static_cast<int>(kernel.instructions.size());
  std::vector<bool> leads(n + 1, false);
  leads[0] = leads[n] = true;
  for (const auto& [name, index] : kernel.labels) leads[index] = true;
  for (int i = 0; i < n; ++i) {
    if (ends_block(kernel.instructions[i])) leads[i + 1] = true;
  }
  std::vector<int> block_of(n + 1, -1);
  std::vector<BasicBlock> blocks;
  for (int begin = 0; begin < n;) {
    int end = begin + 1;
    while (!leads[end]) ++end;
    block_of[begin] = static_cast<int>(blocks.size());
    blocks.push_back({begin, end, {}, {}, {}});
    begin = end;
  }
  for (BasicBlock& block : blocks) {
    const Instruction& last = kernel.instructions[block.end - 1];
    auto add = [&](int index) {
      if (index < n) block.successors.push_back(block_of[index]);
    };
    if (last.name == "bra") {
      add(kernel.labels.at(last.operands.at(0).name));
    } else if (last.name == "brx") {
      for (const std::string& label : kernel.branch_targets.at(last.operands.at(1).name)) add(kernel.labels.at(label));
    }
    if (!ends_block(last) || last.guard >= 0) add(block.end);
  }
  return blocks;
}

// Live registers at both ends of each block, by iteration from the uses backwards.
void find_lives(const std::vector<RegisterUse>& uses, const Function& kernel, std::vector<BasicBlock>* blocks) {
  const size_t words = kernel.registers.size() / 64 + 1;
  std::vector<Set> reads(blocks->size(), Set(words)), kills(blocks->size(), Set(words));
  for (size_t b = 0; b < blocks->size(); ++b) {
    BasicBlock& block = (*blocks)[b];
    block.live_in = block.live_out = Set(words);
    for (int i = block.end; i-- > block.begin;) {
      const bool guarded = kernel.instructions[i].guard >= 0;
      for (int reg : uses[i].writes) {
        if (guarded) continue;  // the old value may stay
        insert(&kills[b], reg);
        erase(&reads[b], reg);
      }
      for (int reg : uses[i].reads) insert(&reads[b], reg);
    }
  }
  for (bool changed = true; changed;) {
    changed = false;
    for (size_t b = blocks->size(); b-- > 0;) {
      BasicBlock& block = (*blocks)[b];
      for (size_t w = 0; w < words; ++w) {
        uint64_t out = 0;
        for (int successor : block.successors) out |= (*blocks)[successor].live_in[w];
        const uint64_t in = reads[b][w] | (out & ~kills[b][w]);
        changed = changed || in != block.live_in[w];
        block.live_out[w] = out;
        block.live_in[w] = in;
      }
    }
  }
}

uint32_t row_bytes(Type type) { return type == Type::pred ? 4 : size_bytes(type) == 8 ? 256 : 128; }

}  // namespace

RegisterUse register_use(const Instruction& instruction) {
  RegisterUse use;
  const int num_written = num_destinations(instruction);
  for (int i = 0; i < static_cast<int>(instruction.operands.size()); ++i) {
    const Operand& operand = instruction.operands[i];
    const bool written = i < num_written && operand.kind != Operand::Kind::address;
    collect(operand, written ? &use.writes : &use.reads);
  }
  if (instruction.guard >= 0) use.reads.push_back(instruction.guard);
  return use;
}

Allocation allocate(const Function& kernel, uint32_t begin) {
  const int num_registers = static_cast<int>(kernel.registers.size());
  std::vector<RegisterUse> uses;
  for (const Instruction& instruction : kernel.instructions) uses.push_back(register_use(instruction));
  std::vector<BasicBlock> blocks = basic_blocks(kernel);
  find_lives(uses, kernel, &blocks);

  struct Life {
    int reg, begin = INT_MAX, end = -1;
  };
  std::vector<Life> lives(num_registers);
  auto extend = [&](int reg, int place) {
    lives[reg].begin = std::min(lives[reg].begin, place);
    lives[reg].end = std::max(lives[reg].end, place);
  };
  for (const BasicBlock& block : blocks) {
    for (int reg = 0; reg < num_registers; ++reg) {
      if (contains(block.live_in, reg)) extend(reg, block.begin);
      if (contains(block.live_out, reg)) extend(reg, block.end - 1);
    }
    for (int i = block.begin; i < block.end; ++i) {
      for (int reg : uses[i].reads) extend(reg, i);
      for (int reg : uses[i].writes) extend(reg, i);
    }
  }

  Allocation result;
  result.rows.assign(num_registers, 0);
  result.tracked.assign(num_registers, 0);
  result.end = begin;
  for (int reg = 0; reg < num_registers; ++reg) lives[reg].reg = reg;
  std::sort(lives.begin(), lives.end(), [](const Life& a, const Life& b) { return a.begin < b.begin; });
  std::vector<std::pair<int, int>> busy;  // (last use, register)
  std::vector<uint32_t> free_rows[3];     // by size
  auto size_class = [](uint32_t bytes) { return bytes == 4 ? 0 : bytes == 128 ? 1 : 2; };
  for (const Life& life : lives) {
    if (life.end < 0) continue;  // declared, never used
    for (size_t i = 0; i < busy.size();) {
      if (busy[i].first < life.begin) {
        const int reg = busy[i].second;
        free_rows[size_class(row_bytes(kernel.registers[reg].type))].push_back(result.rows[reg]);
        busy[i] = busy.back();
        busy.pop_back();
      } else {
        ++i;
      }
    }
    const uint32_t bytes = row_bytes(kernel.registers[life.reg].type);
    auto& free = free_rows[size_class(bytes)];
    if (free.empty()) {
      if (bytes == 4) {  // a line of predicates at a time
        for (uint32_t i = 16; i-- > 0;) free.push_back(result.end + 4 * i);
        result.end += 64;
      } else {
        free.push_back(result.end);
        result.end += bytes;
        ++result.num_rows;
      }
    }
    result.rows[life.reg] = free.back();
    free.pop_back();
    busy.push_back({life.end, life.reg});
  }

  // Registers that some path reads before it sets them, and what is moved out of them.
  std::vector<bool> tracked(num_registers, false);
  for (int reg = 0; reg < num_registers && !blocks.empty(); ++reg) tracked[reg] = contains(blocks[0].live_in, reg);
  for (bool changed = true; changed;) {
    changed = false;
    for (size_t i = 0; i < uses.size(); ++i) {
      if (kernel.instructions[i].name != "mov" && kernel.instructions[i].name != "selp") continue;
      for (int from : uses[i].reads) {
        if (!tracked[from] || from == kernel.instructions[i].guard) continue;
        for (int to : uses[i].writes) {
          changed = changed || !tracked[to];
          tracked[to] = true;
        }
      }
    }
  }
  for (int reg = 0; reg < num_registers; ++reg) {
    if (!tracked[reg]) continue;
    result.tracked[reg] = result.end;
    result.end += 4;
  }
  result.end = (result.end + 63) / 64 * 64;
  return result;
}

}  // namespace lumos::ptxvm
