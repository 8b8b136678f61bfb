// What calibrations measure: estimators on vectors of known direction, heads that copy by construction, and the whole way
// over a small model, each against a computation of the test's own.
#include "mneme/probes/calibration.h"

#include "mneme/core/registry.h"
#include "mneme/core/taps.h"
#include "mneme/probes/attention.h"
#include "mneme/probes/moments.h"
#include "mneme/probes/needles.h"

#include <ATen/ATen.h>

#include "../smollm2.h"
#include "../tensor_check.h"
#include "../tiny_models.h"
#include <cmath>
#include <gtest/gtest.h>
#include <map>
#include <set>
#include <sstream>

namespace mneme {
namespace {

/// Bytes as tokens.
class ByteTokenizer final : public Tokenizer {
 public:
  [[nodiscard]] std::vector<std::int32_t> encode(std::string_view text,
                                                 const EncodeOptions&) const override {
    std::vector<std::int32_t> out;
    for (const unsigned char c : text) out.push_back(c);
    return out;
  }
  [[nodiscard]] std::int64_t lost_bytes(std::string_view) const override { return 0; }
  [[nodiscard]] std::string decode(std::span<const std::int32_t> ids, bool) const override {
    std::string out;
    for (const auto id : ids) out += static_cast<char>(id);
    return out;
  }
  [[nodiscard]] std::string token_bytes(std::int32_t id) const override {
    return {static_cast<char>(id)};
  }
  [[nodiscard]] std::int64_t vocabulary_size() const override { return 256; }
  [[nodiscard]] std::optional<std::int32_t> id_of(std::string_view) const override { return {}; }
  [[nodiscard]] bool is_special(std::int32_t) const override { return false; }
  [[nodiscard]] std::optional<std::int32_t> bos() const override { return {}; }
  [[nodiscard]] std::optional<std::int32_t> eos() const override { return {}; }
  [[nodiscard]] const std::vector<std::int32_t>& end_of_generation() const override {
    return none_;
  }
  [[nodiscard]] std::string digest() const override { return "bytes"; }

 private:
  std::vector<std::int32_t> none_;
};

constexpr std::int64_t kLayers = 2, kHeads = 4, kKvHeads = 2, kWidth = 8;

std::unique_ptr<LanguageModel> tiny(
    const std::string& mixer = "softmax(heads=4, kv_heads=2, head=8, rope_theta=100)") {
  auto out = std::make_unique<LanguageModel>();
  check::TinyModel made("decoder(vocabulary=256, model=32, layers=2, context=0, mixer=" + mixer +
                        ", feed_forward=glu(hidden=48))");
  out->name = "tiny";
  out->params = std::move(made.params);
  out->model = std::move(made.model);
  out->tokenizer = std::make_unique<ByteTokenizer>();
  out->compute = Compute::f32;
  return out;
}

std::string prose(std::size_t bytes) {
  std::string out;
  while (out.size() < bytes) out += check::kProse;
  out.resize(bytes);
  return out;
}

double degrees(const at::Tensor& a, const at::Tensor& b) {
  const auto cosine = ((a * b).sum() / (a.norm() * b.norm())).item<double>();
  return std::acos(std::min(1.0, std::max(-1.0, cosine))) * 180 / M_PI;
}

at::Tensor unit(at::Tensor x) { return x / x.norm(2, -1, true); }

// Queries N(c u, eps I), of heads that look in directions of their own.
at::Tensor around(const at::Tensor& u, double c, double eps, std::int64_t n, std::uint64_t seed) {
  return c * u.unsqueeze(1) +
         eps * check::normal({u.size(0), n, u.size(1)}, seed, at::kDouble);  // [H,n,d]
}

TEST(QueryFilters, RecoverTheDirectionOfSyntheticQueries) {
  const auto u = unit(check::normal({3, 64}, 1, at::kDouble));
  Moments queries(3, 64);
  queries.add(around(u, 3, 0.3, 3000, 2));
  const auto found = query_filters(queries, 3);
  for (std::int64_t h = 0; h < 3; ++h) {
    EXPECT_LT(degrees(found.filters[h], u[h]), 1.0) << "head " << h;
    EXPECT_GT(found.positive[h].item<double>(), 0);
    // Of c^2 + 64 eps^2 in all, c^2 + eps^2 lie along u.
    EXPECT_NEAR(found.share[h].item<double>(), 9.09 / (9 + 64 * 0.09), 0.01);
  }
}

TEST(QueryFilters, AreTheFirstSingularVectorsTurnedToAPositiveMeanAndAveragedOverTheGroup) {
  const std::int64_t n = 200, d = 12;
  auto q = check::normal({4, n, d}, 3, at::kDouble);
  q += check::normal({4, 1, d}, 4, at::kDouble);
  Moments queries(4, d);
  queries.add(q);
  const auto found = query_filters(queries, 2);
  at::Tensor own = at::empty({4, d}, at::kDouble);
  for (std::int64_t h = 0; h < 4; ++h) {
    const auto [U, S, V] = at::svd(q[h]);
    auto v = V.select(1, 0);
    if (at::mv(q[h], v).mean().item<double>() < 0) v = -v;
    EXPECT_GT(at::mv(q[h], v).mean().item<double>(), 0) << "head " << h;
    own[h] = v;
    EXPECT_NEAR(found.share[h].item<double>(), (S[0] * S[0] / S.square().sum()).item<double>(),
                1e-9);
  }
  for (std::int64_t g = 0; g < 2; ++g) {
    EXPECT_TRUE(check::close(found.filters[g], unit((own[2 * g] + own[2 * g + 1]) / 2), 1e-9));
    EXPECT_NEAR(found.filters[g].norm().item<double>(), 1, 1e-12);
    for (std::int64_t h = 2 * g; h < 2 * g + 2; ++h)
      EXPECT_NEAR(found.positive[h].item<double>(),
                  at::mv(q[h], found.filters[g]).mean().item<double>(), 1e-9);
  }
}

TEST(QueryFilters, OfHeadsThatLookInOppositeDirectionsTheFirstStands) {
  const auto u = unit(check::normal({1, 16}, 5, at::kDouble));
  Moments queries(2, 16);
  const auto q = around(u, 1, 0, 10, 6);
  queries.add(at::cat({q, -q}));
  const auto found = query_filters(queries, 1);
  EXPECT_TRUE(check::close(found.filters[0], u[0], 1e-9));
  EXPECT_LT(found.positive[1].item<double>(), 0) << "and the other is told to be missed";
}

TEST(Moments, NeitherOrderNorBatchesMatter) {
  const auto x = check::normal({2, 301, 10}, 7) + 0.5;
  Moments whole(2, 10), pieces(2, 10);
  whole.add(x);
  const auto shuffled = x.flip(1);
  pieces.add(shuffled.narrow(1, 100, 201));
  pieces.add(shuffled.narrow(1, 0, 1));
  pieces.add(shuffled.narrow(1, 1, 99));
  EXPECT_EQ(pieces.count(), 301);
  EXPECT_TRUE(check::close(pieces.second(), whole.second(), 1e-12));
  EXPECT_TRUE(check::close(pieces.covariance(), whole.covariance(), 1e-12));
  EXPECT_TRUE(
      check::close(query_filters(pieces, 1).filters, query_filters(whole, 1).filters, 1e-10));
  EXPECT_TRUE(check::close(principal_axes(pieces).axes, principal_axes(whole).axes, 1e-9));
}

TEST(PrincipalAxes, AreOrthogonalAndTakeTheVarianceInFallingOrder) {
  const std::int64_t n = 400, d = 9;
  const auto scales = at::tensor({9., 7., 5., 4., 3., 2., 1., .5, .1}, at::kDouble);
  const auto mixed = at::matmul(check::normal({2, n, d}, 8, at::kDouble) * scales,
                                check::normal({2, d, d}, 9, at::kDouble)) +
                     4;
  Moments keys(2, d);
  keys.add(mixed);
  const auto found = principal_axes(keys);
  const auto eye = at::eye(d, at::kDouble);
  for (std::int64_t h = 0; h < 2; ++h) {
    const auto P = found.axes[h];
    EXPECT_LT(check::largest_difference(at::mm(P.t(), P), eye), 1e-12);
    const auto [U, S, V] = at::svd(mixed[h] - mixed[h].mean(0, true));
    EXPECT_TRUE(check::close(found.variance[h], S.square() / S.square().sum(), 1e-9));
    // Along each axis, x P varies as the singular value says.
    const auto along = at::mm(mixed[h], P);
    EXPECT_TRUE(check::close(along.var(0, false), S.square() / static_cast<double>(n), 1e-9));
    EXPECT_NEAR(found.variance[h].sum().item<double>(), 1, 1e-12);
    for (std::int64_t c = 0; c < d; ++c) {
      const auto axis = P.select(1, c);
      EXPECT_GT(axis[axis.abs().argmax()].item<double>(), 0) << "the sign is fixed";
    }
  }
}

TEST(PrincipalAxes, RankIsTheLeastNumberOfAxesThatHoldTheShare) {
  const auto variance = at::tensor({.5, .3, .15, .05, 1., 0., 0., 0.}, at::kDouble).view({2, 4});
  const auto rank = [&](double share) {
    const auto r = rank_at(variance, share);
    return std::vector<std::int64_t>{r[0].item<std::int64_t>(), r[1].item<std::int64_t>()};
  };
  EXPECT_EQ(rank(0.9), (std::vector<std::int64_t>{3, 1}));
  EXPECT_EQ(rank(0.8), (std::vector<std::int64_t>{2, 1})) << "exactly the share is enough";
  EXPECT_EQ(rank(1.0), (std::vector<std::int64_t>{4, 1}));
}

TEST(AttentionLogits, AreThoseOfALoop) {
  const std::int64_t Hq = 4, H = 2, T = 7, d = 6;
  const auto q = check::normal({Hq, 2, d}, 10), k = check::normal({H, T, d}, 11);
  const auto got = attention_logits(q, k, at::tensor({3, 6}, at::kLong));
  for (std::int64_t h = 0; h < Hq; ++h) {
    for (std::int64_t i = 0; i < 2; ++i) {
      for (std::int64_t j = 0; j < T; ++j) {
        double want = 0;
        for (std::int64_t c = 0; c < d; ++c)
          want += q[h][i][c].item<double>() * k[h / 2][j][c].item<double>();
        const auto value = got[h][i][j].item<double>();
        if (j > (i == 0 ? 3 : 6)) {
          EXPECT_EQ(value, -std::numeric_limits<double>::infinity());
        } else {
          EXPECT_NEAR(value, want / std::sqrt(6.0), 1e-5);
        }
      }
    }
  }
}

/// What is shown of a model is what it computes with: values weighed by the logits give the mixer's own output.
TEST(WatchAttention, ShowsWhatTheModelAttendsWith) {
  const c10::InferenceMode inference;
  const auto model = tiny();
  const auto shape = attention_of(*model);
  EXPECT_EQ(shape.layers, kLayers);
  EXPECT_EQ(shape.heads, kHeads);
  EXPECT_EQ(shape.kv_heads, kKvHeads);
  EXPECT_EQ(shape.width, kWidth);
  const auto ids = model->tokenizer->encode(prose(40));
  const auto T = static_cast<std::int64_t>(ids.size());
  std::map<std::string, at::Tensor> values, outs;
  Taps taps;
  taps.add("layers.*.attn.v", [&](std::string_view name, const at::Tensor& v) {
    return values[std::string(name.substr(0, 8))] = v;
  });
  taps.add("layers.*.attn.out", [&](std::string_view name, const at::Tensor& y) {
    return outs[std::string(name.substr(0, 8))] = y;
  });
  Batch batch;
  batch.ids = at::tensor(at::ArrayRef<std::int32_t>(ids)).to(at::kLong).unsqueeze(0);
  batch.compute = Compute::f32;
  batch.taps = &taps;
  auto state = model->model->start(1);
  (void)model->model->forward(batch, state);
  std::int64_t layers = 0;
  watch_rows(*model, shape, ids, 0, T, [&](std::int64_t layer, const at::Tensor& logits) {
    const auto name = "layers." + std::to_string(layer);
    const auto v = values.at(name)[0].repeat_interleave(kHeads / kKvHeads, 0);  // [Hq,T,d]
    const auto y = at::matmul(logits.softmax(-1), v).transpose(0, 1).reshape({T, kHeads * kWidth});
    const auto W = model->params.find(name + ".attn.out.weight")->tensor;
    EXPECT_TRUE(check::close(at::mm(y, W.t()), outs.at(name)[0], 1e-4)) << name;
    ++layers;
  });
  EXPECT_EQ(layers, kLayers);
}

TEST(WatchAttention, PiecesShowTheSame) {
  const auto model = tiny();
  const auto ids = model->tokenizer->encode(prose(50));
  std::map<std::int64_t, std::vector<at::Tensor>> whole, pieces;
  watch_attention(
      *model, ids, 50, [](std::int64_t) {},
      [&](std::int64_t layer, std::int64_t, const at::Tensor& q, const at::Tensor&) {
        whole[layer].push_back(q.clone());
      });
  std::vector<std::int64_t> told;
  watch_attention(
      *model, ids, 17, [&](std::int64_t n) { told.push_back(n); },
      [&](std::int64_t layer, std::int64_t first, const at::Tensor& q, const at::Tensor&) {
        EXPECT_EQ(first, 17 * static_cast<std::int64_t>(pieces[layer].size()));
        pieces[layer].push_back(q.clone());
      });
  EXPECT_EQ(told, (std::vector<std::int64_t>{17, 17, 16}));
  for (std::int64_t layer = 0; layer < kLayers; ++layer)
    EXPECT_TRUE(check::close(at::cat(pieces[layer], 1), whole[layer].front(), 1e-5));
}

TEST(WatchAttention, AModelWithoutSoftmaxAttentionIsRefused) {
  const auto model = tiny("decaying_sum(width=4)");
  check::expect_error(Errc::unsupported, "without softmax attention",
                      [&] { (void)attention_of(*model); });
}

/// Five heads over a text of tokens, by hand: what each looks at while "7 8 9 8" is written, whose needle is at 3.
TEST(Copied, AHeadThatCopiesByConstructionScoresOneAndOthersNothing) {
  const std::vector<std::int32_t> ids{0, 9, 4, 7, 8, 9, 8, 5, 7, 6, 7, 8, 9};
  const std::vector<std::int32_t> written{7, 8, 9, 8};
  const std::int64_t T = 13, first = 9;  // the row that the first token is written from
  // One dimension a place: a query is where it looks.
  const auto keys = at::eye(T).unsqueeze(0).repeat({5, 1, 1});
  const std::vector<std::vector<std::int64_t>> looks{
      {3, 4, 5, 6},   // the token's own place
      {0, 0, 0, 0},   // the sink
      {8, 0, 1, 0},   // the same tokens, but elsewhere in the text
      {3, 6, 4, 4},   // 8 at another of its places counts; 9 is not found
      {4, 5, 6, 3}};  // one place too far
  auto queries = at::zeros({5, 4, T});
  for (std::int64_t h = 0; h < 5; ++h) {
    for (std::int64_t i = 0; i < 4; ++i) queries[h][i][looks[h][i]] = 30;
  }
  const auto rows = at::arange(first, first + 4, at::kLong);
  const auto found = copied(attention_logits(queries, keys, rows), ids, 3, written);
  const std::vector<double> tokens{1, 0, 0, 2.0 / 3, 0}, steps{1, 0, 0, 3.0 / 4, 0};
  for (std::int64_t h = 0; h < 5; ++h) {
    EXPECT_DOUBLE_EQ(found.tokens[h].item<double>(), tokens[h]) << "head " << h;
    EXPECT_DOUBLE_EQ(found.steps[h].item<double>(), steps[h]) << "head " << h;
  }
}

TEST(EvidenceShare, IsTheWeightOnTheSentence) {
  const auto logits =
      at::log(at::tensor({.1, .2, .3, .4, .25, .25, .25, .25}, at::kFloat)).view({2, 4});
  const auto share = evidence_share(logits, 1, 2);
  EXPECT_NEAR(share[0].item<double>(), 0.5, 1e-6);
  EXPECT_NEAR(share[1].item<double>(), 0.5, 1e-6);
  EXPECT_NEAR(evidence_share(logits, 3, 1)[0].item<double>(), 0.4, 1e-6);
}

TEST(RankCorrelation, AWorkedCase) {
  const auto a = at::tensor({1., 2., 2., 4.}), b = at::tensor({10., 30., 20., 20.});
  // Ranks 0, 1.5, 1.5, 3 and 0, 3, 1.5, 1.5: deviations (-1.5, 0, 0, 1.5) and (-1.5, 1.5, 0, 0).
  EXPECT_NEAR(rank_correlation(a, b), 2.25 / 4.5, 1e-12);
  EXPECT_NEAR(rank_correlation(a, a.exp()), 1, 1e-12) << "only the order counts";
  EXPECT_NEAR(rank_correlation(a, -a), -1, 1e-12);
  EXPECT_EQ(rank_correlation(a, at::ones({4})), 0);
}

TEST(Needles, TheTwoSetsShareNoWordOfTheirAnswers) {
  std::set<std::string> words[2];
  for (int set = 0; set < 2; ++set) {
    for (std::int64_t i = 0; i < 200; ++i) {
      const auto fact = draw_needle(set, i);
      std::istringstream in(fact.answer);
      for (std::string word; in >> word;) {
        if (word != "and") words[set].insert(word);
      }
      EXPECT_EQ(fact.answer, draw_needle(set, i).answer) << "drawn from the index alone";
    }
    EXPECT_GT(words[set].size(), 20u);
  }
  for (const auto& word : words[0]) EXPECT_FALSE(words[1].contains(word)) << word;
}

TEST(Needles, StandInTheTextAsTheySay) {
  const auto model = tiny();
  const auto filler = model->tokenizer->encode(prose(3000));
  for (const double depth : {0.0, 0.3, 1.0}) {
    for (std::int64_t i = 0; i < 6; ++i) {
      const auto fact = draw_needle(static_cast<int>(i % 2), i);
      const auto prompt = needle_prompt(*model, filler, fact, 100 * i, 900, depth);
      const auto text = [&](std::int64_t begin, std::int64_t n) {
        return model->tokenizer->decode(
            std::span(prompt.ids)
                .subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(n)));
      };
      EXPECT_EQ(text(prompt.needle, prompt.needle_tokens), fact.before + fact.answer + fact.behind);
      EXPECT_EQ(text(prompt.answer, prompt.answer_tokens), fact.answer);
      const auto end = static_cast<std::int64_t>(prompt.ids.size());
      EXPECT_EQ(end, 899) << "all that was asked for but the answer's last token";
      const auto asked = static_cast<std::int64_t>(fact.question.size());
      EXPECT_EQ(text(prompt.asked - asked, asked), fact.question);
      EXPECT_EQ(text(prompt.asked, end - prompt.asked) + fact.answer.back(), fact.answer);
      if (depth == 0) {
        EXPECT_EQ(prompt.needle, 0);
      } else {
        const auto text_tokens = prompt.asked - asked - prompt.needle_tokens;
        EXPECT_GE(prompt.needle,
                  static_cast<std::int64_t>(depth * static_cast<double>(text_tokens)));
        if (prompt.needle < text_tokens) {
          EXPECT_EQ(text(prompt.needle - 1, 1), ".");
        }
      }
    }
  }
  check::expect_error(Errc::invalid, "leave no room",
                      [&] { (void)needle_prompt(*model, filler, draw_needle(0, 0), 0, 50, 0.5); });
}

std::function<void()> nothing() {
  return [] {};
}

/// Queries and keys of every layer of a text that is read at once, by taps of the test's own.
std::vector<std::pair<at::Tensor, at::Tensor>> vectors_of(const LanguageModel& model,
                                                          const std::string& text) {
  const c10::InferenceMode inference;
  std::vector<std::pair<at::Tensor, at::Tensor>> out(kLayers);
  Taps taps;
  for (std::size_t layer = 0; layer < out.size(); ++layer) {
    const auto at = "layers." + std::to_string(layer) + ".attn.";
    taps.add(at + "q", [&out, layer](std::string_view, const at::Tensor& q) {
      out[layer].first = q[0].to(at::kDouble);
      return q;
    });
    taps.add(at + "k", [&out, layer](std::string_view, const at::Tensor& k) {
      out[layer].second = k[0].to(at::kDouble);
      return k;
    });
  }
  const auto ids = model.tokenizer->encode(text);
  Batch batch;
  batch.ids = at::tensor(at::ArrayRef<std::int32_t>(ids)).to(at::kLong).unsqueeze(0);
  batch.compute = Compute::f32;
  batch.taps = &taps;
  auto state = model.model->start(1);
  (void)model.model->forward(batch, state);
  return out;
}

/// Channels c and c + d/2 turned by p theta^(-2c/d), by the formula.
at::Tensor turned_by_hand(const at::Tensor& x, const std::vector<std::int64_t>& positions) {
  auto out = at::empty_like(x);
  const auto half = kWidth / 2;
  for (std::int64_t t = 0; t < x.size(1); ++t) {
    for (std::int64_t c = 0; c < half; ++c) {
      const auto angle = static_cast<double>(positions[static_cast<std::size_t>(t)]) *
                         std::pow(100.0, -2.0 * static_cast<double>(c) / kWidth);
      const auto a = x.select(1, t).select(1, c), b = x.select(1, t).select(1, c + half);
      out.select(1, t).select(1, c).copy_(a * std::cos(angle) - b * std::sin(angle));
      out.select(1, t).select(1, c + half).copy_(b * std::cos(angle) + a * std::sin(angle));
    }
  }
  return out;
}

TEST(Calibration, QFilterOfASmallModelIsWhatTheSingularVectorsSay) {
  const auto model = tiny();
  const auto text = prose(130);
  const auto got = registry()
                       .make<Calibration>("qfilter(tokens=120, positions=300)")
                       ->run(*model, {"prose", text}, nothing());
  const auto filters = got.numbers.at("qfilter");
  ASSERT_EQ(filters.sizes(), at::IntArrayRef({kLayers, kKvHeads, kWidth}));
  std::vector<std::int64_t> positions;
  for (std::int64_t t = 0; t < 120; ++t) positions.push_back(t * 300 / 120);
  const auto vectors = vectors_of(*model, text.substr(0, 120));
  for (std::int64_t layer = 0; layer < kLayers; ++layer) {
    const auto q = turned_by_hand(vectors[static_cast<std::size_t>(layer)].first, positions);
    for (std::int64_t g = 0; g < kKvHeads; ++g) {
      auto sum = at::zeros({kWidth}, at::kDouble);
      for (std::int64_t h = 2 * g; h < 2 * g + 2; ++h) {
        auto v = std::get<2>(at::svd(q[h])).select(1, 0);
        if (at::mv(q[h], v).mean().item<double>() < 0) v = -v;
        sum += v;
      }
      EXPECT_TRUE(check::close(filters[layer][g], unit(sum), 1e-3)) << layer << " " << g;
      EXPECT_NEAR(filters[layer][g].norm().item<double>(), 1, 1e-5);
    }
  }
  EXPECT_EQ(got.by_layer.at("explained share").size(), 2u);
  const auto again = registry()
                         .make<Calibration>("qfilter(tokens=120, positions=300)")
                         ->run(*model, {"prose", text}, nothing());
  EXPECT_TRUE(check::identical(again.numbers.at("qfilter"), filters));
}

TEST(Calibration, KeyPcaOfASmallModelTakesItsKeysApart) {
  const auto model = tiny();
  const auto text = prose(200);
  const auto got = registry()
                       .make<Calibration>("key_pca(tokens=200, positions=1)")
                       ->run(*model, {"prose", text}, nothing());
  ASSERT_EQ(got.numbers.size(), 4u);
  std::vector<std::int64_t> positions;
  for (std::int64_t t = 0; t < 200; ++t) positions.push_back(t);
  const auto vectors = vectors_of(*model, text);
  for (const std::string space : {"pre", "post"}) {
    const auto axes = got.numbers.at("key_pca." + space),
               variance = got.numbers.at("key_pca." + space + ".variance");
    ASSERT_EQ(axes.sizes(), at::IntArrayRef({kLayers, kKvHeads, kWidth, kWidth}));
    for (std::int64_t layer = 0; layer < kLayers; ++layer) {
      auto k = vectors[static_cast<std::size_t>(layer)].second;
      if (space == "post") k = turned_by_hand(k, positions);
      for (std::int64_t h = 0; h < kKvHeads; ++h) {
        const auto P = axes[layer][h].to(at::kDouble);
        EXPECT_LT(check::largest_difference(at::mm(P.t(), P), at::eye(kWidth, at::kDouble)), 1e-5);
        const auto along = at::mm(k[h], P).var(0, false);
        EXPECT_TRUE(check::close(along / along.sum(), variance[layer][h], 1e-3))
            << space << " " << layer << " " << h;
        EXPECT_TRUE((variance[layer][h].diff() <= 0).all().item<bool>());
      }
    }
  }
  const auto only = registry()
                        .make<Calibration>("key_pca(space=pre, tokens=200)")
                        ->run(*model, {"prose", text}, nothing());
  EXPECT_EQ(only.numbers.size(), 2u);
  EXPECT_TRUE(check::identical(only.numbers.at("key_pca.pre"), got.numbers.at("key_pca.pre")));
}

TEST(Calibration, HeadsOfASmallModelScoreWithinBounds) {
  const auto model = tiny();
  const CalibrationText text{"prose", prose(3000)};
  for (const std::string spec :
       {"retrieval_heads(needles=4, tokens=4096)", "evaluator_heads(needles=4, tokens=600)"}) {
    const auto got = registry().make<Calibration>(spec)->run(*model, text, nothing());
    const auto scores = got.numbers.at(spec.substr(0, spec.find('(')));
    ASSERT_EQ(scores.sizes(), at::IntArrayRef({kLayers, kHeads})) << spec;
    EXPECT_GE(scores.min().item<double>(), 0) << spec;
    EXPECT_LE(scores.max().item<double>(), 1) << spec;
    EXPECT_GT(scores.max().item<double>(), 0) << spec;
    EXPECT_TRUE(check::identical(
        registry().make<Calibration>(spec)->run(*model, text, nothing()).numbers.begin()->second,
        scores));
  }
}

TEST(Calibration, AShortTextIsRefusedAndWorkCanBeEnded) {
  const auto model = tiny();
  for (const auto& name : registry().names("calibration")) {
    const auto calibration = registry().make<Calibration>(name);
    check::expect_error(Errc::invalid, "short.txt: has 20 tokens", [&] {
      (void)calibration->run(*model, {"short.txt", prose(20)}, nothing());
    });
    struct Ended {};
    EXPECT_THROW((void)calibration->run(*model, {"prose", prose(6000)}, [] { throw Ended(); }),
                 Ended)
        << name;
  }
}

/// On the real model every query head agrees with its group's filter on most layers, and keys take far fewer axes than
/// they are wide.
TEST(Calibration, TheDefaultModel) {
  MNEME_NEEDS_SMOLLM2();
  const auto& model = *check::smollm2();
  const CalibrationText text{"prose", prose(3000)};
  const auto filters = registry().make<Calibration>("qfilter")->run(model, text, nothing());
  EXPECT_EQ(filters.numbers.at("qfilter").sizes(), at::IntArrayRef({30, 3, 64}));
  EXPECT_GT(filters.figures.at(2).second, 0.9) << filters.figures.at(2).first;
  const auto axes = registry().make<Calibration>("key_pca")->run(model, text, nothing());
  for (const auto& [name, rank] : axes.figures) EXPECT_LT(rank, 48) << name;
}

}  // namespace
}  // namespace mneme
