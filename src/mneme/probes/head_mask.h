// Head masks: a model some of whose query heads read nothing, to see what these heads are for.
#pragma once

#include "mneme/core/taps.h"
#include "mneme/models/language_model.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace mneme {

/// A query head by its layer and its place in it.
using HeadPlace = std::pair<std::int64_t, std::int64_t>;

/// Heads in the order of their scores [L,Hq], the highest first; equal ones as they stand.
std::vector<HeadPlace> heads_by_score(const at::Tensor& scores);

/// Arms taps that put zeros in place of what these heads read, of every token. Layers without any of them are not touched.
/// Throws Error(invalid) where the model has no such head, once it runs.
void mask_heads(Taps& taps, const std::vector<HeadPlace>& heads);

/// While it lives, every pass of a model is one in which these heads read nothing. A pass that has taps of its own keeps
/// them. Throws Error(invalid) as mask_heads does.
class MaskedHeads {
 public:
  MaskedHeads(LanguageModel& model, const std::vector<HeadPlace>& heads);
  ~MaskedHeads();
  MaskedHeads(const MaskedHeads&) = delete;
  MaskedHeads& operator=(const MaskedHeads&) = delete;

 private:
  LanguageModel& model_;
};

}  // namespace mneme
