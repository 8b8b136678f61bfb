// Times of the default model in a warm process, asked for on standard input so that two engines can take turns:
//   prefill N          seconds to read N tokens at once
//   decode DEPTH N     seconds to read N tokens one by one behind DEPTH others
// Further words of a command: `f32` computes so, `adapter` runs the model with ADAPTER attached.
// usage: speed_tool MODEL THREADS [ADAPTER] < ids, then commands: the first line holds token ids, at least as many as are
// asked for
#include "mneme/models/adapter_file.h"
#include "mneme/models/language_model.h"

#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include <chrono>
#include <exception>
#include <iostream>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

double seconds(const auto& work) {
  const auto started = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
}

int run(int argc, char** argv) {
  if (argc != 3 && argc != 4) {
    std::cerr << "usage: speed_tool MODEL THREADS [ADAPTER] < ids and commands\n";
    return 2;
  }
  at::set_num_threads(std::stoi(argv[2]));
  const c10::InferenceMode inference;
  const auto plain = mneme::load_language_model(argv[1]);
  std::unique_ptr<mneme::LanguageModel> adapted;
  if (argc == 4) {
    adapted = mneme::load_language_model(argv[1]);
    mneme::load_adapter(argv[3], *adapted);
  }
  std::string line;
  std::getline(std::cin, line);
  std::istringstream numbers(line);
  std::vector<std::int32_t> ids;
  for (std::int32_t id = 0; numbers >> id;) ids.push_back(id);
  const auto piece = [&](std::size_t begin, std::size_t n) {
    if (begin + n > ids.size()) throw std::runtime_error("too few ids were given");
    return std::vector<std::int32_t>(ids.begin() + static_cast<std::ptrdiff_t>(begin),
                                     ids.begin() + static_cast<std::ptrdiff_t>(begin + n));
  };
  while (std::getline(std::cin, line)) {
    std::istringstream words(line);
    std::string what;
    std::size_t depth = 0, n = 0;
    words >> what;
    if (what == "decode") words >> depth;
    words >> n;
    auto* model = plain.get();
    auto compute = mneme::Compute::automatic;
    for (std::string word; words >> word;) {
      if (word == "f32") compute = mneme::Compute::f32;
      if (word == "adapter") model = adapted.get();
    }
    if (model == nullptr) throw std::runtime_error("no adapter was given");
    model->compute = compute;
    auto state = model->model->start(1);
    if (depth > 0) model->run(piece(0, depth), state, mneme::LogitsAt::none);
    std::cout << seconds([&] {
      if (what == "prefill") {
        model->run(piece(0, n), state);
      } else {
        for (std::size_t i = 0; i < n; ++i) model->run(piece(depth + i, 1), state);
      }
    }) << std::endl;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
