// encoder_tool path NAME             -> where the model is
// encoder_tool hidden MODEL COMPUTE  : B, T, B lengths, B x T ids (int32) on stdin -> hidden states [B,T,D] (float)
// encoder_tool embed MODEL COMPUTE   : texts, each as a length (int32) and its bytes, on stdin
//                                    -> for each tokens, truncated (int32), then the vector (float)
// COMPUTE is f32 or automatic. tests/parity/sentence_encoder_parity.py drives it.
#include "mneme/core/registry.h"
#include "mneme/embed/sentence_encoder.h"
#include "mneme/models/architecture.h"
#include "mneme/models/locate.h"
#include "mneme/weights/checkpoint.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include <cstdio>
#include <cstring>
#include <iostream>
#include <iterator>

namespace {

void write(const void* data, std::size_t bytes) { std::fwrite(data, 1, bytes, stdout); }

void hidden(const std::string& path, mneme::Compute compute, const std::string& input) {
  std::vector<std::int32_t> numbers(input.size() / 4);
  std::memcpy(numbers.data(), input.data(), numbers.size() * 4);
  mneme::Params params;
  const auto checkpoint = mneme::open_checkpoint(path);
  const auto architecture = mneme::load_architecture(*checkpoint, params);
  const auto model = mneme::build_model(*checkpoint, architecture, params);
  const std::int64_t B = numbers.at(0), T = numbers.at(1);
  mneme::Batch batch;
  batch.compute = compute;
  batch.lengths.assign(numbers.begin() + 2, numbers.begin() + 2 + B);
  batch.ids = at::tensor(at::ArrayRef<std::int32_t>(numbers).slice(static_cast<std::size_t>(2 + B)),
                         at::kLong)
                  .view({B, T});
  mneme::State none;
  const auto out = model->forward(batch, none).hidden.contiguous();
  write(out.const_data_ptr(), out.nbytes());
}

void embed(const std::string& path, mneme::Compute compute, std::string_view input) {
  std::vector<std::string_view> texts;
  while (!input.empty()) {
    std::int32_t n = 0;
    std::memcpy(&n, input.data(), 4);
    texts.push_back(input.substr(4, static_cast<std::size_t>(n)));
    input.remove_prefix(4 + static_cast<std::size_t>(n));
  }
  for (const auto& embedding : mneme::SentenceEncoder::load(path, compute)->embed(texts)) {
    const std::int32_t head[] = {static_cast<std::int32_t>(embedding.tokens), embedding.truncated};
    write(head, sizeof head);
    write(embedding.vector.data(), embedding.vector.size() * 4);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() == 2 && arguments[0] == "path") {
    std::cout << mneme::locate_model(arguments[1]).path.string();
    return 0;
  }
  if (arguments.size() != 3) return 2;
  at::set_num_threads(2);
  const c10::InferenceMode inference;
  const auto compute = arguments[2] == "f32" ? mneme::Compute::f32 : mneme::Compute::automatic;
  const std::string input{std::istreambuf_iterator<char>(std::cin), {}};
  arguments[0] == "hidden" ? hidden(arguments[1], compute, input)
                           : embed(arguments[1], compute, input);
  return 0;
}
