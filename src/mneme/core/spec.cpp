#include "mneme/core/spec.h"

#include "mneme/core/error.h"

#include <charconv>
#include <cmath>
#include <fmt/format.h>

namespace mneme {
namespace {

bool starts_name(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool in_name(char c) { return starts_name(c) || is_digit(c) || c == '.' || c == '-'; }

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {
    if (text.size() > kMaxSpecBytes) {
      throw Error(Errc::usage, fmt::format("spec is {} bytes long, at most {} are allowed",
                                           text.size(), kMaxSpecBytes));
    }
  }

  Chain chain() {
    Chain stages{stage()};
    while (accept('|')) stages.push_back(stage());
    return stages;
  }

  void end() {
    skip_space();
    if (at_ < text_.size()) fail(fmt::format("unexpected '{}'", text_[at_]));
  }

  bool accept(char c) {
    skip_space();
    if (at_ < text_.size() && text_[at_] == c) {
      ++at_;
      return true;
    }
    return false;
  }

 private:
  struct Deeper {
    explicit Deeper(Parser& p) : parser(p) {
      if (++parser.depth_ > kMaxSpecDepth)
        parser.fail(fmt::format("nested deeper than {}", kMaxSpecDepth));
    }
    ~Deeper() { --parser.depth_; }
    Parser& parser;
  };

  Stage stage() {
    Stage out{name(), {}};
    if (accept('(') && !accept(')')) {
      Deeper deeper(*this);
      do out.arguments.push_back(argument());
      while (accept(','));
      expect(')');
    }
    return out;
  }

  std::string name() {
    skip_space();
    const auto begin = at_;
    if (at_ < text_.size() && starts_name(text_[at_])) {
      while (at_ < text_.size() && in_name(text_[at_])) ++at_;
    }
    if (begin == at_) fail("a name is expected");
    return std::string(text_.substr(begin, at_ - begin));
  }

  Argument argument() {
    skip_space();
    const auto begin = at_;
    if (at_ < text_.size() && starts_name(text_[at_])) {
      auto key = name();
      if (accept('=')) return {std::move(key), value()};
      at_ = begin;
    }
    return {"", value()};
  }

  Value value() {
    skip_space();
    if (at_ == text_.size()) fail("a value is expected");
    const char c = text_[at_];
    if (c == '"') return {string()};
    if (c == '[') return {list()};
    if (accept('{')) {
      Deeper deeper(*this);
      if (accept('}')) return {Chain{}};
      auto inner = chain();
      expect('}');
      return {std::move(inner)};
    }
    if (is_digit(c) || c == '-' || c == '+' || c == '.') return number();
    return {stage()};
  }

  Value::List list() {
    expect('[');
    Deeper deeper(*this);
    Value::List out;
    if (accept(']')) return out;
    do out.push_back(value());
    while (accept(','));
    expect(']');
    return out;
  }

  std::string string() {
    expect('"');
    std::string out;
    while (at_ < text_.size() && text_[at_] != '"') {
      if (text_[at_] == '\\' && at_ + 1 < text_.size()) ++at_;
      out.push_back(text_[at_++]);
    }
    if (at_ == text_.size()) fail("the string is not closed");
    ++at_;
    return out;
  }

  Value number() {
    const auto begin = at_;
    if (text_[at_] == '+' && at_ + 1 < text_.size() && text_[at_ + 1] != '-') ++at_;
    double number = 0;
    const auto [end, code] =
        std::from_chars(text_.data() + at_, text_.data() + text_.size(), number);
    if (code != std::errc() || !std::isfinite(number)) {
      at_ = begin;
      fail("a finite number is expected");
    }
    std::int64_t integer = 0;
    const auto [integer_end, integer_code] =
        std::from_chars(text_.data() + at_, text_.data() + text_.size(), integer);
    const bool whole = integer_code == std::errc() && integer_end == end;
    at_ = static_cast<std::size_t>(end - text_.data());
    if (whole) return {integer};
    if (number == std::floor(number) && number >= -0x1p63 && number < 0x1p63)
      return {static_cast<std::int64_t>(number)};
    return {number};
  }

  void expect(char c) {
    if (!accept(c)) fail(fmt::format("'{}' is expected", c));
  }
  void skip_space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n'))
      ++at_;
  }
  [[noreturn]] void fail(const std::string& what) {
    const auto shown =
        text_.size() > 200 ? std::string(text_.substr(0, 200)) + "..." : std::string(text_);
    throw Error(Errc::usage, fmt::format("spec \"{}\", column {}: {}", shown, at_ + 1, what));
  }

  std::string_view text_;
  std::size_t at_ = 0;
  int depth_ = 0;
};

std::string quoted(const std::string& s) {
  std::string out = "\"";
  for (char c : s) {
    if (c == '"' || c == '\\') out.push_back('\\');
    out.push_back(c);
  }
  return out + "\"";
}

}  // namespace

bool Stage::operator==(const Stage& other) const {
  return name == other.name && arguments == other.arguments;
}
bool Value::operator==(const Value& other) const { return content == other.content; }

Chain parse_chain(std::string_view text) {
  Parser parser(text);
  auto chain = parser.chain();
  parser.end();
  return chain;
}

Stage parse_stage(std::string_view text) {
  auto chain = parse_chain(text);
  if (chain.size() != 1) {
    throw Error(Errc::usage, fmt::format("\"{}\" is a chain of {} stages where one is expected",
                                         text, chain.size()));
  }
  return std::move(chain.front());
}

std::vector<Chain> parse_chains(std::string_view text) {
  Parser parser(text);
  std::vector<Chain> out;
  do out.push_back(parser.chain());
  while (parser.accept(';'));
  parser.end();
  return out;
}

std::string print(const Value& value) {
  struct Printer {
    std::string operator()(std::int64_t x) const { return fmt::format("{}", x); }
    std::string operator()(double x) const { return fmt::format("{}", x); }
    std::string operator()(const std::string& x) const { return quoted(x); }
    std::string operator()(const Value::List& x) const {
      std::string out = "[";
      for (std::size_t i = 0; i < x.size(); ++i) out += (i ? ", " : "") + print(x[i]);
      return out + "]";
    }
    std::string operator()(const Stage& x) const { return print(x); }
    std::string operator()(const Chain& x) const { return "{" + print(x) + "}"; }
  };
  return std::visit(Printer{}, value.content);
}

std::string print(const Stage& stage) {
  if (stage.arguments.empty()) return stage.name;
  std::string out = stage.name + "(";
  for (std::size_t i = 0; i < stage.arguments.size(); ++i) {
    const auto& [key, value] = stage.arguments[i];
    out += (i ? ", " : "") + (key.empty() ? "" : key + "=") + print(value);
  }
  return out + ")";
}

std::string print(const Chain& chain) {
  std::string out;
  for (std::size_t i = 0; i < chain.size(); ++i) out += (i ? " | " : "") + print(chain[i]);
  return out;
}

}  // namespace mneme
