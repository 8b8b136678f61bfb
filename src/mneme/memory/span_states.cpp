#include "mneme/memory/span_states.h"

#include "mneme/core/error.h"
#include "mneme/core/log.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <fmt/format.h>

namespace mneme::memory {
namespace {

// A state computed on another CPU or in another batch rounds differently; anything beyond that is damage. 4-bit codes
// flip where 8-bit ones do not.
constexpr double kTolerated8Bits = 0.03, kTolerated4Bits = 0.12;

double difference(const SpanState& a, const SpanState& b) {
  double difference = 0, whole = 0;
  for (std::size_t layer = 0; layer < a.layers.size(); ++layer) {
    for (const auto& [x, y] : {std::pair(a.layers[layer].keys, b.layers[layer].keys),
                               std::pair(a.layers[layer].values, b.layers[layer].values)}) {
      difference += (x - y).square().sum().item<double>();
      whole += y.square().sum().item<double>();
    }
  }
  return whole > 0 ? std::sqrt(difference / whole) : std::sqrt(difference);
}

}  // namespace

SpanStates::SpanStates(MemoryFile& file, const Reader& reader)
    : file_(file), reader_(reader), stream_(file.meta("context") == "stream") {}

RepKey SpanStates::key(std::int64_t span) const {
  auto out = alone(span);
  if (stream_) out.prefix_digest += "+stream";
  return out;
}

RepKey SpanStates::alone(std::int64_t span) const {
  return {span, RepKind::kv, reader_.model().digest, -1, reader_.codec(), reader_.prefix_digest()};
}

bool SpanStates::has(std::int64_t span) const {
  const auto wanted = key(span);
  const auto reps = file_.reps(span);
  return std::any_of(reps.begin(), reps.end(), [&](const RepInfo& rep) {
    return rep.key.kind == wanted.kind && rep.key.model_digest == wanted.model_digest &&
           rep.key.prefix_digest == wanted.prefix_digest;
  });
}

Rep SpanStates::rep(RepKey key, std::int64_t tokens, std::string blob) {
  Rep rep;
  rep.key = std::move(key);
  rep.n_vec = tokens;
  rep.d = tokens > 0 ? static_cast<std::int64_t>(blob.size()) / tokens : 0;
  rep.blob = std::move(blob);
  return rep;
}

std::vector<SpanStates::Loaded> SpanStates::load(const std::vector<std::int64_t>& spans) {
  std::vector<Loaded> out(spans.size());
  std::vector<std::size_t> missing;
  std::vector<std::vector<std::int32_t>> ids;
  for (std::size_t i = 0; i < spans.size(); ++i) {
    used_.push_back(spans[i]);
    auto rep = file_.get_any_codec(key(spans[i]));
    if (!rep && stream_) rep = file_.get_any_codec(alone(spans[i]));
    if (rep) {
      try {
        out[i] = {reader_.decode(rep->blob, rep->n_vec, rep->key.codec), true,
                  static_cast<std::int64_t>(rep->blob.size())};
        continue;
      } catch (const Error&
                   error) {  // of another build or damaged beyond its checksum: read the span again
        log::warn("a stored state is not used: {}", error.what());
      }
    }
    missing.push_back(i);
    ids.push_back(reader_.span_ids(file_.span_text(spans[i])));
  }
  auto blobs = reader_.compute(ids);
  for (std::size_t j = 0; j < missing.size(); ++j) {
    const auto tokens = static_cast<std::int64_t>(ids[j].size());
    tokens_evaluated_ += tokens;
    out[missing[j]] = {reader_.decode(blobs[j], tokens, reader_.codec()), false,
                       static_cast<std::int64_t>(blobs[j].size())};
    computed_.push_back(rep(alone(spans[missing[j]]), tokens, std::move(blobs[j])));
  }
  return out;
}

StoreReport SpanStates::store() {
  file_.set_consolidate(consolidation(), kRungs);
  file_.touch(used_);
  used_.clear();
  const auto report = file_.put(computed_, Admission::for_question);
  computed_.clear();
  return report;
}

MemoryFile::Consolidate SpanStates::consolidation() const {
  return [&reader = reader_](const Rep& state, std::int64_t rung) -> std::optional<Rep> {
    if (rung >= kRungs || state.key.codec != "q8" || state.key.kind != RepKind::kv ||
        state.key.model_digest != reader.model().digest)
      return std::nullopt;
    auto smaller = state;
    try {
      smaller.blob = reader.recode(state.blob, state.n_vec, state.key.codec, "q4");
    } catch (const Error&) {
      return std::nullopt;
    }
    smaller.key.codec = "q4";
    smaller.d =
        static_cast<std::int64_t>(smaller.blob.size()) / std::max<std::int64_t>(1, smaller.n_vec);
    return smaller;
  };
}

std::string SpanStates::compare(std::int64_t span) const {
  const auto rep = file_.get_any_codec(key(span));
  if (!rep) return "";
  const auto ids = reader_.span_ids(file_.span_text(span));
  if (rep->n_vec != static_cast<std::int64_t>(ids.size()))
    return fmt::format("span {}: its state has {} tokens, its text {}", span, rep->n_vec,
                       ids.size());
  const auto fresh =
      reader_.decode(reader_.compute({&ids, 1}).front(), rep->n_vec, reader_.codec());
  const auto stored = reader_.decode(rep->blob, rep->n_vec, rep->key.codec);
  const auto apart = difference(stored, fresh),
             tolerated = rep->key.codec == "q4" ? kTolerated4Bits : kTolerated8Bits;
  if (apart <= tolerated) return "";
  return fmt::format(
      "span {}: its stored state differs from its text's by {:.3f} of its size (at most {} is "
      "rounding): forget or read the source again",
      span, apart, tolerated);
}

}  // namespace mneme::memory
