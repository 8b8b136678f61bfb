// logits_tool MODEL COMPUTE CHUNK [ADAPTER]: ids (int32, native order) on stdin -> logits [T,V] (float) on stdout.
// COMPUTE is f32 or automatic; CHUNK tokens are run at a time (0: all at once); ADAPTER is a name, a file or none.
#include "mneme/models/language_model.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include <cstdio>
#include <iostream>
#include <iterator>

int main(int argc, char** argv) {
  if (argc != 4 && argc != 5) return 2;
  at::set_num_threads(2);
  c10::InferenceMode inference;
  const auto language_model = mneme::load_language_model(
      argv[1], {std::string(argv[2]) == "f32" ? mneme::Compute::f32 : mneme::Compute::automatic,
                argc == 5 ? argv[4] : ""});
  const std::string bytes{std::istreambuf_iterator<char>(std::cin), {}};
  std::vector<std::int32_t> ids(bytes.size() / 4);
  std::memcpy(ids.data(), bytes.data(), ids.size() * 4);
  const auto chunk = std::stoul(argv[3]) ? std::stoul(argv[3]) : ids.size();
  auto state = language_model->model->start(1);
  for (std::size_t i = 0; i < ids.size(); i += chunk) {
    const std::vector<std::int32_t> part(
        ids.begin() + static_cast<std::ptrdiff_t>(i),
        ids.begin() + static_cast<std::ptrdiff_t>(std::min(ids.size(), i + chunk)));
    const auto logits = language_model->run(part, state, mneme::LogitsAt::all).logits.contiguous();
    std::fwrite(logits.const_data_ptr<float>(), 4, static_cast<std::size_t>(logits.numel()),
                stdout);
  }
  return 0;
}
