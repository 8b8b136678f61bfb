// decoder: a stack of pre-norm blocks with a mixer and a feed-forward each; Llama's arrangement.
//
//   x_0 = E[ids]
//   x  <- x + mixer(norm1(x));   x <- x + feed_forward(norm2(x))       for every layer
//   logits = W norm(x),   W = E where tied
//
// spec      decoder(vocabulary=49152, model=576, layers=30, mixer=softmax(heads=9, kv_heads=3), feed_forward=glu(hidden=1536))
// state     one child "layers.N" a layer, as its mixer keeps it
// needs     nothing; bidirectional where the batch's pattern is not causal
// source    Touvron et al. 2023, arXiv:2302.13971
#include "mneme/core/read_ahead.h"
#include "mneme/core/registry.h"
#include "mneme/core/taps.h"
#include "mneme/layers/embedding.h"
#include "mneme/layers/linear.h"
#include "mneme/layers/norm.h"
#include "mneme/mixers/mixer.h"
#include "mneme/models/model.h"
#include "mneme/models/prepare.h"

#include <ATen/ATen.h>

#include <fmt/format.h>
#include <utility>

namespace mneme::models::decoder {

class Decoder final : public Model {
 public:
  struct Options {
    std::int64_t vocabulary = 256, model = 64, layers = 2, context = 2048;
    double norm_eps = 1e-5;
    bool tied = true;
    Chain mixer{Stage{"softmax", {}}}, feed_forward{Stage{"glu", {}}};
  };
  static void describe(Describe& d, Options& o) {
    d("vocabulary", o.vocabulary, at_least(1), "tokens it knows");
    d("model", o.model, at_least(1), "width of the residual stream");
    d("layers", o.layers, at_least(1), "blocks");
    d("context", o.context, at_least(0), "positions it was made for; 0: any");
    d("norm_eps", o.norm_eps, above(0), "added under the root of every norm");
    d("tied", o.tied, "the output projection is the embedding");
    d("mixer", o.mixer, "the mixer of every layer");
    d("feed_forward", o.feed_forward, "the feed-forward of every layer");
  }

  Decoder(const Options& o, Params& params)
      : embedding_(params, "embed", o.vocabulary, o.model),
        norm_(params, "norm", o.model, o.norm_eps) {
    if (o.mixer.size() != 1 || o.feed_forward.size() != 1)
      throw Error(Errc::usage, "decoder: 'mixer' and 'feed_forward' want one stage each");
    shape_.vocabulary = o.vocabulary;
    shape_.model = o.model;
    shape_.layers = o.layers;
    shape_.context = o.context;
    head_ = o.tied ? embedding_.weight() : params.weight("head.weight", {o.vocabulary, o.model});
    for (std::int64_t i = 0; i < o.layers; ++i) {
      auto scope = params.scope(fmt::format("layers.{}", i));
      auto mixer_scope = scope.scope("attn"), feed_forward_scope = scope.scope("mlp");
      const Shape shape{o.model, i};
      layers_.push_back(
          {fmt::format("layers.{}", i), RMSNorm(scope, "norm1", o.model, o.norm_eps),
           RMSNorm(scope, "norm2", o.model, o.norm_eps),
           registry().make<Mixer>(o.mixer.front(), shape, mixer_scope),
           registry().make<FeedForward>(o.feed_forward.front(), shape, feed_forward_scope)});
    }
  }

  [[nodiscard]] const ModelShape& shape() const override { return shape_; }

  [[nodiscard]] State start(std::int64_t B) const override {
    State state;
    state.positions.assign(static_cast<std::size_t>(B), 0);
    for (const auto& layer : layers_)
      state.child(layer.name) = layer.mixer->start(B, at::TensorOptions().dtype(at::kFloat));
    return state;
  }

  [[nodiscard]] at::Tensor embed(const at::Tensor& ids) const override { return embedding_(ids); }

  [[nodiscard]] Output forward(const Batch& batch, State& state) const override {
    auto prepared = prepare(batch, state, *this);
    auto& call = prepared.call;
    Output out;
    call.aux = &out.aux;
    call.generator = &state.generator;
    const auto to = batch.to_layer < 0 ? shape_.layers : batch.to_layer;
    if (batch.from_layer < 0 || batch.from_layer > to || to > shape_.layers) {
      throw Error(Errc::invalid, fmt::format("layers {} to {} of a model that has {}",
                                             batch.from_layer, to, shape_.layers));
    }
    auto x = batch.ids.defined() ? embedding_(batch.ids) : batch.embeddings;
    const bool whole = to == shape_.layers;
    // Each sum of the residual stream is taken by the norm that reads it next. What the caller or a tap may hold stays.
    bool own = batch.ids.defined() && batch.taps == nullptr;
    at::Tensor addend, normed;
    const auto normalize = [&](const RMSNorm& norm) {
      if (!addend.defined()) {
        normed = norm(x);
        return;
      }
      normed = norm.after_adding(x, addend, own, std::move(normed));
      own = batch.taps == nullptr;
    };
    read_ahead.begin();
    for (auto i = batch.from_layer; i < to; ++i) {
      const auto& layer = layers_[static_cast<std::size_t>(i)];
      read_ahead.note(&layer);
      read_ahead.note(layer.mixer.get());
      call.at = layer.name;
      x = tap(call, "resid.pre", std::move(x));
      normalize(layer.norm1);
      addend = layer.mixer->forward(normed, state.child(layer.name), call);
      read_ahead.note(layer.feed_forward.get());
      normalize(layer.norm2);
      addend = layer.feed_forward->forward(normed, call);
      if (batch.taps != nullptr) x = tap(call, "resid.post", x + std::exchange(addend, {}));
    }
    // Only the rows that are asked for meet the vocabulary.
    if (whole) {
      if (batch.mode != Mode::read_only) advance(state, prepared);
      normalize(norm_);
      x = std::move(normed);
      if (batch.logits_at != LogitsAt::none) {
        auto at_rows = batch.logits_at == LogitsAt::last ? last_of_rows(x, call)
                                                         : x.reshape({-1, shape_.model});
        if (batch.logits_at == LogitsAt::chosen) at_rows = at_rows.index_select(0, batch.chosen);
        auto logits = product(at_rows.contiguous(), *head_, call.compute);
        if (call.cost) {
          const auto numbers = static_cast<double>(shape_.vocabulary * shape_.model);
          call.cost->flops += 2.0 * static_cast<double>(at_rows.size(0)) * numbers;
          call.cost->bytes +=
              head_->stored ? static_cast<double>(head_->stored->bytes()) : numbers * sizeof(float);
        }
        out.logits = batch.logits_at == LogitsAt::all
                         ? logits.view({prepared.B, prepared.T, shape_.vocabulary})
                         : logits;
      }
    }
    out.hidden = whole || !addend.defined() ? std::move(x) : x + addend;
    return out;
  }

  void set_feed_forward(std::int64_t layer,
                        std::shared_ptr<const FeedForward> feed_forward) override {
    if (layer < 0 || layer >= shape_.layers)
      throw Error(Errc::invalid,
                  fmt::format("layer {} of a model that has {}", layer, shape_.layers));
    layers_[static_cast<std::size_t>(layer)].feed_forward = std::move(feed_forward);
  }

 private:
  struct Layer {
    std::string name;
    RMSNorm norm1, norm2;
    std::shared_ptr<const Mixer> mixer;
    std::shared_ptr<const FeedForward> feed_forward;
  };
  ModelShape shape_;
  EmbeddingTable embedding_;
  RMSNorm norm_;
  std::shared_ptr<Parameter> head_;
  std::vector<Layer> layers_;
};

void enrol(Registry& r) {
  r.add<Model, Decoder>("decoder", "pre-norm blocks of a mixer and a feed-forward (Llama)");
}

}  // namespace mneme::models::decoder
