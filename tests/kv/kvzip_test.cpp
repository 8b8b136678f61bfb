// The second pass over a prompt against attention written out over all its queries, and what kvzip makes of it.
#include "mneme/core/taps.h"
#include "mneme/kv/plan.h"
#include "mneme/models/reconstruct.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include "../tensor_check.h"
#include "../tiny_models.h"
#include "made_layer.h"
#include <functional>
#include <gtest/gtest.h>
#include <map>

namespace mneme {

namespace mechanisms::witness {
std::function<void(const LayerView&)>& told();
}

namespace {

using namespace check;
using Tokens = std::vector<std::int32_t>;

at::Tensor batch(const Tokens& ids) { return at::tensor(ids, at::kLong).unsqueeze(0); }

Tokens text(std::int64_t n, std::uint64_t seed) {
  Tokens out;
  for (const auto id : numbers(random_ids(1, n, 50, seed))) out.push_back(static_cast<int>(id));
  return out;
}

class SecondPass : public ::testing::Test {
 protected:
  ~SecondPass() override { mechanisms::witness::told() = nullptr; }

  [[nodiscard]] State start(const std::string& chain, const Tokens& ids) const {
    auto state = tiny_.model->start(1);
    if (!chain.empty()) use_plan(state, std::make_shared<KvPlan>(parse_chain(chain)));
    (void)tiny_.logits(batch(ids), state);
    return state;
  }
  void end(State& state, const Tokens& ids) const {
    reconstruct(*tiny_.model, Compute::f32, state, ids, how_);
    finish_prompt(state);
  }
  /// Queries [4,T,8] or keys [2,T,8] of each layer, not turned, while a text is read.
  std::pair<std::vector<at::Tensor>, std::vector<at::Tensor>> tapped(const Tokens& ids,
                                                                     State& state) const {
    std::vector<at::Tensor> q(2), k(2);
    const auto note = [](std::vector<at::Tensor>& of_layers) {
      return [&](std::string_view name, const at::Tensor& x) {
        of_layers[name.starts_with("layers.0") ? 0 : 1] = x[0].clone();
        return x;
      };
    };
    Taps taps;
    taps.add("layers.*.attn.q", note(q));
    taps.add("layers.*.attn.k", note(k));
    Batch pass;
    pass.ids = batch(ids);
    pass.taps = &taps;
    pass.compute = Compute::f32;
    (void)tiny_.model->forward(pass, state);
    return {q, k};
  }

  const c10::InferenceMode inference_;
  const TinyModel tiny_{kTinyDecoder};
  const Reconstruction how_{{1, 2, 3}, {4, 5}, {6}, 20, 3, 2, 7};
};

TEST_F(SecondPass, NotesTheMostThatAnyQueryLooksAtAnEntry) {
  constexpr double kTheta = 10000;
  const auto scale = 1 / std::sqrt(8.0);
  const auto ids = text(50, 4);
  State full = tiny_.model->start(1);
  const auto keys = tapped(ids, full).second;
  std::map<std::vector<std::int64_t>, double> want;  // by layer, head, token
  for (std::int64_t begin = 0; begin < 50; begin += 20) {
    const auto end = std::min<std::int64_t>(50, begin + 20);
    Tokens again = begin == 0 ? Tokens{1, 2, 3} : Tokens{4, 5};
    if (begin > 0) again.insert(again.end(), ids.begin() + begin - 3, ids.begin() + begin);
    again.push_back(6);
    again.insert(again.end(), ids.begin() + begin, ids.begin() + end);
    auto fork = full.fork();
    const auto [q, k] = tapped(again, fork);
    Indices seen;
    for (std::int64_t t = 0; t < std::min<std::int64_t>(2, begin); ++t) seen.push_back(t);
    for (auto t = begin; t < end; ++t) seen.push_back(t);
    for (std::int64_t l = 0; l < 2; ++l) {
      const auto layer = static_cast<std::size_t>(l);
      for (std::int64_t h = 0; h < 4; ++h) {
        for (std::int64_t i = 0; i < q[layer].size(1); ++i) {
          const auto query =
              rotated(numbers(q[layer][h][i]), 50.0 + static_cast<double>(i), kTheta);
          Numbers z;
          for (const auto t : seen)
            z.push_back(scale * dot(query, rotated(numbers(keys[layer][h / 2][t]),
                                                   static_cast<double>(t), kTheta)));
          for (std::int64_t j = 0; j <= i; ++j)
            z.push_back(scale * dot(query, rotated(numbers(k[layer][h / 2][j]),
                                                   50.0 + static_cast<double>(j), kTheta)));
          const auto a = softmax(z);
          for (std::size_t n = 0; n < seen.size(); ++n) {
            if (seen[n] < begin) continue;
            auto& most = want[{l, h / 2, seen[n]}];
            most = std::max(most, a[n]);
          }
        }
      }
    }
  }
  std::int64_t looks = 0;
  mechanisms::witness::told() = [&](const LayerView& view) {
    ++looks;
    for (std::int64_t h = 0; h < 2; ++h) {
      const auto got = view.reconstruction_weights(h);
      ASSERT_EQ(got.numel(), 50);
      for (std::int64_t t = 0; t < 50; ++t)
        EXPECT_NEAR(got[t].item<double>(), want.at({view.layer, h, t}), 1e-5)
            << "layer " << view.layer << " head " << h << " token " << t;
    }
  };
  auto state = start("witness(again=true) | threshold(when=end)", ids);
  const auto bytes = kv_usage(state).bytes;
  end(state, ids);
  EXPECT_EQ(looks, 2);
  EXPECT_EQ(kv_usage(state).seen, 50) << "what was read again is gone";
  EXPECT_EQ(kv_usage(state).bytes, bytes);
  EXPECT_TRUE(identical(tiny_.logits(batch({7, 8}), state), tiny_.logits(batch({7, 8}), full)));
}

TEST_F(SecondPass, KvZipKeepsWhatIsLookedAtMost) {
  const auto ids = text(50, 12);
  std::map<std::vector<std::int64_t>, double> weight;
  std::map<std::int64_t, std::vector<Indices>> kept;  // by layer, of each head
  mechanisms::witness::told() = [&](const LayerView& view) {
    for (std::int64_t h = 0; h < 2; ++h) {
      const auto tokens = view.head(h).token_indices;
      const auto x = numbers(view.reconstruction_weights(h));
      if (tokens.size() == 50) {
        for (std::int64_t t = 0; t < 50; ++t)
          weight[{view.layer, h, t}] = x[static_cast<std::size_t>(t)];
      }
      kept[view.layer].resize(2);
      kept[view.layer][static_cast<std::size_t>(h)] = {tokens.begin(), tokens.end()};
      for (std::size_t i = 0; i < x.size(); ++i)
        EXPECT_EQ(x[i], (weight.at({view.layer, h, tokens[i]}))) << "it goes with its entry";
    }
  };
  enum class Shared { head, layer, model };
  for (const auto& [budget, shared] : {std::pair<std::string, Shared>{"", Shared::head},
                                       {"adakv(floor=0) | ", Shared::layer},
                                       {"adakv(floor=0, scope=model) | ", Shared::model}}) {
    weight.clear();
    auto state = start("witness(again=true) | threshold(when=end) | kvzip | " + budget +
                           "keep(entries=20, sinks=0, recent=0, when=end) | witness | "
                           "threshold(when=end)",
                       ids);
    end(state, ids);
    EXPECT_EQ(kv_usage(state).kept, 20);
    double least = 1, most_dropped = 0;
    for (std::int64_t l = 0; l < 2; ++l) {
      if (shared == Shared::layer) least = 1, most_dropped = 0;
      for (std::int64_t h = 0; h < 2; ++h) {
        if (shared == Shared::head) least = 1, most_dropped = 0;
        const auto& of_head = kept[l][static_cast<std::size_t>(h)];
        for (std::int64_t t = 0; t < 50; ++t) {
          const bool stays = std::find(of_head.begin(), of_head.end(), t) != of_head.end();
          const auto x = weight[{l, h, t}];
          (stays ? least : most_dropped) = stays ? std::min(least, x) : std::max(most_dropped, x);
        }
        if (shared == Shared::head) {
          EXPECT_EQ(of_head.size(), 20U);
        }
        EXPECT_GE(least, most_dropped) << "of what was judged so far";
      }
    }
    if (shared == Shared::model) {
      EXPECT_NE(kept[0][0].size() + kept[0][1].size(), 40U) << "layers differ";
    }
  }
}

TEST_F(SecondPass, AnotherPromptIsReadAloneAndSavedWeightsStay) {
  const auto first = text(40, 6), second = text(30, 7);
  auto state = start("kvzip | keep(ratio=0.5, sinks=1, recent=2, when=end)", first);
  end(state, first);
  EXPECT_EQ(kv_usage(state).kept, 20);
  const auto reply = batch({9, 9, 9});
  (void)tiny_.logits(reply, state);
  auto loaded = State::load(state.save());
  for (auto* x : {&state, &loaded}) {
    (void)tiny_.logits(batch(second), *x);
    end(*x, second);
    EXPECT_EQ(kv_usage(*x).kept, 37) << "ceil(73 / 2)";
  }
  EXPECT_TRUE(identical(tiny_.logits(reply, loaded), tiny_.logits(reply, state)));
}

TEST_F(SecondPass, IsCutToWhatTheContextHolds) {
  const TinyModel small(
      "decoder(vocabulary=50, model=32, layers=2, context=200, mixer=softmax(heads=4, kv_heads=2, "
      "head=8), feed_forward=glu(hidden=48))");
  const auto run = [&](std::int64_t n) {
    const auto ids = text(n, 8);
    auto state = small.model->start(1);
    use_plan(state, std::make_shared<KvPlan>(
                        parse_chain("kvzip | keep(ratio=0.5, sinks=0, recent=0, when=end)")));
    (void)small.logits(batch(ids), state);
    reconstruct(*small.model, Compute::f32, state, ids, {{1}, {2}, {3}});
    finish_prompt(state);
    return kv_usage(state).kept;
  };
  EXPECT_EQ(run(110), 55) << "twice as much has no room";
  check::expect_error(Errc::full, "", [&] { (void)run(190); });
}

TEST_F(SecondPass, WithoutItNothingIsDropped) {
  const auto ids = text(50, 9);
  auto state = start("kvzip | keep(ratio=0.5, sinks=0, recent=0, when=end)", ids);
  check::expect_error(Errc::unsupported, "second pass", [&] { finish_prompt(state); });
  EXPECT_EQ(kv_usage(state).kept, 50);
  auto two = State::concat({&state, &state});
  check::expect_error(Errc::unsupported, "one row", [&] { end(two, ids); });
  check::expect_error(Errc::invalid, "more tokens", [&] { end(state, text(51, 9)); });
}

TEST_F(SecondPass, LayersThatShareKeepAsMuchWhenTheyWereLoaded) {
  const std::string chain =
      "kvzip | adakv(floor=0, scope=model) | keep(ratio=0.5, sinks=1, "
      "recent=2, when=end)";
  const auto ids = text(40, 11);
  auto state = start(chain, ids);
  auto loaded = State::load(state.save());
  for (auto* x : {&state, &loaded}) {
    end(*x, ids);
    EXPECT_EQ(kv_usage(*x).kept, 20);
  }
  const auto next = batch({9, 9, 9});
  EXPECT_TRUE(identical(tiny_.logits(next, loaded), tiny_.logits(next, state)));
  check::expect_error(Errc::usage, "when=end", [] {
    const KvPlan plan(parse_chain("h2o | adakv(scope=model) | keep(ratio=0.5)"));
  });
}

TEST(KvZip, WhatWasNotReadAgainCountsAsTheOthersDoOnAverage) {
  auto layer = whole(4, 1);
  layer.again[0] = at::tensor({0.5F, kNan, 0.0F, 0.25F});
  expect_near(scores("kvzip", layer)[0], {0.5, 0.25, 0, 0.25});
}

TEST(KvZip, IsRefusedWhereEntriesGoBefore) {
  for (const std::string chain :
       {"kvzip | keep(ratio=0.5)", "chunk(of=kvzip) | keep(entries=9)", "kvzip | threshold"})
    check::expect_error(Errc::usage, "when=end", [&] { KvPlan plan(parse_chain(chain)); });
  EXPECT_TRUE(KvPlan(parse_chain("chunk(of=kvzip) | threshold(when=end)")).needs().reconstruction);
}

}  // namespace
}  // namespace mneme
