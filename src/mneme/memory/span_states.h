// SpanStates: the states of a memory's spans, found in the file or computed by the reader, the same either way.
#pragma once

#include "mneme/memory/memory_file.h"
#include "mneme/memory/reader.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace mneme::memory {

class SpanStates {
 public:
  /// How states are made smaller when the budget is full, unless a memory says otherwise: chains separated by ';'.
  static constexpr std::string_view kConsolidate = "quantize(bits=4)";

  /// Both must outlive this.
  SpanStates(MemoryFile& file, const Reader& reader);

  /// Whether the file holds a state of the span for this model and prefix, in whatever codec is left of it; in a memory that
  /// is read as a stream, one from that stream.
  [[nodiscard]] bool has(std::int64_t span) const;

  /// One span's state as it reads back from its codec.
  struct Loaded {
    SpanState state;
    bool from_file = false;
    std::int64_t bytes = 0;
  };
  /// The states of spans, in order. What the file lacks is computed in one go, each span behind the prefix alone, and
  /// remembered for `store`; where a stream's state is wanted, this stands in and is kept apart from the stream's.
  std::vector<Loaded> load(const std::vector<std::int64_t>& spans);
  /// Stores what load had to compute and counts the use of all that it gave.
  StoreReport store();
  /// Tokens of the spans that load had to compute.
  [[nodiscard]] std::int64_t tokens_evaluated() const { return tokens_evaluated_; }

  /// What a state is kept under that was read as the memory is: as a stream or span by span.
  [[nodiscard]] RepKey key(std::int64_t span) const;
  /// A state of so many tokens as it is stored.
  [[nodiscard]] static Rep rep(RepKey key, std::int64_t tokens, std::string blob);
  /// Has states made smaller as the memory says, step by step, when the budget is full. `reader` must outlive the file's use.
  void consolidate_when_full();
  /// Computes a span's state anew and compares it with the stored one: one line on what differs, empty if nothing does.
  [[nodiscard]] std::string compare(std::int64_t span) const;

 private:
  /// The key of a state that saw the prefix alone.
  [[nodiscard]] RepKey alone(std::int64_t span) const;

  MemoryFile& file_;
  const Reader& reader_;
  bool stream_;
  std::vector<std::shared_ptr<const KvPlan>> steps_;  ///< of consolidation
  std::vector<Rep> computed_;
  std::vector<std::int64_t> used_;
  std::int64_t tokens_evaluated_ = 0;
};

}  // namespace mneme::memory
