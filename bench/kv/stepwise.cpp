#include "bench/kv/stepwise.h"

#include "mneme/core/error.h"
#include "mneme/core/progress.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include "bench/kv/divergence.h"
#include <fmt/format.h>
#include <numeric>

namespace mneme::bench {

std::vector<std::vector<double>> measure_steps(const LanguageModel& model,
                                               const std::vector<Pipeline>& pipelines,
                                               std::span<const std::vector<std::int32_t>> texts,
                                               std::int64_t context,
                                               const ContextOptions& options) {
  const c10::InferenceMode inference;
  std::vector<std::vector<double>> out(pipelines.size());
  auto one_by_one = options;
  one_by_one.chunk = 1;
  Progress progress(fmt::format("token by token behind {} tokens", context),
                    static_cast<std::int64_t>(texts.size() * pipelines.size()), "contexts");
  for (const std::span<const std::int32_t> text : texts) {
    const auto cut = static_cast<std::size_t>(context);
    if (text.size() < cut + 2) {
      throw Error(Errc::usage, fmt::format("a text of {} tokens where {} of context and at least 2 "
                                           "of continuation are wanted",
                                           text.size(), context));
    }
    ContextReader reader(model, pipelines, {text.begin(), text.begin() + context}, options);
    const auto shown = text.subspan(cut, text.size() - cut - 1);
    for (std::size_t p = 0; p < pipelines.size(); ++p) {
      auto held = reader.read(pipelines[p]);
      auto came = text.subspan(cut + 1);
      double sum = 0;
      feed(model, held.state, shown, LogitsAt::last, one_by_one, [&](const at::Tensor& logits) {
        sum += nll_of(logits, came.first(1)).front();
        came = came.subspan(1);
      });
      out[p].push_back(sum / static_cast<double>(shown.size()));
      progress.advance(1);
    }
  }
  return out;
}

}  // namespace mneme::bench
