#include "mneme/probes/head_mask.h"

#include "mneme/core/error.h"

#include <ATen/ATen.h>

#include <fmt/format.h>
#include <map>
#include <memory>
#include <string>

namespace mneme {
namespace {

class Masked final : public Model {
 public:
  Masked(std::unique_ptr<Model> inner, std::vector<HeadPlace> heads)
      : inner_(std::move(inner)), heads_(std::move(heads)) {}

  [[nodiscard]] const ModelShape& shape() const override { return inner_->shape(); }
  [[nodiscard]] State start(std::int64_t B) const override { return inner_->start(B); }
  [[nodiscard]] at::Tensor embed(const at::Tensor& ids) const override {
    return inner_->embed(ids);
  }
  void set_feed_forward(std::int64_t layer,
                        std::shared_ptr<const FeedForward> feed_forward) override {
    inner_->set_feed_forward(layer, std::move(feed_forward));
  }
  [[nodiscard]] Output forward(const Batch& batch, State& state) const override {
    // Taps turn passes to their plain path: nothing masked is to be the very same computation.
    if (heads_.empty()) return inner_->forward(batch, state);
    Taps taps = batch.taps == nullptr ? Taps() : *batch.taps;
    mask_heads(taps, heads_);
    auto own = batch;
    own.taps = &taps;
    return inner_->forward(own, state);
  }
  std::unique_ptr<Model> release() { return std::move(inner_); }

 private:
  std::unique_ptr<Model> inner_;
  std::vector<HeadPlace> heads_;
};

}  // namespace

std::vector<HeadPlace> heads_by_score(const at::Tensor& scores) {
  const auto width = scores.size(1);
  const auto order = scores.flatten().argsort(/*stable=*/true, 0, /*descending=*/true).contiguous();
  std::vector<HeadPlace> out;
  for (std::int64_t i = 0; i < order.numel(); ++i) {
    const auto at = order.const_data_ptr<std::int64_t>()[i];
    out.emplace_back(at / width, at % width);
  }
  return out;
}

void mask_heads(Taps& taps, const std::vector<HeadPlace>& heads) {
  std::map<std::int64_t, std::vector<std::int64_t>> by_layer;
  for (const auto& [layer, head] : heads) by_layer[layer].push_back(head);
  for (auto& [layer, masked] : by_layer) {
    taps.add(fmt::format("layers.{}.attn.heads", layer),
             [masked = std::move(masked)](std::string_view name, const at::Tensor& read) {
               auto out = read.clone();
               for (const auto head : masked) {
                 if (head < 0 || head >= out.size(1)) {
                   throw Error(Errc::invalid, fmt::format("{}: head {} of {} cannot be masked",
                                                          name, head, out.size(1)));
                 }
                 out.select(1, head).zero_();
               }
               return out;
             });
  }
}

MaskedHeads::MaskedHeads(LanguageModel& model, const std::vector<HeadPlace>& heads)
    : model_(model) {
  for (const auto& [layer, head] : heads) {
    if (layer < 0 || layer >= model.model->shape().layers)
      throw Error(Errc::invalid,
                  fmt::format("head {} of layer {} cannot be masked: {} has {} layers", head, layer,
                              model.name, model.model->shape().layers));
  }
  model_.model = std::make_unique<Masked>(std::move(model_.model), heads);
}

MaskedHeads::~MaskedHeads() { model_.model = dynamic_cast<Masked&>(*model_.model).release(); }

}  // namespace mneme
