// KvPlan: a checked chain of KV stages, ready to be used by every layer of a model.
#pragma once

#include "mneme/core/spec.h"
#include "mneme/core/state.h"
#include "mneme/kv/codec.h"
#include "mneme/kv/stage.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace mneme {

class KvPlan {
 public:
  /// Builds the stages and checks that they compose; throws Error(usage) that says in a sentence why not.
  explicit KvPlan(const Chain& chain);

  [[nodiscard]] const Chain& chain() const { return chain_; }  ///< canonical
  [[nodiscard]] const std::vector<const EvictStage*>& evict() const { return evict_; }
  [[nodiscard]] const Codec* codec() const {
    return codec_.get();
  }  ///< null: pages stay as computed
  [[nodiscard]] const std::string& codec_name() const { return codec_name_; }
  /// The most entries a head ever holds after an append, or nothing when unbounded.
  [[nodiscard]] std::optional<std::int64_t> max_entries() const;

 private:
  Chain chain_;
  std::vector<std::unique_ptr<KvStage>> stages_;
  std::vector<const EvictStage*> evict_;
  std::unique_ptr<Codec> codec_;
  std::string codec_name_;
};

/// A KV spec with every option in it, defaults too: "quantize(bits=8)" for "quantize", which programs know it by. A spec
/// that this program cannot build is given back as it is.
std::string spelled_out(std::string_view kv);

/// Makes every KV store in a model's State keep entries as the plan says.
void use_plan(State& state, const std::shared_ptr<const KvPlan>& plan);

/// What the stores of a State hold of one row: tokens seen, entries kept (mean over layers and heads), bytes of all rows.
struct KvUsage {
  std::int64_t seen = 0, bytes = 0;
  double kept = 0;
};
KvUsage kv_usage(const State& state, std::int64_t row = 0);

/// The KV stores of a model's State in the order of its layers; empty for models without.
std::vector<KvStore*> kv_stores(State& state);
std::vector<const KvStore*> kv_stores(const State& state);

}  // namespace mneme
