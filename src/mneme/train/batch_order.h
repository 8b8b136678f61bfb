// BatchOrder: which examples are learned together, and when.
//
// Every pass takes every example once, in an order of its own. Examples of like length go into one
// batch, so that padding is little: a window of the order is sorted by length, cut into batches, and
// the batches are shuffled. Everything follows from the seed and a place, which is three numbers.
#pragma once

#include "mneme/core/generator.h"
#include "mneme/train/example.h"
#include "mneme/train/task.h"

#include <cstdint>
#include <vector>

namespace mneme {

/// An example and where it comes from.
struct DrawnExample {
  std::int64_t index = 0, pass = 0;
  Example content;
};

class BatchOrder {
 public:
  /// How large a batch is: so many examples, or, where `tokens` is above 0, as many as fit so many
  /// tokens with padding (one at least).
  struct Size {
    std::int64_t examples = 8, tokens = 0;
  };
  /// Where the next batch is.
  struct Place {
    std::int64_t pass = 0, window = 0, batch = 0;
    bool operator==(const Place&) const = default;
  };

  /// Throws Error(invalid) for a task without examples. `task` outlives the order.
  BatchOrder(const Task& task, Size size, std::uint64_t seed);

  /// The next batch; after the last of a pass comes the first of the next one.
  [[nodiscard]] std::vector<DrawnExample> next();
  [[nodiscard]] Place place() const { return place_; }
  /// Goes on from a place that `place` gave; at any other `next` throws Error(invalid).
  void go_to(Place place);

 private:
  void fill();

  const Task& task_;
  Size size_;
  Generator generator_;
  Place place_;
  bool filled_ = false;
  std::int64_t filled_pass_ = -1;
  std::vector<std::int64_t> order_;                 // of the pass
  std::vector<std::vector<DrawnExample>> batches_;  // of the window
};

}  // namespace mneme
