// infllm: what has left the window lies in blocks of equal size, of which every chunk of queries reads the likeliest few.
//
//   r_bh   = mean of the `representatives` keys of block b with the highest w_jh;  w_jh: the weight that query head h gave
//            key j while it was in the window, summed over queries
//   s_b    = sum_h q_h . r_bh      q_h: mean of the chunk's queries, at the angle of far entries
//   reads  = the `topk` blocks of the highest s_b, the sinks, the remainder that fills no block yet, the window
//
// spec      infllm(sinks=128, local=4096, block=128, topk=16, representatives=4, chunk=512, refresh=1, per_head=false,
//           place=near, resident=32, disk=false)
// holds     all entries: those of the window in memory, blocks there or, with disk, in a file of which `resident` blocks are
//           in memory; 17/16 bytes a number of r. Exact while N <= local
// cost      a chunk: attention over local + chunk + topk block + sinks entries, once more its scores over the window, and N /
//           block products of Hq K
// needs     keys unturned; weights of the window; text may grow past the model's context (place=near)
// source    Xiao et al. 2024, arXiv:2402.04617
// departs   r is kept in 8 bits; a KV head, not a query head, chooses for itself with per_head; what was read last stays
//           resident (the paper can also go by attention)
#include "mneme/core/registry.h"
#include "mneme/kv/retrieving_kv.h"

#include <algorithm>
#include <cmath>
#include <fmt/format.h>
#include <limits>
#include <numeric>

namespace mneme::kv::infllm {

class Method final : public RetrieveMethod {
 public:
  Method(std::int64_t block, std::int64_t topk, std::int64_t representatives)
      : block_(block), topk_(topk), representatives_(representatives) {}

  [[nodiscard]] bool ready(std::int64_t left) const override { return left >= block_; }
  [[nodiscard]] std::vector<std::int64_t> cut(const LeftEntries& left) const override {
    return std::vector<std::int64_t>(static_cast<std::size_t>(left.entries / block_), block_);
  }

  [[nodiscard]] std::vector<std::int64_t> speakers(std::span<const float> weights) const override {
    return highest(weights, representatives_);
  }

  [[nodiscard]] std::vector<std::vector<std::int64_t>> choose(
      std::int64_t heads, std::span<const float> scores,
      std::span<const std::shared_ptr<const Block>> blocks) const override {
    std::vector<std::vector<std::int64_t>> out;
    for (std::int64_t h = 0; h < heads; ++h)
      out.push_back(highest(
          scores.subspan(static_cast<std::size_t>(h) * blocks.size(), blocks.size()), topk_));
    return out;
  }

 private:
  /// The places of the n highest, ascending; of equals the first.
  static std::vector<std::int64_t> highest(std::span<const float> x, std::int64_t n) {
    std::vector<std::int64_t> places(x.size());
    std::iota(places.begin(), places.end(), std::int64_t{0});
    if (static_cast<std::int64_t>(x.size()) <= n) return places;
    // What is not a number is the lowest: it would leave no order.
    const auto value = [&](std::int64_t i) {
      const auto y = x[static_cast<std::size_t>(i)];
      return std::isnan(y) ? -std::numeric_limits<float>::infinity() : y;
    };
    std::nth_element(places.begin(), places.begin() + n, places.end(),
                     [&](std::int64_t a, std::int64_t b) {
                       return value(a) > value(b) || (value(a) == value(b) && a < b);
                     });
    places.resize(static_cast<std::size_t>(n));
    std::sort(places.begin(), places.end());
    return places;
  }

  std::int64_t block_, topk_, representatives_;
};

class InfLlm final : public RetrieveStage {
 public:
  struct Options {
    std::int64_t sinks = 128, local = 4096, block = 128, topk = 16, representatives = 4,
                 chunk = 512, refresh = 1;
    bool per_head = false;
    std::string place = "near";
    std::int64_t resident = 32;
    bool disk = false;
  };
  static void describe(Describe& d, Options& o) {
    d("sinks", o.sinks, at_least(0), "first entries that are always read");
    d("local", o.local, at_least(1), "entries of the window");
    d("block", o.block, at_least(1), "entries of a block");
    d("topk", o.topk, at_least(1), "blocks that are read");
    d("representatives", o.representatives, at_least(1),
      "keys of a block whose mean stands for it");
    d("chunk", o.chunk, at_least(1), "most queries that read the same blocks; at most local");
    d("refresh", o.refresh, at_least(1), "decoding steps that read the same blocks");
    d("per_head", o.per_head, "every KV head reads blocks of its own choice");
    d("place", o.place, one_of({"near", "original"}),
      "where far entries stand: as far away as the window reaches, or where they were");
    d("resident", o.resident, at_least(1), "blocks of the file that stay in memory");
    d("disk", o.disk, "blocks lie in a temporary file");
  }
  explicit InfLlm(const Options& o) : o_(o) {
    if (o.chunk > o.local)
      throw Error(Errc::usage,
                  fmt::format("infllm: chunk={} is more than local={}: entries that are retrieved "
                              "would lie inside a chunk",
                              o.chunk, o.local));
  }

  [[nodiscard]] Needs needs() const override {
    Needs needs;
    needs.attention = AttentionLevel::column_sums;
    return needs;
  }
  [[nodiscard]] KvGranularity granularity() const override { return KvGranularity::block; }
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
    settings.scores_by_head = o_.per_head;
    settings.blocks = {o_.disk, o_.resident};
    return std::make_unique<RetrievingKv>(
        shape, layer, rows, settings,
        std::make_shared<Method>(o_.block, o_.topk, o_.representatives));
  }

 private:
  [[nodiscard]] std::string spec() const { return print(canonical<InfLlm>("infllm", o_)); }
  Options o_;
};

void enrol(Registry& r) {
  r.add<KvStage, InfLlm>("infllm", "a window near, and the blocks of the past that queries ask for",
                         "infllm-2024");
}

}  // namespace mneme::kv::infllm
