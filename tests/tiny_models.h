// Small random models whose outputs depend visibly on every part.
#pragma once

#include "mneme/core/registry.h"
#include "mneme/models/model.h"

#include <ATen/ATen.h>

#include "tensor_check.h"
#include <memory>
#include <string>
#include <vector>

namespace mneme::check {

struct TinyModel {
  Params params;
  std::unique_ptr<Model> model;

  /// Fresh weights are small: attention would be nearly uniform and a wrong entry hard to see.
  explicit TinyModel(const std::string& spec, std::uint64_t seed = 1) {
    params.seed(seed);
    model = registry().make<Model>(spec, params);
    for (const auto& name : params.names()) {
      auto& x = params.find(name)->tensor;
      if (name.starts_with("embed.") || name.starts_with("positions.") ||
          name.starts_with("types."))
        x.mul_(30);
      if (name.ends_with("attn.q.weight") || name.ends_with("attn.k.weight")) x.mul_(2);
      if (name.find("norm") != name.npos || name.ends_with(".bias"))
        x.add_(0.2 * normal(x.sizes(), seed + 1));
    }
  }

  /// Logits of ids [B,T] in f32, at every token.
  [[nodiscard]] at::Tensor logits(const at::Tensor& ids, State& state,
                                  const std::vector<std::int64_t>& lengths = {}) const {
    Batch batch;
    batch.ids = ids;
    batch.lengths = lengths;
    batch.logits_at = LogitsAt::all;
    batch.compute = Compute::f32;
    return model->forward(batch, state).logits;
  }
};

inline constexpr const char* kTinyDecoder =
    "decoder(vocabulary=50, model=32, layers=2, context=0, mixer=softmax(heads=4, kv_heads=2, "
    "head=8), feed_forward=glu(hidden=48))";

}  // namespace mneme::check
