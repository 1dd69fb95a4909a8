#include "ptxvm/scopes.h"

#include <algorithm>

namespace lumos::ptxvm {

void Scopes::open() {
  scopes_.push_back({current_, {}, {}});
  current_ = static_cast<int>(scopes_.size()) - 1;
}

bool Scopes::declare_register(const std::string& name, Type type) {
  const int number = static_cast<int>(function_.registers.size());
  if (!scopes_[current_].names.insert({name, {Name::Kind::reg, number, ""}}).second) return false;
  function_.registers.push_back({name, type});
  return true;
}

bool Scopes::declare_registers(const std::string& prefix, int count, Type type) {
  return scopes_[current_].ranges.insert({prefix, {count, type}}).second;
}

std::string Scopes::declare(const std::string& name, Name::Kind kind) {
  // No name of PTX has an @.
  std::string unique = name;
  for (int i = current_; file_names_.count(unique) + taken_.count(unique) > 0; ++i)
    unique = name + "@" + std::to_string(i);
  if (!scopes_[current_].names.insert({name, {kind, -1, unique}}).second) return "";
  taken_.insert(unique);
  return unique;
}

const Name* Scopes::find(const std::string& name, int scope) {
  for (; scope >= 0; scope = scopes_[scope].parent) {
    const auto found = scopes_[scope].names.find(name);
    if (found != scopes_[scope].names.end()) return &found->second;
    if (const Name* made = find_in_ranges(name, &scopes_[scope])) return made;
  }
  return nullptr;
}

const Name* Scopes::find_in_ranges(const std::string& name, Scope* scope) {
  // The prefix may end in digits itself: every way to split the name is tried.
  size_t index = 0, factor = 1;
  for (size_t split = name.size(); split > 1 && name.size() - split < 9; factor *= 10) {
    const char digit = name[--split];
    if (digit < '0' || digit > '9') break;
    index += factor * (digit - '0');
    if (digit == '0' && split + 1 < name.size()) continue;  // registers are counted without leading zeros
    const auto found = scope->ranges.find(name.substr(0, split));
    if (found == scope->ranges.end() || index >= static_cast<size_t>(found->second.count)) continue;
    const int number = static_cast<int>(function_.registers.size());
    function_.registers.push_back({name, found->second.type});
    return &scope->names.insert({name, {Name::Kind::reg, number, ""}}).first->second;
  }
  return nullptr;
}

}  // namespace lumos::ptxvm
