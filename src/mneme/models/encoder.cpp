// encoder: a stack of post-norm bidirectional blocks with learned positions; BERT's arrangement.
//
//   x_0 = LN(E[ids] + P[positions] + S[0])
//   x  <- LN(x + mixer(x));   x <- LN(x + feed_forward(x))       for every layer
//
// spec      encoder(vocabulary=30522, model=384, layers=6, context=512, mixer=softmax(heads=12, rope_theta=0, bias=true), feed_forward=mlp(hidden=1536))
// state     none: every call is a text of its own
// source    Devlin et al. 2018, arXiv:1810.04805
// departs   no pooler, no token-type input (type 0 everywhere): sentence encoders use neither
#include "mneme/core/registry.h"
#include "mneme/core/taps.h"
#include "mneme/layers/embedding.h"
#include "mneme/layers/norm.h"
#include "mneme/mixers/mixer.h"
#include "mneme/models/model.h"
#include "mneme/models/prepare.h"

#include <ATen/ATen.h>

#include <fmt/format.h>

namespace mneme::models::encoder {

class Encoder final : public Model {
 public:
  struct Options {
    std::int64_t vocabulary = 256, model = 64, layers = 2, context = 512, types = 2;
    double norm_eps = 1e-12;
    Chain mixer{
        Stage{"softmax", {{"rope_theta", {std::int64_t{0}}}, {"bias", {Stage{"true", {}}}}}}},
        feed_forward{Stage{"mlp", {}}};
  };
  static void describe(Describe& d, Options& o) {
    d("vocabulary", o.vocabulary, at_least(1), "tokens it knows");
    d("model", o.model, at_least(1), "width");
    d("layers", o.layers, at_least(1), "blocks");
    d("context", o.context, at_least(1), "learned positions");
    d("types", o.types, at_least(1), "rows of the token-type table, of which the first is used");
    d("norm_eps", o.norm_eps, above(0), "added under the root of every norm");
    d("mixer", o.mixer, "the mixer of every layer");
    d("feed_forward", o.feed_forward, "the feed-forward of every layer");
  }

  Encoder(const Options& o, Params& params)
      : words_(params, "embed", o.vocabulary, o.model),
        positions_(params, "positions", o.context, o.model),
        types_(params, "types", o.types, o.model),
        norm_(params, "norm", o.model, o.norm_eps) {
    if (o.mixer.size() != 1 || o.feed_forward.size() != 1)
      throw Error(Errc::usage, "encoder: 'mixer' and 'feed_forward' want one stage each");
    shape_.vocabulary = o.vocabulary;
    shape_.model = o.model;
    shape_.layers = o.layers;
    shape_.context = o.context;
    for (std::int64_t i = 0; i < o.layers; ++i) {
      auto scope = params.scope(fmt::format("layers.{}", i));
      auto mixer_scope = scope.scope("attn"), feed_forward_scope = scope.scope("mlp");
      const Shape shape{o.model, i};
      layers_.push_back(
          {fmt::format("layers.{}", i), LayerNorm(scope, "norm1", o.model, o.norm_eps),
           LayerNorm(scope, "norm2", o.model, o.norm_eps),
           registry().make<Mixer>(o.mixer.front(), shape, mixer_scope),
           registry().make<FeedForward>(o.feed_forward.front(), shape, feed_forward_scope)});
    }
  }

  [[nodiscard]] const ModelShape& shape() const override { return shape_; }
  [[nodiscard]] State start(std::int64_t) const override { return {}; }

  [[nodiscard]] at::Tensor embed(const at::Tensor& ids) const override { return words_(ids); }

  [[nodiscard]] Output forward(const Batch& batch, State& state) const override {
    auto prepared = prepare(batch, state, *this);
    auto& call = prepared.call;
    call.pattern.causal = false;
    Output out;
    call.aux = &out.aux;
    const auto to = batch.to_layer < 0 ? shape_.layers : batch.to_layer;
    if (batch.from_layer < 0 || batch.from_layer > to || to > shape_.layers) {
      throw Error(Errc::invalid, fmt::format("layers {} to {} of a model that has {}",
                                             batch.from_layer, to, shape_.layers));
    }
    auto x = batch.ids.defined() ? words_(batch.ids) : batch.embeddings;
    if (batch.from_layer == 0)
      x = norm_.of_sum(x + types_(at::zeros({1, 1}, at::kLong)), positions_(call.positions));
    for (auto i = batch.from_layer; i < to; ++i) {
      const auto& layer = layers_.at(static_cast<std::size_t>(i));
      call.at = layer.name;
      x = tap(call, "resid.pre", std::move(x));
      State none;
      x = layer.norm1.of_sum(x, layer.mixer->forward(x, none, call));
      x = layer.norm2.of_sum(x, layer.feed_forward->forward(x, call));
      x = tap(call, "resid.post", std::move(x));
    }
    out.hidden = std::move(x);
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
    LayerNorm norm1, norm2;
    std::shared_ptr<const Mixer> mixer;
    std::shared_ptr<const FeedForward> feed_forward;
  };
  ModelShape shape_;
  EmbeddingTable words_, positions_, types_;
  LayerNorm norm_;
  std::vector<Layer> layers_;
};

void enrol(Registry& r) {
  r.add<Model, Encoder>("encoder", "post-norm bidirectional blocks with learned positions (BERT)");
}

}  // namespace mneme::models::encoder
