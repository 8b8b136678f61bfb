// EmbeddingTable: one learned row a token; rows of a stored table are dequantized one by one.
#pragma once

#include "mneme/core/params.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string_view>

namespace mneme {

class EmbeddingTable {
 public:
  /// The table `<name>.weight` [entries, width] of `params`.
  EmbeddingTable(Params& params, std::string_view name, std::int64_t entries, std::int64_t width);
  /// ids [B,T] int64 -> [B,T,width] f32; throws Error(invalid) on an id outside the table.
  at::Tensor operator()(const at::Tensor& ids) const;
  [[nodiscard]] const std::shared_ptr<Parameter>& weight() const { return weight_; }

 private:
  std::int64_t entries_;
  std::shared_ptr<Parameter> weight_;
};

}  // namespace mneme
