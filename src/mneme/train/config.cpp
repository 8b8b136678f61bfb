#include "mneme/train/config.h"

#include "mneme/core/describe.h"
#include "mneme/core/error.h"
#include "mneme/core/nearest.h"
#include "mneme/core/registry.h"
#include "mneme/models/locate.h"
#include "mneme/train/objective.h"
#include "mneme/train/optimizer.h"
#include "mneme/train/schedule.h"
#include "mneme/train/task.h"

#include <fmt/format.h>
#include <fstream>
#include <iterator>
#include <optional>
#include <toml++/toml.h>

namespace mneme {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kConfigEnding = ".toml";
const std::vector<std::string> kComputeNames{"automatic", "f32", "bf16"};

/// One table of the file: takes out the keys that it is asked for and complains about the others.
class Table {
 public:
  Table(const fs::path& path, std::string name, const toml::table* content)
      : path_(path), name_(std::move(name)), content_(content) {}

  /// The node under a key, which is known from now on.
  const toml::node* take(const char* key) {
    known_.emplace_back(key);
    return content_ == nullptr ? nullptr : content_->get(key);
  }

  void operator()(const char* key, std::string& field) {
    if (const auto* node = take(key)) field = text(key, *node);
  }
  void operator()(const char* key, std::string& field, const std::vector<std::string>& words) {
    const auto* node = take(key);
    if (node == nullptr) return;
    field = text(key, *node);
    if (std::find(words.begin(), words.end(), field) == words.end()) {
      fail(*node, fmt::format("'{}' is '{}', it can be {}{}", key, field, fmt::join(words, ", "),
                              did_you_mean(field, words)));
    }
  }
  void operator()(const char* key, std::int64_t& field, std::int64_t least,
                  std::int64_t most = std::int64_t{1} << 40) {
    const auto* node = take(key);
    if (node == nullptr) return;
    const auto* number = node->as_integer();
    if (number == nullptr || number->get() < least || number->get() > most) {
      fail(*node, fmt::format("'{}' must be a whole number from {} to {}", key, least, most));
    }
    field = number->get();
  }
  void operator()(const char* key, double& field, const Check& condition) {
    const auto* node = take(key);
    if (node == nullptr) return;
    const auto number = node->value<double>();
    if (number) field = *number;
    if (!number || !node->is_number() || !condition.holds(Field(&field))) {
      fail(*node, fmt::format("'{}' must be a number, {}", key, condition.text));
    }
  }
  /// A component of kind K, its options checked and put into canonical form.
  template <class K>
  void spec(const char* key, Stage& field) {
    const auto* node = take(key);
    if (node == nullptr) return;
    try {
      field = parse_stage(text(key, *node));
      field = registry().find(K::kKind, field.name).canonicalize(field);
    } catch (const Error& error) {
      fail(*node, error.what());
    }
  }

  /// All keys have been asked for: any other is unknown. `beside`: names of tables.
  void done(const std::vector<std::string>& beside = {}) {
    if (content_ == nullptr) return;
    known_.insert(known_.end(), beside.begin(), beside.end());
    for (const auto& [key, node] : *content_) {
      const std::string name(key.str());
      if (std::find(known_.begin(), known_.end(), name) != known_.end()) continue;
      fail(node,
           fmt::format("unknown {} '{}'{}{}", node.is_table() ? "table" : "key", name,
                       name_.empty() ? "" : " in [" + name_ + "]", did_you_mean(name, known_)));
    }
  }

  [[nodiscard]] bool has(const char* key) const {
    return content_ != nullptr && content_->contains(key);
  }
  [[noreturn]] void fail(const toml::node& node, const std::string& what) const {
    throw Error(Errc::usage,
                fmt::format("{}:{}: {}", path_.string(), node.source().begin.line, what));
  }
  /// Complains about what is not in the file.
  [[noreturn]] void missing(const std::string& what) const {
    throw Error(Errc::usage, fmt::format("{}: {}", path_.string(), what));
  }
  [[nodiscard]] std::string text(const char* key, const toml::node& node) const {
    const auto* string = node.as_string();
    if (string == nullptr) fail(node, fmt::format("'{}' must be text in quotation marks", key));
    return string->get();
  }

 private:
  fs::path path_;
  std::string name_;
  const toml::table* content_;
  std::vector<std::string> known_;
};

toml::table parse(const fs::path& path) {
  std::error_code error;
  if (!fs::exists(path, error)) {
    throw Error(Errc::not_found, path.string() + ": there is no such training config");
  }
  const Error unreadable(Errc::io, path.string() + ": the training config cannot be read");
  if (fs::is_directory(path, error)) throw unreadable;  // reading one ends in an exception
  std::ifstream in(path, std::ios::binary);
  const std::string content{std::istreambuf_iterator<char>(in), {}};
  if (!in.is_open() || in.bad()) throw unreadable;
  try {
    return toml::parse(content, path.string());
  } catch (const toml::parse_error& failure) {
    throw Error(Errc::usage, fmt::format("{}:{}: {}", path.string(), failure.source().begin.line,
                                         failure.description()));
  }
}

std::string compute_name(Compute compute) {
  return kComputeNames[static_cast<std::size_t>(compute)];
}

}  // namespace

fs::path locate_train_config(const std::string& name_or_path) {
  const fs::path path(name_or_path);
  std::error_code ignored;
  if (path.has_parent_path() || path.extension() == kConfigEnding ||
      fs::is_regular_file(path, ignored)) {
    return path;
  }
  std::vector<std::string> names;
  for (auto& file : files_beside_program("adapters", kConfigEnding)) {
    names.push_back(file.stem().string());
    if (names.back() == name_or_path) return std::move(file);
  }
  throw Error(Errc::not_found,
              fmt::format("no training config '{}'{}: it is neither a file nor a known name ({})",
                          name_or_path, did_you_mean(name_or_path, names), fmt::join(names, ", ")));
}

TrainConfig read_train_config(const fs::path& path) {
  const auto file = parse(path);
  TrainConfig out;
  Table top(path, "", &file);
  const auto table = [&](const char* name) {
    const auto* node = top.take(name);
    if (node != nullptr && !node->is_table()) {
      top.fail(*node, fmt::format("'{}' must be a table: [{}]", name, name));
    }
    return Table(path, name, node == nullptr ? nullptr : node->as_table());
  };

  top("model", out.model);
  std::int64_t seed = static_cast<std::int64_t>(out.seed);
  top("seed", seed, 0, std::numeric_limits<std::int64_t>::max());
  out.seed = static_cast<std::uint64_t>(seed);
  std::string output;
  top("output", output);
  out.output = output;
  top("device", out.device, {"auto", "cpu", "cuda"});

  auto task = table("task");
  task.spec<Task>("spec", out.task.spec);
  if (!task.has("spec")) {
    top.missing(fmt::format("[task] with a 'spec' is missing; tasks: {}",
                            fmt::join(registry().names(Task::kKind), ", ")));
  }
  task.done();

  auto adapter = table("adapter");
  adapter("kind", out.adapter.kind, {"lora"});
  if (const auto* node = adapter.take("parameters")) {
    if (const auto* list = node->as_array(); list != nullptr && !list->empty()) {
      std::vector<std::string> globs;
      for (const auto& item : *list) globs.push_back(adapter.text("parameters", item));
      out.adapter.parameters = fmt::format("{}", fmt::join(globs, "|"));
    } else {
      out.adapter.parameters = adapter.text("parameters", *node);
    }
  }
  adapter("rank", out.adapter.rank, 1, 4096);
  adapter("alpha", out.adapter.alpha, above(0));
  adapter("type", out.adapter.type, {"f32", "f16", "bf16"});
  adapter.done();

  auto optimizer = table("optimizer");
  optimizer.spec<Optimizer>("spec", out.optimizer.spec);
  optimizer.spec<Schedule>("schedule", out.optimizer.schedule);
  optimizer("clip", out.optimizer.clip, at_least(0));
  optimizer.done();

  if (const auto* node = top.take("loss")) {
    const auto* list = node->as_array();
    if (list == nullptr || list->empty())
      top.fail(*node, "'loss' must be a list of tables: [[loss]]");
    out.loss.clear();
    for (const auto& item : *list) {
      if (!item.is_table()) top.fail(item, "'loss' must be a list of tables: [[loss]]");
      Table term(path, "[loss]", item.as_table());
      auto& added = out.loss.emplace_back();
      term.spec<Objective>("spec", added.spec);
      term("weight", added.weight, above(0));
      term.done();
    }
  }

  auto train = table("train");
  if (train.has("steps") && train.has("passes")) {
    train.fail(*file["train"]["passes"].node(), "'steps' and 'passes' say the same: give one");
  }
  if (train.has("batch") && train.has("batch_tokens")) {
    train.fail(*file["train"]["batch_tokens"].node(),
               "'batch' and 'batch_tokens' say the same: give one");
  }
  train("steps", out.train.steps, 1);
  train("passes", out.train.passes, 1);
  train("batch", out.train.batch, 1, 65536);
  train("batch_tokens", out.train.batch_tokens, 1);
  train("accumulate", out.train.accumulate, 1, 65536);
  train("checkpoint_layers", out.train.checkpoint_layers, 0);
  auto compute = compute_name(out.train.compute);
  train("compute", compute, kComputeNames);
  out.train.compute = static_cast<Compute>(
      std::find(kComputeNames.begin(), kComputeNames.end(), compute) - kComputeNames.begin());
  train("validate_every", out.train.validate_every, 0);
  train("validate_limit", out.train.validate_limit, 0);
  train("checkpoint_every", out.train.checkpoint_every, 0);
  train.done();
  top.done();
  return out;
}

std::vector<std::pair<std::string, std::string>> recipe(const TrainConfig& config) {
  std::vector<std::pair<std::string, std::string>> out;
  const auto add = [&](const char* key, const auto& value) {
    out.emplace_back(key, fmt::format("{}", value));
  };
  add("seed", config.seed);
  add("task.spec", print(config.task.spec));
  add("adapter.kind", config.adapter.kind);
  add("adapter.parameters", config.adapter.parameters);
  add("adapter.rank", config.adapter.rank);
  add("adapter.alpha", config.adapter.alpha);
  add("optimizer.spec", print(config.optimizer.spec));
  add("optimizer.schedule", print(config.optimizer.schedule));
  add("optimizer.clip", config.optimizer.clip);
  for (const auto& term : config.loss) {
    add("loss", fmt::format("{} x {}", term.weight, print(term.spec)));
  }
  if (config.train.steps > 0) {
    add("train.steps", config.train.steps);
  } else {
    add("train.passes", config.train.passes);
  }
  if (config.train.batch_tokens > 0) {
    add("train.batch_tokens", config.train.batch_tokens);
  } else {
    add("train.batch", config.train.batch);
  }
  add("train.accumulate", config.train.accumulate);
  add("train.checkpoint_layers", config.train.checkpoint_layers);
  add("train.compute", compute_name(config.train.compute));
  return out;
}

}  // namespace mneme
