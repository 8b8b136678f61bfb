#include "mneme/kv/plan.h"

#include "mneme/core/error.h"
#include "mneme/core/registry.h"

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

std::string_view name(KvRole role) {
  static constexpr std::string_view kNames[] = {"score",  "budget",   "evict", "merge",
                                                "encode", "retrieve", "place"};
  return kNames[static_cast<std::size_t>(role)];
}

KvPlan::KvPlan(const Chain& chain) {
  for (const auto& stage : chain) {
    chain_.push_back(registry().find(KvStage::kKind, stage.name).canonicalize(stage));
    auto made = registry().make<KvStage>(stage);
    if (codec_)
      throw Error(Errc::usage,
                  fmt::format("kv: '{}' comes after the codec '{}': entries are encoded last",
                              stage.name, codec_name_));
    const auto needs = made->needs();
    if (needs.attention != AttentionLevel::none || needs.query_window > 0 || needs.unrotated_keys ||
        needs.head_profile || needs.token_ids) {
      throw Error(
          Errc::usage,
          fmt::format("kv: '{}' needs more than positions (attention weights, queries, unrotated "
                      "keys or token ids), which the paged cache does not observe",
                      stage.name));
    }
    if (made->scope() == KvScope::model || made->phase() != KvPhase::every_chunk) {
      throw Error(
          Errc::usage,
          fmt::format(
              "kv: '{}' acts on all layers at once or only at the end of the prompt or at single "
              "steps: the paged cache runs its stages a layer at a time, after every chunk",
              stage.name));
    }
    if (const auto* evict = dynamic_cast<const EvictStage*>(made.get())) {
      evict_.push_back(evict);
    } else if (const auto* encode = dynamic_cast<const EncodeStage*>(made.get())) {
      codec_name_ = encode->codec();
      codec_ = registry().make<Codec>(codec_name_);
    } else {
      throw Error(Errc::usage,
                  fmt::format("kv: '{}' is a {} stage, which the paged cache cannot run",
                              stage.name, name(made->role())));
    }
    stages_.push_back(std::move(made));
  }
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
  for (std::int64_t layer = 0; auto* store : kv_stores(state)) store->use(plan, layer++);
}

KvUsage kv_usage(const State& state, std::int64_t row) {
  KvUsage out;
  const auto stores = kv_stores(state);
  for (const auto* store : stores) {
    out.seen = std::max(out.seen, store->seen(row));
    out.kept += store->kept(row) / static_cast<double>(stores.size());
    out.bytes += store->allocated_bytes();
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
