#include "mneme/kv/plan.h"

#include "mneme/core/error.h"
#include "mneme/core/registry.h"
#include "mneme/kv/head_profile.h"
#include "mneme/kv/layer_view.h"
#include "mneme/kv/paged_kv.h"

#include <algorithm>
#include <fmt/format.h>
#include <utility>

namespace mneme {
namespace {

/// "layers.12" -> 12, for sorting layers by number and not by spelling.
std::int64_t layer_number(const std::string& name) {
  constexpr std::string_view kPrefix = "layers.";
  return name.starts_with(kPrefix) ? std::stoll(name.substr(kPrefix.size())) : -1;
}

std::vector<std::string> layer_names(const State& state) {
  std::vector<std::string> names;
  for (auto& name : state.names()) {
    if (layer_number(name) >= 0) names.push_back(std::move(name));
  }
  std::sort(names.begin(), names.end(),
            [](const auto& a, const auto& b) { return layer_number(a) < layer_number(b); });
  return names;
}

Stage with_defaults(const Stage& stage) {
  const auto& component = registry().find(KvStage::kKind, stage.name);
  auto out = component.canonicalize(stage);
  const auto given = std::exchange(out.arguments, {});
  for (const auto& option : component.options) {
    const auto at = std::find_if(given.begin(), given.end(), [&](const Argument& argument) {
      return argument.key == option.name;
    });
    out.arguments.push_back(at != given.end() ? *at
                                              : parse_stage(fmt::format("stage({}={})", option.name,
                                                                        option.default_value))
                                                    .arguments.front());
  }
  return out;
}

}  // namespace

void Needs::add(const Needs& other) {
  attention = std::max(attention, other.attention);
  query_window = std::max(query_window, other.query_window);
  token_ids = token_ids || other.token_ids;
  reconstruction = reconstruction || other.reconstruction;
  if (!other.head_profile.empty()) head_profile = other.head_profile;
}

std::string_view name(KvRole role) {
  static constexpr std::string_view kNames[] = {"score",  "budget",   "evict", "merge",
                                                "encode", "retrieve", "place"};
  return kNames[static_cast<std::size_t>(role)];
}

std::vector<std::int64_t> BudgetStage::of_heads(const LayerView& layer,
                                                const std::vector<at::Tensor>& /*scores*/,
                                                std::int64_t each, std::int64_t /*floor*/) const {
  return std::vector<std::int64_t>(static_cast<std::size_t>(layer.heads), each);
}

std::vector<std::int64_t> BudgetStage::of_model(const std::vector<at::Tensor>& scores,
                                                std::int64_t each, std::int64_t /*floor*/) const {
  return std::vector<std::int64_t>(scores.size(), each);
}

KvPlan::KvPlan(const Chain& chain, std::shared_ptr<const HeadProfile> profile)
    : profile_(std::move(profile)) {
  Eviction next;  // the stages that the next evicting one uses
  std::string waiting;
  const auto refuse = [](std::string_view stage, std::string_view why) {
    throw Error(Errc::usage, fmt::format("kv: '{}' {}", stage, why));
  };
  for (const auto& stage : chain) {
    chain_.push_back(registry().find(KvStage::kKind, stage.name).canonicalize(stage));
    auto made = registry().make<KvStage>(stage);
    const auto role = made->role();
    if (retrieve_)
      refuse(stage.name, fmt::format("comes after '{}', whose store keeps entries in its own way: "
                                     "leave one of them out",
                                     chain_[chain_.size() - 2].name));
    if (codec_ && role != KvRole::retrieve)
      refuse(stage.name,
             fmt::format("comes after the codec '{}': entries are encoded last", codec_name_));
    const auto needs = made->needs();
    needs_.add(needs);
    if (!needs.head_profile.empty()) {
      if (profile_) {
        made->calibrate(*profile_);
      } else {
        lacks_profile_ = needs.head_profile;
      }
    }
    if (const auto* score = dynamic_cast<const ScoreStage*>(made.get())) {
      if (next.score)
        refuse(stage.name,
               fmt::format("scores entries that '{}' scored already: one of them has to "
                           "be used first, as in '{} | keep(...)'",
                           waiting, waiting));
      next.score = score;
      waiting = stage.name;
    } else if (const auto* budget = dynamic_cast<const BudgetStage*>(made.get())) {
      if (next.budget)
        refuse(stage.name, "spreads entries that another stage before it has spread");
      next.budget = budget;
      if (waiting.empty()) waiting = stage.name;
    } else if (const auto* evict = dynamic_cast<const EvictStage*>(made.get())) {
      next.evict = evict;
      if (evict->wants_scores() && !next.score)
        refuse(stage.name,
               "needs scores: put a stage before it that scores entries, as in "
               "'snapkv | keep(ratio=0.25)'; `mneme components kv_stage` lists them");
      if (next.score && next.score->phase() == KvPhase::prefill_end &&
          evict->phase() != KvPhase::prefill_end)
        refuse(
            waiting,
            fmt::format("scores entries once the prompt is complete, and '{}' drops some before: "
                        "let it wait, as in '{} | keep(ratio=0.25, when=end)'",
                        stage.name, waiting));
      if (next.budget && next.budget->over_layers() && evict->phase() != KvPhase::prefill_end)
        refuse(
            waiting,
            fmt::format("lets all layers share what they keep, which is known once the prompt is "
                        "complete, and '{}' drops some before: let it wait, as in "
                        "'... | keep(ratio=0.25, when=end)'",
                        stage.name));
      evict_.push_back(std::exchange(next, {}));
      waiting.clear();
    } else if (const auto* merge = dynamic_cast<const MergeStage*>(made.get())) {
      if (evict_.empty() || evict_.back().merge)
        refuse(stage.name, "folds what a stage right before it drops, and there is none");
      evict_.back().merge = merge;
    } else if (const auto* place = dynamic_cast<const PlaceStage*>(made.get())) {
      if (place_) refuse(stage.name, "places entries that another stage has placed already");
      if (evict_.empty())
        refuse(stage.name, "places what others leave, and no stage before it drops entries");
      place_ = place;
    } else if (const auto* narrow = dynamic_cast<const NarrowStage*>(made.get())) {
      if (place_)
        refuse(stage.name,
               fmt::format("cuts keys apart that '{}' has to turn: leave one of them out",
                           chain_[chain_.size() - 2].name));
      if (narrow_) refuse(stage.name, "narrows keys that another stage has narrowed already");
      narrow_ = narrow;
    } else if (const auto* encode = dynamic_cast<const EncodeStage*>(made.get())) {
      if (narrow_)
        refuse(stage.name,
               "encodes whole keys, and a stage before it holds only some of their "
               "channels: leave one of them out");
      codec_name_ = encode->codec();
      codec_ = registry().make<Codec>(codec_name_);
    } else if (const auto* select = dynamic_cast<const SelectStage*>(made.get())) {
      if (select_) refuse(stage.name, "selects entries where another stage does so already");
      select_ = select;
    } else if (const auto* retrieve = dynamic_cast<const RetrieveStage*>(made.get())) {
      if (chain_.size() > 1)
        refuse(stage.name, fmt::format("keeps entries in a store of its own, which does not follow "
                                       "'{}': leave one of them out",
                                       chain_.front().name));
      retrieve_ = retrieve;
    } else {
      refuse(stage.name, fmt::format("is a {} stage, which no store can run", name(role)));
    }
    stages_.push_back(std::move(made));
  }
  if (!waiting.empty())
    refuse(waiting,
           fmt::format("serves a stage that drops entries, and none follows: add one, as in "
                       "'{} | keep(ratio=0.25)'",
                       waiting));
}

void KvPlan::check_profile() const {
  if (lacks_profile_.empty()) return;
  throw Error(Errc::usage, fmt::format("kv: '{}' needs numbers of this model's heads that have not "
                                       "been measured: mneme calibrate {}",
                                       print(chain_), lacks_profile_));
}

bool KvPlan::cuts_at_prompt_end() const {
  return std::any_of(evict_.begin(), evict_.end(), [](const Eviction& eviction) {
    return eviction.evict->phase() == KvPhase::prefill_end;
  });
}

std::optional<std::int64_t> KvPlan::max_entries() const {
  std::optional<std::int64_t> least;
  for (const auto& stage : stages_) {
    if (const auto most = stage->max_entries(); most && (!least || *most < *least)) least = most;
  }
  return least;
}

std::vector<KvStore*> kv_stores(State& state) {
  std::vector<KvStore*> out;
  for (const auto& name : layer_names(state)) {
    auto& child = state.child(name);
    if (child.has("kv")) out.push_back(dynamic_cast<KvStore*>(&child.store("kv")));
  }
  std::erase(out, nullptr);
  return out;
}

std::vector<const KvStore*> kv_stores(const State& state) {
  std::vector<const KvStore*> out;
  for (const auto& name : layer_names(state)) {
    const auto& child = state.child(name);
    if (child.has("kv")) out.push_back(dynamic_cast<const KvStore*>(&child.store("kv")));
  }
  std::erase(out, nullptr);
  return out;
}

void use_plan(State& state, const std::shared_ptr<const KvPlan>& plan) {
  if (plan) plan->check_profile();
  const auto names = layer_names(state);
  const auto layers = static_cast<std::int64_t>(names.size());
  for (std::int64_t layer = 0; const auto& name : names) {
    auto& child = state.child(name);
    if (!child.has("kv")) continue;
    auto* store = dynamic_cast<KvStore*>(&child.store("kv"));
    if (store == nullptr) continue;
    if (plan && plan->retrieve() && !plan->retrieve()->made(*store)) {
      for (std::int64_t row = 0; row < store->rows(); ++row) {
        if (store->seen(row) > 0)
          throw Error(
              Errc::unsupported,
              fmt::format("kv: '{}' keeps entries in a store of its own, and this state holds "
                          "some already: begin with an empty one",
                          print(plan->chain())));
      }
      child.set("kv", plan->retrieve()->store(store->shape(), layer, store->rows()));
      store = &dynamic_cast<KvStore&>(child.store("kv"));
    }
    store->use(plan, layer++, layers);
  }
}

void look_for(State& state, const std::vector<std::shared_ptr<const KvPlan>>& plans) {
  Needs all;
  for (const auto& plan : plans) {
    if (plan) all.add(plan->needs());
  }
  for (auto* store : kv_stores(state)) store->look_for(all);
}

void finish_prompt(State& state) {
  std::vector<PagedKv*> paged;
  for (auto* store : kv_stores(state)) {
    if (auto* one = dynamic_cast<PagedKv*>(store)) {
      paged.push_back(one);
    } else {
      store->finish_prompt();
    }
  }
  PagedKv::finish_prompt(paged);
}

KvUsage kv_usage(const State& state, std::int64_t row) {
  KvUsage out;
  const auto stores = kv_stores(state);
  for (const auto* store : stores) {
    out.seen = std::max(out.seen, store->seen(row));
    out.kept += store->kept(row) / static_cast<double>(stores.size());
    out.bytes += store->allocated_bytes();
    out.observe_seconds += store->observe_seconds();
  }
  return out;
}

std::string spelled_out(std::string_view kv) {
  try {
    auto chain = parse_chain(kv);
    for (auto& stage : chain) stage = with_defaults(stage);
    return print(chain);
  } catch (const Error&) {
    return std::string(kv);
  }
}

}  // namespace mneme
