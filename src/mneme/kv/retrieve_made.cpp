#include "mneme/kv/retrieve_made.h"

#include "mneme/core/error.h"
#include "mneme/core/registry.h"
#include "mneme/kv/stage.h"

#include <cmath>

namespace mneme {

void write_made(ByteWriter& out, const std::string& spec, const KvShape& shape,
                std::int64_t layer) {
  out.string(spec);
  out.value(shape.heads);
  out.value(shape.key);
  out.value(shape.rope ? shape.rope->theta() : 0.0);
  out.value(static_cast<std::uint8_t>(shape.rope && shape.rope->pairs() == RopePairs::adjacent));
  out.value(layer);
}

std::unique_ptr<KvStore> read_made(ByteReader& in) {
  const auto spec = in.string();
  KvShape shape;
  shape.heads = in.value<std::int64_t>();
  shape.key = shape.value = in.value<std::int64_t>();
  constexpr std::int64_t kMost = 1 << 16;
  const auto theta = in.value<double>();
  const auto adjacent = in.value<std::uint8_t>();
  if (shape.heads < 1 || shape.heads > kMost || shape.key < 8 || shape.key > kMost ||
      shape.key % 8 != 0 || !(theta >= 0) || !std::isfinite(theta))
    return nullptr;
  if (theta > 0)
    shape.rope = std::make_shared<Rope>(shape.key, theta,
                                        adjacent ? RopePairs::adjacent : RopePairs::halves);
  const auto layer = in.value<std::int64_t>();
  try {
    const auto stage = registry().make<KvStage>(parse_stage(spec));
    const auto* retrieve = dynamic_cast<const RetrieveStage*>(stage.get());
    return retrieve ? retrieve->store(shape, layer, 0) : nullptr;
  } catch (const Error&) {
    return nullptr;
  }
}

}  // namespace mneme
