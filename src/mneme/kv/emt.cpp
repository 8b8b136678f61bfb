// emt: what has left the window is a bank of memories; every query of every head reads the few keys that lie closest to it.
//
//   sim_ij = cos(q_i, k_j)      q_i turned, k_j unturned, j over the bank; of every query head for itself
//   reads  = the `topk` memories of the highest sim_ij, those below `sim` left out, and nobody else's; the sinks; the window
//   o_i    = softmax over both together of q_i . k_j / sqrt(K)
//
// spec      emt(topk=10, sim=-1, layers=[], local=2048, sinks=4, chunk=512, place=near, resident=256, disk=false)
// holds     all entries: those of the window in memory, blocks of 64 there or in a file; 17/16 bytes a number of the keys
//           that are searched. Exact while N <= local
// cost      a query: local + sinks + topk entries, and a product with every key of the bank
// needs     keys unturned; text may grow past the model's context (place=near)
// source    Klett & Ahle 2024, arXiv:2406.02332
// departs   the bank is what was read before, not another text: its oldest `sinks` entries are no memories, since the first
//           token's key would be the closest to all, but always read; so is what has left the window and fills no block
//           yet. The paper turns queries to their own positions (place=zero); place=near turns all to position local - 1.
//           No cosine is too low by default, as in its code for Llama: SmolLM2's keys are far from queries that heed them.
//           Keys are searched in 8 bits
#include "mneme/core/registry.h"
#include "mneme/kv/retrieving_kv.h"

#include <algorithm>
#include <fmt/format.h>

namespace mneme::kv::emt {

class Method final : public RetrieveMethod {
 public:
  static constexpr std::int64_t kBlock = 64;

  [[nodiscard]] bool ready(std::int64_t left) const override { return left >= kBlock; }
  [[nodiscard]] std::vector<std::int64_t> cut(const LeftEntries& left) const override {
    return std::vector<std::int64_t>(static_cast<std::size_t>(left.entries / kBlock), kBlock);
  }
  [[nodiscard]] bool wants_weights() const override { return false; }
  [[nodiscard]] std::vector<std::int64_t> speakers(std::span<const float>) const override {
    return {};
  }
  [[nodiscard]] std::vector<std::vector<std::int64_t>> choose(
      std::int64_t, std::span<const float>,
      std::span<const std::shared_ptr<const Block>>) const override {
    return {};
  }
};

class Emt final : public RetrieveStage {
 public:
  struct Options {
    std::int64_t topk = 10;
    double sim = -1;
    std::vector<std::int64_t> layers;
    std::int64_t local = 2048, sinks = 4, chunk = 512;
    std::string place = "near";
    std::int64_t resident = 256;
    bool disk = false;
  };
  static void describe(Describe& d, Options& o) {
    d("topk", o.topk, at_least(1), "memories that a query reads");
    d("sim", o.sim, within(-1, 1), "least cosine of a memory's key and the query; -1: any");
    d("layers", o.layers, "layers that read memories, the others their window alone; none: all do");
    d("local", o.local, at_least(1), "entries of the window");
    d("sinks", o.sinks, at_least(0), "first entries, which are always read");
    d("chunk", o.chunk, at_least(1), "most queries that are run at once; at most local");
    d("place", o.place, one_of({"near", "zero", "original"}),
      "memories and queries stand apart as the window reaches, at 0 and its own, or both at their "
      "own");
    d("resident", o.resident, at_least(1), "blocks of 64 memories of the file that stay in memory");
    d("disk", o.disk, "memories lie in a temporary file");
  }
  explicit Emt(const Options& o) : o_(o) {
    if (o.chunk > o.local)
      throw Error(Errc::usage,
                  fmt::format("emt: chunk={} is more than local={}: memories would lie inside a "
                              "chunk",
                              o.chunk, o.local));
  }

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
    if (o_.place == "zero") settings.place = RetrieveSettings::Place::zero;
    if (o_.place == "original") settings.place = RetrieveSettings::Place::original;
    settings.entries = o_.topk;
    settings.least_cosine = o_.sim;
    settings.memories = o_.layers.empty() ||
                        std::find(o_.layers.begin(), o_.layers.end(), layer) != o_.layers.end();
    settings.blocks = {o_.disk, o_.resident};
    return std::make_unique<RetrievingKv>(shape, layer, rows, settings, std::make_shared<Method>());
  }

 private:
  [[nodiscard]] std::string spec() const { return print(canonical<Emt>("emt", o_)); }
  Options o_;
};

void enrol(Registry& r) {
  r.add<KvStage, Emt>("emt", "a window near, and the memories that each query finds closest",
                      "extended-mind-2024");
}

}  // namespace mneme::kv::emt
