// mneme train: an adapter for a model, learned from a task as a config file says.
#include "mneme/core/error.h"
#include "mneme/core/registry.h"
#include "mneme/models/language_model.h"
#include "mneme/train/trainer.h"

#include "bench/suite.h"
#include "cli/program/interrupt.h"
#include "cli/program/output.h"
#include "cli/program/verb.h"
#include <filesystem>
#include <fmt/format.h>

namespace mneme::cli {
namespace {

class Train final : public Verb {
 public:
  [[nodiscard]] About about() const override {
    return {Group::model,
            "train",
            "train an adapter for a model, as a config file says",
            {{"CONFIG", "a TOML file: the task, the adapter, the optimizer, the loss"}},
            {"mneme train reader.toml", "mneme train reader.toml --resume",
             "mneme train reader.toml --model model.gguf --output mine.safetensors"},
            "Leaves the adapter in the config's output, and beside it a log (.jsonl) and its "
            "curves (.svg). "
            "Ctrl-C leaves a checkpoint; with --resume the training goes on from there as if it "
            "had never "
            "stopped. Flags go before what the config says."};
  }

  void declare(Flags& flags) override {
    flags("--data", data_, "FOLDER", "where data sets lie, a folder each");
    flags("--model", model_, "MODEL", "a known name or a model file");
    flags("-o,--output", output_, "FILE", "where the adapter goes");
    flags("--steps", steps_, "N", at_least(0), "steps in all; 0: as the config says");
    flags("--resume", resume_, "go on from the checkpoint of a training that was stopped");
    flags("--json", json_, "print what was done as one JSON object");
  }

  void run(const Invocation& call) override {
    auto config = read_train_config(call.arguments.at(0));
    if (!model_.empty()) config.model = model_;
    if (!output_.empty()) config.output = output_;
    if (steps_ > 0) config.train.steps = steps_;
    if (call.everywhere.seed != 0) config.seed = call.everywhere.seed;
    const auto model = load_language_model(config.model, {config.train.compute});
    const auto adapters = attach_adapters(*model, config);
    Task::Setup setup;
    setup.data = data_.empty() ? default_data_folder() : std::filesystem::path(data_);
    setup.model = model.get();
    setup.between = stop_if_interrupted;
    const auto task = registry().make<Task>(config.task.spec, setup);
    Trainer trainer(*model, adapters, *task, config);
    const auto report = trainer.run(resume_, stop_if_interrupted);
    const TrainingFiles files(config.output);
    const auto tokens_per_s =
        report.seconds > 0 ? static_cast<double>(report.tokens) / report.seconds : 0.0;
    if (json_) {
      print_json({{"output", files.output.string()},
                  {"log", files.log.string()},
                  {"plot", files.plot.string()},
                  {"weights", adapters.count()},
                  {"steps", report.steps},
                  {"examples", report.examples},
                  {"tokens", report.tokens},
                  {"seconds", report.seconds},
                  {"tokens_per_s", tokens_per_s},
                  {"loss", report.loss},
                  {"validation", report.validation.figures}});
      return;
    }
    say("{}: {} numbers, trained in {} on {} ({}, {:.0f} tokens/s); loss {:.4g}\n",
        files.output.string(), with_separators(adapters.count()), counted(report.steps, "step"),
        counted(report.examples, "example"), as_duration(report.seconds), tokens_per_s,
        report.loss);
    for (const auto& [name, value] : report.validation.figures)
      say("  {:<24} {:.4g}\n", name, value);
    say("{}\n", faint(fmt::format("log {}, curves {}", files.log.string(), files.plot.string())));
  }

 private:
  std::string data_, model_, output_;
  std::int64_t steps_ = 0;
  bool resume_ = false, json_ = false;
};

}  // namespace

std::unique_ptr<Verb> train_verb() { return std::make_unique<Train>(); }

}  // namespace mneme::cli
