#include "mneme/memory/span_states.h"

#include "mneme/core/error.h"
#include "mneme/core/log.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <fmt/format.h>
#include <numeric>

namespace mneme::memory {
namespace {

// A state computed on another CPU or in another batch rounds differently; anything beyond that is damage. 4-bit codes
// flip where 8-bit ones do not.
constexpr double kTolerated8Bits = 0.03, kTolerated4Bits = 0.12;

/// Of what a state holds, beside the whole state of the same tokens.
double difference(const SpanState& held, const SpanState& whole_state) {
  double difference = 0, whole = 0;
  for (std::size_t layer = 0; layer < held.layers.size(); ++layer) {
    const auto &a = held.layers[layer], &b = whole_state.layers[layer];
    for (std::int64_t h = 0; h < a.keys.size(0); ++h) {
      std::vector<std::int64_t> places(static_cast<std::size_t>(a.tokens()));
      std::iota(places.begin(), places.end(), std::int64_t{0});
      if (!a.places.empty()) places = a.places[static_cast<std::size_t>(h)];
      const auto index = at::tensor(places, at::kLong);
      for (const auto& [x, y] :
           {std::pair(a.keys[h], b.keys[h]), std::pair(a.values[h], b.values[h])}) {
        const auto beside = y.index_select(0, index);
        difference += (x.narrow(0, 0, index.size(0)) - beside).square().sum().item<double>();
        whole += beside.square().sum().item<double>();
      }
    }
  }
  return whole > 0 ? std::sqrt(difference / whole) : std::sqrt(difference);
}

}  // namespace

SpanStates::SpanStates(MemoryFile& file, const Reader& reader)
    : file_(file), reader_(reader), stream_(file.meta("context") == "stream") {
  try {
    for (const auto& chain :
         parse_chains(file.meta("consolidate").value_or(std::string(kConsolidate)))) {
      Reader::check_consolidation(chain);
      steps_.push_back(std::make_shared<const KvPlan>(chain));
    }
  } catch (const Error& error) {
    throw Error(Errc::corrupt, fmt::format("{}: how its states are made smaller is not to be "
                                           "understood: {}",
                                           file.path().string(), error.what()));
  }
}

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
  consolidate_when_full();
  file_.touch(used_);
  used_.clear();
  const auto report = file_.put(computed_, Admission::for_question);
  computed_.clear();
  return report;
}

void SpanStates::consolidate_when_full() {
  const auto make_smaller = [&reader = reader_, steps = steps_](
                                const Rep& state, std::int64_t rung) -> std::optional<Rep> {
    if (rung < 0 || rung >= static_cast<std::int64_t>(steps.size()) ||
        state.key.kind != RepKind::kv || state.key.model_digest != reader.model().digest)
      return std::nullopt;
    auto smaller = state;
    try {
      auto encoded = reader.consolidated(state.blob, state.n_vec, state.key.codec,
                                         *steps[static_cast<std::size_t>(rung)]);
      smaller.blob = std::move(encoded.bytes);
      smaller.key.codec = std::move(encoded.codec);
    } catch (const Error&) {
      return std::nullopt;
    }
    smaller.d =
        static_cast<std::int64_t>(smaller.blob.size()) / std::max<std::int64_t>(1, smaller.n_vec);
    return smaller;
  };
  file_.set_consolidate(make_smaller, static_cast<std::int64_t>(steps_.size()));
}

std::string SpanStates::compare(std::int64_t span) const {
  const auto rep = file_.get_any_codec(key(span));
  if (!rep) return "";
  const auto ids = reader_.span_ids(file_.span_text(span));
  if (rep->n_vec != static_cast<std::int64_t>(ids.size()))
    return fmt::format("span {}: its state has {} tokens, its text {}", span, rep->n_vec,
                       ids.size());
  const auto fresh =
      reader_.decode(reader_.compute({&ids, 1}, true).front(), rep->n_vec, reader_.whole_codec());
  const auto stored = reader_.decode(rep->blob, rep->n_vec, rep->key.codec);
  const auto apart = difference(stored, fresh),
             tolerated = rep->key.codec.ends_with("q4") ? kTolerated4Bits : kTolerated8Bits;
  if (apart <= tolerated) return "";
  return fmt::format(
      "span {}: its stored state differs from its text's by {:.3f} of its size (at most {} is "
      "rounding): forget or read the source again",
      span, apart, tolerated);
}

}  // namespace mneme::memory
