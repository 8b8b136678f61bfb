#include "mneme/layers/embedding.h"

#include "mneme/core/error.h"
#include "mneme/core/unwritten.h"
#include "mneme/kernels/quantized.h"
#include "mneme/layers/stored_weight.h"

#include <ATen/ATen.h>
#include <ATen/DimVector.h>
#include <ATen/Parallel.h>

#include <fmt/format.h>

namespace mneme {

EmbeddingTable::EmbeddingTable(Params& params, std::string_view name, std::int64_t entries,
                               std::int64_t width)
    : entries_(entries),
      weight_(params.weight(fmt::format("{}.weight", name), {entries, width}, Init::normal_002)) {}

at::Tensor EmbeddingTable::operator()(const at::Tensor& ids) const {
  const auto flat = ids.to(at::kCPU).contiguous();
  const auto* id = flat.const_data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < flat.numel(); ++i) {
    if (id[i] < 0 || id[i] >= entries_)
      throw Error(Errc::invalid,
                  fmt::format("token id {} is outside the vocabulary of {}", id[i], entries_));
  }
  if (!weight_->stored) return at::embedding(weight_->tensor, ids);
  const auto width = weight_->sizes().back();
  at::DimVector sizes(ids.sizes());
  sizes.push_back(width);
  at::Tensor out = unwritten(sizes);
  if (const auto* file = dynamic_cast<const FileWeight*>(weight_->stored.get())) {
    const auto& weight = file->weight();
    auto* to = out.mutable_data_ptr<float>();
    constexpr std::int64_t kRowsPerThread = 64;
    at::parallel_for(0, flat.numel(), kRowsPerThread, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        kernels::dequantize(weight.type, weight.data + id[i] * row_bytes(weight.type, width), 1,
                            width, to + i * width);
      }
    });
  } else {
    const auto rows = out.view({flat.numel(), width});
    for (std::int64_t i = 0; i < flat.numel(); ++i)
      rows.select(0, i).copy_(weight_->stored->rows(id[i], id[i] + 1, at::kFloat).select(0, 0));
  }
  return out;
}

}  // namespace mneme
