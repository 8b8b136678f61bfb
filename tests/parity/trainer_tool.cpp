// trainer_tool MODEL EXAMPLES SETTINGS FOLDER: training step by step, beside another trainer.
// EXAMPLES is JSON, [{"ids": [...], "weights": [...]}, ...]; SETTINGS a training config (its task does not matter).
// Writes FOLDER/initial.safetensors and FOLDER/order.json (indices of the examples of each batch), then takes a step for
// every line on stdin and answers it with one of JSON; at the end writes FOLDER/adapter.safetensors.
#include "mneme/train/trainer.h"

#include <ATen/Parallel.h>

#include <ctime>
#include <filesystem>
#include <fmt/format.h>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

namespace {

class Given final : public mneme::Task {
 public:
  explicit Given(const nlohmann::json& examples) {
    for (const auto& one : examples) {
      auto& example = examples_.emplace_back();
      example.ids = one.at("ids").get<std::vector<std::int32_t>>();
      example.weights = one.at("weights").get<std::vector<float>>();
    }
  }
  [[nodiscard]] std::int64_t size() const override {
    return static_cast<std::int64_t>(examples_.size());
  }
  [[nodiscard]] mneme::Example example(std::int64_t index, std::int64_t,
                                       mneme::Generator&) const override {
    return examples_.at(static_cast<std::size_t>(index));
  }

 private:
  std::vector<mneme::Example> examples_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  at::set_num_threads(2);
  try {
    std::ifstream in(argv[2]);
    const Given task(nlohmann::json::parse(in));
    const auto config = mneme::read_train_config(argv[3]);
    const std::filesystem::path folder(argv[4]);
    const auto model = mneme::load_language_model(argv[1], {config.train.compute});
    const auto adapters = mneme::attach_adapters(*model, config);
    mneme::Trainer trainer(*model, adapters, task, config);
    trainer.save(folder / "initial.safetensors");

    mneme::BatchOrder order(task, {config.train.batch, config.train.batch_tokens}, config.seed);
    auto batches = nlohmann::json::array();
    for (std::int64_t i = 0; i < config.train.steps * config.train.accumulate; ++i) {
      std::vector<std::int64_t> indices;
      for (const auto& drawn : order.next()) indices.push_back(drawn.index);
      batches.push_back(indices);
    }
    std::ofstream(folder / "order.json") << batches;

    std::cout << "ready" << std::endl;
    for (std::string line; !trainer.done() && std::getline(std::cin, line);) {
      const auto before = std::clock();
      const auto report = trainer.step();
      const auto processor = static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC;
      std::cout << nlohmann::json{{"loss", report.loss.total},
                                  {"norm", report.norm},
                                  {"tokens", report.tokens},
                                  {"seconds", report.seconds},
                                  {"processor_seconds", processor}}
                << std::endl;
    }
    trainer.save(folder / "adapter.safetensors");
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
  return 0;
}
