// What stores say that a head could read, against what changes when an entry's value does.
#include "mneme/core/bytes.h"
#include "mneme/core/registry.h"
#include "mneme/kv/paged_kv.h"
#include "mneme/kv/retrieving_kv.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "../tensor_check.h"
#include <gtest/gtest.h>
#include <numeric>
#include <set>

namespace mneme {
namespace {

constexpr std::int64_t kHeads = 2, kGroup = 2, kWidth = 16, kTokens = 75;
using Entries = std::set<std::int64_t>;

std::unique_ptr<KvStore> store(const std::string& chain) {
  const KvShape shape{kHeads, kWidth, kWidth,
                      std::make_shared<Rope>(kWidth, 500.0, RopePairs::halves)};
  const auto plan = std::make_shared<const KvPlan>(parse_chain(chain));
  if (plan->retrieve()) return plan->retrieve()->store(shape, 0, 1);
  auto out = std::make_unique<PagedKv>(shape, 1);
  out->use(plan, 0, 1);
  return out;
}

struct Tokens {
  at::Tensor k, v, q;  // [1,heads,T,K]
};

at::Tensor step(KvStore& to, const Tokens& x, std::int64_t begin, std::int64_t n) {
  Call call;
  call.positions = (at::arange(n, at::kLong) + begin).unsqueeze(0);
  call.compute = Compute::f32;
  to.append(x.k.narrow(2, begin, n), x.v.narrow(2, begin, n), call);
  const auto q = x.q.narrow(2, begin, n);
  const auto got = to.attend(q, call, 0.35, true);
  if (to.observes()) to.observe(q, got.lse, call, 0.35);
  to.settle();
  return got.out;
}

/// What each query head says at the last token [Hq,K], all read in passes of 7 but for the last one.
at::Tensor last_of(KvStore& to, const Tokens& x) {
  at::Tensor out;
  for (std::int64_t at = 0; at < kTokens - 1; at += 7)
    step(to, x, at, std::min<std::int64_t>(7, kTokens - 1 - at));
  return step(to, x, kTokens - 1, 1)[0].select(1, 0).clone();
}

Entries entries_of(const std::vector<EntryRange>& ranges) {
  Entries out;
  for (std::int64_t end = -1; const auto& range : ranges) {
    EXPECT_LT(end, range.begin) << "ascending, and apart";
    EXPECT_LT(range.begin, range.end);
    for (auto i = range.begin; i < range.end; ++i) out.insert(i);
    end = range.end;
  }
  return out;
}

TEST(Readable, AreTheEntriesWhoseValuesCount) {
  const c10::NoGradGuard no_gradient;
  const Tokens x{check::normal({1, kHeads, kTokens, kWidth}, 1),
                 check::normal({1, kHeads, kTokens, kWidth}, 2),
                 check::normal({1, kHeads * kGroup, kTokens, kWidth}, 3)};
  for (const std::string spec :
       {"infllm(sinks=3, local=12, block=5, topk=2, representatives=2, chunk=6)",
        "infllm(sinks=3, local=12, block=5, topk=2, representatives=2, chunk=6, per_head=true)",
        "infllm(sinks=70, local=12, block=5, topk=2, chunk=6)",
        "ltri(sinks=2, local=12, budget=12, lmin=2, lmax=6, chunk=6)",
        "ltri(sinks=2, local=12, budget=12, lmin=2, lmax=6, chunk=6, borders=shuffled)",
        "emt(topk=3, local=8, sinks=2, chunk=4)",
        "emt(topk=3, local=8, sinks=2, chunk=4, layers=[1])", "window(sinks=2, size=9)",
        "k_norm | keep(entries=20, sinks=2, recent=4)", "quantize(bits=8)"}) {
    const auto held = store(spec);
    // A store that holds says so after its cut: of what was there before the last token, that is what it then read.
    const bool pages = dynamic_cast<PagedKv*>(held.get()) != nullptr;
    std::vector<Entries> told(kHeads);
    if (pages) {
      for (std::int64_t at = 0; at < kTokens - 1; at += 7)
        step(*held, x, at, std::min<std::int64_t>(7, kTokens - 1 - at));
      for (std::int64_t h = 0; h < kHeads; ++h)
        told[static_cast<std::size_t>(h)] = entries_of(*held->readable(0, h));
      for (auto& entries : told) entries.insert(kTokens - 1);
    }
    const auto plain = pages ? last_of(*store(spec), x) : last_of(*held, x);
    for (std::int64_t h = 0; h < kHeads && !pages; ++h)
      told[static_cast<std::size_t>(h)] = entries_of(*held->readable(0, h));
    std::vector<Entries> counted(kHeads);
    for (std::int64_t e = 0; e < kTokens; ++e) {
      auto changed = x;
      changed.v = x.v.clone();
      changed.v.select(2, e) += 1000;
      const auto other = last_of(*store(spec), changed);
      for (std::int64_t h = 0; h < kHeads * kGroup; ++h) {
        if (!at::equal(other[h], plain[h])) counted[static_cast<std::size_t>(h / kGroup)].insert(e);
      }
    }
    for (std::size_t h = 0; h < kHeads; ++h) EXPECT_EQ(told[h], counted[h]) << spec << ", " << h;
    if (spec != "quantize(bits=8)" && spec.find("sinks=70") == std::string::npos) {
      EXPECT_LT(told[0].size(), 50U) << spec << ": some are left out";
    }
  }
}

TEST(Readable, IsUnknownWhereNothingWasReadOrChoicesAreNotKept) {
  const c10::NoGradGuard no_gradient;
  const Tokens x{check::normal({1, kHeads, kTokens, kWidth}, 1),
                 check::normal({1, kHeads, kTokens, kWidth}, 2),
                 check::normal({1, kHeads * kGroup, kTokens, kWidth}, 3)};
  const auto held = store("infllm(sinks=3, local=12, block=5, topk=2, chunk=6)");
  EXPECT_FALSE(held->readable(0, 0));
  (void)last_of(*held, x);
  EXPECT_TRUE(held->readable(0, 0));
  std::string bytes;
  ByteWriter writer(&bytes);
  held->save(writer);
  RetrievingKv loaded;
  ByteReader reader(bytes);
  loaded.load(reader);
  EXPECT_FALSE(loaded.readable(0, 0));
  for (const auto* spec : {"quest(pages=1)", "camelot(slots=8, window=16)"}) {
    const auto other = store(spec);
    (void)last_of(*other, x);
    EXPECT_FALSE(other->readable(0, 0)) << spec;
  }
}

}  // namespace
}  // namespace mneme
