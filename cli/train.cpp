// mneme train: an adapter for a model, learned from a task as a config file says.
#include "mneme/core/error.h"
#include "mneme/core/registry.h"
#include "mneme/models/language_model.h"
#include "mneme/models/locate.h"
#include "mneme/train/trainer.h"

#include "bench/suite.h"
#include "cli/program/interrupt.h"
#include "cli/program/output.h"
#include "cli/program/shell.h"
#include "cli/program/verb.h"
#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fmt/format.h>

namespace mneme::cli {
namespace {

namespace fs = std::filesystem;

class Train final : public Verb {
 public:
  [[nodiscard]] About about() const override {
    return {Group::model,
            "train",
            "train an adapter for a model, such as a reader on your own questions",
            {{"CONFIG",
              "a TOML file: the task, the adapter, the optimizer, the loss; or the name of one "
              "that comes with mneme: reader"}},
            {"mneme train reader --data questions.jsonl -o mine.safetensors",
             "mneme train reader --data questions.jsonl -o mine.safetensors --resume",
             "mneme train reader --model model.gguf --data questions.jsonl --steps 200",
             "mneme train my-training.toml"},
            "Leaves the adapter in the output (reader.safetensors in the current folder, unless "
            "-o or the config says otherwise), and beside it a log (.jsonl) and its curves (.svg). "
            "What is there already is not overwritten without --force. Ctrl-C leaves a checkpoint; "
            "with --resume the training goes on from there as if it had never stopped. Flags go "
            "before what the config says. A line of questions.jsonl is {\"passage\": \"...\", "
            "\"question\": \"...\", \"answers\": [\"...\"]}, with [] where the passage does not "
            "answer; a tenth of the passages is held back to validate on. docs/reader.md tells "
            "more."};
  }

  void declare(Flags& flags) override {
    flags("--data", data_, "PATH",
          "questions of your own, a JSON object a line, or the folder where data sets lie");
    flags("--model", model_, "MODEL", "a known name or a model file");
    flags("-o,--output", output_, "FILE", "where the adapter goes");
    flags("--steps", steps_, "N", at_least(0), "steps in all; 0: as the config says");
    flags("--resume", resume_, "go on from the checkpoint of a training that was stopped");
    flags("--force", force_, "start anew over what an earlier training left");
    flags("--json", json_, "print what was done as one JSON object");
    // Wishes for one call; a file or an environment that always overwrites would be a trap.
    for (const auto* name : {"resume", "force"}) {
      flags.find(name)->in_config = false;
      flags.find(name)->in_environment = false;
    }
  }

  void run(const Invocation& call) override {
    if (resume_ && force_) {
      throw Error(Errc::usage,
                  "--resume goes on with a training and --force starts it anew: give one of them");
    }
    auto config = read_train_config(locate_train_config(call.arguments.at(0)));
    if (!model_.empty()) config.model = model_;
    if (!output_.empty()) config.output = output_;
    if (steps_ > 0) config.train.steps = steps_;
    if (call.everywhere.seed != 0) config.seed = call.everywhere.seed;

    // Whatever can be wrong is looked at before what takes long.
    const TrainingFiles files(config.output);
    const auto begin = resume_ ? Begin::resume : force_ ? Begin::overwrite : Begin::fresh;
    check_training(config, begin);
    const fs::path data = data_.empty() ? default_data_folder() : fs::path(data_);
    if (!data_.empty() && !fs::exists(data)) {
      throw Error(Errc::not_found,
                  fmt::format("--data: there is no {}: neither a file of questions nor a folder "
                              "of data sets",
                              data_));
    }

    std::unique_ptr<LanguageModel> model;
    const auto loaded = [&] {
      if (!model) model = load_language_model(config.model, {config.train.compute, kNoAdapter});
      return model.get();
    };
    const auto task =
        registry().make<Task>(config.task.spec, Task::Setup{data, loaded, stop_if_interrupted});
    const auto adapters = attach_adapters(*loaded(), config);
    Trainer trainer(*model, adapters, *task, config);
    TrainingReport report;
    try {
      report = trainer.run(begin, stop_if_interrupted);
    } catch (const Interrupted&) {
      throw Interrupted(fmt::format("{} keeps what {} taught; go on with: {}",
                                    files.checkpoint.string(), counted(trainer.steps(), "step"),
                                    command_to_resume(call)));
    }
    if (json_) {
      print(report, files, adapters.count());
      return;
    }
    say("{}: {} numbers, trained in {} on {} ({}, {:.0f} tokens/s){}\n", files.output.string(),
        with_separators(adapters.count()), counted(report.steps, "step"),
        counted(report.examples, "example"), as_duration(report.seconds), tokens_per_s(report),
        report.loss ? fmt::format("; loss {:.4g}", *report.loss) : "");
    print_figures(report);
    say("{}\n", faint(fmt::format("log {}, curves {}", files.log.string(), files.plot.string())));
    // An adapter that brings its prompt is one to read with.
    if (task->notes().contains("prompt")) {
      say("use it: {} read FILE -o FILE.mneme{} --adapter {}\n",
          shell_word(program_invocation_name),
          config.model == TrainConfig().model ? "" : " --model " + shell_word(config.model),
          shell_word(files.output.string()));
    }
  }

 private:
  static double tokens_per_s(const TrainingReport& report) {
    return report.seconds > 0 ? static_cast<double>(report.tokens) / report.seconds : 0.0;
  }

  static void print(const TrainingReport& report, const TrainingFiles& files,
                    std::int64_t weights) {
    print_json({{"output", files.output.string()},
                {"log", files.log.string()},
                {"plot", files.plot.string()},
                {"weights", weights},
                {"steps", report.steps},
                {"examples", report.examples},
                {"tokens", report.tokens},
                {"seconds", report.seconds},
                {"tokens_per_s", tokens_per_s(report)},
                {"loss", report.loss ? Json(*report.loss) : Json()},
                {"validation_before", report.before ? Json(report.before->figures) : Json()},
                {"validation", report.validation.figures}});
  }

  /// The figures on held-back data, those from before the training beside them.
  static void print_figures(const TrainingReport& report) {
    const auto& figures = report.validation.figures;
    if (figures.empty()) return;
    say("  {:<24} {:>10} {:>10}\n", "on data held back", report.before ? "before" : "", "now");
    for (const auto& [name, value] : figures) {
      std::string before;
      if (report.before) {
        const auto found = report.before->figures.find(name);
        if (found != report.before->figures.end()) before = fmt::format("{:.4g}", found->second);
      }
      say("  {:<24} {:>10} {:>10.4g}\n", name, before, value);
    }
  }

  /// The command that goes on with this training, whatever environment and config files then say.
  [[nodiscard]] std::string command_to_resume(const Invocation& call) const {
    std::string out =
        shell_word(program_invocation_name) + " train " + shell_word(call.arguments.at(0));
    const auto add = [&](const char* flag, const std::string& value) {
      out += fmt::format(" {} {}", flag, shell_word(value));
    };
    if (!data_.empty()) add("--data", data_);
    if (!model_.empty()) add("--model", model_);
    if (!output_.empty()) add("--output", output_);
    if (steps_ > 0) add("--steps", std::to_string(steps_));
    if (call.everywhere.seed != 0) add("--seed", std::to_string(call.everywhere.seed));
    if (call.everywhere.threads != 0) add("--threads", std::to_string(call.everywhere.threads));
    if (json_) out += " --json";
    return out + " --resume";
  }

  std::string data_, model_, output_;
  std::int64_t steps_ = 0;
  bool resume_ = false, force_ = false, json_ = false;
};

}  // namespace

std::unique_ptr<Verb> train_verb() { return std::make_unique<Train>(); }

}  // namespace mneme::cli
