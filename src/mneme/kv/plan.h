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

class HeadProfile;

class KvPlan {
 public:
  /// Builds the stages and checks that they compose; throws Error(usage) that says in a sentence why not. `profile` is
  /// the model's; a plan that needs one and has none holds what it is given until it must act, and throws then.
  explicit KvPlan(const Chain& chain, std::shared_ptr<const HeadProfile> profile = nullptr);

  [[nodiscard]] const Chain& chain() const { return chain_; }  ///< canonical
  /// A stage that drops entries, with those that serve it; null where there is none.
  struct Eviction {
    const ScoreStage* score = nullptr;
    const BudgetStage* budget = nullptr;
    const EvictStage* evict = nullptr;
    const MergeStage* merge = nullptr;
  };
  [[nodiscard]] const std::vector<Eviction>& evict() const { return evict_; }
  /// What all stages together must be given.
  [[nodiscard]] const Needs& needs() const { return needs_; }
  /// Whether all stages have the numbers of the model that they need.
  [[nodiscard]] bool ready() const { return lacks_profile_.empty(); }
  /// Throws Error(usage) unless it is ready.
  void check_profile() const;
  /// Where entries stand once others were dropped; null: where they stood.
  [[nodiscard]] const PlaceStage* place() const { return place_; }
  /// Which numbers of keys are held; null: all.
  [[nodiscard]] const NarrowStage* narrow() const { return narrow_; }
  /// What decoding steps read of the entries; null: all of them.
  [[nodiscard]] const SelectStage* select() const { return select_; }
  /// Makes the layers' stores; null: they are paged.
  [[nodiscard]] const RetrieveStage* retrieve() const { return retrieve_; }
  [[nodiscard]] const Codec* codec() const {
    return codec_.get();
  }  ///< null: pages stay as computed
  [[nodiscard]] const std::string& codec_name() const { return codec_name_; }
  /// Whether a stage drops entries only once the prompt is complete.
  [[nodiscard]] bool cuts_at_prompt_end() const;
  /// The most entries that a head ever holds after a chunk, on average over all that share them, or nothing when
  /// unbounded.
  [[nodiscard]] std::optional<std::int64_t> max_entries() const;

 private:
  Chain chain_;
  std::shared_ptr<const HeadProfile> profile_;
  std::vector<std::unique_ptr<KvStage>> stages_;
  std::vector<Eviction> evict_;
  Needs needs_;
  const PlaceStage* place_ = nullptr;
  const NarrowStage* narrow_ = nullptr;
  const SelectStage* select_ = nullptr;
  const RetrieveStage* retrieve_ = nullptr;
  std::string lacks_profile_;  // the numbers that no profile gave
  std::unique_ptr<Codec> codec_;
  std::string codec_name_;
};

/// A KV spec with every option in it, defaults too: "quantize(bits=8)" for "quantize", which programs know it by. A spec
/// that this program cannot build is given back as it is.
std::string spelled_out(std::string_view kv);

/// Makes every KV store in a model's State keep entries as the plan says. Throws Error(unsupported) where entries that are
/// held already cannot be kept so.
void use_plan(State& state, const std::shared_ptr<const KvPlan>& plan);

/// From now on the stores look at attention as these plans need it, whatever plan they follow: so a prompt that was read
/// once can be forked and cut by each of them.
void look_for(State& state, const std::vector<std::shared_ptr<const KvPlan>>& plans);

/// Ends the prompt: stages act that wait for it.
void finish_prompt(State& state);

/// What the stores of a State hold of one row: tokens seen, entries kept (mean over layers and heads); bytes of all rows;
/// and the time that was spent on looking at attention and on cutting.
struct KvUsage {
  std::int64_t seen = 0, bytes = 0;
  double kept = 0, observe_seconds = 0;
};
KvUsage kv_usage(const State& state, std::int64_t row = 0);

/// The KV stores of a model's State in the order of its layers; empty for models without.
std::vector<KvStore*> kv_stores(State& state);
std::vector<const KvStore*> kv_stores(const State& state);

}  // namespace mneme
