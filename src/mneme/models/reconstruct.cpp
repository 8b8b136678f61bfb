#include "mneme/models/reconstruct.h"

#include "mneme/core/error.h"
#include "mneme/kv/paged_kv.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace mneme {
namespace {

/// The stores whose plan needs the pass.
std::vector<PagedKv*> in_need(State& state) {
  std::vector<PagedKv*> out;
  for (auto* store : kv_stores(state)) {
    auto* paged = dynamic_cast<PagedKv*>(store);
    if (paged && paged->needs_reconstruction()) out.push_back(paged);
  }
  return out;
}

/// Tokens of a chunk: fewer than wanted where the context ends before.
std::int64_t that_fit(const Model& model, std::int64_t seen, const Reconstruction& how) {
  constexpr std::int64_t kLeast = 64;  // below, requests are most of what is read
  const auto context = model.shape().context;
  if (context == 0) return how.chunk;
  const auto words =
      static_cast<std::int64_t>(std::max(how.first.size(), how.next.size()) + how.then.size());
  const auto room = context - seen - words - how.overlap;
  return room >= how.chunk ? how.chunk : std::min(how.chunk, std::max(kLeast, room));
}

}  // namespace

Reconstruction reconstruction(const Tokenizer& tokenizer) {
  Reconstruction out;
  out.first = tokenizer.encode("\n\nRepeat the previous context exactly.");
  out.next =
      tokenizer.encode("\n\nRepeat the part of the previous context exactly, starting with ");
  out.then = tokenizer.encode("\n");
  return out;
}

void reconstruct(const Model& model, Compute compute, State& state,
                 std::span<const std::int32_t> ids, const Reconstruction& how) {
  const auto stores = in_need(state);
  if (stores.empty() || ids.empty()) return;
  if (stores.front()->rows() != 1)
    throw Error(Errc::unsupported,
                "the KV plan reads the prompt a second time, which is done for one row at a time: "
                "this state has several");
  const auto seen = stores.front()->seen(0), count = static_cast<std::int64_t>(ids.size()),
             begin = seen - count;
  if (begin < 0)
    throw Error(Errc::invalid, "a prompt of more tokens than the state that it ends has seen");
  const auto chunk = that_fit(model, seen, how);
  for (std::int64_t at = 0; at < count; at += chunk) {
    const auto n = std::min(chunk, count - at);
    auto text = at == 0 ? how.first : how.next;
    const auto put = [&](std::span<const std::int32_t> some) {
      text.insert(text.end(), some.begin(), some.end());
    };
    const auto part = [&](std::int64_t from, std::int64_t size) {
      return ids.subspan(static_cast<std::size_t>(from), static_cast<std::size_t>(size));
    };
    if (at > 0) put(part(std::max<std::int64_t>(0, at - how.overlap), std::min(at, how.overlap)));
    put(how.then);
    put(part(at, n));

    auto fork = state.fork();
    const auto watching = in_need(fork);
    for (auto* store : watching) store->watch(begin + at, begin + at + n, how.sinks);
    for (std::size_t done = 0; done < text.size();) {
      if (how.between) how.between();
      const auto size = std::min(text.size() - done, static_cast<std::size_t>(how.feed));
      Batch batch;
      batch.ids = at::empty({1, static_cast<std::int64_t>(size)}, at::kLong);
      std::copy_n(text.begin() + static_cast<std::ptrdiff_t>(done), size,
                  batch.ids.mutable_data_ptr<std::int64_t>());
      batch.logits_at = LogitsAt::none;
      batch.compute = compute;
      (void)model.forward(batch, fork);
      done += size;
    }
    for (std::size_t i = 0; i < stores.size(); ++i) stores[i]->take_watched(*watching[i]);
  }
}

void finish_prompt(const LanguageModel& model, State& state, std::span<const std::int32_t> ids,
                   const std::function<void()>& between, Compute compute) {
  if (!in_need(state).empty()) {
    auto how = reconstruction(*model.tokenizer);
    how.between = between;
    reconstruct(*model.model, compute == Compute::automatic ? model.compute : compute, state, ids,
                how);
  }
  finish_prompt(state);
}

}  // namespace mneme
