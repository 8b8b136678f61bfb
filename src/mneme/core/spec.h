// Specs: the one small language that names components and their options.
//
//   chain = stage {"|" stage}
//   stage = name ["(" [arg {"," arg}] ")"]
//   arg   = [key "="] value
//   value = stage | number | string | list | "{" [chain] "}"
//   list  = "[" [value {"," value}] "]"
//
// At most 16 brackets may be open at once.
// A bare name is a stage without arguments and serves as word and boolean. parse(print(s)) = s.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace mneme {

struct Argument;

/// A component's name and its arguments as written.
struct Stage {
  std::string name;
  std::vector<Argument> arguments;
  bool operator==(const Stage&) const;
};

using Chain = std::vector<Stage>;

/// One argument value. Numbers without a fractional part are integers, however they were written.
struct Value {
  using List = std::vector<Value>;
  std::variant<std::int64_t, double, std::string, List, Stage, Chain> content;
  bool operator==(const Value&) const;
};

struct Argument {
  std::string key;  ///< empty: positional
  Value value;
  bool operator==(const Argument&) const = default;
};

inline constexpr std::size_t kMaxSpecBytes = 64 * 1024;
inline constexpr int kMaxSpecDepth = 16;

/// Parses a chain; throws Error(usage) with the column and what was expected there.
Chain parse_chain(std::string_view text);

/// Parses exactly one stage; throws Error(usage).
Stage parse_stage(std::string_view text);

/// Parses several chains separated by ';' (for flags that take lists of specs); throws Error(usage).
std::vector<Chain> parse_chains(std::string_view text);

std::string print(const Value&);
std::string print(const Stage&);
std::string print(const Chain&);

}  // namespace mneme
