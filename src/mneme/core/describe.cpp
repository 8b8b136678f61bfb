#include "mneme/core/describe.h"

#include "mneme/core/error.h"
#include "mneme/core/nearest.h"

#include <algorithm>
#include <cmath>
#include <fmt/format.h>
#include <set>

namespace mneme {
namespace {

template <class Condition>
Check numeric(Condition condition, std::string text) {
  return {[condition](const Field& field) {
            struct Apply {
              Condition condition;
              bool operator()(const std::int64_t* x) const {
                return condition(static_cast<double>(*x));
              }
              bool operator()(const double* x) const { return condition(*x); }
              bool operator()(const std::vector<std::int64_t>* xs) const {
                return std::all_of(xs->begin(), xs->end(),
                                   [&](auto x) { return condition(static_cast<double>(x)); });
              }
              bool operator()(const std::vector<double>* xs) const {
                return std::all_of(xs->begin(), xs->end(), condition);
              }
              bool operator()(const void*) const { return true; }
            };
            return std::visit(Apply{condition}, field);
          },
          std::move(text)};
}

std::string type_name(const Field& field) {
  static constexpr const char* kNames[] = {"int",         "float",         "bool", "string",
                                           "list of int", "list of float", "spec"};
  return kNames[field.index()];
}

/// A word that is not a plain name needs its quotation marks to be read back.
Value word(const std::string& text) {
  try {
    auto chain = parse_chain(text);
    if (chain.size() == 1 && chain[0].arguments.empty() && chain[0].name == text)
      return {std::move(chain[0])};
  } catch (const Error&) {  // not a name: printed as a string
  }
  return {text};
}

struct ToValue {
  Value operator()(const std::int64_t* x) const { return {*x}; }
  Value operator()(const double* x) const {
    if (*x == std::floor(*x) && *x >= -0x1p63 && *x < 0x1p63)
      return {static_cast<std::int64_t>(*x)};
    return {*x};
  }
  Value operator()(const bool* x) const { return {Stage{*x ? "true" : "false", {}}}; }
  Value operator()(const std::string* x) const { return word(*x); }
  template <class T>
  Value operator()(const std::vector<T>* xs) const {
    Value::List out;
    for (const auto& x : *xs) out.push_back((*this)(&x));
    return {std::move(out)};
  }
  Value operator()(const Chain* x) const { return {*x}; }
};

template <class T>
bool assign_number(const Value& value, T& out) {
  if (const auto* integer = std::get_if<std::int64_t>(&value.content)) {
    out = static_cast<T>(*integer);
    return true;
  }
  if constexpr (std::is_same_v<T, double>) {
    if (const auto* real = std::get_if<double>(&value.content)) {
      out = *real;
      return true;
    }
  }
  return false;
}

/// Writes `value` into the field; false when its type does not fit.
struct Assign {
  const Value& value;
  bool operator()(std::int64_t* out) const { return assign_number(value, *out); }
  bool operator()(double* out) const { return assign_number(value, *out); }
  bool operator()(bool* out) const {
    const auto* stage = std::get_if<Stage>(&value.content);
    if (!stage || !stage->arguments.empty() || (stage->name != "true" && stage->name != "false"))
      return false;
    *out = stage->name == "true";
    return true;
  }
  bool operator()(std::string* out) const {
    if (const auto* text = std::get_if<std::string>(&value.content)) {
      *out = *text;
      return true;
    }
    const auto* stage = std::get_if<Stage>(&value.content);
    if (!stage || !stage->arguments.empty()) return false;
    *out = stage->name;
    return true;
  }
  template <class T>
  bool operator()(std::vector<T>* out) const {
    const auto* list = std::get_if<Value::List>(&value.content);
    if (!list) return false;
    out->assign(list->size(), T{});
    for (std::size_t i = 0; i < list->size(); ++i) {
      if (!assign_number((*list)[i], (*out)[i])) return false;
    }
    return true;
  }
  bool operator()(Chain* out) const {
    if (const auto* stage = std::get_if<Stage>(&value.content)) {
      *out = {*stage};
      return true;
    }
    const auto* chain = std::get_if<Chain>(&value.content);
    if (chain) *out = *chain;
    return chain != nullptr;
  }
};

}  // namespace

Check at_least(double least) {
  return numeric([least](double x) { return x >= least; }, fmt::format("at least {}", least));
}
Check at_most(double most) {
  return numeric([most](double x) { return x <= most; }, fmt::format("at most {}", most));
}
Check above(double bound) {
  return numeric([bound](double x) { return x > bound; }, fmt::format("above {}", bound));
}
Check within(double least, double most) {
  return numeric([=](double x) { return x >= least && x <= most; },
                 fmt::format("from {} to {}", least, most));
}
Check multiple_of(std::int64_t unit) {
  return numeric([unit](double x) { return static_cast<std::int64_t>(x) % unit == 0; },
                 fmt::format("a multiple of {}", unit));
}
Check one_of(std::vector<std::string> words) {
  auto text = fmt::format("one of {}", fmt::join(words, ", "));
  return {[words = std::move(words)](const Field& field) {
            const auto* const* text = std::get_if<std::string*>(&field);
            return text && std::find(words.begin(), words.end(), **text) != words.end();
          },
          std::move(text)};
}

void Describe::declare(std::string_view name, Field field, std::vector<Check> checks,
                       std::string_view help) {
  declared_.push_back({std::string(name), field, std::move(checks), std::string(help)});
}

void Describe::set(const Stage& stage, const Declared& option, const Value& value) const {
  if (!std::visit(Assign{value}, option.field)) {
    throw Error(Errc::usage, fmt::format("{}: option '{}' wants {}, not {}", stage.name,
                                         option.name, type_name(option.field), print(value)));
  }
  for (const auto& check : option.checks) {
    if (!check.holds(option.field)) {
      throw Error(Errc::usage, fmt::format("{}: option '{}' must be {}, not {}", stage.name,
                                           option.name, check.text, print(value)));
    }
  }
}

void Describe::bind(const Stage& stage) {
  std::vector<std::string> names;
  for (const auto& option : declared_) names.push_back(option.name);
  std::set<std::string> seen;
  std::size_t position = 0;
  for (const auto& [key, value] : stage.arguments) {
    std::size_t index = position;
    if (!key.empty()) {
      index = static_cast<std::size_t>(std::find(names.begin(), names.end(), key) - names.begin());
      if (index == names.size()) {
        throw Error(
            Errc::usage,
            fmt::format("{}: unknown option '{}'{}", stage.name, key,
                        names.empty() ? ": it takes none"
                                      : did_you_mean(key, names) +
                                            fmt::format(" (options: {})", fmt::join(names, ", "))));
      }
    } else if (position++ >= names.size()) {
      const auto given = std::count_if(stage.arguments.begin(), stage.arguments.end(),
                                       [](const auto& a) { return a.key.empty(); });
      throw Error(Errc::usage, fmt::format("{}: {} positional arguments, at most {} are taken",
                                           stage.name, given, names.size()));
    }
    if (!seen.insert(names[index]).second) {
      throw Error(Errc::usage,
                  fmt::format("{}: option '{}' is given twice", stage.name, names[index]));
    }
    set(stage, declared_[index], value);
  }
}

std::vector<Argument> Describe::values() const {
  std::vector<Argument> out;
  for (const auto& option : declared_)
    out.push_back({option.name, std::visit(ToValue{}, option.field)});
  return out;
}

std::vector<OptionDoc> Describe::document() const {
  std::vector<OptionDoc> out;
  for (const auto& option : declared_) {
    std::vector<std::string> conditions;
    for (const auto& check : option.checks) conditions.push_back(check.text);
    out.push_back({option.name, type_name(option.field), print(std::visit(ToValue{}, option.field)),
                   fmt::format("{}", fmt::join(conditions, "; ")), option.help});
  }
  return out;
}

}  // namespace mneme
