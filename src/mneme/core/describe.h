// Describe: a component declares its options once; parsing, checking, printing, help and binding follow from that.
//
//   static void describe(Describe& d, Options& o) { d("heads", o.heads, at_least(1), "query heads"); }
#pragma once

#include "mneme/core/spec.h"

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace mneme {

/// What an option may be: the declared field itself.
using Field = std::variant<std::int64_t*, double*, bool*, std::string*, std::vector<std::int64_t>*,
                           std::vector<double>*, Chain*>;

/// A condition on an option's value and the words that state it ("at least 1").
struct Check {
  std::function<bool(const Field&)> holds;
  std::string text;
};

Check at_least(double least);
Check at_most(double most);
Check above(double bound);
Check within(double least, double most);
Check multiple_of(std::int64_t unit);
Check one_of(std::vector<std::string> words);

/// One declared option, for help, catalogue and documentation.
struct OptionDoc {
  std::string name, type, default_value, condition, help;
};

/// Collects the declarations of one Options object and reads or writes its fields.
class Describe {
 public:
  template <class T>
  void operator()(std::string_view name, T& field, std::string_view help) {
    declare(name, Field(&field), {}, help);
  }
  template <class T>
  void operator()(std::string_view name, T& field, Check check, std::string_view help) {
    declare(name, Field(&field), {std::move(check)}, help);
  }
  template <class T>
  void operator()(std::string_view name, T& field, Check first, Check second,
                  std::string_view help) {
    declare(name, Field(&field), {std::move(first), std::move(second)}, help);
  }

  /// Sets the fields from a stage's arguments (positional ones in declared order). Throws Error(usage) naming the
  /// component, the option, the value seen and what is wanted; an unknown option names the nearest known one.
  void bind(const Stage& stage);

  /// The declared options in order, with the values that the fields have now as defaults.
  [[nodiscard]] std::vector<OptionDoc> document() const;

  /// The value of every field now, in declared order, with its name.
  [[nodiscard]] std::vector<Argument> values() const;

 private:
  struct Declared {
    std::string name;
    Field field;
    std::vector<Check> checks;
    std::string help;
  };
  void declare(std::string_view name, Field field, std::vector<Check> checks,
               std::string_view help);
  void set(const Stage& stage, const Declared& option, const Value& value) const;
  std::vector<Declared> declared_;
};

/// Whether a component has options at all.
template <class T>
concept Described = requires(Describe& d, typename T::Options& o) { T::describe(d, o); };

/// The options of T as a stage gives them; throws Error(usage).
template <Described T>
typename T::Options options_from(const Stage& stage) {
  typename T::Options options;
  Describe d;
  T::describe(d, options);
  d.bind(stage);
  return options;
}

/// The canonical stage: every option that differs from its default, by name.
template <Described T>
Stage canonical(std::string_view name, typename T::Options options) {
  typename T::Options defaults;
  Describe from, with;
  T::describe(from, defaults);
  T::describe(with, options);
  Stage out{std::string(name), {}};
  const auto before = from.values();
  for (std::size_t i = 0; auto& argument : with.values()) {
    if (!(argument == before[i++])) out.arguments.push_back(std::move(argument));
  }
  return out;
}

}  // namespace mneme
