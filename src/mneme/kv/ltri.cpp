// ltri: what has left the window lies in spans that the attention of a layer itself sets off, and heads vote on which of
// them are read.
//
//   S(x,y) = sum_{x<=j<=i<=y} (A_ij - e_i)    A: weights, mean over heads; e_i: 1 / entries of i's window
//   spans  = of S(x,y) > 0 the highest first, lmin <= y - x + 1 <= lmax, that overlap no better one by more than `iou` of
//            their union, cut to what no better one holds; what is left between them, in pieces of lmax at most
//   r_sh   = mean of the `representatives` keys of span s with the highest weight from head h while in the window
//   v_s    = sum over KV heads of softmax_s(q_h . r_sh / sqrt(K))    q_h: mean of the chunk's queries
//   reads  = the spans of the highest v_s that fit `budget` entries together, the sinks, what is in no span, the window
//
// spec      ltri(sinks=128, local=4096, budget=2048, lmin=4, lmax=64, iou=0.1, representatives=4, chunk=512, refresh=1,
//           place=near, borders=attention, resident=256, disk=false)
// holds     as infllm; and lmax weights of each entry in the window
// cost      as infllm; scores of lmax + chunk entries once more, and 4 lmax^2 candidates for every 3 lmax entries
// needs     keys unturned; weights of the window; text may grow past the model's context (place=near)
// source    Tang et al. 2024, arXiv:2412.04757
// departs   the form of e_i, the vote and the step from overlapping spans to a partition are ours; text is cut in stretches
//           of 4 lmax, each of which ends where a span does, lmax before its end at the latest
#include "mneme/core/generator.h"
#include "mneme/core/registry.h"
#include "mneme/kv/retrieving_kv.h"

#include <algorithm>
#include <cmath>
#include <fmt/format.h>
#include <limits>
#include <numeric>
#include <utility>

namespace mneme::kv::ltri {

struct Options {
  std::int64_t sinks = 128, local = 4096, budget = 2048, lmin = 4, lmax = 64;
  double iou = 0.1;
  std::int64_t representatives = 4, chunk = 512, refresh = 1;
  std::string place = "near", borders = "attention";
  std::int64_t resident = 256;
  bool disk = false;
};

/// Entries x to y, both among them.
struct Span {
  std::int64_t x, y;
  double score;
};

class Method final : public RetrieveMethod {
 public:
  Method(const Options& o, std::int64_t width)
      : o_(o), scale_(1.0 / std::sqrt(static_cast<double>(width))) {}

  [[nodiscard]] bool ready(std::int64_t left) const override { return left >= stretch(); }

  [[nodiscard]] std::vector<std::int64_t> cut(const LeftEntries& left) const override {
    // Spans near the end of the stretch are not settled: what follows may hold a better one.
    const auto n = stretch(), settled = n - o_.lmax;
    std::vector<std::int64_t> out;
    std::int64_t end = 0;
    for (const auto& span : partition(candidates(left, n), n)) {
      if (span.y + 1 > settled) break;
      out.push_back(span.y + 1 - span.x);
      end = span.y + 1;
    }
    MNEME_ASSERT(end > 0);  // no span is longer than lmax
    if (o_.borders == "shuffled") shuffle(out);
    return out;
  }

  [[nodiscard]] std::vector<std::int64_t> speakers(std::span<const float> weights) const override {
    auto places = order(weights);
    places.resize(std::min(places.size(), static_cast<std::size_t>(o_.representatives)));
    return places;
  }

  [[nodiscard]] std::vector<std::vector<std::int64_t>> choose(
      std::int64_t heads, std::span<const float> scores,
      std::span<const std::shared_ptr<const Block>> blocks) const override {
    std::vector<float> votes(blocks.size());
    for (std::int64_t h = 0; h < heads; ++h) {
      const auto own = scores.subspan(static_cast<std::size_t>(h) * blocks.size(), blocks.size());
      const auto most = *std::max_element(own.begin(), own.end());
      double sum = 0;
      for (const auto x : own) sum += std::exp(scale_ * (x - most));
      for (std::size_t s = 0; s < own.size(); ++s)
        votes[s] += static_cast<float>(std::exp(scale_ * (own[s] - most)) / sum);
    }
    std::vector<std::int64_t> chosen;
    auto room = o_.budget;
    for (const auto s : order(votes)) {
      if (room < 1) break;
      if (const auto n = blocks[static_cast<std::size_t>(s)]->entries(); n <= room) {
        chosen.push_back(s);
        room -= n;
      }
    }
    std::sort(chosen.begin(), chosen.end());
    return {chosen};
  }

 private:
  [[nodiscard]] std::int64_t stretch() const { return 4 * o_.lmax; }

  /// Chance depends on the lengths alone, so that equal texts are cut alike.
  static void shuffle(std::vector<std::int64_t>& lengths) {
    Generator generator(0);
    for (const auto n : lengths) generator = generator.split(static_cast<std::uint64_t>(n));
    for (auto i = lengths.size(); i > 1; --i)
      std::swap(lengths[i - 1], lengths[generator.next() % i]);
  }

  /// The places, of the highest first; of equals the first.
  static std::vector<std::int64_t> order(std::span<const float> x) {
    std::vector<std::int64_t> places(x.size());
    std::iota(places.begin(), places.end(), std::int64_t{0});
    // What is not a number is the lowest: it would leave no order.
    const auto value = [&](std::int64_t i) {
      const auto y = x[static_cast<std::size_t>(i)];
      return std::isnan(y) ? -std::numeric_limits<float>::infinity() : y;
    };
    std::stable_sort(places.begin(), places.end(),
                     [&](std::int64_t a, std::int64_t b) { return value(a) > value(b); });
    return places;
  }

  /// All spans of the first n entries that score above 0, the best first.
  [[nodiscard]] std::vector<Span> candidates(const LeftEntries& left, std::int64_t n) const {
    // rows[i][k] = sum_{m<=k} A_i,i-m: a span that grows by entry y grows by one of these.
    const auto band = o_.lmax;
    std::vector<double> rows(static_cast<std::size_t>(n * band));
    for (std::int64_t i = 0; i < n; ++i) {
      double sum = 0;
      for (std::int64_t k = 0; k < band; ++k) {
        const auto at = static_cast<std::size_t>(i * band + k);
        sum += left.weights[at];
        rows[at] = sum;
      }
    }
    std::vector<Span> out;
    for (std::int64_t x = 0; x < n; ++x) {
      double score = 0;
      for (std::int64_t y = x; y < std::min(n, x + o_.lmax); ++y) {
        score += rows[static_cast<std::size_t>(y * band + y - x)] -
                 static_cast<double>(y - x + 1) * left.even[static_cast<std::size_t>(y)];
        if (y - x + 1 >= o_.lmin && score > 0) out.push_back({x, y, score});
      }
    }
    std::stable_sort(out.begin(), out.end(),
                     [](const Span& a, const Span& b) { return a.score > b.score; });
    return out;
  }

  /// Spans that hold each of n entries once, in their order.
  [[nodiscard]] std::vector<Span> partition(const std::vector<Span>& best_first,
                                            std::int64_t n) const {
    std::vector<Span> accepted;  // as they scored
    std::vector<std::int64_t> owner(static_cast<std::size_t>(n), -1);
    for (const auto& span : best_first) {
      const bool stands = std::all_of(accepted.begin(), accepted.end(), [&](const Span& better) {
        const auto common = std::min(span.y, better.y) - std::max(span.x, better.x) + 1;
        const auto all = std::max(span.y, better.y) - std::min(span.x, better.x) + 1;
        return common <= 0 || static_cast<double>(common) <= o_.iou * static_cast<double>(all);
      });
      if (!stands) continue;
      for (auto i = span.x; i <= span.y; ++i) {
        auto& mine = owner[static_cast<std::size_t>(i)];
        if (mine < 0) mine = static_cast<std::int64_t>(accepted.size());
      }
      accepted.push_back(span);
    }
    std::vector<Span> out;
    for (std::int64_t i = 0; i < n; ++i) {
      if (!out.empty() &&
          owner[static_cast<std::size_t>(i)] == owner[static_cast<std::size_t>(i - 1)] &&
          out.back().y + 1 - out.back().x < o_.lmax) {
        out.back().y = i;
      } else {
        out.push_back({i, i, 0});
      }
    }
    return out;
  }

  Options o_;
  double scale_;
};

class Ltri final : public RetrieveStage {
 public:
  using Options = ltri::Options;
  static void describe(Describe& d, Options& o) {
    d("sinks", o.sinks, at_least(0), "first entries that are always read");
    d("local", o.local, at_least(1), "entries of the window");
    d("budget", o.budget, at_least(1), "entries of all spans that are read");
    d("lmin", o.lmin, at_least(1), "entries of the shortest span that attention sets off");
    d("lmax", o.lmax, at_least(1), "entries of the longest span; at most local");
    d("iou", o.iou, within(0, 1), "how much of their union two such spans may share");
    d("representatives", o.representatives, at_least(1), "keys of a span whose mean stands for it");
    d("chunk", o.chunk, at_least(1), "most queries that read the same spans; at most local");
    d("refresh", o.refresh, at_least(1), "decoding steps that read the same spans");
    d("place", o.place, one_of({"near", "original"}),
      "where far entries stand: as far away as the window reaches, or where they were");
    d("borders", o.borders, one_of({"attention", "shuffled"}),
      "where spans end: where attention sets them off, or, for comparison, spans of the same "
      "lengths elsewhere");
    d("resident", o.resident, at_least(1), "spans of the file that stay in memory");
    d("disk", o.disk, "spans lie in a temporary file");
  }
  explicit Ltri(const Options& o) : o_(o) {
    if (o.chunk > o.local)
      throw Error(Errc::usage,
                  fmt::format("ltri: chunk={} is more than local={}: entries that are retrieved "
                              "would lie inside a chunk",
                              o.chunk, o.local));
    if (o.lmax > o.local || o.lmin > o.lmax)
      throw Error(Errc::usage,
                  fmt::format("ltri: lmin={}, lmax={} and local={}: none may be more than the next",
                              o.lmin, o.lmax, o.local));
    if (o.budget < o.lmax)
      throw Error(Errc::usage,
                  fmt::format("ltri: budget={} is less than lmax={}: the longest spans could never "
                              "be read",
                              o.budget, o.lmax));
  }

  [[nodiscard]] Needs needs() const override {
    Needs needs;
    needs.attention = AttentionLevel::column_sums;
    return needs;
  }
  [[nodiscard]] KvGranularity granularity() const override { return KvGranularity::span; }
  [[nodiscard]] KvScope scope() const override { return KvScope::layer; }

  [[nodiscard]] bool made(const KvStore& store) const override {
    const auto* own = dynamic_cast<const RetrievingKv*>(&store);
    return own != nullptr && own->spec() == spec();
  }
  [[nodiscard]] std::unique_ptr<KvStore> store(const KvShape& shape, std::int64_t layer,
                                               std::int64_t rows) const override {
    RetrieveSettings settings;
    settings.spec = spec();
    settings.sinks = o_.sinks;
    settings.local = o_.local;
    settings.chunk = o_.chunk;
    settings.refresh = o_.refresh;
    if (o_.place == "original") settings.place = RetrieveSettings::Place::original;
    settings.band = o_.lmax;
    settings.scores_by_head = true;
    settings.blocks = {o_.disk, o_.resident};
    return std::make_unique<RetrievingKv>(shape, layer, rows, settings,
                                          std::make_shared<Method>(o_, shape.key));
  }

 private:
  [[nodiscard]] std::string spec() const { return print(canonical<Ltri>("ltri", o_)); }
  Options o_;
};

void enrol(Registry& r) {
  r.add<KvStage, Ltri>("ltri", "a window near, and the spans of the past that heads vote for",
                       "ltri-llm-2024");
}

}  // namespace mneme::kv::ltri
