#include "mneme/train/trainer.h"

#include "mneme/core/error.h"
#include "mneme/core/log.h"
#include "mneme/core/progress.h"
#include "mneme/core/registry.h"
#include "mneme/layers/lora.h"
#include "mneme/models/adapter_file.h"
#include "mneme/models/locate.h"
#include "mneme/train/packing.h"
#include "mneme/weights/digests.h"
#include "mneme/weights/safetensors.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstring>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

namespace mneme {
namespace {

namespace fs = std::filesystem;

constexpr const char *kFormat = "mneme-training", *kVersion = "2";
constexpr const char *kWeight = "weight.", *kOptimizer = "optimizer.";
constexpr std::string_view kLogEnding = ".jsonl", kPlotEnding = ".svg";
constexpr std::size_t kDigestShown = 16;  // hex digits of the data's digest in a checkpoint
constexpr std::size_t kFromLoaded = 2;    // entries at a recipe's end that model and data give
constexpr std::uint64_t kLayerDraws = 4;  // what the generator is split for, beside the order's

class Stopwatch {
 public:
  [[nodiscard]] double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

std::vector<WeightedObjective> objectives_of(const TrainConfig& config) {
  std::vector<WeightedObjective> out;
  for (const auto& term : config.loss) {
    auto name = print(term.spec);
    const auto twice =
        std::any_of(out.begin(), out.end(), [&](const auto& o) { return o.name == name; });
    if (twice) throw Error(Errc::usage, fmt::format("the loss '{}' is given twice", name));
    out.push_back({std::move(name), registry().make<Objective>(term.spec), term.weight});
  }
  if (out.empty()) throw Error(Errc::usage, "a training wants at least one loss");
  return out;
}

void check_device(const TrainConfig& config) {
  if (config.device != "cuda") return;
  throw Error(Errc::unsupported,
              "device 'cuda': training runs on the CPU, where weights stay in their file's form; "
              "use 'cpu' or 'auto'");
}

BatchOrder::Size batch_size(const TrainConfig& config) {
  return {config.train.batch, config.train.batch_tokens};
}

const Params& learning(const Params& adapters) {
  adapters.requires_grad(true);
  return adapters;
}

Error of_another_training(const fs::path& path, const std::string& difference) {
  return Error(
      Errc::mismatch,
      fmt::format("{}: the checkpoint is that of another training: {}; undo the change, or "
                  "start anew with --force",
                  path.string(), difference));
}

using Recipe = std::vector<std::pair<std::string, std::string>>;

/// Throws Error(mismatch) where a checkpoint's metadata are of another recipe; the last `unknown`
/// entries of the checkpoint's are left alone.
void check_recipe(const fs::path& path, const std::map<std::string, std::string>& metadata,
                  const Recipe& recipe, std::size_t unknown = 0) {
  const auto value = [&](const char* key) {
    const auto found = metadata.find(key);
    return found == metadata.end() ? std::string() : found->second;
  };
  if (value("format") != kFormat || value("version") != kVersion) {
    throw Error(Errc::mismatch,
                fmt::format("{}: is no checkpoint of this version of mneme", path.string()));
  }
  const auto before = nlohmann::json::parse(value("recipe"), nullptr, false);
  if (!before.is_array())
    throw Error(Errc::corrupt, fmt::format("{}: the checkpoint has no recipe", path.string()));
  const auto compared = before.size() - std::min(unknown, before.size());
  for (std::size_t i = 0; i < std::max(compared, recipe.size()); ++i) {
    const auto text = [&](const nlohmann::json& pair, std::size_t part) {
      return pair.is_array() && pair.size() == 2 && pair[part].is_string()
                 ? pair[part].get<std::string>()
                 : std::string();
    };
    const auto was = i < before.size() ? std::pair(text(before[i], 0), text(before[i], 1))
                                       : std::pair<std::string, std::string>();
    const auto is = i < recipe.size() ? recipe[i] : std::pair<std::string, std::string>();
    if (was == is) continue;
    throw of_another_training(
        path, was.first == is.first
                  ? fmt::format("{} was {}, now it is {}", is.first, was.second, is.second)
                  : fmt::format("it had {} = {} where now is {} = {}", was.first, was.second,
                                is.first, is.second));
  }
}

/// Whether a file is an adapter, perhaps one of another version of mneme.
bool is_adapter(const fs::path& path) {
  std::error_code ignored;
  if (!fs::is_regular_file(path, ignored)) return false;
  try {
    (void)read_adapter_info(path);
    return true;
  } catch (const Error& e) {
    return e.code() == Errc::unsupported;
  }
}

template <class T>
T number(const fs::path& path, const std::map<std::string, std::string>& metadata, const char* key,
         T least = 0) {
  const auto found = metadata.find(key);
  const auto text = found == metadata.end() ? std::string() : found->second;
  T out{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  if (error != std::errc() || end != text.data() + text.size() || !(out >= least)) {
    throw Error(Errc::corrupt,
                fmt::format("{}: '{}' of the checkpoint is no number", path.string(), key));
  }
  return out;
}

}  // namespace

TrainingFiles::TrainingFiles(const fs::path& path)
    : output(path), checkpoint(path), log(path), plot(path) {
  checkpoint += ".checkpoint";
  log.replace_extension(kLogEnding);
  plot.replace_extension(kPlotEnding);
}

void TrainingFiles::check(Begin begin, const fs::path& model) const {
  if (output.empty())
    throw Error(Errc::usage, "where the adapter goes is not said: give 'output' (-o FILE)");
  std::error_code ignored;
  if (!output.has_filename() || fs::is_directory(output, ignored)) {
    throw Error(Errc::usage, fmt::format("{}: is a folder, and the adapter is a file: name one, "
                                         "such as reader.safetensors",
                                         output.string()));
  }
  if (output == log || output == plot) {
    throw Error(Errc::usage, fmt::format("{}: a training's log and curves end so: end the "
                                         "adapter's name in .safetensors",
                                         output.string()));
  }
  const auto folder = output.has_parent_path() ? output.parent_path() : fs::path(".");
  if (!fs::is_directory(folder, ignored)) {
    throw Error(Errc::io, fmt::format("{}: there is no folder {}: make it first", output.string(),
                                      folder.string()));
  }
  if (::access(folder.c_str(), W_OK | X_OK) != 0) {
    throw Error(Errc::io, fmt::format("{}: cannot be written in {}: {}", output.string(),
                                      folder.string(), std::strerror(errno)));
  }
  const bool foreign = fs::exists(output, ignored) && !is_adapter(output);
  if (foreign && !model.empty() &&
      (fs::equivalent(output, model, ignored) || fs::equivalent(folder, model, ignored))) {
    throw Error(Errc::invalid,
                fmt::format("{}: is the model that the adapter is for, which is not overwritten: "
                            "name another output with -o",
                            output.string()));
  }
  const bool stopped_before = fs::exists(checkpoint, ignored);
  if (begin == Begin::resume && !stopped_before) {
    throw Error(Errc::not_found,
                fmt::format("{}: there is no checkpoint to resume from: start without --resume",
                            checkpoint.string()));
  }
  if (begin == Begin::fresh && stopped_before) {
    throw Error(Errc::invalid,
                fmt::format("{}: a training stopped there: go on with --resume, or start anew with "
                            "--force",
                            checkpoint.string()));
  }
  if (begin == Begin::fresh) {
    std::vector<std::string> there;
    for (const auto* file : {&output, &log, &plot}) {
      if (fs::exists(fs::symlink_status(*file, ignored))) there.push_back(file->string());
    }
    if (!there.empty()) {
      throw Error(Errc::invalid,
                  fmt::format("{} {} there already: name another output with -o, or overwrite with "
                              "--force",
                              fmt::join(there, ", "), there.size() == 1 ? "is" : "are"));
    }
  }
  if (foreign) {
    throw Error(Errc::invalid,
                fmt::format("{}: the adapter would go there, but the file is something else: name "
                            "another output with -o",
                            output.string()));
  }
  if (!fs::exists(log, ignored)) return;
  if (!TrainingLog::is_one(log)) {
    throw Error(Errc::invalid,
                fmt::format("{}: the log would go there, but the file is something else: name "
                            "another output with -o",
                            log.string()));
  }
  if (::access(log.c_str(), W_OK) != 0) {
    throw Error(Errc::io, fmt::format("{}: the log cannot be written: {}", log.string(),
                                      std::strerror(errno)));
  }
}

void check_training(const TrainConfig& config, Begin begin) {
  check_device(config);
  (void)objectives_of(config);
  const auto model = locate_model(config.model);
  const TrainingFiles files(config.output);
  files.check(begin, model.path);
  if (begin != Begin::resume) return;
  check_recipe(files.checkpoint, SafetensorsFile(files.checkpoint).metadata(), recipe(config),
               kFromLoaded);
}

Params attach_adapters(LanguageModel& model, const TrainConfig& config) {
  Params out;
  out.seed(config.seed);
  attach_lora(model.params, config.adapter.parameters, out, config.adapter.rank,
              config.adapter.alpha);
  return out;
}

Trainer::Trainer(LanguageModel& model, const Params& adapters, const Task& task, TrainConfig config)
    : model_(model),
      adapters_(adapters),
      task_(task),
      config_(std::move(config)),
      recipe_(recipe(config_)),
      objectives_(objectives_of(config_)),
      optimizer_(registry().make<Optimizer>(config_.optimizer.spec, learning(adapters))),
      schedule_(registry().make<Schedule>(config_.optimizer.schedule)),
      order_(task, batch_size(config_), config_.seed) {
  check_device(config_);
  recipe_.emplace_back("model", model.digest);
  recipe_.emplace_back("the task's data (examples, digest)",
                       fmt::format("{} {}", task.size(), task.digest().substr(0, kDigestShown)));
}

double Trainer::share_done() const {
  if (config_.train.steps > 0)
    return static_cast<double>(step_) / static_cast<double>(config_.train.steps);
  return static_cast<double>(examples_) / static_cast<double>(config_.train.passes * task_.size());
}

bool Trainer::done() const {
  return config_.train.steps > 0 ? step_ >= config_.train.steps
                                 : place_.pass >= config_.train.passes;
}

double Trainer::clip_gradients() {
  const c10::NoGradGuard no_gradient;
  std::vector<at::Tensor> gradients, norms;
  for (const auto& name : adapters_.names()) {
    const auto& tensor = adapters_.find(name)->tensor;
    if (!tensor.requires_grad()) continue;
    if (tensor.grad().defined()) {
      gradients.push_back(tensor.grad());
      norms.push_back(tensor.grad().norm());
    } else if (step_ == 0) {
      log::warn("'{}' gets no gradient: adapters act on linear layers only", name);
    }
  }
  if (norms.empty()) throw Error(Errc::invalid, "nothing that is trained gets a gradient");
  const auto norm = at::stack(norms).norm().item<double>();
  if (!std::isfinite(norm)) {
    throw Error(Errc::invalid,
                fmt::format("the norm of the gradients is {}: try a lower learning rate", norm));
  }
  if (config_.optimizer.clip > 0 && norm > config_.optimizer.clip) {
    for (auto& gradient : gradients) gradient.mul_(config_.optimizer.clip / (norm + 1e-6));
  }
  return norm;
}

StepReport Trainer::step(const std::function<void()>& between) {
  MNEME_ASSERT(!done());
  const Stopwatch stopwatch;
  StepReport report;
  report.step = step_ + 1;
  for (const auto& name : adapters_.names()) adapters_.find(name)->tensor.mutable_grad().reset();
  try {
    between();
    std::vector<PackedExamples> batches;
    double weight = 0;
    while (static_cast<std::int64_t>(batches.size()) < config_.train.accumulate) {
      if (config_.train.steps == 0 && order_.place().pass >= config_.train.passes) break;
      const auto drawn = order_.next();
      std::vector<const Example*> examples;
      for (const auto& example : drawn) examples.push_back(&example.content);
      batches.push_back(pack(examples, model_.model->shape().context));
      batches.back().batch.compute = config_.train.compute;
      weight += batches.back().weight;
      report.tokens += batches.back().tokens;
      report.examples += static_cast<std::int64_t>(drawn.size());
    }
    if (!(weight > 0)) {
      throw Error(Errc::invalid,
                  fmt::format("step {}: none of its {} examples has a token to learn", report.step,
                              report.examples));
    }
    GradientOptions options;
    options.checkpoint_layers = config_.train.checkpoint_layers;
    options.between = between;
    const auto draws =
        Generator(config_.seed).split(kLayerDraws).split(static_cast<std::uint64_t>(step_));
    for (const auto& term : objectives_) report.loss.terms.emplace_back(term.name, 0.0);
    for (std::size_t i = 0; i < batches.size(); ++i) {
      // The mean over the step's tokens, however they are cut into batches.
      const auto share = batches[i].weight / weight;
      if (share == 0) continue;
      options.generator = draws.split(i);
      const auto loss = add_gradients(*model_.model, batches[i], objectives_, share, options);
      report.loss.total += share * loss.total;
      for (std::size_t t = 0; t < loss.terms.size(); ++t) {
        report.loss.terms[t].second += share * loss.terms[t].second;
      }
    }
    report.norm = clip_gradients();
    report.rate = optimizer_->rate() * schedule_->factor(step_, share_done());
  } catch (...) {
    order_.go_to(place_);
    throw;
  }
  optimizer_->step(report.rate);
  ++step_;
  place_ = order_.place();
  examples_ += report.examples;
  tokens_ += report.tokens;
  report.seconds = stopwatch.seconds();
  seconds_ += report.seconds;
  return report;
}

ValidationReport Trainer::validate() const {
  const c10::NoGradGuard no_gradient;
  const Stopwatch stopwatch;
  ValidationReport report;
  report.step = step_;
  report.figures = task_.validate(model_, config_.train.validate_limit);
  report.seconds = stopwatch.seconds();
  return report;
}

bool Trainer::validation_is_due() const {
  if (validated_ >= step_) return false;
  return done() || (config_.train.validate_every > 0 && step_ % config_.train.validate_every == 0);
}

TrainingReport Trainer::run(Begin begin, const std::function<void()>& between) {
  const TrainingFiles files(config_.output);
  files.check(begin);
  std::optional<TrainingLog> log;
  auto saved = step_;
  const auto keep = [&] {
    log->sync();
    save_checkpoint(files.checkpoint);
    saved = step_;
  };
  if (begin == Begin::resume) {
    load_checkpoint(files.checkpoint);
    log.emplace(files.log, step_, validated_);
    saved = step_;
  } else {
    log.emplace(files.log);
    keep();
  }
  bool stop = false;
  const auto watched = [&] {
    try {
      between();
    } catch (...) {
      stop = true;
      throw;
    }
  };
  const auto title = fmt::format("training of {}", config_.output.filename().string());
  const bool by_steps = config_.train.steps > 0;
  const auto all = by_steps ? config_.train.steps : config_.train.passes * task_.size();
  Progress progress(title, all - (by_steps ? step_ : examples_), by_steps ? "steps" : "examples");
  TrainingReport out;
  try {
    while (true) {
      if (validation_is_due()) {
        if (saved != step_) keep();  // validation may take long
        progress.note("validation");
        const auto validation = validate();
        validated_ = step_;
        if (!validation.figures.empty()) log->add(validation);
        log->plot(files.plot, title);
      }
      if (done()) break;
      const auto report = step(watched);
      log->add(report);
      progress.advance(by_steps ? 1 : report.examples);
      out.loss = out.loss ? 0.9 * *out.loss + 0.1 * report.loss.total : report.loss.total;
      progress.note(fmt::format("loss {:.4g}, {:.0f} tokens/s", *out.loss,
                                static_cast<double>(report.tokens) / report.seconds));
      if (config_.train.checkpoint_every > 0 && step_ % config_.train.checkpoint_every == 0) keep();
    }
  } catch (...) {
    if (stop && saved != step_) keep();
    throw;
  }
  save(files.output);
  log->plot(files.plot, title);
  std::error_code ignored;
  fs::remove(files.checkpoint, ignored);
  if (const auto& validations = log->validations(); !validations.empty()) {
    out.validation = validations.back();
    if (validations.front().step < validations.back().step) out.before = validations.front();
  }
  out.steps = step_;
  out.examples = examples_;
  out.tokens = tokens_;
  out.seconds = seconds_;
  return out;
}

void Trainer::save_checkpoint(const fs::path& path) const {
  std::map<std::string, at::Tensor> tensors;
  for (const auto& name : adapters_.names()) tensors[kWeight + name] = adapters_.find(name)->tensor;
  for (const auto& [name, tensor] : optimizer_->state()) tensors[kOptimizer + name] = tensor;
  auto recipe = nlohmann::ordered_json::array();
  for (const auto& [key, value] : recipe_) recipe.push_back({key, value});
  write_safetensors(path, tensors,
                    {{"format", kFormat},
                     {"version", kVersion},
                     {"recipe", recipe.dump()},
                     {"step", fmt::format("{}", step_)},
                     {"examples", fmt::format("{}", examples_)},
                     {"tokens", fmt::format("{}", tokens_)},
                     {"validated", fmt::format("{}", validated_)},
                     {"pass", fmt::format("{}", place_.pass)},
                     {"window", fmt::format("{}", place_.window)},
                     {"batch", fmt::format("{}", place_.batch)},
                     {"seconds", fmt::format("{}", seconds_)}});
}

void Trainer::load_checkpoint(const fs::path& path) {
  std::map<std::string, std::string> metadata;
  const auto tensors = read_safetensors(path, &metadata);
  check_recipe(path, metadata, recipe_);
  std::map<std::string, at::Tensor> weights, optimizer;
  for (const auto& [name, tensor] : tensors) {
    if (name.starts_with(kWeight)) weights[name.substr(std::string_view(kWeight).size())] = tensor;
    if (name.starts_with(kOptimizer))
      optimizer[name.substr(std::string_view(kOptimizer).size())] = tensor;
  }
  for (const auto& name : adapters_.names()) {
    const auto found = weights.find(name);
    if (found == weights.end() || found->second.sizes() != adapters_.find(name)->tensor.sizes()) {
      throw of_another_training(path, fmt::format("it has no fitting '{}'", name));
    }
  }
  const auto step = number<std::int64_t>(path, metadata, "step");
  const auto examples = number<std::int64_t>(path, metadata, "examples");
  const auto tokens = number<std::int64_t>(path, metadata, "tokens");
  const auto validated = number<std::int64_t>(path, metadata, "validated", -1);
  const auto seconds = number<double>(path, metadata, "seconds");
  const BatchOrder::Place place{number<std::int64_t>(path, metadata, "pass"),
                                number<std::int64_t>(path, metadata, "window"),
                                number<std::int64_t>(path, metadata, "batch")};
  optimizer_->load(optimizer);
  const c10::NoGradGuard no_gradient;
  for (const auto& name : adapters_.names()) adapters_.find(name)->tensor.copy_(weights.at(name));
  step_ = step;
  examples_ = examples;
  tokens_ = tokens;
  validated_ = validated;
  seconds_ = seconds;
  place_ = place;
  order_.go_to(place_);
}

void Trainer::save(const fs::path& path) const {
  std::string lines;
  for (const auto& [key, value] : recipe_) lines += fmt::format("{} = {}\n", key, value);
  AdapterInfo info;
  info.model = model_.name;
  info.model_digest = model_.digest;
  info.parameters = config_.adapter.parameters;
  info.rank = config_.adapter.rank;
  info.alpha = config_.adapter.alpha;
  info.recipe = sha256_hex(lines);
  info.notes = task_.notes();
  save_adapter(path, adapters_, info, config_.adapter.type);
}

}  // namespace mneme
