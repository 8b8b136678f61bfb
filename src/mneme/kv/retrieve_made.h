// How a saved store says which retrieving stage made it, and is made again: stores of their own begin with this.
#pragma once

#include "mneme/core/bytes.h"
#include "mneme/mixers/kv_store.h"

#include <cstdint>
#include <memory>
#include <string>

namespace mneme {

/// Writes the stage's spec, the sizes of a layer's entries, whose keys and values are of one width, and the layer.
void write_made(ByteWriter& out, const std::string& spec, const KvShape& shape, std::int64_t layer);

/// The store, without rows, that the stage makes; null where what stands there is damaged or no stage makes a store of it.
std::unique_ptr<KvStore> read_made(ByteReader& in);

}  // namespace mneme
