// chunk: neighbours stay or go together; every entry scores what its chunk scores in the mean.
//
//   s_j = mean of z_n over the entries n with floor(t_n / size) = floor(t_j / size)
//         z: scores of another stage; t: when an entry came, counted from 0
//
// spec      chunk(of=snapkv, size=8)
// holds     what the other stage holds
// needs     what the other stage needs
// source    Liu et al. 2025, arXiv:2502.00299
// departs   layers choose their chunks each for itself. Of the last chunk that fits, a part may stay. Entries that the
//           other stage protects or forces out keep their own score and count in no mean
#include "mneme/core/error.h"
#include "mneme/core/registry.h"
#include "mneme/kv/layer_view.h"

#include <ATen/ATen.h>

#include <cmath>
#include <unordered_map>

namespace mneme::kv::chunk {

class Chunk final : public ScoreStage {
 public:
  struct Options {
    Chain of{Stage{"snapkv", {}}};
    std::int64_t size = 8;
  };
  static void describe(Describe& d, Options& o) {
    d("of", o.of, "the stage that scores single entries");
    d("size", o.size, at_least(1), "tokens of a chunk");
  }
  explicit Chunk(const Options& o) : o_(o) {
    if (o.of.size() != 1) throw Error(Errc::usage, "chunk: 'of' wants one stage that scores");
    stage_ = registry().make<KvStage>(o.of.front());
    score_ = dynamic_cast<const ScoreStage*>(stage_.get());
    if (score_ == nullptr)
      throw Error(Errc::usage,
                  "chunk: 'of' wants a stage that scores entries, as in 'snapkv', not "
                  "'" +
                      o.of.front().name + "'");
  }

  [[nodiscard]] Needs needs() const override { return stage_->needs(); }
  [[nodiscard]] KvGranularity granularity() const override { return KvGranularity::block; }
  [[nodiscard]] KvScope scope() const override { return stage_->scope(); }
  [[nodiscard]] KvPhase phase() const override { return stage_->phase(); }
  void calibrate(const HeadProfile& profile) override { stage_->calibrate(profile); }

  [[nodiscard]] std::vector<at::Tensor> score(const LayerView& layer) const override {
    struct Sum {
      double score = 0, entries = 0;
    };
    auto out = score_->score(layer);
    for (std::int64_t h = 0; h < layer.heads; ++h) {
      auto& scores = out[static_cast<std::size_t>(h)];
      scores = scores.to(at::kCPU, at::kFloat).contiguous().clone();
      auto* score = scores.mutable_data_ptr<float>();
      const auto indices = layer.head(h).token_indices;
      std::unordered_map<std::int64_t, Sum> chunks;
      for (std::size_t i = 0; i < indices.size(); ++i) {
        if (!std::isfinite(score[i])) continue;
        auto& chunk = chunks[indices[i] / o_.size];
        chunk.score += score[i];
        chunk.entries += 1;
      }
      for (std::size_t i = 0; i < indices.size(); ++i) {
        if (!std::isfinite(score[i])) continue;
        const auto& chunk = chunks.at(indices[i] / o_.size);
        score[i] = static_cast<float>(chunk.score / chunk.entries);
      }
    }
    return out;
  }

 private:
  Options o_;
  std::unique_ptr<KvStage> stage_;
  const ScoreStage* score_ = nullptr;
};

void enrol(Registry& r) {
  r.add<KvStage, Chunk>("chunk", "whole chunks of neighbours score what they hold in the mean",
                        "chunkkv-2025");
}

}  // namespace mneme::kv::chunk
